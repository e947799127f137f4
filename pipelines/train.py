"""The training loop: TorchRec's pipeline, a step at a time, with evaluation and checkpoints between steps."""

import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.profiler import record_function
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist

from torchrec_models.batch import Batch

from . import checkpoint, checkpoint_folder
from .checkpoint_folder import Progress
from .config import RunConfig
from .config.errors import nearest
from .data.fingerprint import differences
from .data.loader import Loader
from .data.prepare import open_prepared
from .data.sampling import sampling_of
from .data.shards import Cache
from .data.targets import labels_without_contrast
from .diagnose import explain_non_finite
from .distributed import Built, Processes, Watchdog, average_buffers, build_task, processes, unpipelined
from .monitor import LossCheck, Monitor, TimedBatches
from .optim import TrainOptimizer
from .scoring import evaluation_mode, lower_is_better, validation_metrics

logger = logging.getLogger(__name__)

LOGGED_ROWS_PER_EPOCH = 50
SHOWN_DIFFERENCES = 8
NOTING = "## note_loss ##"  # a range in a profile, beside those of TorchRec's pipelines


@dataclass(frozen=True)
class TrainResult:
    """What a run came to. `metrics` are the best evaluation's."""

    run: Path
    progress: Progress
    metrics: dict[str, float]
    seconds: float


