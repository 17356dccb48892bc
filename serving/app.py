"""HTTP: routes, errors as problem documents, the OpenAPI schema, and worker processes. What routes do is in `service`.

Bodies of `/v1` are decoded and encoded by msgspec and answered with a ready `Response`; FastAPI keeps routes and docs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathPart
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from features.custom import load as load_features
from features.table import Feature
from serving import item, keys, metrics, request_id, schema
from serving.clock import clock_of
from serving.config import ID_CHARACTERS, ServiceConfig
from serving.connection import Connection
from serving.guard import Guard, needs, problem_answer
from serving.keys import Keys
from serving.live import Follower
from serving.logs import log_config
from serving.metrics import Metrics
from serving.operator.page import add_operator
from serving.schema import EventsAnswer, Problem, RankAnswer, RankRequest, RecommendRequest
from serving.service import Service
from serving.store import Store
from serving.storefront.page import add_storefront
from serving.timeline import Timeline

log = logging.getLogger(__name__)

_CONFIG_VARIABLE = "SHELFWISE_SERVICE"
_RELEASE_VARIABLE = "SHELFWISE_RELEASE"
_FEATURES_VARIABLE = "SHELFWISE_FEATURES"
_Id = Annotated[str, PathPart(json_schema_extra={"maxLength": ID_CHARACTERS, **schema.PLAIN})]
"""An id in a path: documented here, and checked by `schema.checked_id`."""
_KEY = "A key made by `shelfwise keys new`, with the scope that a route names; none where the service has no keys."


def create_app(
    config: ServiceConfig,
    redis_url: str,
    *,
    release: Path | None = None,
    clock: Callable[[], float] | None = None,
    custom: tuple[Feature, ...] = (),
    good: Keys | None = None,
) -> FastAPI:
    """The ASGI application; it connects when it starts, and starts whether or not Redis and a release are there.

    release: a directory to answer from until the release pointer in Redis names another, and while Redis is away.
    clock: Unix seconds, the moment of a request, before the configured offset; by default the configuration's.
    good: the keys that are; without any, whoever reaches the service may ask all.
    """
    counts, good, now = Metrics(), good or Keys(), clock or clock_of(config.clock_file)
    store = Store(redis_url, config.redis_timeout_s, config.redis_failures, config.redis_pause_s)
    follower = Follower(config, store, release, custom, counts)
    service = Service(config, store, follower, lambda: now() + config.clock_offset_s, counts)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(follower.run())
        following.add_done_callback(_say_if_it_died)
        tasks = [
            following,
            asyncio.create_task(_look_at(good)),
            asyncio.create_task(service.served.run()),
            asyncio.create_task(service.shadow.run()),
        ]
        if config.operator:
            tasks.append(asyncio.create_task(timeline.run()))
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.served.flush()
        await store.close()

    app = FastAPI(title="Shelfwise", version="1", lifespan=lifespan, redoc_url=None)
    _routes(app, service)
    if config.storefront:
        add_storefront(app, service)
    timeline = Timeline(store, counts, service.clock)
    if config.operator:
        add_operator(app, service, timeline, redis_url, custom)
    _errors(app)
    _document(app)
    app.add_middleware(Guard, routes=app.router.routes, config=config, keys=good, metrics=counts)
    if config.cors_origins:  # outside the guard: a browser asks first, without a key, whether it may send one
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Date", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID"],
            max_age=3600,
        )
    return app


async def _look_at(good: Keys) -> None:
    """See to it that a key added or withdrawn is so within two seconds."""
    while True:
        await asyncio.sleep(2)
        await asyncio.to_thread(good.look)


def _routes(app: FastAPI, service: Service) -> None:
    _for_shoppers(app, service)
    _for_data(app, service)
    _for_operators(app, service)


def _for_shoppers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/rank", openapi_extra=_forms(RankRequest, RankAnswer) | needs("rank"), summary="Rank candidates for a user"
    )
    async def rank(request: Request) -> Response:
        return _json(await service.rank(schema.rank_request(await request.body())))

    @app.post(
        "/v1/recommend",
        openapi_extra=_forms(RecommendRequest, RankAnswer) | needs("rank"),
        summary="Retrieve for a user, and rank",
    )
    async def recommend(request: Request) -> Response:
        return _json(await service.recommend(schema.recommend_request(await request.body())))

    @app.post(
        "/v1/events",
        status_code=202,
        summary="Take in what shoppers do: one event, an array, or JSON lines",
        openapi_extra=_forms(schema.EventIn, EventsAnswer, 202, several=True) | needs("events"),
    )
    async def events(request: Request) -> Response:
        return _json(await service.take(await request.body(), request.headers.get("content-type", "")), 202)

    @app.get(
        "/v1/similar/{item_id:path}",
        openapi_extra=_forms(None, schema.SimilarAnswer) | needs("rank"),
        summary="Items alike by text",
    )
    async def similar(item_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 10) -> Response:
        return _json(await service.similar(item_id, limit))


def _for_data(app: FastAPI, service: Service) -> None:
    @app.put(
        "/v1/items",
        status_code=202,
        summary="Write items: one, an array, or JSON lines",
        openapi_extra=_forms(item.ItemIn, item.ItemsAnswer, 202, several=True) | needs("items"),
    )
    async def items(request: Request) -> Response:
        return _json(await service.write_items(await request.body(), request.headers.get("content-type", "")), 202)

    @app.get(
        "/v1/items/{item_id:path}",
        openapi_extra=_forms(None, item.ItemAnswer) | needs("items"),
        summary="What is known of an item",
    )
    async def known(item_id: _Id) -> Response:
        return _json(await service.item(item_id))

    @app.delete(
        "/v1/items/{item_id:path}",
        status_code=202,
        summary="Take an item out of every answer",
        openapi_extra=_forms(None, item.ItemsAnswer, 202) | needs("items"),
    )
    async def withdraw(item_id: _Id) -> Response:
        return _json(await service.withdraw(item_id), 202)

    @app.delete(
        "/v1/users/{user_id:path}",
        status_code=202,
        summary="Erase a user",
        openapi_extra=_forms(None, schema.ErasureAnswer, 202) | needs("admin"),
    )
    async def erase(user_id: _Id) -> Response:
        return _json(await service.erase(user_id), 202)


def _for_operators(app: FastAPI, service: Service) -> None:
    @app.get(
        "/metrics",
        openapi_extra={"responses": _problems("401", "403", "429", "503")} | needs("metrics"),
        summary="What all workers counted of themselves, for Prometheus",
        response_class=PlainTextResponse,
    )
    async def exposition() -> Response:
        counted = await asyncio.to_thread(service.metrics.exposition)
        return Response(counted, media_type=metrics.CONTENT_TYPE)

    @app.get("/health/live", openapi_extra=_states(200) | needs(None), summary="The process answers")
    async def live() -> Response:
        return _json({"status": "live"})

    @app.get(
        "/health/ready",
        openapi_extra=_states(200, 503) | needs(None),
        summary="A release is loaded; 503 with the reason where none is",
    )
    async def ready() -> Response:
        return _json(service.state(), 200 if service.follower.live else 503)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return problem_answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field, remedy = ".".join(map(str, first["loc"][1:])), "See /docs for the fields and their types."
        return problem_answer(
            Problem(422, "invalid-field", "A field is not as it must be", first["msg"], remedy, field)
        )

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        detail, headers = f"{request.method} {request.url.path}: {error.detail}", dict(error.headers or {})
        return problem_answer(
            Problem(error.status_code, "http", error.detail, detail, "See /docs for the routes.", headers=headers)
        )

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        title, remedy = "The service failed", "The service's log says more; the same request may be sent again."
        headers = {"X-Request-ID": request_id.current()}
        return problem_answer(Problem(500, "failed", title, type(error).__name__, remedy, headers=headers))


def _json(answer: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _say_if_it_died(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and following.exception() is not None:
        log.critical("the event stream is not followed any more", exc_info=following.exception())


def _reference(form: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{form.__name__}"}


def _forms(body: type | None, answer: type, status: int = 200, several: bool = False) -> dict[str, Any]:
    """The part of a route's documentation that FastAPI cannot know, as it does not decode or encode these bodies."""
    out: dict[str, Any] = {
        "responses": {
            str(status): _answer(answer),
            **_problems("400", "401", "403", "404", "408", "413", "422", "429", "503"),
        }
    }
    if body is not None:
        one = _reference(body)
        form = {"oneOf": [one, {"type": "array", "items": one}]} if several else one
        content = {"application/json": {"schema": form}}
        if several:
            content["application/x-ndjson"] = {"schema": {"type": "string", "description": "One object a line."}}
        out["requestBody"] = {"required": True, "content": content}
    return out


