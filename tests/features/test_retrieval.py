"""Retrieval: which candidates, from which source, in which order; and what the click-rate prior makes of odd input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.decay import ItemState
from features.history import EMPTY, Histories, History
from features.log import Kind
from features.moment import Items
from features.neighbours import Neighbours
from features.prior import click_rate_prior, standardize
from features.retrieval import SOURCES, recent_popularity, retrieve
from features.text.vectors import Vectors
from tests.worlds import DAY, START, logs, make_catalogue, make_events, make_replay, make_vectors

NOW = START + 10 * DAY
POPULAR, NEW = SOURCES.index("popular"), SOURCES.index("new")


def shop(born: list[float] | None = None, engaged: dict[int, int] | None = None) -> Items:
    """Six items without text: born that many days after START (NaN unknown), engaged with that many times by now."""
    n = 6
    base = make_catalogue(n)
    date = START + DAY * np.array(born or [np.nan] * n)
    catalogue: Catalogue = replace(base, available_from=np.append(date, np.nan))
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    for item, times in (engaged or {}).items():
        state.apply(np.full(times, item, np.int32), np.full(times, Kind.CLICK, np.int8), np.full(times, NOW - DAY))
    nothing = np.full((n + 1, 8), np.nan, np.float32)
    return Items(catalogue, Vectors.quantise(nothing), nothing[:, 0].copy(), Neighbours.none(n), state)


def liked(*items: int) -> History:
    """Items clicked, newest first, an hour apart."""
    at = NOW - 3600.0 * np.arange(1, len(items) + 1)
    return EMPTY._replace(item=np.array(items, np.int32), kind=np.full(len(items), Kind.CLICK, np.int8), at=at)


def with_text(items: Items, vectors: list[list[float]]) -> Items:
    """The same items with these vectors, the unknown item without."""
    return replace(items, vectors=Vectors.quantise(np.array([*vectors, [np.nan] * 2], np.float32)))


def test_a_newcomer_is_offered_what_is_popular_and_what_is_new_in_turn() -> None:
    """Popular: 2, then 5. New: 4, then 0. Each source offers its best, then each its second best."""
    items = shop([9, np.nan, np.nan, np.nan, 9.5, np.nan], {2: 9, 5: 3})
    found = retrieve(items, EMPTY, NOW, 10)
    assert found.item.tolist() == [2, 4, 5, 0]
    assert found.source.tolist() == [POPULAR, NEW, POPULAR, NEW]


def test_where_nothing_is_known_yet_new_items_alone_are_offered() -> None:
    found = retrieve(shop([1, 2, 3, 4, 5, 6]), EMPTY, NOW, 3)
    assert found.item.tolist() == [5, 4, 3]
    assert found.source.tolist() == [NEW] * 3


def test_where_there_is_nothing_at_all_nothing_is_offered() -> None:
    found = retrieve(shop(), EMPTY, NOW, 3)
    assert found.item.dtype == np.int32
    assert len(found.item) == len(found.source) == 0


def test_the_sources_take_turns_and_an_item_is_the_first_ones_that_offered_it() -> None:
    """Again: 0. Together with 0: 1. Text like 0's: 0 itself, then 2. Popular: 3. New: 4. Text's best, 0, is taken, so
    its second comes a turn later, after everybody's first."""
    base = shop([1, 1, 1, 1, 5, 1], {3: 4})
    near = Neighbours(np.full((7, 1), -1, np.int32), np.zeros((7, 1), np.float32))
    near.item[0], near.weight[0] = 1, 0.5
    items = with_text(replace(base, neighbours=near), [[1, 0], [-1, 0], [0.8, 0.6], [-1, 0], [-1, 0], [-1, 0]])
    found = retrieve(items, liked(0), NOW, 5)
    assert found.item.tolist() == [0, 1, 3, 4, 2]
    assert [SOURCES[s] for s in found.source] == ["again", "co_occurrence", "popular", "new", "text"]


def test_equals_stand_by_row() -> None:
    assert retrieve(shop(engaged=dict.fromkeys((5, 1, 3), 2)), EMPTY, NOW, 3).item.tolist() == [1, 3, 5]
    assert retrieve(shop(engaged=dict.fromkeys((5, 1, 3), 2)), EMPTY, NOW, 2).item.tolist() == [1, 3]


def test_what_is_not_there_yet_is_never_offered() -> None:
    """Item 2 is popular, liked and text-alike, and on sale from tomorrow; from the very moment it is there, it is."""
    items = with_text(shop([1, 1, 11, 1, 1, 1], {2: 9}), [[1, 0]] * 6)
    assert 2 not in retrieve(items, liked(2), NOW, 10).item
    assert 2 in retrieve(items, liked(2), START + 11 * DAY, 10).item


