"""`trm` as people meet it: help that teaches, errors in words on stderr, output that other programs can read."""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from click_run import raw_config, write_click_log

from torchrec_models.model import net_classes
from torchrec_models.pipelines import config as C
from torchrec_models.pipelines.cli import _parser, main
from torchrec_models.pipelines.config.text import read_yaml

VERBS = (
    *("check", "schema", "inspect", "profile", "list", "prepare", "data", "train", "evaluate", "calibrate", "predict"),
    *("export", "reproduce", "serve", "demo", "demo-bid"),
)
FILES = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*/*.yaml"))
CONFIGS = [path for path in FILES if "\nmodel:" in path.read_text()]  # beside them lie published tables


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A config that is right, beside its data."""
    write_click_log(tmp_path)
    raw = raw_config(tmp_path, "run")
    (tmp_path / "deepfm.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "deepfm.yaml"


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_verb_and_a_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys)
    assert re.findall(r"^    ([a-z-]+)\s", text, re.MULTILINE) == [*VERBS]
    assert "trm check CONFIG && trm prepare CONFIG && trm train CONFIG && trm evaluate RUN && trm export RUN" in text


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"torchrec-models {version('torchrec-models')}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    text = help_of(capsys, verb)
    assert len(text.split("\n\n")[1]) > 30, "no description"
    if verb in ("check", "prepare", "train"):
        assert "YAML file, for example configs/ml100k/deepfm.yaml" in text
        assert "key=value" in text and "train.batch_size=1024" in text
        assert (CONFIGS[0].parents[1] / "ml100k" / "deepfm.yaml").exists(), "the example in the help"
    if verb in ("evaluate", "predict", "export"):
        run = "folder of a run, of one checkpoint, or a bundle" if verb == "predict" else "folder of a run, or of one checkpoint"
        assert run in " ".join(text.split()) and "default: best" in text
        assert ("run_or_bundle" in text) == (verb == "predict")


@pytest.mark.parametrize("verb", ["serve", "predict", "profile", "data stats"])
def test_examples_in_the_help_can_be_copied(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    lines = help_of(capsys, *verb.split()).partition("\nexamples:\n")[2].splitlines()
    commands = [shlex.split(line.partition("|")[0], comments=True) for line in lines]
    assert len(lines) >= 3 and all(line.startswith("  ") and len(line) <= 132 for line in lines)
    assert {command[0] for command in commands} <= {"trm", "curl"}
    for name, *arguments in commands:
        if name == "trm":
            assert arguments[: len(verb.split())] == verb.split()
            _parser().parse_args(arguments)
        for config in (part for part in arguments if part.startswith("configs/")):
            assert (CONFIGS[0].parents[2] / config).exists(), config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "no-such.yaml"], "error: no-such.yaml: 1 mistake\n  no such file"),
        (["train", "no-such.yaml"], "error: no-such.yaml: 1 mistake\n  no such file"),
        (["evaluate", "no-such-run"], "error: no-such-run holds no checkpoint"),
        (["export", "no-such-run"], "error: no-such-run holds no checkpoint"),
        (["predict", "no-such-run", "rows.parquet", "--out", "p.json"], "error: output p.json: give a name that ends in"),
        (["schema", "no-such-folder/schema.json"], "no-such-folder/schema.json"),
        (["schema", "/dev/full"], "No space left on device; free some space, or name a folder on another disk, and run"),
        (["schema", "/sys/kernel/schema.json"], "schema.json'; name another place, or see to its permissions"),
    ],
)
def test_errors_are_words_on_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.startswith("error: ")
    assert shown.out == "" and "Traceback" not in shown.err


@pytest.mark.parametrize("arguments", [["--verbose", "check", "no-such.yaml"], ["check", "no-such.yaml", "--verbose"]])
def test_verbose_shows_where_an_error_comes_from(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_models.pipelines.cli", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "no such file" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["chekc", "x.yaml"], ["check"], ["train", "x.yaml", "--frsh"], ["list", "train.batch_size=3"]]
)
def test_a_wrong_command_line_shows_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("usage: trm") and not shown.out


def test_check_says_that_all_is_well(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    assert main(["check", str(written)]) == 0
    assert capsys.readouterr().out == f"{written}: no mistakes; next: trm prepare {written}\n"


def test_check_reports_all_mistakes_at_once(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    raw = yaml.safe_load(written.read_text())
    raw["train"]["batchsize"] = raw["train"].pop("batch_size")
    raw["features"]["item"]["kind"] = "categoric"
    raw["model"]["name"] = "deepfn"
    written.write_text(yaml.safe_dump(raw))
    assert main(["check", str(written), "train.epochs=0", "data.zzz=1"]) == 2
    text = capsys.readouterr().err
    assert f"{written}: 5 mistakes" in text
    for line in (
        "train.batchsize: unknown key (given 60); did you mean 'batch_size'?",
        "features.item.kind: given 'categoric'",
        "model.name: given 'deepfn'",
        "train.epochs: given 0; must be at least 1",
        "data.zzz: unknown key (given 1)",
    ):
        assert line in text


def test_check_looks_at_the_data_of_every_split(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    """All that is wrong with columns and types, without reading the rows."""
    train, valid = (written.with_name(f"{name}.parquet") for name in ("train", "valid"))
    pq.write_table(pq.read_table(train).drop(["item", "price"]), train)
    pq.write_table(pq.read_table(valid).drop(["label"]), valid)
    assert main(["check", str(written)]) == 2
    text = capsys.readouterr().err
    assert "train.parquet: no column 'item', 'price'" in text
    assert "valid.parquet: no column 'label'" in text
    assert main(["check", str(written), "--no-data"]) == 0


def test_check_sees_types_that_features_cannot_take(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    overrides = ["features.device={kind: numeric}", "features.tags={kind: categorical, dim: 8}"]
    assert main(["check", str(written), *overrides, "features.price.column=tags"]) == 2
    text = capsys.readouterr().err
    assert "features.price: column 'tags' has type" in text and "features.tags: column 'tags' holds lists" in text


def test_overrides_may_stand_after_options(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    assert main(["check", str(written), "train.epochs=3", "--print", "train.batch_size=77"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["train"]["epochs"], shown["train"]["batch_size"]) == (3, 77)


def printed_again(capsys: pytest.CaptureFixture[str], path: Path, scratch: Path) -> tuple[C.RunConfig, C.RunConfig]:
    """A config, and what `check --print` prints of it, loaded."""
    assert main(["check", str(path), "--print", "--no-data"]) == 0
    (scratch / "printed.yaml").write_text(capsys.readouterr().out)
    return C.load(path), C.load(scratch / "printed.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_printed_config_is_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path, path: Path) -> None:
    config, again = printed_again(capsys, path, tmp_path)
    assert again == config


def test_text_that_looks_like_a_number_stays_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """YAML 1.1, which PyYAML writes, takes 1e-3 and 089 for text; we read YAML 1.2."""
    raw: dict[str, Any] = raw_config(tmp_path, "run")
    del raw["data"]["valid"]
    strings = ["089", "1e-3", "on", "2021-01-01", "0x1F", "null", "", "1_000", "~", "1:30"]
    split = {"by": "column", "column": "device", "train": ["007", "1e5"], "valid": ["1e6"]}
    raw["data"] |= {"null_values": strings, "split": split}
    (tmp_path / "odd.yaml").write_text(json.dumps(raw))
    config, again = printed_again(capsys, tmp_path / "odd.yaml", tmp_path)
    assert config.data.null_values == strings and again == config


TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minItems": lambda value, limit: len(value) >= limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "minProperties": lambda value, limit: len(value) >= limit,
}
SILENT = {"title", "description", "default", "$defs", "discriminator"}


def wrong(schema: dict[str, Any], value: Any, root: dict[str, Any], path: str = "") -> list[str]:
    """Where a value breaks a JSON Schema (the part of the standard that ours uses; a keyword beyond it is an error)."""
    found: list[str] = []
    for keyword, rule in schema.items():
        if keyword in SILENT:
            continue
        if keyword == "$ref":
            found += wrong(root["$defs"][rule.removeprefix("#/$defs/")], value, root, path)
        elif keyword in ("anyOf", "oneOf"):
            arms = [wrong(arm, value, root, path) for arm in rule]
            fitting = sum(not arm for arm in arms)
            found += (
                []
                if fitting == 1 or (fitting and keyword == "anyOf")
                else [f"{path}: {fitting} of {keyword} fit", *min(arms, key=len)]
            )
        elif keyword == "type":
            fits = isinstance(value, TYPES[rule]) and not (isinstance(value, bool) and rule in ("integer", "number"))
            found += [] if fits else [f"{path}: {value!r} is no {rule}"]
        elif keyword in ("const", "enum"):
            found += [] if value in ([rule] if keyword == "const" else rule) else [f"{path}: {value!r} is not in {rule}"]
        elif keyword in LIMITS:
            measurable = isinstance(value, (int, float)) if "imum" in keyword else isinstance(value, (list, dict))
            found += [f"{path}: {value!r} breaks {keyword} {rule}"] if measurable and not LIMITS[keyword](value, rule) else []
        elif keyword in ("properties", "additionalProperties", "required"):
            for name in value if isinstance(value, dict) else ():
                if keyword == "properties" and name in rule:
                    found += wrong(rule[name], value[name], root, f"{path}.{name}")
                elif keyword == "additionalProperties" and name not in schema.get("properties", {}):
                    allowed = rule is True or (rule and not wrong(rule, value[name], root))
                    found += [] if allowed else [f"{path}.{name}: not allowed"]
            if keyword == "required" and isinstance(value, dict):
                found += [f"{path}.{name}: missing" for name in rule if name not in value]
        elif keyword in ("items", "prefixItems"):
            for i, item in enumerate(value if isinstance(value, list) else ()):
                part = rule if keyword == "items" else rule[i] if i < len(rule) else {}
                found += wrong(part, item, root, f"{path}[{i}]")
        else:
            raise AssertionError(f"{path}: the schema uses {keyword!r}, which this check does not know")
    return found


def test_the_schema_accepts_what_we_accept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert main(["schema", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == schema
    for path in CONFIGS:
        assert wrong(schema, read_yaml(path.read_text(), []), schema) == [], path


def test_the_schema_refuses_what_we_refuse(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    for key, value in (("train", {"batchsize": 3}), ("train", {"batch_size": "3"}), ("model", {"name": "deepfn"}), ("data", {})):
        raw = yaml.safe_load(written.read_text()) | {key: value}
        assert wrong(schema, raw, schema), (key, value)


def test_list_tells_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(net_classes())
    assert all(net.summary in line for line, net in zip(lines, net_classes().values()))


@pytest.mark.parametrize("arguments", ["schema", "--help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_early_is_no_error(arguments: str, unbuffered: str) -> None:
    """`trm schema | head -1`: the pipe is closed before all is written, or before it is flushed."""
    command = f"{sys.executable} -m torchrec_models.pipelines.cli {arguments} | true; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
