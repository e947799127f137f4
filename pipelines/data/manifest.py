"""The manifest of a cache: what it was made of, and each file with its checksum. Written last; a folder without it is no cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrec_models.schema import Schema

from .checksums import FileEntry, checksum_of_json
from .durable import fsync, naming

if TYPE_CHECKING:
    from .shards import Shard, StoreData

FORMAT = "torchrec-models cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a finished cache.

    Raises:
        ValueError: if there is none, or it is altered, or of another format version.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ValueError(f"no cache at {folder}; run `trm prepare CONFIG` first")
    if not path.is_file():
        raise ValueError(f"{folder} is not a finished cache (it has no {MANIFEST}); run `trm prepare CONFIG`")
    try:
        manifest = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: truncated or altered ({error}); prepare again with --force") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: not the manifest of a {FORMAT}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder}: written in cache format {manifest.get('format_version')}, this version reads format {FORMAT_VERSION}; "
            "prepare again with --force"
        )
    if manifest.pop("checksum", None) != checksum_of_json(manifest):
        raise ValueError(f"{path}: altered after it was prepared (its checksum does not match); prepare again with --force")
    return manifest


def write_manifest(
    folder: Path,
    *,
    schema: Schema,
    shards: "dict[str, list[Shard]]",
    fingerprint: str,
    inputs: Any,
    versions: dict[str, str],
    stores: "Sequence[StoreData]" = (),
) -> None:
    """Writes the manifest of a folder whose shards and transforms are complete, durably, in one rename.

    Args:
        inputs: what the fingerprint was made of (sources and settings).
        versions: package name -> version.
    """
    transforms = folder / "transforms"
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "inputs": inputs,
        "versions": versions,
        "schema": schema.to_dict(),
        "transforms": {
            str(path.relative_to(transforms)): vars(FileEntry.of(path)) for path in sorted(transforms.rglob("*")) if path.is_file()
        },
        "splits": {
            name: {"num_rows": sum(s.num_rows for s in of_split), "shards": [s.to_json() for s in of_split]}
            for name, of_split in shards.items()
        },
    }
    if stores:
        manifest["stores"] = {store.name: store.to_json() for store in stores}
    manifest["checksum"] = checksum_of_json(json.loads(json.dumps(manifest)))
    path = folder / f"{MANIFEST}.tmp"
    with naming(path):
        path.write_text(json.dumps(manifest, indent=1))
    fsync(path)
    path.rename(folder / MANIFEST)
    fsync(folder)
