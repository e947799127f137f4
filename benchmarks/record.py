"""What every result file says besides its numbers: machine, versions, commit, command.

Afterwards `python -m benchmarks.pages` writes the pages that show it.
"""

import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, memory and operating system of this machine."""
    cpu_info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", cpu_info.read_text(), flags=re.MULTILINE) if cpu_info.exists() else []
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured, with `+changes` where tracked files differ from it."""
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changes = subprocess.run(["git", "diff", "HEAD", "--quiet"], cwd=ROOT, check=False)
    return head.stdout.strip() + ("+changes" if changes.returncode else "")


def write_result(name: str, result: dict[str, Any], *, packages: tuple[str, ...]) -> Path:
    """Writes benchmarks/results/NAME.json: one measurement.

    Args:
        result: the numbers.
        packages: distributions of this environment whose versions matter.

    Returns:
        The file written.
    """
    return _write(name, {**_head(packages), **result})


def merge_rows(name: str, rows: list[dict[str, Any]], *, packages: tuple[str, ...]) -> Path:
    """Writes rows of a table that several commands fill, benchmarks/results/NAME.json; a row replaces the one of its `model`.

    Args:
        rows: each with a `model` and its numbers; date, commit, command, machine and versions are added.
        packages: distributions of this environment whose versions matter.

    Returns:
        The file written.
    """
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {row["model"] for row in rows}
    return _write(name, {"rows": [row for row in kept if row["model"] not in new] + [{**row, **_head(packages)} for row in rows]})


def _head(packages: tuple[str, ...]) -> dict[str, Any]:
    module = sys.modules["__main__"].__spec__
    arguments = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]  # where things lie here is of no use elsewhere
    name = module.name.removesuffix(".__main__") if module else Path(sys.argv[0]).name
    command = ["python", "-m", name, *arguments]
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "command": " ".join(command),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
    }


def _write(name: str, content: dict[str, Any]) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
