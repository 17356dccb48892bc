"""Prometheus metrics of the service; docs/serving.md explains each.

With one worker, the counts are kept in memory. With several, each worker writes its counts to a file of its own in the
directory named by PROMETHEUS_MULTIPROC_DIR, and the worker that answers /metrics adds the files up. The variable must
be set before this module is imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serving.api import EventIn, Rejected
from serving.store import Backlog, Memory

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.001, 0.002, 0.004, 0.007, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_CANDIDATES = (1, 10, 50, 100, 200, 300, 500, 1000, 2000, 5000)
FRESHNESS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
_FIELDS = frozenset(EventIn.__struct_fields__)


class Metrics:
    """The metrics of one application in this process."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        name = "shelfwise_"
        self._seconds = Histogram(
            f"{name}request_seconds",
            "Time from the first byte read to the response.",
            ["route"],
            registry=r,
            buckets=LATENCY_S,
        )
        self._requests = Counter(f"{name}requests", "Requests answered.", ["route", "status"], registry=r)
        self._refused = Counter(
            f"{name}refused", "Requests refused before they reached a route.", ["reason"], registry=r
        )
        self._candidates = Histogram(f"{name}candidates", "Candidates per ranking.", registry=r, buckets=_CANDIDATES)
        self._placements = Counter(
            f"{name}placement_rankings",
            "Rankings of requests with a placement, by placement.",
            ["placement"],
            registry=r,
        )
        self._degraded = Counter(f"{name}degraded", "Rankings answered as degraded: see `degraded_reason`.", registry=r)
        self._slow = Counter(
            f"{name}slow_trees", "Rankings scored by LightGBM instead of the compiled trees.", registry=r
        )
        self._events = Counter(f"{name}events", "Valid events, by outcome.", ["outcome"], registry=r)
        self._rejected = Counter(
            f"{name}events_rejected", "Events rejected, by the field at fault.", ["field"], registry=r
        )
        self._freshness = Histogram(
            f"{name}freshness_seconds",
            "Time from accepting an event to applying it to this worker's item state; the oldest event of each poll.",
            registry=r,
            buckets=FRESHNESS_S,
        )
        self._release = Gauge(
            f"{name}release_info",
            "Workers that serve this release.",
            ["release"],
            registry=r,
            multiprocess_mode="livesum",
        )
        self._redis = Gauge(
            f"{name}redis_up", "1 if every worker reaches Redis.", registry=r, multiprocess_mode="livemin"
        )
        self._replaced = Gauge(
            f"{name}redis_replaced",
            "1 if a worker noticed that Redis was replaced by an empty or older one, until it is repaired.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self._rules = Gauge(
            f"{name}merchandising_version",
            "Version of the merchandising rules, the oldest that a worker uses.",
            registry=r,
            multiprocess_mode="livemin",
        )
        self._set_aside = Gauge(
            f"{name}merchandising_rules_set_aside",
            "Merchandising rules that a worker does not use, because its release cannot serve them.",
            registry=r,
            multiprocess_mode="livemax",
        )
        self._unknown = Counter(
            f"{name}unknown_candidates", "Candidates of rankings that are not in the catalogue.", registry=r
        )
        self._unknown_seeds = Counter(
            f"{name}unknown_request_items", "Items that requests name and the catalogue has not.", registry=r
        )
        self._missing_columns = Counter(
            f"{name}missing_columns",
            "Requests without a column that the release declares, by column.",
            ["column"],
            registry=r,
        )
        self._undeclared = Counter(
            f"{name}undeclared_columns",
            "Columns of requests that the release does not declare. They are logged, but not used.",
            registry=r,
        )
        self._dropped = Counter(f"{name}served_dropped", "Served lists dropped because the log was full.", registry=r)
        self._oversized = Counter(
            f"{name}items_oversized", "Times a written item was not used because it is too large.", registry=r
        )
        self._shadow = Counter(
            f"{name}shadow", "Lists selected for shadow scoring, by outcome.", ["outcome"], registry=r
        )
        self._arms = Counter(
            f"{name}experiment_lists", "Lists shown in experiments, by arm.", ["experiment", "arm"], registry=r
        )
        self._keys = Gauge(
            f"{name}keys_checked_timestamp_seconds",
            "Time at which every worker had the keys of its key file.",
            registry=r,
            multiprocess_mode="livemin",
        )
        self._users, self._max_users, self._memory, self._evicted, self._updates, self._nights = (
            Gauge(f"{name}{what}", text, registry=r, multiprocess_mode="mostrecent")
            for what, text in (
                ("users", "Users who have lists in Redis."),
                ("users_max", "Maximum number of users who may have lists."),
                ("redis_memory_ratio", "Share of its memory that the fullest Redis server uses."),
                ("redis_evicted_keys", "Keys that Redis has evicted since it was started."),
                ("item_update_age_seconds", "Age of the oldest item update that no embedding worker has finished."),
                ("nights_unpublished", "Days with a nightly run since the last one that succeeded."),
            )
        )
        self._live: str | None = None
        # Looking up a labelled child takes a lock and a dictionary of tuples, so each is looked up once.
        self._by_route: dict[str, Histogram] = {}
        self._by_status: dict[tuple[str, int], Counter] = {}

    def request(self, route: str, status: int, took_s: float) -> None:
        """Count an answered request. route: the path template, which keeps the number of labels small."""
        if (seconds := self._by_route.get(route)) is None:
            seconds = self._by_route[route] = self._seconds.labels(route)
        if (count := self._by_status.get((route, status))) is None:
            count = self._by_status[route, status] = self._requests.labels(route, str(status))
        seconds.observe(took_s)
        count.inc()

    def refused(self, reason: str) -> None:
        """Count a refused request. reason: the slug of the problem."""
        self._refused.labels(reason).inc()

    def ranked(self, candidates: int, degraded: bool, slow: bool, placement: str | None = None) -> None:
        """Count an answered ranking. placement: a configured one, which keeps the number of labels small."""
        self._candidates.observe(candidates)
        if placement is not None:
            self._placements.labels(placement).inc()
        if degraded:
            self._degraded.inc()
        if slow:
            self._slow.inc()

    def rejected(self, rejected: Sequence[Rejected]) -> None:
        """Count rejected events by field. Fields outside the schema count as `unknown`, which limits the labels."""
        for event in rejected:
            self._rejected.labels(event.field if event.field in _FIELDS else "unknown" if event.field else "none").inc()

    def events(self, accepted: int, duplicates: int, refused: int, erased: int, limited: int) -> None:
        """Count valid events by outcome.

        refused: of new users, while the maximum number of users have lists. erased: from before the erasure of their
        user. limited: over a limit of their shopper.
        """
        self._events.labels("accepted").inc(accepted)
        self._events.labels("duplicate").inc(duplicates)
        self._events.labels("refused").inc(refused)
        self._events.labels("erased").inc(erased)
        self._events.labels("limited").inc(limited)

    def dropped(self, count: int) -> None:
        """Count records of served lists that were dropped because the log was full."""
        self._dropped.inc(count)

    def exposed(self, experiment: str, arm: str) -> None:
        """Count a list that was shown in an experiment."""
        self._arms.labels(experiment, arm).inc()

    def oversized(self, count: int) -> None:
        """Count written items that this worker read and does not use because they are too large."""
        self._oversized.inc(count)

    def shadow(self, outcome: str) -> None:
        """Count a list selected for shadow scoring. outcome: `scored`, `dropped` (too many lists) or `failed`."""
        self._shadow.labels(outcome).inc()

    def fresh(self, seconds: float) -> None:
        """Record the age in seconds of an accepted event when this worker read it."""
        self._freshness.observe(max(0.0, seconds))

    def release(self, release_id: str) -> None:
        """Set the release that this worker serves."""
        if self._live is not None:
            self._release.labels(self._live).set(0)
        self._live = release_id
        self._release.labels(release_id).set(1)

    def redis(self, up: bool) -> None:
        """Set whether this worker reaches Redis."""
        self._redis.set(up)

    def redis_replaced(self, replaced: bool) -> None:
        """Set whether this worker noticed that Redis was replaced, and it was not repaired since."""
        self._replaced.set(replaced)

    def unknown_seeds(self, count: int) -> None:
        """Count items that a request names and the catalogue has not."""
        self._unknown_seeds.inc(count)

    def merchandising(self, version: int, set_aside: int) -> None:
        """Set the version of the merchandising rules that this worker uses, and how many of them it sets aside."""
        self._rules.set(version)
        self._set_aside.set(set_aside)

    def unknown(self, candidates: int) -> None:
        """Count candidates that are not in the catalogue."""
        self._unknown.inc(candidates)

    def columns(self, missing: Sequence[str], undeclared: int) -> None:
        """Count the columns of a request.

        missing: those that the release declares and the request lacks. undeclared: number of those that only the
        request has.
        """
        for name in missing:
            self._missing_columns.labels(name).inc()
        self._undeclared.inc(undeclared)

    def keys_checked(self, at: float) -> None:
        """Set the time in Unix seconds at which this worker last had the keys of its key file."""
        self._keys.set(at)

    def backlog(self, backlog: Backlog) -> None:
        """Set what Redis has recorded for all processes."""
        self._updates.set(backlog.update_age_s)
        self._nights.set(backlog.nights)

    def memory(self, memory: Memory) -> None:
        """Set the memory of Redis."""
        self._memory.set(memory.used)
        self._evicted.set(memory.evicted_keys)

    def users(self, count: int, most: int) -> None:
        """Set the number of users who have lists, and its maximum."""
        self._users.set(count)
        self._max_users.set(most)

    def exposition(self) -> bytes:
        """The metrics of all workers in the Prometheus text format."""
        return generate_latest(self._merged())

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """The same as (name, labels, value). Histograms have one sample per bucket, cumulative, with label `le`."""
        for family in self._merged().collect():
            yield from ((s.name, dict(s.labels), float(s.value)) for s in family.samples)

    def _merged(self) -> CollectorRegistry:
        if DIRECTORY not in os.environ:
            return self._registry
        _remove_dead_workers(Path(os.environ[DIRECTORY]))
        merged = CollectorRegistry()
        MultiProcessCollector(merged)  # type: ignore[no-untyped-call]
        return merged


def _remove_dead_workers(directory: Path) -> None:
    """Remove the gauges of workers that have exited; they would still be counted as live."""
    for file in directory.glob("gauge_live*_*.db"):
        match = re.search(r"_(\d+)\.db$", file.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            mark_process_dead(int(match[1]), str(directory))  # type: ignore[no-untyped-call]
