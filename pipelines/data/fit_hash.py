"""Learn how many buckets a hashed table needs: `ids.margin` times the distinct values, from every feature that reads it."""

import math
import warnings
from decimal import Decimal

import numpy as np
import pyarrow as pa

from ..config.data import HashIds
from . import decimals, hyperloglog
from .fit_ids import counted_values
from .ids import Hash
from .values import Kind, Place, plain

_MOST_BUCKETS = 2**31 - 2  # ids are int32, and row 0 is no bucket


class HashFit:
    """Estimates the distinct values from their hashes, in memory that does not grow with them; `finish` gives the transform.

    A missing value under `null: token` is a value.

    Args:
        kind: `string` where any of the table's columns is text.
    """

    def __init__(self, table: str, config: HashIds, *, kind: Kind) -> None:
        assert config.margin
        self._table = table
        self._margin = config.margin
        self._hash = Hash(null=config.null, buckets=1, seed=config.seed, kind=kind)
        self._registers = np.zeros(hyperloglog.NUM_REGISTERS, np.uint8)
        self._seen_small = np.zeros(decimals.MOST_SMALL, bool)  # by number: those that a sketch has

    def sketched(self, values: pa.Array, place: Place) -> np.ndarray:
        """The sketch of values [n], which may be dictionary-encoded. Any thread may do this.

        Raises:
            ValueError: for values that cannot be hashed (file, column and row).
        """
        different = self._unseen(counted_values(values)[0])
        try:
            hashes, missing = self._hash.hashes(different, place)
        except ValueError:
            self._hash.hashes(plain(values), place)  # names the row
            raise
        found = hashes[~missing]
        if self._hash.null == "token" and missing.any():
            found = np.append(found, np.uint64(self._hash.hash_of_missing))
        return hyperloglog.registers(found)

    def _unseen(self, different: pa.Array) -> pa.Array:
        """Small numbers that no sketch has: hashing the text of all would be most of the work. Two threads may both find one."""
        if (small := decimals.small(different)) is None:
            return different
        numbers, _ = small
        unseen = numbers[~self._seen_small[numbers]]
        self._seen_small[unseen] = True
        return pa.array(unseen)

    def add(self, registers: np.ndarray) -> None:
        """See also what `sketched` saw."""
        np.maximum(self._registers, registers, out=self._registers)

    def state(self) -> pa.Table:
        """What was seen so far."""
        return pa.table({"register": self._registers})

    def merge(self, state: pa.Table) -> None:
        """See also what another has seen."""
        self.add(state["register"].to_numpy())

    def finish(self) -> Hash:
        """With ceil(margin x distinct values) buckets.

        Raises:
            ValueError: for more than a table can have.
        """
        num_distinct = hyperloglog.estimate(self._registers)
        if not num_distinct:
            warnings.warn(
                f"table {self._table!r}: no value was seen in training, so ids.margin makes one bucket for all", stacklevel=2
            )
        buckets = max(1, math.ceil(Decimal(str(self._margin)) * num_distinct))  # as it was written: 1.1 x 100 is 110
        if buckets > _MOST_BUCKETS:
            raise ValueError(
                f"tables.{self._table}: ids.margin {self._margin:g} x about {num_distinct:,} distinct values makes {buckets:,} "
                f"buckets, and a table has at most {_MOST_BUCKETS:,}; give ids.buckets instead"
            )
        return Hash(null=self._hash.null, buckets=buckets, seed=self._hash.seed, kind=self._hash.kind)
