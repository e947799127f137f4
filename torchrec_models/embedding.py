"""Schema -> TorchRec collections; Batch -> Inputs.

Only `EmbeddingLayer.forward` is traced by TorchRec's pipeline, and it must stay as plain as it is: collections get an
attribute of the batch, nothing touches a KeyedJaggedTensor before its collection. All shaping happens in `InputAssembler`,
which holds no table and is therefore a leaf to the tracer: any Python is legal there.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from torchrec_models.batch import Batch
from torchrec_models.net import Inputs
from torchrec_models.schema import Feature, Schema, Side, Table

FIRST_ORDER = "_first_order"


def stored_width(width: int, multiple: int) -> int:
    """Columns that a table of `width` occupies: FBGEMM's fused kernels want a multiple of 4, the rest stays zero."""
    return -(-width // multiple) * multiple


def init_normal(weight: Tensor, *, width: int, std: float) -> Tensor:
    """N(0, std) in the first `width` columns, zero in the padding columns."""
    with torch.no_grad():
        weight.zero_()
        weight[:, :width].normal_(0.0, std)
    return weight


class EmbeddingLayer(nn.Module):
    """All tables of a schema: one EmbeddingBagCollection for pooled features, one EmbeddingCollection per width for jagged ones.

    Args:
        schema: features and tables.
        first_order: give every table a 1-wide companion (`<table>_first_order`), as LR, FM and DeepFM need.
        width_multiple: round stored widths up to this multiple (4 for fused kernels); padding columns stay zero.
        sides: () for a ranker (forward returns one `Inputs`), or the towers (forward returns one `Inputs` per side).
        device: "meta" when the tables will be sharded.

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
    ) -> None:
        super().__init__()
        self.schema = schema
        device = torch.device(device)
        tables = list(schema.tables)
        if first_order:
            tables += [
                Table(name=t.name + FIRST_ORDER, num_rows=t.num_rows, dim=1, init_std=t.init_std) for t in schema.tables
            ]
        self.tables = tuple(tables)
        bags: list[EmbeddingBagConfig] = []
        jagged: dict[tuple[int, bool], list[EmbeddingConfig]] = {}
        for table in tables:
            base = table.name.removesuffix(FIRST_ORDER) if first_order else table.name
            readers = [f for f in schema.features if f.table == base]
            width = stored_width(table.dim, width_multiple)
            init = partial(init_normal, width=table.dim, std=table.init_std)
            names = [f.name for f in readers]
            if base in schema.sequence_tables:
                jagged.setdefault((width, table.name != base), []).append(
                    EmbeddingConfig(
                        num_embeddings=table.num_rows, embedding_dim=width, name=table.name, feature_names=names, init_fn=init
                    )
                )
            else:
                bags.append(
                    EmbeddingBagConfig(
                        num_embeddings=table.num_rows,
                        embedding_dim=width,
                        name=table.name,
                        feature_names=names,
                        init_fn=init,
                        pooling=_pooling(base, readers),
                    )
                )
        self.ebc = EmbeddingBagCollection(tables=bags, device=device) if bags else None
        self.ecs = nn.ModuleList(EmbeddingCollection(tables=configs, device=device) for configs in jagged.values())
        self.assemble = InputAssembler(schema, first_order=[is_first for _, is_first in jagged], sides=sides, weights=first_order)

    def forward(self, batch: Batch) -> Inputs | tuple[Inputs, ...]:
        pooled = self.ebc(batch.sparse) if self.ebc is not None else None
        jagged = [ec(batch.sequence) for ec in self.ecs]
        return self.assemble(batch.dense, pooled, jagged)


def _pooling(table: str, readers: list[Feature]) -> PoolingType:
    poolings = {f.pooling for f in readers if f.max_len > 1} or {"sum"}
    if len(poolings) > 1:
        names = ", ".join(f"{f.name}: {f.pooling}" for f in readers)
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
        self.split_by_side = bool(sides)

    def forward(
        self, dense_BD: Tensor, pooled: KeyedTensor | None, jagged: list[dict[str, JaggedTensor]]
    ) -> Inputs | tuple[Inputs, ...]:
        columns = dict(zip(pooled.keys(), pooled.values().split(pooled.length_per_key(), dim=1))) if pooled is not None else {}
        tokens: dict[str, JaggedTensor] = {}
        weights: dict[str, JaggedTensor] = {}
        for is_first, part in zip(self.first_order, jagged):
            for name, value in part.items():
                (weights if is_first else tokens)[name] = value
        out = tuple(part(dense_BD, columns, tokens, weights) for part in self.parts)
        return out if self.split_by_side else out[0]


class _Part:
    """The features of one tower (or all of them) and where their vectors come from."""

    def __init__(self, schema: Schema, side: Side, first_order: bool) -> None:
        mine = [f for f in schema.features if not side or f.side == side]
        self.dense = [i for i, f in enumerate(schema.dense) if not side or f.side == side]
        self.all_dense = len(self.dense) == len(schema.dense)
        self.fields = [f for f in mine if f.kind == "categorical"]
        self.sequences = [f for f in mine if f.kind == "sequence"]
        self.width = {f.name: schema.table(f.table).dim for f in mine if f.table}
        self.jagged = schema.sequence_tables
        self.first_order = first_order

    def __call__(
        self,
        dense_BD: Tensor,
        columns: dict[str, Tensor],
        tokens: dict[str, JaggedTensor],
        weights: dict[str, JaggedTensor],
    ) -> Inputs:
        vector: Callable[[Feature, str, int], Tensor] = partial(self._vector, columns=columns)
        fields = [vector(f, "", self.width[f.name], jagged=tokens) for f in self.fields]
        first = [vector(f, FIRST_ORDER, 1, jagged=weights) for f in self.fields] if self.first_order else []
        if self.first_order:
            first += [_padded(weights[f.name], f.max_len)[0][:, :, :1].sum(dim=1) for f in self.sequences]
        sequences = {}
        for f in self.sequences:
            values_BLE, mask_BL = _padded(tokens[f.name], f.max_len)
            sequences[f.name] = (values_BLE[:, :, : self.width[f.name]], mask_BL)
        empty = dense_BD.new_zeros((dense_BD.shape[0], 0))
        return Inputs(
            dense_BD=dense_BD if self.all_dense else dense_BD[:, self.dense],
            fields_BC=torch.cat(fields, dim=1) if fields else empty,
            first_order_BF=torch.cat(first, dim=1) if first else empty,
            sequences=sequences,
        )

    def _vector(
        self, f: Feature, suffix: str, width: int, *, columns: dict[str, Tensor], jagged: dict[str, JaggedTensor]
    ) -> Tensor:
        """[B, width]: the feature's pooled vector, or its only one."""
        if f.table not in self.jagged:
            # a feature that two tables of one collection read is emitted as feature@table
            name = f"{f.name}@{f.table}{suffix}" if self.first_order else f.name
            return columns[name][:, :width]
        if f.max_len == 1:
            return jagged[f.name].values()[:, :width]
        values_BLE, mask_BL = _padded(jagged[f.name], f.max_len)
        total = values_BLE[:, :, :width].sum(dim=1)
        return total / mask_BL.sum(dim=1, keepdim=True).clamp(min=1) if f.pooling == "mean" else total


def _padded(tokens: JaggedTensor, max_len: int) -> tuple[Tensor, Tensor]:
    """([B, L, E], [B, L] bool): the ids of each row at the left, zeros behind."""
    values_BLE = tokens.to_padded_dense(desired_length=max_len)
    mask_BL = torch.arange(max_len, device=values_BLE.device) < tokens.lengths()[:, None]
    return values_BLE, mask_BL
