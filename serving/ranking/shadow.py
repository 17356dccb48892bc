"""A release in shadow: scored beside the live one, on the same candidates, after the answer has gone.

One task does it, a list at a time, in turn with following the release and its stream, so that nothing is locked; the
scoring itself is in a thread. It takes a tenth of its time at most, whatever share of the lists is chosen, and what
does not fit in a short queue is logged without: no answer waits for it, and none fails by it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import NamedTuple

import msgspec
import numpy as np

from features.arrays import F64
from features.context import Context
from features.history import EMPTY, History
from serving.config import ServiceConfig
from serving.ranking.follower import Follower
from serving.ranking.live import Live
from serving.ranking.ranking import Ranking
from serving.records import Metrics, Served, ServedLog, ShadowScores
from serving.store import Store, StoreAway

log = logging.getLogger(__name__)

TOP = 10
"""First places that are held against each other."""
_WAITING = 32
_REST = 9
"""After a list, as many times what it took."""
_LOOK_S = 0.02


class ShadowJob(NamedTuple):
    """One list: what is logged of it, and the live release's ranking of all candidates."""

    record: Served
    ranking: Ranking
    context: Context
    live_ms: float


class Shadow:
    """A worker's release in shadow, where one is. Lists given to it are logged by it."""

    def __init__(
        self, config: ServiceConfig, store: Store, follower: Follower, served: ServedLog, metrics: Metrics
    ) -> None:
        """follower: of the release in shadow."""
        self._config, self._store, self._follower = config, store, follower
        self._served, self._metrics = served, metrics
        self._queue: deque[ShadowJob] = deque()
        self._rng = np.random.default_rng()

    def wants(self, live: Live) -> bool:
        """Whether a list that the live release is about to rank is to be scored too."""
        own = self._follower.live
        if own is None or own.release.id == live.release.id or not self._config.log_served:
            return False
        return bool(self._rng.random() < self._config.shadow_share)

    def put(self, record: Served, ranking: Ranking, context: Context, live_ms: float) -> None:
        """Score a list when there is time, and log it; at once, and without, where too many wait.

        ranking: all candidates, as the live release ranks them before any rule. live_ms: what that took.
        """
        if len(self._queue) < _WAITING:
            self._queue.append(ShadowJob(record, ranking, context, live_ms))
        else:
            self._served.put(record)
            self._metrics.shadow("dropped")

    def state(self) -> str | None:
        """The id of the release in shadow, why it is not loaded, or None where there is none."""
        live = self._follower.live
        if live is not None:
            return live.release.id
        return self._follower.reason if self._follower.reason.startswith("release") else None

    async def run(self) -> None:
        """Follow and score until cancelled; what waits then is logged without."""
        loop = asyncio.get_running_loop()
        look = rested = 0.0
        try:
            while True:
                live = self._follower.live
                if loop.time() >= look and (self._store.shadow or live):
                    caught_up = await self._follower.step()
                    look = loop.time() + (self._config.poll_s if caught_up else 0.0)
                if self._queue and loop.time() >= rested:
                    began = loop.time()
                    await self._next()
                    rested = loop.time() + _REST * (loop.time() - began)
                await asyncio.sleep(_LOOK_S if live else self._config.poll_s)
        finally:
            await self._follower.stop()
            for asked in self._queue:
                self._served.put(asked.record)

    async def _next(self) -> None:
        asked, live, record = self._queue[0], self._follower.live, self._queue[0].record
        try:
            if live is not None:
                record = msgspec.structs.replace(record, shadow=await self._scored(live, asked))
                self._metrics.shadow("scored")
        except StoreAway:
            self._metrics.shadow("failed")
        except Exception as e:  # whatever is wrong with the release in shadow, the live one goes on
            self._metrics.shadow("failed")
            log.error("release %s in shadow cannot score: %s", live.release.id if live else "", type(e).__name__)
            log.debug("the list it failed on", exc_info=True)  # may name a shopper
        self._queue.popleft()
        self._served.put(record)

    async def _scored(self, live: Live, asked: ShadowJob) -> ShadowScores:
        record, history = asked.record, EMPTY
        if record.user_id is not None and not record.degraded:
            # Rows of items are of one release: the lists are read again, strictly before the same moment.
            history = await self._store.read(record.user_id, live.items.catalogue, record.at)
        score, ms = await asyncio.to_thread(_score, live, history, asked)
        of = dict(zip(asked.ranking.item_ids, score.tolist(), strict=True))
        shown = np.array([of[i] for i in record.item_ids], np.float64)
        correlation, overlap = agreement(asked.ranking.score, score)
        return ShadowScores(live.release.id, shown.tobytes(), correlation, overlap, asked.live_ms, round(ms, 3))


def _score(live: Live, history: History, asked: ShadowJob) -> tuple[F64, float]:
    """float64[candidates], in the order of the live release's ranking, NaN for what is withdrawn; and milliseconds."""
    began = time.perf_counter()
    found = live.rank(history, asked.ranking.item_ids, asked.record.at, None, asked.context)
    ms = (time.perf_counter() - began) * 1e3
    of = dict(zip(found.item_ids, found.score.tolist(), strict=True))
    return np.array([of.get(i, math.nan) for i in asked.ranking.item_ids], np.float64), ms


def agreement(live: F64, shadow: F64) -> tuple[float | None, float]:
    """Spearman's correlation of two scores of the same items, and the share of the first 10 that both have there.

    NaN ranks after everything in the second, and is left out of the correlation, which is None where either score is
    the same for all.
    """
    first = min(TOP, len(live))
    top = [set(np.argsort(-score, kind="stable")[:first].tolist()) for score in (live, shadow)]
    overlap = len(top[0] & top[1]) / first if first else 1.0
    both = ~np.isnan(shadow)
    a, b = (_ranks(score[both]) for score in (live, shadow))
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    spread = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return (float((a * b).sum()) / spread if spread else None), overlap


def _ranks(score: F64) -> F64:
    """Ranks from 0, equal scores at their mean."""
    _, which, count = np.unique(score, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[which]
