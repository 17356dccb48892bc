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

from serving.api import decoding, rankings
from serving.http import needs
from serving.pages.files import add_files
from serving.pages.storefront import shop
from serving.ranking import Service

PATH = "/storefront"
FOLDER = Path(__file__).parent
FILES = {f.name: f for f in sorted(FOLDER.iterdir()) if f.suffix in (".html", ".css", ".svg", ".js")}
"""The files of the page."""


def add_storefront(app: FastAPI, service: Service) -> None:
    """Answer the page at /storefront, and what it asks under /v1/storefront with a key for `rank`."""
    add_files(app, PATH, FILES)
    writes = any(getattr(r, "path", "") == "/v1/items" and "PUT" in (r.methods or ()) for r in app.routes)  # type: ignore[attr-defined]
    guarded: dict[str, Any] = {"openapi_extra": needs("rank"), "include_in_schema": False}

    async def asked(request: Request) -> rankings.RankRequest:
        wanted = rankings.rank_request(await request.body())
        decoding.check_count(len(wanted.candidates or ()), service.config.max_candidates, "candidates")
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


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
