"""Writes cpu.txt, cuda.txt, dev.txt and serve.txt: every package with its exact version, transitive ones included.

    python3.11 requirements/lock.py python3.10 python3.11 python3.12        one interpreter, with pip, per supported Python

Nothing is installed: each interpreter's pip resolves with `--dry-run --report`, and where the Pythons disagree on a version the
lines carry a marker. cpu.txt leaves out the packages that only the CUDA build of torch needs.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
CUDA_TORCH = f"{TORCH},!=2.13.0+cpu"  # where pip can see a CPU build too, it would prefer that
# torchrec's own metadata asks for the CUDA package fbgemm-gpu, so on a CPU machine its other requirements are named here instead.
TORCHREC = "torchrec==1.8.0"
RUN = ["torchmetrics==1.0.3", "pyre-extensions", "tensordict", "torchx==0.7.0", "setuptools>=77"]
SERVE = ["numpy", "pyarrow", "onnxruntime", "pydantic", "PyYAML", "tqdm"]
SERVE += ["uvicorn", "uvloop", "httptools", "msgspec", "prometheus_client"]
DEV = ["pytest", "ruff", "mypy", "hypothesis", "scikit-learn", "types-PyYAML", "types-tqdm", "playwright"]
DEV += ["adbc-driver-manager", "adbc-driver-postgresql", "adbc-driver-sqlite", "duckdb"]
HEADERS = {
    "cpu": "A machine without a GPU. torchrec comes without its own requirements: those name fbgemm-gpu, the CUDA package.",
    "cuda": "A Linux machine with an NVIDIA GPU. Resolved on a machine without one; it has not been run on a GPU yet.",
    "serve": "What trm serve, trm predict BUNDLE and the class Bundle need: no torch. A subset of cpu.txt.",
    "dev": "What tests and lint need, on top of cpu.txt or cuda.txt.",
}


def resolve(python: str, wanted: list[str], constraints: Path | None = None) -> dict[str, str]:
    """Name -> version of everything that `pip install wanted` would bring."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
        command += ["--report", report.name, *(["--constraint", str(constraints)] if constraints else []), *wanted]
        subprocess.run(command, check=True)
        items = json.loads(Path(report.name).read_text())["install"]
    return {canonical(i["metadata"]["name"]): i["metadata"]["version"].partition("+")[0] for i in items}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def merge(by_python: dict[str, dict[str, str]]) -> list[str]:
    """One line per package where all Pythons agree; else one line per version, with a marker."""
    lines = []
    for name in sorted({n for pins in by_python.values() for n in pins}):
        versions: dict[str, list[str]] = {}
        for python, pins in by_python.items():
            if name in pins:
                versions.setdefault(pins[name], []).append(python)
        for version, pythons in versions.items():
            marker = "" if len(pythons) == len(by_python) else " ; " + " or ".join(f'python_version == "{p}"' for p in pythons)
            lines.append(f"{name}=={version}{marker}")
    return lines


def write(target: str, lines: list[str]) -> Path:
    path = HERE / f"{target}.txt"
    head = [f"# {HEADERS[target]}", f"# Written by requirements/lock.py; install with: pip install --no-deps -r {path.name}"]
    path.write_text("\n".join([*head, *lines]) + "\n")
    return path


def main(pythons: list[str]) -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    names = {}
    for python in pythons:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        names[python] = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    base = [*project["dependencies"], *RUN]
    cuda = {names[p]: resolve(p, [*base, CUDA_TORCH, TORCHREC, "fbgemm-gpu==1.8.0"]) for p in pythons}
    constraints = write("cuda", merge(cuda))
    cpu = {names[p]: resolve(p, [*base, TORCH, "fbgemm-gpu-cpu==1.8.0"], constraints) for p in pythons}
    for pins in cpu.values():
        name, _, pins[name] = TORCHREC.partition("==")
    cpu = {p: {n: v for n, v in pins.items() if not is_cuda(n)} for p, pins in cpu.items()}
    write("cpu", merge(cpu))
    write("serve", merge({names[p]: resolve(p, SERVE, constraints) for p in pythons}))
    dev = {names[p]: resolve(p, DEV, constraints) for p in pythons}
    write("dev", merge({p: {n: v for n, v in pins.items() if n not in cpu[p]} for p, pins in dev.items()}))


def is_cuda(name: str) -> bool:
    """Packages that only the CUDA build of torch asks for."""
    return name.startswith(("nvidia-", "cuda-")) or name in ("triton", "fbgemm-gpu")


if __name__ == "__main__":
    main(sys.argv[1:])
