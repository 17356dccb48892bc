"""Rules on a ranked list: each rule alone, all of them combined, and invalid rules."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.decay import ItemState
from features.history import EMPTY, History, Outside
from features.log import Kind
from features.moment import Items
from features.neighbours import Neighbours
from features.text.vectors import Vectors
from offline.config.configuration import ConfigError, load
from ranker.rerank import diverse, placed, within_cap
from serving.api.rankings import RecommendRequest
from serving.config import ServiceConfig
from serving.rules.conditions import Attributes, Listed, RuleError
from serving.rules.rules import Applied, Diversity, Plan, Ranked, RuledList, Rules
from tests import ROOT
from tests.worlds import DAY, START, make_catalogue, make_vectors

NOW = START + 10 * DAY
N = 12


def planted() -> Items:
    """Twelve items with categories a, b, c and brands x, y in turn; item 1 has no brand, price or date."""
    catalogue = make_catalogue(N)
    return Items(
        catalogue,
        Vectors.quantise(make_vectors(N)),
        np.full(N + 1, np.nan, np.float32),
        Neighbours.none(N),
        ItemState.empty(catalogue.category, 3),
    )


ITEMS = planted()
IDS = list(ITEMS.catalogue.item_ids)
ATTRIBUTES = Attributes(ITEMS)


def rules(**given: Any) -> Rules:
    return msgspec.convert(given, Rules)


def plan(**given: Any) -> Plan:
    compiled = Plan.of(rules(**given), ATTRIBUTES, "rules")
    assert compiled is not None
    return compiled


def ranked(scores: list[float] | None = None, ids: list[str] | None = None) -> Ranked:
    """The items by score, ties by ID; by default i000 with score 12 is first, then i001 with 11, ..."""
    ids = ids or IDS
    scores = scores or [float(len(ids) - k) for k in range(len(ids))]
    order = sorted(range(len(ids)), key=lambda k: (-scores[k], ids[k]))
    ordered = [ids[k] for k in order]
    return Ranked(ordered, ITEMS.catalogue.rows(ordered), np.array([scores[k] for k in order]))


def apply(
    given: dict[str, Any], of: Ranked | None = None, history: History = EMPTY, limit: int | None = None
) -> RuledList:
    return plan(**given).apply(of or ranked(), ITEMS.vectors, history, NOW, limit)


def ids_of(ruled: RuledList, of: Ranked | None = None) -> list[str]:
    item_ids = (of or ranked()).item_ids
    return [item_ids[k] for k in ruled.order.tolist()]


def admitted(condition: Any) -> list[int]:
    """Rows that pass a filter; 12 stands for the unknown item."""
    mask = plan(filter=condition).filters[0][1]
    listed = Listed(np.append(np.arange(N, dtype=np.int32), np.int32(-1)), {N: "unknown"})
    return np.flatnonzero(mask(listed, NOW)).tolist()


def history(*done: tuple[int, Kind, float], shown: tuple[tuple[int, float], ...] = ()) -> History:
    """A user's lists. done: (item, kind, days before NOW). shown: (item, days before NOW)."""
    return History(
        np.array([d[0] for d in done], np.int32),
        np.array([d[1] for d in done], np.int8),
        NOW - DAY * np.array([d[2] for d in done], np.float64),
        np.array([s[0] for s in shown], np.int32),
        NOW - DAY * np.array([s[1] for s in shown], np.float64),
    )


