"""Limits on the events of one shopper, at the door of the service."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Kind
from serving.config import ServiceConfig
from serving.records import event_limits
from serving.records.event_limits import EventLimits, Window
from serving.store import Event
from tests.serving.test_service import FAST, click, ready, refused, releases, served, url

__all__ = ["releases", "url"]
NOON = 1_700_000_000.0 // 86_400 * 86_400 + 43_200
LIMITS = {
    "shopper_events_per_minute": 6,
    "shopper_events_per_day": 9,
    "shopper_item_engagements_per_day": 2,
    "shopper_item_impressions_per_day": 4,
}


@pytest.fixture
def client(url: str, releases: list[Path]) -> Iterator[httpx.Client]:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
    with served(url, FAST.model_copy(update=LIMITS), releases[0], clock=lambda: NOON) as client:
        ready(client)
        yield client


def event(item: str, user: str = "u", kind: Kind = Kind.CLICK) -> Event:
    return Event("", kind, user, item, NOON)


def test_events_over_a_limit_are_refused_with_the_reason_and_counted(client: httpx.Client) -> None:
    """Two clicks on an item are accepted; the third is not, while another item and another shopper are unaffected."""
    sent = [click(event_id=f"{n}") for n in range(3)]
    answer = client.post("/v1/events", json=[*sent, click("blue-00"), click(user="v")]).json()
    why = "the limit of 2 engagements of one shopper with one item per day is reached"
    assert (answer["accepted"], answer["rejected"]) == (4, [{"index": 2, "field": "user_id", "message": why}])
    alone = client.post("/v1/events", json=click(event_id="4"))
    assert refused(alone, 429)["detail"] == why
    assert alone.headers["retry-after"] == "43200", "from noon to midnight"
    assert 'shelfwise_events_total{outcome="limited"} 2.0' in client.get("/metrics").text


def test_retries_of_stored_events_do_not_use_up_a_limit(client: httpx.Client) -> None:
    """The limit is two: one event sent five times leaves room for another one."""
    answers = [client.post("/v1/events", json=click(event_id=id_)).json() for id_ in "aaaaab"]
    assert [answer["accepted"] for answer in answers] == [1, 0, 0, 0, 0, 1]


def test_each_limit_ends_with_its_minute_or_day() -> None:
    """6 events in the first minute, 3 more in the second, and the next ones on the next day."""
    limits = EventLimits(ServiceConfig(**LIMITS))
    over = [limits.exceeded(event(f"item {n}"), NOON + n) for n in range(7)]
    assert over == [None] * 6 + [("6 events of one shopper per minute", 60 - 6)]
    over = [limits.exceeded(event(f"item {n}"), NOON + 60) for n in range(10, 14)]
    assert over == [None] * 3 + [("9 events of one shopper per day", 43_140)]
    assert limits.exceeded(event("item 99"), NOON + 43_200) is None


def test_impressions_of_an_item_have_a_limit_of_their_own() -> None:
    limits = EventLimits(ServiceConfig(**LIMITS))
    kinds = [Kind.IMPRESSION, Kind.CLICK, Kind.PURCHASE, Kind.IMPRESSION, Kind.CART]
    assert [limits.exceeded(event("a", kind=kind), NOON) is None for kind in kinds] == [True] * 4 + [False]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from("ab"), st.integers(0, 200)), max_size=60))
def test_no_shopper_has_more_events_in_a_period_than_its_limit(steps: list[tuple[str, str, int]]) -> None:
    limits, now = EventLimits(ServiceConfig(**LIMITS)), NOON
    in_minute, in_day, of_item = Counter[object](), Counter[object](), Counter[object]()
    for user, item, pause in steps:
        now += pause
        if limits.exceeded(event(item, user), now) is None:
            in_minute[user, now // 60] += 1
            in_day[user, now // 86_400] += 1
            of_item[user, item, now // 86_400] += 1
    assert [max(c.values(), default=0) <= most for c, most in ((in_minute, 6), (in_day, 9), (of_item, 2))] == [True] * 3


def test_the_memory_of_a_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many shoppers someone invents: at most 250 bytes per count that is kept."""
    monkeypatch.setattr(event_limits, "_KEPT", 10_000)
    window = Window(86_400, 5)
    tracemalloc.start()
    for n in range(30_000):
        key = hash(("shopper", n))
        assert window.has_room(key, NOON)
        window.add(key, 1)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 10_000 * 250


def test_without_limits_every_event_is_accepted() -> None:
    limits = EventLimits(ServiceConfig(**dict.fromkeys(LIMITS)))
    assert all(limits.exceeded(event("a"), NOON) is None for _ in range(2000))
