"""A chosen part of the training rows, on disk: which rows, with which weights, and what they were chosen from.

<selection>/manifest.json   written last; a folder without it is not a selection
            rows.npy        [M] int64, growing: positions in the training split
            weights.npy     [M] float32, what the rows' own weights are multiplied by
            scores.npy      [N] float32, of every row of the split, where rows were scored
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchrec_models.pipelines.config import RunConfig

from .checksums import FileEntry
from .durable import fsync
from .fingerprint import differences
from .shards import Cache

FORMAT = "torchrec-models selection"
FORMAT_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows of a training split.

    Attributes:
        rows: [M] int64, growing.
        weights: [M] float32.
        scores: [N] float32 of all rows; None where nothing was scored.
        chosen_from: see `identity_of`.
        how: method and options, for people.
    """

    rows: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None
    chosen_from: dict[str, Any]
    how: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write under another name, then rename.

        Raises:
            ValueError: if there is something at `folder`.
        """
        check_free(folder)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        arrays = {"rows": self.rows.astype("<i8"), "weights": self.weights.astype("<f4")}
        if self.scores is not None:
            arrays["scores"] = self.scores.astype("<f4")
        files = {}
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
            fsync(partial / f"{name}.npy")
            files[f"{name}.npy"] = vars(FileEntry.of(partial / f"{name}.npy"))
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "num_selected": len(self.rows),
            "chosen_from": self.chosen_from,
            "how": self.how,
            "files": files,
        }
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        fsync(partial / _MANIFEST)
        partial.rename(folder)
        fsync(folder.parent)

    @classmethod
    def open(cls, folder: str | Path, *, config: RunConfig, cache: Cache) -> "Selection":
        """Read and verify what `save` wrote, for the training split of this cache.

        Raises:
            ValueError: no selection there, one of other rows, a file that is missing or altered.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
        except (OSError, json.JSONDecodeError):
            raise ValueError(f"{folder} is not a selection of rows; `trm data select CONFIG --keep SHARE` writes one") from None
        if (manifest.get("format"), manifest.get("format_version")) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"{folder / _MANIFEST}: another format than version {FORMAT_VERSION}; select again")
        changed = list(differences(manifest["chosen_from"], identity_of(config, cache)))
        if changed:
            raise ValueError(
                f"{folder} was chosen from the rows of another cache or fold ({'; '.join(changed)}), and its row numbers mean "
                "nothing here; select again: trm data select CONFIG"
            )
        for name, entry in manifest["files"].items():
            try:
                FileEntry(**entry).check(folder / name)
            except ValueError:
                raise ValueError(f"{folder / name} is missing or was altered after it was written; select again") from None
        scores = np.load(folder / "scores.npy") if "scores.npy" in manifest["files"] else None
        rows, weights = np.load(folder / "rows.npy"), np.load(folder / "weights.npy")
        return cls(rows, weights, scores, manifest["chosen_from"], manifest["how"])


def check_free(folder: Path) -> None:
    """Raises ValueError if there is something at `folder`."""
    if folder.exists():
        raise ValueError(f"{folder} exists; a run may name it, so it is not replaced: remove it yourself, or give another --out")


def identity_of(config: RunConfig, cache: Cache) -> dict[str, Any]:
    """What row numbers of the training split depend on."""
    split = config.data.split
    return {
        "cache": cache.fingerprint,
        "split": None if split is None else split.model_dump(mode="json"),
        "num_rows": cache.split("train").num_rows,
    }


class SelectedRows:
    """The rows of a selection in every epoch.

    Attributes:
        num_rows: of an epoch.
        log_negative_rate: 0, the loss is that of the selected rows.
        row_weights: [N] float32 for every row of the split, 1 where not selected; None where all are 1.
    """

    def __init__(self, selection: Selection) -> None:
        self._rows = selection.rows
        self.num_rows = len(selection.rows)
        self.log_negative_rate: float | Tensor = 0.0
        self.row_weights: Tensor | None = None
        if (selection.weights != 1).any():
            self.row_weights = torch.ones(selection.chosen_from["num_rows"])
            self.row_weights[torch.from_numpy(selection.rows)] = torch.from_numpy(selection.weights)

    def rows(self, epoch: int) -> np.ndarray:
        """[num_rows] int64, growing."""
        return self._rows
