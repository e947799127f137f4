"""A request's row, as JSON bytes, straight to the graph's inputs by plain C (row_reader.c): no Python object is made of it.

Like the encoder's Python path, it decides only what is beyond doubt; what it leaves undecided, and every error, is the encoder's.
"""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..data.dense import coded_steps
from ..data.hashes import mixed_seed
from ..data.ids import Buckets, Hash, Identity, IdTransform, Vocabulary
from ..data.native import native_library
from ..data.numeric import apply_steps_to_value
from ..data.plain_values import Undecided
from ..data.transforms import IdsTransform, NumericTransform, Transforms
from .slots import FeatureSlots, SlotLayout

_BY_TEXT, _HASHED_TEXT, _BY_INTEGER, _BY_FLOAT, _HASHED_NUMBER, _BUCKETS, _IDENTITY = range(7)
_ONE, _MANY, _SEPARATED = range(3)
_ADDRESS, _COUNT, _FLOAT_BYTES = ctypes.c_void_p, ctypes.c_int64, 4
_FUNCTIONS: dict[str, tuple[tuple, object]] = {
    "table_new": ((_COUNT,), _ADDRESS),
    "table_free": ((_ADDRESS,), None),
    "table_add_texts": ((_ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_int, _ADDRESS, _COUNT, _COUNT), None),
    "table_add_words": ((_ADDRESS, _ADDRESS, _ADDRESS, _COUNT, _COUNT), None),
    "plan_new": ((_ADDRESS, _COUNT, _ADDRESS, _COUNT, _ADDRESS, _COUNT, _ADDRESS, _COUNT, _COUNT, _ADDRESS), _ADDRESS),
    "hash_keyed": ((ctypes.c_uint64, _ADDRESS), None),
    "plan_free": ((_ADDRESS,), None),
    "plan_values": ((_ADDRESS,), _ADDRESS),
}


class _Ids(ctypes.Structure):
    """As in row_reader.c."""

    _fields_ = [
        *((name, _COUNT) for name in ("column", "kind", "form", "separator", "first_slot", "num_slots", "keeps_last")),
        *((name, _COUNT) for name in ("first_row", "null_row", "size")),
        ("seed", ctypes.c_uint64),
        ("keyed", ctypes.c_uint64 * 8),
        ("table", _ADDRESS),
        ("boundaries", _ADDRESS),
    ]


class _Number(ctypes.Structure):
    """As in row_reader.c."""

    _fields_ = [("column", _COUNT), ("num_steps", _COUNT), ("steps", _ADDRESS)]


@cache
def _library() -> ctypes.CDLL | None:
    library = native_library("row_reader", "requests are read in Python", sources=Path(__file__).parent)
    for name, (arguments, result) in _FUNCTIONS.items() if library else ():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
    return library


