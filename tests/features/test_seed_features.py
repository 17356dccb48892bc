"""Features of the items that a request names: values by hand, what is missing, and that they know no future."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import F32
from features.companions import Companions
from features.context import Context
from features.history import EMPTY, History
from features.log import Kind
from features.moment import Items
from features.table import FEATURES_OF_SEEDS, names, rows, schema_hash
from offline.data import concat
from tests.features.test_seed_sources import AT, N, companions, history, make_items, table
from tests.worlds import DAY, START, LogRow, logs, make_events, make_lists, make_replay

ALL = np.arange(-1, N, dtype=np.int32)
OF_SEEDS = [f.name for f in FEATURES_OF_SEEDS]
FULL: Companions = companions(
    {0: [(5, 0.5), (7, 0.25)], 3: [(5, 0.125)]}, {0: [(7, 0.75)]}, {3: [(8, 1.0)]}, typical=10 * DAY
)


def features(seeds: list[int], items: Items | None = None, user: History = EMPTY) -> dict[str, F32]:
    items = items or make_items(FULL)
    out = rows(items, user, ALL, AT, Context(seeds=np.array(seeds, np.int32)))
    return dict(zip(names(items), out.T, strict=True))


def value(found: dict[str, F32], name: str, item: int) -> float:
    return float(found[name][item + 1])


def test_items_without_companions_have_no_features_of_seeds() -> None:
    """So that releases and rows of shops without them are as before, whatever a request names."""
    plain, without = make_items(FULL), make_items(None)
    assert names(plain) == (*names(without), *OF_SEEDS)
    assert schema_hash(plain) != schema_hash(without)
    context = Context(seeds=np.array([0, 3], np.int32))
    same = rows(without, EMPTY, ALL, AT)
    np.testing.assert_array_equal(rows(without, EMPTY, ALL, AT, context), same)
    np.testing.assert_array_equal(rows(plain, EMPTY, ALL, AT, context)[:, : same.shape[1]], same)


@pytest.mark.parametrize("seeds", [[], [-1], [-1, -1]])
def test_features_are_missing_without_a_known_seed(seeds: list[int]) -> None:
    found = features(seeds)
    for name in OF_SEEDS:
        assert np.isnan(found[name]).all(), name


def test_features_are_missing_for_an_unknown_candidate() -> None:
    found = features([0, 3], user=history((3, Kind.PURCHASE, DAY)))
    assert [name for name in OF_SEEDS if not np.isnan(value(found, name, -1))] == []


def test_texts_are_compared_with_each_seed_that_has_one() -> None:
    """Item 2 has none, and is left out of the mean over seeds 0, 2 and 3."""
    items, found = make_items(FULL), features([0, 2, 3])
    cosines = items.vectors.cosines(np.array([5], np.int32), np.array([0, 3], np.int32))[0].astype(np.float64)
    assert value(found, "seed_text_max", 5) == np.float32(cosines.max())
    assert value(found, "seed_text_mean", 5) == np.float32(cosines.sum() / 2)
    assert np.isnan(value(found, "seed_text_max", 2))
    assert np.isnan(features([2])["seed_text_max"]).all()


def test_a_category_is_compared_with_the_seeds_that_have_one() -> None:
    """Item k has category k % 3: of seeds 0, 3 and 4, two are like item 6, one like item 7, none like item 8."""
    found = features([0, 3, 4])
    assert [value(found, "seed_same_category", k) for k in (6, 7, 8)] == [np.float32(2 / 3), np.float32(1 / 3), 0.0]


def test_a_price_is_compared_with_the_mean_of_the_seeds() -> None:
    """In log(1 + price); item 1 has no price, and counts neither as seed nor as candidate."""
    price = make_items(FULL).catalogue.price
    found = features([0, 1, 3])
    expected = np.log1p(price[5]) - (np.log1p(price[0]) + np.log1p(price[3])) / 2
    assert value(found, "seed_price", 5) == np.float32(expected)
    assert np.isnan(value(found, "seed_price", 1))
    assert np.isnan(features([1])["seed_price"]).all()


def test_weights_of_a_table_are_summed_over_the_seeds() -> None:
    """Item 5: 1/2 + 1/8 for seeds 0 and 3. A candidate in no row of a seed has 0; no row at all is missing."""
    found = features([0, 3])
    assert value(found, "seed_together", 5) == 0.625
    assert value(found, "seed_together_max", 5) == 0.5
    assert value(found, "seed_together", 8) == 0.0
    assert value(found, "seed_goes_with", 7) == 0.75
    assert value(found, "seed_following", 8) == 1.0
    assert np.isnan(features([0])["seed_following"]).all()


def test_co_occurrence_is_that_of_the_candidates_neighbours() -> None:
    items = make_items(FULL, table({5: [(0, 0.5), (3, 0.25)]}))
    assert value(features([0, 3], items), "seed_co_occurrence", 5) == 0.75
    assert value(features([0, 3], items), "seed_co_occurrence", 6) == 0.0


def test_what_was_bought_is_the_more_due_the_more_often_it_was_bought() -> None:
    """Item 3 was bought twice and item 4 once; item 5 was only clicked."""
    user = history((3, Kind.PURCHASE, DAY), (4, Kind.PURCHASE, DAY), (5, Kind.CLICK, DAY), (3, Kind.PURCHASE, 9 * DAY))
    found = features([], user=user)
    assert value(found, "buy_again_due", 3) > value(found, "buy_again_due", 4) > 0
    assert np.isnan(value(found, "buy_again_due", 5))


@given(st.permutations(range(-1, N)), st.integers(1, N), st.lists(st.integers(-1, N - 1), max_size=5, unique=True))
@settings(deadline=None, max_examples=30)
def test_a_row_does_not_depend_on_the_other_candidates(order: list[int], count: int, seeds: list[int]) -> None:
    """To the bit. Features that compare a candidate with its list are left out: they are not of seeds."""
    items = make_items(FULL, table({5: [(0, 0.3), (3, 0.1)]}))
    of_seeds = [names(items).index(name) for name in OF_SEEDS]
    context = Context(seeds=np.array(seeds, np.int32))
    some = np.array(order[:count], np.int32)
    every = rows(items, EMPTY, ALL, AT, context)[:, of_seeds]
    np.testing.assert_array_equal(rows(items, EMPTY, some, AT, context)[:, of_seeds], every[some + 1])


@given(logs(), st.lists(st.integers(0, 11), min_size=1, max_size=3, unique=True))
@settings(deadline=None, max_examples=15)
def test_replayed_features_know_no_future(log: list[LogRow], seeds: list[int]) -> None:
    """A list at day 6 has the same rows with and without what happened from day 6 on."""
    lists = make_lists([6 * DAY], [0], [list(range(N))])
    lists = replace(lists, seeds=np.array([seeds], np.int32))
    day_6 = [row for row in log if row[0] < 6 * DAY]
    with_future, without = (replace(make_replay(make_events(part, 3)), seeds=True).rows(lists) for part in (log, day_6))
    np.testing.assert_array_equal(with_future, without)


def test_companions_are_refit_at_each_refresh_from_what_was_bought_before() -> None:
    """Three users buy items 0 and 1 together on day 1; the first refresh is on day 2.

    Item 4 has a little weight, for its text: it is in no basket.
    """
    log: list[LogRow] = [(DAY + item, user, item, Kind.PURCHASE, -1) for user in range(3) for item in (0, 1)]
    replay = replace(make_replay(make_events(log, 3)), seeds=True)
    lists = make_lists([1.5 * DAY, 3 * DAY], [0, 0], [[1, 4], [1, 4]])
    lists = replace(lists, seeds=np.array([[0], [0]], np.int32))
    column = replay.rows(lists)[:, [f.name for f in replay.features].index("seed_together")]
    assert np.isnan(column[:2]).all()
    assert column[2] > column[3]
    items = replay.items_at(START + 3 * DAY)
    assert items.companions is not None
    assert items.companions.together.item[0, 0] == 1
    assert make_replay(make_events(log, 3)).items_at(START + 3 * DAY).companions is None


def test_lists_keep_their_seeds_when_they_are_taken_and_joined() -> None:
    lists = make_lists([0, 1, 2], [0, 0, 0], [[0], [1], [2]])
    some = replace(lists, seeds=np.array([[3, 4], [5, -1], [-1, -1]], np.int32))
    taken = some.take(np.array([1, 0]))
    assert [taken.seeds_of(g).tolist() for g in range(2)] == [[5], [3, 4]]
    wider = replace(lists, seeds=np.array([[6, 7, 8], [-1, -1, -1], [9, -1, -1]], np.int32))
    joined = concat([lists, some, wider])
    found = [joined.seeds_of(g).tolist() for g in range(9)]
    assert found == [[], [], [], [3, 4], [5], [], [6, 7, 8], [], [9]]
    assert concat([lists, lists]).seeds.size == 0
