"""Retrieval: which candidates come from which source in which order; and click-rate priors of unusual input."""

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


def shop(available_days: list[float] | None = None, engaged: dict[int, int] | None = None) -> Items:
    """Six items without text: available from these days after START (NaN unknown), with these counts of clicks."""
    n = 6
    base = make_catalogue(n)
    date = START + DAY * np.array(available_days or [np.nan] * n)
    catalogue: Catalogue = replace(base, available_from=np.append(date, np.nan))
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    for item, times in (engaged or {}).items():
        state.apply(np.full(times, item, np.int32), np.full(times, Kind.CLICK, np.int8), np.full(times, NOW - DAY))
    nothing = np.full((n + 1, 8), np.nan, np.float32)
    return Items(catalogue, Vectors.quantise(nothing), nothing[:, 0].copy(), Neighbours.none(n), state)


def clicked(*items: int) -> History:
    """A history of clicks on these items, newest first, an hour apart."""
    at = NOW - 3600.0 * np.arange(1.0, len(items) + 1)
    return EMPTY._replace(item=np.array(items, np.int32), kind=np.full(len(items), Kind.CLICK, np.int8), at=at)


def with_text(items: Items, vectors: list[list[float]]) -> Items:
    """The same items with these vectors; the unknown item has none."""
    return replace(items, vectors=Vectors.quantise(np.array([*vectors, [np.nan] * 2], np.float32)))


def test_a_new_user_gets_popular_and_new_items_in_turn() -> None:
    """Popular: 2, then 5. New: 4, then 0. Each source gives its best, then each its second best."""
    items = shop([9, np.nan, np.nan, np.nan, 9.5, np.nan], {2: 9, 5: 3})
    found = retrieve(items, EMPTY, NOW, 10)
    assert found.item.tolist() == [2, 4, 5, 0]
    assert found.source.tolist() == [POPULAR, NEW, POPULAR, NEW]


def test_without_events_only_new_items_are_returned() -> None:
    found = retrieve(shop([1, 2, 3, 4, 5, 6]), EMPTY, NOW, 3)
    assert found.item.tolist() == [5, 4, 3]
    assert found.source.tolist() == [NEW] * 3


def test_without_events_and_dates_nothing_is_returned() -> None:
    found = retrieve(shop(), EMPTY, NOW, 3)
    assert found.item.dtype == np.int32
    assert len(found.item) == len(found.source) == 0


def test_sources_take_turns_and_an_item_belongs_to_the_first_one() -> None:
    """Again: 0. Co-occurrence with 0: 1. Text like 0: 0 itself, then 2. Popular: 3. New: 4.

    The best by text, 0, is taken already, so its second best comes in the next turn, after the best of every source.
    """
    base = shop([1, 1, 1, 1, 5, 1], {3: 4})
    near = Neighbours(np.full((7, 1), -1, np.int32), np.zeros((7, 1), np.float32))
    near.item[0], near.weight[0] = 1, 0.5
    items = with_text(replace(base, neighbours=near), [[1, 0], [-1, 0], [0.8, 0.6], [-1, 0], [-1, 0], [-1, 0]])
    found = retrieve(items, clicked(0), NOW, 5)
    assert found.item.tolist() == [0, 1, 3, 4, 2]
    assert [SOURCES[s] for s in found.source] == ["again", "co_occurrence", "popular", "new", "text"]


def test_ties_are_ordered_by_row() -> None:
    assert retrieve(shop(engaged=dict.fromkeys((5, 1, 3), 2)), EMPTY, NOW, 3).item.tolist() == [1, 3, 5]
    assert retrieve(shop(engaged=dict.fromkeys((5, 1, 3), 2)), EMPTY, NOW, 2).item.tolist() == [1, 3]


