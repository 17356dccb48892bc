"""Recommendations over HTTP: their sources, rules and explanations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from features.catalogue import Catalogue
from features.history import EMPTY
from features.log import Kind
from features.moment import Items
from features.neighbours import Neighbours
from features.retrieval import SOURCES, retrieve
from serving.config import ServiceConfig
from serving.ranking.live import Live, prepare
from serving.ranking.retrieval import CandidateRetriever
from serving.release.manifest import ReleaseError
from serving.release.release import load_release
from serving.rules.rules import Rules
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_rules import history, rules
from tests.serving.test_service import FAST, ready, refused, served

DAY = 86400.0
AT = CUT_OFF + 100.0
IDS = list(planted_items().catalogue.item_ids)


def shop() -> Items:
    """Ten blue and ten red items of two brands. red-01 and red-03 co-occur; blue-18 is on sale from tomorrow."""
    items = planted_items()
    n = len(items.catalogue)
    brand = np.append(np.arange(n) // 2 % 2, 2).astype(np.int32)
    born = np.append(CUT_OFF - DAY * np.arange(1.0, n + 1), np.nan)
    born[IDS.index("blue-18")] = AT + DAY
    near = Neighbours.none(n, 3)
    near.item[IDS.index("red-01"), 0], near.weight[IDS.index("red-01"), 0] = IDS.index("red-03"), 0.5
    catalogue: Catalogue = replace(items.catalogue, brand=brand, brand_names=["x", "y"], available_from=born)
    return replace(items, catalogue=catalogue, neighbours=near)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items=shop(), model_text=planted_model(planted_items()))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str, released: Path) -> Iterator[httpx.Client]:
    """A service in which `u` clicked red-01 and red-05, and bought red-07."""
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        done = [("red-01", Kind.CLICK), ("red-05", Kind.CLICK), ("red-07", Kind.PURCHASE)]
        store.write([Event(f"e{k}", kind, "u", i, AT - 10 * k - 1) for k, (i, kind) in enumerate(done)], AT)
        store.set_pointer(Pointer(released.name, str(released)))
    with served(url, clock=lambda: AT) as client:
        ready(client)
        yield client


def recommended(client: httpx.Client, route: str = "recommend", **request: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/{route}", json=request)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def ids(answer: dict[str, Any]) -> list[str]:
    return [i["item_id"] for i in answer["items"]]


def test_recommendations_are_ranked_and_have_the_sources_of_each_item(client: httpx.Client) -> None:
    answer = recommended(client, user_id="u", limit=19)
    assert [i.split("-")[0] for i in ids(answer)] == ["red"] * 10 + ["blue"] * 9
    assert "blue-18" not in ids(answer), "an item on sale from tomorrow is not recommended"
    sources = {i["item_id"]: i["sources"] for i in answer["items"]}
    assert all(s and set(s) <= set(SOURCES) for s in sources.values())
    assert {"again", "text", "popular_in_category"} <= set(sources["red-01"])
    assert "co_occurrence" in sources["red-03"]
    assert "co_occurrence" not in sources["red-09"]
    assert "text" in sources["red-09"]
    assert set(sources["blue-00"]) <= {"text", "popular", "new"}
    assert "reasons" not in answer["items"][0]
    assert "removed" not in answer


def test_recommendations_are_the_ranking_of_the_candidates_retrieved_offline(
    client: httpx.Client, url: str, released: Path
) -> None:
    """The same candidates as a list rebuilt offline for that time, with the scores of /v1/rank."""
    live = Live.of(load_release(released))
    with BulkStore(url) as store:
        while (tail := store.tail(live.last)).item_ids:
            live.apply(tail)
        user_history = store.read("u", live.items.catalogue, AT)
    offline = retrieve(live.items, user_history, AT, FAST.retrieved)
    answer = recommended(client, user_id="u", limit=500)
    assert sorted(ids(answer)) == sorted(live.items.catalogue.item_ids[r] for r in offline.item.tolist())
    again = recommended(client, route="rank", user_id="u", candidates=ids(answer))
    assert [(i["item_id"], i["score"]) for i in again["items"]] == [(i["item_id"], i["score"]) for i in answer["items"]]


def test_retrieval_in_the_service_equals_retrieval_offline(released: Path) -> None:
    """For several sizes, users and times: items, order, first source and all sources."""
    items = load_release(released).items
    retriever = CandidateRetriever(items)
    for size, user_history, at in ((3, EMPTY, AT), (20, history((1, Kind.CLICK, 0)), AT + 2 * DAY), (7, history(), AT)):
        served_candidates = asyncio.run(retriever.candidates(user_history, at, size, None))
        expected = retrieve(items, user_history, at, size)
        assert [a.tolist() for a in served_candidates] == [a.tolist() for a in expected]


def test_an_item_that_becomes_popular_is_retrieved_within_two_seconds(released: Path) -> None:
    """After a hundred clicks on red-19, the candidates are unchanged; three seconds later, red-19 is the first."""
    items = load_release(released).items
    items = replace(items, state=items.state.copy())
    retriever = CandidateRetriever(items)
    before = asyncio.run(retriever.candidates(EMPTY, AT, 1, None)).item.tolist()
    row = IDS.index("red-19")
    assert before != [row]
    items.state.apply(np.full(100, row, np.int32), np.full(100, Kind.CLICK, np.int8), np.full(100, AT))
    assert asyncio.run(retriever.candidates(EMPTY, AT + 1, 1, None)).item.tolist() == before
    assert asyncio.run(retriever.candidates(EMPTY, AT + 3, 1, None)).item.tolist() == [row]


def test_items_that_match_a_query_are_retrieved_rank_first_and_say_so(client: httpx.Client) -> None:
    """For `u`, who likes red items; the model was trained on a log without queries."""
    answer = recommended(client, user_id="u", limit=12, explain=True, query="bleu thing")
    assert [i.split("-")[0] for i in ids(answer)] == ["blue"] * 9 + ["red"] * 3
    for item in answer["items"]:
        parts = item["base"] + sum(r["contribution"] for r in item["reasons"]) + item["others"]
        assert parts == pytest.approx(item["score"], abs=1e-9)
        (reason,) = [r for r in item["reasons"] if r["feature"] == "query"]
        matches = item["item_id"].startswith("blue")
        assert (reason["contribution"] > 0) == (reason["text"] == 'matches "bleu thing"')
        assert not matches or (reason["contribution"] > 0 and "query_words" in item["sources"])
    ranked = recommended(client, route="rank", user_id="u", limit=12, query="bleu thing")
    assert [i.split("-")[0] for i in ids(ranked)] == ["blue"] * 10 + ["red"] * 2
    assert (
        recommended(client, user_id="u", limit=12, query=" ?! ")["items"]
        == recommended(client, user_id="u", limit=12)["items"]
    )


def test_a_query_is_limited_in_length_and_may_not_contain_control_characters(client: httpx.Client) -> None:
    for route in ("recommend", "rank"):
        for query, message in (
            ("q" * 201, "Expected `str` of length <= 200"),
            ("a\u0000", "'a\\x00' contains a control"),
        ):
            document = refused(client.post(f"/v1/{route}", json={"query": query}), 422)
            assert document["field"] == "query"
            assert message in document["detail"]
        for query in ("q" * 200, "</script>'\";DROP TABLE", "\u202e\ufdfa" * 100, "%00{}", "  "):
            assert client.post(f"/v1/{route}", json={"query": query, "explain": True}).status_code == 200


def test_a_filter_is_applied_before_retrieval_by_query(client: httpx.Client) -> None:
    only = {"filter": {"attribute": "category", "eq": "red"}}
    answer = recommended(client, limit=20, query="blue", rules=only)
    assert len(ids(answer)) == 10
    assert all(i.startswith("red") for i in ids(answer))


def test_an_unknown_user_gets_popular_and_new_items(client: httpx.Client) -> None:
    for request in ({}, {"user_id": "nobody knows"}):
        answer = recommended(client, **request)
        assert len(answer["items"]) == 10
        assert {s for i in answer["items"] for s in i["sources"]} <= {"popular", "new"}
        assert answer["degraded"] is False


def test_without_redis_recommendations_use_only_the_release_and_are_degraded(released: Path) -> None:
    with served("redis://127.0.0.1:1", release=released, clock=lambda: AT) as client:
        ready(client)
        answer = recommended(client, user_id="u", rules={"exclude": [{"events": ["purchase"]}]})
        assert answer["degraded"] is True
        assert len(answer["items"]) == 10
        assert {s for i in answer["items"] for s in i["sources"]} <= {"popular", "new"}


def test_exclude_and_filter_hold_for_candidates_outside_the_catalogue(client: httpx.Client, url: str) -> None:
    """`v` bought gone-1 and was shown gone-2; neither is in the release, like gone-3."""
    with BulkStore(url) as store:
        done = [("gone-1", Kind.PURCHASE), ("gone-2", Kind.IMPRESSION)]
        store.write([Event(f"v{k}", kind, "v", i, AT - 10) for k, (i, kind) in enumerate(done)], AT)
    for given, left in (
        ({"exclude": [{"events": ["purchase"]}]}, {"gone-2", "gone-3", "red-01"}),
        ({"exclude": [{"events": ["purchase", "impression"]}]}, {"gone-3", "red-01"}),
        ({"filter": {"not": {"attribute": "item_id", "in": ["gone-3"]}}}, {"gone-1", "gone-2", "red-01"}),
    ):
        candidates = ["gone-1", "gone-2", "gone-3", "red-01"]
        answer = recommended(client, route="rank", user_id="v", candidates=candidates, limit=9, rules=given)
        assert set(ids(answer)) == left


def test_a_filter_is_applied_before_retrieval_so_the_list_is_full(client: httpx.Client) -> None:
    """Items similar to the user's are red, but with a filter for blue, all nine blue items on sale are returned."""
    answer = recommended(client, user_id="u", limit=9, rules={"filter": {"attribute": "category", "eq": "blue"}})
    assert [i.split("-")[0] for i in ids(answer)] == ["blue"] * 9
    small = recommended(
        client, user_id="u", limit=3, rules={"filter": {"attribute": "item_id", "in": ["blue-00", "x"]}}
    )
    assert ids(small) == ["blue-00"]


