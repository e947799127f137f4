"""Arguments that verbs share."""

import argparse
from collections.abc import Callable
from pathlib import Path

OVERRIDES = "settings that replace the file's, as dotted.path=value: train.batch_size=1024 model.hidden_units=[64,32]"
VERBOSE = "log more, and show tracebacks of errors"


def add_verb(verbs: argparse._SubParsersAction, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    """A parser for `trm NAME`; `run` is given what was parsed."""
    parser = verbs.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
    parser.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help=VERBOSE)
    parser.set_defaults(run_verb=run)
    return parser


def add_examples(parser: argparse.ArgumentParser, *examples: str) -> None:
    """Commands to copy, each with `# what it does` behind or below it, at the end of the help."""
    parser.epilog = "\n".join(["examples:", *(f"  {line}" for line in examples)])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="YAML file, for example configs/ml100k/deepfm.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def add_run_folder(
    parser: argparse.ArgumentParser,
    *,
    kinds: str = "run, or of one checkpoint",
    metavar: str = "run",
    which: str = "checkpoint of the run (default: best)",
) -> None:
    parser.add_argument("run", type=Path, metavar=metavar, help=f"folder of a {kinds}")
    parser.add_argument("--which", choices=("best", "last"), default="best", help=which)
