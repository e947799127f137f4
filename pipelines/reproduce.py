"""`trm reproduce NAME`: every config of a folder, several seeds each, beside what others published for the same split.

A folder takes part if it has a `published.yaml`. Each run is made by the commands that a user would give, in a folder of its own;
what is finished is not done again, so an interrupted table goes on.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from .config import RunConfig, load
from .data.prepare import open_prepared, prepare

PUBLISHED = "published.yaml"
FUSED = ("train.mode=fused", "train.embedding_l2=0")


class Published(BaseModel):
    """Others' test results for one config; `mean_auc` and `std_auc` are over their runs, `auc` is the one they list."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    auc: float
    log_loss: float
    mean_auc: float | None = None
    std_auc: float | None = None
    parameters: int | None = None
    peer_auc: float | None = None


class PublishedTable(BaseModel):
    """`published.yaml`: the nets are named after the configs beside it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    seeds: list[int] = Field(min_length=1)
    tolerance: float = Field(gt=0)
    nets: dict[str, Published]


@dataclass
class Row:
    """One net of the table. Lists are per seed."""

    net: str
    seeds: list[int]
    auc: list[float]
    log_loss: list[float]
    published: dict[str, Any]
    parameters: int
    rows_per_second: float
    minutes: list[float]
    epochs: list[float] = field(default_factory=list)

    @property
    def target(self) -> float:
        """The mean published AUC, or the listed one where there is no mean."""
        return self.published["mean_auc"] or self.published["auc"]

    @property
    def difference(self) -> float:
        return statistics.mean(self.auc) - self.target


def reproduce(
    name: str,
    *,
    nets: Sequence[str] = (),
    seeds: Sequence[int] = (),
    data: Path | None = None,
    fused: Sequence[str] | None = None,
    out: Path | None = None,
    jobs: int = 1,
) -> tuple[PublishedTable, list[Row], Path]:
    """Train and evaluate what is missing, then compare.

    Args:
        name: a folder of configs that has a `published.yaml`, or its name among the installed ones (frappe).
        nets: configs to run; default: all.
        seeds: default: those of `published.yaml`.
        data: folder of the data files, where it is not the one that the configs name.
        fused: overrides for a table trained in `mode: fused`; None for the recipe of the configs.
        out: folder of runs and table; default: runs/reproduce/NAME, with -fused behind it.
        jobs: runs at a time.

    Raises:
        ValueError: an unknown folder or net; a run folder of another config; a run that failed.
    """
    folder = find_folder(name)
    table = read_published(folder)
    unknown = [net for net in nets if net not in table.nets]
    if unknown:
        raise ValueError(f"no published result for {', '.join(unknown)}; there are: {', '.join(table.nets)}")
    chosen = [net for net in table.nets if net in (nets or table.nets)]
    missing = [net for net in chosen if not (folder / f"{net}.yaml").exists()]
    if missing:
        raise ValueError(f"{folder} has no config for {', '.join(missing)}")
    out = out or Path("runs/reproduce") / (folder.name + ("-fused" if fused is not None else ""))
    seeds = list(seeds or table.seeds)
    common = [*data_overrides(folder / f"{chosen[0]}.yaml", data), *([*FUSED, *fused] if fused is not None else [])]
    parameters = {}
    for net in chosen:  # one after the other: configs share caches
        config = load(folder / f"{net}.yaml", common)
        prepare(config)
        parameters[net] = count_parameters(config)
    work = [(net, seed) for net in chosen for seed in seeds]
    bar = tqdm(total=len(work), desc=table.title, unit="run", dynamic_ncols=True, file=sys.stderr)
    stop = threading.Event()

    def run(item: tuple[str, int]) -> dict[str, Any]:
        net, seed = item
        if stop.is_set():
            raise ValueError("stopped after another run failed")
        try:
            found = one_run(folder / f"{net}.yaml", out / f"{net}-{seed}", [*common, f"train.seed={seed}"])
        except BaseException:
            stop.set()
            raise
        bar.update()
        said = f"{net} seed {seed}: AUC {found['auc']:.5f}, log loss {found['log_loss']:.5f}, {found['minutes']:.1f} minutes"
        bar.write(said, file=sys.stderr)
        return found

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        results = dict(zip(work, pool.map(run, work)))
    bar.close()
    rows = []
    for net in chosen:
        mine = [results[net, seed] for seed in seeds]
        rows.append(
            Row(
                net=net,
                seeds=seeds,
                published=table.nets[net].model_dump(),
                parameters=parameters[net],
                rows_per_second=statistics.median(r["rows_per_second"] for r in mine),
                **{key: [r[key] for r in mine] for key in ("auc", "log_loss", "minutes", "epochs")},
            )
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    (out / "table.md").write_text(render(table, rows) + "\n")
    return table, rows, out


def find_folder(name: str) -> Path:
    """A path, or the name of an installed folder of configs."""
    installed = Path(str(files("torchrec_models.configs")))
    for folder in (Path(name), installed / name):
        if (folder / PUBLISHED).exists():
            return folder
    known = sorted(path.parent.name for path in installed.glob(f"*/{PUBLISHED}"))
    raise ValueError(f"given {name!r}; allowed: a folder with a {PUBLISHED}, or one of: {', '.join(known)}")


def read_published(folder: Path) -> PublishedTable:
    path = folder / PUBLISHED
    try:
        return PublishedTable.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from None


def one_run(config: Path, run: Path, overrides: list[str]) -> dict[str, Any]:
    """Train and evaluate one seed, unless its result is there already.

    Raises:
        ValueError: a command that failed, with the end of what it said.
    """
    result = run / "result.json"
    settings = load(config, overrides).model_dump(mode="json", exclude={"run"})
    if result.exists():
        found = json.loads(result.read_text())
        if found.pop("config") != settings:
            raise ValueError(f"{run} was made with other settings; remove it, or give another folder with --out")
        return found
    run.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _trm(run / "train.log", "train", str(config), *overrides, f"run={run}", "train.tensorboard=false")
    minutes = (time.perf_counter() - start) / 60
    _trm(run / "evaluate.log", "evaluate", str(run))
    evaluation = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    (task,) = evaluation["tasks"].values()
    with (run / "metrics.csv").open(newline="") as file:
        log = list(csv.DictReader(file))
    found = {
        "auc": task["metrics"]["auc"]["value"],
        "log_loss": task["metrics"]["log_loss"]["value"],
        "minutes": minutes,
        "epochs": sum(bool(row.get("valid_auc")) for row in log),
        "rows_per_second": statistics.median(float(row["samples_per_second"]) for row in log),
    }
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps({**found, "config": settings}))
    os.replace(partial, result)
    return found


def _trm(log: Path, *arguments: str) -> None:
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "torchrec_models.pipelines.cli", *arguments], stdout=file, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        end = "\n  ".join(log.read_text().strip().splitlines()[-5:])
        raise ValueError(f"trm {' '.join(arguments)} failed ({done.returncode}); the end of {log}:\n  {end}")


def data_overrides(config: Path, data: Path | None) -> list[str]:
    """`data.train=FOLDER/train.parquet` and so on: the same file names in another folder."""
    if data is None:
        return []
    section = load(config).data
    named = {"train": section.train, "valid": section.valid, "test": section.test}
    return [
        f"data.{split}={json.dumps([str(data / Path(path).name) for path in paths])}"
        for split, paths in named.items()
        if isinstance(paths, list) and paths
    ]


def count_parameters(config: RunConfig) -> int:
    """Numbers that training sets, padding columns of fused tables left out. The data must be prepared."""
    from torchrec_models.model import build

    options = {k: v for k, v in config.model.items() if k != "name"}
    model = build(open_prepared(config).schema, config.model["name"], options, device="meta").model
    return sum(p.numel() for p in model.parameters())


def render(table: PublishedTable, rows: Iterable[Row]) -> str:
    """The table as Markdown."""
    head = ("net", "AUC", "+-", "log loss", "published AUC", "log loss", "difference", "parameters", "rows/s", "minutes", "epochs")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        published = row.published
        mean, std = published["mean_auc"], published["std_auc"]
        theirs = f"{published['auc']:.5f}" + (f" (mean {mean:.5f} +- {std:.5f})" if mean else "")
        count = f"{row.parameters:,}"
        if published["parameters"] not in (None, row.parameters):
            count += f" (published {published['parameters']:,})"
        spread = f"{statistics.stdev(row.auc):.5f}" if len(row.auc) > 1 else ""
        reached = "" if row.difference >= -table.tolerance else " **below**"
        cells = (
            row.net,
            f"{statistics.mean(row.auc):.5f}",
            spread,
            f"{statistics.mean(row.log_loss):.5f}",
            theirs,
            f"{published['log_loss']:.5f}",
            f"{row.difference:+.5f}{reached}",
            count,
            f"{row.rows_per_second:,.0f}",
            f"{statistics.mean(row.minutes):.1f}",
            f"{statistics.mean(row.epochs):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
