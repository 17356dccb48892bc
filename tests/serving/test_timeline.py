"""The per-minute counts of the operator's page: the records in a real Valkey and the charts computed from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.records.metrics import FRESHNESS_S, LATENCY_S, Metrics
from serving.records.timeline import Minute, Record, Timeline, current_record, minutes, quantile
from serving.store import Store
from serving.store.embedded import connect_url

NOW = 1_700_000_040.0  # a whole minute
N_LATENCY, N_FRESHNESS = len(LATENCY_S) + 1, len(FRESHNESS_S) + 1


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


def record(
    at: float, service: str = "a", rankings: float = 0, degraded: float = 0, events: float = 0, **more: list[float]
) -> Record:
    buckets = {"latency": [0.0] * N_LATENCY, "freshness": [0.0] * N_FRESHNESS} | more
    return Record(at, service, rankings, degraded, events, 0, buckets["latency"], buckets["freshness"])


def test_a_record_counts_rankings_and_events_by_bucket() -> None:
    """Rankings of 0.5 ms, 3 ms and 3 s (above the last bucket); one degraded, one failed; other routes are ignored."""
    metrics = Metrics()
    for status, took in ((200, 0.0005), (200, 0.003), (503, 3.0)):
        metrics.request("/v1/rank", status, took)
    metrics.request("/v1/events", 202, 0.003)
    metrics.ranked(10, True, False)
    metrics.events(7, 2, 1, 1, 1)
    metrics.fresh(0.2)
    r = current_record(metrics, "a", NOW)
    assert (r.rankings, r.failed, r.degraded, r.events) == (3, 1, 1, 7)
    assert r.latency[0] == 1, "0.5 ms is in the bucket up to 1 ms"
    assert r.latency[2] == 1, "3 ms is in the bucket from 2 to 4 ms"
    assert r.latency[-1] == 1, "3 s is above the last bound, 2.5 s"
    assert sum(r.latency) == 3
    assert r.freshness[FRESHNESS_S.index(0.25)] == sum(r.freshness) == 1


def test_a_minute_is_the_difference_between_two_records() -> None:
    """100 more rankings, 5 of them degraded, all between 1 and 2 ms: the median is 1.5 ms, the 99th percentile 1.99."""
    latency = [0.0, 100.0] + [0.0] * (N_LATENCY - 2)
    result = minutes(
        [record(NOW, rankings=50), record(NOW + 60, rankings=150, degraded=5, events=30, latency=latency)], 0
    )
    assert len(result) == 1
    m = result[0]
    assert (m.at, m.span_s, m.rankings, m.events, m.degraded) == (NOW + 60, 60, 100, 30, 5 / 100)
    assert m.p50_ms == pytest.approx(1 + 0.5)
    assert m.p99_ms == pytest.approx(1 + 0.99)
    assert m.freshness_s is None, "no event arrived"


def test_the_first_record_of_a_service_makes_no_minute() -> None:
    assert minutes([record(NOW, rankings=1e6)], 0) == []


def test_the_counts_of_all_services_are_summed_per_minute() -> None:
    records = [record(NOW, "a"), record(NOW + 1, "b"), record(NOW + 60, "a", 10), record(NOW + 61, "b", 5)]
    assert [m.rankings for m in minutes(records, 0)] == [10 + 5]


def test_after_a_counter_reset_the_new_count_is_the_difference() -> None:
    """A service restarted under the same name: 40 rankings, not 40 - 1000."""
    assert [m.rankings for m in minutes([record(NOW, rankings=1000), record(NOW + 60, rankings=40)], 0)] == [40]


def test_without_rankings_a_minute_has_no_shares_and_no_latency() -> None:
    m = minutes([record(NOW), record(NOW + 60)], 0)[0]
    assert (m.degraded, m.failed, m.p50_ms, m.p99_ms) == (None, None, None, None)


def test_only_minutes_after_since_are_returned() -> None:
    records = [record(NOW + 60 * k, rankings=k) for k in range(5)]
    assert [m.at for m in minutes(records, NOW + 120)] == [NOW + 180, NOW + 240]


counts = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=N_LATENCY, max_size=N_LATENCY)


@given(counts, st.floats(0, 1), st.floats(0, 1))
def test_a_quantile_lies_within_the_bounds_and_increases(histogram: list[float], p: float, q: float) -> None:
    low, high = (quantile(LATENCY_S, histogram, k) for k in sorted((p, q)))
    if sum(histogram) <= 0:
        assert low is high is None
    else:
        assert low is not None
        assert high is not None
        assert 0 <= low <= high + 1e-9 <= LATENCY_S[-1] + 2e-9


steps = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.integers(0, 50)), max_size=20)


@given(steps)
def test_minutes_sum_to_the_counts_after_the_first_record(steps: list[tuple[str, int, int]]) -> None:
    total = {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    records: list[Record] = []
    expected = 0.0
    for k, (service, rankings, events) in enumerate(steps):
        seen = any(r.service == service for r in records)
        total[service][0] += rankings
        total[service][1] += events
        expected += rankings * seen
        records.append(record(NOW + 60 * k, service, *[total[service][0], 0, total[service][1]]))
    assert sum(m.rankings for m in minutes(records, 0)) == expected


@dataclass
class Clock:
    at: float = NOW

    def __call__(self) -> float:
        return self.at


def test_one_worker_of_a_service_writes_each_minute_and_all_workers_read_it(url: str, tmp_path: Path) -> None:
    async def write_two_minutes() -> list[Minute]:
        store, clock, metrics = Store(url, 5.0), Clock(), Metrics()
        one, other = (Timeline(store, metrics, clock) for _ in range(2))
        assert [await one.write(), await other.write()] == [True, False], (
            "the second of two workers finds the record written"
        )
        metrics.request("/v1/rank", 200, 0.003)
        clock.at += 60
        assert [await other.write(), await one.write()] == [True, False]
        result = await one.read(NOW - 3600)
        assert result == await other.read(NOW - 3600)
        await store.close()
        return result

    assert [m.rankings for m in asyncio.run(write_two_minutes())] == [1]


def test_records_of_another_version_are_skipped(url: str) -> None:
    async def read_other_versions() -> None:
        store = Store(url, 5.0)
        await store.run([["DEL", "sw:timeline"]])
        for field, content in (("l", b'{"at": "yesterday"}'), ("other", b"x")):
            await store.run([["XADD", "sw:timeline", "*", field, content]])
        assert await Timeline(store, Metrics(), Clock()).read(0) == []
        await store.close()

    asyncio.run(read_other_versions())