def test_an_item_without_a_date_is_there_but_never_new() -> None:
    found = retrieve(shop([np.nan, 1, np.nan, np.nan, np.nan, np.nan], {0: 1}), EMPTY, NOW, 10)
    assert dict(zip(found.item.tolist(), found.source.tolist(), strict=True)) == {0: POPULAR, 1: NEW}


def test_what_left_the_catalogue_says_nothing() -> None:
    assert len(retrieve(shop(), liked(-1), NOW, 10).item) == 0


@pytest.mark.parametrize("size", [0, -1])
def test_no_candidates_cannot_be_asked_for(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; ask for at least 1"):
        retrieve(shop(), EMPTY, NOW, size)


def test_popularity_counts_engagements_of_late_and_no_impressions() -> None:
    """Two clicks a week ago, at a half-life of a week, are 2 * 1/2; impressions are none."""
    items = shop()
    items.state.apply(
        np.array([0, 0, 1], np.int32),
        np.array([Kind.CLICK, Kind.CART, Kind.IMPRESSION], np.int8),
        np.full(3, NOW - 7 * DAY),
    )
    np.testing.assert_allclose(recent_popularity(items, np.array([0, 1, -1], np.int32), NOW), [2 * 0.5, 0, 0])


@settings(max_examples=30, deadline=None)
@given(logs(), st.integers(1, 15), st.integers(0, 60), st.integers(0, 2))
def test_candidates_are_distinct_available_bounded_and_the_same_again(
    rows: list[tuple[float, int, int, Kind, int]], size: int, k: int, user: int
) -> None:
    """Whatever the log; and asking for fewer gives the beginning of what asking for more gives."""
    at = START + k * DAY / 6
    events = make_events(rows, 3)
    items, history = make_replay(events).items_at(at), Histories.of(events).read(user, at)
    found = retrieve(items, history, at, size)
    assert len(found.item) == len(set(found.item.tolist())) <= size
    assert ((found.item >= 0) & (found.item < 12)).all()
    assert ((found.source >= 0) & (found.source < len(SOURCES))).all()
    assert not (items.catalogue.available_from[found.item] > at).any()
    assert found.item.tolist() == retrieve(items, history, at, size).item.tolist()
    assert found.item.tolist() == retrieve(items, history, at, size + 5).item.tolist()[:size]


def test_a_prior_of_odd_vectors_and_numbers_is_a_rate_all_the_same() -> None:
    """Infinite coordinates and attributes beyond what can be squared count as missing, or in units of the largest."""
    n = 6
    vectors = make_vectors(n)
    vectors[0, 0], vectors[1, :] = np.inf, -np.inf
    huge = np.append([1e300, -1e300, 5.0, np.nan, np.inf, 0.0], np.nan)[:, None]
    catalogue: Catalogue = replace(make_catalogue(n), numbers=huge)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    for kind, times in ((Kind.IMPRESSION, 30), (Kind.CLICK, 6)):
        item = np.repeat(np.arange(n, dtype=np.int32), times)
        state.apply(item, np.full(len(item), kind, np.int8), np.full(len(item), NOW - DAY))
    prior = click_rate_prior(catalogue, vectors, state, NOW)
    # 6 clicks in 30 impressions, whatever the item: 0.2.
    np.testing.assert_allclose(prior, np.full(n + 1, 6 / 30), rtol=1e-5)


def test_more_clicks_than_impressions_still_predict_a_rate() -> None:
    """Clicks of lists that were not logged: the prediction stays between 0 and 1."""
    catalogue = make_catalogue(6)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    item = np.array([0] + [1] * 50, np.int32)
    state.apply(item, np.where(np.arange(51) == 0, Kind.IMPRESSION, Kind.CLICK).astype(np.int8), np.full(51, NOW))
    prior = click_rate_prior(catalogue, make_vectors(6), state, NOW)
    assert ((prior >= 0) & (prior <= 1)).all()


@pytest.mark.parametrize("kind", [Kind.IMPRESSION, Kind.CLICK])
def test_no_prior_is_learnt_without_both_impressions_and_clicks(kind: Kind) -> None:
    catalogue = make_catalogue(6)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    state.apply(np.zeros(3, np.int32), np.full(3, kind, np.int8), np.full(3, NOW))
    assert np.isnan(click_rate_prior(catalogue, make_vectors(6), state, NOW)).all()


def test_a_standardised_column_has_mean_0_and_deviation_1_and_gaps_at_the_mean() -> None:
    """1, 3 and a gap: mean 2, deviation 1; a constant column is 0; 1e300 and -1e300 are 1 and -1."""
    numbers = np.array([[1, 7, 1e300], [3, 7, -1e300], [np.nan, 7, np.nan]])
    np.testing.assert_allclose(standardize(numbers), [[-1, 0, 1], [1, 0, -1], [0, 0, 0]])
    assert standardize(np.empty((4, 0))).shape == (4, 0)
