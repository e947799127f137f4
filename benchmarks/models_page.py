"""Renders docs/models.md from the registry of nets and from benchmarks/results: `python -m benchmarks.models_page`.

A test compares the page with what this would write, so the page cannot differ from the results.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from torchrec_models.model import net_classes

from .record import RESULTS, ROOT

PAGE = ROOT / "docs" / "models.md"
ML1M_ROWS = 297_376


def result(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def origin(found: dict[str, Any]) -> str:
    """Where numbers come from, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    machine = found["machine"]
    what = f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {versions}; commit {found['commit']}"
    return f"{found['date']}, {what}.\n\n    {found['command']}"


def nets() -> str:
    return "# Models\n\n`trm list` prints these.\n\n" + table(
        ("name", "what it is"), ((f"`{name}`", net.summary) for name, net in net_classes().items())
    )


def frappe(heading: str, text: str) -> str:
    found = result("frappe_x1")
    if found is None:
        return ""
    speed = result("frappe_speed") or {"rows": []}
    rows_per_second = {row["model"]: f"{row['rows_per_second']:,}" for row in speed["rows"]}
    rows = []
    for row in sorted(found["rows"], key=lambda row: row["published"]["auc"]):
        published = row["published"]
        mean = f"{published['mean_auc']:.5f} +- {published['std_auc']:.5f}" if published["mean_auc"] else ""
        std = f" +- {row['auc_std']:.5f}" if row["auc_std"] is not None else ""
        rows.append(
            (
                row["model"],
                f"{row['auc_mean']:.5f}{std}",
                f"{row['log_loss_mean']:.5f}",
                str(len(row["seeds"])),
                f"{published['auc']:.5f}",
                mean,
                f"{row['difference']:+.5f}" + ("" if row["difference"] >= -row["tolerance"] else " **(not reached)**"),
                f"{published['peer_auc']:.5f}" if published["peer_auc"] else "",
                f"{row['parameters']:,}",
                f"{statistics.mean(row['epochs']):.0f}",
                rows_per_second.get(row["model"], ""),
            )
        )
    head = (
        "net",
        "test AUC",
        "log loss",
        "seeds",
        "published AUC",
        "published mean",
        "difference",
        "FuxiCTR here",
        "parameters",
        "epochs",
        "rows/s",
    )
    notes = "".join(f"\n\n{row['model']}: {row['note']}" for row in found["rows"] if row["note"])
    return f"## {heading}\n\n{text}\n\n{table(head, rows)}{notes}\n\n{origin(found['rows'][-1])}"


def frappe_fused() -> str:
    found, unfused = result("frappe_x1_fused"), result("frappe_x1")
    if found is None or unfused is None:
        return ""
    other = {row["model"]: row for row in unfused["rows"]}
    rows = [
        (
            row["model"],
            f"{row['auc_mean']:.5f}",
            f"{row['log_loss_mean']:.5f}",
            f"{other[row['model']]['auc_mean']:.5f}",
            f"{other[row['model']]['log_loss_mean']:.5f}",
            f"{row['auc_mean'] - other[row['model']]['auc_mean']:+.5f}",
            f"{statistics.mean(row['epochs']):.0f}",
        )
        for row in sorted(found["rows"], key=lambda row: row["published"]["auc"])
    ]
    head = ("net", "test AUC, fused", "log loss", "AUC, recipe", "log loss", "difference", "epochs, fused")
    return (
        "## Accuracy: the same nets in production mode\n\n"
        "Sharded tables updated inside backward by row-wise Adagrad at .01 (`mode: fused`), one seed, not tuned net by net, beside "
        "the means of the table above. Two parts of the recipe are missing: L2 on whole tables, which fused optimizers cannot do "
        "and which matters for 200,000 rows, and Adam on all rows of the tables; lr and fm ran to the limit of 100 epochs.\n\n"
        f"{table(head, rows)}\n\n{origin(found['rows'][-1])}"
    )


