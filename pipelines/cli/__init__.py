"""`trm VERB CONFIG [key=value ...]`: each verb is one flow, one hop from here."""

import argparse
import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from . import configs, data, runs, serving
from .arguments import VERBOSE

# Verbs import their flow when they run: torch and torchrec take seconds, `trm --help` should not.

BESIDE_TORCHREC = ("torchrec", "fbgemm_gpu", "tensordict", "torchmetrics", "pyre_extensions")
INSTALL = (
    "TorchRec's own requirements name the CUDA build of fbgemm, so pip cannot choose for you. On a CPU: "
    "pip install fbgemm-gpu-cpu==1.8.0 tensordict torchmetrics==1.0.3 pyre-extensions && pip install --no-deps torchrec==1.8.0; "
    "on a GPU: pip install torchrec==1.8.0"
)


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
    for name in {"overrides", "inputs"} & set(vars(args)):  # argparse takes no more positional arguments after an option
        vars(args)[name] += [text for text in rest if not text.startswith("-")]
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
        print(f"error: {error}{_way_out(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if args.verbose or type(error) is RuntimeError:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _way_out(error: ValueError | OSError) -> str:
    """What to do where the disk refuses: the system's text says only what happened."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space, or name a folder on another disk, and run the same command again: what is finished is kept"
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; name another place, or see to its permissions"
    return ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trm",
        description="Recommenders on TorchRec: from a click log to a trained, evaluated and exported model. One YAML is one run.",
        epilog="a first run:  trm check CONFIG && trm prepare CONFIG && trm train CONFIG && trm evaluate RUN && trm export RUN",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help=VERBOSE)
    parser.add_argument("--version", action="version", version=f"torchrec-models {version('torchrec-models')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    configs.add(verbs)
    data.add(verbs)
    runs.add(verbs)
    serving.add(verbs)
    configs.add_demo(verbs)
    return parser


def _quiet_libraries(*, verbose: bool) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("torchrec_models").setLevel(logging.INFO)
    if not verbose:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler's C++ part; read when torch is imported
        for name in ("torchrec", "torch", "torch.fx._symbolic_trace", "fbgemm_gpu", "onnxscript"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for module in ("torch", "torchrec", "fbgemm_gpu", "onnxscript", "tensordict"):
            warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
