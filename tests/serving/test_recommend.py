"""`POST /recommend` against every candidate scored in float64, over HTTP and by `Bundle.recommend`."""

import numpy as np
import pytest
from bundle_cases import identity_rows, identity_transforms, make_model
from fixtures import RETRIEVAL_SCHEMA
from server_process import serving

from torchrec_models import Bundle
from torchrec_models.pipelines.export.export import export

ROWS = identity_rows(RETRIEVAL_SCHEMA, 200, seed=2)
QUERY = {"user": 3, "history": [1, 2], "age": 0.5}


def first_rows(rows):
    _, first = np.unique(rows["item"].to_numpy(), return_index=True)
    return rows.take(np.sort(first)).select(["item", "genres", "price"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    transforms = identity_transforms(RETRIEVAL_SCHEMA)
    transforms.save(folder / "transforms")
    export(
        make_model(RETRIEVAL_SCHEMA, "two_tower"),
        schema=RETRIEVAL_SCHEMA,
        transforms_folder=folder / "transforms",
        rows=ROWS,
        out=folder / "two",
        config_text="",
        metrics={},
        candidates=first_rows(ROWS),
    )
    return folder


@pytest.fixture(scope="module")
def server(folder, click_bundles):
    with serving(folder, f"click={click_bundles[0]}", f"two={folder / 'two'}") as served:
        yield served


def by_hand(bundle, query, exclude=()):
    candidates = first_rows(ROWS)
    vectors = bundle.encode(candidates, side="candidate").astype(np.float64)
    scores = vectors @ bundle.encode([query], side="query")[0].astype(np.float64)
    pairs = sorted(zip(candidates["item"].to_pylist(), scores), key=lambda pair: -pair[1])
    return [pair for pair in pairs if pair[0] not in exclude]


def test_the_best_candidates_come_first(server, folder):
    bundle = Bundle(folder / "two")
    answer = server.ask("POST", "/recommend", {"query": QUERY, "k": 5}).json
    expected = by_hand(bundle, QUERY)[:5]
    assert (answer["model"], answer["version"]) == ("two", bundle.version)
    assert [item["id"] for item in answer["items"]] == [item for item, _ in expected]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], [score for _, score in expected], atol=1e-5)
    assert [item for item, _ in bundle.recommend([QUERY], k=5)[0]] == [item for item, _ in expected]


def test_excluded_candidates_are_left_out(server, folder):
    everything = by_hand(Bundle(folder / "two"), QUERY)
    exclude = [item for item, _ in everything[:3]]
    found = server.ask("POST", "/models/two/recommend", {"query": QUERY, "k": 1000, "exclude": exclude}).json["items"]
    assert [item["id"] for item in found] == [item for item, _ in everything[3:]]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/recommend", {"k": 3}, 400, '"query"'),
        ("/recommend", {"query": QUERY, "k": 0}, 422, "k: given 0; a whole number from 1 to 1000"),
        ("/recommend", {"query": QUERY, "k": True}, 422, "k: given True"),
        ("/recommend", {"query": QUERY, "top": 3}, 422, "unknown key 'top'; there are: query, k, exclude"),
        ("/recommend", {"query": QUERY, "exclude": "i3"}, 422, "exclude: a list"),
        ("/recommend", {"query": QUERY | {"item": 3}}, 422, "unknown key 'item'"),
        ("/recommend", {"query": QUERY | {"user": 99}}, 422, "feature 'user': rows: column 'user', data row 1: 99 is out of range"),
        ("/models/click/recommend", {"query": QUERY}, 404, "no index of candidates"),
        ("/models/two/predict", QUERY, 400, "is a retriever"),
    ],
)
def test_what_is_refused(server, path, body, status, said):
    answer = server.ask("POST", path, body)
    assert answer.status == status and said in answer.json["error"], answer.json
