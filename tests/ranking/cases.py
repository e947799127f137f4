"""Every net in the smallest form that has all its parts. A new net needs a line here, and the contract tests do the rest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fixtures import SCHEMAS

NO_FIELDS = {"dense": "needs at least one categorical or sequence feature"}
NO_HISTORY = dict.fromkeys(
    ("dense", "pooled", "pooled_dense", "bags", "shared", "tasks", "sequence", "sequence_only"), "needs at least one history"
)

NO_SEQUENCE = dict.fromkeys(("dense", "pooled", "pooled_dense", "bags", "shared", "tasks"), "needs at least one history")


@dataclass(frozen=True)
class Case:
    """One net and options.

    Args:
        name: in NETS.
        options: small widths, every branch switched on; no dropout, so that a training step is the same each time.
        wide: options with layers wide enough to measure the deviation of initial weights.
        refuses: schema name -> text of the ValueError that building must raise; all other schemas must work.
        learns_interactions: False for a net that adds up features one by one (LR).
        overfit: options for the overfitting test, where `options` are too small or too slow.
        learning_rate: of the overfitting test.
    """

    name: str
    options: Mapping[str, Any]
    wide: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    learns_interactions: bool = True
    overfit: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.02

    @property
    def schemas(self) -> list[str]:
        return [name for name in SCHEMAS if name not in self.refuses]


UNITS = {"hidden_units": (16, 8)}
WIDE_UNITS = {"hidden_units": (256, 128)}

CASES: dict[str, Case] = {
    "deepfm": Case("deepfm", UNITS, WIDE_UNITS, NO_FIELDS),
    "deepfm_batch_norm": Case("deepfm", {**UNITS, "batch_norm": True}, WIDE_UNITS, NO_FIELDS),
    "dlrm": Case("dlrm", {"bottom_units": (8,), "top_units": (16, 8)}, {"bottom_units": (64,), "top_units": (256, 128)}, NO_FIELDS),
    "dlrm_cat": Case(
        "dlrm",
        {"bottom_units": (8,), "top_units": (16,), "interaction": "cat", "batch_norm": True},
        {"bottom_units": (64,), "top_units": (256, 128)},
        NO_FIELDS,
    ),
    "dnn": Case("dnn", {**UNITS, "batch_norm": True}, WIDE_UNITS),
    "recurrent": Case("recurrent", {"head": {"name": "dnn", **UNITS}}, {"head": {"name": "dnn", **WIDE_UNITS}}, NO_SEQUENCE),
}
