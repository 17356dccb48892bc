"""Follower: keeps the live release up to date with the event stream, written items and the release pointer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.table import Feature
from serving.api import DegradedReason
from serving.config import ServiceConfig
from serving.experiments import FollowedStops, decode_stops
from serving.merchandising import Compiled, Followed
from serving.ranking.live import Live, prepare
from serving.ranking.overlay import NO_OVERLAY, Overlay
from serving.records import Metrics
from serving.release import ReleaseError
from serving.store import END, START, Continuity, Pointer, Store, StoreAway, WrittenItems, decode_fields, rewound

log = logging.getLogger(__name__)

_CHECK_S = 1.0
"""Seconds between checks that Redis still has the data of before."""
_ITEMS = 500
"""Number of items read from Redis at once."""


class Follower:
    """Keeps `live` up to date: applies new events at every poll, and loads a new release when the pointer changes.

    The service has one, another one (`of_shadow`) for the shadow release, and one (`of_arm`) for each release of the
    arms of experiments. These record no metrics.

    reason: why no release is loaded, or why the next one is not live; empty if all is well.
    redis: "ok", or why it is unavailable. lost: what Redis has lost; empty if nothing, or after a repair.
    started: set when a release is loaded, or when there is none to load.
    merchandising: the rules of merchandisers; None if they are off, and for the shadow release. stops: the stopped
    experiments; None without experiments, and for other releases than the live one.
    """

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        release: Path | None,
        custom: tuple[Feature, ...] = (),
        metrics: Metrics | None = None,
        owner: str = "",
        shadow: bool = False,
        of_arm: Callable[[], Pointer | None] | None = None,
    ) -> None:
        """release: directory of the release to start with if Redis is unavailable or names none. owner: ID of the shop
        whose releases may be served; empty for any. shadow: follow the shadow release. of_arm: names the release to
        follow, None for none; without it, Redis names it."""
        self._custom, self._metrics, self._shadow, self._of_arm = custom, metrics, shadow, of_arm
        self._is_live = not shadow and of_arm is None
        self.live: Live | None = None
        self.reason = "starting"
        self.redis = "not checked yet"
        self._config, self._store, self._initial = config, store, release
        self._failed: tuple[Pointer, float] | None = None
        self._next_written_at = 0.0
        self._written = WrittenItems(store)
        self._loading: asyncio.Task[None] | None = None
        self.started = asyncio.Event()
        self._owner = owner
        self._named = False
        """Whether Redis named the live release when it was last read."""
        self._continuity = Continuity()
        self._next_check_at = 0.0
        self.merchandising = Followed(store, config.placements) if config.merchandising and not shadow else None
        self.stops = FollowedStops() if config.experiments and self._is_live else None

    @property
    def lost(self) -> str:
        return self._continuity.problem

    @property
    def degraded(self) -> DegradedReason | None:
        """Why all rankings are degraded; None if they are not."""
        if self.live is not None and not self._named:
            return "release-from-disk"
        return "redis-replaced" if self.lost else None

    def of_shadow(self) -> Follower:
        """A follower with the same settings for the shadow release."""
        return Follower(self._config, self._store, None, self._custom, shadow=True)

    def of_arm(self, pointer: Callable[[], Pointer | None]) -> Follower:
        """A follower with the same settings for a release of an arm. pointer: as in `__init__`."""
        return Follower(self._config, self._store, None, self._custom, of_arm=pointer)

    async def run(self) -> None:
        """Follow the pointer and the stream until cancelled."""
        try:
            while True:
                caught_up = await self.step()
                if not self.started.is_set():
                    await self._start()
                await asyncio.sleep(0 if not caught_up else self._config.poll_s)
        finally:
            await self.stop()

    async def _start(self) -> None:
        """Finish loading the release that Redis names; if it names none, load the one to start with."""
        if self._loading is not None:
            await self._loading
        elif self._initial is not None:
            log.warning("starting with the release in %s: %s", self._initial, self.reason)
            await self._load(Pointer("", str(self._initial)))
        self.started.set()

    async def stop(self) -> None:
        """Cancel a load in progress."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading

    async def step(self) -> bool:
        """Poll the pointer and the stream once. Returns True if the stream has been read to its end."""
        live = self.live
        try:
            pointer, tail, away, shadow, stamp, stops = await self._store.poll(
                live.last if live else END,
                merchandising=self.merchandising is not None,
                experiments=self.stops is not None,
            )
        except StoreAway as e:
            self._set_redis(str(e))
            await self._follow_stops(None)
            if self._of_arm is not None:
                self._consider(self._of_arm())
                return True
            if live is None and not self.reason.startswith("release"):
                self.reason = f"no release is loaded, and its pointer cannot be read: {e}"
            return True
        self._set_redis(away or "ok")
        if live is not None:
            live.apply(tail)
            if tail.item_ids and self._metrics:
                self._metrics.fresh(time.time() - tail.since)
            with suppress(StoreAway):  # the next poll reads them
                await self._apply_written(live)
            await self._check_continuity(live)
        await self._follow_merchandising(stamp)
        await self._follow_stops(stops)
        named = self._of_arm() if self._of_arm is not None else shadow if self._shadow else pointer
        if named is not None or not away:
            self._consider(named)
        elif live is None and self._is_live and not self.reason.startswith("release"):
            self.reason = f"no release is loaded, and its pointer cannot be read: {away}"
        return live is None or not tail.item_ids

    async def _check_continuity(self, live: Live) -> None:
        """Notice that Redis was replaced, and follow the new one from its end."""
        now = asyncio.get_running_loop().time()
        if now < self._next_check_at:
            return
        self._next_check_at = now + _CHECK_S
        with suppress(StoreAway):  # checked again after the next poll
            extent = await self._store.extent()
            before = self.lost
            if extent is not None and self._continuity.check(extent):
                live.last, live.changes = rewound(self._store.layout, live.last, extent), START
            if self.lost != before and self._is_live:
                repair = f"{self.lost}; run `shelfwise collect --repair`"
                log.warning("%s", repair if self.lost else "the data in Redis was repaired")
            if self._metrics:
                self._metrics.redis_replaced(bool(self.lost))

    async def _follow_stops(self, reply: Mapping[bytes, bytes] | None) -> None:
        """Use the stopped experiments of Redis from now on. reply: None if Redis did not answer."""
        if self.stops is None:
            return
        try:
            self.stops.follow(None if reply is None else decode_stops(self._store.layout, reply))
        except StoreAway as e:
            self.stops.refuse(str(e))
        if self.live is not None:
            await self.stops.copy(self.live.release.path.parent)

    async def _follow_merchandising(self, stamp: str | None) -> None:
        """Use the merchandising rules of Redis from now on, if they have changed."""
        followed = self.merchandising
        if followed is None:
            return
        await followed.follow(stamp)
        live = self.live
        if live is None:
            return
        if live.merchandising is None or live.merchandising.document is not followed.document:
            compiled = await asyncio.to_thread(followed.compiled, live.attributes)
            if self.live is live:  # otherwise a new release went live meanwhile, with rules of its own
                live.merchandising = compiled
                self._report_rules(compiled)
        await followed.copy(live.release.path.parent)

    def _report_rules(self, compiled: Compiled) -> None:
        for rule_id, reason in compiled.set_aside.items():
            log.warning("merchandising rule %s is not used: %s", rule_id, reason)
        if self._metrics:
            self._metrics.merchandising(compiled.document.version, len(compiled.set_aside))

    async def _with_all_written(self, live: Live) -> Live:
        """A release just loaded, with every item written since its cut-off."""
        live = replace(live, changes=await self._written.end())
        return await self._with_written(live, await self._written.ids())

    async def _apply_written(self, live: Live) -> None:
        """Apply the items written since the last poll."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_written_at:
            return
        last, ids = await self._written.changed(live.changes)
        if not ids:
            return
        began = loop.time()
        try:
            changed = replace(await self._with_written(live, ids), changes=last)
        except StoreAway:
            raise
        except Exception:  # a problem with written items must not stop the release from being served
            log.exception("%d written items cannot be applied", len(ids))
            changed = replace(live, changes=last)
        # A large catalogue takes a while: limit this to a tenth of the worker's time, however many items are written.
        self._next_written_at = loop.time() + 9 * (loop.time() - began)
        if self.live is live:  # otherwise a new release went live meanwhile, and has read every written item
            self.live = changed

    async def _with_written(self, live: Live, item_ids: list[str]) -> Live:
        """A release with these items as currently stored in Redis, added to its overlay."""
        written, vectors = dict(live.overlay.written), dict(live.overlay.vectors)
        manifest = live.release.manifest
        for first in range(0, len(item_ids), _ITEMS):
            ids = item_ids[first : first + _ITEMS]
            stored, oversized = await self._written.fields(ids)
            if oversized:
                largest = max(oversized.values())
                log.error("%d written items are not used; the largest has %s", len(oversized), largest)
            if self._metrics:
                self._metrics.oversized(len(oversized))
            encoded = await self._written.vectors(manifest.encoder_fingerprint, ids, manifest.dimension)
            in_release = live.release.items.catalogue.rows(ids) >= 0
            for item_id, fields, vector, known in zip(ids, stored, encoded, in_release.tolist(), strict=True):
                item = decode_fields(fields)
                if item_id in oversized and item.available:
                    continue
                if fields and (not known or item.at > manifest.cut_off or not item.available):
                    written[item_id] = item
                    if np.isfinite(vector).all():
                        vectors[item_id] = vector
        if not written:
            return live
        near = {} if live.overlay is NO_OVERLAY else live.overlay.near
        overlay, c = Overlay(written, vectors, near), self._config
        return await asyncio.to_thread(live.with_overlay, overlay, c.rules, c.placements, c.experiments)

    def _set_redis(self, state: str) -> None:
        if state != self.redis and self._is_live:
            (log.info if state == "ok" else log.warning)("redis: %s", state)
        self.redis = state
        if self._metrics:
            self._metrics.redis(state == "ok")

    def _consider(self, pointer: Pointer | None) -> None:
        """Start loading the release the pointer names, unless it is live already or failed to load recently."""
        if pointer is None and not self._is_live:
            self.live, self.reason = None, ""
            return
        if pointer is None or (self._owner and pointer.owner and pointer.owner != self._owner):
            self._set_unnamed(pointer)
            return
        if self.live is not None and self.live.release.id == pointer.id:
            self.reason, self._named = "", True
            return
        if self._loading is not None and not self._loading.done():
            return
        now = asyncio.get_running_loop().time()
        if self._failed is not None and self._failed[0] == pointer and now < self._failed[1] + self._config.reload_s:
            return
        self._loading = asyncio.create_task(self._load(pointer))

    def _set_unnamed(self, pointer: Pointer | None) -> None:
        """Record that Redis names no release of this shop."""
        self._named = False
        if pointer is not None:
            reason = f"release {pointer.id}, live in this Redis, belongs to another shop: set `redis.prefix`"
        elif self.live is None:
            reason = "no release has been published yet: run `shelfwise nightly`, or promote a release"
        else:
            reason = f"Redis names no release, so {self.live.release.id} is served: run `shelfwise collect --repair`"
        if reason != self.reason:
            log.warning("%s", reason)
        self.reason = reason

    async def _load(self, pointer: Pointer) -> None:
        """Load and warm a release, catch up with the stream, and only then serve it."""
        try:
            c = self._config
            live = await asyncio.to_thread(
                prepare, Path(pointer.path), pointer.id or None, self._custom, c.rules, c.placements, c.experiments
            )
        except Exception as e:  # a problem with the next release must not stop the live one
            self.reason = f"release {pointer.id or pointer.path} cannot be loaded: {e}"
            self._failed = (pointer, asyncio.get_running_loop().time())
            log.error("%s", self.reason, exc_info=None if isinstance(e, ReleaseError) else e)
            return
        with suppress(StoreAway):  # the next polls read the rest
            live = await self._with_all_written(live)
            while (tail := (await self._store.poll(live.last)).tail).item_ids:
                live.apply(tail)
        if self.merchandising is not None:
            await asyncio.to_thread(self.merchandising.read_copy, live.release.path.parent)
            live.merchandising = await asyncio.to_thread(self.merchandising.compiled, live.attributes)
            self._report_rules(live.merchandising)
        if self.stops is not None:
            await asyncio.to_thread(self.stops.read_copy, live.release.path.parent)
        self.live, self._failed = live, None
        self._named = bool(pointer.id)
        self.reason = "" if self._named else f"release {live.release.id} was found on disk, and Redis does not name it"
        if self._metrics:
            self._metrics.release(live.release.id)
        use = "shadow scoring with" if self._shadow else "serving" if self._is_live else "serving arms with"
        log.info("%s release %s", use, live.release.id)
        for name, why in live.arms.set_aside.items():
            if not self._is_live and live.release.id not in c.experiments[name].releases:
                continue
            log.warning("experiment %s is not served by release %s: %s", name, live.release.id, why)
