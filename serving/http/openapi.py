"""The OpenAPI document: FastAPI's routes, with the schemas of the msgspec structs for their bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi import Path as PathPart

from features.bounds import ID_BYTES
from serving.api import (
    EventsAnswer,
    MergeAnswer,
    MergeIn,
    PageAnswer,
    PageRequest,
    RankAnswer,
    RankRequest,
    RecommendRequest,
    UserAnswer,
    UserIn,
    decoding,
    events,
    problem,
    rankings,
)
from serving.api import items as item_forms
from serving.http.guard import needs

PathId = Annotated[str, PathPart(json_schema_extra={"maxLength": ID_BYTES, **decoding.ID_SCHEMA})]
"""An id in a path: documented here, and checked by `decoding.request_id`."""


_KEY = "A key created by `shelfwise keys new`, with the scope of the route. Not needed if the service has no keys."


def _reference(form: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{form.__name__}"}


def operation(body: type | None, answer: type, status: int = 200, several: bool = False) -> dict[str, Any]:
    """OpenAPI request body and responses of a route, which FastAPI cannot know as it does not handle these bodies.

    several: whether the body may also be an array or JSON lines.
    """
    out: dict[str, Any] = {
        "responses": {
            str(status): _answer(answer),
            **problem_responses("400", "401", "403", "404", "408", "413", "415", "422", "429", "503"),
        }
    }
    if body is not None:
        one = _reference(body)
        form = {"oneOf": [one, {"type": "array", "items": one}]} if several else one
        content = {"application/json": {"schema": form}}
        if several:
            content["application/x-ndjson"] = {"schema": {"type": "string", "description": "One object per line."}}
        out["requestBody"] = {"required": True, "content": content}
    return out


def _answer(answer: type) -> dict[str, Any]:
    return {"description": answer.__doc__, "content": {"application/json": {"schema": _reference(answer)}}}


def problem_responses(*statuses: str) -> dict[str, Any]:
    """OpenAPI responses of these statuses with a problem document."""
    content = {"application/problem+json": {"schema": _reference(problem.ProblemDocument)}}
    return {status: {"description": "A problem document.", "content": content} for status in statuses}


def state_responses(*statuses: int) -> dict[str, Any]:
    """OpenAPI responses of these statuses with the state of the service."""
    return {"responses": {str(status): _answer(rankings.ServiceState) for status in statuses}}


def add_document(app: FastAPI, more: Sequence[type] = ()) -> None:
    """Add /openapi.json, with the schemas of the structs that decode and encode bodies.

    FastAPI's own route encodes the document for every request, which takes several milliseconds of the event loop: a
    client that asks for it all the time would delay health checks. more: structs of routes that are not always there.
    """
    _add_schemas(app, more)
    encoded: dict[str, bytes] = {}

    @app.get("/openapi.json", include_in_schema=False, openapi_extra=needs(None))
    async def document(request: Request) -> Response:
        prefix = request.scope.get("root_path", "")  # of the configuration
        if prefix not in encoded:
            servers = {"servers": [{"url": prefix}]} if prefix else {}
            encoded[prefix] = msgspec.json.encode(app.openapi() | servers)
        return Response(encoded[prefix], media_type="application/json")


def _add_schemas(app: FastAPI, more: Sequence[type]) -> None:
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            forms = (
                RankRequest,
                RecommendRequest,
                RankAnswer,
                PageRequest,
                PageAnswer,
                events.EventIn,
                EventsAnswer,
                rankings.SimilarAnswer,
                events.ErasureAnswer,
                UserIn,
                UserAnswer,
                MergeIn,
                MergeAnswer,
                item_forms.ItemIn,
                item_forms.ItemsAnswer,
                item_forms.ItemAnswer,
                problem.ProblemDocument,
                rankings.ServiceState,
                *more,
            )
            _, components = msgspec.json.schema_components(forms, ref_template="#/components/schemas/{name}")
            merged = plain().setdefault("components", {})
            merged.setdefault("schemas", {}).update(components)
            for operation in (o for methods in plain()["paths"].values() for o in methods.values()):
                # FastAPI adds its own error schema to routes with parameters, but it is never returned.
                operation["responses"].get("422", {}).get("content", {}).pop("application/json", None)
            merged["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": _KEY}}
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]
