"""Verbs that make and read caches: prepare."""

import argparse

from .arguments import add_config, add_verb


def add(verbs: argparse._SubParsersAction) -> None:
    prepare = add_verb(verbs, "prepare", _prepare, "read the data, fit the transforms on the training rows, write the shard cache")
    add_config(prepare)
    prepare.add_argument("--force", action="store_true", help="replace a cache that was prepared from other data or settings")


def _prepare(args: argparse.Namespace) -> None:
    from torchrec_models.pipelines import config as C
    from torchrec_models.pipelines.data.prepare import prepare

    config = C.load(args.config, args.overrides)
    cache = prepare(config, force=args.force)
    for name, split in cache.splits.items():
        labels = ", ".join(f"{k} {v:.4f}" for k, v in split.label_mean.items())
        print(f"{name:6} {split.num_rows:>12,} rows" + (f"   mean label: {labels}" if labels else ""))
    print(f"{cache.folder}: {cache.num_bytes / 2**20:,.1f} MiB; next: trm train {args.config}")
