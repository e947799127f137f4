"""Sequences that tell of the same events (item, category, time gap) must have as many values in every row.

A config says so with `aligned_with`, and the transforms check each row, in `trm prepare` and when serving. These rules see that
it is said wherever a net reads sequences side by side: without it, a shorter list would move events against each other in silence.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .data import SequenceConfig
from .errors import nearest

if TYPE_CHECKING:
    from torchrec_models.net import Net

    from .run import RunConfig

_SAME = ("max_len", "keep", "side")


def alignment_problems(config: "RunConfig", at: Callable[[str, str], str]) -> Iterator[str]:
    """What is wrong with each `aligned_with` itself."""
    sequences = {name: feature for name, feature in config.features.items() if isinstance(feature, SequenceConfig)}
    for name, feature in sequences.items():
        here, given = f"{at('features', name)}.aligned_with", feature.aligned_with
        if not given:
            continue
        others = [other for other in sequences if other != name]
        if given not in others:
            yield f"{here}: given {given!r}; must name another sequence: {', '.join(others) or 'none'}{nearest(given, others)}"
            continue
        for key in _SAME:
            mine, theirs = getattr(feature, key), getattr(sequences[given], key)
            if mine != theirs:
                yield f"{at('features', name)}.{key}: given {mine!r}; {given!r}, with which it is aligned, has {theirs!r}"


def parallel_problems(config: "RunConfig", net: "Net") -> Iterator[str]:
    """Sequences that the net reads side by side and that nothing aligns. Those that read one column are aligned by nature."""
    from torchrec_models.net import Net  # torch is slow to import

    aligned = _groups(config)
    for module in net.modules():
        for first, *others in module.parallel_sequences() if isinstance(module, Net) else ():
            for name in others:
                if aligned[name] != aligned[first]:
                    yield (
                        f"features.{name}.aligned_with: required, for the model reads it beside {first!r}, event by event; "
                        f"give aligned_with: {first}"
                    )


def _groups(config: "RunConfig") -> dict[str, tuple[str, str, str]]:
    """Sequence -> what it shares with all that are aligned with it: how one of them is read."""
    sequences = {name: feature for name, feature in config.features.items() if isinstance(feature, SequenceConfig)}
    groups: dict[str, tuple[str, str, str]] = {
        name: (feature.column or name, feature.separator, feature.keep) for name, feature in sequences.items()
    }
    for name, feature in sequences.items():
        if feature.aligned_with:
            old, new = groups[name], groups[feature.aligned_with]
            groups = {n: new if group == old else group for n, group in groups.items()}
    return groups
