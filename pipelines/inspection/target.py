"""Which cache is meant: a folder, or the one of a config."""

from pathlib import Path

from torchrec_models.pipelines.data.manifest import MANIFEST


def cache_folder(target: Path) -> Path:
    """The cache folder that `target` is, or that the config at `target` names.

    Raises:
        ValueError: if it is neither.
    """
    if target.is_dir():
        return target
    if target.suffix in (".yaml", ".yml") and target.is_file():
        from torchrec_models.pipelines import config as C

        return Path(C.load(target).data.cache)
    raise ValueError(f"{target}: neither a cache folder (one with {MANIFEST}) nor a YAML config that names one in data.cache")
