"""Routes of the operator's page: its files, and its API under /v1/operator, which needs a key with scope `admin`.

Promotion verifies every byte of a release and writes its vectors to Redis, which may take longer than a request may. So
a request only starts it, and the board reports its progress, from any worker, as its state is kept in Redis.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from msgspec import Meta, Struct

from features.table import Feature
from serving.api import Problem, decoding
from serving.http import caller, needs
from serving.pages.files import add_files
from serving.pages.operator.board import Board, Change, Shown, board, encoded
from serving.pages.sites import check_same_site
from serving.ranking import Service
from serving.records import Timeline
from serving.release import list_releases, read_earnings, registry
from serving.store import BulkStore, StoreAway

log = logging.getLogger(__name__)

PATH = "/operator"
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
"""Files of the page by name, including some of the storefront's."""
CHANGE = "change"
"""Name of the Redis key of the latest change, as JSON."""
_CHANGE_KEPT_S = 3600
_REPLACE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""
"""Sets a key if its value is still the one that was read, in one step. Of two requests that have read the same state,
one gets 0."""
_HOURS = 72
_STALE_S = 600
"""Seconds after which a change still marked as running is considered dead, as its worker must have stopped."""


class ChangeRequest(Struct, forbid_unknown_fields=True):
    """A promotion or rollback to start, and the reason. live: the release that was live when the page was read. If it
    is not live any more, someone else has changed it meanwhile."""

    live: Annotated[str, Meta(min_length=1, max_length=64)]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    release: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


_CHANGE_REQUEST = msgspec.json.Decoder(ChangeRequest)


def add_operator(
    app: FastAPI, service: Service, timeline: Timeline, redis_url: str, custom: tuple[Feature, ...] = ()
) -> None:
    """Add the page at /operator and its API under /v1/operator."""
    add_files(app, PATH, FILES)
    guarded: dict[str, Any] = {"openapi_extra": needs("admin"), "include_in_schema": False}
    changes = Changes(service, redis_url, custom)

    @app.get("/v1/operator/board", **guarded)
    async def read_board() -> Response:
        return _json(await changes.board())

    @app.get("/v1/operator/timeline", **guarded)
    async def read_timeline(hours: Annotated[float, Query(gt=0, le=_HOURS)] = 6.0) -> Response:
        try:
            return _json(Shown(await timeline.read(service.clock() - 3600 * hours)))
        except StoreAway as e:
            raise _redis_away(e) from e

    @app.get("/v1/operator/earnings", **guarded)
    async def earnings() -> Response:
        content = await changes.earnings()
        if content is None:
            raise Problem(
                404,
                "no-earnings",
                "No earnings yet",
                "there are no tables of earnings beside the releases",
                "Run `shelfwise collect`, then `shelfwise earnings`.",
            )
        return Response(content, media_type="application/json")

    @app.post("/v1/operator/promote", **guarded)
    async def promote(request: Request) -> Response:
        return _json(await changes.begin("promote", await _change_request(request), caller(request)), 202)

    @app.post("/v1/operator/rollback", **guarded)
    async def rollback(request: Request) -> Response:
        return _json(await changes.begin("rollback", await _change_request(request), caller(request)), 202)


async def _change_request(request: Request) -> ChangeRequest:
    check_same_site(request, PATH)
    return decoding.decode(_CHANGE_REQUEST, await request.body())


