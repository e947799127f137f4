"""A bid request, as JSON bytes, straight to the graph's inputs by plain C (bid_reader.c): no Python object is made of a column.

Like row_reader.py, it decides only what is beyond doubt, and here only requests of one impression; what it leaves undecided, and
every error, goes through openrtb.py and bid_mapping.py.
"""

import ctypes
import logging
import struct
from functools import cache
from pathlib import Path
from typing import Any

from ..data.native import native_library
from .bid_mapping import LocalTime, RowMapping
from .bid_nodes import OWN, NodeTree, NotForC
from .bid_terms import Asked
from .messages import encode_json
from .row_reader import RowReader

_FOUND_TEXT, _FOUND_INTEGER, _FOUND_FLOAT, _FOUND_LIST = range(2, 6)  # flat_json.h
_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64
_SECONDS_PER_MINUTE = 60
_MOST_KEY = 1 << 12  # bytes, as in bid_reader.c
log = logging.getLogger(__name__)


class _Value(ctypes.Structure):
    """As in flat_json.h."""

    _fields_ = [("kind", ctypes.c_int), ("text", _ADDRESS), ("length", _COUNT), ("integer", _COUNT), ("number", ctypes.c_double)]


class _BidPlan(ctypes.Structure):
    """As in bid_reader.c."""

    _fields_ = [
        *((name, _ADDRESS) for name in ("rows", "nodes", "fixed", "list_columns", "derived", "own_columns")),
        *((name, _COUNT) for name in ("num_list_columns", "most_items", "num_derived", "num_own_columns")),
        ("key", _ADDRESS),
        ("num_items", _COUNT),
        *((name, _COUNT) for name in ("key_length", "id_at", "id_length", "imp_id_at", "imp_id_length")),
        *((name, _COUNT) for name in ("has_bidfloor", "has_tmax", "tmax")),
        ("bidfloor", ctypes.c_double),
    ]


_of_request, _OF_REQUEST_AT = struct.Struct("=8qd"), _BidPlan.key_length.offset


@cache
def _library() -> ctypes.PyDLL | None:
    library = native_library("bid_reader", "bid requests are read in Python", sources=Path(__file__).parent)
    if library is None:
        return None
    with_gil = ctypes.PyDLL("", handle=library._handle)
    with_gil.read_bid.argtypes = (_ADDRESS, ctypes.c_char_p, _COUNT)
    with_gil.encode_bid.argtypes = (_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS)
    with_gil.value_of.argtypes = (ctypes.c_char_p, _COUNT, _ADDRESS)
    return with_gil


