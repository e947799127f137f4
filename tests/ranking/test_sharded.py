"""Every net as the trainer builds it: sharded tables under TorchRec's pipeline, and a dense part that torch.compile can capture."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import CASES
from fixtures import make_batch, make_inputs
from torch import Tensor
from torch._dynamo.exc import Unsupported
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from worker import make_config

from torchrec_models.model import build
from torchrec_models.net import InputSpec, TrainingOutput
from torchrec_models.pipelines.distributed import Processes, build_task, processes, unpipelined
from torchrec_models.pipelines.optim import TrainOptimizer
from torchrec_models.ranking import NETS
from torchrec_models.schema import Schema

each_case = pytest.mark.parametrize("case", CASES)
# dynamo takes a second or two for a case: one of each net, the first in the list
each_net = pytest.mark.parametrize("case", {one.name: case for case, one in reversed(CASES.items())}.values())


def schema_of(case: str) -> Schema:
    """With every kind of feature."""
    assert "everything" not in CASES[case].refuses, "give this case a schema of its own"
    return CASES[case].schema("everything")


@pytest.fixture(scope="module")
def procs() -> Iterator[Processes]:
    with processes() as procs:
        yield procs


@each_case
def test_collections_are_pipelined_and_state_keys_are_those_of_the_plain_model(case: str, procs: Processes) -> None:
    name, schema = CASES[case].name, schema_of(case)
    config = make_config(Path("unused"), "unused").model_copy(update={"model": {"name": name, **CASES[case].options}})
    built = build_task(config, schema, procs)
    optimizer = TrainOptimizer(built.task, config.train, num_steps=3, tables=built.embedding_parameters)
    pipeline = TrainPipelineSparseDist(built.task, optimizer, procs.device)
    batches = iter([make_batch(schema, 16, seed=seed) for seed in range(3)])
    before = {key: value.clone() for key, value in built.plain.model.net.state_dict().items()}
    for _ in range(3):
        output = pipeline.progress(batches)
        assert output[0].isfinite().all()
    assert unpipelined(built, pipeline) == []
    assert built.state_dict().keys() == build(schema, name, CASES[case].options).state_dict().keys()
    after = built.plain.model.net.state_dict()
    assert not before or any(not torch.equal(before[key], after[key]) for key in before), "no step was taken"


@each_net
def test_is_captured_whole_by_torch_compile(case: str) -> None:
    """In training and in evaluation, forward and backward, to the numbers of eager mode; without a break, unless the net names it.

    Training with dropout is captured, too, but not compared: eager mode has masks of its own (layers/dropout.py).
    """
    spec = InputSpec.from_schema(schema_of(case))
    cls, options = NETS[CASES[case].name], CASES[case].options
    torch.manual_seed(0)
    net = cls(spec, cls.Config(**options))
    inputs = make_inputs(spec, 12, first_order=cls.wants_first_order(cls.Config(**options)))
    if net.uncompiled:
        with pytest.raises(Unsupported):
            torch.compile(net, backend="aot_eager", fullgraph=True)(inputs)
        torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=not net.uncompiled)
    for training in (True, False):
        net.train(training)
        expected, again, found = logits_of(net(inputs)), logits_of(net(inputs)), compiled(inputs)
        assert isinstance(found, TrainingOutput) == (training and bool(net.auxiliary_losses()))
        if not training or torch.equal(expected, again):
            torch.testing.assert_close(logits_of(found), expected, atol=1e-5, rtol=1e-5)
        logits_of(found).sum().backward()
    torch.compiler.reset()


def logits_of(output: Tensor | TrainingOutput) -> Tensor:
    return output.logits_BT if isinstance(output, TrainingOutput) else output
