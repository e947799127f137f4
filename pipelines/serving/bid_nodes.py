"""OpenRTB's types (the Structs of openrtb.py) as the nodes that bid_reader.c walks, with the columns of a model that they fill."""

import ctypes
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pyarrow as pa

from .bid_mapping import RowMapping, Source, compile_path, plain_type
from .openrtb import Auction, BidRequest, Imp, Price
from .row_reader import KeyTable, RowReader

_TEXT, _INTEGER, _NUMBER, _SCALAR, _OBJECT, _LIST = range(6)
_LEAVES = {str: _TEXT, int: _INTEGER, float: _NUMBER}
_ADDRESS, _COUNT = ctypes.c_void_p, ctypes.c_int64
_MOST_MEMBERS = 64  # bits of a word
_MOST_ITEMS = 1 << 12  # of all lists together, as in flat_json.h
_ITS_JSON, _THAT_IT_IS_THERE = 1, 2
_IMP, _THE_ONE, _EVERY = "imp", "", None
_BELOW_EXT = object()
OWN = {"id": "id", "imp id": "imp.id", "bidfloor": "imp.bidfloor", "tmax": "tmax"}  # what requests on equal terms differ in

Steps = tuple[str | None, ...]


class Node(ctypes.Structure):
    """As in bid_reader.c."""

    _fields_ = [
        *((name, _COUNT) for name in ("type", "is_optional", "column", "is_item", "not_negative")),
        ("names", _ADDRESS),
        ("first_member", _COUNT),
        ("required", ctypes.c_uint64),
        *((name, _COUNT) for name in ("item", "is_single", "first_column", "num_columns", "in_key")),
    ]


class Derived(ctypes.Structure):
    """As in bid_reader.c."""

    _fields_ = [(name, _COUNT) for name in ("column", "source", "separator")]


class NotForC(Exception):
    """What of a mapping is left to Python."""


