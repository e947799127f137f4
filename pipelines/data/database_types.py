"""Columns as databases send them, as columns that Parquet keeps and features can read."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_HEX = np.frombuffer("".join(f"{i:02x}" for i in range(256)).encode(), np.uint8).reshape(256, 2)
_DASHES = (8, 13, 18, 23)  # of 550e8400-e29b-41d4-a716-446655440000
_TYPE_KEY = b"POSTGRESQL:type"


def storable(schema: pa.Schema) -> tuple[pa.Schema, list[Callable[[pa.Array], pa.Array]]]:
    """The schema to store, and what makes each column's arrays of the arrays that come.

    PostgreSQL's `numeric`, which has no fixed scale, becomes its shortest decimal text, exact at any size: numeric features read it
    as a number, ids as text (12.50 is "12.5", as a request would say). UUIDs become their text, JSON stays text.

    Raises:
        ValueError: for names that come twice and for types without a plain form (the columns' names, and to cast them).
    """
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"the query gives {', '.join(map(repr, twice))} more than once; rename with AS")
    fields, makers, refused = [], [], []
    for field in schema:
        money = (field.metadata or {}).get(_TYPE_KEY) == b"money"  # comes as an integer, in units of the server's locale
        made = None if money else _storable(field.type)
        if made is None:
            refused.append(f"{field.name!r} ({'money' if money else _type_name(field)})")
            continue
        fields.append(pa.field(field.name, made[0]))
        makers.append(made[1])
    if refused:
        raise ValueError(
            f"no plain type for the columns {', '.join(refused)}; cast them in the query (x::text, x::float8), or leave them out"
        )
    return pa.schema(fields), makers


def _type_name(field: pa.Field) -> str:
    """The database's own name, where it says one."""
    return (field.metadata or {}).get(_TYPE_KEY, str(field.type).encode()).decode()


Made = tuple[pa.DataType, Callable[[pa.Array], pa.Array]]


def _storable(type: pa.DataType) -> Made | None:
    if isinstance(type, pa.OpaqueType):
        return (pa.string(), _shortest_decimals) if type.type_name == "numeric" else None
    if isinstance(type, pa.UuidType):
        return pa.string(), _uuid_text
    if isinstance(type, pa.BaseExtensionType):
        inner = _storable(type.storage_type)
        if inner is None:
            return None
        stored, make = inner
        return stored, lambda array: make(array.storage)
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        inner = _storable(type.value_type)
        if inner is None or inner[1] is _as_it_is:
            return None if inner is None else (type, _as_it_is)
        stored, make_values = inner
        return pa.large_list(stored), lambda array: _with_values(array, make_values)
    plain = not (pa.types.is_nested(type) or pa.types.is_interval(type) or pa.types.is_duration(type))
    return (type, _as_it_is) if plain or pa.types.is_fixed_size_list(type) else None


def _as_it_is(array: pa.Array) -> pa.Array:
    return array


def _with_values(lists: pa.Array, make: Callable[[pa.Array], pa.Array]) -> pa.Array:
    lengths = pc.list_value_length(lists)
    offsets = np.concatenate([[0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), make(pc.list_flatten(lists)), mask=lists.is_null())


def _shortest_decimals(array: pa.Array) -> pa.Array:
    """12.50 -> 12.5, 7.00 -> 7; NaN is missing."""
    text = array.storage
    text = pc.replace_substring_regex(text, r"^(-?\d+\.\d*?)0+$", r"\1")
    text = pc.replace_substring_regex(text, r"\.$", "")
    return pc.if_else(pc.equal(pc.utf8_lower(text), "nan"), pa.scalar(None, pa.string()), text)


def _uuid_text(array: pa.Array) -> pa.Array:
    """16 bytes -> 36 characters, without a loop over rows."""
    filled = array.storage.fill_null(b"\0" * 16)
    raw = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 16 : (filled.offset + len(filled)) * 16]
    text = np.full((len(filled), 36), ord("-"), np.uint8)
    text[:, [i for i in range(36) if i not in _DASHES]] = _HEX[raw].reshape(len(filled), 32)
    offsets = np.arange(0, 36 * (len(filled) + 1), 36, dtype=np.int64)
    out = pa.LargeStringArray.from_buffers(len(filled), pa.py_buffer(offsets), pa.py_buffer(text)).cast(pa.string())
    return pc.if_else(array.is_null(), pa.scalar(None, pa.string()), out)
