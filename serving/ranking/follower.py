"""Keeps the live release up to date: follows the event stream and the release pointer."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from features.table import Feature
from serving.config import ServiceConfig
from serving.ranking.live import Live, prepare
from serving.ranking.overlay import NO_OVERLAY, Overlay
from serving.records import Metrics
from serving.release import ReleaseError
from serving.store import END, Pointer, Store, StoreAway, WrittenItems, decoded_fields

log = logging.getLogger(__name__)

_ITEMS = 500
"""Items read from Redis in one go."""


class Follower:
    """Keeps `live` up to date: events of the stream within a poll, a new release when the pointer moves.

    Of the service there is one, and one more (`of_shadow`) for the release in shadow, which counts nothing.

    reason: why there is no release yet, or why the next one is not live; empty where all is well.
    redis: "ok", or how it is away.
    """

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        release: Path | None,
        custom: tuple[Feature, ...] = (),
        metrics: Metrics | None = None,
        shadow: bool = False,
    ) -> None:
        """release: a directory to answer from until the pointer says otherwise, and while Redis is away."""
        self._custom, self._metrics, self._shadow = custom, metrics, shadow
        self.live: Live | None = None
        self.reason = "starting"
        self.redis = "not asked yet"
        self._config, self._store, self._first = config, store, release
        self._failed: tuple[Pointer, float] | None = None
        self._rested = 0.0
        self._written = WrittenItems(store)
        self._loading: asyncio.Task[None] | None = None

    def of_shadow(self) -> Follower:
        """One like it that follows the release in shadow."""
        return Follower(self._config, self._store, None, self._custom, shadow=True)

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            if self._first is not None:
                await self._load(Pointer("", str(self._first)))
            while True:
                caught_up = await self.step()
                await asyncio.sleep(0 if not caught_up else self._config.poll_s)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Load nothing more."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading

    async def step(self) -> bool:
        """One look at pointer and stream; True where nothing is left to read."""
        live = self.live
        try:
            pointer, tail, away, shadow = await self._store.poll(live.last if live else END)
        except StoreAway as e:
            self._say_redis(str(e))
            if live is None and not self.reason.startswith("release"):
                self.reason = f"no release is loaded, and its pointer cannot be read: {e}"
            return True
        self._say_redis(away or "ok")
        if live is not None:
            live.apply(tail)
            if tail.item_ids and self._metrics:
                self._metrics.fresh(time.time() - tail.since)
            with suppress(StoreAway):  # the next look reads it
                await self._lay_over(live)
        named = shadow if self._shadow else pointer
        if named is not None or not away:
            self._consider(named)
        elif live is None and not self._shadow and not self.reason.startswith("release"):
            self.reason = f"no release is loaded, and its pointer cannot be read: {away}"
        return live is None or not tail.item_ids

    async def _written_since(self, live: Live) -> Live:
        """A release just loaded, with all that was written of items since it was made."""
        live = replace(live, changes=await self._written.end())
        return await self._with(live, await self._written.ids())

    async def _lay_over(self, live: Live) -> None:
        """Take in what was written of items since the last look."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rested:
            return
        last, ids = await self._written.changed(live.changes)
        if not ids:
            return
        began = loop.time()
        try:
            changed = replace(await self._with(live, ids), changes=last)
        except StoreAway:
            raise
        except Exception:  # whatever is wrong with what was written, the release goes on
            log.exception("%d written items cannot be taken in", len(ids))
            changed = replace(live, changes=last)
        # Of a large catalogue it takes some time: no more than a tenth of this worker's, however items come.
        self._rested = loop.time() + 9 * (loop.time() - began)
        if self.live is live:  # else another release by now, which read all
            self.live = changed

    async def _with(self, live: Live, item_ids: list[str]) -> Live:
        """A release with these items as Redis holds them now, besides those it had."""
        written, vectors = dict(live.overlay.written), dict(live.overlay.vectors)
        manifest = live.release.manifest
        for first in range(0, len(item_ids), _ITEMS):
            ids = item_ids[first : first + _ITEMS]
            held = await self._written.fields(ids)
            found = await self._written.vectors(manifest.encoder_fingerprint, ids, manifest.dimension)
            in_release = live.release.items.catalogue.rows(ids) >= 0
            for item_id, fields, vector, known in zip(ids, held, found, in_release.tolist(), strict=True):
                one = decoded_fields(fields)
                if fields and (not known or one.at > manifest.cut_off or not one.available):
                    written[item_id] = one
                    if np.isfinite(vector).all():
                        vectors[item_id] = vector
        if not written:
            return live
        near = {} if live.overlay is NO_OVERLAY else live.overlay.near
        return await asyncio.to_thread(live.with_overlay, Overlay(written, vectors, near), self._config.rules)

    def _say_redis(self, state: str) -> None:
        if state != self.redis and not self._shadow:
            (log.info if state == "ok" else log.warning)("redis: %s", state)
        self.redis = state
        if self._metrics:
            self._metrics.redis(state == "ok")

    def _consider(self, pointer: Pointer | None) -> None:
        """Begin to load the release that the pointer names, if it is not the live one and did not fail just now."""
        if pointer is None:
            if self._shadow:
                self.live, self.reason = None, ""
            elif self.live is None:
                self.reason = "no release is published yet: run `shelfwise nightly`, or promote one"
            return
        if self.live is not None and self.live.release.id == pointer.id:
            self.reason = ""
            return
        if self._loading is not None and not self._loading.done():
            return
        now = asyncio.get_running_loop().time()
        if self._failed is not None and self._failed[0] == pointer and now < self._failed[1] + self._config.reload_s:
            return
        self._loading = asyncio.create_task(self._load(pointer))

    async def _load(self, pointer: Pointer) -> None:
        """Load, warm, bring up to the end of the stream, and only then answer from it."""
        try:
            live = await asyncio.to_thread(
                prepare, Path(pointer.path), pointer.id or None, self._custom, self._config.rules
            )
        except Exception as e:  # whatever is wrong with the next release, the live one goes on
            self.reason = f"release {pointer.id or pointer.path} cannot be loaded: {e}"
            self._failed = (pointer, asyncio.get_running_loop().time())
            log.error("%s", self.reason, exc_info=None if isinstance(e, ReleaseError) else e)
            return
        with suppress(StoreAway):  # whatever is not read now, the next polls read
            live = await self._written_since(live)
            while (tail := (await self._store.poll(live.last)).tail).item_ids:
                live.apply(tail)
        self.live, self.reason, self._failed = live, "", None
        if self._metrics:
            self._metrics.release(live.release.id)
        log.info("%s release %s", "scoring in shadow by" if self._shadow else "answering from", live.release.id)
