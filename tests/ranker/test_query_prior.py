"""The query match bonus for rankers that were not trained on searches."""

from __future__ import annotations

import numpy as np
import pytest

from ranker.query_prior import LEARNED_FROM, hide_query, query_bonus, query_columns

NAMES = ["price", "query_cosine", "query_match", "hour"]


def table(cosine: list[float], match: list[float]) -> np.ndarray:
    rows = np.zeros((len(cosine), 4), np.float32)
    rows[:, 1], rows[:, 2] = cosine, match
    return rows


def test_query_features_are_hidden_in_training_with_too_few_searched_lists() -> None:
    rows = table([0.5, 0.1], [1.0, 0.0])
    assert query_columns(NAMES) == [1, 2]
    assert hide_query(rows, NAMES, LEARNED_FROM) is rows
    hidden = hide_query(rows, NAMES, LEARNED_FROM - 1)
    assert np.isnan(hidden[:, 1:3]).all()
    assert (hidden[:, [0, 3]] == rows[:, [0, 3]]).all()
    assert np.isfinite(rows).all(), "the input is not modified"
    assert hide_query(rows, ["a", "b", "c", "d"], 0) is rows


def test_the_bonus_is_in_standard_deviations_of_the_scores() -> None:
    """Scores 0 and 2 have deviation 1. All words match: 6. Cosines .5 and .1 standardise to +1 and -1: .5 each."""
    bonus = query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.array([0.0, 2.0]))
    assert bonus == pytest.approx([6 * 1.0 + 0.5, 6 * 0.0 - 0.5])
    assert query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.array([0.0, 20.0])) == pytest.approx(10 * bonus)


def test_equal_scores_have_deviation_one_and_missing_values_give_no_bonus() -> None:
    nan = np.nan
    assert query_bonus(table([0.5, 0.1], [1.0, 0.0]), NAMES, np.zeros(2)) == pytest.approx([6.5, -0.5])
    assert query_bonus(table([nan, nan], [nan, nan]), NAMES, np.array([0.0, 2.0])).tolist() == [0.0, 0.0]
    # A candidate without text gets the mean cosine of the others. A single candidate has no deviation.
    assert query_bonus(table([0.5, 0.1, nan], [0.0] * 3), NAMES, np.array([1.0, 1.0, 1.0])) == pytest.approx(
        [0.5, -0.5, 0.0]
    )
    assert query_bonus(table([0.5], [0.5]), NAMES, np.array([7.0])).tolist() == [3.0]


def test_a_candidate_with_half_of_the_words_ranks_above_all_with_none() -> None:
    """Its bonus is half of 6 deviations, 3. In a list of 24, scores rarely differ by that much."""
    score = np.array([0.0, *np.linspace(-1.7, 1.7, 23)])
    moved = score + query_bonus(table([0.2] * 24, [0.5, *[0.0] * 23]), NAMES, score)
    assert moved.argmax() == 0
