"""Which page has which tables."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.record import ROOT

from . import loading, nets, preparing, selection, serving, training
from .aims import aims_table
from .page import Render
from .results import Results

DOCS = ROOT / "docs"


def data_aims(results: Results) -> str:
    return aims_table([*preparing.aims(results), *loading.aims(results)])


def model_aims(results: Results) -> str:
    return aims_table([*training.aims(results), *serving.aims(results)])


PAGES: Mapping[Path, Mapping[str, Render]] = {
    DOCS / "performance.md": {
        "aims": data_aims,
        "preparing": preparing.preparing,
        "preparing much": preparing.preparing_much,
        "loader": loading.loader,
        "profiles": loading.profiles,
        "stores": loading.stores,
        "waits": loading.waits,
        "competition": preparing.competition,
        "competition, memory": preparing.competition_memory,
    },
    DOCS / "results.md": {
        "aims": model_aims,
        "Frappe DeepFM": training.frappe_deepfm,
        "retrieval": training.retrieval,
        "beside FuxiCTR": training.beside_fuxictr,
        "load": serving.load,
        "floor": serving.floor,
        "peers": serving.peers,
        "overload": serving.overload,
        "soak": serving.soak,
    },
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
