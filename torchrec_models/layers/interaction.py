"""Explicit interactions between field vectors."""

import torch
from torch import Tensor, nn


class FactorizationMachine(nn.Module):
    """Second-order term of a factorization machine, summed over the embedding dimensions.

    `y = sum_{i<j} <v_i, v_j> = 1/2 sum_k [(sum_i v_ik)^2 - sum_i v_ik^2]` (Rendle, ICDM 2010, eq. 5; DeepFM, IJCAI 2017, eq. 2).
    TorchRec's module of the same name applies the identity to all scalars at once, which is another model.

    Shapes:
        [B, N, E] -> [B, 1].
    """

    def forward(self, fields_BNE: Tensor) -> Tensor:
        sum_BE = fields_BNE.sum(dim=1)
        return 0.5 * (sum_BE.square() - fields_BNE.square().sum(dim=1)).sum(dim=1, keepdim=True)


class DotInteraction(nn.Module):
    """All pairwise dot products, row-major below the diagonal: (1,0), (2,0), (2,1), ... (DLRM, arXiv 1906.00091, section 2.1.3).

    The order is that of the authors' code; TorchRec's is the upper triangle.

    Shapes:
        [B, N, E] -> [B, N (N - 1) / 2].
    """

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        self.num_fields = num_fields
        self.num_pairs = num_fields * (num_fields - 1) // 2
        self.flat_index: Tensor
        self.register_buffer("flat_index", torch.empty(self.num_pairs, dtype=torch.int64), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        rows, columns = torch.tril_indices(self.num_fields, self.num_fields, offset=-1, device=self.flat_index.device)
        self.flat_index.copy_(rows * self.num_fields + columns)

    def forward(self, fields_BNE: Tensor) -> Tensor:
        products_BNN = torch.bmm(fields_BNE, fields_BNE.transpose(1, 2))
        return products_BNN.flatten(1).index_select(1, self.flat_index)
