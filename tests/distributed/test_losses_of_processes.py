"""Two gloo processes with half of the rows each: the average of their gradients is the gradient of one process with all rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from torchrec_models.losses import BranchLoss, InBatchSoftmax, LossOutput, RankingLoss, SelfEnsemble, TriBCE, UncertaintyWeights
from torchrec_models.net import TrainingOutput
from torchrec_models.schema import Task

NUM_ROWS = 12


class Ranking(nn.Module):
    """A linear model of two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8).view(4, 2))
        self.loss = RankingLoss([Task(name="a", positive_weight=2.0), Task(name="b", kind="regression", loss_weight=0.5)])

    def forward(self, rows: dict[str, Tensor]) -> LossOutput:
        return self.loss(rows["x"] @ self.weight, rows["labels"], rows["weights"])


class Branches(nn.Module):
    """Two passes of a linear model and a branch, all auxiliary losses at once, and learnt task weights.

    Tri-BCE is not linear in the losses, so that means of processes would not do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).view(2, 4, 2))
        tasks = [Task(name="a", positive_weight=2.0), Task(name="b")]
        auxiliary = [TriBCE(("first", "second")), SelfEnsemble(("first", "second")), BranchLoss("second", weight=0.3)]
        weighting = UncertaintyWeights(tasks)
        nn.init.constant_(weighting.log_variance_T, 0.5)
        self.loss = RankingLoss(tasks, auxiliary, weighting=weighting)

    def forward(self, rows: dict[str, Tensor]) -> LossOutput:
        first, second = (rows["x"] @ weight for weight in self.weight)
        output = TrainingOutput((first + second) / 3, {"first": first, "second": second})
        return self.loss(output, rows["labels"], rows["weights"])


class Retrieval(nn.Module):
    """Two linear towers."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.linspace(-1, 1, 12).view(4, 3))
        self.candidate = nn.Parameter(torch.linspace(1, -2, 12).view(4, 3))
        self.loss = InBatchSoftmax(5, temperature=0.5, learn_temperature=True)

    def forward(self, rows: dict[str, Tensor]) -> LossOutput:
        return self.loss(rows["x"] @ self.query, rows["x"].flip(1) @ self.candidate, rows["ids"], rows["weights"])


CASES = {"ranking": Ranking, "branches": Branches, "retrieval": Retrieval}


def make_rows(seed: int) -> dict[str, Tensor]:
    """Weights differ between the halves, and in one batch the second half has none."""
    random = torch.Generator().manual_seed(seed)
    weights = torch.rand(NUM_ROWS, 2, generator=random)
    weights[NUM_ROWS // 2 :] *= 0 if seed == 2 else 3
    return {
        "x": torch.randn(NUM_ROWS, 4, generator=random),
        "labels": (torch.rand(NUM_ROWS, 2, generator=random) < 0.4).float(),
        "ids": torch.randint(5, (NUM_ROWS,), generator=random),
        "weights": weights,
    }


def run(case: str, rank: int, world_size: int) -> dict[str, list[Tensor]]:
    """Per batch: loss and gradients, averaged over processes; at the end the buffers of the loss."""
    torch.set_num_threads(1)
    model = CASES[case]()
    out: dict[str, list[Tensor]] = {}
    for seed in range(4):
        mine = slice(rank * NUM_ROWS // world_size, (rank + 1) * NUM_ROWS // world_size)
        model.zero_grad()
        loss = model({name: value[mine] for name, value in make_rows(seed).items()})[0]
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        out[f"batch {seed}"] = []
        for value in (loss.detach(), *gradients.values()):
            assert value is not None
            if world_size > 1:
                dist.all_reduce(value)
            out[f"batch {seed}"].append(value.clone() / world_size)
    out["buffers"] = list(model.buffers())
    return out


def process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({case: run(case, rank, 2) for case in CASES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, list[Tensor]]]]:
    folder: Path = tmp_path_factory.mktemp("losses")
    spawn(process, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_statistics_are_those_of_one_process(case, two):
    expected = run(case, 0, 1)
    assert all(value.any() for value in expected["batch 1"])
    for found in two:
        torch.testing.assert_close(found[case], expected, atol=1e-6, rtol=1e-5)
