"""The page's files over HTTP, and the routes beside the API that a shop would answer from its own database.

Rankings and events go through the public routes, as any shop's would. What a page needs and the API rightly lacks
stands here: how products look, who there is to shop as, what sells most, which titles hold a word.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response

from serving import schema
from serving.guard import needs
from serving.service import Service
from serving.storefront import shop

PATH = "/storefront"
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "shelf.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "card.js": "text/javascript; charset=utf-8",
    "picture.js": "text/javascript; charset=utf-8",
    "movement.js": "text/javascript; charset=utf-8",
}
"""The files of the page and what they are; no other file is answered."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing from elsewhere, no script or style in the page, and no text ever read as markup."""
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_storefront(app: FastAPI, service: Service) -> None:
    """Answer the page at /storefront, and what it asks under /v1/storefront with a key for `rank`."""
    _files(app)
    writes = any(getattr(r, "path", "") == "/v1/items" and "PUT" in (r.methods or ()) for r in app.routes)  # type: ignore[attr-defined]
    guarded: dict[str, Any] = {"openapi_extra": needs("rank"), "include_in_schema": False}

    async def asked(request: Request) -> schema.RankRequest:
        wanted = schema.rank_request(await request.body())
        schema.bounded(len(wanted.candidates or ()), service.config.max_candidates, "candidates")
        return wanted

    @app.get("/v1/storefront/shop", **guarded)
    async def the_shop() -> Response:
        return _json(await shop.shop(service, writes))

    @app.post("/v1/storefront/products", **guarded)
    async def products(request: Request) -> Response:
        return _json(shop.products(service.live(), (await asked(request)).candidates or []))

    @app.get("/v1/storefront/search", **guarded)
    async def search(words: str = "") -> Response:
        return _json(await asyncio.to_thread(shop.search, service.live(), words, service.config.max_candidates))

    @app.post("/v1/storefront/popular", **guarded)
    async def popular(request: Request) -> Response:
        return _json(shop.popular(service, await asked(request)))


def _files(app: FastAPI) -> None:
    folder = Path(__file__).parent
    for name, kind in TYPES.items():
        content = (folder / name).read_bytes()
        path = PATH if name == "index.html" else f"{PATH}/{name}"

        @app.get(path, include_in_schema=False, openapi_extra=needs(None))
        async def file(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, headers=_HEADERS, media_type=kind)


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
