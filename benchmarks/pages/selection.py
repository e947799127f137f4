"""The table of docs/folds_and_sampling.md: what training on chosen rows costs."""

from .results import Results, Row, origin, percent, table


def selection(results: Results) -> str:
    files = {"": results("selection_frappe"), ", equal steps": results("selection_frappe_equal_steps")}
    rows = [_row(name, row, note) for note, found in files.items() for name, row in found["rows"].items()]
    head = ("rows", "chosen", "AUC", "sd", "log loss", "predicted / clicks", "steps")
    origins = [origin(name, [results(name)]) for name in results.read]
    return "\n\n".join([table(head, rows), *origins])


def _row(name: str, row: Row, note: str) -> tuple[str, ...]:
    chosen, _, share = name.rpartition(", ")
    numbers = (f"{row['auc']:.4f}", f"{row['auc_std']:.4f}", f"{row['log_loss']:.3f}", f"{row['calibration_ratio']:.2f}")
    return (percent(float(share)) if chosen else "all", f"{chosen}{note}", *numbers, f"{row['steps']:,.0f}")
