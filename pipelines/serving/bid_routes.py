"""`POST /bid` and the notices: HTTP around `bidding`."""

import time
from collections.abc import Callable
from pathlib import Path

from ..config.errors import ConfigError
from .bid_config import load_bid_config
from .bid_mapping import RowMapping
from .bidding import Bidder, separators
from .messages import HttpError, Request, Response, Route, encode_json
from .models import Deployment, Models, ServedModel
from .openrtb import VERSION, BidResponse, NoBid, decode_request, encode_response

_HEADERS = ((b"x-openrtb-version", VERSION.encode()),)
_NO_CONTENT = Response(b"", status=204, headers=_HEADERS)


class BidRoutes:
    """The routes of a bidder on one deployed model.

    Args:
        bidder: decides; its clock is `clock`.
        deployment: whose current version (or split) scores; it must be a ranker.
        clock: Unix seconds.

    Raises:
        ConfigError: if the mapping does not fit the model's columns.
    """

    def __init__(self, bidder: Bidder, deployment: Deployment, *, clock: Callable[[], float] = time.time) -> None:
        self.bidder = bidder
        self._deployment = deployment
        self._clock = clock
        self._margin_seconds = bidder.config.margin_milliseconds / 1000
        self._tasks = deployment.current.tasks
        self._mappings = {deployment.current.version: self._compile(deployment.current)}

    def _compile(self, model: ServedModel) -> RowMapping:
        graph = model.ranker.graph
        return RowMapping(self.bidder.config, graph.codec.columns, separators(graph.transforms.features))

    def mapping_for(self, model: ServedModel) -> RowMapping:
        """The compiled mapping for one version of the model.

        Raises:
            HttpError: 503 for a version that was loaded since and has other columns or tasks than bid.yaml needs.
        """
        mapping = self._mappings.get(model.version)
        if mapping is None:
            try:
                if model.tasks != self._tasks:
                    raise ValueError(f"it predicts {', '.join(model.tasks)}, and bids need {', '.join(self._tasks)}")
                mapping = self._compile(model)
            except ValueError as error:
                raise HttpError(503, f"no bids with version {model.version}, which was loaded since the start: {error}") from None
            served = {m.version for m in self._deployment.versions().values()}
            self._mappings = {v: m for v, m in self._mappings.items() if v in served} | {model.version: mapping}
        return mapping

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
        arrived = time.perf_counter()
        try:
            given = decode_request(request.body)
        except ValueError as error:
            raise HttpError(400, f"not an OpenRTB {VERSION} bid request: {error}") from None
        deadline = None if given.tmax is None else arrived + given.tmax / 1000 - self._margin_seconds
        if deadline is not None and deadline <= arrived:
            return self._no_bid(self.bidder.no_bid(given, NoBid.INSUFFICIENT_AUCTION_TIME))
        model = self._deployment.choose(request.key)
        mapping = self.mapping_for(model)
        now = self._clock()
        try:
            plan = self.bidder.plan(given, mapping, now)
            if isinstance(plan, NoBid):
                return self._no_bid(self.bidder.no_bid(given, plan))
            answers = await model.score(plan.rows, from_json=True)
        except ValueError as error:
            raise HttpError(400, str(error)) from None
        if deadline is not None and time.perf_counter() > deadline:
            return self._no_bid(self.bidder.no_bid(given, NoBid.INSUFFICIENT_AUCTION_TIME))
        answer = self.bidder.answer(plan, answers, now)
        if isinstance(answer, NoBid):
            return self._no_bid(self.bidder.no_bid(given, answer))
        return Response(encode_response(answer), headers=_HEADERS)

    @staticmethod
    def _no_bid(response: BidResponse | None) -> Response:
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