def test_purchased_items_are_excluded_by_a_rule(client: httpx.Client) -> None:
    rule = {"exclude": [{"events": ["purchase"]}]}
    assert "red-07" in ids(recommended(client, user_id="u", limit=19))
    assert "red-07" not in ids(recommended(client, user_id="u", limit=19, rules=rule))
    assert "red-07" not in ids(recommended(client, route="rank", user_id="u", rules=rule))


def test_a_pinned_item_is_included_even_if_no_source_retrieves_it(client: httpx.Client) -> None:
    """blue-18 is not on sale yet but pinned; a pinned item that the filter rejects is left out."""
    pins = [{"item_id": "blue-18", "position": 1}, {"item_id": "unheard of", "position": 0}]
    answer = recommended(client, user_id="u", limit=4, rules={"pin": pins})
    assert ids(answer)[1] == "blue-18"
    assert answer["items"][1]["sources"] == ["pin"]
    only_red = {"pin": pins, "filter": {"attribute": "hue", "has": "red"}}
    assert "blue-18" not in ids(recommended(client, user_id="u", limit=4, rules=only_red))


def test_the_parts_of_an_explanation_add_up_to_the_score(client: httpx.Client) -> None:
    """base + reasons + others + what rules added is the score, to 1e-9, on both routes."""
    some = {
        "boost": [{"when": {"attribute": "category", "eq": "blue"}, "by": 0.5}],
        "bury": [{"when": {"attribute": "price", "gt": 5}, "by": 0.25}],
    }
    for route in ("rank", "recommend"):
        for given in (None, some):
            answer = recommended(client, route=route, user_id="u", limit=19, explain=True, rules=given)
            assert len({i["base"] for i in answer["items"]}) == 1
            for item in answer["items"]:
                parts = [r["contribution"] for r in item.get("reasons", [])]
                rules_added = [r["added"] for r in item.get("rules", [])]
                total = item["base"] + sum(parts) + item["others"] + sum(rules_added)
                assert abs(total - item["score"]) < 1e-9
            assert any("rules" in i for i in answer["items"]) == (given is not None)


