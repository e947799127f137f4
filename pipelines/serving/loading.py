"""From a bundle's folder to a model that answers, and again when another version lies there.

A bundle is asked its own sample requests before it may answer anybody else's; one whose answers differ is refused. A new version is
loaded beside the old one, which answers until the new one is ready.
"""

import asyncio
import gc
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bundle import Bundle, scaled_difference
from .bundle_files import MANIFEST
from .metrics import Metrics
from .models import Deployment, Models, ServedModel

log = logging.getLogger(__name__)
Signature = tuple[str, int, int, int]
_NICE = 10
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0


def load_model(
    name: str, path: Path, *, max_batch_rows: int = 64, num_threads: int = 1, metrics: Metrics | None = None
) -> ServedModel:
    """Load a bundle, verify its files, and check its answers to its own samples, on the path that requests take.

    Raises:
        ValueError: for a folder that is no bundle, a file that was altered, and answers that are not those recorded at export.
    """
    bundle = Bundle(path.resolve(), num_threads=num_threads)
    bundle.self_test()
    assert bundle.index is None or len(bundle.index.ids)  # read now, not at the first request
    model = ServedModel(name, bundle, max_batch_rows=max_batch_rows, metrics=metrics)
    try:
        _ask_samples(model, path, max_batch_rows)
    except ValueError:
        if metrics is not None and model.metrics is not None:
            metrics.forget(model.metrics)
        raise
    return model


def _ask_samples(model: ServedModel, path: Path, max_batch_rows: int) -> None:
    bundle = model.bundle
    for key, example in bundle.examples.items():
        graph = model.graphs[key]
        rows, expected = example["rows"], np.asarray(example["answers"], np.float32)
        ids_NS, dense_ND = graph.encoder.encode(rows, from_json=True)
        difference = scaled_difference(graph.graph.run_slots(ids_NS, dense_ND), expected)
        if not difference.max() <= bundle.tolerance:
            raise ValueError(
                f"{path}: sample requests to graph {key!r} are answered otherwise than at export (difference "
                f"{difference.max():.3g}, allowed {bundle.tolerance:g}); this bundle is not served"
            )
        repeated = np.resize(np.arange(len(rows)), max_batch_rows)
        graph.graph.run_slots(ids_NS[repeated], dense_ND[repeated])  # memory of the largest batch is taken now


def settle_memory() -> None:
    """What is there now stays: no garbage collection looks through it again, which would stop requests for tens of milliseconds.

    To be called before models are loaded: those come and go, and consist of few objects.
    """
    gc.collect()
    gc.freeze()