C = ITEMS.catalogue
PRICE, STARS, RELEASED, BORN = C.price[:N], C.numbers[:N, 0], C.numbers[:N, 1], C.available_from[:N]
TAGS = [{C.tag_names[t] for t in C.tag[C.tag_start[i] : C.tag_start[i + 1]]} for i in range(N)]
YEARS_NOW = NOW / (365.25 * DAY)
CONDITIONS: list[tuple[Any, list[int]]] = [
    ({"attribute": "category", "eq": "a"}, [0, 3, 6, 9]),
    ({"attribute": "category", "in": ["a", "c", "no such"]}, [0, 2, 3, 5, 6, 8, 9, 11]),
    ({"attribute": "category", "missing": True}, [12]),
    ({"attribute": "brand", "missing": True}, [1, 12]),
    ({"attribute": "brand", "missing": False}, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ({"not": {"attribute": "brand", "eq": "x"}}, [1, 3, 5, 7, 9, 11, 12]),
    ({"attribute": "price", "lte": 50}, [i for i in range(N) if PRICE[i] <= 50]),
    ({"attribute": "price", "gt": 20, "lt": 60}, [i for i in range(N) if 20 < PRICE[i] < 60]),
    ({"not": {"attribute": "price", "lte": 50}}, [i for i in range(N) if not PRICE[i] <= 50] + [12]),
    ({"attribute": "price", "missing": True}, [1, 12]),
    ({"attribute": "price", "eq": float(PRICE[4])}, [4]),
    ({"attribute": "stars", "gte": 3}, [i for i in range(N) if STARS[i] >= 3]),
    ({"attribute": "released", "lt": "now"}, [i for i in range(N) if RELEASED[i] < YEARS_NOW]),
    ({"attribute": "released", "gte": "2015-01-01"}, [i for i in range(N) if RELEASED[i] >= 1420070400 / 31557600]),
    ({"attribute": "available_from", "gte": "now-60d"}, [i for i in range(N) if NOW - BORN[i] <= 60 * DAY]),
    ({"attribute": "available_from", "lt": START - 50 * DAY}, [i for i in range(N) if START - BORN[i] > 50 * DAY]),
    ({"attribute": "style", "has": "3"}, [i for i in range(N) if "style=3" in TAGS[i]]),
    ({"attribute": "use", "in": ["0", "2"]}, [i for i in range(N) if TAGS[i] & {"use=0", "use=2"}]),
    ({"attribute": "style", "missing": True}, [i for i in range(N) if not TAGS[i] & {"style=1", "style=3"}] + [12]),
    ({"attribute": "item_id", "in": ["i003", "i007", "no such"]}, [3, 7]),
    ({"attribute": "item_id", "in": ["i003", "unknown"]}, [3, 12]),
    ({"not": {"attribute": "item_id", "eq": "unknown"}}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ({"all": [{"attribute": "category", "eq": "a"}, {"attribute": "brand", "eq": "x"}]}, [0, 6]),
    ({"any": [{"attribute": "category", "eq": "a"}, {"attribute": "brand", "eq": "x"}]}, [0, 2, 3, 4, 6, 8, 9, 10]),
    ({"all": [{"any": [{"attribute": "category", "eq": "a"}]}, {"not": {"attribute": "brand", "eq": "x"}}]}, [3, 9]),
]


@pytest.mark.parametrize(("condition", "rows"), CONDITIONS)
def test_a_condition_selects_the_matching_items(condition: Any, rows: list[int]) -> None:
    """The unknown item has no attributes: every comparison is false for it, so `not` of a comparison is true."""
    assert admitted(condition) == rows


INVALID: list[tuple[Any, str, str]] = [
    ({}, "rules.filter", "needs exactly one of all, any, not, attribute; has none"),
    (
        {"all": [{"attribute": "price", "lt": 1}], "any": [{"attribute": "price", "lt": 1}]},
        "rules.filter",
        "needs exactly one of all, any, not, attribute; has all, any",
    ),
    (
        {"attribute": "price"},
        "rules.filter",
        "'price' has no comparison; add one of eq, in, has, lt, lte, gt, gte, missing",
    ),
    ({"not": {"attribute": "price", "lt": 1}, "lt": 5}, "rules.filter.lt", "lt without an attribute; add `attribute`"),
    (
        {"any": [{"attribute": "price", "lt": 1}, {"attribute": "hue", "eq": "red"}]},
        "rules.filter.any[1].attribute",
        "unknown attribute 'hue'; the attributes are item_id, style, use, stars, released, category, brand, price, "
        "available_from",
    ),
    (
        {"not": {"attribute": "price", "lte": "cheap"}},
        "rules.filter.not.lte",
        "'price' is a number, but 'cheap' is text",
    ),
    ({"attribute": "stars", "in": [4, "5"]}, "rules.filter.in[1]", "'stars' is a number, but '5' is text"),
    (
        {"attribute": "price", "has": "5"},
        "rules.filter.has",
        "'price' is a number and has no list of values; use eq, in, lt, lte, gt or gte",
    ),
    ({"attribute": "brand", "eq": 5}, "rules.filter.eq", "'brand' is text, but 5 is a number"),
    ({"attribute": "style", "in": ["1", 2.5]}, "rules.filter.in[1]", "'style' is text, but 2.5 is a number"),
    (
        {"attribute": "brand", "lt": "x"},
        "rules.filter.lt",
        "'brand' is text and has no order for lt; use eq, in, has or missing",
    ),
    (
        {"attribute": "released", "lt": "soon"},
        "rules.filter.lt",
        "'released' is a date, but 'soon' is not; use ISO 8601 (2025-01-31), now, now-30d or now+12h",
    ),
    ({"attribute": "item_id", "lt": "i5"}, "rules.filter.lt", "item_id cannot be compared by lt; use eq or in"),
    ({"attribute": "item_id", "eq": 5}, "rules.filter.eq", "item_id is text, but 5 is a number"),
    (
        {"all": [{"all": [{"attribute": "price", "lt": 1}] * 150}] * 2},
        "rules.filter.all[1].all[47]",
        "more than 200 conditions in all rules: use fewer",
    ),
    (
        {"any": [{"attribute": "price", "in": [1] * 600}, {"attribute": "stars", "in": [2] * 401}]},
        "rules.filter.any[1]",
        "more than 1000 values of `in` in all rules: use fewer",
    ),
]


@pytest.mark.parametrize(("condition", "path", "message"), INVALID)
def test_an_invalid_condition_is_reported_with_its_path_and_the_reason(condition: Any, path: str, message: str) -> None:
    with pytest.raises(RuleError) as error:
        plan(filter=condition)
    assert (error.value.path, str(error.value)) == (path, message)


def test_the_limit_on_conditions_is_for_all_rules_together() -> None:
    many = [{"attribute": "price", "lt": 1}] * 60
    with pytest.raises(RuleError, match="more than 200 conditions in all rules") as error:
        plan(filter={"all": many}, boost=[{"when": {"any": many}}] * 2, bury=[{"when": {"any": many}}])
    assert error.value.path == "rules.bury[0].when.any[16]", "61 + 61 + 61 + 1 + 16 are 200"


def test_conditions_can_be_nested_up_to_eight_levels() -> None:
    deep: Any = {"attribute": "category", "eq": "a"}
    for _ in range(7):
        deep = {"not": deep}
    assert admitted(deep) == [i for i in range(N + 1) if i not in (0, 3, 6, 9)], (
        "an odd number of negations is a negation"
    )
    with pytest.raises(RuleError, match="more than 8 levels"):
        admitted({"not": deep})


def test_a_filter_removes_items_before_any_other_rule_and_counts_them() -> None:
    out = apply({"filter": {"attribute": "category", "eq": "a"}, "pin": [{"item_id": "i001", "position": 0}]})
    assert ids_of(out) == ["i000", "i003", "i006", "i009"], "i001 is in category b: it is removed although it is pinned"
    assert [(r.rule, r.count) for r in out.removed] == [("rules.filter", 8)]
    assert out.removed[0].item_ids == ["i001", "i002", "i004", "i005", "i007", "i008", "i010", "i011"]


def test_purchased_or_seen_items_are_excluded_within_the_given_days() -> None:
    known = history(
        (0, Kind.PURCHASE, 5),
        (1, Kind.PURCHASE, 40),
        (2, Kind.CLICK, 1),
        (-1, Kind.PURCHASE, 1),
        shown=((3, 1), (4, 20)),
    )
    for exclude, removed in (
        ({"events": ["purchase"]}, [0, 1]),
        ({"events": ["purchase"], "within_days": 30}, [0]),
        ({"events": ["impression"]}, [3, 4]),
        ({"events": ["impression", "click"], "within_days": 7}, [2, 3]),
    ):
        out = apply({"exclude": [exclude]}, history=known)
        assert ids_of(out) == [i for k, i in enumerate(IDS) if k not in removed]
        assert out.removed[0].count == len(removed)
    assert ids_of(apply({"exclude": [{"events": ["purchase"]}]})) == IDS, "an unknown user has no history"


def test_items_outside_the_catalogue_are_excluded_and_filtered_by_their_id() -> None:
    """The user bought x 5 days ago and y 40 days ago, and was shown z yesterday; none of them is in the catalogue."""
    of = ranked(ids=["i000", "x", "y", "z"])
    kinds = np.array([Kind.PURCHASE, Kind.PURCHASE, Kind.IMPRESSION], np.int8)
    outside = Outside(["x", "y", "z"], kinds, NOW - DAY * np.array([5.0, 40.0, 1.0]))
    for given_, kept in (
        ({"exclude": [{"events": ["purchase"]}]}, ["i000", "z"]),
        ({"exclude": [{"events": ["purchase"], "within_days": 30}]}, ["i000", "y", "z"]),
        ({"exclude": [{"events": ["impression"]}]}, ["i000", "x", "y"]),
        ({"filter": {"attribute": "item_id", "in": ["x", "z"]}}, ["x", "z"]),
        ({"filter": {"not": {"attribute": "item_id", "in": ["x", "i000"]}}}, ["y", "z"]),
    ):
        ruled = plan(**given_).apply(of, ITEMS.vectors, EMPTY, NOW, None, outside)
        assert ids_of(ruled, of) == kept
        assert [i for r in ruled.removed for i in r.item_ids] == [i for i in of.item_ids if i not in kept]


def test_an_item_is_counted_for_the_first_rule_that_removes_it() -> None:
    known = history((0, Kind.PURCHASE, 1), (1, Kind.PURCHASE, 1))
    out = apply({"filter": {"attribute": "category", "eq": "a"}, "exclude": [{"events": ["purchase"]}]}, history=known)
    assert [(r.rule, r.count) for r in out.removed] == [("rules.filter", 8), ("rules.exclude[0]", 1)]


def test_a_boost_is_in_standard_deviations_of_the_scores() -> None:
    """Scores 3, 2, 1 have standard deviation sqrt(2/3); two of them raise i002 from 1 to 2.63, even if scores are
    negative."""
    unit = float(np.sqrt(2 / 3))
    for shift in (0.0, -100.0):
        three = ranked([3 + shift, 2 + shift, 1 + shift], IDS[:3])
        out = apply({"boost": [{"when": {"attribute": "category", "eq": "c"}, "by": 2}]}, three)
        assert ids_of(out, three) == ["i000", "i002", "i001"]
        np.testing.assert_allclose(out.score - shift, [3, 1 + 2 * unit, 2], rtol=1e-9)
        assert [a[0].rule if a else None for a in out.applied] == [None, "rules.boost[0]", None]
        assert out.applied[1][0].added == pytest.approx(2 * unit)
        out = apply({"bury": [{"when": {"attribute": "category", "eq": "a"}, "by": 2}]}, three)
        assert ids_of(out, three) == ["i001", "i000", "i002"], "3 - 1.63 is 1.37"


def test_a_boost_also_works_if_all_scores_are_equal() -> None:
    flat = ranked([0.0] * N)
    out = apply({"boost": [{"when": {"attribute": "category", "eq": "c"}}]}, flat)
    assert ids_of(out, flat)[:4] == ["i002", "i005", "i008", "i011"]
    assert out.score[0] == 1.0


def test_boosts_add_up_and_ties_are_ordered_by_id() -> None:
    """a: +1, b: +2 - 1, c: 0. So a and b are tied and ordered by ID, and c follows."""
    flat = ranked([0.0] * 3, IDS[:3])
    of = {c: {"attribute": "category", "eq": c} for c in "abc"}
    out = apply({"boost": [{"when": of["a"], "by": 1}, {"when": of["b"], "by": 2}], "bury": [{"when": of["b"]}]}, flat)
    assert ids_of(out, flat) == IDS[:3]
    assert out.applied == [
        [Applied("rules.boost[0]", added=1.0)],
        [Applied("rules.boost[1]", added=2.0), Applied("rules.bury[0]", added=-1.0)],
        [],
    ]


def test_a_cap_keeps_the_best_items_of_each_value() -> None:
    out = apply({"cap": [{"attribute": "category", "most": 1}]})
    assert ids_of(out) == ["i000", "i001", "i002"]
    assert out.removed[0].count == 9
    out = apply({"cap": [{"attribute": "brand", "most": 2}]})
    assert ids_of(out) == ["i000", "i001", "i002", "i003", "i005"], "i001 has no brand, so it is not counted"


def test_an_item_with_several_values_is_kept_only_if_no_value_has_reached_the_cap() -> None:
    """The third item has values 0 and 1: 0 has reached the cap, and it does not count for 1, so the fourth item
    fits."""
    start, tag = np.array([0, 1, 1, 3, 4, 4]), np.array([0, 0, 1, 1], np.int32)
    assert within_cap(start, tag, 2, np.array([0, 1, 2, 3, -1], np.int32), 1).tolist() == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_pinned_items_get_their_positions_and_the_others_keep_their_order() -> None:
    out = apply({"pin": [{"item_id": "i011", "position": 0}, {"item_id": "i000", "position": 2}]})
    assert ids_of(out)[:4] == ["i011", "i001", "i000", "i002"]
    assert out.applied[0] == [Applied("rules.pin[0]", moved_from=11)]
    assert out.applied[2] == [Applied("rules.pin[1]", moved_from=0)]
    assert ids_of(apply({"pin": [{"item_id": "i000", "position": 4000}]}))[-1] == "i000"
    assert ids_of(apply({"pin": [{"item_id": "not there", "position": 0}]})) == IDS
    assert ids_of(apply({"pin": [{"item_id": "i011", "position": 1}]}, limit=2)) == ["i000", "i011"]


def test_pinned_items_count_towards_a_cap_first() -> None:
    given_ = {"cap": [{"attribute": "category", "most": 1}], "pin": [{"item_id": "i009", "position": 1}]}
    assert ids_of(apply(given_)) == ["i001", "i009", "i002"]


@pytest.mark.parametrize("twice", ["item_id", "position"])
def test_pinning_an_item_or_position_twice_is_refused(twice: str) -> None:
    pins = [{"item_id": "i000", "position": 0}, {"item_id": "i001", "position": 1}]
    pins[1][twice] = pins[0][twice]
    with pytest.raises(RuleError, match="is pinned twice; remove one of the pins") as error:
        plan(pin=pins)
    assert error.value.path == "rules.pin[1]"


def test_diversity_prefers_items_unlike_those_already_chosen() -> None:
    """Scaled scores are 1, .9, 0. After the first, with lambda 1/2, its copy has .45 - .5 * 1 and the other item 0 -
    0."""
    cosine = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    assert diverse(np.array([10.0, 9.0, 0.0]), cosine, 0.5, 3).tolist() == [0, 2, 1]
    assert diverse(np.array([10.0, 9.0, 0.0]), cosine, 0.6, 3).tolist() == [0, 1, 2], ".54 - .4 beats 0"
    assert diverse(np.array([10.0, 9.0, 0.0]), cosine, 0.5, 1).tolist() == [0, 1, 2], "only one item is chosen"
    assert diverse(np.array([5.0, 5.0]), np.full((2, 2), np.nan, np.float32), 0.0, 2).tolist() == [0, 1]
    assert diverse(np.empty(0), np.empty((0, 0), np.float32), 0.5, 5).tolist() == []


def naive(score: np.ndarray, cosine: np.ndarray, share: float, most: int) -> list[int]:
    """The definition of maximal marginal relevance, implemented literally."""
    low, high = score.min(), score.max()
    scaled = (score - low) / (high - low) if high > low else score * 0
    chosen: list[int] = []
    while len(chosen) < min(most, len(score)):
        left = [i for i in range(len(score)) if i not in chosen]
        relevance = [
            share * scaled[i] - ((1 - share) * max(cosine[i, j] for j in chosen) if chosen else 0.0) for i in left
        ]
        chosen.append(left[int(np.argmax(relevance))])
    return chosen + [i for i in range(len(score)) if i not in chosen]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 13), st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 999))
