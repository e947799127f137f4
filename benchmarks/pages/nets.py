"""Tables of docs/models.md: the registry of nets, their accuracy, speed and memory."""

from statistics import mean

from torchrec_models.model import net_classes

from .results import Results, origin, table

ML1M_ROWS = 297_376


def nets(results: Results) -> str:
    return table(("name", "what it is"), ((f"`{name}`", net.summary) for name, net in net_classes().items()))


def frappe(results: Results) -> str:
    found, speed = results("frappe_x1")["rows"], results("frappe_speed")["rows"]
    rows_per_second = {row["model"]: f"{row['rows_per_second']:,}" for row in speed}
    rows = []
    for row in sorted(found, key=lambda row: row["published"]["auc"]):
        published = row["published"]
        rows.append(
            (
                row["model"],
                f"{row['auc_mean']:.5f}" + (f" +- {row['auc_std']:.5f}" if row["auc_std"] is not None else ""),
                f"{row['log_loss_mean']:.5f}",
                str(len(row["seeds"])),
                f"{published['auc']:.5f}",
                f"{published['mean_auc']:.5f} +- {published['std_auc']:.5f}" if published["mean_auc"] else "",
                f"{row['difference']:+.5f}" + ("" if row["difference"] >= -row["tolerance"] else " **(not reached)**"),
                f"{published['peer_auc']:.5f}" if published["peer_auc"] else "",
                f"{row['parameters']:,}",
                f"{mean(row['epochs']):.0f}",
                rows_per_second.get(row["model"], ""),
            )
        )
    head = ("net", "test AUC", "log loss", "seeds", "published AUC", "published mean", "difference", "FuxiCTR here")
    notes = "".join(f"\n\n{row['model']}: {row['note']}" for row in found if row["note"])
    origins = f"{origin('frappe_x1', found)}\n\n{origin('frappe_speed', speed)}"
    return f"{table((*head, 'parameters', 'epochs', 'rows/s'), rows)}{notes}\n\n{origins}"


def frappe_fused(results: Results) -> str:
    found = results("frappe_x1_fused")["rows"]
    other = {row["model"]: row for row in results("frappe_x1")["rows"]}
    rows = [
        (
            row["model"],
            f"{row['auc_mean']:.5f}",
            f"{row['log_loss_mean']:.5f}",
            f"{other[row['model']]['auc_mean']:.5f}",
            f"{other[row['model']]['log_loss_mean']:.5f}",
            f"{row['auc_mean'] - other[row['model']]['auc_mean']:+.5f}",
            f"{mean(row['epochs']):.0f}",
        )
        for row in sorted(found, key=lambda row: row["published"]["auc"])
    ]
    head = ("net", "test AUC, fused", "log loss", "AUC, recipe", "log loss", "difference", "epochs, fused")
    return f"{table(head, rows)}\n\n{origin('frappe_x1_fused', found)}"


def sequences(results: Results) -> str:
    found, speed = results("sequences_ml1m")["rows"], results("ml1m_speed")["rows"]
    rows_per_second = {row["model"]: row["rows_per_second"] for row in speed}
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
        for row in sorted(found, key=lambda row: row["auc"])
    ]
    notes = "".join(f"\n\n{row['model']}: {row['note']}." for row in found if row.get("note"))
    head = ("encoder", "test AUC", "gAUC", "log loss", "s per epoch", "rows/s", "encoder parameters", "head", "tables")
    return f"{table(head, rows)}{notes}\n\n{origin('sequences_ml1m', found)}\n\n{origin('ml1m_speed', speed)}"


def memory(results: Results) -> str:
    found = results("sequence_memory")
    lengths = sorted({row["length"] for row in found["rows"]})
    cells: dict[str, dict[int, str]] = {}
    for row in found["rows"]:
        cells.setdefault(row["model"], {})[row["length"]] = f"{row['peak_bytes'] / 1e9:.1f}"
    rows = [(model, *(by_length.get(length, "") for length in lengths)) for model, by_length in cells.items()]
    return f"{table(('net', *(f'length {n}' for n in lengths)), rows)}\n\n{origin('sequence_memory', [found])}"


def dcnv3(results: Results) -> str:
    found = results("dcnv3_cpu")
    parts = []
    for shape, one in found["shapes"].items():
        rows = [(way, f"{row['ms_median']:.1f}", f"{row['speedup_median']:.2f}") for way, row in one["ways"].items()]
        counts = one["num_parameters"]
        parts.append(
            f"{shape}: {one['num_fields']} fields of {one['dim']}; {counts['v2']:,} parameters in v2, {counts['v3']:,} in v3.\n\n"
            + table(("step", "median ms", "times as fast as v3 released"), rows)
        )
    return "\n\n".join([*parts, origin("dcnv3_cpu", [found])])


def compiled(results: Results) -> str:
    found = results("compiled_nets")["rows"]
    rows = [
        (
            row["model"],
            *(
                ("", "", row["why_not"], "")
                if "why_not" in row
                else (f"{row['eager_ms']}", f"{row['compiled_ms']}", f"{row['speedup']:.2f}", f"{row['compile_seconds']}")
            ),
        )
        for row in found
    ]
    setting = {f"Batch {row['num_rows']}, {row['threads']} threads." for row in found}
    head = ("net", "eager ms", "compiled ms", "times as fast", "compilation s")
    return f"{' '.join(sorted(setting))}\n\n{table(head, rows)}\n\n{origin('compiled_nets', found)}"
