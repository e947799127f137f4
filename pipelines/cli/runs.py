"""Verbs that make and use trained runs: train, evaluate, calibrate, predict, export."""

import argparse
import os
from pathlib import Path

from .arguments import add_config, add_examples, add_run_folder, add_verb


def add(verbs: argparse._SubParsersAction) -> None:
    train = add_verb(verbs, "train", _train, "train, from the last checkpoint if there is one (several processes: torchx run)")
    add_config(train)
    train.add_argument("--fresh", action="store_true", help="refuse to go on from existing checkpoints")

    evaluate = add_verb(verbs, "evaluate", _evaluate, "exact metrics of a trained run on a split, with a report one can look at")
    add_run_folder(evaluate)
    evaluate.add_argument("--split", default="test", help="train, valid or test (default: test)")

    calibrate = add_verb(
        verbs, "calibrate", _calibrate, "fit predicted to actual rates on held-out rows; trm export then puts it into the graph"
    )
    add_run_folder(calibrate)
    calibrate.add_argument("--split", default="valid", help="valid or test (default: valid)")
    calibrate.add_argument("--method", choices=("platt", "temperature", "none"), default="platt", help="default: platt")
    calibrate.add_argument(
        "--negative-rate", type=float, default=1.0, help="share of negatives that the log kept (default: 1); corrects the log-odds"
    )

    predict = add_verb(verbs, "predict", _predict, "score raw rows of any size to Parquet or CSV, in input order")
    kinds = "run, of one checkpoint, or a bundle (scored by ONNX Runtime, without torch)"
    add_run_folder(predict, kinds=kinds, metavar="run_or_bundle", which="checkpoint of a run (default: best)")
    predict.set_defaults(which=None)
    predict.add_argument("inputs", nargs="*", help="files, globs or folders of raw rows; without --out, the last one is the output")
    predict.add_argument("--query", default="", help="a SELECT that gives the rows, instead of files; of a run")
    predict.add_argument("--uri", default="", help="of the database; default: that of the run's config (data.test, valid or train)")
    predict.add_argument("--out", type=Path, help="predictions.parquet or predictions.csv; default: the last path, a new file")
    predict.add_argument("--row-id", default="", metavar="COLUMN", help="column that identifies rows; default: data.row_id")
    predict.add_argument(
        "--columns", default="", metavar="ID,TASK,...", help="names for the output's columns; default: row id and tasks"
    )
    predict.add_argument("--batch-rows", type=int, default=16_384, help="rows scored at a time (default: 16384)")
    add_examples(
        predict,
        "trm predict runs/frappe/deepfm/bundle rows.parquet scores.parquet  # a bundle: without torch",
        "trm predict runs/frappe/deepfm 'log/2024-05-*.csv' --out scores.csv --row-id id  # a run, its best checkpoint",
        "trm predict runs/frappe/deepfm --query 'SELECT * FROM rows' --uri duckdb:///log.db --out scores.parquet",
    )

    export = add_verb(
        verbs, "export", _export, "write a bundle (ONNX graph, transforms, manifest), checked against PyTorch on real rows"
    )
    add_run_folder(export)
    export.add_argument("--out", type=Path, help="bundle folder; default: RUN/bundle")
    export.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    export.add_argument("--no-calibration", action="store_true", help="leave out what trm calibrate found")

    reproduce = add_verb(
        verbs,
        "reproduce",
        _reproduce,
        "train every net of a published table, several seeds each, and compare with the published values",
    )
    reproduce.add_argument("name", help="folder of configs with a published.yaml, for example frappe")
    reproduce.add_argument("--nets", nargs="+", default=[], metavar="NET", help="only these (default: all of the table)")
    reproduce.add_argument("--seeds", nargs="+", type=int, default=[], metavar="SEED", help="default: those of published.yaml")
    reproduce.add_argument("--data", type=Path, help="folder of the data files, if not the one that the configs name")
    reproduce.add_argument(
        "--fused",
        nargs="*",
        metavar="key=value",
        help="train with sharded tables and fused optimizers instead, with these settings: --fused train.sparse.lr=0.1",
    )
    reproduce.add_argument("--out", type=Path, help="folder of runs and table (default: runs/reproduce/NAME)")
    reproduce.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1; speeds are then not comparable)")