def test_every_rule_that_had_an_effect_is_explained(client: httpx.Client) -> None:
    given = {
        "filter": {"not": {"attribute": "item_id", "eq": "red-09"}},
        "cap": [{"attribute": "brand", "most": 3}],
        "boost": [{"when": {"attribute": "category", "eq": "blue"}, "by": 5}],
        "diversity": {"lambda": 0.2},
        "pin": [{"item_id": "red-01", "position": 0}],
    }
    answer = recommended(client, route="rank", user_id="u", explain=True, rules=given)
    assert [(r["rule"], r["count"]) for r in answer["removed"]] == [("rules.filter", 1), ("rules.cap[0]", 13)]
    assert answer["removed"][0]["item_ids"] == ["red-09"]
    assert len(answer["items"]) == 20 - 1 - 13
    first = answer["items"][0]
    assert (first["item_id"], first["rules"][-1]["rule"]) == ("red-01", "rules.pin[0]")
    applied = {r["rule"] for i in answer["items"] for r in i.get("rules", [])}
    assert applied >= {"rules.boost[0]", "rules.pin[0]"}
    plain = recommended(client, route="rank", user_id="u", rules=given)
    assert ids(plain) == ids(answer)
    assert "removed" not in plain
    assert set(plain["items"][0]) == {"item_id", "score"}


