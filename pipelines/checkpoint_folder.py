"""The folders of a run's checkpoints: written whole or not at all, found again, and refused by name when altered.

    <run>/checkpoints/step-00000500/   see checkpoint.py for what is in one
    <run>/best.json                    which of them is the best

A folder is written under another name and renamed when its manifest is on disk, so a half-written one never looks finished.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchrec_models.schema import Schema

from .config import RunConfig
from .data.checksums import checksum_of_file
from .data.shards import Cache

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
CHECKSUM_BLOCK_BYTES = 1 << 22


@dataclass
class Progress:
    """Where a run stands. `step` steps are done; the next batch is number `step` of the run, counted over all epochs."""

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    plateau_factor: float = 1.0
    stopped: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file."""


def list_checkpoints(run: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if p.suffix != ".partial" and p.is_dir())


def best_name(run: Path) -> str:
    path = run / "best.json"
    return json.loads(path.read_text())["checkpoint"] if path.exists() else ""


def verify(folder: Path) -> None:
    """Raises:
    CheckpointError: a file is missing, truncated or altered, or the format is another; names the file.
    """
    manifest = folder / "manifest.json"
    try:
        found = json.loads(manifest.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{manifest} is missing: not a finished checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error}") from None
    if found.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{folder} has format {found.get('format_version')}; this version reads {FORMAT_VERSION}")
    for name, facts in found["files"].items():
        path = folder / name
        if not path.exists():
            raise CheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path} has {size} bytes instead of {facts['bytes']}: truncated or altered")
        if _checksum(path) != facts["blake2b"]:
            raise CheckpointError(f"{path} was altered: its checksum is not the manifest's")


def latest_usable(run: Path) -> Path | None:
    """The newest checkpoint that verifies; each refused one is named in a warning."""
    for folder in reversed(list_checkpoints(run)):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("checkpoint refused: %s; trying the one before", error)
            continue
        return folder
    return None


def choose(path: Path, *, which: str = "best") -> Path:
    """The checkpoint meant by a run folder (`which`: best or last) or by a checkpoint folder itself.

    Raises:
        CheckpointError: there is none, or it does not verify.
    """
    if (path / "manifest.json").exists() or path.name.startswith("step-"):
        verify(path)
        return path
    name = best_name(path) if which == "best" else ""
    folders = list_checkpoints(path)
    if not folders:
        raise CheckpointError(f"{path} holds no checkpoint; train the run first, or give the folder of a run or a checkpoint")
    folder = path / "checkpoints" / name if name else folders[-1]
    verify(folder)
    return folder


def read_progress(folder: Path) -> Progress:
    return Progress(**json.loads((folder / "progress.json").read_text()))


def read_config(folder: Path) -> RunConfig:
    return RunConfig.model_validate_json((folder / "config.json").read_text())


def read_schema(folder: Path) -> Schema:
    return Schema.from_dict(json.loads((folder / "schema.json").read_text()))


def check_cache(folder: Path, cache: Cache) -> None:
    """Whether a cache was encoded by the very transforms that travel with a checkpoint: vocabularies can differ in order alone.

    Raises:
        CheckpointError: it was not.
    """
    theirs, ours = read_schema(folder).to_dict(), cache.schema.to_dict()
    parts = [k for k in ours if theirs.get(k) != ours[k]]
    files = json.loads((folder / "manifest.json").read_text())["files"]
    trained = {name.removeprefix("transforms/") for name in files if name.startswith("transforms/")}
    encoded = {name: entry["checksum"] for name, entry in cache.manifest["transforms"].items()}
    same_names = trained == encoded.keys()
    if not parts and same_names and all(checksum_of_file(folder / "transforms" / n, like=c) == c for n, c in encoded.items()):
        return
    why = f": another schema (they differ in {', '.join(parts)})" if parts else ""
    raise CheckpointError(
        f"{cache.folder} was prepared anew since {folder} was trained, and its ids mean other values now{why}; "
        "train again, into another folder (run=...), or go back to the old cache"
    )


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links where the file system has them: vocabularies can be large and never change."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    shutil.copytree(source, target, copy_function=link)


def write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "blake2b": _checksum(path)}
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})


def _checksum(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(CHECKSUM_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def mark_best(run: Path, folder: Path, progress: Progress) -> None:
    write_json(run / "best.json", {"checkpoint": folder.name, "step": progress.step, "metrics": progress.metrics})


def drop_old(run: Path, *, keep: int) -> None:
    best = best_name(run)
    for folder in list_checkpoints(run)[:-keep]:
        if folder.name != best:
            folder.rename(folder.with_name(folder.name + ".partial"))  # killed while deleting, half of it must not count
    for stray in (run / "checkpoints").glob("*.partial"):
        shutil.rmtree(stray)
