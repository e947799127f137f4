"""POST /predict: one raw row, or many, as JSON; the answers by task."""

from collections.abc import Sequence
from typing import Any

from ..data.values import shown
from .batcher import Answers
from .codec import Row
from .messages import HttpError, Request, Response, Route, encode_json, parse_json
from .models import MANY, Models, ServedModel, are_finite


def predict_routes(models: Models, *, max_rows: int) -> list[Route]:
    """`/predict` answers with the default model, `/models/{name}/predict` with the one named.

    Args:
        max_rows: most rows of one request.
    """

    async def predict(request: Request) -> Response:
        deployment = models.deployment(request.params.get("name", ""))
        if not deployment.current.tasks:
            raise HttpError(
                400, f"model {deployment.name!r} is a retriever: it recommends (POST /recommend), it does not score rows"
            )
        if deployment.shadow is None:
            model = deployment.choose(request.key) if deployment.split else deployment.current
            waiting = model.main.submit_json(request.body)
            if waiting is not None:
                answers = await waiting
                if are_finite(answers):
                    return Response(encode_json(_answer(answers, model, False)))
        rows, is_many = _rows(parse_json(request.body), deployment.current, max_rows)
        answers, model = await deployment.score(rows, key=request.key, from_json=True)
        return Response(encode_json(_answer(answers, model, is_many)))

    return [Route("POST", "/predict", predict), Route("POST", "/models/{name}/predict", predict)]


def _rows(body: Any, model: ServedModel, max_rows: int) -> tuple[Sequence[Row], bool]:
    if type(body) is not dict:
        raise HttpError(400, 'the body must be a JSON object: one row, or {"rows": [row, ...]}')
    rows = body.get(MANY)
    if len(body) != 1 or type(rows) is not list:
        if MANY in body and MANY not in model.main.graph.codec.columns:
            problem = f"takes a list of objects, got {shown(rows)}" if len(body) == 1 else "must be the only key of the body"
            raise HttpError(400, f'"{MANY}" {problem}; for example {_example(model)}')
        return [body], False
    if len(rows) > max_rows:
        raise HttpError(422, f"rows: {len(rows)} in one request; this server takes at most {max_rows}: send several requests")
    return rows, True


def _example(model: ServedModel) -> str:
    """A body of many rows, cut short."""
    row = dict(list(next(iter(model.main_examples), {}).items())[:2])
    first = encode_json(row).decode()[:-1] + (", " if row else "") + "...}"
    return f'{{"{MANY}": [{first}, ...]}}'


def _answer(answers: Answers, model: ServedModel, is_many: bool) -> dict[str, Any]:
    predictions = [dict(zip(model.tasks, answer)) for answer in answers]
    return {"model": model.name, "version": model.version, "predictions": predictions if is_many else predictions[0]}