def test_items_not_yet_available_are_never_returned() -> None:
    """Item 2 is popular, clicked and similar in text, and available from tomorrow; it is returned from that time on."""
    items = with_text(shop([1, 1, 11, 1, 1, 1], {2: 9}), [[1, 0]] * 6)
    assert 2 not in retrieve(items, clicked(2), NOW, 10).item
    assert 2 in retrieve(items, clicked(2), START + 11 * DAY, 10).item


def test_an_item_without_a_date_is_available_but_never_new() -> None:
    found = retrieve(shop([np.nan, 1, np.nan, np.nan, np.nan, np.nan], {0: 1}), EMPTY, NOW, 10)
    assert dict(zip(found.item.tolist(), found.source.tolist(), strict=True)) == {0: POPULAR, 1: NEW}


def test_items_outside_the_catalogue_are_ignored() -> None:
    assert len(retrieve(shop(), clicked(-1), NOW, 10).item) == 0


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_1_is_rejected(size: int) -> None:
    with pytest.raises(ValueError, match=f"size is {size}; ask for at least 1"):
        retrieve(shop(), EMPTY, NOW, size)


def test_popularity_decays_and_does_not_count_impressions() -> None:
    """Two engagements a week ago with a half-life of a week count 2 * 1/2; an impression counts 0."""
    items = shop()
    items.state.apply(
        np.array([0, 0, 1], np.int32),
        np.array([Kind.CLICK, Kind.CART, Kind.IMPRESSION], np.int8),
        np.full(3, NOW - 7 * DAY),
    )
    np.testing.assert_allclose(recent_popularity(items, np.array([0, 1, -1], np.int32), NOW), [2 * 0.5, 0, 0])


@settings(max_examples=30, deadline=None)
@given(logs(), st.integers(1, 15), st.integers(0, 60), st.integers(0, 2))
def test_candidates_are_distinct_available_limited_and_deterministic(
    rows: list[tuple[float, int, int, Kind, int]], size: int, k: int, user: int
) -> None:
    """For any log; and a smaller size gives the first candidates of a larger one."""
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


def test_a_prior_is_a_rate_even_for_infinite_vectors_and_huge_numbers() -> None:
    """Infinite coordinates count as missing; attributes too large to square are divided by the largest."""
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
    # 6 clicks in 30 impressions of every item: 0.2.
    np.testing.assert_allclose(prior, np.full(n + 1, 6 / 30), rtol=1e-5)


def test_more_clicks_than_impressions_give_a_rate_of_at_most_1() -> None:
    """Clicks may come from lists that were not logged: the prediction stays between 0 and 1."""
    catalogue = make_catalogue(6)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    item = np.array([0] + [1] * 50, np.int32)
    state.apply(item, np.where(np.arange(51) == 0, Kind.IMPRESSION, Kind.CLICK).astype(np.int8), np.full(51, NOW))
    prior = click_rate_prior(catalogue, make_vectors(6), state, NOW)
    assert ((prior >= 0) & (prior <= 1)).all()


@pytest.mark.parametrize("kind", [Kind.IMPRESSION, Kind.CLICK])
def test_without_impressions_or_clicks_the_prior_is_missing(kind: Kind) -> None:
    catalogue = make_catalogue(6)
    state = ItemState.empty(catalogue.category, len(catalogue.category_names))
    state.apply(np.zeros(3, np.int32), np.full(3, kind, np.int8), np.full(3, NOW))
    assert np.isnan(click_rate_prior(catalogue, make_vectors(6), state, NOW)).all()


def test_a_standardised_column_has_mean_0_and_deviation_1() -> None:
    """1, 3 and a missing value: mean 2, deviation 1; a constant column is 0; 1e300 and -1e300 become 1 and -1."""
    numbers = np.array([[1, 7, 1e300], [3, 7, -1e300], [np.nan, 7, np.nan]])
    np.testing.assert_allclose(standardize(numbers), [[-1, 0, 1], [1, 0, -1], [0, 0, 0]])
    assert standardize(np.empty((4, 0))).shape == (4, 0)
