"""A trained model as pure tensor operations: one flat table and one Gather per embedding width, then the model's own net.

Shapes in names: B rows, S slots, D dense features, W stored floats per flat row, F fields, E embedding width, L sequence
length, T tasks, K width of a tower's vector.

An EmbeddingBagCollection exports to one ONNX Loop per table; a Gather over padded ids with a zero row for empty slots gives
the same sums many times faster. Ids arrive as flat rows, see `slots.SlotLayout`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchrec_models.embedding import FIRST_ORDER, EmbeddingLayer
from torchrec_models.model import Ranker, Retriever
from torchrec_models.net import Inputs
from torchrec_models.schema import Schema, Side, Task

from ..calibration import Affine
from ..serving.slots import FeatureSlots, SlotLayout


def table_weights(embedding: EmbeddingLayer) -> dict[str, Tensor]:
    """Every table's stored weight [rows, stored width] by table name, first-order companions included."""
    weights = {name.split(".")[-2]: p.detach() for name, p in embedding.named_parameters()}  # ....<table>.weight
    assert all(w.device.type == "cpu" for w in weights.values())
    assert set(weights) == {t.name for t in embedding.tables}, list(weights)
    return weights


def flat_table(schema: Schema, weights: dict[str, Tensor], slots: Sequence[FeatureSlots], *, first_order: bool) -> Tensor:
    """The tables of one width under each other, [1 + rows, W], below a zero row; W = E, or 1 + E with the first-order weight first.

    Padding columns of the stored width are cut off.
    """
    width = slots[0].width
    first_rows = {schema.feature(s.feature).table: s.first_row for s in slots}
    num_rows = max(s.first_row + s.num_rows for s in slots)
    out = torch.zeros(num_rows, width + first_order)
    for name, first_row in first_rows.items():
        rows = out[first_row : first_row + schema.table(name).num_rows]
        rows[:, first_order:] = weights[name][:, :width]
        if first_order:
            rows[:, 0] = weights[name + FIRST_ORDER][:, 0]
    return out


class FlatEmbedding(nn.Module):
    """ids [B, S] and dense [B, D] -> `Inputs`, equal to what `EmbeddingLayer` gives for the same rows.

    Args:
        side: "" for all features, or one tower's.
    """

    def __init__(self, embedding: EmbeddingLayer, layout: SlotLayout, *, side: Side) -> None:
        super().__init__()
        schema = embedding.schema
        self.first_order = embedding.assemble.parts[0].first_order
        self.groups = [list(group) for _, group in groupby(layout.slots, key=lambda s: s.width)]
        weights = table_weights(embedding)
        tables = [flat_table(schema, weights, group, first_order=self.first_order) for group in self.groups]
        self.tables = nn.ParameterList(nn.Parameter(t, requires_grad=False) for t in tables)
        chosen = [f.name for f in schema.features if not side or f.side == side]
        self.sequences = [f.name for f in schema.sequences if f.name in chosen]
        pooled = [s for s in layout.slots if s.reduce != "none"]
        wanted = [f.name for f in schema.categorical if f.name in chosen]
        self.field_order = _order_of([s.feature for s in pooled], wanted, [1] * len(pooled))
        self.column_order = _order_of([s.feature for s in pooled], wanted, [s.width for s in pooled])

    def forward(self, ids_BS: Tensor, dense_BD: Tensor) -> Inputs:
        columns, first = [], []
        sequences: dict[str, tuple[Tensor, Tensor]] = {}
        for group, table in zip(self.groups, self.tables):
            start = group[0].first_slot
            ids_of_group = _columns(ids_BS, start, group[-1].first_slot + group[-1].num_slots)
            vectors_BSW = F.embedding(ids_of_group, table)
            blocks = []
            for (reduce, num_slots), block in groupby(group, key=lambda s: (s.reduce, s.num_slots)):
                features = list(block)
                begin = features[0].first_slot - start
                end = begin + len(features) * num_slots
                block_BSW, block_ids_BS = _columns(vectors_BSW, begin, end), _columns(ids_of_group, begin, end)
                if reduce == "none":
                    for i, feature in enumerate(features):
                        at = slice(i * num_slots, (i + 1) * num_slots)
                        sequences[feature.feature] = (block_BSW[:, at], block_ids_BS[:, at] != 0)
                else:
                    blocks.append(_reduced(block_BSW, block_ids_BS, len(features), num_slots, mean=reduce == "mean"))
            if blocks:
                fields_BFW = _cat(blocks)
                columns.append(fields_BFW[:, :, self.first_order :].flatten(1))
                first.append(fields_BFW[:, :, 0])
        empty_B0 = dense_BD[:, :0]
        fields_BC = _ordered(_cat(columns), self.column_order) if columns else empty_B0
        first_BF = empty_B0
        if self.first_order:
            weights = [_ordered(_cat(first), self.field_order)] if first else []
            weights += [sequences[name][0][:, :, 0].sum(dim=1, keepdim=True) for name in self.sequences]
            first_BF = _cat(weights) if weights else empty_B0
        return Inputs(
            dense_BD=dense_BD,
            fields_BC=fields_BC,
            first_order_BF=first_BF,
            sequences={name: (sequences[name][0][:, :, self.first_order :], sequences[name][1]) for name in self.sequences},
        )


