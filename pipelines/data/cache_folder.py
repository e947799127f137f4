"""The place of a cache: what stands there, who works on it, and how a new one takes its place."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .durable import fsync
from .fingerprint import differences
from .manifest import MANIFEST, read_manifest
from .shards import Cache

_MOST_DIFFERENCES = 8


def finished(folder: Path, inputs: dict[str, Any]) -> Cache | None:
    """The cache at `folder` if there is one of these inputs; None if there is none."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    old = read_manifest(folder)["inputs"]
    changes = [line for part in inputs for line in differences(old.get(part), inputs[part], "" if part == "settings" else part)]
    if changes:
        listed = "\n".join(f"  {line}" for line in changes[:_MOST_DIFFERENCES])
        more = f"\n  and {len(changes) - _MOST_DIFFERENCES} more" if len(changes) > _MOST_DIFFERENCES else ""
        raise ValueError(
            f"{folder} was prepared with other settings or from other files:\n{listed}{more}\n"
            "Run `trm prepare CONFIG --force` to replace it, or give data.cache another folder"
        )
    return Cache.open(folder)


def check_replaceable(folder: Path) -> None:
    """Raises ValueError for a folder that holds something else than a cache: it would be lost."""
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))):
        raise ValueError(f"data.cache: {folder} exists and is not a cache; give another folder, or remove it yourself")


@contextmanager
def locked(partial: Path, *, rank: int = 0) -> Iterator[None]:
    """Holds the lock of a process that works in `partial`, one of several perhaps.

    Raises:
        ValueError: if one of another `prepare`, or of an earlier attempt at this one, still works there.
    """
    partial.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        own = partial / ("lock" if not rank else f"lock-{rank}")
        file = held.enter_context(own.open("w"))
        for path in [own] if rank else sorted({own, *partial.glob("lock-*")}):
            lock = file if path == own else held.enter_context(path.open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is preparing this cache (in {partial}); wait for it, or stop it") from None
            if path != own:
                lock.close()  # whoever held it is gone
        yield


def publish(complete: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        check_replaceable(folder)
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    complete.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