def _yield_to_requests() -> None:
    """This thread takes what time the event loop's leaves. (Linux; elsewhere a priority is the process'.)"""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def signature_of(path: Path) -> Signature | None:
    """Changes when another manifest lies there, be it through a symbolic link; None while there is none.

    Raises:
        OSError: where that cannot be told: no permission, a link to itself, a file system that is away.
    """
    real = os.path.realpath(path)
    try:
        stat = os.stat(os.path.join(real, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return real, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _files_of(path: Path) -> list[tuple[str, int, int, int]]:
    """Changes when any file below is exchanged, altered, added or taken away."""
    found = []
    for folder, _, names in os.walk(os.path.realpath(path)):
        for name in names:
            file = os.path.join(folder, name)
            try:
                stat = os.stat(file)
            except OSError:
                continue
            found.append((file, stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return sorted(found)


@dataclass(frozen=True)
class _Failure:
    """What was found where a version comes from, and was not loaded.

    Attributes:
        found: None where not even that could be told.
        files: as they were when the version was refused for good; None where it could not be read.
        wait_seconds, retry_at: of one that could not be read: from then to the next try, and when that is.
    """

    found: Signature | None
    files: list[tuple[str, int, int, int]] | None = None
    wait_seconds: float = 0.0
    retry_at: float = math.inf


class Reloader:
    """Looks for new versions where the served ones came from.

    A version that is damaged, or answers otherwise than at export, is refused until one of its files changes. One that could not be
    read (a file that is missing for a moment, no permission, no memory) is tried again after a second, then after twice as long
    each time, up to a minute.

    Args:
        max_batch_rows, num_threads: as in `load_model`.
        served: what was found in each role's place before it was loaded, by model and role; None for what is there now.
    """

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        *,
        max_batch_rows: int,
        num_threads: int,
        served: Mapping[tuple[str, str], Signature | None] | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._max_batch_rows = max_batch_rows
        self._num_threads = num_threads
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, "reload", initializer=_yield_to_requests)
        if served is None:
            served = {(d.name, role): signature_of(path) for d in models for role, path in d.paths.items()}
        self._served = dict(served)
        self._failures: dict[tuple[str, str], _Failure] = {}

    async def look(self, *, at_once: bool = False) -> dict[str, dict[str, str]]:
        """Load what is new, in a thread; the versions by model and role afterwards. A version that is refused changes nothing.

        Args:
            at_once: whether a version that could not be read is tried again before its time.
        """
        async with self._lock:
            for deployment in self._models:
                for role, path in deployment.paths.items():
                    await self._look_at(deployment, role, path, at_once=at_once)
        return {d.name: {role: m.version for role, m in d.versions().items()} for d in self._models}

    async def _look_at(self, deployment: Deployment, role: str, path: Path, *, at_once: bool) -> None:
        key = deployment.name, role
        found: Signature | None = None
        problem: Exception | None = None
        try:
            found = signature_of(path)
        except OSError as error:
            problem = error
        is_served = problem is None and found in (None, self._served[key])
        if is_served:
            self._failures.pop(key, None)
        if is_served or not self._is_due(key, found, path, at_once=at_once):
            return
        files = _files_of(path)
        problem = problem or await self._replace(deployment, role, path)
        if problem is None:
            self._served[key] = found
            self._failures.pop(key, None)
        else:
            self._failed(key, found, files, problem)

    def _is_due(self, key: tuple[str, str], found: Signature | None, path: Path, *, at_once: bool) -> bool:
        failure = self._failures.get(key)
        if failure is None or failure.found != found:
            return True
        if failure.files is not None:
            return failure.files != _files_of(path)
        return at_once or time.monotonic() >= failure.retry_at

    def _failed(
        self, key: tuple[str, str], found: Signature | None, files: list[tuple[str, int, int, int]], problem: Exception
    ) -> None:
        name, before = key[0], self._failures.get(key)
        if isinstance(problem, ValueError) and not isinstance(problem, OSError):
            log.error("model %s: the new version is refused until one of its files changes, the old one goes on: %s", name, problem)
            self._failures[key] = _Failure(found, files)
            self._metrics.totals.count("trm_failed_reloads", (name, "refused"))
            return
        wait_seconds = _FIRST_WAIT_SECONDS
        if before is not None and before.found == found and before.files is None:
            wait_seconds = min(2 * before.wait_seconds, _LONGEST_WAIT_SECONDS)
        log.error(
            "model %s: the new version could not be read and is tried again in %g s, the old one goes on: %s",
            *(name, wait_seconds, problem),
            exc_info=None if isinstance(problem, OSError) else problem,
        )
        self._failures[key] = _Failure(found, None, wait_seconds, time.monotonic() + wait_seconds)
        self._metrics.totals.count("trm_failed_reloads", (name, "unreadable"))

    def _load(self, deployment: Deployment, path: Path) -> ServedModel:
        model = load_model(
            deployment.name,
            path,
            max_batch_rows=self._max_batch_rows,
            num_threads=self._num_threads,
            metrics=self._metrics,
        )
        for prepare in deployment.on_load:
            prepare(model)
        return model

    async def _replace(self, deployment: Deployment, role: str, path: Path) -> Exception | None:
        """What kept the new version from its role; None where nothing did."""
        name = deployment.name
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._executor, self._load, deployment, path)
        except Exception as error:  # ONNX Runtime's own among them; the next look must come in any case
            return error
        old = deployment.replace(role, model)
        if old.metrics is not None:
            self._metrics.forget(old.metrics)
        self._metrics.totals.count("trm_reloads", (name,))
        log.info("model %s: version %s is now %s, after %s", name, model.version, role, old.version)
        del old
        gc.collect()  # it refers to itself in places
        return None