class RowReader:
    """Reads rows for one graph; `of` makes one.

    A call keeps the GIL: it takes microseconds, and giving it up and asking for it again takes longer.

    Attributes:
        columns: numbers of the raw columns.
        has_steps: whether `take_steps` has any to take.
        plan, values: addresses of the plan of row_slots.h and of its values.
    """

    def __init__(self, library: ctypes.CDLL, transforms: Transforms, layout: SlotLayout) -> None:
        self.library = library
        self._tables: dict[str, KeyTable] = {}
        self._arrays: list[np.ndarray] = []  # what the plan points to
        names = list(dict.fromkeys(transforms.columns.values()))
        columns = self.columns = {name: number for number, name in enumerate(names)}
        self._names = KeyTable(library, pa.array(names, pa.string()), first_row=0)
        self._ids = (_Ids * len(layout.slots))(*(self._ids_of(slot, transforms, columns) for slot in layout.slots))
        numeric = [f for f in transforms.features.values() if isinstance(f, NumericTransform)]
        self._numbers = (_Number * len(numeric))(*(self._number_of(f, columns) for f in numeric))
        self._raw = (ctypes.c_double * len(numeric))()
        self._steps = [(i, f.steps) for i, f in enumerate(numeric) if coded_steps(f.steps) is None]
        self.has_steps = bool(self._steps)
        aligned = [
            (columns[f.column], columns[transforms.columns[f.aligned_with]])
            for f in transforms.features.values()
            if isinstance(f, IdsTransform) and f.aligned_with
        ]
        pairs = self._kept(np.array(aligned, np.int64))
        self.plan = library.plan_new(
            *(self._names.handle, len(columns)),
            *(ctypes.addressof(self._ids), len(self._ids)),
            *(ctypes.addressof(self._numbers), len(self._numbers)),
            *(pairs, len(aligned)),
            *(layout.num_slots, ctypes.addressof(self._raw)),
        )
        if not self.plan:
            raise MemoryError
        self.values = library.plan_values(self.plan)
        read_row = ctypes.PyDLL("", handle=library._handle).read_row
        read_row.argtypes, read_row.restype = (_ADDRESS, ctypes.c_char_p, _COUNT, _ADDRESS, _ADDRESS), ctypes.c_int
        self._read_row = read_row

    @classmethod
    def of(cls, transforms: Transforms, layout: SlotLayout) -> "RowReader | None":
        """None without a C compiler, for separators of more than one byte, and where features are computed from other columns."""
        separators = [f.separator for f in transforms.features.values() if isinstance(f, IdsTransform)]
        if transforms.states or any(len(separator.encode()) > 1 for separator in separators) or (library := _library()) is None:
            return None
        return cls(library, transforms, layout)

    def __del__(self) -> None:
        if getattr(self, "plan", None):
            self.library.plan_free(self.plan)

    def read(self, json: bytes, ids: int, dense: int) -> bool:
        """Whether one row was decided, and written to `ids` (the address of S int64) and `dense` (of D float32)."""
        if not self._read_row(self.plan, json, len(json), ids, dense):
            return False
        return not self.has_steps or self.take_steps(dense)

    def take_steps(self, dense: int) -> bool:
        """Those that C does not know: logarithms, quantiles. Whether they take these numbers."""
        for index, steps in self._steps:
            try:
                number = apply_steps_to_value(steps, self._raw[index])
            except Undecided:
                return False
            ctypes.c_float.from_address(dense + index * _FLOAT_BYTES).value = number
        return True

    def _kept(self, array: np.ndarray) -> int:
        self._arrays.append(array)
        return array.ctypes.data

    def _ids_of(self, slot: FeatureSlots, transforms: Transforms, columns: dict[str, int]) -> _Ids:
        feature = transforms.features[slot.feature]
        assert isinstance(feature, IdsTransform)
        table = transforms.tables[feature.table]
        out = _Ids(
            column=columns[feature.column],
            kind=_kind_of(table),
            form=_SEPARATED if feature.separator else _MANY if feature.many else _ONE,
            separator=ord(feature.separator or "\0"),
            first_slot=slot.first_slot,
            num_slots=slot.num_slots,
            keeps_last=feature.keep == "last",
            first_row=slot.first_row,
            null_row=-1 if table.null == "error" else table.null_id,
        )
        if isinstance(table, Vocabulary):
            if feature.table not in self._tables:
                self._tables[feature.table] = KeyTable(self.library, table.values, first_row=1)
            out.table = self._tables[feature.table].handle
        elif isinstance(table, Hash):
            out.size, out.seed = table.buckets, table.seed if table.reads_text else mixed_seed(table.seed)
            self.library.hash_keyed(table.seed, ctypes.addressof(out) + _Ids.keyed.offset)
        elif isinstance(table, Buckets):
            out.size, out.boundaries = len(table.boundaries), self._kept(np.array(table.boundaries, np.float64))
        elif isinstance(table, Identity):
            out.size = table.size
        return out

    def _number_of(self, feature: NumericTransform, columns: dict[str, int]) -> _Number:
        steps = coded_steps(feature.steps)
        return _Number(columns[feature.column], *((-1, None) if steps is None else (len(steps), self._kept(steps))))


def _kind_of(table: IdTransform) -> int:
    if isinstance(table, Vocabulary):
        return _BY_TEXT if table.reads_text else _BY_FLOAT if pa.types.is_floating(table.values.type) else _BY_INTEGER
    if isinstance(table, Hash):
        return _HASHED_TEXT if table.reads_text else _HASHED_NUMBER
    if isinstance(table, Buckets):
        return _BUCKETS
    assert isinstance(table, Identity), table
    return _IDENTITY


class KeyTable:
    """Rows by value: value i of `values` (text, int64 or float64; nulls are left out) is row `first_row` + i."""

    def __init__(self, library: ctypes.CDLL, values: pa.Array, *, first_row: int) -> None:
        self._library, self._values = library, values
        self.handle = library.table_new(len(values))
        if not self.handle:
            raise MemoryError
        valid = values.is_valid().to_numpy(zero_copy_only=False).view(np.uint8)
        place = (valid.ctypes.data, len(values), first_row)
        if pa.types.is_string(values.type):
            _, offsets, data = values.buffers()
            library.table_add_texts(self.handle, data.address if data else None, offsets.address + 4 * values.offset, False, *place)
        else:
            words = values.fill_null(0).to_numpy(zero_copy_only=False) + values.type.to_pandas_dtype()(0)  # no -0.0
            library.table_add_words(self.handle, words.ctypes.data, *place)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.table_free(self.handle)
