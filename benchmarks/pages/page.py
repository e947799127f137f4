"""Markers in a page, and what is written between them.

    <!-- table: NAME -->
    ... written by `python -m benchmarks.pages`, never by hand ...
    <!-- end: NAME -->
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .results import Results

Render = Callable[[Results], str]
MARKER = re.compile(r"^<!-- (table|end): (.*?) -->$", re.MULTILINE)


class PageError(ValueError):
    """A page cannot be written; says which page, which marker and which result file."""


def fill(page: Path, tables: Mapping[str, Render], results: Results) -> str:
    """The page's text with every table as the results give it; all else stays.

    Raises:
        PageError: if a marker has no partner, no table bears its name, a table has no marker, or a result file is missing or holds
            other things than its table shows.
    """
    text = page.read_text()
    pieces, position = [], 0
    marks = list(MARKER.finditer(text))
    for begin, end in zip(marks[::2], [*marks[1::2], None]):
        name = begin[2]
        if begin[1] != "table" or end is None or (end[1], end[2]) != ("end", name):
            partner = "<!-- table: ... -->" if begin[1] == "end" else f"<!-- end: {name} -->"
            raise PageError(f"{page.name}: the marker {begin[0]} has no partner {partner}")
        if name not in tables:
            raise PageError(f"{page.name}: the marker {begin[0]} names no table of this page; there are: {', '.join(tables)}")
        pieces += [text[position : begin.end()], "\n\n", _rendered(page, name, tables[name], results), "\n\n"]
        position = end.start()
    unshown = set(tables) - {mark[2] for mark in marks}
    if unshown:
        missing = ", ".join(sorted(unshown))
        raise PageError(f"{page.name}: no marker for: {missing}; write <!-- table: ... --> and <!-- end: ... -->")
    return "".join([*pieces, text[position:]])


def _rendered(page: Path, name: str, render: Render, results: Results) -> str:
    reading = Results(results.folder)
    try:
        return render(reading)
    except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, OSError) as error:
        files = ", ".join(f"{results.folder.name}/{read}.json" for read in reading.read) or "no result file"
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
        raise PageError(f"{page.name}: table {name}, from {files}: {problem}") from error
    finally:
        results.read += [read for read in reading.read if read not in results.read]