def test_diversity_equals_the_literal_implementation(m: int, most: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = np.sort(rng.integers(0, 6, m).astype(np.float64))[::-1].copy()
    vectors = Vectors.quantise(rng.normal(size=(m, 4)).astype(np.float32))
    cosine = vectors.cosines(np.arange(m, dtype=np.int32), np.arange(m, dtype=np.int32)).astype(np.float32)
    order = diverse(score, cosine, share, most).tolist()
    assert order == naive(score, cosine, share, most)
    if share == 1.0:
        assert order == list(range(m)), "with lambda 1 the order is by score"


def test_without_pins_the_order_is_unchanged() -> None:
    assert placed(np.array([3, 1, 2]), {}).tolist() == [3, 1, 2]
    assert placed(np.array([1]), {2: 0, 3: 9}).tolist() == [2, 1, 3]
    assert placed(np.array([2]), {3: 1, 1: 9}).tolist() == [2, 3, 1], "a position inside the list is kept"
    assert placed(np.array([], np.int64), {5: 7, 4: 6}).tolist() == [4, 5]


conditions = st.recursive(
    st.one_of(
        st.fixed_dictionaries(
            {"attribute": st.sampled_from(["category", "brand"]), "in": st.lists(st.sampled_from("abcxy"), min_size=1)}
        ),
        st.fixed_dictionaries({"attribute": st.just("price"), "lte": st.floats(0, 100)}),
        st.fixed_dictionaries({"attribute": st.sampled_from(["price", "style", "stars"]), "missing": st.booleans()}),
    ),
    lambda c: st.one_of(
        st.fixed_dictionaries({"not": c}),
        st.fixed_dictionaries({"all": st.lists(c, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"any": st.lists(c, min_size=1, max_size=3)}),
    ),
    max_leaves=4,
)
lifts = st.lists(st.fixed_dictionaries({"when": conditions, "by": st.floats(0.01, 100)}), max_size=2)
any_rules = st.fixed_dictionaries(
    {},
    optional={
        "filter": conditions,
        "boost": lifts,
        "bury": lifts,
        "exclude": st.just([{"events": ["click"]}]),
        "cap": st.lists(
            st.fixed_dictionaries(
                {"attribute": st.sampled_from(["category", "brand", "style"]), "most": st.integers(1, 3)}
            ),
            max_size=2,
        ),
        "diversity": st.fixed_dictionaries({"lambda": st.floats(0, 1), "pool": st.integers(1, 12)}),
        "pin": st.lists(
            st.fixed_dictionaries({"item_id": st.sampled_from([*IDS, "other"]), "position": st.integers(0, 14)}),
            max_size=3,
            unique_by=(lambda p: p["item_id"], lambda p: p["position"]),
        ),
    },
)


@settings(max_examples=80, deadline=None)
@given(any_rules, st.lists(st.integers(-3, 3), min_size=N + 1, max_size=N + 1), st.integers(1, 15) | st.none())
def test_every_combination_of_rules_holds_all_of_them(
    given_: dict[str, Any], scores: list[int], limit: int | None
) -> None:
    """No filtered or excluded items, no cap exceeded, all pins in place, the rest by score, all items accounted for."""
    of = ranked([float(s) for s in scores], [*IDS, "unknown"])
    if (compiled := Plan.of(rules(**given_), ATTRIBUTES, "rules")) is None:
        return
    known = history((4, Kind.CLICK, 1), (5, Kind.PURCHASE, 1))
    out = compiled.apply(of, ITEMS.vectors, known, NOW, limit)
    whole = compiled.apply(of, ITEMS.vectors, known, NOW, None)
    order, item = out.order.tolist(), of.item[out.order]
    assert len(order) == len(set(order)) <= (limit or 99)
    removed = sum(r.count for r in out.removed)
    assert len(whole.order) == len(of.item) - removed
    assert len(order) == min(len(whole.order), limit or 99)
    assert compiled.admits(item, known, NOW).all()
    if "exclude" in given_:
        assert 4 not in item
    for cap in given_.get("cap", []):
        tags = ATTRIBUTES.text_attribute(cap["attribute"], "").tags
        values = np.concatenate(
            [tags.tag[tags.start[i] : tags.start[i + 1]] for i in item[item >= 0]] or [np.empty(0, np.int32)]
        )
        assert not len(values) or np.bincount(values.astype(int)).max() <= cap["most"]
    pins = {p["item_id"]: p["position"] for p in given_.get("pin", [])}
    final = [of.item_ids[k] for k in whole.order.tolist()]
    for item_id, position in pins.items():
        assert item_id not in final or position >= len(final) or final.index(item_id) == position
    if "diversity" not in given_:
        free = [(-s, i) for s, i in zip(whole.score.tolist(), final, strict=True) if i not in pins]
        assert free == sorted(free)
    for score, k, applied in zip(out.score.tolist(), order, out.applied, strict=True):
        assert score == pytest.approx(of.score[k] + sum(a.added or 0 for a in applied), abs=1e-9)


def test_empty_rules_have_no_plan() -> None:
    assert Plan.of(Rules(), ATTRIBUTES, "rules") is None
    assert Plan.of(rules(boost=[], pin=[]), ATTRIBUTES, "rules") is None


def test_rules_of_a_request_are_added_to_those_of_the_configuration() -> None:
    """All filters apply; for the same pinned item or position and for the diversity, the request takes precedence."""
    standing = Plan.of(
        rules(
            filter={"attribute": "category", "in": ["a", "b"]},
            diversity={"lambda": 0.1},
            pin=[
                {"item_id": "i010", "position": 0},
                {"item_id": "i009", "position": 5},
                {"item_id": "i004", "position": 7},
            ],
        ),
        ATTRIBUTES,
        "serving.rules",
    )
    assert standing is not None
    requested = plan(
        filter={"attribute": "brand", "eq": "x"},
        diversity={"lambda": 1.0},
        pin=[{"item_id": "i006", "position": 0}, {"item_id": "i004", "position": 1}],
    )
    both = standing.then(requested)
    assert [p.item_id for _, p in both.pins] == ["i009", "i006", "i004"]
    assert both.diversity is not None
    assert both.diversity[0] == "rules.diversity"
    out = both.apply(ranked(), ITEMS.vectors, EMPTY, NOW, None)
    assert ids_of(out) == ["i006", "i004", "i000", "i010"]
    assert [r.rule for r in out.removed] == ["serving.rules.filter", "rules.filter"]
    assert standing.then(None) is standing


def test_rules_have_the_same_form_in_the_configuration() -> None:
    given_ = {"filter": {"not": {"attribute": "price", "missing": True}}, "diversity": {"lambda": 0.5}}
    config = ServiceConfig.model_validate({"rules": given_})
    assert config.rules == rules(**given_)
    assert ServiceConfig.model_validate_json(config.model_dump_json()) == config
    assert ServiceConfig.model_validate({}).rules == Rules()


def test_an_invalid_rule_in_the_configuration_is_reported_with_its_path(tmp_path: Any) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("serving: {rules: {cap: [{attribute: brand, most: 0}]}}")
    with pytest.raises(ConfigError, match=r"serving\.rules.*Expected `int` >= 1 - at `\$\.cap\[0\]\.most`"):
        load(file)


words = st.sampled_from(["all", "not", "attribute", "eq", "in", "lt"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(words, x),
    max_leaves=10,
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(["filter", "exclude", "boost", "cap", "diversity", "pin"]), json_values))
def test_arbitrary_json_is_accepted_or_refused_as_rules(body: Any) -> None:
    with contextlib.suppress(msgspec.ValidationError, RuleError):
        compiled = Plan.of(msgspec.json.decode(json.dumps(body), type=Rules), ATTRIBUTES, "rules")
        assert compiled is None or len(compiled.apply(ranked(), ITEMS.vectors, EMPTY, NOW, None).order) <= N


def test_the_example_in_the_guide_is_a_valid_request() -> None:
    guide = (ROOT / "docs/rules.md").read_text("utf-8")
    (example,) = re.findall(r"```json[^\n]*\n(.*?)```", guide, re.DOTALL)
    request = msgspec.json.decode(example, type=RecommendRequest)
    assert request.rules is not None
    assert request.rules.diversity == Diversity(0.7)
    assert Plan.of(request.rules, ATTRIBUTES, "rules") is not None


def test_rules_do_not_modify_their_inputs() -> None:
    of = ranked()
    before = [of.score.tobytes(), of.item.tobytes(), list(of.item_ids), replace(ITEMS).catalogue.price.tobytes()]
    apply({"boost": [{"when": {"attribute": "price", "lt": 50}}], "cap": [{"attribute": "brand", "most": 1}]}, of)
    assert before == [of.score.tobytes(), of.item.tobytes(), of.item_ids, ITEMS.catalogue.price.tobytes()]
