"""The service: requests in, answers out. Ranking is in `live`, bytes in Redis are in `store`, forms are in `schema`.

Bodies of `/v1` are decoded and encoded by msgspec and answered with a ready `Response`; FastAPI keeps routes and docs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from features.custom import load as load_features
from features.history import EMPTY, History
from features.table import Feature
from ranker.booster import BoosterTrees
from serving import schema
from serving.config import ServiceConfig
from serving.live import Follower, Live, Ranking
from serving.schema import (
    Accepted,
    Derived,
    EventsAnswer,
    Problem,
    RankAnswer,
    RankedItem,
    RankRequest,
    Refusal,
    Rejected,
)
from serving.store import Store, StoreAway

log = logging.getLogger(__name__)

_CONFIG_VARIABLE = "SHELFWISE_SERVICE"
_RELEASE_VARIABLE = "SHELFWISE_RELEASE"
_FEATURES_VARIABLE = "SHELFWISE_FEATURES"


class Service:
    """What the routes do, apart from HTTP.

    degraded: rankings answered so far without the user's history. slow: rankings scored by LightGBM, for a release
    whose model our own scorer does not cover.
    """

    def __init__(self, config: ServiceConfig, store: Store, follower: Follower, clock: Callable[[], float]) -> None:
        self.config, self.store, self.follower, self.clock = config, store, follower, clock
        self.degraded = 0
        self.slow = 0

    def live(self) -> Live:
        """The release of this request, to be taken once. Raises Problem where none is loaded."""
        if self.follower.live is None:
            raise Problem(
                503, "not-ready", "No release is loaded", self.follower.reason,
                "Try again shortly; /health/ready says when it is.", headers={"Retry-After": "1"},
            )  # fmt: skip
        return self.follower.live

    async def known_of(self, user_id: str | None, live: Live, at: float) -> tuple[History, bool]:
        """A user's history, and whether the answer is degraded for want of it: decided and counted here alone."""
        if user_id is None:
            return EMPTY, False
        try:
            return await self.store.read(user_id, live.items.catalogue, at), False
        except StoreAway as e:
            self.degraded += 1
            log.debug("ranking without history: %s", e)
            return EMPTY, True

    async def rank(self, request: RankRequest) -> RankAnswer:
        """Candidates in order for a user. Raises Problem."""
        started, at, live = time.perf_counter(), self.clock(), self.live()
        self._bound(request, live)
        history, degraded = await self.known_of(request.user_id, live, at)
        self.slow += isinstance(live.release.trees, BoosterTrees)
        ranking = live.rank(history, request.candidates, at, request.limit)
        items = self._explained(live, ranking, history) if request.explain else _plain(ranking)
        took_ms = round((time.perf_counter() - started) * 1e3, 3)
        return RankAnswer(uuid.uuid4().hex, live.release.id, degraded, items, took_ms)

    def _bound(self, request: RankRequest, live: Live) -> None:
        given = len(live.items.catalogue) if request.candidates is None else len(request.candidates)
        if given > self.config.max_candidates:
            whole = "the whole catalogue, " if request.candidates is None else ""
            raise Problem(
                422, "too-many-candidates", "Too many candidates",
                f"{whole}{given} candidates, at most {self.config.max_candidates} are ranked in one request",
                "Name fewer `candidates`.", "candidates",
            )  # fmt: skip

    def _explained(self, live: Live, ranking: Ranking, history: History) -> list[RankedItem]:
        items = _plain(ranking)
        catalogue = live.items.catalogue
        for item, parts in zip(items, live.contributions(ranking, self.config.reasons), strict=True):
            item.reasons = [schema.Reason(feature.name, added, feature.about) for feature, added in parts]
        for item, near in zip(items, live.nearest_engaged(ranking, history), strict=True):
            if near is not None and near[1] >= self.config.because_cosine:
                row, cosine = near
                item.because_you_viewed = schema.Because(catalogue.item_ids[row], catalogue.titles[row], cosine)
        return items

    async def take(self, body: bytes) -> EventsAnswer:
        """Events of a body into users' lists, each by itself. Raises Problem where none is good or Redis is away."""
        now = self.clock()
        accepted: dict[int, Accepted] = {}
        rejected: list[Rejected] = []
        raw = schema.raw_events(body, self.config.max_events)
        for index, one in enumerate(raw):
            try:
                accepted[index] = schema.accept(one, now, self.config.future_s)
            except Refusal as e:
                rejected.append(Rejected(index, e.field, e.message))
        if rejected and not accepted:
            raise Problem(
                422, "no-event-taken", "No event was taken", rejected[0].message,
                "See /docs for the fields and their types.", rejected[0].field, rejected=msgspec.to_builtins(rejected),
            )  # fmt: skip
        new = await self._write(list(accepted.values()), now)
        derived = [Derived(index, a.event.event_id) for index, a in accepted.items() if a.derived]
        return EventsAnswer(sum(new), len(new) - sum(new), rejected, derived)

    async def _write(self, accepted: list[Accepted], now: float) -> list[bool]:
        try:
            return await self.store.write([a.event for a in accepted], now)
        except StoreAway as e:
            raise Problem(
                503, "store-away", "Events cannot be stored now", str(e),
                "Send the same events again after a second; with an event_id, one that was stored counts once.",
                headers={"Retry-After": "1"},
            ) from e  # fmt: skip

    async def similar(self, item_id: str, limit: int) -> schema.SimilarAnswer:
        """Items nearest to one by text. Raises Problem where it is unknown or has no text."""
        live = self.live()
        catalogue = live.items.catalogue
        row = int(catalogue.rows([item_id])[0])
        if row < 0 or not live.items.vectors.scale[row] > 0:
            why = (
                f"{item_id!r} is not in release {live.release.id}" if row < 0 else f"{item_id!r} has no text to compare"
            )
            raise Problem(404, "no-such-item", "No such item", why, "Ask for an item of the catalogue.", "item_id")
        near = await asyncio.to_thread(live.similar, row, limit)
        items = [schema.SimilarItem(catalogue.item_ids[r], catalogue.titles[r], c) for r, c in near]
        return schema.SimilarAnswer(item_id, live.release.id, items)

    def ready(self) -> Response:
        """200 where rankings are answered, else 503 with the reason; with what an operator asks first."""
        live = self.follower.live
        state = {
            "status": "ready" if live else "not ready", "release": live.release.id if live else None,
            "reason": self.follower.reason or None, "redis": self.follower.redis, "degraded": self.degraded,
            "slow": self.slow,
        }  # fmt: skip
        return _json(state, 200 if live else 503)


