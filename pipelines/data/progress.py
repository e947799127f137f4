"""What a person sees while a cache is made, on stderr."""

import sys

from tqdm import tqdm


def say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr)


def progress_bar(text: str, num_rows: int | None, *, progress: bool) -> tqdm:
    return tqdm(desc=text, total=num_rows, unit=" rows", unit_scale=True, disable=not progress, leave=progress)
