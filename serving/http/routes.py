"""Routes and error handlers of the API: from HTTP requests to calls of the service, and back."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from serving.api import (
    ErasureAnswer,
    EventIn,
    EventsAnswer,
    MergeAnswer,
    MergeIn,
    PageAnswer,
    PageRequest,
    Problem,
    RankAnswer,
    RankRequest,
    RecommendRequest,
    UserAnswer,
    UserIn,
    rankings,
    request_id,
)
from serving.api import items as item_forms
from serving.api import page as api_page
from serving.http.access import access_of
from serving.http.guard import needs, problem_answer
from serving.http.openapi import PathId, operation, problem_responses, state_responses
from serving.ranking import Service
from serving.records import metrics


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes of the API to an application."""
    _for_shoppers(app, service)
    _for_data(app, service)
    _for_operators(app, service)


def _for_shoppers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/rank",
        openapi_extra=operation(RankRequest, RankAnswer) | needs("rank"),
        summary="Rank candidates for a user",
    )
    async def rank(request: Request) -> Response:
        asked = rankings.rank_request(await request.body())
        access = access_of(request)
        return json_response(access.without_values(await service.rank(asked, access.check_ranking(asked))))

    @app.post(
        "/v1/recommend",
        openapi_extra=operation(RecommendRequest, RankAnswer) | needs("rank"),
        summary="Recommend items to a user",
    )
    async def recommend(request: Request) -> Response:
        asked = rankings.recommend_request(await request.body())
        access = access_of(request)
        return json_response(access.without_values(await service.recommend(asked, access.check_ranking(asked))))

    @app.post(
        "/v1/page",
        openapi_extra=operation(PageRequest, PageAnswer) | needs("rank"),
        summary="Recommend items for several placements, without repeats",
    )
    async def page(request: Request) -> Response:
        asked, access = api_page.page_request(await request.body()), access_of(request)
        answer = await service.page(asked, access.check_page(asked))
        answer.lists = [access.without_values(one) for one in answer.lists]
        return json_response(answer)

    @app.post(
        "/v1/events",
        status_code=202,
        summary="Store events: one event, an array, or JSON lines",
        openapi_extra=operation(EventIn, EventsAnswer, 202, several=True) | needs("events"),
    )
    async def events(request: Request) -> Response:
        content_type, shopper = request.headers.get("content-type", ""), access_of(request).shopper
        return json_response(await service.writes.take(await request.body(), content_type, shopper), 202)

    @app.get(
        "/v1/similar/{item_id:path}",
        openapi_extra=operation(None, rankings.SimilarAnswer) | needs("rank"),
        summary="List items with similar text",
    )
    async def similar(item_id: str, limit: Annotated[int, Query(ge=1, le=1000)] = 10) -> Response:
        return json_response(await service.similar(item_id, limit))


def _for_data(app: FastAPI, service: Service) -> None:
    @app.put(
        "/v1/items",
        status_code=202,
        summary="Write items: one item, an array, or JSON lines",
        openapi_extra=operation(item_forms.ItemIn, item_forms.ItemsAnswer, 202, several=True) | needs("items"),
    )
    async def items(request: Request) -> Response:
        return json_response(
            await service.writes.write_items(await request.body(), request.headers.get("content-type", "")), 202
        )

    @app.get(
        "/v1/items/{item_id:path}",
        openapi_extra=operation(None, item_forms.ItemAnswer) | needs("items"),
        summary="Get the current state of an item",
    )
    async def known(item_id: PathId) -> Response:
        return json_response(await service.item(item_id))

    @app.delete(
        "/v1/items/{item_id:path}",
        status_code=202,
        summary="Remove an item from all results",
        openapi_extra=operation(None, item_forms.ItemsAnswer, 202) | needs("items"),
    )
    async def withdraw(item_id: PathId) -> Response:
        return json_response(await service.writes.withdraw(item_id), 202)

    @app.put(
        "/v1/users/{user_id:path}",
        status_code=202,
        summary="Write attributes of a user",
        openapi_extra=operation(UserIn, UserAnswer, 202) | needs("items"),
    )
    async def write_user(user_id: PathId, request: Request) -> Response:
        return json_response(await service.writes.write_user(user_id, await request.body()), 202)

    @app.post(
        "/v1/users/{user_id:path}/merge",
        summary="Merge an anonymous user into a user at login",
        openapi_extra=operation(MergeIn, MergeAnswer) | needs("merge"),
    )
    async def merge(user_id: PathId, request: Request) -> Response:
        return json_response(await service.writes.merge(user_id, await request.body()))

    @app.delete(
        "/v1/users/{user_id:path}",
        status_code=202,
        summary="Erase a user",
        openapi_extra=operation(None, ErasureAnswer, 202) | needs("admin"),
    )
    async def erase(user_id: PathId) -> Response:
        return json_response(await service.writes.erase(user_id), 202)


def _for_operators(app: FastAPI, service: Service) -> None:
    @app.get(
        "/metrics",
        openapi_extra={"responses": problem_responses("401", "403", "429", "503")} | needs("metrics"),
        summary="Metrics of all workers, for Prometheus",
        response_class=PlainTextResponse,
    )
    async def exposition() -> Response:
        return Response(await service.exposition(), media_type=metrics.CONTENT_TYPE)

    @app.get(
        "/health/live", openapi_extra=state_responses(200) | needs(None), summary="Check that the process responds"
    )
    async def live() -> Response:
        return json_response({"status": "live"})

    @app.get(
        "/health/ready",
        openapi_extra=state_responses(200, 503) | needs(None),
        summary="Check that a release is loaded and Redis evicts nothing; 503 with the reason if not",
    )
    async def ready() -> Response:
        return json_response(service.state(), 200 if service.ready else 503)


def add_error_handlers(app: FastAPI) -> None:
    """Make an application answer every error with a problem document."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> Response:
        return problem_answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field, remedy = ".".join(map(str, first["loc"][1:])), "See /docs for the fields and their types."
        return problem_answer(Problem(422, "invalid-field", "Invalid field", first["msg"], remedy, field))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        detail, headers = f"{request.method} {request.url.path}: {error.detail}", dict(error.headers or {})
        return problem_answer(
            Problem(error.status_code, "http", error.detail, detail, "See /docs for the routes.", headers=headers)
        )

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        title, remedy = "Internal error", "See the service's log for details. The same request may be sent again."
        headers = {"X-Request-ID": request_id.current()}
        return problem_answer(Problem(500, "failed", title, type(error).__name__, remedy, headers=headers))


def json_response(answer: Any, status: int = 200) -> Response:
    """A response with the answer encoded as JSON by msgspec."""
    return Response(msgspec.json.encode(answer), status, media_type="application/json")
