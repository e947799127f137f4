"""`trm serve`: bundles to a running server. uvicorn owns sockets, TLS, HTTP parsing and worker processes; the app is ours."""

import asyncio
import logging
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from .access_log import AccessLog
from .app import App, Limits
from .direct import DirectProtocol
from .loading import Reloader, load_model, settle_memory, signature_of
from .messages import Route
from .metrics import Labels, Metrics
from .models import Deployment, Models
from .oip import oip_routes
from .openapi import openapi
from .page import page_routes
from .predict import predict_routes
from .recommend import recommend_routes
from .status import OPEN_PATHS, status_routes

if TYPE_CHECKING:
    from .bid_routes import BidRoutes

log = logging.getLogger(__name__)
_BACKLOG = 2048
_SWITCH_SECONDS = 0.0005  # how long another thread may keep the interpreter from the event loop


@dataclass(frozen=True, kw_only=True)
class BundleOption:
    """One bundle on the command line: the name that requests call it by, its folder, and its role."""

    name: str
    path: Path
    role: str = "current"
    share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Everything that `trm serve` can be told.

    Args:
        bundles: one `current` per name, at most one `split` and one `shadow` of each.
        token: see `App`.
        max_rows: of one request. max_batch_rows: of one call of the graph.
        num_threads: of ONNX Runtime, per worker.
        watch_seconds: between two looks for new versions; 0 does not look.
        drain_seconds: after SIGTERM, how long requests are still taken (and connections closed after their answer).
        access_log_share: of the requests; 0 writes no access log.
        certificate, key: PEM files, for TLS.
        bid: bid.yaml; the default model then also answers `POST /bid`.
    """

    bundles: tuple[BundleOption, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    token: str = ""
    limits: Limits = field(default_factory=Limits)
    max_rows: int = 1024
    max_batch_rows: int = 64
    num_threads: int = 1
    watch_seconds: float = 1.0
    drain_seconds: float = 1.0
    access_log_share: float = 0.0
    certificate: Path | None = None
    key: Path | None = None
    bid: Path | None = None


def load_models(options: ServeOptions, metrics: Metrics) -> Models:
    """All bundles of the options, loaded and checked.

    Raises:
        ValueError: for names given twice, roles without a current version, and bundles that are refused.
    """
    models = Models()
    for role in ("current", "split", "shadow"):
        for option in (o for o in options.bundles if o.role == role):
            model = load_model(
                option.name,
                option.path,
                max_batch_rows=options.max_batch_rows,
                num_threads=options.num_threads,
                metrics=metrics,
            )
            if role == "current":
                if option.name in models.deployments:
                    raise ValueError(f"two bundles are called {option.name!r}; give each a name: trm serve NAME=BUNDLE")
                models.deployments[option.name] = Deployment(option.name, {role: option.path}, model)
                continue
            if option.name not in models.deployments:
                there = ", ".join(models.deployments)
                raise ValueError(f"--{role} {option.name}: no bundle of this name is served; there are: {there}")
            deployment = models.deployments[option.name]
            if role in deployment.paths:
                raise ValueError(f"--{role} {option.name}: given twice; a name has at most one {role}")
            if model.tasks != deployment.current.tasks:
                tasks = deployment.current.tasks
                raise ValueError(f"--{role} {option.name}: predicts {model.tasks}, and the current version {tasks}")
            deployment.paths[role] = option.path
            setattr(deployment, role, model)
            deployment.split_share = option.share if role == "split" else deployment.split_share
    return models


class Worker:
    """One process' models, app and background work.

    Args:
        metrics_folder: shared with the other workers; None for one worker.
        more_routes: of flows built upon the models, such as bidding.
    """

    def __init__(self, options: ServeOptions, *, metrics_folder: Path | None = None, more_routes: Sequence[Route] = ()) -> None:
        self.options = options
        self.metrics = Metrics(folder=metrics_folder)
        settle_memory()
        self._found = {(o.name, o.role): signature_of(o.path) for o in options.bundles}  # what comes while they load is new
        self.models = load_models(options, self.metrics)
        self._tasks: list[asyncio.Task[None]] = []
        self._reloader: Reloader | None = None
        self._bidding = _bidding(self.models, options)
        served_version = version("torchrec-models")

        def document() -> dict[str, Any]:
            return openapi(
                self.models,
                served_version,
                options.max_rows,
                needs_token=bool(options.token),
                more_paths=[r for r in self.app.routes if not r.path.startswith("/models/{name}/")],
            )

        self.app: App = App(
            [
                *page_routes(self.models, document),
                *predict_routes(self.models, max_rows=options.max_rows),
                *recommend_routes(self.models),
                *oip_routes(
                    self.models,
                    server_version=served_version,
                    max_rows=options.max_rows,
                    is_ready=lambda: not self.app.draining,
                ),
                *status_routes(self),
                *(self._bidding.routes() if self._bidding else []),
                *more_routes,
            ],
            limits=options.limits,
            token=options.token,
            open_paths=OPEN_PATHS,
            observe=self.metrics.observe_request,
            access_log=AccessLog(options.access_log_share) if options.access_log_share else None,
            on_start=self._start,
            on_stop=self._stop,
        )

    @property
    def reloader(self) -> Reloader:
        assert self._reloader is not None, "the worker has not started"
        return self._reloader

    def gauges(self) -> dict[str, dict[Labels, float]]:
        """The metrics that are states, not counts."""
        return {
            "trm_queued_rows": {(d.name,): sum(m.queued_rows for m in d.versions().values()) for d in self.models},
            "trm_requests_in_work": {(): float(self.app.num_in_work)},
            "trm_workers_with_model": {(d.name, m.version, role): 1.0 for d in self.models for role, m in d.versions().items()},
            **(self._bidding.metrics() if self._bidding else {}),
        }

    def _start(self) -> None:
        sys.setswitchinterval(_SWITCH_SECONDS)
        options = self.options
        self._reloader = Reloader(
            self.models,
            self.metrics,
            max_batch_rows=options.max_batch_rows,
            num_threads=options.num_threads,
            served=self._found,
        )
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._every(1.0, self._leave_metrics)))
        if options.watch_seconds:
            self._tasks.append(loop.create_task(self._every(options.watch_seconds, self._look)))
        self._catch_sigterm(loop)

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _every(self, seconds: float, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await do()

    async def _leave_metrics(self) -> None:
        self.metrics.leave(self.gauges())

    async def _look(self) -> None:
        await self.reloader.look()

    def _catch_sigterm(self, loop: asyncio.AbstractEventLoop) -> None:
        """uvicorn would close idle connections at once, and with them requests that are on their way."""
        stop = signal.getsignal(signal.SIGTERM)
        if not callable(stop) or not self.options.drain_seconds:
            return

        def drain(number: int, frame: FrameType | None) -> None:
            if self.app.draining:
                return
            self.app.draining = True
            log.info("SIGTERM: answering what arrives for another %g s", self.options.drain_seconds)
            loop.call_soon_threadsafe(loop.call_later, self.options.drain_seconds, stop, number, frame)

        signal.signal(signal.SIGTERM, drain)


def _bidding(models: Models, options: ServeOptions) -> "BidRoutes | None":
    if options.bid is None:
        return None
    from .bid_routes import bid_routes  # needs pydantic and yaml, which a server without bids does not

    return bid_routes(models, options.bid, now=time.time())


@dataclass(frozen=True)
class WorkerFactory:
    """Makes a worker's app in the worker's own process; can be sent there."""

    options: ServeOptions
    metrics_folder: Path | None

    def __call__(self) -> App:
        return Worker(self.options, metrics_folder=self.metrics_folder).app


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ValueError: for options that do not fit together, and bundles that are refused.
    """
    if options.workers < 1:
        raise ValueError(f"workers: given {options.workers}; must be at least 1")
    if options.bid is not None:
        from .bid_routes import check_workers

        check_workers(options.bid, options.workers)
    with tempfile.TemporaryDirectory(prefix="trm-serve-") as folder:
        metrics_folder = Path(folder) if options.workers > 1 else None
        factory = WorkerFactory(options, metrics_folder)
        app = factory if options.workers > 1 else factory()
        config = uvicorn.Config(
            app,
            factory=options.workers > 1,
            host=options.host,
            port=options.port,
            workers=options.workers,
            loop="uvloop",
            http=DirectProtocol,
            ws="none",
            lifespan="on",
            interface="asgi3",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            backlog=_BACKLOG,
        )
        socket = config.bind_socket()
        socket.listen(_BACKLOG)  # from here on callers wait instead of being turned away
        host, port = socket.getsockname()[:2]
        scheme = "https" if config.is_ssl else "http"
        log.info("serving %s on %s://%s:%d", ", ".join(dict.fromkeys(o.name for o in options.bundles)), scheme, host, port)
        if options.workers > 1:
            Multiprocess(config, sockets=[socket]).run()
        else:
            uvicorn.Server(config).run(sockets=[socket])
