#!/usr/bin/env bash
# A dev-only environment for the peers of benchmarks/serving, apart from our own: FastAPI (MIT), LitServe and BentoML (Apache-2.0).
#   benchmarks/peers/setup_serving.sh PEER_VENV
# ONNX Runtime, numpy, uvicorn, uvloop and httptools are those of requirements/serve.txt, so that all sides run the same code below them.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 VENV_DIR   (made if absent)" >&2
  exit 2
fi
venv="$1"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"

pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip --requirement "$root/requirements/serve.txt" "litserve==0.2.19" "bentoml==1.4.39" "fastapi==0.165.0"
pip --no-deps "$root"

"$venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

names = ("fastapi", "litserve", "bentoml", "onnxruntime", "uvicorn", "torchrec-models")
print("ready:", ", ".join(f"{name} {version(name)}" for name in names))
PYTHON
