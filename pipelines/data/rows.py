"""Rows in memory, in the layout of the shards; how rows are picked, joined and made into a `Batch`.

Shapes in names: N rows, D dense features, K single-valued categoricals, T tasks. No Python loop over rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # also loads the torch.ops.fbgemm operators used below

from torchrec_models.batch import Batch
from torchrec_models.schema import Feature, Schema

if TYPE_CHECKING:
    from .transforms import Encoded


def single_valued(schema: Schema) -> tuple[Feature, ...]:
    """Categoricals with exactly one id per row: the columns of `Rows.ids`."""
    return tuple(f for f in schema.features if f.kind == "categorical" and f.max_len == 1)


def list_valued(schema: Schema) -> tuple[Feature, ...]:
    """Features with a varying number of ids per row: the entries of `Rows.lists`."""
    return tuple(f for f in schema.features if f.kind == "sequence" or (f.kind == "categorical" and f.max_len > 1))


@dataclass(frozen=True)
class Rows:
    """N rows.

    Attributes:
        dense: [N, D] float32, in the order of `schema.dense`.
        ids: [N, K] int32, in the order of `single_valued(schema)`. Row-major: picking random rows of a key-major array is
            6 times slower (measured at N 1M, K 26, batch 4096), and the transpose of one batch stays in the CPU's cache.
        lists: per feature of `list_valued(schema)`, (values [n] int32, offsets [N + 1] int64 from 0 to n).
        labels: [N, T] float32.
        weights: [N, max(T, 1)] float32; without tasks (retrieval) there is one column, the weight of the pair.
    """

    dense: Tensor
    ids: Tensor
    lists: tuple[tuple[Tensor, Tensor], ...]
    labels: Tensor
    weights: Tensor

    @property
    def num_rows(self) -> int:
        return self.labels.shape[0]

    @cached_property
    def lengths(self) -> tuple[Tensor, ...]:
        """Per list, [N] int32."""
        return tuple(offsets.diff().to(torch.int32) for _, offsets in self.lists)

    @classmethod
    def from_encoded(
        cls, schema: Schema, encoded: "Encoded", *, labels: Tensor | None = None, weights: Tensor | None = None
    ) -> "Rows":
        """Encoded columns side by side; labels default to 0 and weights to 1."""
        num_rows, num_tasks = encoded.num_rows, len(schema.tasks)
        singles = [torch.from_numpy(encoded.ids[f.name][0]) for f in single_valued(schema)]
        lists = []
        for feature in list_valued(schema):
            values, offsets = encoded.ids[feature.name]
            assert offsets is not None, f"{feature.name} was encoded without offsets"
            lists.append((torch.from_numpy(values), torch.from_numpy(offsets)))
        return cls(
            dense=torch.from_numpy(encoded.dense),
            ids=torch.stack(singles, dim=1) if singles else torch.empty(num_rows, 0, dtype=torch.int32),
            lists=tuple(lists),
            labels=torch.zeros(num_rows, num_tasks) if labels is None else labels,
            weights=torch.ones(num_rows, max(num_tasks, 1)) if weights is None else weights,
        )

    def take(self, index: Tensor) -> "Rows":
        """The rows at `index` [M] int64, in that order; M >= 0, repeats allowed."""
        return Rows(
            dense=self.dense.index_select(0, index),
            ids=self.ids.index_select(0, index),
            lists=tuple(_take_list(*each, lengths, index) for each, lengths in zip(self.lists, self.lengths)),
            labels=self.labels.index_select(0, index),
            weights=self.weights.index_select(0, index),
        )

    def slice(self, start: int, stop: int) -> "Rows":
        """Rows start .. stop - 1 as views (offsets are new)."""
        lists = []
        for values, offsets in self.lists:
            first, last = int(offsets[start]), int(offsets[stop])
            lists.append((values[first:last], offsets[start : stop + 1] - first))
        return Rows(self.dense[start:stop], self.ids[start:stop], tuple(lists), self.labels[start:stop], self.weights[start:stop])

    @staticmethod
    def cat(parts: Sequence["Rows"]) -> "Rows":
        """Parts one after the other; at least one."""
        if len(parts) == 1:
            return parts[0]
        lists = []
        for column in zip(*(p.lists for p in parts)):
            ends = torch.tensor([0, *(int(offsets[-1]) for _, offsets in column)]).cumsum(0)
            offsets = [column[0][1][:1], *(offsets[1:] + end for (_, offsets), end in zip(column, ends))]
            lists.append((torch.cat([values for values, _ in column]), torch.cat(offsets)))
        return Rows(
            dense=torch.cat([p.dense for p in parts]),
            ids=torch.cat([p.ids for p in parts]),
            lists=tuple(lists),
            labels=torch.cat([p.labels for p in parts]),
            weights=torch.cat([p.weights for p in parts]),
        )


def _take_list(values: Tensor, offsets: Tensor, lengths: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    taken = lengths.index_select(0, index)
    out_offsets = torch.cat([offsets.new_zeros(1), taken.cumsum(0)])
    total = int(out_offsets[-1])
    if total == 0:
        return values.new_empty(0), out_offsets
    if len(lengths) < 2 * total:
        # copies whole lists, but sums up all N lengths first; with int32 lengths it is 3 times faster than with int64
        permuted = torch.ops.fbgemm.permute_2D_sparse_data(index.to(torch.int32), lengths[:, None], values, None, total)
        return permuted[1], out_offsets
    # few rows of very many: expands (start, length) of a row into positions; 3 times faster than repeat_interleave + arange
    starts = offsets.index_select(0, index)
    where = torch.ops.fbgemm.expand_into_jagged_permute(
        torch.arange(len(index)), torch.cat([starts, starts[-1:]]), out_offsets, total
    )
    return values.index_select(0, where), out_offsets


KeyPlan = tuple[list[str], list[tuple[bool, int]]]


def key_plans(schema: Schema) -> tuple[KeyPlan, KeyPlan]:
    """Keys of `Batch.sparse` and of `Batch.sequence`, each with (True, column of `Rows.ids`) or (False, entry of `Rows.lists`)."""
    single = {f.name: i for i, f in enumerate(single_valued(schema))}
    lists = {f.name: i for i, f in enumerate(list_valued(schema))}

    def plan(features: Sequence[Feature]) -> KeyPlan:
        return [f.name for f in features], [(f.name in single, single.get(f.name, lists.get(f.name, -1))) for f in features]

    return plan(schema.pooled), plan(schema.jagged)


class BatchBuilder:
    """Makes a `Batch` of `Rows`. Keys of both KeyedJaggedTensors are in schema order, always.

    Ids become key-major ([key 0 of all rows, key 1 of all rows, ...]); ids and lengths are of `id_dtype`.
    """

    def __init__(self, schema: Schema, *, id_dtype: torch.dtype = torch.int64) -> None:
        self._plans = key_plans(schema)
        self._id_dtype = id_dtype

    def __call__(self, rows: Rows, row_id: Tensor) -> Batch:
        ids_KB = rows.ids.to(self._id_dtype).t().contiguous()
        sparse, sequence = (self._keyed(keys, plan, rows, ids_KB) for keys, plan in self._plans)
        return Batch(rows.dense, sparse, sequence, rows.labels, rows.weights, row_id)

    def _keyed(self, keys: list[str], plan: list[tuple[bool, int]], rows: Rows, ids_KB: Tensor) -> KeyedJaggedTensor:
        num_rows, dtype = rows.num_rows, self._id_dtype
        if not keys:
            nothing = torch.empty(0, dtype=dtype)
            return KeyedJaggedTensor(keys=[], values=nothing, lengths=nothing, stride=num_rows)
        if all(is_single for is_single, _ in plan):
            columns = [column for _, column in plan]
            everything = columns == list(range(ids_KB.shape[0]))
            values = (ids_KB if everything else ids_KB[columns]).flatten()
            return KeyedJaggedTensor(keys, values, lengths=torch.ones(len(keys) * num_rows, dtype=dtype), stride=num_rows)
        ones = torch.ones(num_rows, dtype=dtype)
        parts = [ids_KB[at] if is_single else rows.lists[at][0].to(dtype) for is_single, at in plan]
        lengths = [ones if is_single else rows.lists[at][1].diff().to(dtype) for is_single, at in plan]
        return KeyedJaggedTensor(
            keys,
            parts[0] if len(parts) == 1 else torch.cat(parts),
            lengths=lengths[0] if len(lengths) == 1 else torch.cat(lengths),
            stride=num_rows,
        )
