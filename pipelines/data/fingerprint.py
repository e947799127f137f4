"""What the rows of a cache depend on, and how to tell what has changed."""

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from torchrec_models.pipelines.config import QueryConfig, RunConfig

from .checksums import checksum_of_json
from .files import FileInfo, find_files
from .manifest import FORMAT_VERSION
from .snapshots import query_files

_NO_INFLUENCE = {"cache": True, "memory_budget_mib": True, "split": {"fold"}}  # one cache serves all folds


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that the cached rows and their schema depend on, as JSON data."""
    data = config.data.model_dump(mode="json", exclude=_NO_INFLUENCE)
    features = {name: feature.model_dump(mode="json") for name, feature in config.features.items()}
    if not data["stores"]:  # as in the caches of earlier releases
        del data["stores"]
        for feature in features.values():
            feature.pop("store", None)
    for feature in features.values():
        if feature["kind"] == "categorical" and feature["keep"] == "first":  # as in the caches of earlier releases
            del feature["keep"]
    tables = {name: table.model_dump(mode="json") for name, table in config.table_configs().items()}
    for section in (*features.values(), *tables.values()):
        ids = section.get("ids")
        if ids and ids["by"] == "hash" and not ids["margin"]:  # as in the caches of earlier releases
            del ids["margin"]
    return {
        "format_version": FORMAT_VERSION,
        "data": data,
        "features": features,
        "feature_order": list(config.features),
        "tables": tables,
        "labels": {name: label.model_dump(mode="json") for name, label in config.labels.items()},
        "candidate_id": config.retrieval.candidate_id if config.retrieval else "",
    }


def files_of(config: RunConfig) -> dict[str, Any]:
    """Path, size and modification time of the files of each split and store, as JSON data; of a database where it is one file.

    Raises:
        ValueError: if a path of the config leads to no file.
    """
    out = {}
    for split in ("train", "valid", "test"):
        paths = getattr(config.data, split)
        if isinstance(paths, QueryConfig):
            out[split] = query_files(paths)
        elif paths:
            files, _ = find_files(paths, config.data.format)
            out[split] = _entries(files)
    for name, store in config.data.stores.items():
        try:
            out[f"stores.{name}"] = _entries(find_files(store.files, "auto")[0])
        except ValueError as error:
            raise ValueError(f"data.stores.{name}: {error}") from None
    return out


def _entries(files: Iterable[FileInfo]) -> dict[str, Any]:
    return {str(file.path): {"size_bytes": file.size_bytes, "mtime_ns": file.mtime_ns} for file in files}


def fingerprint_of(inputs: Mapping[str, Any]) -> str:
    """32 hex digits."""
    return checksum_of_json(inputs)


def versions() -> dict[str, str]:
    """Of the packages whose behaviour the rows depend on."""
    return {name: version(name) for name in ("torchrec-models", "numpy", "pyarrow")}


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """One line per place in which two JSON values differ: dotted path, old value, new value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            below = f"{path}.{key}" if path else str(key)
            if key not in new:
                yield f"{below}: no longer given"
            elif key not in old:
                yield f"{below}: new"
            else:
                yield from differences(old[key], new[key], below)
    elif old != new:
        yield f"{path}: was {old!r}, now {new!r}"
