"""Examination probabilities estimated from clicks, and the ndcg that corrects for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ranker.examination import MIN_PROBABILITY, fit_examination, ips_ndcg, power_law


def test_examination_probability_is_observed_over_expected_clicks() -> None:
    """600 and 300 clicks with 600 expected each: 1.33 and 0.67 times the overall ratio, each shrunk by 20 clicks."""
    position = np.repeat([0, 1], 1000)
    clicked = np.concatenate([np.arange(1000) < 600, np.arange(1000) < 300])
    overall = 900 / 1200
    top, next_ = ((k / overall + 20) / (600 + 20) for k in (600, 300))
    assert fit_examination(position, clicked, np.full(2000, 0.6)) == pytest.approx([1, next_ / top])


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
def test_position_bias_is_estimated_correctly_if_better_items_are_shown_higher(bias: float) -> None:
    """In this shop, clicks per position alone decrease more steeply than the examination probability."""
    rng = np.random.default_rng(3)
    click_probability = rng.uniform(0.02, 0.5, (40_000, 12))
    order = np.argsort(-(click_probability + rng.normal(0, 0.15, click_probability.shape)), axis=1)
    click_probability = np.take_along_axis(click_probability, order, axis=1)
    true = power_law(12, bias)
    clicked = rng.random(click_probability.shape) < click_probability * true
    position = np.broadcast_to(np.arange(12), click_probability.shape)
    estimate = fit_examination(position.ravel(), clicked.ravel(), click_probability.ravel())
    assert estimate == pytest.approx(np.maximum(true, MIN_PROBABILITY), abs=0.03)
    by_position = clicked.mean(axis=0) / clicked.mean(axis=0)[0]
    assert by_position[-1] < estimate[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 8), st.booleans(), st.floats(0, 1) | st.just(float("nan"))), max_size=40))
@example([(0, True, 2.2e-311)])  # a click with almost no expected clicks
def test_the_estimate_is_one_at_the_top_and_never_increases(rows: list[tuple[int, bool, float]]) -> None:
    position, clicked, click_probability = (np.array([r[k] for r in rows]) for k in range(3))
    estimate = fit_examination(position.astype(np.int16), clicked.astype(bool), click_probability.astype(float))
    assert estimate[0] == 1
    assert (np.diff(estimate) <= 1e-12).all()
    assert (estimate >= MIN_PROBABILITY).all()


def test_without_rows_or_clicks_all_positions_have_probability_one() -> None:
    none = np.empty(0)
    assert fit_examination(none.astype(np.int64), none.astype(bool), none).tolist() == [1]
    assert fit_examination(np.array([0, 1]), np.zeros(2, bool), np.full(2, 0.5)).tolist() == [1, 1]


# --- the metric ---


def test_with_full_examination_ips_ndcg_is_ndcg_weighted_by_clicks() -> None:
    """List 0: two clicks at the top: 1, weight 2. List 1: one click, second of two: 1 / log2(3), weight 1. List 2: no
    click."""
    of, rank = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    value, weight = ips_ndcg(of, rank, np.array([1.0, 1.0, 0.0, 0.0, 1.0]), np.ones(5), n_lists=3)
    assert value == pytest.approx([1, 1 / np.log2(3), np.nan], nan_ok=True)
    assert weight.tolist() == [2, 1, 0]


def test_a_click_at_a_rarely_examined_position_counts_more() -> None:
    """Gain 1 / 0.25 = 4 ranked second after gain 1: (1 + 4 / log2(3)) / (4 + 1 / log2(3))."""
    discount = 1 / np.log2(3)
    value, weight = ips_ndcg(np.zeros(2, np.int64), np.arange(2), np.ones(2), np.array([1.0, 0.25]), n_lists=1)
    assert value == pytest.approx([(1 + 4 * discount) / (4 + discount)])
    assert weight.tolist() == [1 + 4]


def test_ranks_from_k_on_do_not_count() -> None:
    """A click at rank 0 and one at rank 2: 1 of 1 at k = 1; 1 of 1 + 1 / log2(3) at k = 2."""
    of, rank, one = np.zeros(2, np.int64), np.array([0, 2]), np.ones(2)
    assert ips_ndcg(of, rank, one, one, 1, k=1)[0] == pytest.approx([1])
    assert ips_ndcg(of, rank, one, one, 1, k=2)[0] == pytest.approx([1 / (1 + 1 / np.log2(3))])
