"""Companions: what is bought together, what goes with an item, what comes next, and when an item is bought again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import I32
from features.companions import Companions, buy_again_scores, seed_scores
from features.companions.groups import MAX_PER_GROUP, baskets, sessions
from features.history import Histories, History
from features.log import Events, Kind
from features.neighbours import Neighbours
from features.text.vectors import Vectors
from tests.worlds import DAY, START, LogRow, logs, make_catalogue, make_events, make_replay, make_vectors

N = 12
CATALOGUE = make_catalogue(N)
"""Item i is of category i % 3."""
TEXTLESS = Vectors.quantise(np.full((N + 1, 8), np.nan, np.float32))
UNCATEGORISED = replace(CATALOGUE, category=np.full(N + 1, 3, np.int32))
LATER = START + 30 * DAY


def order(user: int, day: float, *items: int) -> list[LogRow]:
    """A purchase of these items at one moment."""
    return [(day * DAY, user, i, Kind.PURCHASE, -1) for i in items]


def visit(user: int, day: float, *items: int) -> list[LogRow]:
    """Clicks on these items, a minute apart."""
    return [(day * DAY + 60.0 * k, user, i, Kind.CLICK, -1) for k, i in enumerate(items)]


def build(rows: list[LogRow], users: int = 9, k: int = 5, at: float = LATER, text: Vectors = TEXTLESS) -> Companions:
    return Companions.build(UNCATEGORISED, text, make_events(rows, users), N, at, k)


def row(table: Neighbours, item: int) -> list[int]:
    return [i for i in table.item[item].tolist() if i >= 0]


def test_the_weight_of_a_pair_is_its_baskets_over_those_of_each_shrunk_by_support() -> None:
    """0 is in three baskets, 1 in two, both in two, all of two items and new: t_01 / (t_0^.75 t_1^.25) is 2 /
    (3^.75 2^.25), since the weight 2^-.5 of a basket of two cancels, times a support of 2 / (2 + 5)."""
    rows = [*order(0, 1, 0, 1), *order(1, 1, 0, 1), *order(2, 1, 0, 2)]
    found = build(rows, at=START + DAY + 1e-3).together
    assert row(found, 0) == [1, 2]
    assert found.weight[0, 0] == pytest.approx(2 / (3**0.75 * 2**0.25) * 2 / 7, rel=1e-4)
    assert found.weight[1, 0] == pytest.approx(2 / (2**0.75 * 3**0.25) * 2 / 7, rel=1e-4)


def test_a_variant_of_the_same_product_is_no_companion() -> None:
    """0 and 3 are two sizes of one product, always bought with each other and with 4."""
    code = np.array([0, 1, 1, 0, *[1] * (N - 3)], np.int32)
    sizes = replace(UNCATEGORISED, group=code, group_names=["shirt"])
    events = make_events([r for k in range(3) for r in order(k, 1, 0, 3, 4)], 9)
    assert row(build([r for k in range(3) for r in order(k, 1, 0, 3, 4)]).together, 0) == [3, 4]
    found = Companions.build(sizes, TEXTLESS, events, N, LATER, 5)
    assert [row(table, 0) for table in (found.together, found.goes_with, found.following)] == [[4]] * 3


def test_an_item_in_every_basket_comes_after_one_that_goes_with_the_seed() -> None:
    """3 is in all baskets. 1 is in both of those with 0, and in no other."""
    rows = [r for k in range(6) for r in order(k, k, 3, *((0, 1) if k < 2 else (4 + k,)))]
    assert row(build(rows).together, 0) == [1, 3]


def test_clicks_and_impressions_are_not_bought_together() -> None:
    rows = visit(0, 1, 0, 1) + [(DAY, 1, i, Kind.IMPRESSION, 0) for i in (0, 1)]
    assert (build(rows).together.item == -1).all()


def test_complements_are_of_another_category_than_the_item() -> None:
    """0 and 3 are of one category, 1 is of another."""
    found = Companions.build(CATALOGUE, TEXTLESS, make_events(order(0, 1, 0, 1, 3), 1), N, LATER, 5)
    assert set(row(found.together, 0)) >= {1, 3}
    assert 1 in row(found.goes_with, 0)
    assert not {i for i in row(found.goes_with, 0) if i % 3 == 0}


def test_an_item_without_a_category_can_go_with_any_other() -> None:
    assert row(build(order(0, 1, 0, 3)).goes_with, 0) == [3]


def test_what_follows_is_after_the_item_and_the_nearest_first() -> None:
    """Three shoppers see 0, 1, 2, 3 in this order."""
    found = build([r for user in range(3) for r in visit(user, 1, 0, 1, 2, 3)]).following
    assert row(found, 0) == [1, 2, 3]
    assert row(found, 2) == [3]
    assert row(found, 3) == []


def test_items_of_one_moment_follow_each_other() -> None:
    found = build(order(0, 1, 0, 1)).following
    assert row(found, 0) == [1]
    assert row(found, 1) == [0]


def test_an_item_in_no_basket_has_items_with_similar_texts_and_they_have_it() -> None:
    """0 and 1 are bought together. 4 is never bought, and has a text like that of 0."""
    vectors = make_vectors(N)
    vectors[4] = vectors[0] + 0.1 * vectors[7]
    rows = [r for user in range(9) for r in order(user, 1, 0, 1)]
    found = build(rows, k=N, text=Vectors.quantise(vectors)).together
    assert row(found, 4)[0] == 0
    assert row(found, 0)[:2] == [1, 4]


def test_a_similar_text_counts_as_much_as_it_sells_together_in_the_shop() -> None:
    """0 and 4 have one text, and so have 1 and 5. 30 shoppers buy both of a text, or else never. 6 is new, with the
    text of 0, so it is the companion of 0 in the first shop, and hardly in the second."""
    vectors = make_vectors(N)
    vectors[4] = vectors[6] = vectors[0]
    vectors[5] = vectors[1]
    weight = []
    for pairs in (((0, 4), (1, 5)), ((0, 1), (4, 5))):
        rows = [r for user in range(30) for pair in pairs for r in order(user, pair[0], *pair)]
        found = build(rows, users=30, k=N, text=Vectors.quantise(vectors)).together
        weight.append(found.weight[0, row(found, 0).index(6)])
    assert weight[0] > 2 * weight[1] > 0


def test_an_item_in_no_basket_and_without_text_has_what_is_bought_with_its_category() -> None:
    """0 and 1 are bought together. 3 and 4 are of their categories, and never bought."""
    rows = [r for user in range(5) for r in order(user, 1, 0, 1)]
    found = Companions.build(CATALOGUE, TEXTLESS, make_events(rows, 5), N, LATER, 5).goes_with
    assert row(found, 3) == [1]
    assert row(found, 4) == [0]


def test_a_large_order_counts_items_chosen_by_moment_and_not_by_id() -> None:
    """All lines have one time. Two orders of the same 150 items differ in the 100 that count."""
    n = 150
    events = make_events(order(0, 1, *range(n)) + order(0, 2, *range(n)), 1)
    groups = baskets(events)
    assert np.diff(groups.start).tolist() == [MAX_PER_GROUP] * 2
    first, second = (set(groups.item[groups.group == g].tolist()) for g in range(2))
    assert first != second
    assert max(first) > MAX_PER_GROUP


def test_a_session_has_each_item_once_at_its_first_moment() -> None:
    groups = sessions(make_events(visit(0, 1, 4, 2, 4, 7), 1))
    assert list(zip(groups.item.tolist(), groups.place.tolist(), strict=True)) == [(4, 0), (2, 1), (7, 2)]


def test_scores_are_the_sum_and_the_maximum_over_the_seeds() -> None:
    """Seed 0 counts twice as much as seed 1: 2 has 2 * .5 + .25, and 3 has .125 by seed 1. 4 has none."""
    item = np.array([[2, -1], [2, 3], [-1, -1], [-1, -1], [-1, -1], [-1, -1]], np.int32)
    weight = np.array([[0.5, 0], [0.25, 0.125], [0, 0], [0, 0], [0, 0], [0, 0]], np.float32)
    candidates = np.array([4, 2, 3, -1], np.int32)
    found = seed_scores(Neighbours(item, weight), candidates, np.array([0, -1, 1], np.int32), np.array([2.0, 9.0, 1.0]))
    assert found.tolist() == [[0, 1.25, 0.125, 0], [0, 1.0, 0.125, 0]]


def test_without_seeds_all_scores_are_0() -> None:
    none = np.empty(0, np.int32)
    assert not seed_scores(build(order(0, 1, 0, 1)).together, np.arange(N, dtype=np.int32), none, np.empty(0)).any()


def test_the_time_until_an_item_is_bought_again_counts_those_who_have_not_yet() -> None:
    """At day 30. 0 is bought on days 1 and 5 by one user: 1 repeat in 4 + 25 days. 1 is bought on day 10 by another:
    none in 20 days. The shop: 1 repeat in 49 days, r_shop = 49, and the same for the only category. As 30 repeats of
    the category count as prior, r_0 = (29 + 30 * 49) / 31 and r_1 = (20 + 30 * 49) / 30."""
    found = build([*order(0, 1, 0), *order(0, 5, 0), *order(1, 10, 1)]).repurchase_s / DAY
    of_category = (49 + 30 * 49) / 31
    assert of_category == 49
    assert found[0] == pytest.approx((29 + 30 * of_category) / 31)
    assert found[1] == pytest.approx((20 + 30 * of_category) / 30)
    assert found[-1] == pytest.approx(of_category)


def test_two_purchases_of_one_session_are_not_a_repurchase() -> None:
    rows = [*order(0, 1, 0), *order(0, 1.01, 0)]
    assert np.isnan(build(rows).repurchase_s).all()


def bought(*purchases: tuple[int, float], at: float) -> History:
    """The history, at a day after START, of purchases of items on days."""
    rows = [r for item, day in purchases for r in order(0, day, item)]
    return Histories.of(make_events(rows, 1)).read(0, START + at * DAY)


def test_how_due_an_item_is_is_the_users_rate_with_the_items_as_prior() -> None:
    """Typical times are 10 days. 0: three purchases in 20 days, (3 - 1 + 2) / (20 + 2 * 10). 1: one purchase 4 days
    ago, (1 - 1 + 2) / (4 + 20)."""
    history = bought((0, 10), (0, 20), (0, 28), (1, 26), at=30)
    item, due = buy_again_scores(history, START + 30 * DAY, np.full(N + 1, 10 * DAY, np.float32))
    assert item.tolist() == [0, 1]
    assert due == pytest.approx([4 / 40, 2 / 24])


def test_an_item_that_is_bought_again_sooner_is_more_due() -> None:
    typical = np.full(N + 1, 100 * DAY, np.float32)
    typical[1] = 10 * DAY
    _, due = buy_again_scores(bought((0, 20), (1, 20), at=30), START + 30 * DAY, typical)
    assert due[1] > due[0]


def test_two_lines_of_an_item_in_one_order_are_one_purchase() -> None:
    one, two = (bought(*lines, at=9) for lines in ([(0, 1)], [(0, 1), (0, 1)]))
    typical = np.full(N + 1, 10 * DAY, np.float32)
    assert len(two.item) == 2
    assert (
        buy_again_scores(one, START + 9 * DAY, typical)[1] == buy_again_scores(two, START + 9 * DAY, typical)[1]
    ).all()


def test_only_purchases_can_be_due() -> None:
    history = Histories.of(make_events(visit(0, 1, 0, 1), 1)).read(0, START + 2 * DAY)
    item, due = buy_again_scores(history, START + 2 * DAY, np.full(N + 1, np.nan, np.float32))
    assert len(item) == len(due) == 0


def test_if_nobody_bought_anything_twice_all_purchases_are_due_by_the_user_alone() -> None:
    _, due = buy_again_scores(bought((0, 1), (0, 3), (1, 1), at=9), START + 9 * DAY, np.full(N + 1, np.nan, np.float32))
    assert due[0] > due[1] > 0


def test_a_log_without_engagements_gives_no_companions() -> None:
    found = build([(DAY, 0, 1, Kind.IMPRESSION, 0)])
    for table in (found.together, found.goes_with, found.following):
        assert (table.item == -1).all()
        assert not table.weight.any()


def test_a_wrong_number_of_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="11 items, 12 in the catalogue and 12 vectors"):
        Companions.build(CATALOGUE, TEXTLESS, make_events([], 1), 11, LATER)


def arrays(companions: Companions) -> list[np.ndarray]:
    tables = (companions.together, companions.goes_with, companions.following)
    return [companions.repurchase_s, *(a for table in tables for a in (table.item, table.weight))]


def renumbered(events: Events, number: I32) -> Events:
    """The same events with other numbers of users."""
    return replace(events, user=number[events.user])


@settings(max_examples=50, deadline=None)
@given(logs(), st.integers(0, 60), st.permutations(range(3)))
def test_companions_depend_on_the_past_alone_and_not_on_the_numbers_of_users(
    rows: list[LogRow], moment: int, number: list[int]
) -> None:
    """To the bit: without the events at or after the time, from the newest of each user, and with other numbers."""
    at = START + moment * DAY / 6
    replay = make_replay(make_events(rows, 3))
    text = Vectors.quantise(make_vectors(N))
    expected = Companions.build(CATALOGUE, text, replay.events, N, at, 4)
    others = [replay.events.before(at), replay.recent(at), renumbered(replay.events, np.array(number, np.int32))]
    for events in others:
        found = Companions.build(CATALOGUE, text, events, N, at, 4)
        for a, b in zip(arrays(expected), arrays(found), strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=50, deadline=None)
@given(logs())
def test_rows_are_in_order_without_the_item_itself_and_weights_are_shares(rows: list[LogRow]) -> None:
    found = Companions.build(CATALOGUE, Vectors.quantise(make_vectors(N)), make_events(rows, 3), N, LATER, 6)
    for table in (found.together, found.goes_with, found.following):
        assert table.item.shape == table.weight.shape == (N + 1, 6)
        assert table.item.dtype == np.int32
        assert table.weight.dtype == np.float32
        assert ((table.weight > 0) == (table.item >= 0)).all()
        assert (table.weight <= 1).all()
        assert (np.diff(table.weight, axis=1) <= 0).all()
        assert (table.item[-1] == -1).all()
        for i in range(N):
            assert i not in row(table, i)
            assert len(set(row(table, i))) == len(row(table, i))
