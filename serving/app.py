"""HTTP: routes, errors as problem documents, the OpenAPI schema, and worker processes. What routes do is in `service`.

Bodies of `/v1` are decoded and encoded by msgspec and answered with a ready `Response`; FastAPI keeps routes and docs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
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
from features.table import Feature
from serving import schema
from serving.config import ServiceConfig
from serving.live import Follower
from serving.schema import EventsAnswer, Problem, RankAnswer, RankRequest
from serving.service import Service
from serving.store import Store

log = logging.getLogger(__name__)

_CONFIG_VARIABLE = "SHELFWISE_SERVICE"
_RELEASE_VARIABLE = "SHELFWISE_RELEASE"
_FEATURES_VARIABLE = "SHELFWISE_FEATURES"


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
        return _json(service.state(), 200 if service.follower.live else 503)


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
