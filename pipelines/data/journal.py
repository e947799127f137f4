"""What an interrupted `prepare` had finished: one JSON line per step, each forced to the disk before the next step begins."""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

from .checksums import FileEntry
from .durable import fsync, naming
from .shards import Shard


class Journal:
    """The steps that are done. A line cut short by a crash counts as not written, and so does everything behind it.

    Args:
        path: of the journal; made if it does not exist.
        identity: what the work depends on (fingerprint, versions). A journal of another identity starts anew.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._lock = Lock()
        self.steps: list[dict[str, Any]] = []
        written = path.read_bytes() if path.exists() else b""
        for line in written.split(b"\n")[:-1]:
            try:
                self.steps.append(json.loads(line))
            except ValueError:
                break
        if not self.steps or self.steps[0] != identity:
            self.steps = [identity]
        text = b"".join(_line(step) for step in self.steps)
        if text != written:
            with naming(path):
                path.write_bytes(text)
            fsync(path)
            fsync(path.parent)

    def add(self, step: dict[str, Any]) -> None:
        """Records a step whose files are on the disk already. Any thread may do this."""
        with self._lock, naming(self.path), self.path.open("ab") as file:
            self.steps.append(step)
            file.write(_line(step))
            file.flush()
            os.fsync(file.fileno())

    def fitted(self, folder: Path) -> bool:
        """Whether the transforms in `folder` are complete and as they were written."""
        steps = [step["fitted"] for step in self.steps if "fitted" in step]
        return bool(steps) and all(_intact(folder / name, FileEntry(**entry)) for name, entry in steps[-1].items())

    def finished_shards(self, split: str, folder: Path) -> tuple[Shard, ...]:
        """The split's first shards, as many as are complete and as they were written."""
        written = {step["name"]: step["shard"] for step in self.steps if step.get("split") == split}
        shards: list[Shard] = []
        while raw := written.get(f"{len(shards):05d}"):
            shard = Shard.from_json(folder / f"{len(shards):05d}", raw)
            if not all(_intact(shard.folder / name, entry) for name, entry in shard.files.items()):
                break
            shards.append(shard)
        return tuple(shards)


def _line(step: dict[str, Any]) -> bytes:
    return json.dumps(step).encode() + b"\n"


def _intact(path: Path, entry: FileEntry) -> bool:
    try:
        entry.check(path)
    except ValueError:
        return False
    return True
