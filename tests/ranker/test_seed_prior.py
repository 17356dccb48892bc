"""The bonus for the items of a request, for rankers that were not trained on lists with any."""

from __future__ import annotations

import numpy as np
import pytest

from features.table import FEATURES_OF_SEEDS
from ranker.query_prior import LEARNED_FROM, SEED_TABLES, SEED_TEXT, hide_seeds, seed_bonus, seed_columns

NAMES = ["price", SEED_TEXT, *SEED_TABLES, "buy_again_due"]
NAN = np.nan


def table(text: list[float], **tables: list[float]) -> np.ndarray:
    """Rows with these values; a table that is not named has no weight for any candidate."""
    rows = np.zeros((len(text), len(NAMES)), np.float32)
    rows[:, 1] = text
    rows[:, 2:6] = NAN
    for name, values in tables.items():
        rows[:, NAMES.index(f"seed_{name}")] = values
    return rows


def test_the_bonus_reads_features_that_exist() -> None:
    declared = [f.name for f in FEATURES_OF_SEEDS]
    assert {SEED_TEXT, *SEED_TABLES} <= set(declared)
    assert [declared[k] for k in seed_columns(declared)] == declared[:-1], "all but buy_again_due"


def test_features_of_seeds_are_hidden_in_training_with_too_few_lists_that_have_them() -> None:
    rows = table([0.5, 0.1], together_max=[1.0, 0.0])
    assert hide_seeds(rows, NAMES, LEARNED_FROM) is rows
    hidden = hide_seeds(rows, NAMES, LEARNED_FROM - 1)
    assert np.isnan(hidden[:, 1:6]).all()
    assert (hidden[:, [0, 6]] == rows[:, [0, 6]]).all()
    assert np.isfinite(rows[:, 2]).all(), "the input is not modified"
    assert hide_seeds(rows, ["a", "b"], 0) is rows


def test_the_bonus_is_in_standard_deviations_of_the_scores() -> None:
    """Scores 0 and 2 have deviation 1. The largest weight of the list: 12; half of it: 6. Cosines give +.5 and -.5."""
    bonus = seed_bonus(table([0.5, 0.1], together_max=[0.2, 0.1]), NAMES, np.array([0.0, 2.0]))
    assert bonus == pytest.approx([12 * 1.0 + 0.5, 12 * 0.5 - 0.5])
    ten_times = seed_bonus(table([0.5, 0.1], together_max=[0.2, 0.1]), NAMES, np.array([0.0, 20.0]))
    assert ten_times == pytest.approx(10 * bonus)


def test_tables_with_a_weight_count_equally() -> None:
    """(1 + .5) / 2 and (.25 + 1) / 2 of 12; a table that has nothing for the list does not count."""
    rows = table([0.3, 0.3], together_max=[0.4, 0.1], following_max=[0.1, 0.2], goes_with_max=[0.0, 0.0])
    assert seed_bonus(rows, NAMES, np.array([0.0, 2.0])) == pytest.approx([12 * 0.75, 12 * 0.625])


def test_without_seeds_there_is_no_bonus() -> None:
    assert seed_bonus(table([NAN, NAN]), NAMES, np.array([0.0, 2.0])).tolist() == [0.0, 0.0]
    assert seed_bonus(table([]), NAMES, np.empty(0)).tolist() == []
