"""Health, metrics, and what is served: the routes that machines ask."""

from typing import TYPE_CHECKING

from .messages import HttpError, Request, Response, Route, encode_json

if TYPE_CHECKING:
    from .server import Worker

OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})  # asked by machines that hold no token
_TEXT = b"text/plain; version=0.0.4; charset=utf-8"


def status_routes(worker: "Worker") -> list[Route]:
    """`/healthz`, `/readyz`, `/metrics`, `/models` and `/admin/reload`."""

    async def health(request: Request) -> Response:
        return Response(b'{"status":"ok"}')

    async def ready(request: Request) -> Response:
        if worker.app.draining:
            raise HttpError(503, "the server is shutting down")
        return Response(b'{"status":"ready"}')

    async def metrics(request: Request) -> Response:
        return Response(worker.metrics.text(worker.gauges()), content_type=_TEXT)

    async def models(request: Request) -> Response:
        served = [
            {
                "name": d.name,
                "versions": {role: m.version for role, m in d.versions().items()},
                "split_share": d.split_share,
                "kind": d.current.bundle.kind,
                "tasks": d.current.tasks,
            }
            for d in worker.models
        ]
        return Response(encode_json({"models": served}))

    async def reload(request: Request) -> Response:
        return Response(encode_json(await worker.reloader.look(at_once=True)))

    return [
        Route("GET", "/healthz", health),
        Route("GET", "/readyz", ready),
        Route("GET", "/metrics", metrics),
        Route("GET", "/models", models),
        Route("POST", "/admin/reload", reload, admin=True),
    ]
