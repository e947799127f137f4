"""DeepFM out of FuxiCTR's own parts: its embedding, FM and MLP blocks, its base class, training step and fit loop.

The 2.3.10 wheel ships these parts without the ten lines of its model zoo that join them.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from ..workloads import CodedRows

LABEL = "label"


class DeepFM(BaseModel):
    """Guo et al. 2017, arXiv 1703.04247: sigmoid(first order + FM + MLP), with seconds of every epoch kept.

    Args:
        feature_map: FuxiCTR's description of the inputs.
        embedding_dim: width E of every table.
        hidden_units, net_dropout, batch_norm: of the MLP; ReLU.
        embedding_regularizer: lambda of (lambda / 2) * |table|^2 over whole tables; None for none.
        learning_rate: of Adam.
        work_dir: where `fit` writes its best weights.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        embedding_dim: int,
        hidden_units: list[int],
        net_dropout: float,
        batch_norm: bool,
        embedding_regularizer: float | None,
        learning_rate: float,
        work_dir: Path,
    ) -> None:
        super().__init__(
            feature_map,
            model_id="DeepFM",
            embedding_regularizer=embedding_regularizer,
            verbose=0,
            model_root=str(work_dir),
            metrics=["AUC", "logloss"],
        )
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden_units,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.compile("adam", "binary_crossentropy", learning_rate)
        self.reset_parameters()
        self.model_to_device()
        self._max_gradient_norm = 10.0  # `fit` sets the same; `train_step` alone needs it too
        self.epoch_seconds: list[float] = []
        self._evaluation_seconds = 0.0

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = self.get_inputs(inputs)
        fields_BFE = self.embedding_layer(ids)
        logit_B1 = self.fm(ids, fields_BFE) + self.mlp(fields_BFE.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit_B1)}

    def train_epoch(self, data_generator: Any) -> None:
        start, self._evaluation_seconds = time.perf_counter(), 0.0
        super().train_epoch(data_generator)
        self.epoch_seconds.append(time.perf_counter() - start - self._evaluation_seconds)

    def eval_step(self) -> None:
        start = time.perf_counter()
        super().eval_step()
        self._evaluation_seconds += time.perf_counter() - start


def feature_map(cardinalities: dict[str, int], *, embedding_dim: int, dataset_id: str, folder: Path) -> FeatureMap:
    """Categorical features with FuxiCTR's numbering: 0 padding, 1 .. cardinality known, cardinality + 1 out of vocabulary."""
    out = FeatureMap(dataset_id, str(folder))
    for name, cardinality in cardinalities.items():
        out.features[name] = {"source": "", "type": "categorical", "padding_idx": 0, "vocab_size": cardinality + 2}
    out.labels = [LABEL]
    out.default_emb_dim = embedding_dim
    out.num_fields = out.get_num_fields()
    out.total_features = sum(spec["vocab_size"] for spec in out.features.values())
    out.set_column_index()
    return out


def fuxictr_columns(rows: CodedRows) -> dict[str, np.ndarray]:
    """Columns as its loaders read them: ids from 1 on, and the label."""
    columns = {name: np.where(codes < 0, rows.cardinalities[name] + 1, codes + 1) for name, codes in rows.codes.items()}
    return {**columns, LABEL: rows.labels.astype(np.int64)}


def memory_batches(rows: CodedRows, row_numbers: list[np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Batches held in memory, contiguous int64: the cheapest input that its training step takes."""
    columns = fuxictr_columns(rows)
    return [{name: torch.from_numpy(column[chosen]) for name, column in columns.items()} for chosen in row_numbers]
