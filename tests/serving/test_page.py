"""Pages over HTTP: the lists of several placements in one answer, without repeats, each as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Kind
from serving.api import PageRequest, Problem, RecommendRequest
from serving.api.page import LISTS, PageList, page_request
from serving.config import ServiceConfig
from serving.ranking import Service
from serving.ranking.live import Live
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_placements import logged
from tests.serving.test_recommend import AT, DAY, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, refused, served, until
from tests.serving.test_variants import CUP, GROUP_OF, SHIRT, grouped

CONFIG = ServiceConfig.model_validate(
    {
        **dict(FAST),
        "placements": {
            "home": {"limit": 4},
            "more": {"limit": 6},
            "new": {"sources": {"new": 1}, "limit": 5},
            "again": {"sources": {"again": 1}},
            "red": {
                "rules": {
                    "filter": {"attribute": "category", "eq": "red"},
                    "pin": [{"item_id": "red-05", "position": 0}],
                }
            },
            "sizes": {"variants": {"keep": "all"}, "limit": 20},
            "search": {"requires": ["query"]},
            "explored": {"explore": 1.0, "limit": 4},
        },
    }
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(
        tmp_path_factory.mktemp("releases"), items=grouped(shop()), model_text=planted_model(planted_items())
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Iterator[str]:
    """A store in which `u` clicked red-01 and red-07, and `buyer` bought red-03 two days ago."""
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url, BulkStore(url) as store:
        done = [
            ("u", "red-01", Kind.CLICK, 10),
            ("u", "red-07", Kind.CLICK, 20),
            ("buyer", "red-03", Kind.PURCHASE, 2 * DAY),
        ]
        store.write([Event(f"e{k}", kind, u, i, AT - s) for k, (u, i, kind, s) in enumerate(done)], AT)
        store.set_pointer(Pointer(released.name, str(released)))
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with served(url, CONFIG, clock=lambda: AT) as client:
        ready(client)
        yield client


def page_of(client: httpx.Client, *names: str, **request: Any) -> dict[str, Any]:
    return recommended(client, "page", placements=[{"placement": name} for name in names], **request)


def product(item: str) -> str:
    return GROUP_OF.get(item, item)


def test_the_first_list_of_a_page_is_that_of_its_placement_alone(client: httpx.Client) -> None:
    for name in ("home", "new", "red"):
        first = page_of(client, name, "more", user_id="u", shown=False)["lists"][0]
        alone = recommended(client, user_id="u", placement=name, shown=False)
        assert [first["items"], first["placement"]] == [alone["items"], alone["placement"]]


def test_a_later_list_is_that_of_its_placement_without_the_products_before_it(client: httpx.Client) -> None:
    lists = page_of(client, "home", "more", "new", user_id="u", shown=False)["lists"]
    before = set(map(product, ids(lists[0])))
    for one in lists[1:]:
        alone = recommended(client, user_id="u", placement=one["placement"], limit=500, shown=False)
        left = [(i["item_id"], i["score"]) for i in alone["items"] if product(i["item_id"]) not in before]
        assert [(i["item_id"], i["score"]) for i in one["items"]] == left[: len(one["items"])]
        before |= set(map(product, ids(one)))
    assert [len(one["items"]) for one in lists] == [4, 6, 5], "19 items on sale of 16 products"


def test_a_list_of_all_variants_leaves_out_only_the_items_before_it(client: httpx.Client) -> None:
    first, sizes = page_of(client, "home", "sizes", user_id="u")["lists"]
    assert set(ids(first)) & set(SHIRT), "the shopper clicked a shirt"
    assert (set(SHIRT) | set(CUP)) - set(ids(first)) <= set(ids(sizes))


def test_a_pin_does_not_repeat_an_item_of_an_earlier_list(client: httpx.Client) -> None:
    answer = page_of(client, "red", "red", user_id="u", explain=True)["lists"]
    assert ids(answer[0])[0] == "red-05"
    assert "red-05" not in ids(answer[1])
    assert {r["rule"]: r["count"] for r in answer[1]["removed"]}["page"] >= len(ids(answer[0]))


def test_lists_have_request_ids_of_their_own_in_the_log(client: httpx.Client, url: str) -> None:
    answer = client.post("/v1/page", json={"user_id": "u", "placements": [{"placement": "home"}, {"placement": "new"}]})
    lists = answer.json()["lists"]
    found = [one["request_id"] for one in lists]
    assert len({*found, answer.headers["X-Request-ID"]}) == 3
    for one in lists:
        record = logged(url, one["request_id"])
        assert (record.placement, record.item_ids, record.route) == (one["placement"], ids(one), "recommend")


def test_a_list_of_a_page_is_explored_as_its_placement_says(client: httpx.Client, url: str) -> None:
    _, explored = page_of(client, "home", "explored", user_id="u")["lists"]
    assert logged(url, explored["request_id"]).propensities is not None


def test_the_user_is_read_once_and_equal_lists_are_scored_once(
    url: str, released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three lists of all sources have the same candidates; `new` has its own."""
    count = {"read": 0, "ranked": 0}
    known_of, rank = Service.known_of, Live.rank

    async def counting(self: Service, *given: Any) -> Any:
        count["read"] += 1
        return await known_of(self, *given)

    def ranking(self: Live, *given: Any) -> Any:
        count["ranked"] += 1
        return rank(self, *given)

    with served(url, CONFIG, released, clock=lambda: AT) as client:
        ready(client)
        monkeypatch.setattr(Service, "known_of", counting)
        monkeypatch.setattr(Live, "rank", ranking)
        page_of(client, "home", "more", "new", "explored", user_id="u")
    assert count == {"read": 1, "ranked": 2}