class Changes:
    """Promotions and rollbacks, one at a time, run by this worker and reported to all workers through Redis."""

    def __init__(self, service: Service, redis_url: str, custom: tuple[Feature, ...]) -> None:
        self._service, self._redis_url, self._custom = service, redis_url, custom
        self._key = service.store.layout.key(CHANGE)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _root(self) -> Path | None:
        live = self._service.follower.live
        return None if live is None else live.release.path.parent

    async def board(self) -> Board:
        """The data of the page except the timeline. Without Redis, it is read from disk only, and `degraded` is set."""
        pointer, change, degraded, live = None, None, "", self._service.follower.live
        try:
            pointer = await self._service.store.pointer()
            change = _decoded(await self._stored())
        except StoreAway as e:
            degraded = str(e)
        here = live.release.id if live else None
        return await asyncio.to_thread(board, self._root, pointer, here, self._service.clock(), degraded, change)

    async def earnings(self) -> bytes | None:
        """The tables of earnings as JSON; None if there are none, or no release is loaded."""
        return None if self._root is None else await asyncio.to_thread(read_earnings, self._root)

    async def begin(self, action: str, request: ChangeRequest, by: str | None) -> Change:
        """Start a change; the board reports its result.

        Raises Problem: 404 if the release is unknown; 409 if `request.live` is not live any more, if a change is in
        progress, or if the previous release is unknown; 503 if Redis is unavailable or no release is loaded.
        """
        root = self._service.live().release.path.parent
        try:
            pointer, stored = await self._service.store.pointer(), await self._stored()
        except StoreAway as e:
            raise _redis_away(e) from e
        last = _decoded(stored)
        live = pointer.id if pointer else None
        if live != request.live:
            raise Problem(
                409,
                "moved",
                "The live release has changed",
                f"{live} is live now, not {request.live}",
                "Reload the board and try again.",
                "live",
            )
        if last is not None and last.state == "running" and self._service.clock() - last.at < _STALE_S:
            raise _busy(f"{last.action} of {last.release}, requested by {last.by}")
        target = await asyncio.to_thread(_target, root, action, request.release, live)
        change = Change(action, target, by or "anonymous", self._service.clock(), "running")
        try:
            first = await self._replace(stored, change)
        except StoreAway as e:
            raise _redis_away(e) from e
        if not first:
            raise _busy("requested at the same time")
        task = asyncio.create_task(self._run(root, change, request.live, request.reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return change

    async def _run(self, root: Path, change: Change, live: str, reason: str) -> None:
        running = msgspec.json.encode(change)
        try:
            await asyncio.to_thread(self._promote, root, change, live, reason)
            change.state = "done"
        except Exception as e:  # report any error to the operator
            log.error("%s of %s failed", change.action, change.release, exc_info=e)
            change.state, change.error = "failed", f"{type(e).__name__}: {e}"
        try:
            await self._replace(running, change)  # unless it was considered dead and another one has begun
        except StoreAway as e:
            log.error("the result of %s of %s could not be written to Redis: %s", change.action, change.release, e)

    def _promote(self, root: Path, change: Change, live: str, reason: str) -> None:
        with BulkStore(self._redis_url) as store:
            registry.promote(root, store, change.release, reason, self._custom, change.action, change.by, live)

    async def _stored(self) -> bytes:
        """The latest change as it is in Redis; empty if there is none."""
        stored: bytes | None = (await self._service.store.run([["GET", self._key]]))[0]
        return stored or b""

    async def _replace(self, before: bytes, change: Change) -> bool:
        """Store a change if the stored one is still `before`; returns whether it was."""
        call = ["EVAL", _REPLACE, 1, self._key, before, msgspec.json.encode(change), _CHANGE_KEPT_S]
        return bool((await self._service.store.run([call]))[0])


def _decoded(stored: bytes) -> Change | None:
    try:
        return msgspec.json.decode(stored, type=Change) if stored else None
    except msgspec.MsgspecError:
        return None  # written by another version


def _busy(detail: str) -> Problem:
    return Problem(409, "busy", "Another change is in progress", detail, "Wait until the board shows that it is done.")


def _target(root: Path, action: str, release: str | None, live: str | None) -> str:
    """The release to make live. Raises Problem (404, 409) if there is no such release."""
    if action == "rollback":
        before = registry.previous_release(root, live) if live else None
        if before is None or release not in (None, before):
            raise Problem(
                409,
                "no-previous",
                "No such release to roll back to",
                f"{before or 'no release'} was live before {live}",
                "Promote a release from the board instead.",
                "release",
            )
        return before
    usable = {r.manifest.id for r in list_releases(root) if r.manifest}
    if release is None or release not in usable:  # this also prevents loading from an arbitrary path
        raise Problem(
            404,
            "no-release",
            "No such release",
            f"{str(release)[:64]} is not a usable release",
            "Use a release listed on the board.",
            "release",
        )
    return release


def _redis_away(error: StoreAway) -> Problem:
    return Problem(
        503, "store-away", "Redis is unavailable", str(error), "Retry shortly.", headers={"Retry-After": "1"}
    )


def _json(answer: Any, status: int = 200) -> Response:
    return Response(encoded(answer), status, media_type="application/json")
