"""Factorization machine: first-order weights and the dot products of all pairs of vectors.

Rendle, ICDM 2010, eq. 1 with the linear-time form of lemma 3.1.
"""

import torch
from torch import Tensor, nn

from torchrec_models.layers.fields import FieldStack
from torchrec_models.layers.interaction import FactorizationMachine
from torchrec_models.layers.linear import Linear
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class FM(Net):
    """`y_t = b_t + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`. Several labels share everything but the bias."""

    summary = "factorization machine of second order (Rendle, ICDM 2010)"
    first_order = True

    def __init__(self, spec: InputSpec, config: NetConfig) -> None:
        super().__init__()
        self.spec = spec
        self.fields = FieldStack(spec, who="FM")
        self.dense_weight = Linear(spec.num_dense, 1, bias=False) if spec.num_dense else None
        self.fm = FactorizationMachine()
        self.bias_T = nn.Parameter(torch.empty(spec.num_tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias_T)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs, first_order=True)
        first_B1 = inputs.first_order_BF.sum(dim=1, keepdim=True)
        if self.dense_weight is not None:
            first_B1 = first_B1 + self.dense_weight(inputs.dense_BD)
        return self.bias_T + first_B1 + self.fm(self.fields(inputs))
