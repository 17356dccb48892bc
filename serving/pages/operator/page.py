"""The page's files over HTTP, and what it asks and does under /v1/operator with a key for `admin`.

Promoting checks a release byte by byte and puts its vectors into Redis, which may take longer than a request may. So it
is begun, and the board says how it goes: whichever worker is asked, since that is kept in Redis.
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
from serving.ranking import Service
from serving.records import Timeline
from serving.release import list_releases, registry
from serving.store import BulkStore, StoreAway

log = logging.getLogger(__name__)

PATH = "/operator"
FOLDER = Path(__file__).parent
FILES = {f.name: f for f in sorted(FOLDER.iterdir()) if f.suffix in (".html", ".css", ".js")} | {
    name: FOLDER.parent / "storefront" / file
    for name, file in (("api.js", "api.js"), ("icon.svg", "icon.svg"), ("base.css", "style.css"))
}
"""The files of the page, some of them the storefront's."""
CHANGE = "sw:change"
_CHANGE_KEPT_S = 3600
_HOURS = 72
_STALE_S = 600
"""After which a change that never told its end is taken for dead with its worker."""


class ChangeRequest(Struct, forbid_unknown_fields=True):
    """What to make live, and why. live: the release the asker saw live; another means somebody was quicker."""

    live: Annotated[str, Meta(min_length=1, max_length=64)]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]
    release: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


_CHANGE_REQUEST = msgspec.json.Decoder(ChangeRequest)


def add_operator(
    app: FastAPI, service: Service, timeline: Timeline, redis_url: str, custom: tuple[Feature, ...] = ()
) -> None:
    """Answer the page at /operator, and what it asks and does under /v1/operator."""
    add_files(app, PATH, FILES)
    guarded: dict[str, Any] = {"openapi_extra": needs("admin"), "include_in_schema": False}
    changes = Changes(service, redis_url, custom)

    @app.get("/v1/operator/board", **guarded)
    async def the_board() -> Response:
        return _json(await changes.board())

    @app.get("/v1/operator/timeline", **guarded)
    async def the_timeline(hours: Annotated[float, Query(gt=0, le=_HOURS)] = 6.0) -> Response:
        try:
            return _json(Shown(await timeline.read(service.clock() - 3600 * hours)))
        except StoreAway as e:
            raise _away(e) from e

    @app.post("/v1/operator/promote", **guarded)
    async def promote(request: Request) -> Response:
        return _json(await changes.begin("promote", await _asked(request), caller(request)), 202)

    @app.post("/v1/operator/rollback", **guarded)
    async def rollback(request: Request) -> Response:
        return _json(await changes.begin("rollback", await _asked(request), caller(request)), 202)


async def _asked(request: Request) -> ChangeRequest:
    # A page elsewhere may make a browser post here, and where there are no keys nothing else would stop it.
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise Problem(
            403,
            "elsewhere",
            "Asked from another page",
            "the browser says that another site sent this",
            "Use the page at /operator, or a program.",
        )
    return decoding.decode(_CHANGE_REQUEST, await request.body())


class Changes:
    """Promotions and rollbacks, one at a time, begun here and told to every worker through Redis."""

    def __init__(self, service: Service, redis_url: str, custom: tuple[Feature, ...]) -> None:
        self._service, self._redis_url, self._custom = service, redis_url, custom
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def _root(self) -> Path | None:
        live = self._service.follower.live
        return None if live is None else live.release.path.parent

    async def board(self) -> Board:
        """All that the page shows but the timeline; without Redis what the disk says, and why."""
        pointer, change, degraded, live = None, None, "", self._service.follower.live
        try:
            pointer = await self._service.store.pointer()
            change = await self._last()
        except StoreAway as e:
            degraded = str(e)
        here = live.release.id if live else None
        return await asyncio.to_thread(board, self._root, pointer, here, self._service.clock(), degraded, change)

    async def begin(self, action: str, asked: ChangeRequest, by: str | None) -> Change:
        """Begin a change; the board tells how it ends. Raises Problem: 404 no such release, 409 another is live than
        the asker saw, or a change is under way, 503 Redis is away or no release is loaded."""
        root = self._service.live().release.path.parent
        try:
            pointer, last = await self._service.store.pointer(), await self._last()
        except StoreAway as e:
            raise _away(e) from e
        live = pointer.id if pointer else None
        if live != asked.live:
            raise Problem(
                409,
                "moved",
                "Another release is live by now",
                f"{live}, and not {asked.live}",
                "Look at the board again.",
                "live",
            )
        if last is not None and last.state == "running" and self._service.clock() - last.at < _STALE_S:
            raise Problem(
                409,
                "busy",
                "A change is under way",
                f"{last.action} of {last.release}, by {last.by}",
                "Wait until the board says that it is done.",
            )
        target = await asyncio.to_thread(_target, root, action, asked.release, live)
        change = Change(action, target, by or "whoever reaches the service", self._service.clock(), "running")
        await self._tell(change)
        task = asyncio.create_task(self._make(root, change, asked.reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return change

    async def _make(self, root: Path, change: Change, reason: str) -> None:
        try:
            await asyncio.to_thread(self._point, root, change, reason)
            change.state = "done"
        except Exception as e:  # whatever it was, the operator is waiting to hear of it
            log.error("%s of %s failed", change.action, change.release, exc_info=e)
            change.state, change.error = "failed", f"{type(e).__name__}: {e}"
        try:
            await self._tell(change)
        except StoreAway as e:
            log.error("how %s of %s ended could not be written: %s", change.action, change.release, e)

    def _point(self, root: Path, change: Change, reason: str) -> None:
        with BulkStore(self._redis_url) as store:
            registry.promote(root, store, change.release, reason, self._custom, change.action, change.by)

    async def _last(self) -> Change | None:
        found = (await self._service.store.run([["GET", CHANGE]]))[0]
        try:
            return None if found is None else msgspec.json.decode(found, type=Change)
        except msgspec.MsgspecError:
            return None  # of another version

    async def _tell(self, change: Change) -> None:
        await self._service.store.run([["SET", CHANGE, msgspec.json.encode(change), "EX", _CHANGE_KEPT_S]])


def _target(root: Path, action: str, release: str | None, live: str | None) -> str:
    """The release that will be live. Raises Problem where there is none such."""
    if action == "rollback":
        before = registry.previous_release(root, live) if live else None
        if before is None or release not in (None, before):
            raise Problem(
                409,
                "no-previous",
                "There is no such release to go back to",
                f"{before or 'none'} was live before {live}",
                "Promote one of the board instead.",
                "release",
            )
        return before
    good = {r.manifest.id for r in list_releases(root) if r.manifest}
    if release is None or release not in good:  # also keeps a path out of what is loaded
        raise Problem(
            404, "no-release", "There is no such release", str(release)[:64], "Name one of the board.", "release"
        )
    return release


def _away(error: StoreAway) -> Problem:
    return Problem(503, "store-away", "Redis is away", str(error), "Try again shortly.", headers={"Retry-After": "1"})


def _json(answer: Any, status: int = 200) -> Response:
    return Response(encoded(answer), status, media_type="application/json")