def sequences() -> str:
    found, speed = result("sequences_ml1m"), result("ml1m_speed")
    if found is None:
        return ""
    rows_per_second = {row["model"]: row["rows_per_second"] for row in speed["rows"]} if speed else {}
    rows = [
        (
            row["model"],
            f"{row['auc']:.4f}",
            f"{row['gauc']:.4f}",
            f"{row['log_loss']:.4f}",
            f"{ML1M_ROWS / rows_per_second[row['model']]:.1f}" if row["model"] in rows_per_second else "",
            f"{rows_per_second[row['model']]:,}" if row["model"] in rows_per_second else "",
            f"{row['num_parameters']['encoder']:,}",
            f"{row['num_parameters']['head']:,}",
            f"{row['num_parameters']['tables']:,}",
        )
        for row in sorted(found["rows"], key=lambda row: row["auc"])
    ]
    notes = "".join(f"\n\n{row['model']}: {row['note']}." for row in found["rows"] if row.get("note"))
    speeds = f"\n\n{origin(speed['rows'][-1])}" if speed else ""
    head = ("encoder", "test AUC", "gAUC", "log loss", "s per epoch", "rows/s", "encoder parameters", "head", "tables")
    return (
        "## Sequence encoders: MovieLens-1M, one protocol, one budget\n\n"
        f"Each user's last film against 20 sampled by popularity, from the 50 before it; two epochs of {ML1M_ROWS:,} rows, batch "
        "1024, one seed, untuned. `mean` is the mean of the history; `dare_qnn` is DARE in front of QNN-alpha. Row weights make "
        "the base rate .5. Speeds are of training, measured apart, one encoder after the other on a machine that did nothing else; "
        "an epoch is computed from them.\n\n"
        f"{table(head, rows)}{notes}\n\n{origin(found['rows'][-1])}{speeds}"
    )


def memory() -> str:
    found = result("sequence_memory")
    if found is None:
        return ""
    lengths = sorted({row["length"] for row in found["rows"]})
    cells: dict[str, dict[int, str]] = {}
    for row in found["rows"]:
        cells.setdefault(row["model"], {})[row["length"]] = f"{row['peak_bytes'] / 1e9:.1f}"
    rows = [(model, *(by_length.get(length, "") for length in lengths)) for model, by_length in cells.items()]
    return (
        "## Memory of long histories\n\nPeak of one training step at batch 1024 in GB, float32, counted on the CPU from live "
        "tensors (no GPU was at hand); a 16 GB accelerator has about 14 to give. `naive` keeps attention scores as published code "
        "does, `kept` recomputes nothing, `rows_per_pass_128` runs the encoder on 128 rows at a time (`rows_per_pass`). "
        "`feseq_eleme` has the authors' 14 parallel sequences. See `benchmarks/sequence_memory.py` for what is counted.\n\n"
        f"{table(('net', *(f'length {n}' for n in lengths)), rows)}\n\n{origin(found)}"
    )


def compiled() -> str:
    found = result("compiled_nets")
    if found is None:
        return ""
    rows = [
        (
            row["model"],
            *(
                ("", "", row["why_not"], "")
                if "why_not" in row
                else (f"{row['eager_ms']}", f"{row['compiled_ms']}", f"{row['speedup']:.2f}", f"{row['compile_seconds']}")
            ),
        )
        for row in found["rows"]
    ]
    return (
        f"## torch.compile\n\nOne training step of the dense part, batch {found['rows'][0]['num_rows']}, default options, "
        f"{found['rows'][0]['threads']} threads; `train.compile: true` in a config.\n\n"
        f"{table(('net', 'eager ms', 'compiled ms', 'times as fast', 'compilation s'), rows)}\n\n{origin(found['rows'][-1])}"
    )


def dcnv3() -> str:
    found = result("dcnv3_cpu")
    if found is None:
        return ""
    parts = []
    for shape, one in found["shapes"].items():
        rows = [(way, f"{row['ms_median']:.1f}", f"{row['speedup_median']:.2f}") for way, row in one["ways"].items()]
        counts = one["num_parameters"]
        parts.append(
            f"{shape}: {one['num_fields']} fields of {one['dim']}; {counts['v2']:,} parameters in v2, {counts['v3']:,} in v3.\n\n"
            + table(("step", "median ms", "times as fast as v3 released"), rows)
        )
    text = (
        "Forward, loss, backward and Adam at batch 4096, no tables. The matrix products of both take equally long (39 fields: 71 % "
        "of v3's step, 89 % of v2's); what is left of v3 is elementwise, [4096, 624] read and written several times a layer: "
        "gates, masks, norms. Ours writes the gate in place and joins nothing; a first product shared by both networks gains "
        "nothing on a CPU. With dropout, masks are drawn eight at a time; torch.compile fuses the rest.\n\n"
    )
    return "## DCN v3 against DCN v2 of as many parameters\n\n" + text + "\n\n".join(parts) + f"\n\n{origin(found)}"


def page() -> str:
    sections = [
        nets(),
        frappe(
            "Accuracy: Frappe_x1, the published recipe",
            "`trm reproduce frappe` trains every config of `configs/frappe/` (dense Adam, L2 on whole tables, `mode: unfused`) and "
            "compares with BARS (qnn_alpha: with its authors' log). `difference` is to the published mean where there is one, else "
            "to the listed run, which is the best of a tuning. rows/s: training, measured apart, one net after the other on a "
            "machine that did nothing else (`python -m benchmarks.training_speed frappe`); an epoch is 202,027 rows.",
        ),
        frappe_fused(),
        sequences(),
        memory(),
        dcnv3(),
        compiled(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
