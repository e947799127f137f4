"""What was aimed at, and what the results say of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .results import table


@dataclass(frozen=True)
class Aim:
    """One line of a table of aims.

    Attributes:
        of: what is measured.
        aim: what was wanted, in words.
        measured: the figure, with its unit.
        met: of each round, where there are several, whether the aim was met in it.
        reached: whether it is met on the whole: by the median of the rounds.
    """

    of: str
    aim: str
    measured: str
    met: Sequence[bool]
    reached: bool

    @property
    def verdict(self) -> str:
        said = "reached" if self.reached else "**missed**"
        return f"{said} ({sum(self.met)} of {len(self.met)} rounds)" if len(self.met) > 1 else said


def at_least(of: str, rounds: Sequence[float], aim: float, unit: str, *, digits: int = 0) -> Aim:
    """An aim that the median of the rounds is to reach or pass."""
    middle = median(rounds)
    return Aim(of, f"{aim:,} {unit}", f"{middle:,.{digits}f} {unit}", [number >= aim for number in rounds], middle >= aim)


def flat(of: str, few: float, many: float, share: float = 0.1) -> Aim:
    """Memory in MiB that is to differ by at most this share."""
    differs = many / few - 1
    measured = f"{few:,.0f} to {many:,.0f} MiB, {100 * differs:+.1f} %"
    return Aim(of, f"within {100 * share:.0f} %", measured, [], abs(differs) <= share)


def aims_table(aims: Iterable[Aim]) -> str:
    return table(("what", "aim", "measured", "verdict"), ((one.of, one.aim, one.measured, one.verdict) for one in aims))
