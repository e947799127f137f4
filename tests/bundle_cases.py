"""Generated models, transforms and raw rows for the tests of export and bundles (`from bundle_cases import ...`)."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from fixtures import categorical, make_rows, make_schema, numeric, sequence

from torchrec_models.model import Ranker, Retriever, build
from torchrec_models.pipelines.data.ids import Hash, Identity, Vocabulary
from torchrec_models.pipelines.data.numeric import Fill, Log1p, Standard
from torchrec_models.pipelines.data.rows import list_valued, single_valued
from torchrec_models.pipelines.data.transforms import IdsTransform, NumericTransform, Transforms
from torchrec_models.pipelines.export.export import export
from torchrec_models.pipelines.export.parity import ParityReport
from torchrec_models.schema import Schema, Task

OPTIONS = {
    "deepfm": {"hidden_units": (16, 8)},
    "dlrm": {"bottom_units": (8,), "top_units": (16, 8)},
    "two_tower": {"out_width": 4, "query": {"hidden_units": (8,)}, "candidate": {"hidden_units": (8,)}},
}

DEVICES, TAGS = ["phone", "tablet", "desktop"], [f"t{i}" for i in range(12)]
CLICK_SCHEMA = make_schema(
    [
        categorical("device"),
        numeric("age"),
        categorical("tags", table="tag", max_len=4, pooling="mean"),
        categorical("item"),
        sequence("history", table="item", max_len=5),
        categorical("top_tag", table="tag"),
        categorical("site", max_len=3),
        numeric("price"),
    ],
    tasks=[Task(name="click"), Task(name="spend", kind="regression")],
    num_rows=13,
    init_std=0.1,
)


def click_transforms() -> Transforms:
    """Text and numbers, separated text, missing values with and without a row of their own; one table of another size each."""
    many = {"many": True}
    features = {
        "device": IdsTransform(column="device", table="device"),
        "age": NumericTransform(column="age", steps=(Fill(40.0), Standard(40.0, 12.0))),
        "tags": IdsTransform(column="tags", table="tag", max_len=4, separator="|", **many),
        "item": IdsTransform(column="item", table="item"),
        "history": IdsTransform(column="history", table="item", max_len=5, keep="last", **many),
        "top_tag": IdsTransform(column="top_tag", table="tag"),
        "site": IdsTransform(column="site", table="site", max_len=3, **many),
        "price": NumericTransform(column="price", steps=(Log1p(),)),
    }
    tables = {
        "device": Vocabulary(null="token", values=pa.array([*DEVICES, None, *(f"d{i}" for i in range(8))])),
        "tag": Vocabulary(null="oov", values=pa.array(TAGS)),
        "item": Vocabulary(null="error", values=pa.array(range(100, 112))),
        "site": Hash(null="token", buckets=12, seed=3, kind="string"),
    }
    return Transforms(schema_dict=CLICK_SCHEMA.to_dict(), features=features, tables=tables)


def click_rows(num_rows: int, *, seed: int = 0) -> pa.Table:
    """Raw rows for `click_transforms`, unknown and missing values among them."""
    random = np.random.default_rng(seed)

    def lists(values: list, max_len: int) -> list[list]:
        return [random.choice(values, random.integers(0, max_len + 1)).tolist() for _ in range(num_rows)]

    return pa.table(
        {
            "device": pa.array(random.choice([*DEVICES, "toaster"], num_rows), mask=random.random(num_rows) < 0.1),
            "age": pa.array(random.normal(40, 10, num_rows), mask=random.random(num_rows) < 0.1),
            "tags": ["|".join(tags) for tags in lists(TAGS, 6)],
            "item": random.integers(98, 112, num_rows),
            "history": pa.array(lists(list(range(98, 112)), 7), pa.list_(pa.int64())),
            "top_tag": random.choice([*TAGS, "t99"], num_rows),
            "site": pa.array(lists(["a.example", "b.example", "c.example"], 3), pa.list_(pa.string())),
            "price": random.gamma(2.0, 2.0, num_rows),
            "label": random.integers(0, 2, num_rows),
        }
    )


def identity_transforms(schema: Schema) -> Transforms:
    """Raw columns that hold table rows and finished numbers already: fits any schema."""
    features: dict[str, NumericTransform | IdsTransform] = {}
    for f in schema.features:
        many = f.kind == "sequence" or f.max_len > 1
        is_number = f.kind == "numeric"
        features[f.name] = (
            NumericTransform(column=f.name)
            if is_number
            else IdsTransform(column=f.name, table=f.table, many=many, max_len=f.max_len)
        )
    tables = {t.name: Identity(null="error", size=t.num_rows) for t in schema.tables}
    return Transforms(schema_dict=schema.to_dict(), features=features, tables=tables)


def identity_rows(schema: Schema, num_rows: int, *, seed: int = 0) -> pa.Table:
    """Random raw rows for `identity_transforms`."""
    rows = make_rows(schema, num_rows, seed=seed)
    columns = {f.name: pa.array(rows.dense[:, i].numpy()) for i, f in enumerate(schema.dense)}
    columns |= {f.name: pa.array(rows.ids[:, i].numpy()) for i, f in enumerate(single_valued(schema))}
    for f, (values, offsets) in zip(list_valued(schema), rows.lists):
        columns[f.name] = pa.LargeListArray.from_arrays(pa.array(offsets.numpy()), pa.array(values.numpy()))
    return pa.table(columns)


def make_model(schema: Schema, name: str, *, width_multiple: int = 1, seed: int = 0) -> Ranker | Retriever:
    torch.manual_seed(seed)
    return build(schema, name, OPTIONS[name], width_multiple=width_multiple).model.eval()


def export_model(
    model: Ranker | Retriever,
    transforms: Transforms,
    rows: pa.Table,
    out: Path,
    *,
    overwrite: bool = False,
    tolerance: float = 1e-5,
) -> ParityReport:
    folder = out.parent / f"{out.name}-transforms"
    transforms.save(folder)
    return export(
        model,
        schema=transforms.schema,
        transforms_folder=folder,
        rows=rows,
        out=out,
        config_text="model: {name: deepfm}\n",
        metrics={"test": {"auc": 0.75, "gauc": float("nan")}},
        tolerance=tolerance,
        source={"run": "runs/toy", "step": 12},
        overwrite=overwrite,
    )
