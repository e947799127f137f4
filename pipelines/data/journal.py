"""What an interrupted `prepare` had finished: one JSON line per step, each forced to the disk before the next step begins."""

import json
import os
from collections.abc import Iterable
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
        written = path.read_bytes() if path.exists() else b""
        self.steps = _steps(written, identity) or [identity]
        self._of_others: list[dict[str, Any]] = []
        text = b"".join(_line(step) for step in self.steps)
        if text != written:
            with naming(path):
                path.write_bytes(text)
            fsync(path)
            fsync(path.parent)

    def read_too(self, paths: Iterable[Path]) -> None:
        """Shards in the journals of other processes count as finished, too."""
        self._of_others = [step for path in paths for step in _steps(path.read_bytes(), self.steps[0])]

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
        return bool(steps) and all(FileEntry(**entry).is_intact(folder / name) for name, entry in steps[-1].items())

    def finished_shards(self, split: str, folder: Path, numbers: range) -> tuple[Shard, ...]:
        """The first ones of these shards of a split, as many as are complete and as they were written."""
        written = {step["name"]: step["shard"] for step in (*self._of_others, *self.steps) if step.get("split") == split}
        shards: list[Shard] = []
        for number in numbers:
            name = f"{number:05d}"
            if name not in written:
                break
            shard = Shard.from_json(folder / name, written[name])
            if not all(entry.is_intact(shard.folder / file) for file, entry in shard.files.items()):
                break
            shards.append(shard)
        return tuple(shards)

    def saved_shard(self, split: str, name: str) -> dict[str, Any] | None:
        """What was last saved of an unfinished shard, by whichever process wrote it."""
        saved = [one for step in self._saved() for one in step["shards"] if (one["split"], one["name"]) == (split, name)]
        return max(saved, key=lambda one: one["num_rows"], default=None)

    def reached(self, source: str) -> list[dict[str, Any]]:
        """Parts of a split's files at whose beginning something was saved, with the number of rows before them."""
        return [step["reached"] for step in self._saved() if step["reached"]["source"] == source]

    def _saved(self) -> list[dict[str, Any]]:
        return [step["saved"] for step in (*self._of_others, *self.steps) if "saved" in step]


def _steps(written: bytes, identity: dict[str, Any]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for line in written.split(b"\n")[:-1]:
        try:
            steps.append(json.loads(line))
        except ValueError:
            break
    return steps if steps[:1] == [identity] else []


def _line(step: dict[str, Any]) -> bytes:
    return json.dumps(step).encode() + b"\n"
