"""`trm demo`: MovieLens-100K from the package index to a trained DeepFM with its result, in a few minutes on a laptop."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from .config import RunConfig, load
from .data.prepare import prepare
from .evaluation.run import evaluate_run
from .train import train

FOLDER = Path("data/ml-100k")
LOG = FOLDER / "ratings.parquet"  # what configs/ml100k/*.yaml read
# The wheel of RecBole (MIT) carries MovieLens-100K (GroupLens, for research) in its own text format.
PACKAGE = "recbole==1.2.1"
INSIDE = "recbole/dataset_example/ml-100k"
SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
SHOWN = {"auc": "AUC", "gauc": "gAUC", "log_loss": "log loss"}


def demo(*, data_dir: Path | None = None) -> None:
    """Fetch, prepare, train, evaluate, and say what came of it. What is done already is not done again.

    Args:
        data_dir: a folder with ml-100k.inter, .item and .user; default: they are downloaded to data/ml-100k.

    Raises:
        ValueError: the files cannot be had, or are not those of RecBole 1.2.1.
    """
    obtain(data_dir)
    path = _config_path()
    config = load(path)
    prepare(config)
    result = train(config)
    evaluate_run(result.run, split="test")
    metrics = json.loads((result.run / "evaluation" / "test" / "metrics.json").read_text())
    print(summary(config, metrics, path=path))


def obtain(data_dir: Path | None = None) -> Path:
    """The click log as one Parquet file, made from the three text files unless it is there already."""
    if LOG.exists():
        return LOG
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = data_dir or FOLDER
    if data_dir is None and not all((FOLDER / name).exists() for name in SHA256):
        download(FOLDER)
    check_files(source)
    partial = LOG.with_suffix(".partial")
    pq.write_table(click_log(source), partial)
    os.replace(partial, LOG)
    return LOG


def download(folder: Path) -> None:
    """Fetch the wheel with pip, without its dependencies, and unpack the three files."""
    print(f"downloading MovieLens-100K (inside {PACKAGE}, 2 MB)", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--only-binary", ":all:", "--dest", scratch]
        done = subprocess.run([*command, "--quiet", "--disable-pip-version-check"], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            lines = done.stderr.strip().splitlines() or ["no wheel came"]
            raise ValueError(
                f"pip could not download {PACKAGE}, which carries MovieLens-100K: {lines[-1]}\n"
                f"Without a package index: put {', '.join(SHA256)} into a folder and run: trm demo --data-dir FOLDER"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in SHA256:
                partial = folder / f"{name}.partial"
                with wheel.open(f"{INSIDE}/{name}") as packed, partial.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
                os.replace(partial, folder / name)


def check_files(folder: Path) -> None:
    """Raises ValueError, naming every file that is missing or another one than expected."""
    wrong = []
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path}: missing")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
            wrong.append(f"{path}: sha256 {found[:12]}..., expected {expected[:12]}...")
    if wrong:
        text = "these are not the MovieLens-100K files of RecBole 1.2.1; remove them, or name another folder"
        raise ValueError("\n".join([text, *wrong]))


def click_log(folder: Path) -> pa.Table:
    """Ratings in file order with their users and movies: one flat row each.

    Columns: user_id, item_id, age (int32), gender, occupation, release_year (int32, null where unknown), genres (list of
    text), timestamp (seconds), rating (1 to 5).
    """
    ratings, movies, users = (_read(folder / name) for name in SHA256)
    movie = movies.take(pc.index_in(ratings["item_id"], value_set=movies["item_id"]))
    user = users.take(pc.index_in(ratings["user_id"], value_set=users["user_id"]))
    is_year = pc.match_substring_regex(movie["release_year"], r"^\d{4}$")
    columns = {
        "user_id": ratings["user_id"],
        "item_id": ratings["item_id"],
        "age": user["age"].cast(pa.int32()),
        "gender": user["gender"],
        "occupation": user["occupation"],
        "release_year": pc.if_else(is_year, movie["release_year"], None).cast(pa.int32()),
        "genres": pc.split_pattern(movie["class"], " "),
        "timestamp": ratings["timestamp"].cast(pa.int64()),
        "rating": ratings["rating"].cast(pa.float32()),
    }
    return pa.table(columns)


def _read(path: Path) -> pa.Table:
    """A tab-separated file whose header says `name:type`; every column as text."""
    with path.open(encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
    names = [name.partition(":")[0] for name in header]
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=names, skip_rows=1),
        parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
    )


def _config_path() -> Path:
    """configs/ml100k/deepfm.yaml of the checkout one stands in, else the installed one."""
    here = Path("configs/ml100k/deepfm.yaml")
    return here if here.exists() else Path(str(files("torchrec_models.configs"))) / "ml100k" / "deepfm.yaml"


def summary(config: RunConfig, metrics: dict[str, Any], *, path: Path) -> str:
    """The short result: each metric beside that of a model that always predicts the base rate, and what to try next."""
    (task,) = metrics["tasks"].values()
    rows = [f"  {'':10}{'DeepFM':>10}{'base rate':>12}"]
    for name, title in SHOWN.items():
        found = task["metrics"][name]
        value = found["value"] if isinstance(found, dict) else found
        rows.append(f"  {title:10}{value:>10.4f}{task['base'][name]:>12.4f}")
    run = config.run
    return "\n".join(
        [
            "",
            f"MovieLens-100K: will this user rate this movie above 3? ({task['num_rows']:,} ratings kept for the test)",
            *rows,
            "",
            f"The run lies in {run}: checkpoints, training curves, and evaluation/test/report.html to look at.",
            "Try next:",
            f"  trm train {path} run=runs/mine model.dropout=0.5   another model, compared in the same way",
            f"  trm predict {run} {LOG} --out predictions.parquet   a probability for every row",
            f"  trm export {run}   an ONNX bundle that needs neither torch nor torchrec",
        ]
    )
