"""The OpenAPI 3.1 document, generated from what the served models read and predict."""

from collections.abc import Sequence
from typing import Any

import msgspec

from .columns import RawColumn, raw_columns
from .messages import Route
from .models import Deployment, Models
from .openrtb import VERSION, BidRequest, BidResponse

_TYPES: dict[str, list[str]] = {
    "text": ["string", "number", "boolean"],
    "integer": ["integer", "string"],
    "number": ["number", "string"],
}
_REFUSALS = {
    "400": "the body is not JSON, or not of this form",
    "401": "the bearer token is missing or wrong",
    "413": "the body is larger than the server's limit",
    "422": "a value that the model cannot take; the text names feature, column, row and reason (of a bid request its path, too)",
    "503": "all the work the server can do; Retry-After says when to try again",
}
_ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}


def openapi(
    models: Models, server_version: str, max_rows: int, *, needs_token: bool, more_paths: Sequence[Route] = ()
) -> dict[str, Any]:
    """The document as plain data.

    Args:
        more_paths: routes that no model describes, listed without schemas.
    """
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {"Error": _ERROR}
    for position, deployment in enumerate(models):
        name = deployment.name
        columns = raw_columns(deployment.current.main.graph.transforms)
        schemas[f"{name}.Row"] = row_schema(columns)
        is_ranker = bool(deployment.current.tasks)
        operation = _predict(deployment, max_rows) if is_ranker else _recommend(deployment)
        verb = "predict" if is_ranker else "recommend"
        schemas[f"{name}.Answer"] = _answer(deployment) if is_ranker else _recommendation(deployment)
        paths[f"/models/{name}/{verb}"] = {"post": operation}
        if position == 0:
            paths[f"/{verb}"] = {
                "post": {**operation, "operationId": verb, "summary": f"{operation['summary']} (the default model)"}
            }
    if any(route.path == "/bid" for route in more_paths):
        paths["/bid"] = {"post": _bid(schemas)}
    for route in more_paths:
        operations = paths.setdefault(route.path, {})
        if route.method.lower() not in operations:
            operations[route.method.lower()] = _plain(route)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "torchrec-models", "version": server_version, "description": "Models served by trm serve."},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if needs_token:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def row_schema(columns: Sequence[RawColumn]) -> dict[str, Any]:
    """JSON Schema of one row."""
    return {
        "type": "object",
        "properties": {c.name: _column(c) for c in columns},
        "required": [c.name for c in columns if c.is_required],
        "additionalProperties": False,
    }


def _column(column: RawColumn) -> dict[str, Any]:
    types = list(_TYPES[column.type])
    if column.form == "list":
        return {"type": ["array", "null"], "items": {"type": types}, "description": f"a list; {column.max_len} of its values count"}
    if column.form == "text":
        text = f"values with {column.separator!r} between them; {column.max_len} of them count"
        return {"type": ["string", "null"], "description": text}
    missing = [] if column.is_required else ["null"]
    wanted = {"text": "text", "integer": "a whole number, or its digits", "number": "a number, or its digits"}[column.type]
    return {"type": [*types, *missing], "description": wanted}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any], *, example: dict[str, Any] | None = None) -> dict[str, Any]:
    shown = {} if example is None else {"example": example}
    return {"content": {"application/json": {"schema": schema, **shown}}}


def _answer(deployment: Deployment) -> dict[str, Any]:
    one = {
        "type": "object",
        "properties": {t: {"type": "number"} for t in deployment.current.tasks},
        "required": list(deployment.current.tasks),
    }
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "version": {"type": "string"},
            "predictions": {"oneOf": [one, {"type": "array", "items": one}]},
        },
        "required": ["model", "version", "predictions"],
    }


def _recommendation(deployment: Deployment) -> dict[str, Any]:
    item = {"type": "object", "properties": {"id": {}, "score": {"type": "number"}}, "required": ["id", "score"]}
    return {
        "type": "object",
        "properties": {"model": {"type": "string"}, "version": {"type": "string"}, "items": {"type": "array", "items": item}},
        "required": ["model", "version", "items"],
    }


def _predict(deployment: Deployment, max_rows: int) -> dict[str, Any]:
    name = deployment.name
    row = _ref(f"{name}.Row")
    many = {
        "type": "object",
        "properties": {"rows": {"type": "array", "items": row, "maxItems": max_rows}},
        "required": ["rows"],
        "additionalProperties": False,
    }
    body = _json({"anyOf": [row, many]}, example=_example(deployment))
    return _operation(f"predict {name}", f"Score one row, or many, with {name}", body, name)


def _recommend(deployment: Deployment) -> dict[str, Any]:
    name = deployment.name
    schema = {
        "type": "object",
        "properties": {"query": _ref(f"{name}.Row"), "k": {"type": "integer", "minimum": 1, "default": 10}},
        "required": ["query"],
        "additionalProperties": False,
    }
    body = _json(schema, example={"query": _example(deployment), "k": 10})
    return _operation(f"recommend {name}", f"The k candidates of {name} with the highest scores for a query", body, name)


def _bid(schemas: dict[str, Any]) -> dict[str, Any]:
    """The operation; adds the schemas of OpenRTB's objects, as far as they are read and written here."""
    (asked, answered), found = msgspec.json.schema_components((BidRequest, BidResponse), ref_template="#/components/schemas/{name}")
    schemas.update(found)
    refusals = {status: {"description": text, **_json(_ref("Error"))} for status, text in _REFUSALS.items()}
    return {
        "operationId": "bid",
        "summary": f"Bid on an OpenRTB {VERSION} request with the default model",
        "requestBody": {"required": True, **_json(asked)},
        "responses": {
            "200": {"description": "bids, or the reason for none", **_json(answered)},
            "204": {"description": "no bid"},
            **refusals,
        },
    }


def _example(deployment: Deployment) -> dict[str, Any]:
    examples = deployment.current.main_examples
    return examples[0] if examples else {}


def _operation(operation_id: str, summary: str, body: dict[str, Any], name: str) -> dict[str, Any]:
    refusals = {status: {"description": text, **_json(_ref("Error"))} for status, text in _REFUSALS.items()}
    good = {"description": "answers", **_json(_ref(f"{name}.Answer"))}
    return {
        "operationId": operation_id,
        "summary": summary,
        "requestBody": {"required": True, **body},
        "responses": {"200": good, **refusals},
    }


def _plain(route: Route) -> dict[str, Any]:
    params = [part[1:-1] for part in route.parts if part.startswith("{")]
    operation: dict[str, Any] = {"responses": {"default": {"description": "see docs/serving.md"}}}
    if params:
        operation["parameters"] = [{"name": p, "in": "path", "required": True, "schema": {"type": "string"}} for p in params]
    return operation
