"""From measured speeds to words: what limits the steps of a training run, by how much, and what to change."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["host_to_device", "sparse", "dense", "optimizer", "logging"]
Limit = Literal["input", "host_to_device", "sparse", "dense", "optimizer", "logging"]
PARTS: tuple[Part, ...] = ("host_to_device", "sparse", "dense", "optimizer", "logging")

REACHED = 0.95
"""With the loader on, a run this close to the speed on a cached batch is not limited by its input."""

NAMES: dict[Limit, str] = {
    "input": "input-bound",
    "host_to_device": "bound by copies from the host to the device",
    "sparse": "bound by embeddings (lookup, update, all-to-all)",
    "dense": "bound by the net's forward and backward",
    "optimizer": "bound by the dense optimizer",
    "logging": "bound by logging",
}
ADVICE: dict[Limit, str] = {
    "input": "",  # depends on why; see `_input`
    "host_to_device": "fewer bytes per row: a shorter max_len, fewer features; a larger train.batch_size fills the bus better",
    "sparse": "a shorter max_len and narrower tables (dim) cost less; mode: fused updates the rows of the batch only, "
    "mode: unfused whole tables; with several processes, look at sharding.types",
    "dense": "a larger train.batch_size, train.compile=true or (on a GPU) train.precision=bfloat16; then fewer or narrower layers",
    "optimizer": "mode: fused updates tables inside backward; of the dense optimizers, sgd and fused adam cost least; a larger "
    "train.batch_size makes fewer steps",
    "logging": "a larger train.batch_size makes fewer steps to note; train.tensorboard=false",
}


@dataclass(frozen=True)
class Speeds:
    """What was measured.

    Attributes:
        loader, cached: batches per second of the loader alone, and of training on a cached batch.
        reached: speed of training with the loader, as a share of `cached`.
        reached_of_varied: as a share of the speed on several cached batches in turn. Their rows of tables do not stay in the
            processor's caches as those of one batch do, so this is what the loader itself costs.
        shares: of a step on a cached batch, by part.
        resident: as `cached`, of a batch that lies on the GPU already; None without a GPU.
    """

    loader: float
    cached: float
    reached: float
    reached_of_varied: float
    shares: Mapping[Part, float]
    resident: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    limit: what bounds the run.
    gain: how many times as fast steps would be if it took no time.
    """

    limit: Limit
    gain: float
    text: str
    advice: str


def judge(speeds: Speeds) -> Verdict:
    """What limits training, by how much, and what to change."""
    if max(speeds.reached, speeds.reached_of_varied) < REACHED:
        return _input(speeds)
    shares = dict(speeds.shares)
    if speeds.resident:  # copies overlap with the step before: only what they delay counts
        shares["host_to_device"] = max(0.0, 1.0 - speeds.cached / speeds.resident)
    limit: Part = max(PARTS, key=lambda part: shares.get(part, 0.0))
    share = min(shares.get(limit, 0.0), 0.99)
    gain = 1.0 / (1.0 - share)
    text = (
        f"{NAMES[limit]}: {share:.0%} of a step. Without it, steps would be {gain:.2f} times as fast. The loader does not limit: "
        f"training reaches {_reached(speeds)}"
    )
    return Verdict(limit, gain, text, ADVICE[limit])


def _input(speeds: Speeds) -> Verdict:
    gain = 1.0 / speeds.reached_of_varied
    made = f"the loader alone makes {speeds.loader:,.1f} batches a second and the model takes {speeds.cached:,.1f}"
    reason = made
    advice = (
        "a C compiler, if the log says that batches are gathered without one; a cache on a faster disk, or small enough to be kept "
        "in memory (1 GiB a split); a shorter max_len; fewer features; more processes, each of which reads its part"
    )
    if speeds.loader >= speeds.cached:
        reason = f"{made}, but both at once compete for the same cores, memory or interpreter"
        advice = (
            "leave a core to the loader's thread (OMP_NUM_THREADS one below the number of cores); a shorter max_len and fewer "
            "features make less to copy; a larger train.batch_size takes fewer turns of the interpreter"
        )
    text = (
        f"{NAMES['input']}: training reaches {_reached(speeds)}; with an input that costs nothing it would be {gain:.2f} times as "
        f"fast: {reason}"
    )
    return Verdict("input", gain, text, advice)


def _reached(speeds: Speeds) -> str:
    return f"{speeds.reached:.1%} of the speed on a cached batch, {speeds.reached_of_varied:.1%} of that on several in turn"