def test_an_invalid_list_refuses_the_page_and_is_named(client: httpx.Client) -> None:
    def field(*lists: dict[str, Any], **request: Any) -> Any:
        body = {"placements": [{"placement": "home"}, *lists], **request}
        return refused(client.post("/v1/page", json=body), 422).get("field")

    assert field({"placement": "kitchen"}) == "placements[1].placement"
    assert field({"placement": "new"}, {"placement": "search"}) == "placements[2].query"
    assert field({"placement": "new", "limit": 0}) == "placements[1].limit"
    assert field({"limit": 3}) == "placements[1].placement"
    assert field({"placement": "new", "rules": {"cap": [{"attribute": "none", "most": 1}]}}) == (
        "placements[1].rules.cap[0].attribute"
    )
    assert field({"placement": "new", "query": "a\u0000"}) == "placements[1].query"
    assert field({"placement": "new", "columns": {" a": 1}}) == "placements[1].columns. a"
    assert field(columns={" a": 1}) == "columns. a"
    assert field(*[{"placement": "new"}] * LISTS) == "placements"
    assert field({"placement": "new", "limit": 500}, {"placement": "more", "limit": 500}) == "placements[2].limit"
    assert field({"placement": "new", "limit": 97}, explain=True) == "placements[1].limit"
    refused(client.post("/v1/page", json={"placements": []}), 422)


def test_a_page_has_the_fields_of_recommendations() -> None:
    """Those of the shopper are of the page, the others of each list. A new field of one is added to the other."""
    of_page, of_list = ({*form.__struct_fields__} for form in (PageRequest, PageList))
    assert (of_page - {"placements"}) | of_list == {*RecommendRequest.__struct_fields__}


