"""The files of a bundle: written atomically, with a manifest of checksums, and refused by name when altered.

Runs in exported bundles: the standard library only. The format is described in docs/bundle.md.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = "torchrec-models bundle"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
EXAMPLES = "examples.json"
CONFIG = "config.yaml"
_CHUNK_BYTES = 1 << 20


class AbsentFile(FileNotFoundError, ValueError):
    """A file of a bundle that is not there: not copied completely, or not reachable at the moment."""


def blake2b(path: Path) -> str:
    """BLAKE2b of a file, 128 bits, as hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest, with size and checksum of every other file in the folder: the last step of making a bundle."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _fsync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "blake2b": blake2b(path)}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **content, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    _fsync(folder / MANIFEST)
    _fsync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files are all there and unaltered.

    Raises:
        ValueError: that names the folder, the manifest, or the file that is altered or (`AbsentFile`) missing.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise AbsentFile(f"{folder}: no such folder; `trm export` writes a bundle")
    if not path.is_file():
        raise AbsentFile(f"{folder}: not a bundle ({MANIFEST} is missing: not exported, or an export that did not finish)")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); the file is damaged, export again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a bundle (format should be {FORMAT!r})")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {manifest.get('format_version')}; this release reads {FORMAT_VERSION}; export again"
        )
    for name, entry in manifest["files"].items():
        _check_file(folder, name, entry)
    return manifest


def _check_file(folder: Path, name: str, entry: dict[str, Any]) -> None:
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts:
        raise ValueError(f"{folder / MANIFEST}: file {name!r} lies outside the bundle")
    path = folder.joinpath(*parts)
    if not path.is_file():
        raise AbsentFile(f"{folder}: file {name!r} is missing; copy the bundle again, or export again")
    num_bytes = path.stat().st_size
    if num_bytes != entry["bytes"] or blake2b(path) != entry["blake2b"]:
        why = f"{num_bytes} bytes instead of {entry['bytes']}" if num_bytes != entry["bytes"] else "another checksum"
        raise ValueError(f"{folder}: file {name!r} was altered after the export ({why}); copy the bundle again, or export again")


def publish(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Renames a finished folder to its place. With `overwrite`, what stood there is moved aside first and then removed.

    Raises:
        ValueError: if something stands there and `overwrite` is false, or it is no bundle.
    """
    check_free(out, overwrite=overwrite)
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    if out.exists():
        out.rename(old)
    folder.rename(out)
    _fsync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Whether a bundle may be written to `out`, told before any work is done."""
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise ValueError(f"{out}: exists already; give another folder, or overwrite it")
    is_empty = out.is_dir() and not any(out.iterdir())
    if not is_empty and not (out / MANIFEST).is_file():
        raise ValueError(f"{out}: is not a bundle and will not be overwritten; give another folder")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
