"""Forms of event bodies: one event, an array, JSON lines, or GA4; each event is accepted or rejected individually."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Kind
from serving.api.decoding import split_body
from serving.api.events import Accepted, accept
from serving.api.problem import Problem
from serving.store import BulkStore, Event
from tests.serving.test_guard import counted
from tests.serving.test_release import CUT_OFF
from tests.serving.test_service import FAST, clear, click, client, refused, releases, running, served, url

__all__ = ["client", "releases", "running", "url"]
LINES = {"Content-Type": "application/x-ndjson"}


def lines(*events: Any) -> bytes:
    return b"\n".join(e if isinstance(e, bytes) else json.dumps(e).encode() for e in events)


def test_json_lines_are_detected_by_content_type_or_form(client: httpx.Client) -> None:
    """Blank lines and both kinds of line ends are allowed."""
    for n, headers in enumerate((LINES, {}, {"Content-Type": "application/jsonl; charset=utf-8"})):
        body = lines(click(event_id=f"{n}a"), b"", click(event_id=f"{n}b")) + b"\r\n\r\n"
        answer = client.post("/v1/events", content=body, headers=headers)
        assert (answer.status_code, answer.json()["accepted"]) == (202, 2)
    one = client.post("/v1/events", content=lines(click(event_id="alone")), headers=LINES).json()
    assert one["accepted"] == 1
    pretty = client.post("/v1/events", content=json.dumps(click(), indent=1)).json()
    assert pretty["accepted"] == 1, "an object spread over several lines is one event"


def test_an_invalid_line_does_not_affect_the_others(client: httpx.Client) -> None:
    body = lines(click(), b'{"event": "click", "user', click(7), click("red-03"))
    answer = client.post("/v1/events", content=body, headers=LINES).json()
    assert answer["accepted"] == 2
    assert [(r["index"], r["field"], r["message"]) for r in answer["rejected"]] == [
        (1, None, "Input data was truncated"),
        (2, "item_id", "Expected `str`, got `int`"),
    ]


def test_a_body_with_too_many_lines_is_refused_as_a_whole(client: httpx.Client) -> None:
    document = refused(client.post("/v1/events", content=lines(*[click()] * 1001), headers=LINES), 413)
    assert document["detail"] == "1001 events in one request; the maximum is 1000"


GA4 = {
    "client_id": "c",
    "user_id": "u",
    "timestamp_micros": 1_700_000_000_000_000,
    "device": {"category": "mobile"},
    "non_personalized_ads": False,
    "events": [
        {
            "name": "view_item_list",
            "params": {
                "item_list_id": "home",
                "session_id": 7,
                "search_term": "red",
                "currency": "EUR",
                "items": [{"item_id": "red-01", "index": 4, "price": 3}, {"item_id": "blue-00"}],
            },
        },
        {"name": "purchase", "params": {"transaction_id": "T1", "items": [{"item_id": "red-01", "quantity": 2}]}},
    ],
}


def test_each_item_of_a_ga4_body_is_an_event(client: httpx.Client, url: str) -> None:
    """The request id is built from shopper, time and list; the position is `index`, or the position in `items`.

    The list is the placement.
    """
    answer = client.post("/v1/events", json=GA4).json()
    assert (answer["accepted"], answer["rejected"]) == (3, [])
    with BulkStore(url) as store:
        events = store.events()[1]
    at, request = 1_700_000_000.0, "u:1700000000000000:home"
    shown = [("red-01", 4), ("blue-00", 1)]
    for event, (item, position) in zip(events, shown, strict=False):
        assert event == Event(
            event.event_id, Kind.IMPRESSION, "u", item, at, request, position, None, "7", "mobile", "red", None, "home"
        )
    assert events[2] == Event("T1:red-01", Kind.PURCHASE, "u", "red-01", at, None, None, 2.0, None, "mobile")
    again = client.post("/v1/events", json=[GA4, click()]).json()
    assert (again["accepted"], again["duplicates"]) == (1, 3)


def test_a_ga4_body_may_write_numbers_as_texts_and_name_positions_as_exports_do(client: httpx.Client, url: str) -> None:
    """BigQuery and tag managers write 64-bit numbers as texts; `item_list_index` is `index` in an export."""
    items = [{"item_id": "red-01", "item_list_index": "2"}, {"item_id": "blue-00", "item_list_index": 1}]
    shown = {"name": "view_item_list", "params": {"items": items}}
    body = {"user_id": "u", "timestamp_micros": "1700000000000000", "events": [shown]}
    assert client.post("/v1/events", json=body).json()["rejected"] == []
    with BulkStore(url) as store:
        events = store.events()[1]
    assert [(e.item_id, e.position, e.at) for e in events] == [
        ("red-01", 2, 1_700_000_000.0),
        ("blue-00", 1, 1_700_000_000.0),
    ]


def test_a_rejected_ga4_item_is_named_by_its_path(client: httpx.Client) -> None:
    """`index` is the part of the request, `field` the path within it."""
    events = [
        {"name": "select_item", "params": {"items": [{"item_id": "red-01"}, {"item_id": ""}]}},
        {"name": "scroll", "params": {"items": [{"item_id": "red-01"}]}},
    ]
    answer = client.post("/v1/events", json=[click(), GA4 | {"events": events}]).json()
    assert answer["accepted"] == 2
    assert [(r["index"], r["field"]) for r in answer["rejected"]] == [
        (1, "events[0].params.items[1].item_id"),
        (1, "events[1].params.items[0].event"),
    ]
    document = refused(client.post("/v1/events", json={"events": [{"name": "view_item", "params": {}}]}), 422)
    assert document["field"] == "events[0].params.items"


def test_ga4_items_count_towards_the_limit(client: httpx.Client) -> None:
    many = {"name": "view_item", "params": {"items": [{"item_id": "red-01"}] * 200}}
    document = refused(client.post("/v1/events", json=GA4 | {"events": [many] * 6}), 413)
    assert document["detail"] == "1200 events in one request; the maximum is 1000"


def test_events_of_new_users_are_refused_at_the_maximum_and_counted(url: str, releases: list[Path]) -> None:
    """Known users are not affected. If every event is refused, the answer is 503, so that clients send it again."""
    clear(url)
    with served(url, FAST.model_copy(update={"max_users": 1}), releases[0]) as client:
        answer = client.post("/v1/events", json=[click(), click(user_id="second", event_id="x")]).json()
        assert (answer["accepted"], [(r["index"], r["field"]) for r in answer["rejected"]]) == (1, [(1, "user_id")])
        assert answer["rejected"][0]["message"] == (
            "the maximum of 1 users have lists; send this user's events again later"
        )
        response = client.post("/v1/events", json=click(user_id="second", event_id="x"))
        assert refused(response, 503)["title"] == "Too many users"
        assert response.headers["retry-after"] == "30"
        assert client.post("/v1/events", json=click()).json()["accepted"] == 1
        assert counted(client)["shelfwise_events_total", "refused"] == 2


@settings(max_examples=80, deadline=None)
@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["events", "name", "params", "items", "user_id"]), inner)
        ),
        max_leaves=12,
    ).map(lambda v: json.dumps(v).encode())
)
def test_any_body_is_accepted_or_refused_with_a_reason(body: bytes) -> None:
    for content_type in ("", "application/x-ndjson"):
        with contextlib.suppress(Problem):
            for part in split_body(body, 1000, content_type):
                assert all(isinstance(f, Accepted) or f.message for f in accept(part, CUT_OFF, 60))


@pytest.mark.parametrize("body", [b"", b" \n ", b"\n"])
def test_an_empty_body_of_json_lines_has_no_events(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/v1/events", content=body, headers=LINES)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 0)