def _answer(answer: type) -> dict[str, Any]:
    return {"description": answer.__doc__, "content": {"application/json": {"schema": _reference(answer)}}}


def _problems(*statuses: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _reference(schema.ProblemDocument)}}
    return {status: {"description": "A problem document.", "content": content} for status in statuses}


def _states(*statuses: int) -> dict[str, Any]:
    return {"responses": {str(status): _answer(schema.ServiceState) for status in statuses}}


def _document(app: FastAPI) -> None:
    """Put the forms into the OpenAPI schema, from the very structs that decode and encode."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            forms = (
                RankRequest,
                RecommendRequest,
                RankAnswer,
                schema.EventIn,
                EventsAnswer,
                schema.SimilarAnswer,
                schema.ErasureAnswer,
                item.ItemIn,
                item.ItemsAnswer,
                item.ItemAnswer,
                schema.ProblemDocument,
                schema.ServiceState,
            )
            _, components = msgspec.json.schema_components(forms, ref_template="#/components/schemas/{name}")
            ours = plain().setdefault("components", {})
            ours.setdefault("schemas", {}).update(components)
            for operation in (o for methods in plain()["paths"].values() for o in methods.values()):
                # FastAPI's own form of an error, which it adds where there are parameters, and which is never answered.
                operation["responses"].get("422", {}).get("content", {}).pop("application/json", None)
            ours["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": _KEY}}
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]


def from_environment() -> FastAPI:
    """The application of a worker process, as `serve` left it in the environment."""
    release = os.environ.get(_RELEASE_VARIABLE)
    config = ServiceConfig.model_validate_json(os.environ.get(_CONFIG_VARIABLE, "{}"))
    custom = load_features(json.loads(os.environ.get(_FEATURES_VARIABLE, "[]")))
    good = Keys(config.keys_file, os.environ.get(keys.VARIABLE, ""))
    return create_app(
        config, os.environ["REDIS_URL"], release=Path(release) if release else None, custom=custom, good=good
    )


def serve(config: ServiceConfig, redis_url: str, release: Path | None = None, custom: Sequence[str] = ()) -> None:
    """Listen and answer until told to stop, with as many worker processes as the configuration says.

    custom: features of the user's own, as module:function. Raises FeatureError where one cannot be loaded, KeysError
    where keys cannot be read or the service would be open beyond this machine, OSError or ClockError where the file of
    a simulated clock does not tell the time.
    """
    load_features(custom)
    clock_of(config.clock_file)()
    keys.refuse_exposure(config.host, Keys(config.keys_file, os.environ.get(keys.VARIABLE, "")), config.insecure)
    os.environ[_FEATURES_VARIABLE] = json.dumps(list(custom))
    os.environ["REDIS_URL"] = redis_url
    os.environ[_CONFIG_VARIABLE] = config.model_dump_json()
    if release is not None:
        os.environ[_RELEASE_VARIABLE] = str(release)
    with _counting_together(config.workers):
        uvicorn.run(
            "serving.app:from_environment",
            factory=True,
            host=config.host,
            port=config.port,
            workers=config.workers,
            log_config=log_config(config.log, config.log_requests),
            access_log=False,
            **limits(config),
        )


def limits(config: ServiceConfig) -> dict[str, Any]:
    """How uvicorn is held to the configuration's bounds on connections and time."""
    return {
        "http": Connection,
        "ws": "none",
        "limit_concurrency": config.max_connections + 1,
        "timeout_keep_alive": config.idle_s,
        "timeout_graceful_shutdown": config.drain_s,
    }


@contextmanager
def _counting_together(workers: int) -> Iterator[None]:
    """Where there are several workers, a directory in which they count."""
    if workers == 1 or metrics.DIRECTORY in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="shelfwise-metrics-") as directory:
        os.environ[metrics.DIRECTORY] = directory
        yield
        del os.environ[metrics.DIRECTORY]
