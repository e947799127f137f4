"""`trm data head`: the first rows of a split, back in raw values where the transforms allow it."""

from typing import Any

from torchrec_models.pipelines.data.ids import Buckets, Identity, IdTransform, Vocabulary
from torchrec_models.pipelines.data.rows import list_valued, single_valued
from torchrec_models.pipelines.data.shards import Cache

_SHOWN_VALUES = 8


def head(cache: Cache, split: str, *, num_rows: int) -> list[dict[str, Any]]:
    """Rows as dicts: features in schema order, then labels, weights and side columns.

    A vocabulary's ids are its values, `<oov>` and null; bucket ids are intervals; hashed ids stay numbers (`#17`), for a hash does
    not say what went in. Numbers are what the model is given, after their steps.

    Raises:
        ValueError: if the split does not exist, or for less than one row.
    """
    if num_rows < 1:
        raise ValueError(f"--rows must be 1 or more; given {num_rows}")
    data = cache.split(split)
    num_rows = min(num_rows, data.shards[0].num_rows)
    rows = data.read(0, 0, num_rows)
    tables = cache.transforms.tables if cache.manifest["transforms"] else {}
    dense = {f.name: i for i, f in enumerate(cache.schema.dense)}
    singles = {f.name: i for i, f in enumerate(single_valued(cache.schema))}
    lists = {f.name: i for i, f in enumerate(list_valued(cache.schema))}
    side = {name: data.column(name)[:num_rows].to_pylist() for name in data.columns}
    found = []
    for row in range(num_rows):
        shown: dict[str, Any] = {}
        for feature in cache.schema.features:
            name, table = feature.name, tables.get(feature.table)
            if name in dense:
                shown[name] = float(rows.dense[row, dense[name]])
            elif name in singles:
                shown[name] = raw_value(table, int(rows.ids[row, singles[name]]))
            else:
                values, offsets = rows.lists[lists[name]]
                shown[name] = [raw_value(table, i) for i in values[int(offsets[row]) : int(offsets[row + 1])].tolist()]
        shown |= {f"label {task.name}": float(rows.labels[row, i]) for i, task in enumerate(cache.schema.tasks)}
        shown |= {f"weight {task.name}": float(rows.weights[row, i]) for i, task in enumerate(cache.schema.tasks)}
        found.append(shown | {name: values[row] for name, values in side.items()})
    return found


def raw_value(table: IdTransform | None, row: int) -> Any:
    """The raw value of a table row, as far as it is known."""
    if isinstance(table, Vocabulary):
        return table.values[row - 1].as_py() if row else "<oov>"
    if isinstance(table, Buckets):
        if row == 0 or row == len(table.boundaries) + 2:
            return None
        edges = ["-inf", *(f"{b:g}" for b in table.boundaries), "inf"]
        return f"[{edges[row - 1]}, {edges[row]})"
    if isinstance(table, Identity):
        return row
    return f"#{row}"


def text(rows: list[dict[str, Any]]) -> str:
    """One feature per line, rows side by side are unreadable from the fifth feature on."""
    lines = []
    for number, row in enumerate(rows):
        lines.append(f"row {number}")
        width = max(len(name) for name in row)
        lines += [f"  {name:{width}}  {_cell(value)}" for name, value in row.items()]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        more = f", and {len(value) - _SHOWN_VALUES} more" if len(value) > _SHOWN_VALUES else ""
        return f"[{', '.join(_cell(v) for v in value[:_SHOWN_VALUES])}{more}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
