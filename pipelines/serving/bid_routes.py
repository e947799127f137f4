"""`POST /bid` and the notices: HTTP around `bidding`."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..config.errors import ConfigError
from .batcher import Waiting
from .bid_config import load_bid_config
from .bid_mapping import RowMapping
from .bid_reader import BidReader
from .bid_terms import Asked, Terms, separators
from .bidding import Bidder, Plan
from .messages import HttpError, Request, Response, Route, constant_in, encode_json
from .models import Deployment, Models, RefusedRow, ServedModel, are_finite
from .openrtb import VERSION, Auction, BidRequest, NoBid, decode_auction, decode_request, encode_response

_HEADERS = ((b"x-openrtb-version", VERSION.encode()),)
_MOST_TERMS = 4096
FindTerms = Callable[[Auction, RowMapping], Terms | NoBid]
_NO_CONTENT = Response(b"", status=204, headers=_HEADERS)


class BidRoutes:
    """The routes of a bidder on one deployed model.

    Args:
        bidder: decides; its clock is `clock`.
        deployment: whose current version (or split) scores; it must be a ranker.
        clock: Unix seconds.

    Attributes:
        scorers: by the versions that are served. That of a new one is made where it is loaded: it takes tens of milliseconds.

    Raises:
        ConfigError: if the mapping does not fit the model's columns.
    """

    def __init__(self, bidder: Bidder, deployment: Deployment, *, clock: Callable[[], float] = time.time) -> None:
        self.bidder = bidder
        self._deployment = deployment
        self._clock = clock
        self._margin_seconds = bidder.config.margin_milliseconds / 1000
        self._tasks = deployment.current.tasks
        self.scorers = {deployment.current: self._compile(deployment.current)}
        deployment.on_load.append(self._prepare)
        deployment.on_replace.append(self._let_go)

    def _compile(self, model: ServedModel) -> "BidScorer":
        if model.tasks != self._tasks:
            raise ValueError(f"it predicts {', '.join(model.tasks)}, and bids need {', '.join(self._tasks)}")
        graph = model.ranker.graph
        return BidScorer(model, RowMapping(self.bidder.config, graph.codec.columns, separators(graph.transforms.features)))

    def scorer_for(self, model: ServedModel) -> "BidScorer":
        """The way from requests to answers of one version of the model.

        Raises:
            HttpError: 503 for a version that was loaded since and has other columns or tasks than bid.yaml needs.
        """
        scorer = self.scorers.get(model)
        if scorer is None:
            try:
                scorer = self.scorers[model] = self._compile(model)
            except ValueError as error:
                raise HttpError(503, f"no bids with version {model.version}, which was loaded since the start: {error}") from None
        return scorer

    def _prepare(self, model: ServedModel) -> None:
        with suppress(ValueError):  # whoever asks for a bid is told
            self.scorers[model] = self._compile(model)

    def _let_go(self) -> None:
        served = list(self._deployment.versions().values())
        self.scorers = {model: scorer for model, scorer in self.scorers.items() if model in served}

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/bid", self.bid),
            Route("GET", "/bid", self.state),
            Route("GET", "/win/{bid}/{price}", self.win),
            Route("POST", "/win/{bid}/{price}", self.win),
            Route("GET", "/loss/{bid}/{reason}", self.loss),
            Route("POST", "/loss/{bid}/{reason}", self.loss),
        ]

    async def bid(self, request: Request) -> Response:
        """A BidRequest in; 200 with bids, or 204 (200 with `nbr` where the config asks for reasons)."""
        arrived, now = time.perf_counter(), self._clock()
        deployment = self._deployment
        model = deployment.choose(request.key) if deployment.split else deployment.current
        scorer = self.scorers.get(model)
        bidder = self.bidder
        read = scorer.read(request.body, now, bidder.terms) if scorer is not None else None
        if read is not None:
            asked, terms = read
        else:
            whole = _decoded(request)
            asked = Asked.of(whole)
        deadline = None if asked.tmax is None else arrived + asked.tmax / 1000 - self._margin_seconds
        if deadline is not None and deadline <= arrived:
            return self._no_bid(asked, NoBid.INSUFFICIENT_AUCTION_TIME)
        if scorer is None:
            scorer = self.scorer_for(model)
        if read is None:
            terms = bidder.terms(whole, scorer.mapping)
        plan = bidder.plan(asked, terms, now)
        if isinstance(plan, NoBid):
            return self._no_bid(asked, plan)
        try:
            waiting = scorer.submit(plan) if read is not None else None
            answers = await waiting if waiting is not None else None
            if answers is None or not are_finite(answers):
                whole = whole if read is None else _decoded(request)
                answers = await model.score(scorer.mapping.rows(whole, plan.rows, now), from_json=True)
        except RefusedRow as refused:
            imp = None if refused.row is None else plan.rows[refused.row].imp
            place = scorer.mapping.place_of(refused.column, imp)
            raise HttpError(422, f"{refused.reason}{place and f' - at `{place}`'}") from None
        except ValueError as error:
            raise HttpError(400, str(error)) from None
        if deadline is not None and time.perf_counter() > deadline:
            return self._no_bid(asked, NoBid.INSUFFICIENT_AUCTION_TIME)
        answer = bidder.answer(plan, answers, now)
        if isinstance(answer, NoBid):
            return self._no_bid(asked, answer)
        return Response(encode_response(answer), headers=_HEADERS)

    def _no_bid(self, asked: Asked, reason: NoBid) -> Response:
        response = self.bidder.no_bid(asked.id, reason)
        return _NO_CONTENT if response is None else Response(encode_response(response), headers=_HEADERS)

    async def state(self, request: Request) -> Response:
        """What was won and spent today by campaign, and why there were no bids."""
        return Response(encode_json(self.bidder.state(self._clock())))

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """What `/metrics` says of bids; see `Bidder.metrics`."""
        return self.bidder.metrics(self._clock())

    async def win(self, request: Request) -> Response:
        """The bid won at a price, a CPM in the bid's currency: what `${AUCTION_PRICE}` in the bid's `nurl` became."""
        text = request.params["price"]
        try:
            price = float(text)
        except ValueError:
            reason = f"price {text[:80]!r} is not a number; the exchange puts it in place of ${{AUCTION_PRICE}}"
            raise HttpError(400, reason) from None
        return self._settled(lambda: self.bidder.notices.win(request.params["bid"], price, self._clock()))

    async def loss(self, request: Request) -> Response:
        """The bid lost; its reserved price is free again."""
        return self._settled(lambda: self.bidder.notices.lose(request.params["bid"], self._clock()))

    @staticmethod
    def _settled(settle: Callable[[], bool]) -> Response:
        try:
            settle()
        except KeyError as error:
            raise HttpError(404, error.args[0]) from None
        except ValueError as error:
            raise HttpError(400, str(error)) from None
        return _NO_CONTENT


class BidScorer:
    """The way from bid requests to the answers of one version of a model.

    Attributes:
        reader: reads requests as JSON bytes; None where C cannot.
    """

    def __init__(self, model: ServedModel, mapping: RowMapping) -> None:
        self.model = model
        self.mapping = mapping
        self._graph = model.ranker
        self.reader = BidReader.of(self._graph.encoder.reader, mapping)
        self._terms: dict[bytes, Terms | NoBid] = {}

    def read(self, body: bytes, now: float, find_terms: FindTerms) -> tuple[Asked, Terms | NoBid] | None:
        """What is asked and on which terms, for a request whose rows can be submitted until another one is read; None for any
        other body.

        Args:
            find_terms: `Bidder.terms`, for terms that were not asked for before.
        """
        found = None if self.reader is None else self.reader.read(body, now)
        if found is None:
            return None
        asked, key = found
        if asked is None:
            auction = decode_auction(body)
            return Asked.of(auction), find_terms(auction, self.mapping)
        terms = self._terms.get(key)
        if terms is None:
            if len(self._terms) >= _MOST_TERMS:
                self._terms.clear()
            terms = self._terms[key] = find_terms(decode_auction(body), self.mapping)
        return asked, terms

    def submit(self, plan: Plan) -> Waiting | None:
        """Submit the rows of a plan for the request that was read last; None where they are to be made by `RowMapping.rows`."""
        assert self.reader is not None
        rows, graph = plan.rows, self._graph
        if len(rows) == 1:
            if not self.reader.encode(rows[0].values, *graph.batcher.next_row()):
                return None
            return graph.batcher.submit_next_row()
        ids_NS = np.empty((len(rows), graph.encoder.num_slots), np.int64)
        dense_ND = np.empty((len(rows), graph.encoder.num_dense), np.float32)
        for ids, dense, row in zip(ids_NS, dense_ND, rows):
            if not self.reader.encode(row.values, ids.ctypes.data, dense.ctypes.data):
                return None
        return graph.batcher.submit(ids_NS, dense_ND)


def _decoded(request: Request) -> BidRequest:
    try:
        return decode_request(request.body)
    except ValueError as error:
        raise HttpError(400, f"not an OpenRTB {VERSION} bid request: {constant_in(request.body) or error}") from None


def bid_routes(models: Models, path: Path, *, now: float) -> BidRoutes:
    """What `trm serve --bid` adds to a server: bids with the default model.

    Args:
        path: bid.yaml.
        now: Unix seconds.

    Raises:
        ConfigError: for mistakes in the file, and for a file that does not fit the model.
    """
    deployment = models.deployment()
    try:
        bidder = Bidder(load_bid_config(path), deployment.current.tasks, now=now)
        return BidRoutes(bidder, deployment)
    except HttpError as error:
        raise ValueError(f"--bid: {error.reason}") from None
    except ConfigError as error:
        raise ConfigError(str(path), error.problems) from None


def check_workers(path: Path, workers: int) -> None:
    """Raises ValueError where several processes would each have a part of the open bids: a notice reaches any one of them."""
    if workers > 1 and load_bid_config(path).notice_url:
        raise ValueError(
            f"--bid: {path} has a notice_url, and open bids and budgets live in one process; give --workers 1, or serve several "
            "bidders, each with an address and a share of the budget of its own"
        )
