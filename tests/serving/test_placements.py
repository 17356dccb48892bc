"""Placements over HTTP: their sources, rules, length and exploration, and what is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import msgspec
import numpy as np
import pytest
import redis

from features.arrays import F64
from features.context import NO_CONTEXT
from features.log import Kind
from features.retrieval import SOURCES, Retrieved, retrieve
from serving.api import Problem, RecommendRequest
from serving.config import PlacementConfig, ServiceConfig, Source
from serving.ranking.live import prepare
from serving.ranking.placements import PlacementTable
from serving.ranking.retrieval import CandidateRetriever
from serving.records import Served, decode_served
from serving.release.manifest import ReleaseError
from serving.release.release import load_release
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_recommend import AT, IDS, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_rules import history
from tests.serving.test_service import FAST, ready, refused, served, until

PINNED = {"pin": [{"item_id": "red-05", "position": 1}]}
PLACED = ServiceConfig.model_validate(
    {
        **dict(FAST),
        "rules": {"filter": {"attribute": "brand", "eq": "x"}, **PINNED},
        "placements": {
            "home": {"sources": {"new": 1, "again": 3}, "limit": 3},
            "search": {"requires": ["query"]},
            "cart": {
                "rules": {
                    "filter": {"attribute": "category", "eq": "red"},
                    "boost": [{"when": {"attribute": "item_id", "eq": "red-15"}, "by": 100}],
                    "pin": [{"item_id": "red-07", "position": 1}],
                }
            },
        },
    }
)
OF_X = ["blue-00", "blue-02", "blue-08", "blue-10", "blue-16", "blue-18", "red-05", "red-07", "red-13", "red-15"]
"""The items of brand x, which is every other pair of items. blue-18 is on sale from tomorrow."""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items=shop(), model_text=planted_model(planted_items()))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Iterator[str]:
    """A store in which `u` clicked red-01 and red-05, and bought red-07."""
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url, BulkStore(url) as store:
        done = [("red-01", Kind.CLICK), ("red-05", Kind.CLICK), ("red-07", Kind.PURCHASE)]
        store.write([Event(f"e{k}", kind, "u", i, AT - 10 * k - 1) for k, (i, kind) in enumerate(done)], AT)
        store.set_pointer(Pointer(released.name, str(released)))
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with served(url, PLACED, clock=lambda: AT) as client:
        ready(client)
        yield client


def logged(url: str, request_id: str) -> Served:
    """The record of a list, once it is in the log."""
    with redis.Redis.from_url(url) as raw:

        def records() -> list[Served]:
            return [decode_served(fields[b"l"]) for _, fields in raw.xrange("sw:served")]

        until(lambda: any(r.request_id == request_id for r in records()))
        return next(r for r in records() if r.request_id == request_id)


def counted(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    found = [line.rsplit(" ", 1) for line in lines if line.startswith("shelfwise_placement_rankings_total")]
    return {name.partition("{")[2].removesuffix("}"): float(value) for name, value in found}


def test_sources_of_the_settings_are_those_of_retrieval() -> None:
    assert get_args(Source) == SOURCES


def test_a_placement_uses_its_sources_alone(client: httpx.Client) -> None:
    """Of `again` and `new` under the rule of brand x: two items of `u`, and the items on sale by their date."""
    answer = recommended(client, user_id="u", placement="home", limit=500)
    sources = {i["item_id"]: i["sources"] for i in answer["items"]}
    assert set(sources) == set(OF_X) - {"blue-18"}
    assert sources["red-05"] == sources["red-07"] == ["again", "new"]
    assert all(found == ["new"] for item, found in sources.items() if item not in ("red-05", "red-07"))
    everywhere = recommended(client, user_id="u", limit=500)
    assert {"text", "popular"} <= {name for i in everywhere["items"] for name in i["sources"]}


def test_the_shares_of_sources_are_their_turns(released: Path) -> None:
    """Turns are at (n + 1/2) / share: of `again` with share 3 at 1/6, 3/6, 5/6; of `new` with share 1 at 1/2 and 3/2.

    Equal turns are in the order of the sources, so the five candidates are: again, again, new, again, new.
    """
    items = load_release(released).items
    catalogue = items.catalogue
    clicked = history(*((IDS.index(i), Kind.CLICK, 0.0) for i in ("red-01", "red-03", "red-05")))
    shares = np.array([{"again": 3.0, "new": 1.0}.get(name, 0.0) for name in SOURCES])

    def found(size: int, shares: F64 | None) -> Retrieved:
        return asyncio.run(CandidateRetriever(items).candidates(clicked, AT, size, None, NO_CONTEXT, shares))

    sources = [SOURCES[k] for k in found(5, shares).source.tolist()]
    assert sources == ["again", "again", "new", "again", "new"]
    assert [catalogue.item_ids[row] for row in found(5, shares).item.tolist() if row < 10] == ["blue-00", "blue-02"]
    plain = retrieve(items, clicked, AT, 12)
    of_user = np.arange(len(SOURCES)) < 9
    assert [a.tolist() for a in found(12, None)] == [a.tolist() for a in plain]
    for equal in (1.0, 7.5):
        again = found(12, np.where(of_user, equal, 0.0))
        assert [a.tolist() for a in again] == [a.tolist() for a in plain]


def test_a_list_may_be_empty_if_its_sources_are(client: httpx.Client, url: str, released: Path) -> None:
    config = PLACED.model_copy(update={"placements": {"seen": PlacementConfig(sources={"again": 1.0})}})
    with served(url, config, released, clock=lambda: AT) as client:
        ready(client)
        assert ids(recommended(client, user_id="nobody", placement="seen", rules=unpinned())) == []


def test_the_length_is_that_of_the_request_or_of_the_placement_or_ten(client: httpx.Client) -> None:
    """`home` has 3. The nine items of brand x that are on sale are fewer than ten."""
    for route in ("recommend", "rank"):
        assert len(ids(recommended(client, route, user_id="u", placement="home"))) == 3
        assert len(ids(recommended(client, route, user_id="u", placement="home", limit=4))) == 4
    assert len(ids(recommended(client, "rank", user_id="u", placement="home", limit=None))) == 3
    assert len(ids(recommended(client, user_id="u"))) == 9
    assert len(ids(recommended(client, "rank", user_id="u", placement="cart"))) == 4


def test_rules_of_the_configuration_the_placement_and_the_request_apply_together(client: httpx.Client) -> None:
    """Filters add up; of pins to one position, that of the request counts, then that of the placement."""
    asked: dict[str, Any] = {"user_id": "u", "explain": True}
    plain = recommended(client, **asked)
    assert ids(plain)[1] == "red-05", "pinned by serving.rules"
    cart = recommended(client, placement="cart", **asked)
    assert set(ids(cart)) == {"red-05", "red-07", "red-13", "red-15"}
    assert ids(cart)[:2] == ["red-15", "red-07"], "boosted and pinned by the placement"
    applied = {i["item_id"]: [r["rule"] for r in i.get("rules", [])] for i in cart["items"]}
    assert applied["red-15"] == ["placements.cart.rules.boost[0]"]
    assert applied["red-07"] == ["placements.cart.rules.pin[0]"]
    own = {"pin": [{"item_id": "red-13", "position": 1}], "filter": {"not": {"attribute": "item_id", "eq": "red-07"}}}
    both = recommended(client, placement="cart", rules=own, **asked)
    assert ids(both)[:2] == ["red-15", "red-13"]
    assert set(ids(both)) == {"red-05", "red-13", "red-15"}
    ranked = recommended(client, "rank", placement="cart", candidates=IDS, **asked)
    assert ids(ranked)[:2] == ["red-15", "red-07"]
    assert [r["rule"] for r in ranked["removed"]] == ["serving.rules.filter", "placements.cart.rules.filter"]


def unpinned() -> dict[str, Any]:
    """Rules that move the pin of the configuration to the end, so that it adds no candidate to other lists."""
    return {"filter": {"not": {"attribute": "item_id", "eq": "red-05"}}}


@pytest.mark.parametrize("route", ["rank", "recommend"])
@pytest.mark.parametrize("name", ["kitchen", "Home", "home ", " ", "hom\u0000e", "../home", "home\n", "<b>"])
def test_an_unknown_placement_is_refused_with_the_known_ones(
    client: httpx.Client, url: str, route: str, name: str
) -> None:
    """Nothing is logged or counted under its name."""
    before = counted(client)
    problem = refused(client.post(f"/v1/{route}", json={"user_id": "u", "placement": name}), 422)
    assert (problem["field"], problem["type"].rpartition(":")[2]) == ("placement", "unknown-placement")
    assert problem["detail"] == f"{name!r} is not a placement; the placements are home, search, cart"
    assert counted(client) == before
    request_id = recommended(client, user_id="u")["request_id"]
    logged(url, request_id)
    with redis.Redis.from_url(url) as raw:
        records = [decode_served(fields[b"l"]) for _, fields in raw.xrange("sw:served")]
    assert name not in {r.placement for r in records}


@pytest.mark.parametrize(
    ("given", "message"), [("", "length >= 1"), ("x" * 65, "length <= 64"), (7, "got `int`"), (["home"], "got `array`")]
)
def test_a_placement_that_is_no_name_is_refused(client: httpx.Client, given: Any, message: str) -> None:
    problem = refused(client.post("/v1/recommend", json={"placement": given}), 422)
    assert problem["field"] == "placement"
    assert message in problem["detail"]


def test_without_placements_every_name_is_unknown() -> None:
    with pytest.raises(Problem) as error:
        PlacementTable({}).of(RecommendRequest(placement="home"))
    assert str(error.value) == "'home' is not a placement; none is configured"


def test_a_placement_that_requires_a_query_refuses_a_request_without_one(client: httpx.Client) -> None:
    for asked in ({}, {"query": ""}, {"query": "  "}):
        problem = refused(client.post("/v1/rank", json={"placement": "search", **asked}), 422)
        assert problem["field"] == "query"
        assert problem["detail"] == "placement 'search' requires a `query`, and the request has none"
    assert recommended(client, "rank", placement="search", query="red")["placement"] == "search"


def test_the_answer_the_log_and_the_metrics_carry_the_placement(client: httpx.Client, url: str) -> None:
    before = counted(client)
    answer = recommended(client, user_id="u", placement="home")
    assert answer["placement"] == "home"
    record = logged(url, answer["request_id"])
    assert (record.placement, record.item_ids) == ("home", ids(answer))
    assert counted(client) == before | {'placement="home"': before.get('placement="home"', 0.0) + 1}


def test_without_a_placement_the_bytes_are_those_of_a_service_without_placements(
    client: httpx.Client, url: str, released: Path
) -> None:
    """Apart from the request ID and the time taken; and the record of the list has no field for it."""
    requests: list[tuple[str, dict[str, Any]]] = [
        ("recommend", {"user_id": "u", "limit": 7, "explain": True}),
        ("recommend", {"user_id": "nobody", "query": "red"}),
        ("rank", {"user_id": "u", "candidates": IDS, "limit": 5}),
        ("rank", {"user_id": "u", "rules": {"cap": [{"attribute": "category", "most": 2}]}}),
    ]
    without = PLACED.model_copy(update={"placements": {}})
    with served(url, without, clock=lambda: AT) as plain:
        ready(plain)
        for route, request in requests:
            texts = []
            for one in (client, plain):
                answer = one.post(f"/v1/{route}", json=request)
                body = answer.json()
                changing = (f'"{body["request_id"]}"', f'"took_ms":{json.dumps(body["took_ms"])}')
                assert all(answer.text.count(part) == 1 for part in changing)
                texts.append(answer.text.replace(changing[0], "").replace(changing[1], ""))
                assert b"placement" not in msgspec.msgpack.encode(logged(url, body["request_id"]))
            assert texts[0] == texts[1]
            assert "placement" not in texts[0]


def test_a_placement_explores_at_its_own_share(url: str, released: Path) -> None:
    """With share 1, the middle items of a list are at their positions with probability 1 - 2/4; see `exploration`."""
    placements = {"calm": PlacementConfig(explore=0.0), "shaken": PlacementConfig(explore=1.0), "as usual": None}
    config = FAST.model_copy(
        update={"explore": 0.2, "placements": {name: p or PlacementConfig() for name, p in placements.items()}}
    )
    with served(url, config, released, clock=lambda: AT) as client:
        ready(client)
        expected = {"calm": None, "shaken": {0.5, 0.75, 0.25}, "as usual": {0.9, 0.95, 0.05}, None: {0.9, 0.95, 0.05}}
        for name, possible in expected.items():
            answer = recommended(client, user_id="u", limit=5, placement=name)
            found = logged(url, answer["request_id"]).propensities
            if possible is None:
                assert found is None
            else:
                assert found is not None
                assert set(found.round(9).tolist()) <= possible


def test_a_placement_holds_after_items_are_written(client: httpx.Client) -> None:
    """Rules are compiled again for the catalogue with the new item: it is red, and of brand y."""
    item = {"item_id": "red-new", "title": "red thing", "category": "red", "brand": "y"}
    assert client.put("/v1/items", json=item).status_code == 202
    until(lambda: client.get("/v1/items/red-new").json()["live"])
    asked = {"user_id": "u", "candidates": [*IDS, "red-new"]}
    assert set(ids(recommended(client, "rank", placement="cart", **asked))) == {"red-05", "red-07", "red-13", "red-15"}
    assert len(ids(recommended(client, "rank", placement="home", **asked))) == 3


def test_a_release_that_does_not_support_the_rules_of_a_placement_is_not_served(released: Path) -> None:
    unusable = PlacementConfig.model_validate({"rules": {"filter": {"attribute": "style", "has": "1"}}})
    with pytest.raises(ReleaseError, match=r"the configuration's placements\.home\.rules\.filter\.attribute: unknown"):
        prepare(released, None, placements={"home": unusable})
    assert prepare(released, None, placements={"home": PlacementConfig()}).placed == {"home": None}