def create_app(
    config: ServiceConfig, redis_url: str, *, release: Path | None = None, clock: Callable[[], float] = time.time,
    custom: tuple[Feature, ...] = (),
) -> FastAPI:  # fmt: skip
    """The ASGI application; it connects when it starts, and starts whether or not Redis and a release are there.

    release: a directory to answer from until the release pointer in Redis names another, and while Redis is away.
    clock: Unix seconds, the moment of a request, before the configured offset.
    """
    store = Store(redis_url, config.redis_timeout_s)
    follower = Follower(config, store, release, custom)
    service = Service(config, store, follower, lambda: clock() + config.clock_offset_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(follower.run())
        following.add_done_callback(_say_if_it_died)
        yield
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await store.close()

    app = FastAPI(title="Shelfwise", version="1", lifespan=lifespan, redoc_url=None)
    _routes(app, service)
    _errors(app)
    _document(app)
    return app


def _routes(app: FastAPI, service: Service) -> None:
    most = service.config.max_body_bytes

    @app.post("/v1/rank", openapi_extra=_forms(RankRequest, RankAnswer), summary="Rank candidates for a user")
    async def rank(request: Request) -> Response:
        return _json(await service.rank(schema.rank_request(await _body(request, most))))

    @app.post("/v1/events", status_code=202, openapi_extra=_forms(schema.EventIn, EventsAnswer, 202, several=True),
              summary="Take in what shoppers do: one event or an array")  # fmt: skip
    async def events(request: Request) -> Response:
        return _json(await service.take(await _body(request, most)), 202)

    @app.get(
        "/v1/similar/{item_id:path}", openapi_extra=_forms(None, schema.SimilarAnswer), summary="Items alike by text"
    )
    async def similar(item_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 10) -> Response:
        return _json(await service.similar(item_id, limit))

    @app.get("/health/live", summary="The process answers")
    async def live() -> Response:
        return _json({"status": "live"})

    @app.get("/health/ready", summary="A release is loaded; 503 with the reason where none is")
    async def ready() -> Response:
        return service.ready()


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return _problem(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field, remedy = ".".join(map(str, first["loc"][1:])), "See /docs for the fields and their types."
        return _problem(Problem(422, "invalid-field", "A field is not as it must be", first["msg"], remedy, field))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        detail, headers = f"{request.method} {request.url.path}: {error.detail}", dict(error.headers or {})
        return _problem(
            Problem(error.status_code, "http", error.detail, detail, "See /docs for the routes.", headers=headers)
        )

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        title, remedy = "The service failed", "The service's log says more; the same request may be sent again."
        return _problem(Problem(500, "failed", title, type(error).__name__, remedy))


def _problem(error: Problem) -> Response:
    content = msgspec.json.encode(error.document)
    return Response(content, error.status, error.headers, media_type="application/problem+json")


def _json(answer: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _plain(ranking: Ranking) -> list[RankedItem]:
    return [RankedItem(i, s) for i, s in zip(ranking.item_ids, ranking.score.tolist(), strict=True)]


async def _body(request: Request, most: int) -> bytes:
    """The body, read no further than `most` bytes. Raises Problem."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Problem(
                413, "body-too-large", "The body is too large", f"more than {most} bytes",
                "Send less in one request.", headers={"Connection": "close"},
            )  # fmt: skip
        parts.append(part)
    return b"".join(parts)


def _say_if_it_died(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and following.exception() is not None:
        log.critical("the event stream is not followed any more", exc_info=following.exception())


def _reference(form: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{form.__name__}"}


def _forms(body: type | None, answer: type, status: int = 200, several: bool = False) -> dict[str, Any]:
    """The part of a route's documentation that FastAPI cannot know, as it does not decode or encode these bodies."""
    problem = {"application/problem+json": {"schema": _reference(schema.ProblemDocument)}}
    out: dict[str, Any] = {
        "responses": {
            str(status): {
                "description": answer.__doc__,
                "content": {"application/json": {"schema": _reference(answer)}},
            },
            **{
                s: {"description": "A problem document.", "content": problem}
                for s in ("400", "404", "413", "422", "503")
            },
        }
    }
    if body is not None:
        one = _reference(body)
        form = {"oneOf": [one, {"type": "array", "items": one}]} if several else one
        out["requestBody"] = {"required": True, "content": {"application/json": {"schema": form}}}
    return out


def _document(app: FastAPI) -> None:
    """Put the forms into the OpenAPI schema, from the very structs that decode and encode."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            forms = (
                RankRequest,
                RankAnswer,
                schema.EventIn,
                EventsAnswer,
                schema.SimilarAnswer,
                schema.ProblemDocument,
            )
            _, components = msgspec.json.schema_components(forms, ref_template="#/components/schemas/{name}")
            plain().setdefault("components", {}).setdefault("schemas", {}).update(components)
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]


def from_environment() -> FastAPI:
    """The application of a worker process, as `serve` left it in the environment."""
    release = os.environ.get(_RELEASE_VARIABLE)
    config = ServiceConfig.model_validate_json(os.environ.get(_CONFIG_VARIABLE, "{}"))
    custom = load_features(json.loads(os.environ.get(_FEATURES_VARIABLE, "[]")))
    return create_app(config, os.environ["REDIS_URL"], release=Path(release) if release else None, custom=custom)


def serve(config: ServiceConfig, redis_url: str, release: Path | None = None, custom: Sequence[str] = ()) -> None:
    """Listen and answer until told to stop, with as many worker processes as the configuration says.

    custom: features of the user's own, as module:function. Raises FeatureError where one cannot be loaded.
    """
    load_features(custom)
    os.environ[_FEATURES_VARIABLE] = json.dumps(list(custom))
    os.environ["REDIS_URL"] = redis_url
    os.environ[_CONFIG_VARIABLE] = config.model_dump_json()
    if release is not None:
        os.environ[_RELEASE_VARIABLE] = str(release)
    uvicorn.run(
        "serving.app:from_environment", factory=True, host=config.host, port=config.port, workers=config.workers,
        log_level="info", access_log=False,
    )  # fmt: skip
