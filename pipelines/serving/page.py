"""The page on `/`, where a person changes a request and sees the score move, and the page that lists the API."""

import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from .columns import raw_columns
from .messages import Request, Response, Route, encode_json
from .models import Models

_HTML = b"text/html; charset=utf-8"
_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'",
)
_PAGE = Path(__file__).with_name("page.html")


def page_routes(models: Models, document: Callable[[], dict[str, Any]]) -> list[Route]:
    """`/`, `/openapi.json`, `/docs`, and `/models/{name}/form`, from which the page makes its form.

    Args:
        document: called without arguments: the OpenAPI document.
    """
    page = _PAGE.read_bytes()

    async def show(request: Request) -> Response:
        return Response(page, content_type=_HTML, headers=(_POLICY,))

    async def form(request: Request) -> Response:
        deployment = models.deployment(request.params["name"])
        model = deployment.current
        columns = [
            {"name": c.name, "type": c.type, "form": c.form, "separator": c.separator, "is_required": c.is_required}
            for c in raw_columns(model.main.graph.transforms)
        ]
        return Response(
            encode_json(
                {
                    "name": model.name,
                    "version": model.version,
                    "tasks": model.tasks,
                    "columns": columns,
                    "examples": model.main_examples,
                }
            )
        )

    async def docs(request: Request) -> Response:
        return Response(_docs(document()).encode(), content_type=_HTML, headers=(_POLICY,))

    async def as_json(request: Request) -> Response:
        return Response(encode_json(document()))

    return [
        Route("GET", "/openapi.json", as_json),
        Route("GET", "/", show),
        Route("GET", "/docs", docs),
        Route("GET", "/models/{name}/form", form),
    ]


def _docs(document: dict[str, Any]) -> str:
    """Every operation with its body and its answers, as plain HTML."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>API</title><style>",
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "pre{background:#f4f4f4;padding:.6rem;overflow:auto}code{background:#f4f4f4}",
        '</style><h1>API</h1><p><a href="/">Try a request</a> · <a href="/openapi.json">openapi.json</a></p>',
    ]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                parts.append(f"<pre>{escape(_pretty(body['example']))}</pre>")
            answers = [f"<li>{status}: {escape(a['description'])}" for status, a in operation["responses"].items()]
            parts.append(f"<ul>{''.join(answers)}</ul>")
    parts.append(f"<h2>Schemas</h2><pre>{escape(_pretty(document['components']['schemas']))}</pre></html>")
    return "".join(parts)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
