from dataclasses import replace

import pytest
import torch
from fixtures import RETRIEVAL_SCHEMA, SCHEMAS, categorical, make_batch, make_schema
from pydantic import ValidationError

from torchrec_models.model import Ranker, RankingTask, RetrievalTask, Retriever, build, is_retrieval, net_class, net_classes
from torchrec_models.net import Net
from torchrec_models.ranking import NETS
from torchrec_models.ranking.deepfm import DeepFM
from torchrec_models.towers import TOWERS
from torchrec_models.towers.two_tower import TwoTower


class MyNet(Net):
    """A net of one's own."""

    def __init__(self, spec, config):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(spec.num_tasks))

    def forward(self, inputs):
        return inputs.fields_BC.sum(dim=1, keepdim=True) * self.scale


class NotANet:
    pass


def test_net_class():
    assert net_class("deepfm") is DeepFM and net_class("two_tower") is TwoTower
    assert net_classes() == {**NETS, **TOWERS}
    assert is_retrieval("two_tower") and not is_retrieval("dlrm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depfm", "given 'depfm'; allowed: autoint, .*deepfm, .*two_tower, or package.module:Class"),
        ("", "given ''; allowed"),
        ("no_such_package.nets:MyNet", "cannot import it: No module named 'no_such_package'"),
        ("torchrec_models.net:MyNet", "cannot import it: .*no attribute 'MyNet'"),
        ("torchrec_models.net:InputSpec", "must be a subclass of torchrec_models.net.Net"),
        (f"{__name__}:NotANet", "must be a subclass of torchrec_models.net.Net"),
    ],
)
def test_unknown_nets_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        net_class(name)


def test_a_net_of_ones_own():
    task = build(SCHEMAS["everything"], f"{__name__}:MyNet")
    assert type(task.model.net).__name__ == "MyNet"
    assert task(make_batch(SCHEMAS["everything"], 4))[0].isfinite()


# options without which a net refuses to be built
NEEDED: dict[str, dict] = {"dare": {"encoder": {"shared_tables": True}}, "dbmtl": {"relations": {"buy": ("click",)}}}


@pytest.mark.parametrize("name", NETS)
def test_every_net_builds_and_trains_one_step(name):
    schema = SCHEMAS["everything"]
    if name == "lr":  # its embeddings are weights, one per label
        schema = replace(schema, tables=tuple(replace(table, dim=len(schema.tasks)) for table in schema.tables))
    torch.manual_seed(0)
    task = build(schema, name, NEEDED.get(name))
    assert isinstance(task, RankingTask) and isinstance(task.model, Ranker)
    assert (task.model.embedding.first_order) == NETS[name].first_order
    batch = make_batch(schema, 32)
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-3)
    before = task.eval()(batch)[0]  # without dropout, which would be another function each time
    task.train()(batch)[0].backward()
    optimizer.step()
    assert task.eval()(batch)[0] < before


def test_state_keys():
    """Checkpoints are read by name."""
    ranker = build(SCHEMAS["target_and_history"], "deepfm", {"hidden_units": (4,)}).model
    assert set(ranker.state_dict()) == {
        "embedding.ebc.embedding_bags.user.weight",
        "embedding.ebc.embedding_bags.user_first_order.weight",
        "embedding.ecs.0.embeddings.item.weight",
        "embedding.ecs.1.embeddings.item_first_order.weight",
        "net.fields.numeric_DE",
        "net.dense_weight.weight",
        "net.mlp.linears.0.weight",
        "net.mlp.linears.0.bias",
        "net.mlp.out.weight",
        "net.mlp.out.bias",
    }


def test_tables_on_another_device():
    task = build(SCHEMAS["everything"], "deepfm", table_device="meta")
    devices = {name: p.device.type for name, p in task.named_parameters()}
    assert {kind for name, kind in devices.items() if name.startswith("model.embedding.")} == {"meta"}
    assert {kind for name, kind in devices.items() if not name.startswith("model.embedding.")} == {"cpu"}


@pytest.mark.parametrize(
    ("schema", "name", "options", "message"),
    [
        (make_schema([categorical("a")], tasks=()), "deepfm", {}, "deepfm needs at least one label"),
        (SCHEMAS["everything"], "two_tower", {}, "two_tower needs a schema with a candidate_id"),
        (make_schema([categorical("a"), categorical("b")], dims={"b": 4}), "dlrm", {}, "DLRM needs the same dim for every feature"),
        (make_schema([categorical("a")]), "dlrm", {}, "dot needs two vectors"),
        (
            make_schema([categorical("u"), categorical("i", side="candidate")], tasks=(), candidate_id="i"),
            "two_tower",
            {},
            "every feature of a retriever needs a side; without one: u",
        ),
        (
            make_schema([categorical("i", side="candidate")], tasks=(), candidate_id="i"),
            "two_tower",
            {},
            "no feature has side: query",
        ),
    ],
)
def test_schemas_that_do_not_fit_are_refused(schema, name, options, message):
    with pytest.raises(ValueError, match=message):
        build(schema, name, options)


def test_a_misspelt_option_is_refused():
    with pytest.raises(ValidationError, match="hiden_units"):
        build(SCHEMAS["pooled"], "deepfm", {"hiden_units": (4,)})


def test_retriever_keeps_the_sides_apart():
    """The query vector does not change with candidate features, nor the other way round, though they share a table."""
    torch.manual_seed(0)
    task = build(
        RETRIEVAL_SCHEMA, "two_tower", {"query": {"hidden_units": (8,)}, "candidate": {"hidden_units": ()}, "out_width": 5}
    )
    assert isinstance(task, RetrievalTask) and isinstance(task.model, Retriever)
    model = task.model.eval()
    first, second = make_batch(RETRIEVAL_SCHEMA, 6, seed=0), make_batch(RETRIEVAL_SCHEMA, 6, seed=1)
    query, candidate = model(first)
    assert query.shape == candidate.shape == (6, 5)
    with torch.no_grad():
        first.dense[:, 1] += 1  # price, of the candidate
    new_query, new_candidate = model(first)
    assert torch.equal(new_query, query) and (new_candidate != candidate).any(dim=1).all()
    assert (model(second)[0] != query).any()


def test_retrieval_task_reads_the_candidate_ids():
    task = build(RETRIEVAL_SCHEMA, "two_tower")
    batch = make_batch(RETRIEVAL_SCHEMA, 6)
    ids = task.candidate_id(batch)
    assert torch.equal(ids, batch.sequence["item"].values()) and ids.shape == (6,)
    loss, (losses, scores, ones, weights) = task(batch)
    assert loss.isfinite() and losses.shape == scores.shape == ones.shape == weights.shape == (6, 1)
    assert task.loss.num_sights.sum() == len(ids.unique()) and (task.loss.num_sights[ids] == 1).all()
    pooled = make_schema(
        [categorical("u", side="query"), categorical("i", side="candidate")], tasks=(), candidate_id="i", num_rows=9
    )
    batch = make_batch(pooled, 4)
    assert torch.equal(build(pooled, "two_tower").candidate_id(batch), batch.sparse["i"].values())
