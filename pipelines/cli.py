"""`trm VERB CONFIG [key=value ...]`: each verb is one flow, one hop from here."""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

# Verbs import their flow when they run: torch and torchrec take seconds, `trm --help` should not.

OVERRIDES = "settings that replace the file's, as dotted.path=value: train.batch_size=1024 model.hidden_units=[64,32]"

BESIDE_TORCHREC = ("torchrec", "fbgemm_gpu", "tensordict", "torchmetrics", "pyre_extensions")
INSTALL = (
    "TorchRec's own requirements name the CUDA build of fbgemm, so pip cannot choose for you. On a CPU: "
    "pip install fbgemm-gpu-cpu==1.8.0 tensordict torchmetrics==1.0.3 pyre-extensions && pip install --no-deps torchrec==1.8.0; "
    "on a GPU: pip install torchrec==1.8.0"
)

VERBOSE = "log more, and show tracebacks of errors"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 failed while running, 2 wrong input, 130 interrupted."""
    try:
        try:
            return _run_verb(argv)
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not when Python exits
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `trm ... | head` is no error
        return 0


def _run_verb(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if "overrides" in args:  # argparse takes no more positional arguments after an option
        args.overrides += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _quiet_libraries(verbose=args.verbose)
    try:
        args.run_verb(args)
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if args.verbose or error.name not in BESIDE_TORCHREC:
            raise
        print(f"error: {error.name} is not installed. {INSTALL}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        if args.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if args.verbose or type(error) is RuntimeError:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trm",
        description="Recommenders on TorchRec: from a click log to a trained, evaluated and exported model. One YAML is one run.",
        epilog="a first run:  trm check CONFIG && trm prepare CONFIG && trm train CONFIG && trm evaluate RUN && trm export RUN",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help=VERBOSE)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    check = _verb(verbs, "check", _check, "validate a config and the data it names, and report every mistake at once")
    _config(check)
    check.add_argument("--print", action="store_true", dest="show", help="show the resolved config, with defaults and patterns")
    check.add_argument("--no-data", action="store_true", help="do not look at the data files")

    schema = _verb(verbs, "schema", _schema, "write the JSON Schema of config files, for editors that complete and check YAML")
    schema.add_argument("out", nargs="?", type=Path, help="file; default: standard output")

    _verb(verbs, "list", _list, "show every model: name, what it is, paper and year")

    prepare = _verb(verbs, "prepare", _prepare, "read the data, fit the transforms on the training rows, write the shard cache")
    _config(prepare)
    prepare.add_argument("--force", action="store_true", help="replace a cache that was prepared from other data or settings")

    train = _verb(verbs, "train", _train, "train, from the last checkpoint if there is one (several processes: torchx run)")
    _config(train)
    train.add_argument("--fresh", action="store_true", help="refuse to go on from existing checkpoints")

    evaluate = _verb(verbs, "evaluate", _evaluate, "exact metrics of a trained run on a split, with a report one can look at")
    _run_folder(evaluate)
    evaluate.add_argument("--split", default="test", help="train, valid or test (default: test)")

    predict = _verb(verbs, "predict", _predict, "score raw rows of any size to Parquet or CSV, in input order")
    _run_folder(predict)
    predict.add_argument("inputs", nargs="+", help="files, globs or folders of raw rows")
    predict.add_argument("--out", type=Path, required=True, help="predictions.parquet or predictions.csv")
    predict.add_argument("--batch-rows", type=int, default=16_384, help="rows scored at a time (default: 16384)")

    export = _verb(
        verbs, "export", _export, "write a bundle (ONNX graph, transforms, manifest), checked against PyTorch on real rows"
    )
    _run_folder(export)
    export.add_argument("--out", type=Path, help="bundle folder; default: RUN/bundle")
    export.add_argument("--overwrite", action="store_true", help="replace an existing bundle")

    demo = _verb(verbs, "demo", _demo, "MovieLens-100K from download to result, in a few minutes")
    demo.add_argument("--data-dir", type=Path, help="folder with ml-100k.inter, .item and .user, if you have them")
    return parser


def _verb(verbs: argparse._SubParsersAction, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help=VERBOSE)
    parser.set_defaults(run_verb=run)
    return parser


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, for example configs/ml100k/deepfm.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def _run_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run, or of one checkpoint")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="checkpoint of the run (default: best)")


def _quiet_libraries(*, verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("torchrec_models").setLevel(logging.INFO)
    if not verbose:
        for name in ("torchrec", "torch", "torch.fx._symbolic_trace", "fbgemm_gpu", "onnxscript"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for module in ("torch", "torchrec", "fbgemm_gpu", "onnxscript", "tensordict"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")


def _check(args: argparse.Namespace) -> None:
    from . import config as C

    config = C.load(args.config, args.overrides)
    if not args.no_data:
        from .data.prepare import check_data

        check_data(config)
    if args.show:
        print(C.write_yaml(config.model_dump(mode="json")), end="")
    else:
        print(f"{args.config}: no mistakes; next: trm prepare {args.config}")


def _schema(args: argparse.Namespace) -> None:
    from . import config as C

    text = json.dumps(C.json_schema(), indent=1)
    if args.out:
        args.out.write_text(text + "\n")
        print(f"wrote {args.out}; in an editor: # yaml-language-server: $schema={args.out}")
    else:
        print(text)


def _list(_: argparse.Namespace) -> None:
    from torchrec_models.model import net_classes

    for name, net in net_classes().items():
        print(f"{name:12} {net.summary}")


def _prepare(args: argparse.Namespace) -> None:
    from . import config as C
    from .data.prepare import prepare

    config = C.load(args.config, args.overrides)
    cache = prepare(config, force=args.force)
    for name, split in cache.splits.items():
        labels = ", ".join(f"{k} {v:.4f}" for k, v in split.label_mean.items())
        print(f"{name:6} {split.num_rows:>12,} rows" + (f"   mean label: {labels}" if labels else ""))
    print(f"{cache.folder}: {cache.num_bytes / 2**20:,.1f} MiB; next: trm train {args.config}")


def _train(args: argparse.Namespace) -> None:
    from . import config as C
    from .train import train

    config = C.load(args.config, args.overrides)
    result = train(config, resume=not args.fresh)
    if int(os.environ.get("RANK", "0")) == 0:
        shown = ", ".join(f"{k} {v:.5f}" for k, v in result.metrics.items())
        ended = result.progress.stopped or f"reached step {result.progress.step}"
        best = f"best at step {result.progress.best_step}" + (f": {shown}" if shown else "")
        print(f"{result.run}: {ended} in {result.seconds:.1f} s; {best}")
        print(f"next: trm evaluate {result.run} && trm export {result.run}")


def _evaluate(args: argparse.Namespace) -> None:
    from .evaluation.run import evaluate_run

    text = evaluate_run(args.run, split=args.split, which=args.which)
    if int(os.environ.get("RANK", "0")) == 0:
        print(text)


def _predict(args: argparse.Namespace) -> None:
    from .predict import predict

    result = predict(args.run, args.inputs, args.out, which=args.which, batch_rows=args.batch_rows)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{result.out}: {result.num_rows:,} rows in {result.seconds:.1f} s ({result.num_rows / result.seconds:,.0f} rows/s)")


def _export(args: argparse.Namespace) -> None:
    from .export.run import export_run

    print(export_run(args.run, out=args.out, which=args.which, overwrite=args.overwrite))


def _demo(args: argparse.Namespace) -> None:
    from .demo import demo

    demo(data_dir=args.data_dir)


if __name__ == "__main__":
    sys.exit(main())
