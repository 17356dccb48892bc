"""Scores for an objective: the weighted sum of relevance and value, and the floor on relevance."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranker.rerank import blend

SCORE = np.array([2.0, 1.0, 0.0, -1.0])
RELEVANCE = np.array([4.0, 2.0, 1.0, 0.1])
VALUE = np.array([1.0, 2.0, 6.0, 9.0])

numbers = st.floats(-20, 20)


def test_the_order_is_that_of_the_weighted_sum() -> None:
    # Sums at weight 0.5: (4 + 1) / 2, (2 + 2) / 2, (1 + 6) / 2 and (0.1 + 9) / 2.
    found = blend(SCORE, RELEVANCE, VALUE, 0.5, 0.0)
    assert np.argsort(-found.score).tolist() == [3, 2, 0, 1]
    assert not found.below_floor.any()


def test_scores_are_the_sums_mapped_to_the_range_of_the_scores() -> None:
    # Sums 2.5, 2, 3.5 and 4.55 span 2.55; scores span 3 from -1.
    expected = -1 + (np.array([2.5, 2.0, 3.5, 4.55]) - 2) / 2.55 * 3
    np.testing.assert_allclose(blend(SCORE, RELEVANCE, VALUE, 0.5, 0.0).score, expected)


def test_items_below_the_floor_keep_their_scores_and_come_last() -> None:
    # The floor is 0.25 * 4 = 1, which the third item reaches and the last does not.
    found = blend(SCORE, RELEVANCE, VALUE, 0.5, 0.25)
    assert found.below_floor.tolist() == [False, False, False, True]
    np.testing.assert_allclose(found.score, [0 + 0.5 / 1.5 * 2, 0, 2, -1])


def test_a_floor_of_one_keeps_the_order_of_relevance() -> None:
    np.testing.assert_array_equal(blend(SCORE, RELEVANCE, VALUE, 1.0, 1.0).score, SCORE)


def test_a_negative_value_moves_an_item_down() -> None:
    found = blend(SCORE, RELEVANCE, np.array([-3.0, 1, 1, 1]), 0.5, 0.0)
    assert np.argsort(-found.score).tolist() == [1, 2, 3, 0]


def test_equal_sums_keep_the_scores_and_equal_scores_have_a_range_of_one() -> None:
    np.testing.assert_array_equal(blend(SCORE, RELEVANCE, np.zeros(4), 1.0, 0.0).score, SCORE)
    np.testing.assert_array_equal(blend(np.zeros(2), np.ones(2), np.array([1.0, 2.0]), 0.5, 0.0).score, [0, 1])


def test_an_empty_list_has_no_scores() -> None:
    empty = np.empty(0)
    assert not len(blend(empty, empty, empty, 0.5, 0.2).score)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_no_item_below_the_floor_precedes_one_that_reaches_it(
    pairs: list[tuple[float, float]], weight: float, floor: float
) -> None:
    score, value = np.array(pairs).T
    relevance = 1 / (1 + np.exp(-score))
    found = blend(score, relevance, value, weight, floor)
    reached = relevance >= floor * relevance.max()
    np.testing.assert_array_equal(found.below_floor, ~reached)
    np.testing.assert_array_equal(found.score[~reached], score[~reached])
    assert found.score[reached].min() >= score[reached].min()
    if not reached.all():
        assert found.score[reached].min() > found.score[~reached].max()


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(-9, 9)), min_size=2, max_size=5), st.sampled_from([0.2, 0.5, 0.9])
)
def test_no_other_order_has_more_expected_clicks_and_more_expected_value(
    pairs: list[tuple[int, int]], weight: float
) -> None:
    relevance, value = np.array(sorted(pairs, reverse=True), np.float64).T
    examined = 1 / (1 + np.arange(len(pairs)))
    order = np.argsort(-blend(relevance, relevance, value, weight, 0.0).score, kind="stable")
    clicks, earned = (examined * relevance[order]).sum(), (examined * value[order]).sum()
    for other in itertools.permutations(range(len(pairs))):
        row = list(other)
        more_clicks = (examined * relevance[row]).sum() > clicks + 1e-9
        assert not (more_clicks and (examined * value[row]).sum() > earned + 1e-9)
