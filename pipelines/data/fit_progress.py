"""How far the passes that learn have come, saved between parts of the files: who is killed loses seconds of them, not all.

Statistics are taken of parts (see files.Part), so what was learned up to the border of a part, saved and read again, gives the
transforms of an uninterrupted run, to the last bit.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checksums import FileEntry
from .durable import fsync
from .fit import Fitter
from .fit_files import read_state, write_state
from .journal import Journal
from .saving import Pace


@dataclass(frozen=True)
class Reached:
    """Where the passes stood.

    Attributes:
        number: of the pass, from 0.
        part: that comes next.
        row: 0-based, over the whole source: the first one of that part.
        num_fitted: rows that this pass has learned from.
    """

    number: int
    part: int
    row: int
    num_fitted: int


class FitProgress:
    """Of one process.

    Args:
        folder: of this process.
        share: first part that the process learns from, the one behind the last, number of processes, memory budget, on which
            the size of samples depends. What was learned of another share is not used.
        is_first: this process keeps what earlier passes have learned.
    """

    def __init__(self, folder: Path, journal: Journal, *, share: tuple[int, int, int, int], is_first: bool) -> None:
        self._folder = folder
        self._journal = journal
        self._share = list(share)
        self._is_first = is_first
        self._pace = Pace()

    def read(self) -> tuple[Reached, dict[str, Any]] | None:
        """Where an interrupted run of the same share stood, and the steps that its passes had fixed; None: nowhere."""
        found = self._last()
        return (Reached(*found["reached"]), found["steps"]) if found else None

    def _last(self) -> dict[str, Any] | None:
        steps = [step["learned"] for step in self._journal.steps if "learned" in step]
        if not steps or steps[-1]["share"] != self._share:
            return None
        return steps[-1] if FileEntry(**steps[-1]["file"]).is_intact(self._folder / steps[-1]["name"]) else None

    def restore(self, fitter: Fitter) -> None:
        """Learn what the interrupted run had learned when it was where `read` says."""
        found = self._last()
        assert found is not None
        for key, table in read_state(self._folder / found["name"]):
            fitter.merge(key, table)

    def is_due(self) -> bool:
        return self._pace.is_due()

    def save(self, fitter: Fitter, reached: Reached) -> None:
        """Forces to the disk what was learned so far.

        Raises:
            OSError: with the path, if the disk refuses.
        """
        start = time.monotonic()
        path = self._folder / f"{reached.number}-{reached.part}.arrows"
        write_state(path, fitter.state(of_earlier_passes=self._is_first))
        fsync(path)
        fsync(self._folder)
        entry = {"name": path.name, "file": vars(FileEntry.of(path)), "share": self._share, "steps": fitter.fitted_steps()}
        self._journal.add({"learned": {"reached": list(vars(reached).values()), **entry}})
        for earlier in self._folder.iterdir():
            if earlier != path:
                earlier.unlink()
        self._pace.saved(took_seconds=time.monotonic() - start)
