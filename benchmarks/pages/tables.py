"""Which page has which tables."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.record import ROOT

from . import nets, selection
from .page import Render

DOCS = ROOT / "docs"

PAGES: Mapping[Path, Mapping[str, Render]] = {
    DOCS / "models.md": {
        "nets": nets.nets,
        "frappe": nets.frappe,
        "frappe, fused": nets.frappe_fused,
        "sequence encoders": nets.sequences,
        "memory": nets.memory,
        "DCN v3": nets.dcnv3,
        "compiled": nets.compiled,
    },
    DOCS / "folds_and_sampling.md": {"selection": selection.selection},
}
