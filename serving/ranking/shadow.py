"""Shadow scoring: a second release scores the same candidates as the live one, after the response has been sent.

One task scores one list at a time and also follows the shadow release and the event stream, so there are no locks; the
scoring itself runs in a thread. It takes at most a tenth of the time, whatever the configured share of lists. If its
short queue is full, lists are logged without shadow scores. No response waits for it or fails because of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from features import columns
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
"""Number of top positions whose overlap is measured."""
_WAITING = 32
_REST = 9
"""Pause after scoring a list, as a multiple of the time it took."""
_IDLE_S = 0.02


class ShadowJob(NamedTuple):
    """A list to score: its log record, and the live release's ranking of all candidates.

    sent: the columns of the request, in the order of the ranking. user: the attributes of the user.
    """

    record: Served
    ranking: Ranking
    context: Context
    sent: columns.Sent
    user: Mapping[str, columns.Scalar]
    live_ms: float


class Shadow:
    """A worker's shadow release, if there is one. It scores and logs the lists passed to `put`."""

    def __init__(
        self, config: ServiceConfig, store: Store, follower: Follower, served: ServedLog, metrics: Metrics
    ) -> None:
        """follower: follower of the shadow release."""
        self._config, self._store, self._follower = config, store, follower
        self._served, self._metrics = served, metrics
        self._queue: deque[ShadowJob] = deque()
        self._rng = np.random.default_rng()

    def wants(self, live: Live) -> bool:
        """Decide whether to shadow-score a list that the live release is about to rank."""
        shadow = self._follower.live
        if shadow is None or shadow.release.id == live.release.id or not self._config.log_served:
            return False
        return bool(self._rng.random() < self._config.shadow_share)

    def put(
        self,
        record: Served,
        ranking: Ranking,
        context: Context,
        sent: columns.Sent,
        user: Mapping[str, columns.Scalar],
        live_ms: float,
    ) -> None:
        """Queue a list to be scored and logged. If the queue is full, log it at once without shadow scores.

        ranking: the live release's ranking of all candidates, before rules. sent: the columns of the request, in the
        order of the ranking. user: the attributes of the user. live_ms: milliseconds that ranking took.
        """
        if len(self._queue) < _WAITING:
            self._queue.append(ShadowJob(record, ranking, context, sent, user, live_ms))
        else:
            self._served.put(record)
            self._metrics.shadow("dropped")

    @property
    def reads_attributes(self) -> bool:
        """True if the shadow release has attributes of users as features."""
        live = self._follower.live
        return live is not None and live.reads_attributes

    def state(self) -> str | None:
        """The shadow release's id, or the reason it is not loaded; None without a shadow release."""
        live = self._follower.live
        if live is not None:
            return live.release.id
        return self._follower.reason if self._follower.reason.startswith("release") else None

    async def run(self) -> None:
        """Follow the shadow release and score lists until cancelled. Lists still queued are logged without scores."""
        loop = asyncio.get_running_loop()
        next_poll = next_score = 0.0
        try:
            while True:
                live = self._follower.live
                if loop.time() >= next_poll and (self._store.shadow or live):
                    caught_up = await self._follower.step()
                    next_poll = loop.time() + (self._config.poll_s if caught_up else 0.0)
                if self._queue and loop.time() >= next_score:
                    began = loop.time()
                    await self._next()
                    next_score = loop.time() + _REST * (loop.time() - began)
                await asyncio.sleep(_IDLE_S if live else self._config.poll_s)
        finally:
            await self._follower.stop()
            for job in self._queue:
                self._served.put(job.record)

    async def _next(self) -> None:
        job, live, record = self._queue[0], self._follower.live, self._queue[0].record
        try:
            if live is not None:
                record = msgspec.structs.replace(record, shadow=await self._scored(live, job))
                self._metrics.shadow("scored")
        except StoreAway:
            self._metrics.shadow("failed")
        except Exception as e:  # a problem with the shadow release must not affect the live one
            self._metrics.shadow("failed")
            log.error("shadow release %s cannot score: %s", live.release.id if live else "", type(e).__name__)
            log.debug("the list it failed on", exc_info=True)  # debug level: the traceback may contain a user id
        self._queue.popleft()
        self._served.put(record)

    async def _scored(self, live: Live, job: ShadowJob) -> ShadowScores:
        record, history = job.record, EMPTY
        if record.user_id is not None and not record.degraded:
            # Item rows differ between releases, so the history is read again, strictly before the same time.
            retention = live.release.manifest.retention
            history = await self._store.read(record.user_id, live.items.catalogue, record.at, retention)
        score, ms = await asyncio.to_thread(_score, live, history, job)
        score_of = dict(zip(job.ranking.item_ids, score.tolist(), strict=True))
        shown = np.array([score_of[i] for i in record.item_ids], np.float64)
        correlation, overlap = agreement(job.ranking.score, score)
        return ShadowScores(live.release.id, shown.tobytes(), correlation, overlap, job.live_ms, round(ms, 3))


def _score(live: Live, history: History, job: ShadowJob) -> tuple[F64, float]:
    """(float64[candidates] in the order of the live release's ranking, NaN for withdrawn items; milliseconds)."""
    began = time.perf_counter()
    # The two releases may declare different columns, and their rows differ.
    sent = columns.with_placement(live.items.columns, job.sent, job.record.placement)
    context = job.context._replace(
        columns=columns.table(live.items.columns, sent, job.user, strict=False),
        seeds=live.items.catalogue.rows(job.record.items),
    )
    ranking = live.rank(history, job.ranking.item_ids, job.record.at, None, context)
    ms = (time.perf_counter() - began) * 1e3
    score_of = dict(zip(ranking.item_ids, ranking.score.tolist(), strict=True))
    return np.array([score_of.get(i, math.nan) for i in job.ranking.item_ids], np.float64), ms


def agreement(live: F64, shadow: F64) -> tuple[float | None, float]:
    """(Spearman correlation, overlap at 10) of two releases' scores of the same items.

    overlap: share of the top 10 items in common. Items whose shadow score is NaN rank last and are left out of the
    correlation, which is None if either score is constant.
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
    """Ranks from 0; equal scores share their mean rank."""
    _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[inverse]
