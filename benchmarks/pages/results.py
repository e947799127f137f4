"""What result files hold, and how it is put into Markdown."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

Row = dict[str, Any]
MOST_COMMANDS = 3


class Results:
    """A folder of result files; remembers which of them were read."""

    def __init__(self, folder: Path = RESULTS) -> None:
        self.folder = folder
        self.read: list[str] = []

    def __call__(self, name: str) -> Row:
        """What NAME.json holds.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        if name not in self.read:
            self.read.append(name)
        return json.loads((self.folder / f"{name}.json").read_text())


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def origin(name: str, measured: Sequence[Row]) -> str:
    """Where numbers come from: file, machine, versions, and when, from which commit and by which command each was taken.

    Args:
        name: the result file's, without its ending.
        measured: the file itself, or the rows of it that are shown, where each row says it of itself.
    """
    machines = " and ".join(dict.fromkeys(_machine(one["machine"]) for one in measured))
    versions = "; ".join(dict.fromkeys(_versions(one["versions"]) for one in measured))
    groups: dict[tuple[str, str], list[str]] = {}
    for one in measured:
        groups.setdefault((one["commit"], one["command"]), []).append(one["date"])
    said = [f"{_period(dates)}, commit {commit}: `{command}`" for (commit, command), dates in groups.items()]
    if len(groups) > MOST_COMMANDS:
        commits = ", ".join(dict.fromkeys(commit for commit, _ in groups))
        dates = [date for dates in groups.values() for date in dates]
        last = max(groups, key=lambda group: max(groups[group]))[1]
        said = [f"{_period(dates)}, commits {commits}, by {len(groups)} commands (the file has them all), the last: `{last}`"]
    return f"`benchmarks/results/{name}.json`: {machines}; {versions}.\n\n" + "\n".join(f"- {one}" for one in said)


def _machine(machine: Row) -> str:
    return f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB"


def _versions(versions: Row) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _period(dates: Sequence[str]) -> str:
    first, last = min(dates), max(dates)
    if first == last:
        return first
    same_day = first.split()[0] == last.split()[0]
    return f"{first.removesuffix(' UTC')} to {last.split(maxsplit=1)[1] if same_day else last}"


def count(number: float) -> str:
    """Whole, with thousands apart."""
    return f"{number:,.0f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"


def span(numbers: Sequence[float]) -> str:
    return f"{count(min(numbers))} to {count(max(numbers))}"


def named(rows: Iterable[Row], wanted: Row) -> list[Row]:
    """The rows that have these values.

    Raises:
        LookupError: if there is none.
    """
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    if not found:
        raise LookupError(f"no row has {', '.join(f'{key} {value!r}' for key, value in wanted.items())}")
    return found


def named_one(rows: Iterable[Row], wanted: Row) -> Row:
    """The row that has these values, the last one where there are several."""
    return named(rows, wanted)[-1]
