"""The verb that answers requests: serve."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .arguments import add_examples, add_verb

if TYPE_CHECKING:
    from torchrec_models.pipelines.serving.server import BundleOption, ServeOptions


def add(verbs: argparse._SubParsersAction) -> None:
    text = "answer requests with bundles over HTTP (JSON, Open Inference Protocol); needs no torch"
    parser = add_verb(verbs, "serve", _serve, text)
    add = parser.add_argument
    add("bundles", nargs="+", metavar="[NAME=]BUNDLE", help="folders that trm export wrote; the first is the default model")
    add("--split", action="append", default=[], metavar="NAME=BUNDLE:PERCENT", help="this version answers a share of the requests")
    add("--shadow", action="append", default=[], metavar="NAME=BUNDLE", help="this version scores every request, for /metrics only")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only; 0.0.0.0: every one)")
    add("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    add("--workers", type=int, default=1, help="processes; one per core that is to be used (default: 1)")
    add("--threads", type=int, default=1, help="ONNX Runtime threads per worker (default: 1, best for small batches)")
    add("--token-file", type=Path, help="file with the bearer token that requests must carry; health routes need none")
    add("--max-body-bytes", type=int, default=1 << 20, help="default: 1 MiB; larger bodies get 413")
    add("--max-rows", type=int, default=1024, help="rows of one request (default: 1024)")
    add("--max-batch-rows", type=int, default=64, help="rows of one call of the graph (default: 64)")
    add("--max-concurrency", type=int, default=256, help="requests in work per worker (default: 256); more get 503")
    add("--watch-seconds", type=float, default=1.0, help="how often to look for new versions (default: 1; 0: never)")
    add("--drain-seconds", type=float, default=1.0, help="how long SIGTERM lets requests come in (default: 1)")
    add("--access-log", type=float, default=0.0, metavar="SHARE", help="write a JSON line for this share of requests (default: 0)")
    add("--tls-cert", type=Path, help="PEM file with the certificate chain")
    add("--tls-key", type=Path, help="PEM file with the private key")
    add("--bid", type=Path, metavar="BID.YAML", help="answer OpenRTB 2.6 bid requests on POST /bid, see docs/bidding.md")
    add_examples(
        parser,
        "trm serve runs/frappe/deepfm/bundle  # on this machine; a page to try it: http://127.0.0.1:8000",
        'curl localhost:8000/predict -d \'{"user": 49, "item": 1901}\'  # in another shell',
        "trm serve ctr=runs/a/bundle --split ctr=runs/b/bundle:10  # b answers one request in ten",
        "trm serve runs/a/bundle --host 0.0.0.0 --workers 4 --token-file token.txt  # for other machines, on four cores",
        "trm serve runs/ipinyou/deepfm/bundle --bid configs/ipinyou/bid.yaml  # a bidder",
    )


def _serve(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.serving.server import serve

    serve(serve_options(args))


def serve_options(args: argparse.Namespace) -> "ServeOptions":
    """What was asked for.

    Raises:
        ValueError: for texts that cannot be read, with the form they should have.
    """
    from torchrec_models.pipelines.serving.app import Limits
    from torchrec_models.pipelines.serving.server import BundleOption, ServeOptions

    options = [_bundle(text, "current") for text in args.bundles]
    options += [_bundle(text, "shadow", needs_name=True) for text in args.shadow]
    for text in args.split:
        bundle, colon, percent = text.rpartition(":")
        if not colon or not _is_percent(percent):
            raise ValueError(f"--split {text}: the form is NAME=BUNDLE:PERCENT, for example ctr=runs/new/bundle:10")
        option = _bundle(bundle, "split", needs_name=True)
        options.append(BundleOption(name=option.name, path=option.path, role="split", share=float(percent) / 100))
    limits = Limits(body_bytes=args.max_body_bytes, concurrent_requests=args.max_concurrency)
    return ServeOptions(
        bundles=tuple(options),
        host=args.host,
        port=args.port,
        workers=args.workers,
        num_threads=args.threads,
        token=_token(args.token_file),
        limits=limits,
        max_rows=args.max_rows,
        max_batch_rows=args.max_batch_rows,
        watch_seconds=args.watch_seconds,
        drain_seconds=args.drain_seconds,
        access_log_share=args.access_log,
        certificate=args.tls_cert,
        key=args.tls_key,
        bid=args.bid,
    )


def _bundle(text: str, role: str, *, needs_name: bool = False) -> "BundleOption":
    from torchrec_models.pipelines.serving.server import BundleOption

    name, equals, path = text.partition("=")
    if not equals:
        if needs_name:
            raise ValueError(f"--{role} {text}: say whose version it is: NAME=BUNDLE")
        name, path = default_name(Path(text)), text
    if not name or not path or "/" in name:
        raise ValueError(f"bundle {text!r}: the form is NAME=BUNDLE, and a name holds no slash")
    return BundleOption(name=name, path=Path(path), role=role)


def default_name(path: Path) -> str:
    """The folder's name; a folder called `bundle` (or `current`) takes its parent's, unless that is the root."""
    path = path.absolute()
    return (path.name in ("bundle", "current") and path.parent.name) or path.name


def _is_percent(text: str) -> bool:
    try:
        return 0 <= float(text) <= 100
    except ValueError:
        return False


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    token = path.read_text().strip()
    if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{path}: a token is one word of at least 16 ASCII characters")
    return token
