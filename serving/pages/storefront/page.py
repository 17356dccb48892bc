"""Routes of the storefront page: its files, and data that a real shop would take from its own database.

Rankings and events use the public routes, as any shop would. The routes here add what a page needs but the API does not
offer: product details, known shoppers, the most popular items, and a title search.
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
from serving.pages.storefront.pictures import Pictures
from serving.ranking import Service

PATH = "/storefront"
FOLDER = Path(__file__).parent
FILES = {f.name: f for f in sorted(FOLDER.iterdir()) if f.suffix in (".html", ".css", ".svg", ".js")}
"""Files of the page by name."""


def add_storefront(app: FastAPI, service: Service) -> None:
    """Add the page at /storefront and its API under /v1/storefront, which needs a key with scope `rank`."""
    add_files(app, PATH, FILES, service.config.image_origins)
    pictures = Pictures(service.config.image_origins)
    writes = any(getattr(r, "path", "") == "/v1/items" and "PUT" in (r.methods or ()) for r in app.routes)  # type: ignore[attr-defined]
    guarded: dict[str, Any] = {"openapi_extra": needs("rank"), "include_in_schema": False}

    async def decoded(request: Request) -> rankings.RankRequest:
        rank_request = rankings.rank_request(await request.body())
        decoding.check_count(len(rank_request.ids or ()), service.config.max_candidates, "candidates")
        return rank_request

    @app.get("/v1/storefront/shop", **guarded)
    async def read_shop() -> Response:
        return _json(await shop.shop(service, writes))

    @app.post("/v1/storefront/products", **guarded)
    async def products(request: Request) -> Response:
        live, ids = service.live(), (await decoded(request)).ids or []
        return _json(shop.products(live, ids, await pictures.of(live)))

    @app.get("/v1/storefront/search", **guarded)
    async def search(words: str = "") -> Response:
        return _json(await asyncio.to_thread(shop.search, service.live(), words, service.config.max_candidates))

    @app.post("/v1/storefront/popular", **guarded)
    async def popular(request: Request) -> Response:
        return _json(shop.popular(service, await decoded(request)))


def _json(answer: Any) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
