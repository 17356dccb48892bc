"""Per-minute counts of the service, kept in Redis for three days for the charts of the operator's page.

    sw:timeline                      stream, field `l`: one JSON record per minute and service, at most KEPT
    sw:timeline:<service>:<minute>   lock: the worker that sets it writes the service's record of that minute

Prometheus does this better, keeps data longer, and is the basis of the alerts (`deploy/`). The timeline is for shops
that do not have it yet and for a page that works without installing anything. A record holds cumulative counts since
the service started, as Prometheus would scrape them, so a missed minute loses detail but no counts. The charts show
differences between records.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from serving.records.metrics import DIRECTORY, FRESHNESS_S, LATENCY_S, Metrics
from serving.store import Store, StoreAway

log = logging.getLogger(__name__)

TIMELINE = "timeline"
KEPT = 3 * 24 * 60
_RANKINGS = ("/v1/rank", "/v1/recommend", "/v1/page")
_Count = Annotated[float, Meta(ge=0)]


class Record(Struct, frozen=True):
    """Cumulative counts of one service, all workers together, from its start until `at` (Unix seconds).

    latency: rankings by bucket of `metrics.LATENCY_S`, then those above the last bound. freshness: polls in the same
    way by bucket of `FRESHNESS_S`.
    """

    at: float
    service: str
    rankings: _Count
    degraded: _Count
    events: _Count
    failed: _Count
    latency: list[_Count]
    freshness: list[_Count]


class Minute(Struct, frozen=True):
    """Counts of one interval between records, all services together. at: its end, Unix seconds; span_s: its length.

    degraded, failed: shares of the rankings, 0 to 1. Latencies are in milliseconds and freshness in seconds, at most
    the largest bucket. All of these are null if there is nothing to compute them from.
    """

    at: float
    span_s: float
    rankings: float
    events: float
    degraded: float | None
    failed: float | None
    p50_ms: float | None
    p99_ms: float | None
    freshness_s: float | None


def service_name() -> str:
    """The name of this service among those that share a Redis; workers that share their metrics have the same name."""
    shared = os.environ.get(DIRECTORY)
    return f"{socket.gethostname()}-{Path(shared).name if shared else os.getpid()}"


def current_record(metrics: Metrics, service: str, at: float) -> Record:
    """The record of the current metrics. at: Unix seconds."""
    latency, freshness = [0.0] * (len(LATENCY_S) + 1), [0.0] * (len(FRESHNESS_S) + 1)
    rankings = degraded = events = failed = 0.0
    for name, labels, value in metrics.samples():
        route = labels.get("route")
        if name == "shelfwise_request_seconds_bucket" and route in _RANKINGS:
            latency[_bucket(LATENCY_S, labels["le"])] += value
        elif name == "shelfwise_freshness_seconds_bucket":
            freshness[_bucket(FRESHNESS_S, labels["le"])] += value
        elif name == "shelfwise_requests_total" and route in _RANKINGS:
            rankings += value
            failed += value * labels["status"].startswith("5")
        elif name == "shelfwise_degraded_total":
            degraded += value
        elif name == "shelfwise_events_total" and labels["outcome"] == "accepted":
            events += value
    return Record(at, service, rankings, degraded, events, failed, _per_bucket(latency), _per_bucket(freshness))


def _bucket(bounds: Sequence[float], le: str) -> int:
    return len(bounds) if le == "+Inf" else bounds.index(float(le))


def _per_bucket(cumulative: Sequence[float]) -> list[float]:
    """Counts of each bucket, from cumulative counts."""
    return [max(0.0, b - a) for a, b in zip([0.0, *cumulative], cumulative, strict=False)]


class Timeline:
    """Writes one record per minute for this service, whichever worker is first, and reads the records back."""

    def __init__(self, store: Store, metrics: Metrics, clock: Callable[[], float] = time.time, every_s: float = 60.0):
        """clock: returns Unix seconds. every_s: seconds between records."""
        self._store, self._metrics, self._clock, self._every_s = store, metrics, clock, every_s
        self._name, self._key = service_name(), store.layout.key(TIMELINE)

    async def run(self) -> None:
        """Write until cancelled. While Redis is unavailable, minutes are skipped; the next record includes their
        counts."""
        while True:
            await asyncio.sleep(self._every_s - self._clock() % self._every_s)
            try:
                await self.write()
            except StoreAway as e:
                log.debug("skipped a minute of the timeline: %s", e)

    async def write(self) -> bool:
        """Write this minute's record; False if another worker of this service already has. Raises StoreAway."""
        at = self._clock()
        lock = f"{self._key}:{self._name}:{int(at // self._every_s)}"
        acquired = (await self._store.run([["SET", lock, "1", "NX", "EX", max(2, int(5 * self._every_s))]]))[0]
        if not acquired:
            return False
        record = await asyncio.to_thread(current_record, self._metrics, self._name, at)
        await self._store.run([["XADD", self._key, "MAXLEN", "~", KEPT, "*", "l", msgspec.json.encode(record)]])
        return True

    async def read(self, since: float) -> list[Minute]:
        """The minutes after `since` (Unix seconds), oldest first. Raises StoreAway."""
        entries = (await self._store.run([["XREVRANGE", self._key, "+", "-", "COUNT", KEPT]]))[0]
        return minutes(
            [r for _, fields in reversed(entries) if (r := _record(fields)) is not None], since, self._every_s
        )


