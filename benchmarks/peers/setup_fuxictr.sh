#!/usr/bin/env bash
# A dev-only environment for the peer of our benchmarks: FuxiCTR 2.3.10 (Apache-2.0), apart from our own.
#   benchmarks/peers/setup_fuxictr.sh PEER_VENV
# The wheel holds FuxiCTR's layers, training loop and data loaders, but no DeepFM: fuxictr_model.py assembles it from their layers.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 VENV_DIR   (made if absent)" >&2
  exit 2
fi
venv="$1"

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"

# torch: our benchmarks' own version, so that both sides call the same kernels. polars < 2: fuxictr 2.3.10 calls what 2.x removed.
# datasets: a loader that benchmarks/loader compares with.
# ray: its embedding layer imports its preprocessing, which imports ray.data; aiohttp: ray.data imports it.
# fuxictr comes last without its dependencies, so that none of the pins above can move.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  "torch==2.13.0" "numpy==2.3.5" "pandas<3" "pyarrow>=17" "polars<2" "scikit-learn" "h5py" "tqdm" "pyyaml>=6.0.1" "pydantic" \
  "ray[data]>=2.52.0" "aiohttp" "datasets==5.2.0"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "fuxictr==2.3.10"

"$venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

print("ready:", ", ".join(f"{name} {version(name)}" for name in ("fuxictr", "torch", "numpy", "polars", "ray")))
PYTHON
