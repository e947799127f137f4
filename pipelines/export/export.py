"""torch -> bundle: the model as ONNX beside its transforms, checked on real rows before it gets its name.

model (unsharded) -> one flat table per width (export_graph) -> model.onnx -> scored by PyTorch and by the bundle's own
runtime (parity) -> manifest -> renamed to its place
"""

import json
import logging
import math
import os
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch

from torchrec_models.model import Ranker, Retriever
from torchrec_models.schema import Schema, Side

from ..calibration import Affine, Calibration
from ..data.transforms import Transforms
from ..serving.bundle import Graph
from ..serving.bundle_files import CONFIG, EXAMPLES, check_free, publish, write_manifest
from ..serving.index import INDEX
from ..serving.slots import SlotLayout
from .candidates import candidate_index
from .graph import RankingGraph, TowerGraph
from .parity import ParityError, ParityReport, check_parity, examples, reference_answers

OPSET = 20
_PACKAGES = ("torchrec-models", "torch", "torchrec", "onnx", "onnxscript", "onnxruntime", "numpy", "pyarrow")


def export(
    model: Ranker | Retriever,
    *,
    schema: Schema,
    transforms_folder: Path,
    rows: pa.Table,
    out: Path,
    config_text: str,
    metrics: Mapping[str, Any],
    parity_rows: int = 1000,
    tolerance: float = 1e-5,
    source: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    overwrite: bool = False,
    candidates: pa.Table | None = None,
) -> ParityReport:
    """Writes a bundle folder; docs/bundle.md describes it.

    Args:
        model: unsharded, on the CPU, in eval mode.
        schema: the model's.
        transforms_folder: where `Transforms.save` wrote.
        rows: raw rows for the parity check (the first `parity_rows` are used) and for the samples in the bundle; after the log,
            if there are covisitation features.
        out: the bundle's folder; written beside it first, and renamed when good.
        config_text: the resolved config, kept in the bundle.
        metrics: evaluation results, kept in the manifest.
        tolerance: the largest difference allowed, see `ParityReport`.
        source: where the model came from (run, step), kept in the manifest.
        calibration: of a ranker's binary tasks, put between logits and probabilities.
        overwrite: replace a bundle that stands at `out`.
        candidates: raw rows of a retriever's candidates, each once; their vectors become the bundle's index.

    Raises:
        ValueError: if `out` is taken, the transforms are not the model's, or there are no rows; a `ParityError` if an answer
            differs by more than `tolerance`: what was written then stays at `<out>.rejected`, without the manifest that a
            bundle needs to be loaded.
    """
    assert not model.training, "export takes a model in eval mode"
    assert model.embedding.schema == schema, "the schema is not the model's"
    out = Path(out)
    check_free(out, overwrite=overwrite)
    transforms = Transforms.load(transforms_folder, after_log=True)
    if transforms.schema != schema:
        raise ValueError(
            f"{transforms_folder}: these transforms were fitted for another schema than the model's; give those of its run"
        )
    wrong = [t.name for t in schema.tables if transforms.num_rows(t.name) != t.num_rows]
    if wrong:  # in a flat table, an id beyond its table would silently be another table's
        raise ValueError(f"{transforms_folder}: vocabularies of {', '.join(wrong)} have another size than the schema says")
    rows = rows.slice(0, parity_rows)
    if not rows.num_rows:
        raise ValueError("export needs at least one raw row to check the bundle with; none was given")
    rejected = out.with_name(out.name + ".rejected")
    folder = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(rejected, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        transforms.save(folder)
        (folder / CONFIG).write_text(config_text)
        affine = calibration.tasks if calibration else {}
        specs = _write_graphs(model, folder, affine)
        saved = Transforms.load(folder, after_log=True)
        graphs = {name: Graph(folder, spec, saved) for name, spec in specs.items()}
        parity = check_parity(reference_answers(model, transforms, rows, calibration=affine), graphs, rows, tolerance=tolerance)
        samples = examples(graphs, rows, tolerance=tolerance)
        (folder / EXAMPLES).write_text(json.dumps(samples, indent=1, allow_nan=False) + "\n")
        if candidates is not None:
            candidate_index(graphs["candidate"], candidates, schema.candidate_id).save(folder / INDEX)
        write_manifest(
            folder,
            {
                "kind": "ranker" if isinstance(model, Ranker) else "retriever",
                "net": type(model.net).__name__,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "source": _finite(dict(source or {})),
                "schema": schema.to_dict(),
                "graphs": specs,
                "parity": asdict(parity),
                "calibration": asdict(calibration) if calibration else None,
                "metrics": _finite(dict(metrics)),
                "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            },
        )
        publish(folder, out, overwrite=overwrite)
    except ParityError as error:
        folder.rename(rejected)
        raise ParityError(f"{error}; the bundle is refused, its files are at {rejected}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return parity


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_graphs(model: Ranker | Retriever, folder: Path, calibration: Mapping[str, Affine]) -> dict[str, dict[str, Any]]:
    """Writes every ONNX file; their entries in the manifest by graph name."""
    schema = model.embedding.schema
    if isinstance(model, Ranker):
        layout = SlotLayout.from_schema(schema)
        graph = RankingGraph(model, layout, calibration)
        return {"model": _write_onnx(graph, layout, folder / "model.onnx", output="prediction", side="")}
    sides: tuple[Side, ...] = ("query", "candidate")
    specs: dict[str, dict[str, Any]] = {}
    for side in sides:
        layout = SlotLayout.from_schema(schema, side=side)
        specs[side] = _write_onnx(TowerGraph(model, layout, side), layout, folder / f"{side}.onnx", output="vector", side=side)
    return specs


def _write_onnx(graph: RankingGraph | TowerGraph, layout: SlotLayout, path: Path, *, output: str, side: Side) -> dict[str, Any]:
    """One ONNX file. Weights above what protobuf holds (2 GB) go to `<file>.data` beside it."""
    inputs = graph.takes.names
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            graph.takes.example(3),
            input_names=inputs,
            output_names=[output],
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    onnx.checker.check_model(str(path))
    domains = {o.domain or "ai.onnx" for o in onnx.load(str(path), load_external_data=False).opset_import}
    assert domains == {"ai.onnx"}, f"the graph uses operators outside ONNX: {sorted(domains)}"
    return {"file": path.name, "side": side, "inputs": inputs, "output": output, "opset": OPSET, "slots": layout.to_list()}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own internals: torchvision's operators, axis names, treespec classes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
