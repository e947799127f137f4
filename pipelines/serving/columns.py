"""What a model's raw columns are, for those who must describe them: the OpenAPI document, the protocol's metadata, the page."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from ..data.ids import Hash, Identity, IdTransform, Vocabulary
from ..data.numeric import Fill, IsMissing
from ..data.transforms import NumericTransform, Transforms
from .codec import RowCodec

ValueType = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class RawColumn:
    """One raw column.

    Attributes:
        name: the key in a row.
        type: of its values. Digits given as text, and numbers given where text is expected, are taken as well.
        form: "one" value, a "list" of values, or "text" to be cut at `separator`.
        max_len: how many values of a list count.
        is_required: whether a row without it is refused.
    """

    name: str
    type: ValueType
    form: str
    separator: str
    max_len: int
    is_required: bool


def raw_columns(transforms: Transforms) -> list[RawColumn]:
    """The columns that a model reads, in the order of its features. One that several features read is described by the first."""
    forms = {column.name: column.expects for column in RowCodec(transforms).columns.values()}
    out: dict[str, RawColumn] = {}
    for name, feature in transforms.features.items():
        if name in transforms.states:
            state = transforms.states[name]
            for needed, kind in state.kinds.items():
                column = RawColumn(needed, "text" if kind == "string" else "number", "one", "", 1, needed == state.columns[2])
                out.setdefault(needed, column)
            continue
        if isinstance(feature, NumericTransform):
            required = not any(isinstance(step, Fill | IsMissing) for step in feature.steps)
            column = RawColumn(feature.column, "number", "one", "", 1, required)
        else:
            table = transforms.tables[feature.table]
            required = table.null == "error" and not feature.many
            form = forms[feature.column]
            column = RawColumn(feature.column, _type(table), form, feature.separator, feature.max_len, required)
        known = out.get(column.name)
        if known is None:
            out[column.name] = column
        elif required and not known.is_required:
            out[column.name] = RawColumn(known.name, known.type, known.form, known.separator, known.max_len, True)
    return list(out.values())


def _type(table: IdTransform) -> ValueType:
    if table.reads_text:
        return "text"
    if isinstance(table, Vocabulary):
        return "number" if pa.types.is_floating(table.values.type) else "integer"
    return "integer" if isinstance(table, (Identity, Hash)) else "number"