BAD: list[tuple[Any, int, str | None, str]] = [
    (
        {"filter": {"attribute": "colour", "eq": "red"}},
        422,
        "rules.filter.attribute",
        "unknown attribute 'colour'; the attributes are "
        "item_id, hue, net weight, category, brand, price, available_from",
    ),
    (
        {"filter": {"attribute": "price", "lte": "cheap"}},
        422,
        "rules.filter.lte",
        "'price' is a number, but 'cheap' is text",
    ),
    ({"filter": {"attribute": "price", "like": "x"}}, 422, "rules.filter.like", "Object contains unknown field `like`"),
    (
        {"filter": {"attribute": "price", "lte": True}},
        422,
        "rules.filter.lte",
        "Expected `float | str | null`, got `bool`",
    ),
    ({"filter": "price < 5"}, 422, "rules.filter", "Expected `object | null`, got `str`"),
    ({"filter": {"all": []}}, 422, "rules.filter.all", "Expected `array` of length >= 1"),
    (
        {"boost": [{"when": {"attribute": "price", "lt": 5}, "by": -1}]},
        422,
        "rules.boost[0].by",
        "Expected `float` > 0",
    ),
    ({"boost": [{"when": {"attribute": "price", "lt": 5}, "by": 1e999}]}, 400, None, "JSON is malformed"),
    (
        {"cap": [{"attribute": "price", "most": 2}]},
        422,
        "rules.cap[0].attribute",
        "'price' is a number; use a text attribute: hue, category, brand",
    ),
    ({"cap": [{"attribute": "brand", "most": 1}] * 9}, 422, "rules.cap", "Expected `array` of length <= 8"),
    ({"exclude": [{"events": ["bought"]}]}, 422, "rules.exclude[0].events[0]", "Invalid enum value 'bought'"),
    ({"diversity": {"lambda": 1.5}}, 422, "rules.diversity.lambda", "Expected `float` <= 1.0"),
    ({"pin": [{"item_id": "a", "position": -1}]}, 422, "rules.pin[0].position", "Expected `int` >= 0"),
    ({"eval": "__import__('os')"}, 422, "rules.eval", "Object contains unknown field `eval`"),
]


@pytest.mark.parametrize(("bad", "status", "field", "why"), BAD)
@pytest.mark.parametrize("route", ["rank", "recommend"])
def test_an_invalid_rule_is_refused_by_its_path(
    client: httpx.Client, route: str, bad: Any, status: int, field: str | None, why: str
) -> None:
    answer = client.post(f"/v1/{route}", content=json.dumps({"rules": bad}))
    document = refused(answer, status)
    assert (document.get("field"), document["detail"][: len(why)]) == (field, why)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"candidates": ["a"]}, "candidates"),
        ({"user_id": "a\u0000"}, "user_id"),
        ({"rules": []}, "rules"),
    ],
)
def test_an_invalid_field_of_a_recommendation_is_named(client: httpx.Client, body: Any, field: str) -> None:
    assert refused(client.post("/v1/recommend", json=body), 422)["field"] == field


def test_conditions_nested_too_deeply_are_refused(client: httpx.Client) -> None:
    for depth in (9, 200, 50_000):
        body = '{"rules": {"filter": ' + '{"not": ' * depth + '{"attribute": "price", "lt": 1}' + "}" * (depth + 2)
        for route in ("rank", "recommend"):
            answer = client.post(f"/v1/{route}", content=body)
            assert answer.status_code in (400, 422)
            assert "deep" in answer.json()["detail"]


def test_configured_rules_apply_to_every_list(url: str, released: Path) -> None:
    config = ServiceConfig.model_validate(
        FAST.model_dump()
        | {"rules": {"filter": {"attribute": "hue", "has": "blue"}, "cap": [{"attribute": "brand", "most": 2}]}}
    )
    with served(url, config, released, clock=lambda: AT) as client:
        ready(client)
        for route in ("rank", "recommend"):
            answer = recommended(client, route=route, user_id="u", explain=True)
            assert len(answer["items"]) == 4, "two brands, two items each"
            assert all(i.startswith("blue") for i in ids(answer))
            assert {r["rule"] for r in answer["removed"]} == {"serving.rules.filter", "serving.rules.cap[0]"}


def test_a_release_that_does_not_support_the_configured_rules_is_not_served(released: Path) -> None:
    with pytest.raises(
        ReleaseError, match=r"the configuration's serving\.rules\.filter\.attribute: unknown attribute 'style'"
    ):
        prepare(released, None, rules=rules(filter={"attribute": "style", "has": "1"}))
    assert prepare(released, None, rules=Rules()).standing is None


def test_the_openapi_document_describes_rules_as_they_are_decoded(client: httpx.Client) -> None:
    schema = client.get("/openapi.json").json()
    forms = schema["components"]["schemas"]
    assert set(forms["Rules"]["properties"]) == {"filter", "exclude", "boost", "bury", "cap", "diversity", "pin"}
    assert {"all", "any", "not", "in", "missing"} <= set(forms["Condition"]["properties"])
    assert "lambda" in forms["Diversity"]["properties"]
    assert forms["RecommendRequest"]["additionalProperties"] is False
    body = schema["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/RecommendRequest"}
