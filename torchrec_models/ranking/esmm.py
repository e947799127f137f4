"""ESMM: a purchase is a click and then a conversion, and all of it is learnt from all impressions.

Ma et al., SIGIR 2018, arXiv 1804.07931, eq. 2-4. Shapes: B batch, T tasks.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from torchrec_models.losses.auxiliary import AuxiliaryLoss
from torchrec_models.losses.mean import at_least_float32
from torchrec_models.net import Inputs, InputSpec, Net, NetConfig, TrainingOutput
from torchrec_models.ranking.multi_task import Experts
from torchrec_models.ranking.nested import NestedNet, finish


class ESMM(Net):
    """`p(buy) = p(click) p(buy | click)`: each task of the funnel is the one before it, times a conditional probability.

    Each task has a net of its own (the paper's), which gives one logit; only the embeddings are shared. Both losses are over all
    impressions: label `buy` is 1 where a click led to a purchase, 0 everywhere else, and never missing. The conversion rate
    pCVR needs no loss of its own; it is `p(buy) / p(click)` of the predictions, and `conditional_logits` gives its logit.

    Options:
        net: any net.
        funnel: tasks from the first event to the last: (click, buy) are the paper's CTR and CTCVR; it may be longer. Default:
            all tasks, in the order of the config's `labels`. Tasks outside it keep their own logits.
        share: one net with T logits instead of T nets; `{name: mmoe, ...}` makes sense here.

    Raises:
        ValueError: fewer than two tasks; a name in the funnel that is none, is given twice or is a regression.
    """

    summary = "click, conversion and their product over all impressions (Ma et al., SIGIR 2018)"

    class Config(NetConfig):
        net: NestedNet = Field(default_factory=lambda: NestedNet.model_validate({"name": "dnn", "hidden_units": (360, 200, 80)}))
        funnel: tuple[str, ...] = ()
        share: bool = False

    def __init__(self, spec: InputSpec, config: Config) -> None:
        super().__init__()
        self.spec = spec
        self.reads_first_order = config.net.wants_first_order
        self.columns = funnel_columns(spec, config.funnel)
        self.nets: Net | Experts
        if config.share:
            self.nets = config.net.build(spec)
        else:
            self.nets = Experts(spec, config.net, num_experts=spec.num_tasks, width=1)

    @classmethod
    def wants_first_order(cls, config: NetConfig) -> bool:
        assert isinstance(config, ESMM.Config)
        return config.net.wants_first_order

    def auxiliary_losses(self) -> Sequence[AuxiliaryLoss]:
        return self.nets.auxiliary_losses()

    def forward(self, inputs: Inputs) -> Tensor | TrainingOutput:
        self.spec.check(inputs, first_order=self.reads_first_order)
        return finish(self.nets(inputs), self._products, self.auxiliary_losses())

    def conditional_logits(self, inputs: Inputs) -> Tensor:
        """[B, T]: each task of the funnel given the one before it (pCVR); the first one, and tasks outside, as they are."""
        output = self.nets(inputs)
        return (output.logits_BT if isinstance(output, TrainingOutput) else output).flatten(1)

    def _products(self, conditional: Tensor) -> Tensor:
        z = list(at_least_float32(conditional.flatten(1)).unbind(1))
        chain = [z[t] for t in self.columns]
        for task, z_B in zip(self.columns, product_logits(chain)):
            z[task] = z_B
        return torch.stack(z, dim=1)


def product_logits(conditional: list[Tensor]) -> list[Tensor]:
    """Logits of `p_1, p_1 p_2, p_1 p_2 p_3, ...` from those of `p_1, p_2, ...`.

    `1 / (p q) - 1 = e^-a + e^-b + e^-(a + b)` with p = sigmoid(a), q = sigmoid(b): the logit of the product is minus the log of a
    sum of positive terms, in which nothing cancels or overflows however near p and q are to 0 or 1.
    """
    logits = [conditional[0]]
    for b in conditional[1:]:
        a = logits[-1]
        logits.append(-torch.stack([-a, -b, -a - b]).logsumexp(dim=0))
    return logits


def funnel_columns(spec: InputSpec, funnel: tuple[str, ...]) -> list[int]:
    """Where the funnel's tasks are among the logits."""
    names = [task.name for task in spec.tasks]
    chosen = funnel or tuple(names)
    if len(names) < 2 or len(chosen) < 2:
        raise ValueError(f"ESMM needs at least two labels in its funnel, got {', '.join(chosen) or 'none'}")
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"funnel: no label {', '.join(map(repr, unknown))}; there are: {', '.join(names) or 'none'}")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"funnel: every label at most once, got {', '.join(chosen)}")
    wrong = [task.name for task in spec.tasks if task.name in chosen and task.kind != "binary"]
    if wrong:
        raise ValueError(f"funnel: {', '.join(wrong)} is a regression, and ESMM multiplies probabilities; name the binary labels")
    return [names.index(name) for name in chosen]
