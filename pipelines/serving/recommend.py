"""POST /recommend: a query's features in, the best candidates of a two-tower model out."""

import asyncio
from typing import Any

import numpy as np

from .index import CandidateIndex
from .messages import HttpError, Request, Response, Route, encode_json, parse_json
from .models import Deployment, Models

DEFAULT_K, MOST_K, MOST_EXCLUDED = 10, 1000, 10_000
_INLINE_NUMBERS = 1 << 21  # a larger index is searched in a thread, so that the others' requests go on
_KEYS = ("query", "k", "exclude")


def recommend_routes(models: Models) -> list[Route]:
    """`/recommend` asks the first model that has an index, `/models/{name}/recommend` the one named."""

    async def recommend(request: Request) -> Response:
        query, k, exclude = _asked(parse_json(request.body))
        deployment = _deployment(models, request.params.get("name", ""))
        vectors, model = await deployment.score([query], key=request.key, from_json=True)
        index = model.bundle.index
        if index is None:
            raise HttpError(404, f"version {model.version} of model {model.name!r} has no index of candidates")
        items = await _search(index, np.asarray(vectors, np.float32), k, exclude)
        answer = {"model": model.name, "version": model.version, "items": [{"id": i, "score": s} for i, s in items]}
        return Response(encode_json(answer))

    return [Route("POST", "/recommend", recommend), Route("POST", "/models/{name}/recommend", recommend)]


async def _search(index: CandidateIndex, query_1K: np.ndarray, k: int, exclude: list[Any]) -> list[tuple[Any, float]]:
    if index.vectors_CK.size <= _INLINE_NUMBERS:
        return index.search(query_1K, k=k, exclude=exclude)[0]
    return (await asyncio.to_thread(index.search, query_1K, k=k, exclude=exclude))[0]


def _deployment(models: Models, name: str) -> Deployment:
    if name:
        found = models.deployment(name)
        if found.current.bundle.index is None:
            raise HttpError(404, f"model {name!r} has no index of candidates; two-towers that trm export made of a run have one")
        return found
    for deployment in models:
        if deployment.current.bundle.index is not None:
            return deployment
    raise HttpError(404, "no model here has an index of candidates; serve the bundle of a two-tower")


def _asked(body: Any) -> tuple[dict[str, Any], int, list[Any]]:
    if not isinstance(body, dict) or not isinstance(body.get("query"), dict):
        raise HttpError(400, 'the body must be a JSON object with "query": {feature: value, ...}')
    unknown = [key for key in body if key not in _KEYS]
    if unknown:
        raise HttpError(422, f"unknown key {unknown[0][:100]!r}; there are: {', '.join(_KEYS)}")
    k, exclude = body.get("k", DEFAULT_K), body.get("exclude", [])
    if type(k) is not int or not 1 <= k <= MOST_K:
        raise HttpError(422, f"k: given {str(k)[:40]}; a whole number from 1 to {MOST_K} is expected")
    if not isinstance(exclude, list) or len(exclude) > MOST_EXCLUDED or not all(isinstance(e, (str, int, float)) for e in exclude):
        raise HttpError(422, f"exclude: a list of at most {MOST_EXCLUDED} candidate ids is expected")
    return body["query"], k, exclude
