"""Schema -> TorchRec collections; Batch -> Inputs.

Only `EmbeddingLayer.forward` is traced by TorchRec's pipeline, and it must stay as plain as it is: collections get an
attribute of the batch, nothing touches a KeyedJaggedTensor before its collection. All shaping happens in `InputAssembler`,
which holds no table and is therefore a leaf to the tracer: any Python is legal there.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from torchrec_models.batch import Batch
from torchrec_models.net import Inputs
from torchrec_models.schema import Feature, Schema, Side
from torchrec_models.whole_tables import WholeTableBags

FIRST_ORDER = "_first_order"


def stored_width(width: int, multiple: int) -> int:
    """Columns that a table of `width` occupies: FBGEMM's fused kernels want a multiple of 4, the rest stays zero."""
    return -(-width // multiple) * multiple


def init_normal(weight: Tensor, *, width: int, std: float) -> Tensor:
    """N(0, std) in the first `width` columns, zero in the padding columns."""
    with torch.no_grad():
        weight.zero_()
        weight[..., :width].normal_(0.0, std)  # TorchRec also calls it with the empty 1-D shard of a process without rows
    return weight


class EmbeddingLayer(nn.Module):
    """All tables of a schema: one EmbeddingBagCollection for pooled features, one EmbeddingCollection per width for jagged ones.

    Args:
        schema: features and tables.
        first_order: give every table a 1-wide companion (`<table>_first_order`), as LR, FM and DeepFM need.
        width_multiple: round stored widths up to this multiple (4 for fused kernels); padding columns stay zero.
        sides: () for a ranker (forward returns one `Inputs`), or the towers (forward returns one `Inputs` per side).
        device: "meta" when the tables will be sharded.
        whole_tables: the tables will not be sharded, and have dense gradients: look them up in the way that suits this.

    Raises:
        ValueError: if features that share a table ask for different pooling.
    """

    def __init__(
        self,
        schema: Schema,
        *,
        first_order: bool = False,
        width_multiple: int = 1,
        sides: Sequence[Side] = (),
        device: torch.device | str = "cpu",
        whole_tables: bool = False,
    ) -> None:
        super().__init__()
        self.schema = schema
        self.first_order = first_order
        device = torch.device(device)
        self.tables = schema.tables
        if first_order:
            self.tables += tuple(replace(t, name=t.name + FIRST_ORDER, dim=1) for t in schema.tables)
        bags: list[EmbeddingBagConfig] = []
        jagged: dict[tuple[int, bool], list[EmbeddingConfig]] = {}
        for i, table in enumerate(self.tables):
            is_first = i >= len(schema.tables)
            base = schema.tables[i % len(schema.tables)].name
            readers = [f for f in schema.features if f.table == base]
            common: dict[str, Any] = {
                "name": table.name,
                "num_embeddings": table.num_rows,
                "embedding_dim": stored_width(table.dim, width_multiple),
                "feature_names": [f.name for f in readers],
                "init_fn": partial(init_normal, width=table.dim, std=table.init_std),
            }
            if base in schema.sequence_tables:
                jagged.setdefault((common["embedding_dim"], is_first), []).append(EmbeddingConfig(**common))
            else:
                bags.append(EmbeddingBagConfig(**common, pooling=_pooling(base, readers)))
        self.ebc: EmbeddingBagCollection | None = None
        if bags and whole_tables:
            single_valued = [f.name for f in schema.pooled if f.max_len == 1]
            self.ebc = WholeTableBags(bags, single_valued=single_valued, device=device)
        elif bags:
            self.ebc = EmbeddingBagCollection(tables=bags, device=device)
        self.ecs = nn.ModuleList(EmbeddingCollection(tables=configs, device=device) for configs in jagged.values())
        self.assemble = InputAssembler(schema, first_order=[is_first for _, is_first in jagged], sides=sides, weights=first_order)

    def forward(self, batch: Batch) -> Inputs | tuple[Inputs, ...]:
        pooled = self.ebc(batch.sparse) if self.ebc is not None else None
        jagged = [ec(batch.sequence) for ec in self.ecs]
        return self.assemble(batch.dense, pooled, jagged)


def _pooling(table: str, readers: list[Feature]) -> PoolingType:
    bags = [f for f in readers if f.max_len > 1]
    poolings = {f.pooling for f in bags} or {"sum"}
    if len(poolings) > 1:
        names = ", ".join(f"{f.name}: {f.pooling}" for f in bags)
        raise ValueError(f"table {table!r} is pooled in two ways ({names}); give these features tables of their own")
    return PoolingType.MEAN if poolings == {"mean"} else PoolingType.SUM


class InputAssembler(nn.Module):
    """Embedding outputs -> `Inputs`, in schema order, padding columns cut off.

    Args:
        weights: whether tables have 1-wide companions.
        first_order: for each jagged collection, whether it holds such companions.
    """

    def __init__(self, schema: Schema, *, weights: bool, first_order: Sequence[bool], sides: Sequence[Side]) -> None:
        super().__init__()
        self.first_order = first_order
        self.parts = [_Part(schema, side, weights) for side in sides or ("",)]
        self.stretches = [s.keys for part in self.parts for s in (*part.vectors, *part.weights) if s.keys]
        self.split_by_side = bool(sides)

    def forward(
        self, dense_BD: Tensor, pooled: KeyedTensor | None, jagged: list[dict[str, JaggedTensor]]
    ) -> Inputs | tuple[Inputs, ...]:
        columns = cut_columns(pooled, self.stretches) if pooled is not None else {}
        tokens: dict[str, JaggedTensor] = {}
        weights: dict[str, JaggedTensor] = {}
        for is_first, part in zip(self.first_order, jagged):
            (weights if is_first else tokens).update(part)
        out = tuple(part(dense_BD, columns, tokens, weights) for part in self.parts)
        return out if self.split_by_side else out[0]


class _Segment(NamedTuple):
    """Neighbouring categorical features, all of them pooled or all jagged, all of one width."""

    features: list[Feature]
    width: int
    keys: tuple[str, ...]  # of the EmbeddingBagCollection's output; () if jagged


class _Part:
    """The features of one tower (or all of them) and where their vectors come from."""

    def __init__(self, schema: Schema, side: Side, first_order: bool) -> None:
        mine = [f for f in schema.features if not side or f.side == side]
        self.dense = [i for i, f in enumerate(schema.dense) if not side or f.side == side]
        self.all_dense = len(self.dense) == len(schema.dense)
        self.sequences = [f for f in mine if f.kind == "sequence"]
        self.width = {f.name: schema.table(f.table).dim for f in mine if f.table}
        self.first_order = first_order
        self.vectors: list[_Segment] = []
        self.weights: list[_Segment] = []
        fields = [f for f in mine if f.kind == "categorical"]
        for (is_jagged, width), group in groupby(fields, key=lambda f: (f.table in schema.sequence_tables, self.width[f.name])):
            features = list(group)
            for suffix, segments in (("", self.vectors), (FIRST_ORDER, self.weights))[: 1 + first_order]:
                # a feature that two tables of one collection read is emitted as feature@table
                keys = () if is_jagged else tuple(f"{f.name}@{f.table}{suffix}" if first_order else f.name for f in features)
                segments.append(_Segment(features, 1 if suffix else width, keys))

    def __call__(
        self,
        dense_BD: Tensor,
        columns: dict[tuple[str, ...], Tensor],
        tokens: dict[str, JaggedTensor],
        weights: dict[str, JaggedTensor],
    ) -> Inputs:
        fields = [_vectors(s, columns, tokens) for s in self.vectors]
        first = [_vectors(s, columns, weights) for s in self.weights]
        if self.first_order:
            first += [_padded(weights[f.name], f.max_len, 1)[0].sum(dim=1) for f in self.sequences]
        empty_B0 = dense_BD.new_zeros((dense_BD.shape[0], 0))
        return Inputs(
            dense_BD=dense_BD if self.all_dense else dense_BD[:, self.dense],
            fields_BC=_cat(fields) if fields else empty_B0,
            first_order_BF=_cat(first) if first else empty_B0,
            sequences={f.name: _padded(tokens[f.name], f.max_len, self.width[f.name]) for f in self.sequences},
        )


def cut_columns(pooled: KeyedTensor, stretches: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Tensor]:
    """[B, ...] per stretch: the stored columns of its keys side by side.

    The order of the keys is the collection's own, and sharding changes it. Keys that lie next to each other are cut out
    as one view by one `split` for all stretches: cutting and joining 26 tables one by one costs more than looking them up.

    Args:
        stretches: lists of keys that have none in common.
    """
    position = {key: i for i, key in enumerate(pooled.keys())}
    lengths = pooled.length_per_key()
    runs: list[list[list[int]]] = []  # per stretch: [first key, behind the last key] of each run of neighbours
    for stretch in stretches:
        runs.append([])
        for i in (position[key] for key in stretch):
            if runs[-1] and runs[-1][-1][1] == i:
                runs[-1][-1][1] = i + 1
            else:
                runs[-1].append([i, i + 1])
    cuts = sorted({0, len(lengths), *(i for stretch in runs for run in stretch for i in run)})
    blocks = dict(zip(cuts, pooled.values().split([sum(lengths[a:b]) for a, b in pairwise(cuts)], dim=1)))
    return {stretch: _cat([blocks[begin] for begin, _ in of_stretch]) for stretch, of_stretch in zip(stretches, runs)}


def _vectors(s: _Segment, columns: dict[tuple[str, ...], Tensor], jagged: dict[str, JaggedTensor]) -> Tensor:
    """[B, features * width]: the segment's vectors in order, padding columns cut off."""
    if not s.keys:
        return _cat([_one_vector(jagged[f.name], f, s.width) for f in s.features])
    stored_BC = columns[s.keys]
    if stored_BC.shape[1] == len(s.keys) * s.width:
        return stored_BC
    return stored_BC.unflatten(1, (len(s.keys), -1))[:, :, : s.width].flatten(1)


def _one_vector(tokens: JaggedTensor, f: Feature, width: int) -> Tensor:
    """[B, width]: the only id's vector, or the pooled one, of a categorical that shares a sequence's table."""
    if f.max_len == 1:
        return _narrowed(tokens.values(), width)
    values_BLE, mask_BL = _padded(tokens, f.max_len, width)
    total_BE = values_BLE.sum(dim=1)
    return total_BE / mask_BL.sum(dim=1, keepdim=True).clamp(min=1) if f.pooling == "mean" else total_BE


def _padded(tokens: JaggedTensor, max_len: int, width: int) -> tuple[Tensor, Tensor]:
    """([B, L, width], [B, L] bool): the ids of each row at the left, zeros behind."""
    values_BLE = tokens.to_padded_dense(desired_length=max_len)
    mask_BL = torch.arange(max_len, device=values_BLE.device) < tokens.lengths()[:, None]
    return _narrowed(values_BLE, width), mask_BL


def _narrowed(x: Tensor, width: int) -> Tensor:
    """The first `width` of the last dimension. A slice of everything would cost a copy in backward."""
    return x if x.shape[-1] == width else x[..., :width]


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
