"""Sequences of the same events are equally long in every row: said in the config, checked by prepare and by serving."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_models.pipelines.config.errors import ConfigError
from torchrec_models.pipelines.config.run import parse
from torchrec_models.pipelines.data.prepare import prepare
from torchrec_models.pipelines.data.shards import Cache
from torchrec_models.pipelines.data.transforms import Transforms
from torchrec_models.pipelines.serving.codec import RowCodec
from torchrec_models.pipelines.serving.encoder import RowEncoder
from torchrec_models.pipelines.serving.slots import SlotLayout

FEATURES = {
    "item": {"kind": "categorical", "dim": 4},
    "genre": {"kind": "categorical", "dim": 4},
    "history": {"kind": "sequence", "table": "item", "max_len": 3},
    "genres": {"kind": "sequence", "table": "genre", "max_len": 3, "aligned_with": "history"},
}
PARALLEL = {"name": "din", "histories": [{"sequences": ["history", "genres"]}]}


def config(*, model=PARALLEL, data=None, **features):
    merged = {name: {**options, **features.get(name, {})} for name, options in FEATURES.items()}
    merged |= {name: options for name, options in features.items() if name not in FEATURES}
    return parse({"data": data or {"train": ["-"], "cache": "-"}, "features": merged, "labels": {"click": {}}, "model": model})


@pytest.mark.parametrize(
    ("features", "word"),
    [
        ({"genres": {"aligned_with": ""}}, "features.genres.aligned_with: required.* beside 'history'.*give aligned_with: history"),
        ({"genres": {"aligned_with": "histori"}}, "given 'histori'; must name another sequence: history; did you mean"),
        ({"genres": {"aligned_with": "item"}}, "given 'item'; must name another sequence: history"),
        ({"genres": {"keep": "first"}}, "features.genres.keep: given 'first'; 'history', with which it is aligned, has 'last'"),
    ],
)
def test_the_config_must_say_it(features, word):
    with pytest.raises(ConfigError, match=word):
        config(**features)


def test_one_column_read_twice_is_aligned_by_nature():
    """Decoupled tables read the columns again; a chain of `aligned_with` reaches them all."""
    config(
        model={
            "name": "dare",
            "histories": [{"sequences": ["history", "genres"], "attention": ["history_attention", "genres_attention"]}],
        },
        item_attention={"kind": "categorical", "column": "item", "dim": 4},
        genre_attention={"kind": "categorical", "column": "genre", "dim": 4},
        history_attention={"kind": "sequence", "column": "history", "table": "item_attention", "max_len": 3},
        genres_attention={"kind": "sequence", "column": "genres", "table": "genre_attention", "max_len": 3},
    )


def test_sequences_that_stand_alone_need_not_be_aligned():
    config(model={"name": "dnn"}, genres={"aligned_with": ""})


def prepared(folder, rows, **features) -> Cache:
    """The cache of a log of (history, genres)."""
    columns = {"history": [r[0] for r in rows], "genres": [r[1] for r in rows]}
    pq.write_table(
        pa.table({"item": [1] * len(rows), "genre": [2] * len(rows), "click": [1] * len(rows), **columns}), folder / "log.parquet"
    )
    data = {"train": [str(folder / "log.parquet")], "cache": str(folder / "cache")}
    return prepare(config(data=data, **features), progress=False)


def test_prepare_names_file_column_and_row(tmp_path):
    """The third row differs behind the cut only, where both lists would be equally long."""
    rows = [([1, 2], [5, 5]), (None, []), ([1, 2, 3, 4, 5], [5, 6, 7, 8]), ([1], [5])]
    with pytest.raises(ValueError, match=r"log.parquet: column 'genres', data row 3: 4 values, and column 'history' has 5"):
        prepared(tmp_path, rows)


def test_separated_text_is_counted_as_it_is_cut(tmp_path):
    """Empty pieces are no values."""
    separated = {"history": {"separator": "|"}, "genres": {"separator": "|"}}
    cache = prepared(tmp_path, [("a|b||c", "x|y|z"), ("", None)], **separated)
    assert cache.splits["train"].num_rows == 2
    with pytest.raises(ValueError, match=r"column 'genres', data row 1: 1 values, and column 'history' has 2"):
        (tmp_path / "other").mkdir()
        prepared(tmp_path / "other", [("a|b", "x|")], **separated)


def test_serving_refuses_what_prepare_refuses(tmp_path):
    cache = prepared(tmp_path, [([1, 2], [5, 6]), ([3], [7])])
    transforms = Transforms.load(cache.folder / "transforms")
    encoder = RowEncoder(transforms, SlotLayout.from_schema(transforms.schema))
    row = {"item": 1, "genre": 2, "history": [1, 3], "genres": [5, 7]}
    table = RowCodec(transforms).table([row])
    expected = SlotLayout.from_schema(transforms.schema).fill(transforms.encode(table))
    assert encoder.encode([row])[0].tolist() == encoder.encode([row], from_json=True)[0].tolist() == expected.tolist()
    for genres in ([5], None, [5, 6, 7]):
        with pytest.raises(
            ValueError, match=r"feature 'genres': .*column 'genres', data row 2: \d values, and column 'history' has 2"
        ):
            encoder.encode([row, {**row, "genres": genres}], from_json=True)