class NodeTree:
    """A bid request's nodes, for one mapping.

    Args:
        timestamp: the number of the value that takes `time.path`; after it, those of `OWN`.

    Attributes:
        nodes: the first is the request.
        derived: columns that are made of others' values.
        list_columns: numbers of the columns that are lists; each has a place for `most_items` items.

    Raises:
        NotForC: for paths with an index, and for lists below `ext`.
    """

    def __init__(self, mapping: RowMapping, reader: RowReader, *, timestamp: int) -> None:
        self._reader = reader
        self._names: list[KeyTable] = []
        self._numbers: dict[Steps, int] = {}  # of columns, by path
        copies, joined = [], []
        sources = {reader.columns[name]: (name, source) for name, source in mapping.sources.items()}
        if mapping.of_time and mapping.time.path:
            sources[timestamp] = ("time", Source(mapping.time.path, "", False))
        for number, (name, text) in enumerate(OWN.items(), timestamp + 1):
            root, _, rest = text.rpartition(".")
            sources[number] = (name, Source(compile_path(rest, Imp if root else BidRequest), "", bool(root)))
        for number, (name, source) in sources.items():
            separator = ord(source.separator) if source.separator else -1
            first = self._numbers.setdefault(_steps_of(name, source), number)
            if first != number:
                copies.append(Derived(number, first, separator))
            elif separator >= 0:
                joined.append(Derived(number, -1, separator))
        self.derived = (Derived * (len(copies) + len(joined)))(*copies, *joined)  # copied before they become texts
        self._lists = sorted((steps for steps in self._numbers if _EVERY in steps), key=lambda steps: [str(step) for step in steps])
        self.list_columns = (_COUNT * len(self._lists))(*(self._numbers[steps] for steps in self._lists))
        self.most_items = _MOST_ITEMS // (len(self._lists) + 1)
        self._nodes = [Node()]
        self._reached: set[Steps] = set()
        self._fill(0, BidRequest, (), Auction)
        self.nodes = (Node * len(self._nodes))(*self._nodes)
        if self._reached != self._numbers.keys():
            raise NotForC(f"a path that ends where another goes on: {self._numbers.keys() - self._reached}")

    def _fill(self, at: int, annotation: Any, steps: Steps, deciding: Any = None) -> None:
        """Node `at`, for what stands at this path, and those below it.

        Args:
            deciding: what of it decides on bids: its type in `Auction`; None where it is not there.
        """
        node, kind = self._nodes[at], plain_type(annotation)
        parts = plain_type(deciding) if deciding else None
        is_object = isinstance(parts, type) and issubclass(parts, msgspec.Struct)
        is_own = ".".join(step for step in steps if step) in OWN.values()
        if deciding and not is_own and steps != (_IMP,):
            node.in_key = _THAT_IT_IS_THERE if is_object else _ITS_JSON
        node.is_optional = annotation is _BELOW_EXT or type(None) in get_args(annotation)
        node.column = -1
        if kind is _BELOW_EXT and steps in self._numbers:
            self._fill_leaf(node, _SCALAR, steps)
        elif kind is _BELOW_EXT or get_origin(kind) is dict:
            below = {path[len(steps)] for path in self._numbers if path[: len(steps)] == steps and len(path) > len(steps)}
            self._fill_object(at, {str(name): _BELOW_EXT for name in below}, frozenset(), steps, {})
        elif get_origin(kind) is list:
            self._fill_list(at, get_args(kind)[0], steps, get_args(parts)[0] if steps == (_IMP,) else None)
        elif issubclass(kind, msgspec.Struct):
            required = frozenset(field.name for field in msgspec.structs.fields(kind) if field.required)
            parts_below = get_type_hints(parts, include_extras=True) if is_object else {}
            self._fill_object(at, get_type_hints(kind, include_extras=True), required, steps, parts_below)
        else:
            node.not_negative = Price in (annotation, *get_args(annotation))
            self._fill_leaf(node, _LEAVES[kind], steps)

    def _fill_leaf(self, node: Node, of: int, steps: Steps) -> None:
        node.type = of
        node.column = self._numbers.get(steps, -1)
        node.is_item = _EVERY in steps
        self._reached.add(steps) if steps in self._numbers else None

    def _fill_list(self, at: int, item: Any, steps: Steps, deciding: Any) -> None:
        node = self._nodes[at]
        node.type, node.item, node.is_single = _LIST, len(self._nodes), steps == (_IMP,)
        if _EVERY not in steps:  # those of an inner list are lists already
            here = [i for i, path in enumerate(self._lists) if path[: len(steps) + 1] == (*steps, _EVERY)]
            node.first_column, node.num_columns = (here[0], len(here)) if here else (0, 0)
        self._nodes.append(Node())
        self._fill(node.item, item, (*steps, _THE_ONE if node.is_single else _EVERY), deciding)

    def _fill_object(
        self, at: int, members: dict[str, Any], required: frozenset[str], steps: Steps, deciding: dict[str, Any]
    ) -> None:
        assert len(members) <= _MOST_MEMBERS
        node, first = self._nodes[at], len(self._nodes)
        node.type, node.first_member = _OBJECT, first
        node.required = sum(1 << i for i, name in enumerate(members) if name in required)
        if members:
            self._names.append(KeyTable(self._reader.library, pa.array(list(members), pa.string()), first_row=0))
            node.names = self._names[-1].handle
        self._nodes += [Node() for _ in members]
        for number, (name, annotation) in enumerate(members.items(), first):
            self._fill(number, annotation, (*steps, name), deciding.get(name))


def _steps_of(name: str, source: Source) -> Steps:
    steps = source.path.steps
    named = tuple(step for step in steps if not isinstance(step, int))
    if named != steps:
        raise NotForC(f"{name}: an index in {source.path.text}")
    if "ext" in steps and _EVERY in steps:
        raise NotForC(f"{name}: a list below ext in {source.path.text}")
    return (_IMP, _THE_ONE, *named) if source.is_of_imp else named
