"""Verbs that make and read caches: prepare, data."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from .arguments import add_config, add_examples, add_verb


def add(verbs: argparse._SubParsersAction) -> None:
    prepare = add_verb(verbs, "prepare", _prepare, "read files or queries, fit transforms on the training rows, write shards")
    add_config(prepare)
    prepare.add_argument("--force", action="store_true", help="replace a cache of other data or settings; run queries again")
    prepare.add_argument("--workers", type=int, default=0, help="threads; the cache does not depend on it (default: one per core)")
    prepare.epilog = (
        "Several machines make one cache together where torchrun starts them "
        "(torchx run launch/components.py:prepare --config CONFIG --nnodes 4). "
        "All must see the same files, and the folder of the cache, under the same paths. "
        "The cache is the same, byte for byte, however many make it. They share out the files, and large Parquet files between row "
        "groups; a query is read, and co-visitations are counted, by the first process alone. "
        "Killed and started again it goes on where it last saved, 10 seconds ago or so; on another number of machines, too, but "
        "then it learns anew."
    )
    _add_data(verbs)


def _add_data(verbs: argparse._SubParsersAction) -> None:
    data = add_verb(verbs, "data", lambda args: None, "look into a prepared cache, or choose rows of it")
    looks = data.add_subparsers(dest="look", required=True, metavar="LOOK")

    def add_look(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        look = add_verb(looks, name, run, text)
        look.add_argument("target", type=Path, help="cache folder, or the YAML config that names it")
        return look

    add_look("inspect", _inspect, "what the manifest says: splits, features, tables, sources, versions")
    add_look("verify", _verify, "read every byte and compare it with the checksums; names each file that is missing or altered")
    head = add_look("head", _head, "the first rows, back in raw values where the vocabularies allow it")
    head.add_argument("--split", default="", help="one of those that inspect shows (default: the first, mostly train)")
    head.add_argument("--rows", type=int, default=3, help="default: 3")
    stats = add_look("stats", _stats, "numbers, ids, missing values, labels by split and by day, as text and as one HTML page")
    stats.add_argument("--html", type=Path, help="the page; default: <cache>.stats.html beside the cache folder")
    stats.add_argument("--json", action="store_true", help="print JSON; a page is then made with --html only")
    add_examples(
        stats,
        "trm data stats configs/ml100k/deepfm.yaml  # after trm prepare: a table, and a page beside the cache",
        "trm data stats cache/ml100k --html ml100k.html",
        "trm data stats cache/ml100k --json | jq .  # for programs",
    )
    _add_select(looks)


def _add_select(looks: argparse._SubParsersAction) -> None:
    select = add_verb(looks, "select", _select, "choose the training rows that are worth training on, for train.sampling.selection")
    add_config(select)
    select.add_argument("--keep", type=float, required=True, help="share of the training rows, such as 0.3")
    select.add_argument(
        "--method",
        choices=("el2n", "el2n_random", "random"),
        default="el2n_random",
        help="el2n: those that short-trained models get most wrong; el2n_random (default): some of them, the others at random",
    )
    select.add_argument("--hard-share", type=float, default=0.5, help="el2n_random: share of the kept rows (default: 0.5)")
    select.add_argument(
        "--unweighted", action="store_true", help="el2n_random: do not let the random rows stand for all rows that are not hard"
    )
    select.add_argument("--runs", type=int, default=3, help="models that score (default: 3)")
    select.add_argument("--epochs", type=int, default=1, help="that each of them is trained for (default: 1)")
    select.add_argument("--scores", type=Path, help="an earlier selection, whose scores are used instead of training")
    select.add_argument("--seed", type=int, default=0, help="of the random rows (default: 0)")
    select.add_argument("--out", type=Path, help="folder; default: <cache>.selections/<method>-<keep>")


def _select(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.select_rows import select

    config = C.load(args.config, args.overrides)
    cache = Path(config.data.cache)
    out = args.out or cache.with_name(f"{cache.name}.selections") / f"{args.method}-{args.keep:g}"
    selection = select(
        config,
        out,
        keep=args.keep,
        method=args.method,
        hard_share=args.hard_share,
        weighted=not args.unweighted,
        runs=args.runs,
        epochs=args.epochs,
        seed=args.seed,
        scores_of=args.scores,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{out}: {len(selection.rows):,} of {selection.chosen_from['num_rows']:,} training rows")
        print(f"next: trm train {args.config} train.sampling.selection={out} run=RUN")


def _prepare(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.data.prepare import prepare
    from torchrec_models.pipelines.data.shards import Cache
    from torchrec_models.pipelines.replicas import replicas

    config = C.load(args.config, args.overrides)
    processes = replicas()
    prepare(config, force=args.force, workers=args.workers, replicas=processes)
    if not processes.is_first:
        return
    cache = Cache.open(config.data.cache)  # with folds: all of them
    for name, split in cache.splits.items():
        labels = ", ".join(f"{k} {v:.4f}" for k, v in split.label_mean.items())
        print(f"{name:6} {split.num_rows:>12,} rows" + (f"   mean label: {labels}" if labels else ""))
    for store in cache.stores:
        unknown = ", ".join(f"{split} {count:,}" for split, count in store.unknown_rows.items() if count) or "none"
        print(f"store {store.name}: {store.num_rows:,} ids; rows of the data whose {store.column} it lacks: {unknown}")
    print(f"{cache.folder}: {cache.num_bytes / 2**20:,.1f} MiB; next: trm train {args.config}")


def _inspect(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.data.shards import Cache
    from torchrec_models.pipelines.inspection.overview import inspect
    from torchrec_models.pipelines.inspection.target import cache_folder

    print(inspect(Cache.open(cache_folder(args.target))))


def _verify(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.inspection.overview import verify
    from torchrec_models.pipelines.inspection.target import cache_folder

    folder = cache_folder(args.target)
    verdict = verify(folder)
    verdict.raise_if_bad()
    print(f"{folder}: sound; {verdict.num_files:,} files, {verdict.num_bytes / 2**20:,.1f} MiB are as they were written")


def _head(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.data.shards import Cache
    from torchrec_models.pipelines.inspection.head import head, text
    from torchrec_models.pipelines.inspection.target import cache_folder

    cache = Cache.open(cache_folder(args.target))
    print(text(head(cache, args.split or next(iter(cache.splits)), num_rows=args.rows)))


def _stats(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines.data.shards import Cache
    from torchrec_models.pipelines.inspection.as_json import as_dict
    from torchrec_models.pipelines.inspection.hashed import hashed_tables
    from torchrec_models.pipelines.inspection.page import table, write_page
    from torchrec_models.pipelines.inspection.statistics import statistics
    from torchrec_models.pipelines.inspection.target import cache_folder

    cache = Cache.open(cache_folder(args.target))
    stats = statistics(cache, progress=True)
    if args.json:
        print(json.dumps(as_dict(stats, hashed=hashed_tables(cache)), indent=1))
        if args.html:
            write_page(args.html, cache, stats)
        return
    print(table(stats, hashed=hashed_tables(cache)))
    print(f"\nwrote {write_page(args.html or cache.folder.with_name(cache.folder.name + '.stats.html'), cache, stats)}")
