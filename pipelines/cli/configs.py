"""Verbs that look at configs and models: check, schema, inspect, profile, list, demo, demo-bid."""

import argparse
import json
import os
from pathlib import Path

from .arguments import add_config, add_examples, add_verb


def add(verbs: argparse._SubParsersAction) -> None:
    check = add_verb(verbs, "check", _check, "validate a config and the data it names, and report every mistake at once")
    add_config(check)
    check.add_argument("--print", action="store_true", dest="show", help="show the resolved config, with defaults and patterns")
    check.add_argument("--no-data", action="store_true", help="do not look at the data files")

    schema = add_verb(verbs, "schema", _schema, "write the JSON Schema of config files, for editors that complete and check YAML")
    schema.add_argument("out", nargs="?", type=Path, help="file; default: standard output")

    inspect = add_verb(
        verbs, "inspect", _inspect, "count a model's parameters and bytes by layer, and the FLOPs and table bytes of one row"
    )
    add_config(inspect)
    inspect.add_argument("--json", action="store_true", help="print JSON")

    profile = add_verb(
        verbs,
        "profile",
        _profile,
        "say what limits training (input, copies, tables, net, optimizer, log), by how much, what to change",
    )
    add_config(profile)
    profile.add_argument("--seconds", type=float, default=5.0, help="for each: loader, model, both (default: 5)")
    profile.add_argument("--out", type=Path, help="folder for timeline.json, which ui.perfetto.dev shows; default: RUN.profile")
    profile.add_argument("--json", action="store_true", help="print JSON")
    add_examples(
        profile,
        "trm profile configs/ml100k/deepfm.yaml  # after trm prepare of the same file",
        "trm profile configs/ml100k/deepfm.yaml train.batch_size=4096 --seconds 2  # what if",
        "trm profile configs/ml100k/deepfm.yaml --json | jq .  # for programs",
    )

    add_verb(verbs, "list", _list, "show every model: name, what it is, paper and year")


def add_demo(verbs: argparse._SubParsersAction) -> None:
    demo = add_verb(verbs, "demo", _demo, "MovieLens-100K from download to result, in a few minutes")
    demo.add_argument("--data-dir", type=Path, help="folder with ml-100k.inter, .item and .user, if you have them")

    bid = add_verb(verbs, "demo-bid", _demo_bid, "from a log of auctions to a running OpenRTB bidder, in three minutes")
    bid.add_argument("--data-dir", type=Path, help="folder with train.log.txt and test.log.txt of an iPinYou campaign")
    bid.add_argument("--requests", type=int, default=10_000, help="bid requests to send to the server (default: 10000)")


def _check(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C

    config = C.load(args.config, args.overrides)
    if not args.no_data:
        from torchrec_models.pipelines.data.prepare import check_data

        check_data(config)
    if args.show:
        print(C.write_yaml(config.model_dump(mode="json")), end="")
    else:
        print(f"{args.config}: no mistakes; next: trm prepare {args.config}")


def _schema(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C

    text = json.dumps(C.json_schema(), indent=1)
    if args.out:
        args.out.write_text(text + "\n")
        print(f"wrote {args.out}; in an editor: # yaml-language-server: $schema={args.out}")
    else:
        print(text)


def _inspect(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.model_size import inspect_config

    found = inspect_config(C.load(args.config, args.overrides))
    print(json.dumps(found.as_dict(), indent=1) if args.json else found.render())


def _profile(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.profiling.run import profile_run

    result = profile_run(C.load(args.config, args.overrides), seconds=args.seconds, out=args.out)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result.as_dict(), indent=1) if args.json else result.render())


def _list(_: argparse.Namespace) -> None:
    from torchrec_models.model import net_classes

    for name, net in net_classes().items():
        print(f"{name:12} {net.summary}")


def _demo(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.demo import demo

    demo(data_dir=args.data_dir)


def _demo_bid(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.demo_bid import demo_bid

    demo_bid(data_dir=args.data_dir, num_requests=args.requests)
