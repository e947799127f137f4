"""What flows from the loader to the model."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Batch(Pipelineable):
    """B rows. No field is optional, so none can be forgotten when memory crosses CUDA streams.

    Attributes:
        dense: [B, D] float32; D may be 0.
        sparse: ids to pool; keys are `schema.pooled`, in that order, always (TorchRec freezes the order of the first batch).
        sequence: ids to look up one by one; keys are `schema.jagged`, in that order.
        labels: [B, T] float32.
        weights: [B, max(T, 1)] float32 (without tasks: one column, the weight of the pair); 0 takes the row out of the loss
            and of the metrics.
        row_id: [B] int64, the row's position in its split; -1 marks a padding row.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor
    sequence: KeyedJaggedTensor
    labels: Tensor
    weights: Tensor
    row_id: Tensor

    def _map(self, function: Callable) -> "Batch":
        return Batch(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        return self._map(lambda x: x.to(device=device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        for f in fields(self):
            getattr(self, f.name).record_stream(stream)

    @property
    def num_rows(self) -> int:
        return self.labels.shape[0]
