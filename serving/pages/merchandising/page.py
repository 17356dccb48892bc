"""Routes of the page of merchandisers: its files, and its API under /v1/merchandising.

Reading and previews need a key with scope `merchandise:read`, which `merchandise` includes; changes need `merchandise`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathPart

from serving.api import decoding
from serving.http import access_of, caller, needs, operation, problem_responses
from serving.merchandising import CHANGES, NOTE, RULE_ID
from serving.pages.files import add_files
from serving.pages.merchandising.desk import Desk
from serving.pages.merchandising.forms import (
    MERCHANDISING_FORMS,
    MerchandisingHistory,
    MerchandisingItems,
    MerchandisingOptions,
    MerchandisingPreview,
    MerchandisingPreviewIn,
    MerchandisingRuleIn,
    MerchandisingState,
    MerchandisingUndo,
    check_plain,
    preview_in,
    rule_in,
    undo_in,
)
from serving.pages.merchandising.preview import preview
from serving.pages.sites import check_same_site
from serving.ranking import Service

__all__ = ["MERCHANDISING_FORMS", "add_merchandising"]
PATH = "/merchandising"
FOLDER = Path(__file__).parent
FILES = {f.name: f for f in sorted(FOLDER.iterdir()) if f.suffix in (".html", ".css", ".js")} | {
    name: FOLDER.parent / "storefront" / file
    for name, file in (
        ("api.js", "api.js"),
        ("make.js", "make.js"),
        ("icon.svg", "icon.svg"),
        ("base.css", "style.css"),
    )
}
FILES["guarded.js"] = FOLDER.parent / "operator" / "guarded.js"
"""Files of the page by name, including some of the storefront's and one of the operator's."""

_API = "/v1/merchandising"
_WRITE, _READ = "merchandise", "merchandise:read"
_RuleId = Annotated[str, PathPart(pattern=RULE_ID)]
_Words = Annotated[str, Query(max_length=200, json_schema_extra=decoding.PLAIN)]


def add_merchandising(app: FastAPI, service: Service) -> None:
    """Add the page at /merchandising and its API under /v1/merchandising."""
    add_files(app, PATH, FILES)
    followed = service.follower.merchandising
    assert followed is not None, "the page is only added if merchandising is on"
    desk = Desk(service, followed)
    _add_reads(app, service, desk)
    _add_writes(app, desk)


def _add_reads(app: FastAPI, service: Service, desk: Desk) -> None:
    @app.get(_API, openapi_extra=_guarded(None, MerchandisingState, _READ), summary="Get the merchandising rules")
    async def state() -> Response:
        return _json(await desk.state())

    @app.get(
        f"{_API}/history",
        openapi_extra=_guarded(None, MerchandisingHistory, _READ),
        summary="List changes of the merchandising rules",
    )
    async def history(limit: Annotated[int, Query(ge=1, le=CHANGES)] = 50) -> Response:
        return _json(await desk.history(limit))

    @app.get(
        f"{_API}/options",
        openapi_extra=_guarded(None, MerchandisingOptions, _READ),
        summary="List what merchandising rules can use",
    )
    async def options(request: Request) -> Response:
        key = access_of(request).key
        return _json(await desk.options(key is None or _WRITE in key.scopes))

    @app.get(
        f"{_API}/items", openapi_extra=_guarded(None, MerchandisingItems, _READ), summary="Find items by their titles"
    )
    async def items(words: _Words = "") -> Response:
        check_plain("words", words)
        return _json(await desk.items(words))

    @app.post(
        f"{_API}/preview",
        openapi_extra=_guarded(MerchandisingPreviewIn, MerchandisingPreview, _READ),
        summary="Preview a list, with and without a draft of a rule",
    )
    async def previewed(request: Request) -> Response:
        check_same_site(request, PATH)
        return _json(await preview(service, desk, preview_in(await request.body())))


def _add_writes(app: FastAPI, desk: Desk) -> None:
    @app.put(
        f"{_API}/rules/{{rule_id}}",
        openapi_extra=_guarded(MerchandisingRuleIn, MerchandisingState, _WRITE),
        summary="Write a merchandising rule",
    )
    async def put(rule_id: _RuleId, request: Request) -> Response:
        check_same_site(request, PATH)
        return _json(await desk.put(rule_id, rule_in(await request.body()), _author(request)))

    @app.delete(
        f"{_API}/rules/{{rule_id}}",
        openapi_extra=_guarded(None, MerchandisingState, _WRITE),
        summary="Delete a merchandising rule",
    )
    async def delete(
        rule_id: _RuleId,
        request: Request,
        version: Annotated[int, Query(ge=0, le=2**53)],
        note: Annotated[str, Query(max_length=NOTE, json_schema_extra=decoding.PLAIN)] = "",
    ) -> Response:
        check_same_site(request, PATH)
        check_plain("note", note)
        return _json(await desk.delete(rule_id, version, note, _author(request)))

    @app.post(
        f"{_API}/undo",
        openapi_extra=_guarded(MerchandisingUndo, MerchandisingState, _WRITE),
        summary="Restore the merchandising rules of a version",
    )
    async def undo(request: Request) -> Response:
        check_same_site(request, PATH)
        return _json(await desk.undo(undo_in(await request.body()), _author(request)))


def _guarded(body: type | None, answer: type, scope: str) -> dict[str, Any]:
    out = operation(body, answer) | needs(scope)
    out["responses"] |= problem_responses("409")
    return out


def _author(request: Request) -> str:
    return caller(request) or "anonymous"


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
