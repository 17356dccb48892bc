"""Whatever the service accepts goes through collection and the next nightly run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from offline.config.configuration import Config
from offline.data.collection import collect
from offline.data.dataset import load_dataset
from offline.nightly.night import Night
from offline.runtime.errors import ApprovalNeeded, ReleaseKept
from offline.simulation.dataset import simulate
from serving.release import list_releases
from serving.store import BulkStore
from serving.store.embedded import connect_url
from tests.offline.nightly.test_night_failures import END, SHOP, clock, configured, night_of
from tests.serving.test_service import FAST, ready, served

pytestmark = pytest.mark.nights

NASTY_IDS = [
    "undefined",
    " p1 ",
    "p1",
    "e\u0301",
    "é",
    "é" * 128,
    "x" * 256,
    "[object Object]",
    "nan",
    "-1",
    "1e9",
    "a/b?c#d",
]
NASTY_TIMES: list[Any] = [
    "0001-01-01T00:00:00+23:59",
    "9999-12-31",
    "9999-12-31T23:59:59-23:59",
    "1699-12-31",
    "1700-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z",
    "1970-01-01",
    "2024-05-31T12:00:00",
    "2199-12-31",
    9999999999,
    1717236000,
    1717236000000,
    0,
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["", " ", "\u0000", "x" * 2000])
ids = st.sampled_from(NASTY_IDS) | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
numbers = st.sampled_from([0, -1, -0.0, 1e15, 1e16, 1e300, 5e-324, 2**53 + 1]) | st.floats(
    allow_nan=False, allow_infinity=False
)
values = st.none() | st.booleans() | numbers | texts | st.lists(texts, max_size=3) | st.sampled_from(NASTY_TIMES)


EVENT_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "user_id": ids,
    "item_id": ids,
    "timestamp": st.sampled_from(NASTY_TIMES) | numbers,
    "value": numbers,
    "position": st.integers(-1, 40_000),
    "request_id": ids,
    "session_id": ids,
    "event_id": ids,
    "device": texts,
    "query": texts,
}
NAMES = st.sampled_from(["item_id", "title", "embedding", "colour", "weight", "style", "tags", "at", " ", "x"])
ITEM_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "item_id": ids,
    "title": st.none() | texts,
    "description": st.none() | texts,
    "category": st.none() | texts,
    "brand": st.none() | texts,
    "price": st.none() | numbers,
    "available": st.booleans(),
    "available_from": st.none() | st.sampled_from(NASTY_TIMES) | numbers,
    "attributes": st.dictionaries(NAMES | texts, values, max_size=2),
}


@st.composite
def hostile(draw: st.DrawFn, base: dict[str, Any], fields: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A valid body with up to three hostile fields."""
    names = draw(st.sets(st.sampled_from(sorted(fields)), max_size=3))
    return base | {name: draw(fields[name]) for name in sorted(names)}


def events(item_ids: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    kinds = st.sampled_from(["impression", "view", "click", "cart", "purchase", "rating"])
    known = st.tuples(kinds, st.sampled_from(["u1", "u2"]), st.sampled_from(item_ids))
    return known.flatmap(lambda k: hostile({"event": k[0], "user_id": k[1], "item_id": k[2]}, EVENT_FIELDS))


def items(item_ids: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.sampled_from(item_ids).flatmap(lambda i: hostile({"item_id": i}, ITEM_FIELDS))


@pytest.fixture
def shop(tmp_path: Path) -> Config:
    simulate(SHOP, tmp_path / "data")
    return configured(tmp_path)


@pytest.fixture
def url(shop: Config) -> Iterator[str]:
    with connect_url(None, shop.embedded) as url:
        yield url


def test_accepted_events_and_items_pass_through_collection_and_a_nightly_run(shop: Config, url: str) -> None:
    """Every example is sent by HTTP. The run after it ends with a release, which the gate may keep back."""
    night_of(shop, url, until=END.timestamp() - 2 * 86400)()
    known = list(load_dataset(shop.data).catalogue.item_ids)[:20]
    accepted = {"events": 0, "items": 0}
    with served(url, FAST, clock=clock) as client:
        ready(client)

        @settings(
            max_examples=300,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.lists(events(known), max_size=8), st.lists(items(known), max_size=4), ids)
        def send(some_events: list[dict[str, Any]], some_items: list[dict[str, Any]], withdrawn: str) -> None:
            for kind, answer in (
                ("events", client.post("/v1/events", json=some_events)),
                ("items", client.put("/v1/items", json=some_items)),
            ):
                assert answer.status_code in (200, 202, 422), answer.text
                accepted[kind] += answer.json().get("accepted", 0)
            answer = client.delete(f"/v1/items/{quote(withdrawn, safe='')}")
            assert answer.status_code in (202, 404, 405, 422), answer.text

        send()
    assert accepted["events"] > 100
    assert accepted["items"] > 50
    with BulkStore(url) as store:
        collected = collect(shop.data, store, shop.releases)
    assert collected.events == accepted["events"]
    with suppress(ReleaseKept, ApprovalNeeded):  # the gate may keep the first release: these clicks are noise
        Night(shop, url, clock=clock)()
    item_ids = load_dataset(shop.data).catalogue.item_ids
    assert len(set(item_ids)) == len(item_ids) > SHOP.items
    assert len(list_releases(shop.releases)) == 2
