"""`trm data inspect` and `trm data verify`: what a cache holds, and whether it still does."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from torchrec_models.pipelines.data.shards import Cache

from .hashed import hashed_lines, hashed_tables

_SHOWN_FEATURES = 200


def inspect(cache: Cache) -> str:
    """What the manifest says: splits, features, tables, sources, versions."""
    lines = [f"{cache.folder}: {cache.num_bytes / 2**20:,.1f} MiB, fingerprint {cache.fingerprint[:12]}", ""]
    lines.append(f"{'split':8} {'rows':>14} {'shards':>7} {'MiB':>10}   label means, side columns")
    for name, split in cache.splits.items():
        labels = ", ".join(f"{task} {mean:.5f}" for task, mean in split.label_mean.items())
        side = ", ".join(split.columns) if split.shards else ""
        lines.append(
            f"{name:8} {split.num_rows:>14,} {len(split.shards):>7} {split.num_bytes / 2**20:>10,.1f}   {labels}"
            + (f"; {side}" if side else "")
        )
    lines += ["", f"{'feature':24} {'kind':12} {'table':20} {'table rows':>12} {'max_len':>8}"]
    for feature in cache.schema.features[:_SHOWN_FEATURES]:
        table = cache.schema.table(feature.table) if feature.table else None
        rows = f"{table.num_rows:,}" if table else ""
        max_len = str(feature.max_len) if feature.max_len > 1 else ""
        lines.append(f"{feature.name:24} {feature.kind:12} {feature.table:20} {rows:>12} {max_len:>8}".rstrip())
    if len(cache.schema.features) > _SHOWN_FEATURES:
        lines.append(f"and {len(cache.schema.features) - _SHOWN_FEATURES} more")
    lines += hashed_lines(hashed_tables(cache))
    if cache.stores:
        lines += ["", f"{'store':24} {'ids':>12} {'features':>9}   column of the data, rows whose id it lacks"]
    for store in cache.stores:
        unknown = ", ".join(f"{split} {count:,}" for split, count in store.unknown_rows.items())
        lines.append(f"{store.name:24} {store.num_rows:>12,} {len(store.features):>9}   {store.column}; {unknown}")
    files = [f for of_split in (cache.manifest["inputs"] or {}).get("files", {}).values() for f in of_split]
    lines += ["", f"prepared from {len(files)} files with " + ", ".join(f"{k} {v}" for k, v in cache.manifest["versions"].items())]
    return "\n".join(lines)


class AlteredCache(RuntimeError):
    """A verification that failed."""


@dataclass(frozen=True)
class Verdict:
    """Of a verification.

    Attributes:
        problems: one sentence for each file that is missing or altered.
    """

    num_files: int
    num_bytes: int
    problems: tuple[str, ...]

    def raise_if_bad(self) -> None:
        """Raises AlteredCache, naming every bad file."""
        if self.problems:
            listed = "\n  ".join(self.problems)
            raise AlteredCache(f"{len(self.problems)} of {self.num_files} files are not as they were written:\n  {listed}")


def verify(folder: Path, *, progress: bool = True) -> Verdict:
    """Reads every byte of a cache and compares it with the manifest; goes on behind a bad file, to name them all.

    Raises:
        ValueError: if there is no cache, or its manifest is altered: then nothing vouches for the files.
    """
    cache = Cache.without_looking_at_files(folder)
    entries = list(cache.files())
    num_bytes = sum(entry.bytes for _, entry in entries)
    problems = []
    with tqdm(desc="verify", total=num_bytes, unit="B", unit_scale=True, disable=not progress) as bar:
        for path, entry in entries:
            try:
                entry.check(path)
            except ValueError as error:
                problems.append(str(error))
            bar.update(entry.bytes)
    return Verdict(len(entries), num_bytes, tuple(problems))
