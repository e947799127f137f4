"""What a person sees of a training run: the progress bar, metrics.csv, TensorBoard, and the check for NaN."""

import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from torchrec_models.batch import Batch

REFRESH_SECONDS = 0.5


class TimedBatches(Iterator[Batch]):
    """Counts the seconds that the training loop spends waiting for batches."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches
        self.waited_seconds = 0.0

    def __next__(self) -> Batch:
        start = time.perf_counter()
        try:
            return next(self.batches)
        finally:
            self.waited_seconds += time.perf_counter() - start


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the text says when, where and what to look at."""


class Monitor:
    """Collects losses without waiting for the device, and shows them about twice a second.

    Args:
        run: folder for metrics.csv and TensorBoard events; None on all processes but the first.
        first_step: steps done before.
        num_steps: of the whole run.
    """

    def __init__(self, run: Path | None, *, first_step: int, num_steps: int, tensorboard: bool, progress: bool) -> None:
        self.batches: TimedBatches | None = None
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc="training",
            unit="step",
            disable=run is None or not progress,
            dynamic_ncols=True,
            mininterval=REFRESH_SECONDS if sys.stderr.isatty() else 30.0,  # a log file needs no animation
            file=sys.stderr,
        )
        self.step = first_step
        self._csv = None
        self._writer = None
        if run is not None:
            self._csv = _CsvLog(run / "metrics.csv", keep_until_step=first_step)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
        self._reset()
        self.average_loss = float("nan")

    def _reset(self) -> None:
        self._loss: Tensor | float = 0.0
        self._weight: Tensor | float = 0.0
        self._steps = 0
        self._rows = 0
        self._since = time.perf_counter()
        self._waited = self.batches.waited_seconds if self.batches else 0.0

    def add(self, output: tuple[Tensor, Tensor, Tensor, Tensor], *, factor: float, global_rows: int) -> None:
        """One step is done. Keep it cheap: nothing here waits for a GPU unless it is time to show something."""
        losses_BT, _, _, weights_BT = output
        self._loss = self._loss + (losses_BT * weights_BT).sum()
        self._weight = self._weight + weights_BT.sum()
        self.step += 1
        self._steps += 1
        self._rows += global_rows
        self.bar.update()
        if time.perf_counter() - self._since >= REFRESH_SECONDS:
            self.show(factor)

    def show(self, factor: float, metrics: dict[str, float] | None = None) -> None:
        """Refresh the bar, log a row. Means since the last one; loss and samples are of this process's rows and of all rows."""
        if self._steps == 0 and not metrics:
            return
        seconds = max(time.perf_counter() - self._since, 1e-9)
        row: dict[str, Any] = {"step": self.step, "lr_factor": factor}
        if self._steps:
            assert self.batches is not None
            self.average_loss = float(self._loss) / max(float(self._weight), 1e-12)
            row |= {
                "loss": self.average_loss,
                "steps_per_second": self._steps / seconds,
                "samples_per_second": self._rows / seconds,
                "data_wait_share": min(1.0, (self.batches.waited_seconds - self._waited) / seconds),
            }
            self.bar.set_postfix_str(
                f"loss {self.average_loss:.4f}, {row['samples_per_second']:,.0f} rows/s, data wait {row['data_wait_share']:.0%}",
                refresh=False,
            )
        row |= {f"valid_{k}": v for k, v in (metrics or {}).items()}
        if self._csv:
            self._csv.write(row)
        if self._writer:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name.replace("valid_", "valid/"), value, self.step)
        self._reset()

    def say(self, text: str) -> None:
        if self._csv is not None:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        if self._writer:
            self._writer.close()


class _CsvLog:
    """metrics.csv with a column for each name ever seen. Rows behind a resumed step are dropped: they will come again."""

    def __init__(self, path: Path, *, keep_until_step: int) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if keep_until_step and path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= keep_until_step]
        self.names = list(dict.fromkeys(name for row in self.rows for name in row))
        self._rewrite()

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        new = [name for name in row if name not in self.names]
        if new:
            self.names += new
            self._rewrite()
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.names, restval="").writerow(row)

    def _rewrite(self) -> None:
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


class LossCheck:
    """Stops a run whose loss is not finite. On a GPU it looks only every `every` steps, so that it never stalls the stream."""

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else 32
        self._bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def first_bad_step(self, losses_BT: Tensor, step: int) -> int | None:
        """The first step whose losses were not finite, or None so far."""
        bad = ~torch.isfinite(losses_BT).all()
        self._bad_step = torch.where((self._bad_step < 0) & bad, step, self._bad_step)
        if step % self.every == 0 and int(self._bad_step) >= 0:
            return int(self._bad_step)
        return None