def _columns(x: Tensor, begin: int, end: int) -> Tensor:
    return x if begin == 0 and end == x.shape[1] else x[:, begin:end]


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _reduced(vectors_BSW: Tensor, ids_BS: Tensor, num_features: int, num_slots: int, *, mean: bool) -> Tensor:
    """[B, F, W]: each feature's slots as one vector; a mean is over the slots that hold an id."""
    if num_slots == 1:
        return vectors_BSW
    total_BFW = vectors_BSW.unflatten(1, (num_features, num_slots)).sum(dim=2)
    if not mean:
        return total_BFW
    count_BF = (ids_BS != 0).unflatten(1, (num_features, num_slots)).sum(dim=2).clamp(min=1)
    return total_BFW / count_BF[:, :, None]


def _order_of(given: list[str], wanted: list[str], widths: list[int]) -> list[int]:
    """Which columns to take of features laid out as `given` so that they stand as `wanted`; [] if they do already."""
    starts = {name: sum(widths[:i]) for i, name in enumerate(given)}
    width = dict(zip(given, widths))
    order = [c for name in wanted for c in range(starts[name], starts[name] + width[name])]
    return [] if order == sorted(order) else order


def _ordered(x_BC: Tensor, order: list[int]) -> Tensor:
    return x_BC.index_select(1, torch.tensor(order)) if order else x_BC


class RankingGraph(nn.Module):
    """ids [B, S], dense [B, D] -> predictions [B, T]: probabilities of binary tasks, values of regression tasks.

    A model without ids or without dense features takes the other one alone.

    Args:
        calibration: of binary tasks by name, applied to their logits.
    """

    def __init__(self, model: Ranker, layout: SlotLayout, calibration: Mapping[str, Affine] = MappingProxyType({})) -> None:
        super().__init__()
        schema = model.embedding.schema
        self.takes = _Inputs(layout.num_slots, len(schema.dense))
        self.embedding = FlatEmbedding(model.embedding, layout, side="")
        self.net = model.net
        self.tasks = schema.tasks
        self.calibration = dict(calibration)

    def forward(self, *tensors: Tensor) -> Tensor:
        logits_BT = self.net(self.embedding(*self.takes.both(tensors)))
        return predictions(calibrated(logits_BT, self.tasks, self.calibration), self.tasks)


class TowerGraph(nn.Module):
    """ids [B, S], dense [B, D] of one side -> vectors [B, K]."""

    def __init__(self, model: Retriever, layout: SlotLayout, side: Side) -> None:
        super().__init__()
        schema = model.embedding.schema
        self.takes = _Inputs(layout.num_slots, sum(f.side == side for f in schema.dense))
        self.embedding = FlatEmbedding(model.embedding, layout, side=side)
        self.tower: Callable[[Inputs], Tensor] = model.net.query if side == "query" else model.net.candidate

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.tower(self.embedding(*self.takes.both(tensors)))


class _Inputs:
    """Which of `ids` and `dense` a graph has."""

    def __init__(self, num_slots: int, num_dense: int) -> None:
        self.num_slots, self.num_dense = num_slots, num_dense
        self.names = [name for name, size in (("ids", num_slots), ("dense", num_dense)) if size]

    def both(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, tensors))
        num_rows = tensors[0].shape[0]
        ids = given["ids"] if self.num_slots else torch.zeros(num_rows, 0, dtype=torch.int64)
        return ids, given["dense"] if self.num_dense else torch.zeros(num_rows, 0)

    def example(self, num_rows: int) -> tuple[Tensor, ...]:
        shapes = {"ids": torch.zeros(num_rows, self.num_slots, dtype=torch.int64), "dense": torch.zeros(num_rows, self.num_dense)}
        return tuple(shapes[name] for name in self.names)


def calibrated(logits_BT: Tensor, tasks: Sequence[Task], calibration: Mapping[str, Affine]) -> Tensor:
    """Scale and shift each task's logits; tasks without calibration stay as they are."""
    if not calibration:
        return logits_BT
    affine = [calibration.get(t.name, Affine()) for t in tasks]
    return logits_BT * torch.tensor([a.scale for a in affine]) + torch.tensor([a.shift for a in affine])


def predictions(logits_BT: Tensor, tasks: Sequence[Task]) -> Tensor:
    """Logits as answers: a probability for a binary task, the value itself for a regression task."""
    binary = [t.kind == "binary" for t in tasks]
    if all(binary):
        return logits_BT.sigmoid()
    if not any(binary):
        return logits_BT
    return torch.where(torch.tensor(binary), logits_BT.sigmoid(), logits_BT)
