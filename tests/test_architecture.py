"""The rules of the house, read off the source: who may import whom, how files are called, how long they may grow."""

import ast
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("torchrec_models", "pipelines", "launch", "configs")
STANDARD = set(sys.stdlib_module_names)
AUTHORING = ("torchrec.modules", "torchrec.sparse", "torchrec.streamable")  # describe tables; know no processes
METRICS = ("torchrec_models.metrics", "torchrec_models.retrieval_metrics")
TYPES = ("torchrec_models.net", "torchrec_models.schema")  # plain data: what nets are built from and called with
LONG_LINES, TOO_LONG_LINES = 400, 600


def modules() -> dict[str, Path]:
    """Every module of ours by the name it is imported under."""
    found = {}
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(parts if folder == "torchrec_models" else ("torchrec_models", *parts))] = path
    return found


MODULES = modules()


def imports(name: str, path: Path) -> Iterator[tuple[str, bool]]:
    """(imported module, is it imported when the module is) for each import statement; those for type checking alone left out."""
    tree = ast.parse(path.read_text())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    at_once = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in at_once
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), id(node) in at_once


def within(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def is_net(name: str) -> bool:
    return within(name, "torchrec_models.ranking", "torchrec_models.sequence", "torchrec_models.towers")


def is_layer(name: str) -> bool:
    return within(name, "torchrec_models.layers", "torchrec_models.losses", *METRICS)


def may_import(name: str, other: str) -> bool:
    """The table of the architecture: whether module `name` may import `other`."""
    root = other.split(".")[0]
    on_first_use = ("torchrec_models", "torchrec_models.pipelines.serving.bundle")
    if root in STANDARD or (name, other) == on_first_use:
        return True
    if within(name, "torchrec_models.launch"):
        return root == "torchx"
    if within(name, "torchrec_models.configs"):
        return False
    if within(name, "torchrec_models.pipelines"):
        if within(other, "torchrec.distributed"):
            return name.rpartition(".")[2] in ("distributed", "optim", "train", "checkpoint")
        return root != "torchx" and not within(other, "torchrec_models.launch")
    # The library from here on: no files, no processes.
    if within(other, "torchrec_models.pipelines", "torchrec_models.launch", "torchrec.distributed", "torchrec.inference"):
        return False
    if within(name, "torchrec_models.schema"):
        return False
    if name == "torchrec_models":
        return False
    if within(name, *METRICS):
        return root == "torch" or within(other, *METRICS)
    if is_layer(name):
        return root in ("torch", "pydantic") or is_layer(other) or within(other, *TYPES)
    if is_net(name):
        return root in ("torch", "pydantic") or is_layer(other) or is_net(other) or within(other, *TYPES)
    if within(name, "torchrec_models.net"):
        return root in ("torch", "pydantic") or within(other, "torchrec_models.schema")
    if within(name, "torchrec_models.batch", "torchrec_models.embedding", "torchrec_models.whole_tables"):
        ours = tuple(f"torchrec_models.{m}" for m in ("batch", "net", "schema", "whole_tables"))
        return root == "torch" or within(other, *AUTHORING, *ours)
    return root in ("torch", "torchrec_models", "pydantic") or within(other, *AUTHORING)


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_what_they_may(name: str) -> None:
    wrong = sorted({other for other, _ in imports(name, MODULES[name]) if not may_import(name, other)})
    assert not wrong, f"{MODULES[name].relative_to(ROOT)} may not import {', '.join(wrong)}; see `may_import` in this file"


def test_imports_of_ours_exist() -> None:
    """A flow is imported when its verb runs, so a module that was renamed is missed late."""
    asked = {other: name for name, path in MODULES.items() for other, _ in imports(name, path) if within(other, "torchrec_models")}
    assert {other: name for other, name in asked.items() if other not in MODULES} == {}


def test_the_table_says_no_where_it_should() -> None:
    for name, other in (
        ("torchrec_models.ranking.deepfm", "torchrec.sparse.jagged_tensor"),
        ("torchrec_models.ranking.deepfm", "torchrec_models.pipelines.config"),
        ("torchrec_models.layers.mlp", "torchrec_models.model"),
        ("torchrec_models.model", "torchrec_models.pipelines"),
        ("torchrec_models.embedding", "torchrec.distributed.model_parallel"),
        ("torchrec_models.pipelines.evaluation.evaluate", "torchrec.distributed"),
        ("torchrec_models.launch.components", "torchrec_models.pipelines.cli"),
    ):
        assert not may_import(name, other), (name, other)


def test_imports_are_read_as_python_reads_them() -> None:
    found = dict(imports("torchrec_models.pipelines.config.run", MODULES["torchrec_models.pipelines.config.run"]))
    assert found["torchrec_models.pipelines.config.text"] is True
    assert found["torchrec_models.model"] is False  # inside a function


def everything_behind(start: str) -> dict[str, str]:
    """Outside packages that importing `start` brings in, each with the module of ours that asks for it."""
    seen, left, outside = set(), [start], {}
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        packages = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        left += packages
        for other, at_once in imports(name, MODULES[name]):
            if at_once and other in MODULES:
                left.append(other)
            elif at_once:
                outside.setdefault(other.split(".")[0], name)
    return outside


@pytest.mark.parametrize(
    ("start", "allowed"),
    [
        ("torchrec_models.pipelines.data.transforms", {"numpy", "pyarrow"}),  # runs in bundles and servers, without torch
        ("torchrec_models.pipelines.serving.bundle", {"numpy", "pyarrow", "onnxruntime"}),
        (
            "torchrec_models.pipelines.serving.server",
            {"numpy", "pyarrow", "onnxruntime", "uvicorn", "msgspec", "prometheus_client", "pydantic", "pydantic_core", "yaml"},
        ),
        ("torchrec_models.pipelines.cli", set()),  # `trm --help` is quick
        ("torchrec_models.pipelines.config", {"pydantic", "pydantic_core", "yaml"}),
        ("torchrec_models.schema", set()),
    ],
)
def test_what_must_stay_light_stays_light(start: str, allowed: set[str]) -> None:
    heavy = {root: by for root, by in everything_behind(start).items() if root not in STANDARD | allowed}
    assert not heavy, f"importing {start} brings in " + ", ".join(f"{root} (by {by})" for root, by in heavy.items())


def test_no_drawer_for_odds_and_ends() -> None:
    names = ("utils", "util", "helpers", "helper", "common", "misc")
    drawers = [path for folder in (*CODE, "tests", "benchmarks") for path in (ROOT / folder).rglob("*") if path.stem in names]
    assert not drawers, f"name files after what they hold: {', '.join(map(str, drawers))}"


def test_files_stay_readable_in_one_sitting() -> None:
    long = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in MODULES.values()}
    for path, num_lines in long.items():
        if num_lines > LONG_LINES:
            warnings.warn(f"{path} has {num_lines} lines; more than {LONG_LINES} deserve a hard look", stacklevel=1)
    assert max(long.values()) <= TOO_LONG_LINES, max(long, key=long.__getitem__)


def test_no_sinks_for_misspelt_arguments() -> None:
    """`**name: Type` collects values of one type by name; untyped or `Any`, it would swallow a misspelt option."""
    sinks = []
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            sink = node.args.kwarg if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
            if sink and (sink.annotation is None or ast.unparse(sink.annotation) in ("Any", "object")):
                sinks.append(f"{path.relative_to(ROOT)}:{sink.lineno} **{sink.arg}")
    assert not sinks, f"name the arguments: {', '.join(sinks)}"