def train(config: RunConfig, *, resume: bool = True, progress: bool = True) -> TrainResult:
    """Train a prepared run to its end, from its last usable checkpoint if there is one.

    Args:
        resume: go on from the run's checkpoints; False refuses a run folder that has some.
        progress: show a progress bar.

    Raises:
        ValueError: data not prepared or changed since; a run folder of another config; an option that this device lacks.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    start = time.perf_counter()
    cache = open_prepared(config)
    run = Path(config.run)
    with processes(timeout_seconds=2 * config.train.step_timeout_seconds) as procs:
        run.mkdir(parents=True, exist_ok=True)
        found = procs.broadcast(_starting_point(run, config, resume=resume) if procs.is_first else None)
        trainer = Trainer(config, cache, procs, show=progress)
        if isinstance(found, Path):
            trainer.resume(found)
        trainer.fit()
        return TrainResult(run, trainer.progress, trainer.best_metrics(), time.perf_counter() - start)


def _starting_point(run: Path, config: RunConfig, *, resume: bool) -> Path | None:
    folder = checkpoint_folder.latest_usable(run)
    if folder is None:
        return None
    if not resume:
        raise ValueError(f"{run} holds checkpoints already; remove the folder, or train into another one: run=...")
    old, new = checkpoint_folder.read_config(folder).model_dump(mode="json"), config.model_dump(mode="json")
    for free in ("epochs", "steps", "checkpoint", "step_timeout_seconds", "tensorboard", "evaluate_every_steps", "early_stopping"):
        old["train"].pop(free), new["train"].pop(free)
    parts = ("model", "features", "tables", "labels", "train", "retrieval")
    changed = [line for k in parts for line in differences(old[k], new[k], k)]
    changed += differences(old["data"]["split"], new["data"]["split"], "data.split")  # another fold has the same cache
    if changed:
        listed = "\n  ".join(changed[:SHOWN_DIFFERENCES])
        raise ValueError(
            f"{run} was trained with another config ({folder / 'config.json'}):\n  {listed}\n"
            "Train into another folder (run=...), or remove this one"
        )
    return folder


class Trainer:
    """One run on this process: model, optimizer, pipeline, loader, and where it stands."""

    def __init__(self, config: RunConfig, cache: Cache, procs: Processes, *, show: bool) -> None:
        self.config, self.cache, self.procs, self.show = config, cache, procs, show
        train = config.train
        if procs.is_first:
            for text in labels_without_contrast(cache.schema, cache.split("train").label_mean):
                logger.warning("%s", text)
        sampling = sampling_of(config, cache)
        self.loader = Loader(
            cache,
            "train",
            batch_size=train.batch_size,
            rank=procs.rank,
            world_size=procs.world_size,
            shuffle=train.shuffle,
            seed=train.seed,
            sampling=sampling,
            last_batch=train.last_batch,
            pin_memory=procs.device.type == "cuda",
        )
        self.num_steps = train.steps or train.epochs * self.loader.num_batches
        self.built: Built = build_task(config, cache.schema, procs)
        if sampling:
            self.built.plain.loss.log_negative_rate = sampling.log_negative_rate
        self._refuse_batches_of_one_row()
        self.optimizer = TrainOptimizer(self.built.task, train, num_steps=self.num_steps, tables=self.built.embedding_parameters)
        pipeline = TrainPipelineSparseDist if self.built.is_sharded else TrainPipelineBase
        self.pipeline = pipeline(self.built.task, self.optimizer, procs.device)
        self.progress = Progress()
        self.valid = "valid" if "valid" in cache.splits else ""
        self.evaluate_every = train.evaluate_every_steps or self.loader.num_batches
        torch.manual_seed(train.seed * 1_000_003 + procs.rank)  # dropout must differ between processes

    def _refuse_batches_of_one_row(self) -> None:
        """Batch norm has no variance of one row; torch would say so in the middle of the run."""
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.built.plain.modules()):
            return
        train, world_size = self.config.train, self.procs.world_size
        if train.batch_size // world_size == 1:
            raise ValueError(
                f"batch norm needs two rows per process; given train.batch_size {train.batch_size} on {world_size} of them"
            )
        reached = self.num_steps >= self.loader.num_batches
        if reached and train.last_batch == "keep" and self.loader.num_rows % train.batch_size // world_size == 1:
            raise ValueError(
                f"the last batch of an epoch has one row per process ({self.loader.num_rows} rows, train.batch_size "
                f"{train.batch_size}, {world_size} process(es)), and batch norm needs two; set train.last_batch=drop, "
                "or another train.batch_size"
            )

    def resume(self, folder: Path) -> None:
        checkpoint_folder.check_cache(folder, self.cache)
        self.progress = checkpoint.resume(folder, built=self.built, optimizer=self.optimizer, procs=self.procs)
        if self.procs.is_first:
            logger.warning("resuming %s at step %d of %d", folder, self.progress.step, self.num_steps)

    def fit(self) -> None:
        """The loop. Returns at the last step or at an early stop, with a checkpoint of the final state."""
        if self.progress.stopped or self.progress.step >= self.num_steps:
            logger.warning("%s is finished already (%s)", self.config.run, self.progress.stopped or f"step {self.progress.step}")
            return
        run = Path(self.config.run) if self.procs.is_first else None
        batches = TimedBatches(self._batches())
        monitor = self.monitor(run, batches, show=self.show)
        check = LossCheck(self.procs.device)
        watchdog = Watchdog(self.config.train.step_timeout_seconds) if self.procs.world_size > 1 else None
        self.built.task.train()
        first_step = self.progress.step
        try:
            while self.progress.step < self.num_steps and not self.progress.stopped:
                factor = self.step(batches, monitor, check)
                if self.progress.step == first_step + 1 and isinstance(self.pipeline, TrainPipelineSparseDist):
                    left_out = unpipelined(self.built, self.pipeline)
                    assert not left_out, f"not pipelined: {left_out}; the code above these modules must be traceable"
                if watchdog:
                    watchdog.feed()
                self._between_steps(monitor, factor, watchdog)
        except BaseException:
            if watchdog:
                watchdog.feed()  # leaving can block too, in a collective whose peer is gone; the watchdog stays
            raise
        finally:
            monitor.close()
        if watchdog:
            watchdog.stop()

    def monitor(self, run: Path | None, batches: TimedBatches, *, show: bool) -> Monitor:
        """What writes metrics.csv and the rest of the log into a folder, from the current step on."""
        return Monitor(
            run,
            batches=batches,
            first_step=self.progress.step,
            num_steps=self.num_steps,
            log_every_steps=max(1, self.loader.num_batches // LOGGED_ROWS_PER_EPOCH),
            tensorboard=self.config.train.tensorboard,
            progress=show,
            tasks=[task.name for task in self.cache.schema.tasks],
        )

    def step(self, batches: Iterator[Batch], monitor: Monitor, check: LossCheck) -> float:
        """The next batch through the model, and what is noted of it. Returns the factor on the learning rates.

        Raises:
            NonFiniteLoss: as `train`.
        """
        factor = self.optimizer.set_step(self.progress.step)
        output = self.pipeline.progress(batches)
        self.progress.step += 1
        with record_function(NOTING):
            monitor.add(output, shown=self.built.plain.loss.shown, global_rows=output[2].shape[0] * self.procs.world_size)
            bad_step = check.first_bad_step(output[0], self.progress.step)
        if bad_step is not None:
            raise explain_non_finite(self.built, self.loader, step=bad_step, losses_BT=output[0])
        return factor

    def _batches(self) -> Iterator[Batch]:
        """From where the run stands to its last step, across epochs: the pipeline never runs dry between two of them."""
        first_epoch, first_batch = divmod(self.progress.step, self.loader.num_batches)
        num_epochs = -(-self.num_steps // self.loader.num_batches)
        batches = self.loader.epochs(range(first_epoch, num_epochs), start_batch=first_batch)
        return itertools.islice(batches, self.num_steps - self.progress.step)

    def _between_steps(self, monitor: Monitor, factor: float, watchdog: Watchdog | None) -> None:
        step, every = self.progress.step, self.config.train.checkpoint.every_steps
        evaluate = step % self.evaluate_every == 0 or step == self.num_steps
        if not evaluate and not (every and step % every == 0):
            monitor.log_if_due(factor)
            return
        monitor.pause()
        if watchdog:
            watchdog.pause()
        if isinstance(self.pipeline, TrainPipelineSparseDist):
            self.pipeline.detach()
        average_buffers(self.built, self.procs)
        is_best = False
        if evaluate:
            metrics = self._evaluate() if self.valid else {}
            is_best = self._judge(metrics)
            monitor.log(factor, metrics)
            monitor.say(_summary(step, self.loader.num_batches, monitor.average_loss, metrics, is_best))
        else:
            monitor.log(factor)
        checkpoint.save(
            Path(self.config.run),
            built=self.built,
            optimizer=self.optimizer,
            progress=self.progress,
            config=self.config,
            schema=self.cache.schema,
            transforms=self.cache.folder / "transforms",
            procs=self.procs,
            is_best=is_best,
        )
        if isinstance(self.pipeline, TrainPipelineSparseDist):
            # progress() would attach by itself, but distribute the batch in flight a second time and so break the context
            # of a sharded EmbeddingCollection on several processes (torchrec 1.8)
            self.pipeline.attach(sparse_dist=False)
        monitor.go_on()

    def _evaluate(self) -> dict[str, float]:
        with evaluation_mode(self.built, self.optimizer):
            return validation_metrics(self.built, self.cache, self.valid, self.config, self.procs)

    def _judge(self, metrics: dict[str, float]) -> bool:
        """Note the evaluation in `progress`, slow down or stop if it brought nothing. Returns whether it is the best one."""
        progress, rule = self.progress, self.config.train.early_stopping
        progress.metrics = metrics
        if not metrics:
            progress.best_step = progress.step
            return True
        name = rule.metric if rule else self._default_metric()
        if name not in metrics:
            raise ValueError(f"train.early_stopping.metric: given {name!r}; allowed: {', '.join(metrics)}{nearest(name, metrics)}")
        value, best = metrics[name], progress.best_value
        if math.isnan(value):
            if rule:
                raise ValueError(
                    f"train.early_stopping.metric: {name} of the {self.valid} split is not defined (are all its labels alike?); "
                    "take log_loss, or other validation rows"
                )
            if self.procs.is_first:
                logger.warning("%s of the %s split is not defined: no checkpoint can be marked as the best", name, self.valid)
            return False
        gain = float("inf") if best is None else (best - value if lower_is_better(name) else value - best)
        if gain > (rule.min_delta if rule else 0.0):
            progress.best_value, progress.best_step, progress.bad_evaluations = value, progress.step, 0
            return True
        progress.bad_evaluations += 1
        self.optimizer.schedule.no_improvement()
        progress.plateau_factor = self.optimizer.schedule.plateau_factor
        if rule and progress.bad_evaluations >= rule.patience:
            progress.stopped = f"no better {name} than {best:.6f} in {rule.patience} evaluations"
        return False

    def _default_metric(self) -> str:
        if self.config.retrieval is not None:
            return f"recall@{self.config.retrieval.k[0]}"
        tasks = self.cache.schema.tasks
        metric = "auc" if tasks[0].kind == "binary" else "rmse"
        return f"{tasks[0].name}_{metric}" if len(tasks) > 1 else metric

    def best_metrics(self) -> dict[str, float]:
        path = Path(self.config.run) / "best.json"
        return json.loads(path.read_text())["metrics"] if path.exists() else {}


def _summary(step: int, steps_per_epoch: int, loss: float, metrics: dict[str, float], is_best: bool) -> str:
    shown = ", ".join(f"{k} {v:.5f}" for k, v in metrics.items() if k.endswith(("auc", "log_loss", "rmse")) or "@" in k)
    return (
        f"step {step} (epoch {step / steps_per_epoch:.2f}): loss {loss:.5f}"
        + (f", valid {shown}" if shown else "")
        + ("  *best" if is_best and metrics else "")
    )
