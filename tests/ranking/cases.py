"""Every net in the smallest form that has all its parts. A new net needs a line here, and the contract tests do the rest."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fixtures import SCHEMAS

from torchrec_models.schema import Schema

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
        num_tasks: labels of the overfitting test: 2 for nets that refuse a single one.
        dim_per_task: tables as wide as there are tasks, for a net whose embeddings are weights (LR).
    """

    name: str
    options: Mapping[str, Any]
    wide: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)
    learns_interactions: bool = True
    overfit: Mapping[str, Any] = field(default_factory=dict)
    learning_rate: float = 0.02
    dim_per_task: bool = False
    num_tasks: int = 1

    @property
    def schemas(self) -> list[str]:
        return [name for name in SCHEMAS if name not in self.refuses]

    def schema(self, name: str) -> Schema:
        schema = SCHEMAS[name]
        if not self.dim_per_task:
            return schema
        return replace(schema, tables=tuple(replace(table, dim=len(schema.tasks)) for table in schema.tables))


UNITS = {"hidden_units": (16, 8)}
WIDE_UNITS = {"hidden_units": (256, 128)}
DCNV3 = {"num_deep_layers": 2, "num_shallow_layers": 2, "deep_dropout": 0.0, "shallow_dropout": 0.0}
ONE_PASS = {"self_ensemble": False, "dropout": 0.0}
UNNORMED = {**ONE_PASS, "batch_norm": False}

AUTOINT_AUTHORS = {"qkv_relu": True, "qkv_bias": True, "scale": True, "layer_norm": "post_relu", "residual": "project"}
# a learned context passes all or none of a gate's ReLUs: with 6 of them one seed in 64 starts with a gate that gets no gradient
FINALMLP = {"mlp1_units": (16, 8), "mlp2_units": (12,), "gate_units": (16,), "num_heads": 2}
WIDE_FINALMLP = {"mlp1_units": (128, 64), "mlp2_units": (128,), "gate_units": (32,)}

ONE_LABEL = {name: "needs at least two labels" for name, schema in SCHEMAS.items() if len(schema.tasks) < 2}
SMALL_DNN = {"name": "dnn", "hidden_units": (16,)}
WIDE_DNN = {"name": "dnn", "hidden_units": (128,)}
BOTTOM = {"bottom": SMALL_DNN, "bottom_width": 8, "tower_units": (6,)}
WIDE_BOTTOM = {"bottom": WIDE_DNN, "bottom_width": 64, "tower_units": (64,)}
EXPERT = {"expert": SMALL_DNN, "expert_width": 8, "tower_units": (6,)}
WIDE_EXPERT = {"expert": WIDE_DNN, "expert_width": 64, "tower_units": (64,)}
BUY_AFTER_CLICK = {"relations": {"buy": ("click",)}}

HEAD = {"head": {"name": "dnn", **UNITS}}
WIDE_HEAD = {"head": {"name": "dnn", **WIDE_UNITS}}
UNDROPPED = {"interaction_dropout": 0.0, "attention_dropout": 0.0}

WUKONG = {"num_layers": 2, "num_fmb": 3, "num_lcb": 2, "rank": 2, "fmb_units": (8,)}