def test_columns_of_a_list_precede_those_of_the_page() -> None:
    body = {"columns": {"a": 1, "b": 2}, "placements": [{"placement": "p", "columns": {"b": 3}}, {"placement": "q"}]}
    asked = page_request(msgspec.json.encode(body)).requests()
    assert [one.columns for one in asked] == [{"a": 1, "b": 3}, {"a": 1, "b": 2}]
    many = {f"c{k}": k for k in range(30)}, {f"d{k}": k for k in range(30)}
    with pytest.raises(Problem) as e:
        page_request(msgspec.json.encode({"columns": many[0], "placements": [{"placement": "p", "columns": many[1]}]}))
    assert str(e.value.document["field"]).startswith("placements[0].columns")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"placement": st.sampled_from(["home", "more", "new", "again", "red", "explored"])},
            optional={
                "limit": st.integers(1, 25),
                "query": st.sampled_from(["", "blue thing", "nothing of this"]),
                "rules": st.sampled_from(
                    [{"diversity": {"lambda": 0.5}}, {"pin": [{"item_id": "blue-04", "position": 2}]}]
                ),
                "variants": st.sampled_from([{"keep": "one"}, {"after_purchase_days": 0}]),
            },
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["u", "buyer", "new-user", None]),
)
def test_no_product_is_on_a_page_twice(client: httpx.Client, lists: list[dict[str, Any]], user: str | None) -> None:
    answer = recommended(client, "page", user_id=user, placements=lists)
    shown = [product(i) for one in answer["lists"] for i in ids(one)]
    assert len(shown) == len(set(shown))
    assert [one["placement"] for one in answer["lists"]] == [one["placement"] for one in lists]
    for asked, one in zip(lists, answer["lists"], strict=True):
        assert len(one["items"]) <= asked.get("limit", 500)


def test_a_page_without_redis_is_degraded_and_has_no_repeats(released: Path) -> None:
    with served("redis://127.0.0.1:1", CONFIG, released, clock=lambda: AT) as alone:
        ready(alone)
        answer = page_of(alone, "home", "more", "again", user_id="u")
        assert answer["degraded"]
        assert {one["degraded_reason"] for one in answer["lists"]} <= {"history-unavailable", "release-from-disk"}
        assert [len(one["items"]) for one in answer["lists"]] == [4, 6, 0]
        shown = [i for one in answer["lists"] for i in ids(one)]
        assert len(shown) == len(set(shown)) == 10
        assert alone.get("/health/ready").json()["degraded"] == 3, "each list counts"


def test_an_erased_purchase_gives_the_page_its_variants_back(client: httpx.Client) -> None:
    def shirts() -> set[str]:
        asked = [{"placement": "sizes", "variants": {"keep": "all", "after_purchase_days": 30}}, {"placement": "home"}]
        lists = recommended(client, "page", user_id="buyer", placements=asked)["lists"]
        return set(SHIRT) & {i for one in lists for i in ids(one)}

    assert shirts() == {"red-03"}
    assert client.delete("/v1/users/buyer").status_code == 202
    assert shirts() == set(SHIRT)


def test_every_worker_sees_a_purchase_and_a_written_variant(client: httpx.Client, url: str) -> None:
    """Two workers share one store: what one of them takes, the other leaves out of its next page."""
    with served(url, CONFIG, clock=lambda: AT) as other:
        ready(other)
        purchase = {"event": "purchase", "user_id": "worker", "item_id": "red-01", "timestamp": AT - 1}
        assert client.post("/v1/events", json=purchase).status_code == 202
        shown = {i for one in page_of(other, "more", "home", "new", user_id="worker")["lists"] for i in ids(one)}
        assert shown & set(SHIRT) <= {"red-01"}
        cups = {"candidates": [*CUP, "blue-04"], "variants": {"keep": "one"}}
        try:
            client.put("/v1/items", json={"item_id": "blue-04", "group_id": "cup"})
            for worker in (client, other):
                until(lambda worker=worker: len(ids(recommended(worker, "rank", **cups))) == 1)
        finally:
            client.put("/v1/items", json={"item_id": "blue-04", "group_id": None})
            until(lambda: len(ids(recommended(client, "rank", **cups))) == 2)
