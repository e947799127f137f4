"""What a person sees of a training run: the progress bar, metrics.csv, TensorBoard, and the check for NaN."""

import csv
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from torchrec_models.batch import Batch

REFRESH_SECONDS = 0.5
AUXILIARY = "auxiliary_"


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


class _Window:
    """What happened since it was opened. Losses stay on their device until they are asked for."""

    def __init__(self, batches: TimedBatches, now: float) -> None:
        self._batches = batches
        self._loss_T: Tensor | float = 0.0
        self._weight_T: Tensor | float = 0.0
        self._shown: dict[str, Tensor] = {}
        self.num_steps = 0
        self._num_rows = 0
        self.start = now
        self._waited_seconds = batches.waited_seconds

    def add(self, loss_T: Tensor, weight_T: Tensor, shown: Mapping[str, Tensor], num_rows: int) -> None:
        self._loss_T = self._loss_T + loss_T
        self._weight_T = self._weight_T + weight_T
        self._shown = {name: self._shown.get(name, 0) + value for name, value in shown.items()}
        self.num_steps += 1
        self._num_rows += num_rows

    def means(self, now: float, tasks: Sequence[str]) -> dict[str, float]:
        seconds = max(now - self.start, 1e-9)
        loss_T, weight_T = torch.as_tensor(self._loss_T).reshape(-1).tolist(), torch.as_tensor(self._weight_T).reshape(-1).tolist()
        per_task = zip(tasks, loss_T, weight_T) if len(tasks) > 1 else ()
        return {
            "loss": sum(loss_T) / max(sum(weight_T), 1e-12),
            **{f"loss_{name}": loss / max(weight, 1e-12) for name, loss, weight in per_task},
            **{name: float(total) / self.num_steps for name, total in self._shown.items()},
            "steps_per_second": self.num_steps / seconds,
            "samples_per_second": self._num_rows / seconds,
            "data_wait_share": min(1.0, (self._batches.waited_seconds - self._waited_seconds) / seconds),
        }


class Monitor:
    """Collects losses without waiting for the device. The bar follows the clock; what is logged follows the steps alone, so that
    a resumed run logs what an uninterrupted one does.

    Args:
        run: folder for metrics.csv and TensorBoard events; None on all processes but the first.
        batches: where the loop gets its batches.
        first_step: steps done before.
        num_steps: of the whole run.
        log_every_steps: between two rows of metrics.csv; evaluations and checkpoints add rows of their own.
        tasks: names of the loss's columns; several get a column each.

    Attributes:
        num_rows: seen so far, over all processes.
    """

    def __init__(
        self,
        run: Path | None,
        *,
        batches: TimedBatches,
        first_step: int,
        num_steps: int,
        log_every_steps: int,
        tensorboard: bool,
        progress: bool,
        tasks: Sequence[str] = (),
    ) -> None:
        self.batches = batches
        self.tasks = tasks
        self.log_every_steps = log_every_steps
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
        self.num_rows = 0
        self._csv = None
        self._writer = None
        if run is not None:
            self._csv = _CsvLog(run / "metrics.csv", keep_until_step=first_step)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        self._paused_at: float | None = None
        self._shown = _Window(batches, self._now())
        self._logged = _Window(batches, self._now())
        self.average_loss = float("nan")

    def add(self, output: tuple[Tensor, Tensor, Tensor, Tensor], *, shown: Mapping[str, Tensor], global_rows: int) -> None:
        """One step is done. Keep it cheap: nothing here waits for a GPU unless it is time to show something.

        Args:
            shown: what the loss says of the step (`RankingLoss.shown`); logged as means over steps.
        """
        losses_BT, _, _, weights_BT = output
        loss_T, weight_T = (losses_BT * weights_BT).sum(dim=0), weights_BT.sum(dim=0)
        self.step += 1
        self.num_rows += global_rows
        for window in (self._shown, self._logged):
            window.add(loss_T, weight_T, shown, global_rows)
        self.bar.update()
        if not self.bar.disable and self._now() - self._shown.start >= REFRESH_SECONDS:
            means = self._shown.means(self._now(), self.tasks)
            speed = f"{means['samples_per_second']:,.0f} rows/s, data wait {means['data_wait_share']:.0%}"
            added = "".join(
                f", {name.removeprefix(AUXILIARY)} {value:+.4f}" for name, value in means.items() if name.startswith(AUXILIARY)
            )
            self.bar.set_postfix_str(f"loss {means['loss']:.4f}{added}, {speed}", refresh=False)
            self._shown = _Window(self.batches, self._now())

    def log_if_due(self, factor: float) -> None:
        if self.step % self.log_every_steps == 0:
            self.log(factor)

    def log(self, factor: float, metrics: dict[str, float] | None = None) -> None:
        """A row of metrics.csv: means since the last one. The loss is of this process's rows, samples are of all processes.

        `loss` is the mean over all labels; `loss_<label>`, `weight_<label>` and `auxiliary_<name>` tell it apart where there are
        several labels or a net adds to the loss. `loss` and `loss_<label>` never hold what a net adds, nor the weights.
        """
        means = self._logged.means(self._now(), self.tasks)
        self.average_loss = means["loss"]
        row: dict[str, Any] = {"step": self.step, "lr_factor": factor, **means}
        row |= {f"valid_{k}": v for k, v in (metrics or {}).items()}
        if self._csv:
            self._csv.write(row)
        if self._writer:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name.replace("valid_", "valid/"), value, self.step)
        self._logged = _Window(self.batches, self._now())

    def pause(self) -> None:
        """Stop the clock: what follows (evaluation, checkpoint) is no training."""
        self._paused_at = time.perf_counter()

    def go_on(self) -> None:
        assert self._paused_at is not None
        away_seconds = time.perf_counter() - self._paused_at
        self._paused_at = None
        for window in (self._shown, self._logged):
            window.start += away_seconds

    def _now(self) -> float:
        return time.perf_counter() if self._paused_at is None else self._paused_at

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
            whole_lines, _, _ = path.read_text().rpartition("\n")  # a killed process may have left half a line
            self.rows = [row for row in csv.DictReader(whole_lines.splitlines()) if int(row["step"]) <= keep_until_step]
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
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(partial, self.path)


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