class BidReader:
    """Reads bid requests for one graph; `of` makes one. What was read lasts until the next reading, of rows by `reader` too.

    Args:
        reader: of the graph's rows.
        mapping: from requests to rows.

    Raises:
        NotForC: see `of`.
    """

    def __init__(self, library: ctypes.PyDLL, reader: RowReader, mapping: RowMapping) -> None:
        self._library, self._reader = library, reader
        self._read_bid, self._encode_bid = library.read_bid, library.encode_bid
        self._time = mapping.time if mapping.of_time else None
        self._time_columns = [(reader.columns[column], key) for column, key in mapping.of_time.items()]
        self._minute = -1
        self._timestamp = len(reader.columns)  # the value after the columns', and after it what is the request's own
        self._texts: dict[tuple[type, Any], bytes] = {}  # what values that come with no request point to
        self._fixed = (_Value * (len(reader.columns) + 1 + len(OWN)))()
        self._values = (_Value * len(self._fixed)).from_address(reader.values)
        for column, value in mapping.constants.items():
            self._put(self._fixed[reader.columns[column]], value, column)
        self._tree = tree = NodeTree(mapping, reader, timestamp=self._timestamp)
        for number, column_number in enumerate(tree.list_columns):
            self._fixed[column_number].integer = number * tree.most_items
        self._own_columns = (_COUNT * len(mapping.of_offer))(*(reader.columns[c] for c in mapping.of_offer))
        self._own: dict[tuple[Any, ...], int | None] = {}  # addresses of offers' values
        self._kept: list[ctypes.Array[_Value]] = []
        key = bytearray(_MOST_KEY)
        self._key = memoryview(key)
        self._plan = _BidPlan(
            rows=reader.plan,
            nodes=ctypes.addressof(tree.nodes),
            fixed=ctypes.addressof(self._fixed),
            list_columns=ctypes.addressof(tree.list_columns),
            derived=ctypes.addressof(tree.derived),
            own_columns=ctypes.addressof(self._own_columns),
            num_list_columns=len(tree.list_columns),
            most_items=tree.most_items,
            num_derived=len(tree.derived),
            num_own_columns=len(self._own_columns),
            key=ctypes.addressof(ctypes.c_char.from_buffer(key)),
        )
        self._address = ctypes.addressof(self._plan)

    @classmethod
    def of(cls, reader: RowReader | None, mapping: RowMapping) -> "BidReader | None":
        """None without a C compiler, and for mappings with an index (`user.data[0].id`), a list below `ext`, or a constant that is
        true, false, or a text with a backslash; the log says which.
        """
        library = _library()
        if reader is None or library is None:
            return None
        try:
            return cls(library, reader, mapping)
        except NotForC as reason:
            log.info("bid requests are read in Python, which is slower: %s", reason)
            return None

    def read(self, body: bytes, now: float) -> tuple[Asked | None, bytes] | None:
        """What is asked by a request, and bytes that no request on other terms has; its rows can be encoded then.

        Returns:
            None for an undecided request: it may be no `BidRequest`, or one of several impressions. (None, b"") for one whose ids
            have escapes, and for terms of more than 4 KiB.
        """
        time = self._time
        if time is not None and time.path is None and int(now // _SECONDS_PER_MINUTE) != self._minute:
            self._minute = int(now // _SECONDS_PER_MINUTE)
            self._put_time(time.of(now), self._fixed)
        if not self._read_bid(self._address, body, len(body)):
            return None
        if time is not None and time.path is not None and not self._take_time(time):
            return None
        of_request = _of_request.unpack_from(self._plan, _OF_REQUEST_AT)
        key_length, at, length, imp_at, imp_length, has_floor, has_tmax, tmax, floor = of_request
        if key_length > _MOST_KEY or at < 0 or imp_at < 0:
            return None, b""
        imp = body[imp_at : imp_at + imp_length].decode(), floor if has_floor else None
        return Asked(body[at : at + length].decode(), tmax if has_tmax else None, [imp]), bytes(self._key[:key_length])

    def encode(self, values: tuple[Any, ...], ids: int, dense: int) -> bool:
        """Whether the row of one offer on the request was decided, and written to `ids` (the address of S int64) and `dense` (of D
        float32).

        Args:
            values: `RowMapping.offer_values`.
        """
        try:
            own = self._own[values]
        except KeyError:
            own = self._own_of(values)
        if own is None or not self._encode_bid(self._address, own, ids, dense):
            return False
        return not self._reader.has_steps or self._reader.take_steps(dense)

    def _own_of(self, values: tuple[Any, ...]) -> int | None:
        own = (_Value * len(values))()
        try:
            for place, value in zip(own, values):
                self._put(place, value, "an offer's value")
            self._own[values] = ctypes.addressof(own)
            self._kept.append(own)
        except NotForC:
            self._own[values] = None
        return self._own[values]

    def _take_time(self, time: LocalTime) -> bool:
        found = self._values[self._timestamp]
        given: Any = None
        if found.kind == _FOUND_LIST:
            return False
        if found.kind == _FOUND_FLOAT:
            given = found.number
        elif found.kind in (_FOUND_TEXT, _FOUND_INTEGER):
            given = ctypes.string_at(found.text, found.length).decode()
            given = int(given) if found.kind == _FOUND_INTEGER else given
        try:
            self._put_time({"hour": None, "weekday": None} if given is None else time.of(given), self._values)
        except ValueError:
            return False
        return True

    def _put_time(self, time: dict[str, int | None], values: "ctypes.Array[_Value]") -> None:
        for column, key in self._time_columns:
            self._put(values[column], time[key], key)

    def _put(self, place: _Value, value: Any, what: str) -> None:
        text = self._texts.setdefault((type(value), value), encode_json(value))
        if not self._library.value_of(text, len(text), ctypes.addressof(place)):
            raise NotForC(f"{what} {value!r}")
