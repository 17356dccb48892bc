"""Variants of one product: at most one in a list, and none beside one that the shopper has just bought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.history import EMPTY, History
from features.log import Kind
from features.moment import Items
from features.retrieval import SOURCES, retrieve
from features.table import names
from offline.config import ConfigError, load
from serving.config import ServiceConfig
from serving.ranking.live import Live
from serving.ranking.overlay import Overlay
from serving.ranking.retrieval import CandidateRetriever
from serving.release.release import load_release
from serving.rules import VariantPlan, Variants
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from serving.store.written import ItemFields
from tests.serving.test_recommend import AT, DAY, IDS, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, refused, served, until

SHIRT, CUP = ("red-01", "red-03", "red-05"), ("blue-00", "blue-02")
GROUP_OF = dict.fromkeys(SHIRT, "shirt") | dict.fromkeys(CUP, "cup") | {"red-09": "single"}
SINGLE = [i for i in IDS if i not in (*SHIRT, *CUP)]
CONFIG = ServiceConfig.model_validate(
    {
        **dict(FAST),
        "placements": {
            "sizes": {"variants": {"keep": "all"}},
            "search": {"variants": {"keep": "one", "after_purchase_days": 1}},
            "pinned": {"rules": {"pin": [{"item_id": "red-05", "position": 0}]}},
        },
    }
)


def grouped(items: Items) -> Items:
    """The planted shop with a shirt in three sizes, a cup in two colours, and a group of one item."""
    groups = ["cup", "shirt", "single"]
    code = np.array([groups.index(GROUP_OF[i]) if i in GROUP_OF else 3 for i in IDS] + [3], np.int32)
    return replace(items, catalogue=replace(items.catalogue, group=code, group_names=groups))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(
        tmp_path_factory.mktemp("releases"), items=grouped(shop()), model_text=planted_model(planted_items())
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str, released: Path) -> Iterator[httpx.Client]:
    """A service in which `u` clicked red-03, and `buyer` bought red-03 two days ago."""
    with BulkStore(url) as store:
        store.write(
            [
                Event("e1", Kind.CLICK, "u", "red-03", AT - 10),
                Event("e2", Kind.PURCHASE, "buyer", "red-03", AT - 2 * DAY),
                Event("e3", Kind.PURCHASE, "erased", "red-03", AT - 2 * DAY),
            ],
            AT,
        )
        store.set_pointer(Pointer(released.name, str(released)))
    with served(url, CONFIG, clock=lambda: AT) as client:
        ready(client)
        yield client


def shown(listed: list[str], group: tuple[str, ...]) -> list[str]:
    return [i for i in listed if i in group]


def removed(answer: dict[str, Any]) -> dict[str, list[str]]:
    return {r["rule"]: sorted(r["item_ids"]) for r in answer["removed"]}


def test_a_recommended_list_has_the_best_variant_of_each_product(client: httpx.Client) -> None:
    everything = recommended(client, user_id="u", limit=500, variants={"keep": "all"})
    one = recommended(client, user_id="u", limit=500)
    best = [shown(ids(everything), group)[0] for group in (SHIRT, CUP)]
    assert len(ids(everything)) == 19, "all but blue-18, which is on sale from tomorrow"
    assert ids(one) == [i for i in ids(everything) if i not in (*SHIRT, *CUP) or i in best]
    assert {i["item_id"]: i["score"] for i in one["items"]}.items() <= {
        i["item_id"]: i["score"] for i in everything["items"]
    }.items(), "scores are those of the same candidates"


def test_candidates_of_a_request_are_all_kept_unless_it_asks_for_one_variant(client: httpx.Client) -> None:
    assert set(ids(recommended(client, "rank", user_id="buyer", candidates=IDS))) == set(IDS)
    one = recommended(client, "rank", user_id="u", candidates=IDS, variants={"keep": "one"})
    assert len(ids(one)) == 20 - 2 - 1, "one of three shirts, and one of two cups"
    by_placement = recommended(client, "rank", user_id="u", candidates=IDS, placement="search")
    assert ids(by_placement) == ids(one)


def test_after_a_purchase_only_the_bought_variant_is_shown(client: httpx.Client) -> None:
    answer = recommended(client, user_id="buyer", limit=100, explain=True)
    assert shown(ids(answer), SHIRT) == ["red-03"]
    assert removed(answer)["serving.variants.keep"] in (["blue-00"], ["blue-02"])


def test_the_variants_of_a_purchase_come_back_after_the_days_of_the_setting(client: httpx.Client) -> None:
    """The purchase was two days ago: 1.9 days are over, 2.1 days are not."""
    for days, left in ((1.9, 3), (2.1, 1), (0, 3)):
        asked = {"keep": "all", "after_purchase_days": days}
        assert len(shown(ids(recommended(client, user_id="buyer", limit=500, variants=asked)), SHIRT)) == left


def test_asking_for_all_variants_shows_those_of_a_purchase(client: httpx.Client) -> None:
    for asked in ({"variants": {"keep": "all"}}, {"placement": "sizes"}):
        answer = recommended(client, user_id="buyer", limit=500, **asked)
        assert set(SHIRT) <= set(ids(answer))


def test_explain_names_the_setting_that_left_a_variant_out(client: httpx.Client) -> None:
    answer = recommended(
        client,
        "rank",
        user_id="buyer",
        candidates=IDS,
        explain=True,
        variants={"keep": "one", "after_purchase_days": 9},
    )
    assert removed(answer)["variants.after_purchase_days"] == ["red-01", "red-05"]
    answer = recommended(client, "rank", user_id="buyer", candidates=IDS, explain=True, placement="search")
    assert list(removed(answer)) == ["placements.search.variants.keep"], "its day is over"
    assert "removed" not in recommended(client, "rank", user_id="buyer", candidates=IDS, explain=True)


def test_a_boost_or_a_pin_decides_which_variant_is_shown(client: httpx.Client) -> None:
    for item in SHIRT:
        boost = {"boost": [{"when": {"attribute": "item_id", "eq": item}, "by": 100}]}
        assert shown(ids(recommended(client, user_id="u", limit=500, rules=boost)), SHIRT) == [item]
    answer = recommended(client, user_id="u", placement="pinned", limit=100, explain=True)
    assert ids(answer)[0] == "red-05"
    assert shown(ids(answer), SHIRT) == ["red-05"]
    assert removed(answer)["serving.variants.keep"][-2:] == ["red-01", "red-03"]


def test_a_filter_leaves_out_a_variant_before_one_is_chosen(client: httpx.Client) -> None:
    only = {"filter": {"attribute": "item_id", "in": ["red-05", "red-07"]}}
    assert set(ids(recommended(client, user_id="u", rules=only))) == {"red-05", "red-07"}


def test_other_caps_count_only_the_variants_that_are_shown(client: httpx.Client) -> None:
    """Of brand x and y two each, whatever the number of variants of the best product."""
    answer = recommended(client, user_id="u", limit=500, rules={"cap": [{"attribute": "brand", "most": 2}]})
    assert len(ids(answer)) == 4
    assert len(shown(ids(answer), SHIRT)) <= 1


def test_rules_may_use_the_group(client: httpx.Client) -> None:
    of_shirt = {"filter": {"attribute": "group_id", "eq": "shirt"}}
    answer = recommended(client, user_id="u", limit=500, rules=of_shirt, variants={"keep": "all"})
    assert set(ids(answer)) == set(SHIRT)
    two = {"cap": [{"attribute": "group_id", "most": 2}]}
    answer = recommended(client, user_id="u", limit=500, rules=two, variants={"keep": "all"})
    assert len(shown(ids(answer), SHIRT)) == 2


def test_a_list_without_rules_is_explored_after_variants_are_chosen(url: str, released: Path) -> None:
    with served(url, CONFIG.model_copy(update={"explore": 1.0}), released, clock=lambda: AT) as client:
        ready(client)
        lists = [ids(recommended(client, user_id="u", limit=500)) for _ in range(8)]
        assert len(set(map(tuple, lists))) > 1
        assert all(len(shown(listed, SHIRT)) == 1 for listed in lists)


def test_a_list_for_a_product_has_no_other_variant_of_it(client: httpx.Client) -> None:
    answer = recommended(client, user_id="u", items=["red-01"], limit=100, explain=True)
    assert not shown(ids(answer), SHIRT)
    assert "items" in removed(answer)
    every = recommended(client, user_id="u", items=["red-01"], limit=100, variants={"keep": "all"})
    assert set(shown(ids(every), SHIRT)) == {"red-03", "red-05"}


def test_similar_items_are_other_products_and_one_variant_of_each(client: httpx.Client) -> None:
    near = client.get("/v1/similar/red-07?limit=19").json()["items"]
    assert len(shown([i["item_id"] for i in near], SHIRT)) == 1
    of_shirt = client.get("/v1/similar/red-03?limit=19").json()["items"]
    assert not shown([i["item_id"] for i in of_shirt], SHIRT)
    cosine = [i["cosine"] for i in near]
    assert cosine == sorted(cosine, reverse=True)


def test_the_purchases_of_an_erased_user_leave_nothing_out(client: httpx.Client) -> None:
    assert shown(ids(recommended(client, user_id="erased", limit=500)), SHIRT) == ["red-03"]
    before = recommended(client, limit=500)
    assert client.delete("/v1/users/erased").status_code == 202
    assert ids(recommended(client, user_id="erased", limit=500)) == ids(before)
    sizes = recommended(client, user_id="erased", limit=500, variants={"keep": "all", "after_purchase_days": 30})
    assert set(SHIRT) <= set(ids(sizes))


def test_a_group_written_with_an_item_works_at_once(client: httpx.Client) -> None:
    """A new size of the shirt, a product that gets a group, and a variant that becomes a product of its own."""
    items = [
        {"item_id": "red-99", "title": "A red-99 thing", "group_id": " shirt "},
        {"item_id": "red-11", "group_id": "hat"},
        {"item_id": "red-13", "group_id": "hat"},
        {"item_id": "blue-02", "group_id": None},
    ]
    try:
        assert client.put("/v1/items", json=items).json() == {"accepted": 4, "rejected": []}
        until(lambda: {"blue-00", "blue-02"} <= set(ids(recommended(client, user_id="u", limit=500))))
        listed = ids(recommended(client, "rank", user_id="u", candidates=[*IDS, "red-99"], variants={"keep": "one"}))
        assert len(shown(listed, (*SHIRT, "red-99"))) == 1
        assert len(shown(listed, ("red-11", "red-13"))) == 1
        client.delete("/v1/items/red-11")
        until(lambda: "red-13" in ids(recommended(client, user_id="u", limit=500)))
    finally:
        back = [
            {"item_id": i, "group_id": GROUP_OF.get(i), "available": i in IDS}
            for i in ("red-11", "red-13", "blue-02", "red-99")
        ]
        client.put("/v1/items", json=back)
        until(lambda: len(shown(ids(recommended(client, user_id="u", limit=500)), CUP)) == 1)


def test_an_unavailable_store_leaves_one_variant_and_knows_no_purchases(tmp_path: Path, released: Path) -> None:
    with served("redis://127.0.0.1:1", CONFIG, released, clock=lambda: AT) as alone:
        ready(alone)
        answer = recommended(alone, user_id="buyer", limit=500)
        assert answer["degraded"]
        assert len(shown(ids(answer), SHIRT)) == 1
        sizes = {"keep": "all", "after_purchase_days": 30}
        assert set(SHIRT) <= set(ids(recommended(alone, user_id="buyer", limit=500, variants=sizes)))


def test_invalid_settings_are_refused_with_their_path(client: httpx.Client, tmp_path: Path) -> None:
    for asked, field in (
        ({"keep": "two"}, "variants.keep"),
        ({"after_purchase_days": -1}, "variants.after_purchase_days"),
    ):
        assert refused(client.post("/v1/recommend", json={"variants": asked}), 422)["field"] == field
    (tmp_path / "c.yaml").write_text("placements: {home: {variants: {keep: some}}}")
    with pytest.raises(ConfigError, match=r"placements\.home\.variants"):
        load(tmp_path / "c.yaml")


def test_a_catalogue_without_groups_has_no_arrays_of_them_and_no_plan(tmp_path: Path) -> None:
    without = publish(tmp_path, items=shop(), model_text=planted_model(planted_items()))
    assert not list((without / "arrays").glob("group*"))
    items = load_release(without).items
    assert items.catalogue.group is None
    assert VariantPlan.of(items.catalogue, [("serving.variants", Variants("one", 30.0))], "one", EMPTY, AT) is None


def test_groups_are_kept_in_the_release_and_are_no_feature(released: Path) -> None:
    items = load_release(released).items
    assert items.catalogue.group is not None
    assert items.catalogue.group.tolist() == grouped(shop()).catalogue.group.tolist()  # type: ignore[union-attr]
    assert list(items.catalogue.group_names) == ["cup", "shirt", "single"]
    assert names(items) == names(shop())
    assert not any("group" in tag for tag in items.catalogue.tag_names)


def test_written_groups_are_joined_with_those_of_the_release() -> None:
    """Codes are those of the release, then new ones; the number of names still means no group."""
    items = shop()
    written = {
        "a-new": ItemFields(AT, {"group_id": "hat"}),
        "b-new": ItemFields(AT, {"group_id": "shirt"}),
        "c-new": ItemFields(AT, {"title": "No group"}),
        "red-01": ItemFields(AT, {"group_id": None}),
        "red-07": ItemFields(AT, {"group_id": "hat"}),
    }
    c = Overlay(written, {}).over(grouped(items), items.state).catalogue
    assert c.group is not None
    name = [*c.group_names, None]
    found = {i: name[c.group[row]] for i, row in zip(c.item_ids, c.rows(c.item_ids).tolist(), strict=True)}
    assert found == {i: GROUP_OF.get(i) for i in IDS} | {
        "a-new": "hat",
        "b-new": "shirt",
        "c-new": None,
        "red-01": None,
        "red-07": "hat",
    }
    assert name[c.group[-1]] is None
    first = Overlay({"a-new": written["a-new"]}, {}).over(items, items.state).catalogue
    assert first.group is not None
    assert [first.group_names[k] if k < 1 else None for k in first.group[-3:]] == [None, "hat", None]
    assert Overlay({"c-new": written["c-new"]}, {}).over(items, items.state).catalogue.group is None


def bought(*rows: tuple[str, float]) -> History:
    """A shopper who bought items, some days before AT."""
    count = len(rows)
    return History(
        np.array([IDS.index(i) for i, _ in rows], np.int32),
        np.full(count, Kind.PURCHASE, np.int8),
        AT - DAY * np.array([days for _, days in rows], np.float64),
        np.empty(0, np.int32),
        np.empty(0),
    )


def plan_of(catalogue: Catalogue, history: History = EMPTY, keep: Literal["one", "all"] = "one") -> VariantPlan:
    plan = VariantPlan.of(catalogue, [("serving.variants", Variants(keep, 30.0))], "one", history, AT)
    assert plan is not None
    return plan


@given(st.permutations(IDS), st.lists(st.tuples(st.sampled_from(IDS), st.floats(1, 60)), max_size=4))
def test_what_remains_is_the_first_allowed_variant_of_each_group(
    order: list[str], purchases: list[tuple[str, float]]
) -> None:
    c = grouped(shop()).catalogue
    history = bought(*sorted(purchases, key=lambda p: p[1]))
    kept, removed = plan_of(c, history).apply(order, c.rows(order))
    recent = {i for i, days in purchases if days <= 30}
    allowed = [i for i in order if i in recent or not {GROUP_OF.get(k, k) for k in recent} & {GROUP_OF.get(i, i)}]
    first: dict[str, str] = {}
    for i in allowed:
        first.setdefault(GROUP_OF.get(i, i), i)
    assert [order[k] for k in kept.tolist()] == [i for i in order if i in first.values()]
    assert sum(r.count for r in removed) == len(order) - len(kept)


def test_each_source_offers_the_best_variant_of_each_product_first() -> None:
    """red-03 and red-01 of one group: red-07 goes before the second of them. What was bought leaves out the others."""
    c = grouped(shop()).catalogue
    offered = plan_of(c).offered(c.rows(["red-03", "red-01", "red-07", "blue-00"]))
    assert [IDS[row] for row in offered.tolist()] == ["red-03", "red-07", "blue-00", "red-01"]
    offered = plan_of(c, bought(("red-05", 1.0))).offered(c.rows(["red-03", "red-05", "red-07"]))
    assert [IDS[row] for row in offered.tolist()] == ["red-05", "red-07"]


def test_variants_do_not_crowd_out_other_products_from_the_candidates() -> None:
    """With room for 4 candidates of one source: ten red items in one group, of which one is offered before the others.

    A source finds 4 * 20 items / 11 products = 8 items, rounded up.
    """
    items = shop()
    code = np.array([0 if i.startswith("red") else 1 for i in IDS] + [1], np.int32)
    c = replace(items.catalogue, group=code, group_names=["red"])
    plan = plan_of(c)
    assert plan.candidates_for(4) == 8
    clicked = bought(("red-01", 1.0))._replace(kind=np.array([Kind.CLICK], np.int8))
    shares = np.array([1.0 if name == "popular" else 0.0 for name in SOURCES])
    retriever = CandidateRetriever(replace(items, catalogue=c))
    before = retriever.candidates_now(clicked, AT, 4, None, shares=shares).item
    after = retriever.candidates_now(clicked, AT, 4, None, shares=shares, variants=plan).item
    products = [len({k if code[k] else -1 for k in found.tolist()}) for found in (before, after)]
    assert products[1] >= products[0]
    assert len(after) == 4
    assert (
        retrieve(items, clicked, AT, 4).item.tolist()
        == retrieve(replace(items, catalogue=c), clicked, AT, 4).item.tolist()
    ), "lists that are rebuilt offline have the same candidates as without groups"


def test_an_exported_list_is_that_of_the_service(client: httpx.Client, released: Path, tmp_path: Path) -> None:
    live = Live.of(load_release(released))
    plan = VariantPlan.of(live.items.catalogue, [("serving.variants", Variants())], "one", EMPTY, AT)
    listed = live.recommend(EMPTY, AT, 10, 500, None, variants=plan)
    assert len(shown(listed.item_ids, SHIRT)) == 1
    assert len(listed.item_ids) == 10
