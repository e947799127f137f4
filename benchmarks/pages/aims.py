"""What was aimed at, and what the results say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .results import change, table


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
    measured = f"{few:,.0f} to {many:,.0f} MiB, {change(few, many)}"
    return Aim(of, f"within {100 * share:.0f} %", measured, [], abs(many - few) <= share * few)


def aims_table(aims: Sequence[Aim]) -> str:
    rows = ((one.of, one.aim, one.measured, one.verdict) for one in aims)
    num_reached = sum(one.reached for one in aims)
    return f"{num_reached} of {len(aims)} are reached.\n\n{table(('what', 'aim', 'measured', 'verdict'), rows)}"
