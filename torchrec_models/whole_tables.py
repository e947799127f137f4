"""Whole tables with dense gradients, for `mode: unfused`: TorchRec's collection, looked up faster."""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional as F
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor


class WholeTableBags(EmbeddingBagCollection):
    """An EmbeddingBagCollection that reads single-valued features as rows instead of as bags of one.

    The same parameters, keys and results; the dense gradient of `embedding` costs a fraction of `embedding_bag`'s on a CPU.
    TorchRec's sharders know `EmbeddingBagCollection` itself only: this one is for models that are not sharded.

    Args:
        tables, device: as for EmbeddingBagCollection.
        single_valued: features with exactly one id per row.
    """

    def __init__(self, tables: list[EmbeddingBagConfig], *, single_valued: Collection[str], device: torch.device) -> None:
        super().__init__(tables=tables, device=device)
        self.single_valued = frozenset(single_valued)
        self.names = [name for names in get_embedding_names_by_table(tables) for name in names]
        self.widths = [table.embedding_dim for table in tables for _ in table.feature_names]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        bounds = dict(zip(features.keys(), zip(features.offset_per_key(), features.offset_per_key()[1:])))
        pooled: list[Tensor] = []
        for table in self.embedding_bag_configs():
            weight = self.embedding_bags[table.name].weight
            for name in table.feature_names:
                start, stop = bounds[name]
                if name in self.single_valued:
                    pooled.append(F.embedding(features.values()[start:stop], weight))
                    continue
                bag = features[name]
                mode = "mean" if table.pooling == PoolingType.MEAN else "sum"
                pooled.append(F.embedding_bag(bag.values(), weight, bag.offsets(), mode=mode, include_last_offset=True))
        return KeyedTensor(keys=self.names, values=torch.cat(pooled, dim=1), length_per_key=self.widths)
