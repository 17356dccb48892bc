"""The placement of events: sent with them or as GA4's list ID, refused if it is no name, and collected with the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.log import Kind
from offline.data import LogFiles, collect
from offline.data.schema import EVENTS_SCHEMA, PLACEMENT, SERVED_SCHEMA
from serving.api.events import Accepted, accept
from serving.config import PlacementConfig
from serving.store import BulkStore, decode_event
from serving.store.stream import encode_event
from tests.offline.data.test_collection import data, store
from tests.serving.test_placements import logged
from tests.serving.test_release import CUT_OFF
from tests.serving.test_service import FAST, click, client, ready, releases, running, served, url

__all__ = ["client", "data", "releases", "running", "store", "url"]


def accepted(body: dict[str, Any]) -> list[Accepted]:
    """The events of a body; all are valid."""
    found = accept(msgspec.Raw(json.dumps(body).encode()), CUT_OFF, 60)
    assert all(isinstance(one, Accepted) for one in found), found
    return [one for one in found if isinstance(one, Accepted)]


def ga4(name: str, params: dict[str, Any], *items: dict[str, Any]) -> dict[str, Any]:
    """A Measurement Protocol body with one event."""
    event = {"name": name, "params": {**params, "items": [{"item_id": "red-01"} | item for item in items]}}
    return {"client_id": "c", "timestamp_micros": int(CUT_OFF * 1e6) - 10**6, "events": [event]}


@pytest.mark.parametrize("name", ["home", "below the basket", "Start/été", "x" * 64, "<b>", "'; --"])
def test_an_event_keeps_its_placement_by_any_name(client: httpx.Client, url: str, name: str) -> None:
    """Events are facts: the placement of a list that was shown may have been renamed or removed since."""
    answer = client.post("/v1/events", json=click(placement=name))
    assert answer.status_code == 202, answer.text
    with BulkStore(url) as store:
        (event,) = store.events()[1]
    assert event.placement == name
    assert decode_event(encode_event(event)) == event


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "length >= 1"),
        ("x" * 65, "length <= 64"),
        (" home", "without control characters or white space around it"),
        ("home\n", "without control characters or white space around it"),
        ("ho\u0000me", "without control characters or white space around it"),
        ("\u00a0", "without control characters or white space around it"),
        (3, "got `int`"),
        ({"name": "home"}, "got `object`"),
    ],
)
def test_an_event_with_another_placement_is_refused_and_the_others_are_not(
    client: httpx.Client, given: Any, message: str
) -> None:
    answer = client.post("/v1/events", json=[click(placement=given), click("red-03")]).json()
    assert answer["accepted"] == 1
    (rejected,) = answer["rejected"]
    assert (rejected["index"], rejected["field"], message in rejected["message"]) == (0, "placement", True), rejected


def test_a_derived_id_depends_on_the_placement_only_if_the_event_names_one() -> None:
    """Views of an item on two shelves in the same second are two events, and an event without one has its old ID."""
    view = {"event": "view", "user_id": "u", "item_id": "i", "timestamp": CUT_OFF - 5}
    views = (view | {"placement": "home"}, view | {"placement": "cart"}, view)
    home, cart, none = (accepted(body)[0].event.event_id for body in views)
    assert len({home, cart, none}) == 3
    assert none == "derived-" + OLD_ID


OLD_ID = "786ee7d2612a78be8f2742f7"
"""The ID that versions without placements derive for this view."""


def test_the_list_of_a_ga4_event_is_its_placement() -> None:
    """The list of an item counts before that of its event."""
    body = ga4("view_item_list", {"item_list_id": "home"}, {}, {"item_id": "red-03", "item_list_id": "cart"})
    assert [one.event.placement for one in accepted(body)] == ["home", "cart"]
    for name in ("select_item", "add_to_cart", "purchase", "view_item"):
        assert [one.event.placement for one in accepted(ga4(name, {"item_list_id": " home "}, {}))] == ["home"]
        assert [one.event.placement for one in accepted(ga4(name, {}, {}))] == [None]


@pytest.mark.parametrize("list_id", ["", "  ", "x" * 65, "a\u0000b", "(not set)", "undefined", "null"])
def test_a_ga4_list_that_is_no_name_costs_the_placement_and_not_the_event(list_id: str) -> None:
    (one,) = accepted(ga4("select_item", {"item_list_id": list_id}, {}))
    assert (one.event.placement, one.event.kind) == (None, Kind.CLICK)


def test_a_ga4_event_has_the_id_that_it_would_have_without_a_list() -> None:
    """So that a body that is sent again after an upgrade counts once. Of impressions, the list is in the request ID."""
    with_list, without = (accepted(ga4("select_item", more, {}))[0] for more in ({"item_list_id": "home"}, {}))
    assert with_list.event.event_id == without.event.event_id
    assert msgspec.structs.replace(with_list.event, placement=None) == without.event


def test_an_event_without_a_placement_has_no_field_for_it_in_the_stream(client: httpx.Client, url: str) -> None:
    client.post("/v1/events", json=click())
    with BulkStore(url) as store:
        (event,) = store.events()[1]
    assert b"placement" not in encode_event(event)


def schemas(data: Path) -> dict[Path, pa.Schema]:
    """The schemas of the files of events and then of lists, by path."""
    paths = (path for name in ("events", "served") for path in sorted((data / name).glob("date=*/*.parquet")))
    return {path: pq.read_schema(path) for path in paths}


def test_collected_files_have_a_column_of_placements_only_if_a_row_has_one(
    releases: list[Path], url: str, store: BulkStore, data: Path
) -> None:
    """First two events and a list without, then with: files of both kinds are read together."""
    config = FAST.model_copy(update={"placements": {"home": PlacementConfig()}})
    with served(url, config, releases[0]) as client:
        ready(client)
        client.post("/v1/events", json=[click(event_id="e1"), click(event_id="e2")])
        first = client.post("/v1/rank", json={"user_id": "u", "limit": 2}).json()["request_id"]
        logged(url, first)
        assert collect(data, store)[:2] == (2, 1)
        before = schemas(data)
        assert list(before.values()) == [EVENTS_SCHEMA, SERVED_SCHEMA]
        client.post("/v1/events", json=[click(event_id="e3", placement="home"), click(event_id="e4")])
        second = client.post("/v1/rank", json={"user_id": "u", "limit": 2, "placement": "home"}).json()["request_id"]
        logged(url, second)
        assert collect(data, store)[:2] == (2, 1)
    later = [schema for path, schema in schemas(data).items() if path not in before]
    assert later == [EVENTS_SCHEMA.append(PLACEMENT), SERVED_SCHEMA.append(PLACEMENT)]
    files = LogFiles.of(data)
    lists = files.read_served(("request_id", "placement")).to_pylist()
    assert {row["request_id"]: row["placement"] for row in lists} == {first: None, second: "home"}
    events = pa.concat_tables(files.events.spans(("event_id", "timestamp", "placement")), promote_options="default")
    placed = {row["event_id"]: row["placement"] for row in events.to_pylist()}
    assert placed == {"e1": None, "e2": None, "e3": "home", "e4": None}
