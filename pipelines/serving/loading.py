"""From a bundle's folder to a model that answers, and again when another version lies there.

A bundle is asked its own sample requests before it may answer anybody else's; one whose answers differ is refused. A new version is
loaded beside the old one, which answers until the new one is ready.
"""

import asyncio
import gc
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from .bundle import Bundle, scaled_difference
from .bundle_files import MANIFEST
from .metrics import Metrics
from .models import Deployment, Models, ServedModel

log = logging.getLogger(__name__)
Signature = tuple[str, int, int, int]
_NICE = 10


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
    return model


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


def _signature(path: Path) -> Signature | None:
    """Changes when another manifest lies there, be it through a symbolic link; None while there is none."""
    try:
        real = path.resolve()
        stat = (real / MANIFEST).stat()
    except OSError:
        return None
    return str(real), stat.st_ino, stat.st_mtime_ns, stat.st_size


class Reloader:
    """Looks for new versions where the served ones came from.

    Args:
        max_batch_rows, num_threads: as in `load_model`.
    """

    def __init__(self, models: Models, metrics: Metrics, *, max_batch_rows: int, num_threads: int) -> None:
        self._models = models
        self._metrics = metrics
        self._max_batch_rows = max_batch_rows
        self._num_threads = num_threads
        self._lock = asyncio.Lock()
        self._executor = ThreadPoolExecutor(1, "reload", initializer=_yield_to_requests)
        self._seen = {(d.name, role): _signature(path) for d in models for role, path in d.paths.items()}

    async def look(self) -> dict[str, dict[str, str]]:
        """Load what is new, in a thread; the versions by model and role afterwards. A version that is refused changes nothing."""
        async with self._lock:
            for deployment in self._models:
                for role, path in deployment.paths.items():
                    found = _signature(path)
                    if found is not None and found != self._seen[deployment.name, role]:
                        self._seen[deployment.name, role] = found
                        await self._replace(deployment, role, path)
        return {d.name: {role: m.version for role, m in d.versions().items()} for d in self._models}

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

    async def _replace(self, deployment: Deployment, role: str, path: Path) -> None:
        name = deployment.name
        try:
            model = await asyncio.get_running_loop().run_in_executor(self._executor, self._load, deployment, path)
        except (ValueError, OSError) as error:
            log.error("model %s: the new version is refused, the old one goes on: %s", name, error)
            self._metrics.totals.count("trm_failed_reloads", (name,))
            return
        old = deployment.replace(role, model)
        if old.metrics is not None:
            self._metrics.forget(old.metrics)
        self._metrics.totals.count("trm_reloads", (name,))
        log.info("model %s: version %s is now %s, after %s", name, model.version, role, old.version)
        del old
        gc.collect()  # it refers to itself in places
