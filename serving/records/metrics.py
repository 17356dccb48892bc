"""What the service counts of itself, for Prometheus. docs/serving.md says what each is for.

With several workers each counts by itself into a file of its own, in the directory that PROMETHEUS_MULTIPROC_DIR names
before this is imported, and whichever is asked adds the files up. With one, the counts are in its memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.api import EventIn, Rejected

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.001, 0.002, 0.004, 0.007, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CANDIDATES = (1, 10, 50, 100, 200, 300, 500, 1000, 2000, 5000)
FRESHNESS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
_FIELDS = frozenset(EventIn.__struct_fields__)


class Metrics:
    """Counters of one application in this process."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        name = "shelfwise_"
        self._seconds = Histogram(
            f"{name}request_seconds",
            "From the first byte read to the answer.",
            ["route"],
            registry=r,
            buckets=LATENCY_S,
        )
        self._requests = Counter(f"{name}requests", "Requests answered.", ["route", "status"], registry=r)
        self._refused = Counter(
            f"{name}refused", "Requests turned away before a route saw them.", ["reason"], registry=r
        )
        self._candidates = Histogram(f"{name}candidates", "Candidates of a ranking.", registry=r, buckets=_CANDIDATES)
        self._degraded = Counter(f"{name}degraded", "Rankings without the user's history.", registry=r)
        self._slow = Counter(f"{name}slow_trees", "Rankings scored by LightGBM, not by our own code.", registry=r)
        self._events = Counter(f"{name}events", "Events taken, new or known before.", ["outcome"], registry=r)
        self._rejected = Counter(
            f"{name}events_rejected", "Events rejected, by the field at fault.", ["field"], registry=r
        )
        self._freshness = Histogram(
            f"{name}freshness_seconds",
            "From an event's acceptance to this worker's item state; the oldest of a poll.",
            registry=r,
            buckets=FRESHNESS_S,
        )
        self._release = Gauge(
            f"{name}release_info",
            "Workers that answer from this release.",
            ["release"],
            registry=r,
            multiprocess_mode="livesum",
        )
        self._redis = Gauge(
            f"{name}redis_up", "1 where every worker reaches Redis.", registry=r, multiprocess_mode="livemin"
        )
        self._dropped = Counter(f"{name}served_dropped", "Served lists that the log had no room for.", registry=r)
        self._shadow = Counter(
            f"{name}shadow", "Lists to be scored by the release in shadow, by what came of it.", ["outcome"], registry=r
        )
        self._live: str | None = None
        # A labelled child is found by a lock and a dictionary of tuples; once is enough.
        self._of_route: dict[str, Histogram] = {}
        self._of_status: dict[tuple[str, int], Counter] = {}

    def request(self, route: str, status: int, took_s: float) -> None:
        """A request was answered. route: the template, of which there are few."""
        if (seconds := self._of_route.get(route)) is None:
            seconds = self._of_route[route] = self._seconds.labels(route)
        if (count := self._of_status.get((route, status))) is None:
            count = self._of_status[route, status] = self._requests.labels(route, str(status))
        seconds.observe(took_s)
        count.inc()

    def refused(self, reason: str) -> None:
        """A request was turned away: a problem's slug."""
        self._refused.labels(reason).inc()

    def ranked(self, candidates: int, degraded: bool, slow: bool) -> None:
        """A ranking was answered."""
        self._candidates.observe(candidates)
        if degraded:
            self._degraded.inc()
        if slow:
            self._slow.inc()

    def rejected(self, rejected: Sequence[Rejected]) -> None:
        """Events were rejected; a field that is none of ours counts as `unknown`, so that labels stay few."""
        for one in rejected:
            self._rejected.labels(one.field if one.field in _FIELDS else "unknown" if one.field else "none").inc()

    def events(self, accepted: int, duplicates: int) -> None:
        """Events were stored."""
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)

    def dropped(self, count: int) -> None:
        """Records of served lists were lost for want of room."""
        self._dropped.inc(count)

    def shadow(self, outcome: str) -> None:
        """A list was to be scored by the release in shadow: `scored`, `dropped` as there were too many, or `failed`."""
        self._shadow.labels(outcome).inc()

    def fresh(self, seconds: float) -> None:
        """This worker read of an event that was accepted so long ago."""
        self._freshness.observe(max(0.0, seconds))

    def release(self, release_id: str) -> None:
        """This worker answers from a release."""
        if self._live is not None:
            self._release.labels(self._live).set(0)
        self._live = release_id
        self._release.labels(release_id).set(1)

    def redis(self, up: bool) -> None:
        """This worker reaches Redis, or does not."""
        self._redis.set(up)

    def exposition(self) -> bytes:
        """Everything counted, by all workers, in Prometheus' text format."""
        return generate_latest(self._together())

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The same as (name, labels, value), histograms by bucket with label `le`, each counting those below too."""
        for family in self._together().collect():
            yield from ((s.name, dict(s.labels), float(s.value)) for s in family.samples)

    def _together(self) -> CollectorRegistry:
        if DIRECTORY not in os.environ:
            return self._registry
        _bury(Path(os.environ[DIRECTORY]))
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return together


def _bury(directory: Path) -> None:
    """Drop the gauges of workers that died: they would be counted among the living."""
    for file in directory.glob("gauge_live*_*.db"):
        said = re.search(r"_(\d+)\.db$", file.name)
        if said and not Path(f"/proc/{said[1]}").exists():
            mark_process_dead(int(said[1]), str(directory))  # type: ignore[no-untyped-call]