CASES: dict[str, Case] = {
    "autoint": Case("autoint", {"num_layers": 2, "attention_width": 8, "wide": True}, {"attention_width": 128}, NO_FIELDS),
    "autoint_authors": Case(
        "autoint",
        {**AUTOINT_AUTHORS, "num_layers": 2, "attention_width": 12, **UNITS, "batch_norm": True},
        {"attention_width": 128, **WIDE_UNITS},
        NO_FIELDS,
    ),
    "autoint_bars": Case(
        "autoint",
        {"num_layers": 2, "attention_width": 12, "num_heads": 1, "scale": True, "layer_norm": "pre_relu", **UNITS},
        {"attention_width": 128, **WIDE_UNITS},
        NO_FIELDS,
    ),
    "bst": Case("bst", {"encoder": {"num_layers": 2, "num_heads": 4}, **HEAD}, WIDE_HEAD, NO_HISTORY),
    "bst_mean": Case(
        "bst",
        {"encoder": {"pooling": "mean", "layer_norm": False, "causal": True, "position_width": 4}, **HEAD, "product": False},
        WIDE_HEAD,
        NO_HISTORY,
    ),
    "dare_both": Case(
        "dare",
        {
            "encoder": {
                "shared_tables": True,
                "query": "both",
                "num_recent": 2,
                "time_constant": 2.0,
                "top_k": 3,
                "position_width": 3,
            },
            **HEAD,
            "auxiliary_units": (8,),
        },
        {"encoder": {"shared_tables": True, "query": "both"}, **WIDE_HEAD},
        NO_HISTORY,
    ),
    "dare_qnn": Case(
        "dare",
        {
            "encoder": {"shared_tables": True, "query": "recent", "top_k": 2, "scale": "whole"},
            "head": {"name": "qnn_alpha", "num_layers": 2},
            "auxiliary_units": (8,),
        },
        {"encoder": {"shared_tables": True}, "head": {"name": "qnn_alpha", "num_rows": 8}, "auxiliary_units": (64,)},
        NO_HISTORY,
        overfit={"encoder": {"shared_tables": True}, **HEAD},
    ),
    "dbmtl": Case("dbmtl", {**BOTTOM, **BUY_AFTER_CLICK, "batch_norm": True}, WIDE_BOTTOM, ONE_LABEL, num_tasks=2),
    "dbmtl_experts": Case(
        "dbmtl",
        {**BOTTOM, **BUY_AFTER_CLICK, "num_experts": 2, "gate_units": (5,), "bottom": {"name": "deepfm", **UNITS}},
        {"bottom_width": 64, "tower_units": (64,)},
        ONE_LABEL,
        overfit={"bottom": SMALL_DNN, "gate_units": ()},
        num_tasks=2,
    ),
    "dcnv2": Case("dcnv2", {**UNITS, "num_layers": 2, "batch_norm": True}, WIDE_UNITS),
    "dcnv2_low_rank": Case("dcnv2", {**UNITS, "cross": "low_rank", "rank": 4, "structure": "stacked"}, {"rank": 16, **WIDE_UNITS}),
    "dcnv2_mixture": Case(
        "dcnv2",
        {**UNITS, "cross": "mixture", "rank": 4, "num_experts": 2, "structure": "stacked_parallel"},
        {"rank": 16, **WIDE_UNITS},
    ),
    "dcnv2_cross_only": Case(
        "dcnv2",
        {"cross": "mixture", "rank": 4, "num_experts": 3, "gate": "sigmoid", "shared_gate": True, "structure": "cross_only"},
        {"rank": 16},
    ),
    "dcnv3": Case("dcnv3", DCNV3, {}, NO_FIELDS),
    "dcnv3_ecn_heads": Case(
        "dcnv3", {**DCNV3, "structure": "ecn", "num_heads": 2, "layer_norm": False, "batch_norm": True}, {}, NO_FIELDS
    ),
    "deepfm": Case("deepfm", UNITS, WIDE_UNITS, NO_FIELDS),
    "deepfm_batch_norm": Case("deepfm", {**UNITS, "batch_norm": True}, WIDE_UNITS, NO_FIELDS),
    "din": Case(
        "din",
        {"encoder": {"attention_units": (6, 5)}, **HEAD},
        {"encoder": {"attention_units": (64, 32)}, **WIDE_HEAD},
        NO_HISTORY,
        overfit={"encoder": {"activation": "prelu"}},  # Dice's running statistics need more steps than this test takes
    ),
    "din_softmax": Case(
        "din",
        {
            "encoder": {"attention_units": (6,), "softmax": True, "scale": True, "activation": "prelu"},
            "head": {"name": "deepfm", **UNITS},
            "product": False,
        },
        {"encoder": {"attention_units": (64,), "activation": "sigmoid"}, **WIDE_HEAD},
        NO_HISTORY,
    ),
    "dlrm": Case("dlrm", {"bottom_units": (8,), "top_units": (16, 8)}, {"bottom_units": (64,), "top_units": (256, 128)}, NO_FIELDS),
    "dlrm_cat": Case(
        "dlrm",
        {"bottom_units": (8,), "top_units": (16,), "interaction": "cat", "batch_norm": True},
        {"bottom_units": (64,), "top_units": (256, 128)},
        NO_FIELDS,
    ),
    "dnn": Case("dnn", {**UNITS, "batch_norm": True}, WIDE_UNITS),
    "esmm": Case(
        "esmm",
        {"net": {"name": "deepfm", **UNITS}},
        {"net": {"name": "deepfm", **WIDE_UNITS}},
        ONE_LABEL | {"tasks": "price is a regression"},
        num_tasks=2,
    ),
    "esmm_shared": Case(
        "esmm",
        {"net": {"name": "mmoe", **EXPERT}, "share": True, "funnel": ("click", "buy")},
        {"net": {"name": "mmoe", **WIDE_EXPERT}},
        ONE_LABEL,
        num_tasks=2,
    ),
    "feseq": Case(
        "feseq",
        {"encoder": {**UNDROPPED, "attention_width": 6, "candidate_layers": 1}, "rows_per_pass": 5, **HEAD},
        {"encoder": {"attention_width": 64}, **WIDE_HEAD},
        NO_HISTORY,
    ),
    "feseq_mean": Case(
        "feseq",
        {"encoder": {**UNDROPPED, "context": (), "interaction_layers": 0, "pooling": "mean", "causal": False}, **HEAD},
        WIDE_HEAD,
        NO_HISTORY,
    ),
    "finalmlp": Case("finalmlp", {**FINALMLP, "mlp1_batch_norm": True, "mlp2_batch_norm": True}, WIDE_FINALMLP, NO_FIELDS),
    "finalmlp_context": Case(
        "finalmlp",
        {**FINALMLP, "gate1_context": ("user",), "gate2_context": ("item", "user"), "context_in_streams": False},
        WIDE_FINALMLP,
        dict.fromkeys(set(SCHEMAS) - {"everything", "target_and_history", "dense"}, "gate2_context name features; given")
        | NO_FIELDS,
        overfit={"gate1_context": ("a",), "gate2_context": (), "context_in_streams": True},
    ),
    "finalmlp_ungated": Case("finalmlp", {**FINALMLP, "gates": False}, WIDE_FINALMLP, NO_FIELDS),
    "fm": Case("fm", {}, refuses=NO_FIELDS),
    "gdcn_parallel": Case("gdcn", {**UNITS, "num_layers": 2, "batch_norm": True}, WIDE_UNITS),
    "gdcn_stacked": Case(
        "gdcn", {**UNITS, "num_layers": 2, "structure": "stacked", "bias_init": "uniform"}, {"bias_init": "uniform", **WIDE_UNITS}
    ),
    "hstu": Case("hstu", {"encoder": {"num_heads": 2}, **HEAD}, WIDE_HEAD, NO_HISTORY, learning_rate=0.005),
    "hstu_production": Case(
        "hstu",
        {"encoder": {"variant": "production", "num_heads": 2, "head_width": 3}, **HEAD},
        {"encoder": {"variant": "production", "head_width": 32}, **WIDE_HEAD},
        NO_HISTORY,
        learning_rate=0.005,
    ),
    "lr": Case("lr", {}, learns_interactions=False, dim_per_task=True),
    "masknet_parallel": Case(
        "masknet", {"block_units": (6, 5), **UNITS}, {"block_units": (64, 32), "hidden_units": (256, 128)}, NO_FIELDS
    ),
    "masknet_serial": Case(
        "masknet", {"structure": "serial", "block_units": (16, 8)}, {"block_units": (64, 32), "reduction_ratio": 0.5}, NO_FIELDS
    ),
    "mmoe": Case("mmoe", {**EXPERT, "num_experts": 2}, WIDE_EXPERT, ONE_LABEL, num_tasks=2),
    "mmoe_of_branches": Case(
        "mmoe",
        {**EXPERT, "num_experts": 2, "gate_units": (5,), "expert": {"name": "qnn_alpha", "num_layers": 1}},
        {"expert_width": 64, "tower_units": (64,)},
        ONE_LABEL | {"tasks": "price"},
        overfit={"expert": {"name": "qnn_alpha", **ONE_PASS}},
        num_tasks=2,
    ),
    "ple": Case("ple", {**EXPERT, "level_units": ()}, WIDE_EXPERT, ONE_LABEL, num_tasks=2),
    "ple_shared_gate": Case(
        "ple",
        {**EXPERT, "level_units": (7,), "num_task_experts": 2, "num_shared_experts": 2, "shared_gate": "shared"},
        WIDE_EXPERT,
        ONE_LABEL,
        overfit={"expert_width": 16, "level_units": (), "gate_units": (8,)},
        num_tasks=2,
    ),
    "qnn_alpha": Case(
        "qnn_alpha", {"num_layers": 2, "batch_norm": True}, {"num_rows": 8}, {**NO_FIELDS, "tasks": "price"}, overfit=UNNORMED
    ),
    "qnn_alpha_heads": Case(
        "qnn_alpha", {"num_layers": 2, "num_heads": 2, "head_shuffle": True, **ONE_PASS}, {"num_rows": 8}, NO_FIELDS
    ),
    "rankmixer": Case("rankmixer", {"num_tokens": 2, "width": 12, "expansion": 1.5}, {"width": 64}),
    "recurrent": Case("recurrent", {"head": {"name": "dnn", **UNITS}}, {"head": {"name": "dnn", **WIDE_UNITS}}, NO_SEQUENCE),
    "sdim": Case("sdim", {"encoder": {"num_signatures": 4, "num_bits": 2}, **HEAD}, WIDE_HEAD, NO_HISTORY),
    "shared_bottom": Case("shared_bottom", {**BOTTOM, "bottom": {"name": "deepfm", **UNITS}}, WIDE_BOTTOM, ONE_LABEL, num_tasks=2),
    "sim": Case(
        "sim",
        {"encoder": {"top_k": 3, "attention_width": 6, "num_heads": 2}, **HEAD, "product": True, "auxiliary_units": (8,)},
        {"encoder": {"attention_width": 64}, **WIDE_HEAD},
        NO_HISTORY,
    ),
    "sim_short": Case(
        "sim",
        {"encoder": {"top_k": 2, "attention_width": 4, "num_recent": 2}, **HEAD, "auxiliary_units": (8,)},
        {"encoder": {"attention_width": 64, "num_recent": 2}, **WIDE_HEAD},
        NO_HISTORY,
    ),
    "wukong": Case("wukong", {**WUKONG, "hidden_units": (8,)}, {"fmb_units": (64,), "hidden_units": (64,)}, NO_FIELDS),
    "wukong_fuxictr": Case(
        "wukong",
        {**WUKONG, "fmb_relu": True, "residual_bias": True, "hidden_units": (8,), "batch_norm": True},
        {"fmb_units": (64,), "hidden_units": (64,)},
        NO_FIELDS,
    ),
}
