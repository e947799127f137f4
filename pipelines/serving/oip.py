"""The Open Inference Protocol, version 2 (KServe's, Triton's): health, metadata and inference, binary tensors included.

A model's raw columns are the input tensors, its tasks the output tensors; docs/serving.md says how lists and missing values
are written.
"""

from collections.abc import Callable
from typing import Any

from .columns import raw_columns
from .messages import HttpError, Request, Response, Route, encode_json, parse_json
from .models import Models, ServedModel
from .oip_tensors import FORMAT_TYPES, Tensor, read_tensor, write_outputs

_HEADER_LENGTH = b"inference-header-content-length"
_EXTENSIONS = ["binary_tensor_data"]


def oip_routes(models: Models, *, server_version: str, max_rows: int, is_ready: Callable[[], bool]) -> list[Route]:
    """Routes below /v2.

    Args:
        is_ready: called without arguments: whether the server takes requests.
        max_rows: most rows of one request.
    """

    async def live(request: Request) -> Response:
        return Response(b'{"live":true}')

    async def ready(request: Request) -> Response:
        if not is_ready():
            raise HttpError(503, "the server is shutting down")
        return Response(b'{"ready":true}')

    async def server(request: Request) -> Response:
        return Response(encode_json({"name": "torchrec-models", "version": server_version, "extensions": _EXTENSIONS}))

    async def metadata(request: Request) -> Response:
        return Response(encode_json(_metadata(models, request)))

    async def model_ready(request: Request) -> Response:
        model = _model(models, request)
        return Response(encode_json({"name": model.name, "ready": True}))

    async def infer(request: Request) -> Response:
        return await _infer(models, request, max_rows)

    out = [
        Route("GET", "/v2/health/live", live),
        Route("GET", "/v2/health/ready", ready),
        Route("GET", "/v2", server),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        out += [
            Route("GET", path, metadata),
            Route("GET", f"{path}/ready", model_ready),
            Route("POST", f"{path}/infer", infer),
        ]
    return out


def _model(models: Models, request: Request) -> ServedModel:
    deployment = models.deployment(request.params["name"])
    version = request.params.get("version", "")
    return deployment.version(version) if version else deployment.current


def _metadata(models: Models, request: Request) -> dict[str, Any]:
    model = _model(models, request)
    graph = model.main.graph
    inputs = [
        {"name": c.name, "datatype": "BYTES" if c.form != "one" else FORMAT_TYPES[c.type], "shape": [-1]}
        for c in raw_columns(graph.transforms)
    ]
    if model.tasks:
        outputs = [{"name": task, "datatype": "FP32", "shape": [-1]} for task in model.tasks]
    else:
        outputs = [{"name": "vector", "datatype": "FP32", "shape": [-1, model.vector_width]}]
    versions = [m.version for m in models.deployment(model.name).versions().values()]
    return {"name": model.name, "versions": versions, "platform": "onnxruntime_onnx", "inputs": inputs, "outputs": outputs}


async def _infer(models: Models, request: Request, max_rows: int) -> Response:
    if request.header(b"content-encoding") not in (None, b"identity"):
        raise HttpError(415, "compressed bodies are not taken; send the request without compression")
    head, binary = _split_body(request)
    deployment = models.deployment(request.params["name"])
    forms = {c.name: c.form for c in raw_columns(deployment.current.main.graph.transforms)}
    tensors = _tensors(head, binary, forms)
    num_rows = tensors[0].num_rows if tensors else 0
    if num_rows > max_rows:
        raise HttpError(422, f"{num_rows} rows in one request; this server takes at most {max_rows}: send several requests")
    names = [t.name for t in tensors]
    rows = [dict(zip(names, values)) for values in zip(*(t.values for t in tensors))]
    request_id = head.get("id", "")
    key = request_id.encode() if isinstance(request_id, str) and request_id else request.key
    answers, model = await deployment.score(rows, key=key, version=request.params.get("version", ""))
    columns: dict[str, list[Any]] = {task: [row[i] for row in answers] for i, task in enumerate(model.tasks)}
    columns = columns or {"vector": answers}
    answer = {"model_name": model.name, "model_version": model.version}
    if request_id:
        answer["id"] = request_id
    body, header_length = write_outputs(answer, columns, _wanted(head, list(columns)))
    if header_length is None:
        return Response(body)
    headers = ((_HEADER_LENGTH, b"%d" % header_length),)
    return Response(body, content_type=b"application/octet-stream", headers=headers)


def _split_body(request: Request) -> tuple[dict[str, Any], memoryview]:
    """The JSON part of a body and the binary tensors behind it."""
    given = request.header(_HEADER_LENGTH)
    length = len(request.body)
    if given is not None:
        if not given.isdigit() or int(given) > len(request.body):
            raise HttpError(400, f"Inference-Header-Content-Length: {given[:40]!r} is not a length within a body of {length} bytes")
        length = int(given)
    head = parse_json(request.body[:length])
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise HttpError(400, 'the body must be a JSON object with a list "inputs"')
    return head, memoryview(request.body)[length:]


def _tensors(head: dict[str, Any], binary: memoryview, forms: dict[str, str]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for spec in head["inputs"]:
        tensor, binary = read_tensor(spec, binary, forms)
        if any(tensor.name == other.name for other in tensors):
            raise HttpError(400, f"input {tensor.name!r} is given twice")
        if tensors and tensor.num_rows != tensors[0].num_rows:
            first = tensors[0]
            raise HttpError(
                400, f"input {tensor.name!r} has {tensor.num_rows} rows, and input {first.name!r} {first.num_rows}; they must agree"
            )
        tensors.append(tensor)
    if binary:
        raise HttpError(400, f"{len(binary)} bytes stand behind the last binary tensor; check binary_data_size")
    return tensors


def _wanted(head: dict[str, Any], there: list[str]) -> dict[str, bool]:
    """Output name -> whether it goes as binary data."""
    parameters = head.get("parameters")
    default = isinstance(parameters, dict) and parameters.get("binary_data_output") is True
    outputs = head.get("outputs")
    if not outputs:
        return dict.fromkeys(there, default)
    if not isinstance(outputs, list) or not all(isinstance(o, dict) for o in outputs):
        raise HttpError(400, 'outputs: a list of objects with "name" is expected')
    wanted = {}
    for output in outputs:
        name = output.get("name")
        if name not in there:
            raise HttpError(400, f"no output {str(name)[:100]!r}; there are: {', '.join(there)}")
        parameters = output.get("parameters")
        wanted[name] = bool(parameters.get("binary_data", default)) if isinstance(parameters, dict) else default
    return wanted
