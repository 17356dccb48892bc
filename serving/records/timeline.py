"""What the service did minute by minute, kept in Redis for three days, so that its page can draw more than this moment.

    sw:timeline                      stream, field `l`: one JSON record a minute and service, at most KEPT
    sw:timeline:<service>:<minute>   who of a service's workers writes that minute's record

Prometheus does this better and for longer, and is what alerts stand on (`deploy/`). This is for a shop that has none
yet, and for a page that works with nothing installed. A record holds what was counted since the service started, as
Prometheus would read it, so a minute that was missed loses detail and no count; what is drawn are differences.
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

TIMELINE = "sw:timeline"
KEPT = 3 * 24 * 60
_RANKINGS = ("/v1/rank", "/v1/recommend")
_Count = Annotated[float, Meta(ge=0)]


class Record(Struct, frozen=True):
    """What one service had counted by `at` (Unix seconds), over all its workers, since it started.

    latency: rankings by bucket of `metrics.LATENCY_S`, the last beyond all; freshness: likewise of `FRESHNESS_S`.
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
    """One stretch between records, all services together. at: its end, Unix seconds; span_s: its length.

    Shares are of rankings, 0 to 1, null where nothing was asked; latencies in milliseconds, freshness in seconds, null
    likewise, and at most the largest bucket.
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
    """Names this service among those on one Redis: workers that count together have one name."""
    together = os.environ.get(DIRECTORY)
    return f"{socket.gethostname()}-{Path(together).name if together else os.getpid()}"


def counted(metrics: Metrics, service: str, at: float) -> Record:
    """A record of this moment."""
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
    return Record(at, service, rankings, degraded, events, failed, _apart(latency), _apart(freshness))


def _bucket(bounds: Sequence[float], le: str) -> int:
    return len(bounds) if le == "+Inf" else bounds.index(float(le))


def _apart(cumulative: Sequence[float]) -> list[float]:
    """Counts of each bucket alone, from counts of each and those below."""
    return [max(0.0, b - a) for a, b in zip([0.0, *cumulative], cumulative, strict=False)]


class Timeline:
    """Writes a record each minute, by one of the workers, and reads them back."""

    def __init__(self, store: Store, metrics: Metrics, clock: Callable[[], float] = time.time, every_s: float = 60.0):
        """clock: Unix seconds. every_s: between records."""
        self._store, self._metrics, self._clock, self._every_s = store, metrics, clock, every_s
        self._name = service_name()

    async def run(self) -> None:
        """Write until cancelled. A minute in which Redis is away goes unwritten; the next record makes up for it."""
        while True:
            await asyncio.sleep(self._every_s - self._clock() % self._every_s)
            try:
                await self.write()
            except StoreAway as e:
                log.debug("a minute of the timeline was not written: %s", e)

    async def write(self) -> bool:
        """Write this minute's record; False where another worker of this service has. Raises StoreAway."""
        at = self._clock()
        turn = f"{TIMELINE}:{self._name}:{int(at // self._every_s)}"
        taken = (await self._store.run([["SET", turn, "1", "NX", "EX", max(2, int(5 * self._every_s))]]))[0]
        if not taken:
            return False
        record = await asyncio.to_thread(counted, self._metrics, self._name, at)
        await self._store.run([["XADD", TIMELINE, "MAXLEN", "~", KEPT, "*", "l", msgspec.json.encode(record)]])
        return True

    async def read(self, since: float) -> list[Minute]:
        """What was done since a moment (Unix seconds), oldest first. Raises StoreAway."""
        entries = (await self._store.run([["XREVRANGE", TIMELINE, "+", "-", "COUNT", KEPT]]))[0]
        return minutes(
            [r for _, fields in reversed(entries) if (r := _record(fields)) is not None], since, self._every_s
        )


def _record(fields: Mapping[bytes, bytes]) -> Record | None:
    try:
        return msgspec.json.decode(fields[b"l"], type=Record)
    except (KeyError, msgspec.MsgspecError):
        return None  # of another version


def minutes(records: Sequence[Record], since: float, every_s: float = 60.0) -> list[Minute]:
    """Differences of records (in the order of time), the services of a stretch added up.

    A service's first record is all it ever counted, so only what follows one is drawn; counts that fell, because a name
    was used again, are taken from zero.
    """
    last: dict[str, Record] = {}
    stretches: dict[int, list[tuple[Record, Record]]] = {}
    for r in records:
        if (before := last.get(r.service)) is not None and r.at > max(since, before.at):
            stretches.setdefault(int(r.at // every_s), []).append((before, r))
        last[r.service] = r
    return [_minute(pairs) for _, pairs in sorted(stretches.items())]


def _minute(pairs: Sequence[tuple[Record, Record]]) -> Minute:
    def rise(a: float, b: float) -> float:
        return b - a if b >= a else b

    def total(field: str) -> float:
        return sum(rise(getattr(a, field), getattr(b, field)) for a, b in pairs)

    def buckets(field: str, n: int) -> list[float]:
        held = [(getattr(a, field), getattr(b, field)) for a, b in pairs]
        return [sum(rise(a[k], b[k]) for a, b in held if len(a) == len(b) == n) for k in range(n)]

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
    """The q-quantile of counts by bucket, taken as even within each; None of nothing.

    bounds: upper ends, rising; counts: one more than bounds, the last beyond all, which is taken for the last bound.
    As `histogram_quantile` of Prometheus does.
    """
    total = sum(counts)
    if total <= 0:
        return None
    due, below, lower = q * total, 0.0, 0.0
    for upper, count in zip(bounds, counts, strict=False):
        if count and below + count >= due:
            return lower + (upper - lower) * max(0.0, due - below) / count
        below, lower = below + count, upper
    return bounds[-1]