def _train(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.train import train

    config = C.load(args.config, args.overrides)
    result = train(config, resume=not args.fresh)
    if int(os.environ.get("RANK", "0")) == 0:
        shown = ", ".join(f"{k} {v:.5f}" for k, v in result.metrics.items())
        ended = result.progress.stopped or f"reached step {result.progress.step}"
        best = f"best at step {result.progress.best_step}" + (f": {shown}" if shown else "")
        print(f"{result.run}: {ended} in {result.seconds:.1f} s; {best}")
        print(f"next: trm evaluate {result.run} && trm export {result.run}")


def _evaluate(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.evaluation.run import evaluate_run

    text = evaluate_run(args.run, split=args.split, which=args.which)
    if int(os.environ.get("RANK", "0")) == 0:
        print(text)


def _predict(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.serving.predict_files import is_bundle, predict_files

    inputs, out = (args.inputs, args.out) if args.out or args.query else _last_is_output(args.inputs)
    if bool(inputs) == bool(args.query):
        raise ValueError("give files to predict, or --query (either, not both)")
    if out is None:
        raise ValueError("--query: give --out, where the predictions go")
    if args.uri and not args.query:
        raise ValueError("--uri: has no effect without --query")
    columns = args.columns.split(",") if args.columns else []
    if is_bundle(args.run):
        if args.query:
            raise ValueError(f"{args.run} is a bundle, which reads files; give --query with the folder of a run")
        if args.which:
            raise ValueError(f"{args.run} is a bundle, made of one checkpoint; --which is for the folder of a run: leave it out")
        num_rows, seconds = predict_files(args.run, inputs, out, row_id=args.row_id, columns=columns, batch_rows=args.batch_rows)
        print(f"{out}: {num_rows:,} rows in {seconds:.1f} s ({num_rows / seconds:,.0f} rows/s, ONNX Runtime)")
        return
    from torchrec_models.pipelines.predict import predict, query_of_run

    which = args.which or "best"
    rows = query_of_run(args.run, args.query, uri=args.uri, which=which) if args.query else inputs
    result = predict(args.run, rows, out, row_id=args.row_id, columns=columns, which=which, batch_rows=args.batch_rows)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{result.out}: {result.num_rows:,} rows in {result.seconds:.1f} s ({result.num_rows / result.seconds:,.0f} rows/s)")


def _last_is_output(paths: list[str]) -> tuple[list[str], Path]:
    """`IN [IN ...] OUT`, as of cp. OUT must be new: a list of files alone is no order to overwrite the last of them."""
    if len(paths) < 2:
        raise ValueError("give files to predict (or --query), and the file that predictions go to: by --out, or as the last path")
    out = Path(paths[-1])
    if out.exists() or any(c in paths[-1] for c in "*?["):
        what = "exists" if out.exists() else "is a pattern"
        raise ValueError(
            f"{out}: would be the output, the last path where there is no --out, but it {what}; name the output by --out"
        )
    return paths[:-1], out


def _calibrate(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.calibrate import calibrate_run

    print(calibrate_run(args.run, split=args.split, method=args.method, negative_rate=args.negative_rate, which=args.which))


def _export(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.export.run import export_run

    print(export_run(args.run, out=args.out, which=args.which, overwrite=args.overwrite, calibrated=not args.no_calibration))


def _reproduce(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.reproduce import render, reproduce

    table, rows, out = reproduce(
        args.name, nets=args.nets, seeds=args.seeds, data=args.data, fused=args.fused, out=args.out, jobs=args.jobs
    )
    print(f"{render(table, rows)}\n\n{out / 'table.md'}\n{out / 'table.json'}")
