"""Embedding layer + net = model; model + loss = what a training pipeline drives.

`TrainTask.forward`, `Ranker.forward`, `Retriever.forward` and `EmbeddingLayer.forward` are traced by TorchRec; nets and losses
are leaves. Keep these four free of anything but calls and attributes.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchrec_models.batch import Batch
from torchrec_models.embedding import EmbeddingLayer
from torchrec_models.losses import InBatchSoftmax, LossOutput, RankingLoss, TaskWeighting
from torchrec_models.net import InputSpec, Net, TrainingOutput, find_class
from torchrec_models.ranking import NETS
from torchrec_models.schema import Schema
from torchrec_models.towers import TOWERS, TwoTower


class Ranker(nn.Module):
    """Batch -> logits [B, T], or what the net returns in training (see `TrainingOutput`)."""

    def __init__(self, embedding: EmbeddingLayer, net: Net) -> None:
        super().__init__()
        self.embedding = embedding
        self.net = net

    def forward(self, batch: Batch) -> Tensor | TrainingOutput:
        return self.net(self.embedding(batch))


class Retriever(nn.Module):
    """Batch -> (query vectors [B, K], candidate vectors [B, K])."""

    def __init__(self, embedding: EmbeddingLayer, net: TwoTower) -> None:
        super().__init__()
        self.embedding = embedding
        self.net = net

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        sides = self.embedding(batch)
        return self.net(sides[0], sides[1])


class RankingTask(nn.Module):
    """(loss, (losses [B, T], logits [B, T], labels [B, T], weights [B, T])), the form that TorchRec's pipelines want."""

    def __init__(self, model: Ranker, loss: RankingLoss) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: Batch) -> LossOutput:
        return self.loss(self.model(batch), batch.labels, batch.weights, batch.row_id)


class RetrievalTask(nn.Module):
    """(loss, (losses [B, 1], positive's score [B, 1], ones [B, 1], weights [B, 1]))."""

    def __init__(self, model: Retriever, loss: InBatchSoftmax, candidate_id: "CandidateId") -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.candidate_id = candidate_id

    def forward(self, batch: Batch) -> LossOutput:
        vectors = self.model(batch)
        return self.loss(vectors[0], vectors[1], self.candidate_id(batch), batch.weights)


class CandidateId(nn.Module):
    """Batch -> table row of each row's candidate [B]."""

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self.name = schema.candidate_id
        self.jagged = schema.feature(self.name).table in schema.sequence_tables

    def forward(self, batch: Batch) -> Tensor:
        return (batch.sequence if self.jagged else batch.sparse)[self.name].values()


TrainTask = RankingTask | RetrievalTask


def net_classes() -> dict[str, type[Net] | type[TwoTower]]:
    """Every net of this library by its config name."""
    return {**NETS, **TOWERS}


def net_class(name: str) -> type[Net] | type[TwoTower]:
    """The class behind `model.name`: a known name, or `package.module:Class` of your own.

    Raises:
        ValueError: unknown name, module or class.
    """
    return find_class(name, net_classes(), (Net, TwoTower))


def is_retrieval(name: str) -> bool:
    return issubclass(net_class(name), TwoTower)


def build(
    schema: Schema,
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str = "cpu",
    table_device: torch.device | str | None = None,
    width_multiple: int = 1,
    whole_tables: bool = False,
    weighting: TaskWeighting | None = None,
) -> TrainTask:
    """A trainable model from a schema and a net's name and options.

    Args:
        schema: features, tables, tasks.
        name: see `net_class`.
        options: the net's own config.
        device: of the dense part.
        table_device: of the tables; "meta" when they will be sharded. Default: `device`.
        width_multiple, whole_tables: see `EmbeddingLayer`.
        weighting: of a ranking net's tasks, see `RankingLoss`.

    Raises:
        ValueError: unknown net; features that it cannot take.
    """
    cls = net_class(name)
    embedding = partial(
        EmbeddingLayer, schema, width_multiple=width_multiple, device=table_device or device, whole_tables=whole_tables
    )
    if issubclass(cls, TwoTower):
        _check_sides(schema, name)
        config = cls.Config(**(options or {}))
        net = cls(InputSpec.from_schema(schema, side="query"), InputSpec.from_schema(schema, side="candidate"), config)
        retriever = Retriever(embedding(sides=("query", "candidate")), net.to(device))
        loss = InBatchSoftmax(
            schema.table(schema.feature(schema.candidate_id).table).num_rows,
            temperature=config.temperature,
            learn_temperature=config.learn_temperature,
            log_q=config.log_q,
            mask_hits=config.mask_hits,
        )
        return RetrievalTask(retriever, loss.to(device), CandidateId(schema))
    if not schema.tasks:
        raise ValueError(f"{name} needs at least one label")
    net_config = cls.Config(**(options or {}))
    ranking_net = cls(InputSpec.from_schema(schema), net_config)
    ranker = Ranker(embedding(first_order=cls.wants_first_order(net_config)), ranking_net.to(device))
    ranking_loss = RankingLoss(schema.tasks, ranking_net.auxiliary_losses(), weighting=weighting)
    return RankingTask(ranker, ranking_loss.to(device))


def _check_sides(schema: Schema, name: str) -> None:
    if not schema.candidate_id:
        raise ValueError(f"{name} needs a schema with a candidate_id")
    without = [f.name for f in schema.features if not f.side]
    if without:
        raise ValueError(f"every feature of a retriever needs a side; without one: {', '.join(without)}")
    if all(f.side == "candidate" for f in schema.features):
        raise ValueError(f"{name} needs two sides, and no feature has side: query")
