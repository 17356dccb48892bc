"""What a query is worth to a ranker that has learned nothing of queries."""

from __future__ import annotations

import numpy as np
import pytest

from ranker.query_prior import LEARNED_FROM, hide_query, query_bonus, query_columns

NAMES = ["price", "query_cosine", "query_match", "hour"]


def table(cosine: list[float], match: list[float]) -> np.ndarray:
    rows = np.zeros((len(cosine), 4), np.float32)
    rows[:, 1], rows[:, 2] = cosine, match
    return rows


def test_too_few_searched_lists_are_not_learned_from() -> None:
    rows = table([0.5, 0.1], [1.0, 0.0])
    assert query_columns(NAMES) == [1, 2]
    assert hide_query(rows, NAMES, LEARNED_FROM) is rows
    few = hide_query(rows, NAMES, LEARNED_FROM - 1)
    assert np.isnan(few[:, 1:3]).all()
    assert (few[:, [0, 3]] == rows[:, [0, 3]]).all()
    assert np.isfinite(rows).all(), "what was given stays as it was"
    assert hide_query(rows, ["a", "b", "c", "d"], 0) is rows


def test_what_matches_is_moved_in_deviations_of_the_lists_scores() -> None:
    """Scores of 0 and 2 deviate by 1. Words: 6 for all of them. Cosines of .5 and .1 stand at +1 and -1, .5 each."""
    found = query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.array([0.0, 2.0]))
    assert found == pytest.approx([6 * 1.0 + 0.5, 6 * 0.0 - 0.5])
    assert query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.array([0.0, 20.0])) == pytest.approx(10 * found)


def test_of_equal_scores_a_deviation_is_one_and_what_is_missing_moves_nothing() -> None:
    nan = np.nan
    assert query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.zeros(2)) == pytest.approx([6.5, -0.5])
    assert query_bonus(table([nan, nan], [nan, nan]), NAMES, np.array([0.0, 2.0])).tolist() == [0.0, 0.0]
    # A candidate without text stands at the mean of the others' cosines; one alone has no deviation.
    assert query_bonus(table([0.5, 0.1, nan], [0.0] * 3), NAMES, np.array([1.0, 1.0, 1.0])) == pytest.approx(
        [0.5, -0.5, 0.0]
    )
    assert query_bonus(table([0.5], [0.5]), NAMES, np.array([7.0])).tolist() == [3.0]


def test_what_holds_half_of_the_words_stands_before_what_holds_none() -> None:
    """Half of 6 deviations, 3: a list of 24 has hardly a score as far above another of its own."""
    score = np.array([0.0, *np.linspace(-1.7, 1.7, 23)])
    moved = score + query_bonus(table([0.2] * 24, [0.5, *[0.0] * 23]), NAMES, score)
    assert moved.argmax() == 0