def _record(fields: Mapping[bytes, bytes]) -> Record | None:
    try:
        return msgspec.json.decode(fields[b"l"], type=Record)
    except (KeyError, msgspec.MsgspecError):
        return None  # written by another version


def minutes(records: Sequence[Record], since: float, every_s: float = 60.0) -> list[Minute]:
    """Differences between consecutive records, given in time order, summed over the services of each interval.

    The first record of a service only serves as the base of the next one. If counts fall because a restarted service
    has the same name, the new count is the difference.
    """
    last: dict[str, Record] = {}
    intervals: dict[int, list[tuple[Record, Record]]] = {}
    for r in records:
        if (before := last.get(r.service)) is not None and r.at > max(since, before.at):
            intervals.setdefault(int(r.at // every_s), []).append((before, r))
        last[r.service] = r
    return [_minute(pairs) for _, pairs in sorted(intervals.items())]


def _minute(pairs: Sequence[tuple[Record, Record]]) -> Minute:
    def increase(a: float, b: float) -> float:
        return b - a if b >= a else b

    def total(field: str) -> float:
        return sum(increase(getattr(a, field), getattr(b, field)) for a, b in pairs)

    def buckets(field: str, n: int) -> list[float]:
        counts = [(getattr(a, field), getattr(b, field)) for a, b in pairs]
        return [sum(increase(a[k], b[k]) for a, b in counts if len(a) == len(b) == n) for k in range(n)]

    rankings, latency = total("rankings"), buckets("latency", len(LATENCY_S) + 1)
    p50, p99 = (quantile(LATENCY_S, latency, q) for q in (0.5, 0.99))
    return Minute(
        max(b.at for _, b in pairs),
        max(b.at - a.at for a, b in pairs),
        rankings,
        total("events"),
        min(1.0, total("degraded") / rankings) if rankings else None,
        min(1.0, total("failed") / rankings) if rankings else None,
        p50 and 1000 * p50,
        p99 and 1000 * p99,
        quantile(FRESHNESS_S, buckets("freshness", len(FRESHNESS_S) + 1), 0.99),
    )


def quantile(bounds: Sequence[float], counts: Sequence[float], q: float) -> float | None:
    """The q-quantile of a histogram, interpolated linearly within a bucket; None if all counts are 0.

    bounds: upper bounds of the buckets, ascending. counts: one more than bounds; the last counts the values above them
    all, for which the last bound is returned. The same as `histogram_quantile` of Prometheus.
    """
    total = sum(counts)
    if total <= 0:
        return None
    target, below, lower = q * total, 0.0, 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if count and below + count >= target:
            return lower + (upper - lower) * max(0.0, target - below) / count
        below, lower = below + count, upper
    return bounds[-1]
