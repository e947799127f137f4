"""Logistic regression: one weight per id, one per number.

McMahan et al., KDD 2013 ("Ad click prediction"), section 2, as the model of clicks.
"""

import torch
from torch import Tensor, nn

from torchrec_models.layers.linear import Linear
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig


class LR(Net):
    """`y_t = b_t + sum_f w_t,id(f) + sum_j a_t,j x_j`; a list counts each of its ids.

    The weights of an id are its embedding, so every feature needs `dim: 1`, or as many as there are labels.

    Raises:
        ValueError: features of another dim.
    """

    summary = "logistic regression: one weight per id and label (McMahan et al., KDD 2013)"

    def __init__(self, spec: InputSpec, config: NetConfig) -> None:
        super().__init__()
        widths = {f.name: f.width for f in spec.fields} | {s.name: s.width for s in spec.sequences}
        wrong = [f"{name} has {width}" for name, width in widths.items() if width != spec.num_tasks]
        if wrong:
            raise ValueError(f"LR needs dim: {spec.num_tasks} for every feature, one weight per id and label; {', '.join(wrong)}")
        self.spec = spec
        self.dense_weight = Linear(spec.num_dense, spec.num_tasks, bias=False) if spec.num_dense else None
        self.bias_T = nn.Parameter(torch.empty(spec.num_tasks))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias_T)

    def forward(self, inputs: Inputs) -> Tensor:
        self.spec.check(inputs)
        logits_BT = self.bias_T + inputs.fields_BC.unflatten(1, (len(self.spec.fields), self.spec.num_tasks)).sum(dim=1)
        for values_BLT, _ in inputs.sequences.values():
            logits_BT = logits_BT + values_BLT.sum(dim=1)
        if self.dense_weight is not None:
            logits_BT = logits_BT + self.dense_weight(inputs.dense_BD)
        return logits_BT
