"""How much places are looked at, from what was clicked there; and a metric that sets it aside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ranker.examination import MIN_PROBABILITY, fit_examination, ips_ndcg, power_law


def test_a_place_is_looked_at_as_its_clicks_over_those_expected() -> None:
    """600 and 300 clicks where 600 each were due, so 1.33 and 0.67 times the overall share, each shrunk by 20."""
    position = np.repeat([0, 1], 1000)
    clicked = np.concatenate([np.arange(1000) < 600, np.arange(1000) < 300])
    overall = 900 / 1200
    top, next_ = ((k / overall + 20) / (600 + 20) for k in (600, 300))
    assert fit_examination(position, clicked, np.full(2000, 0.6)) == pytest.approx([1, next_ / top])


@pytest.mark.parametrize("bias", [0.0, 0.3, 1.0])
def test_the_bias_of_a_shop_that_puts_the_best_first_is_found_through_what_is_expected(bias: float) -> None:
    """Better items stand higher here, so clicks by place alone fall more steeply than people look."""
    rng = np.random.default_rng(3)
    chance = rng.uniform(0.02, 0.5, (40_000, 12))
    order = np.argsort(-(chance + rng.normal(0, 0.15, chance.shape)), axis=1)
    chance = np.take_along_axis(chance, order, axis=1)
    seen = power_law(12, bias)
    clicked = rng.random(chance.shape) < chance * seen
    position = np.broadcast_to(np.arange(12), chance.shape)
    found = fit_examination(position.ravel(), clicked.ravel(), chance.ravel())
    assert found == pytest.approx(np.maximum(seen, MIN_PROBABILITY), abs=0.03)
    by_place = clicked.mean(axis=0) / clicked.mean(axis=0)[0]
    assert by_place[-1] < found[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 8), st.booleans(), st.floats(0, 1) | st.just(float("nan"))), max_size=40))
@example([(0, True, 2.2e-311)])  # a click where next to none was due
def test_it_is_one_at_the_top_and_never_rises_whatever_was_clicked(rows: list[tuple[int, bool, float]]) -> None:
    position, clicked, chance = (np.array([r[k] for r in rows]) for k in range(3))
    found = fit_examination(position.astype(np.int16), clicked.astype(bool), chance.astype(float))
    assert found[0] == 1
    assert (np.diff(found) <= 1e-12).all()
    assert (found >= MIN_PROBABILITY).all()


def test_nothing_shown_or_clicked_is_looked_at_alike() -> None:
    none = np.empty(0)
    assert fit_examination(none.astype(np.int64), none.astype(bool), none).tolist() == [1]
    assert fit_examination(np.array([0, 1]), np.zeros(2, bool), np.full(2, 0.5)).tolist() == [1, 1]


# --- the metric ---


def test_where_all_is_looked_at_it_is_ndcg_weighted_by_clicks() -> None:
    """Two clicks, both on top: 1, and weight 2. One click, at the second of two: 1 / log2(3), and weight 1."""
    worth = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    found = ips_ndcg(np.array([3.0, 2, 1, 2, 1]), worth, np.array([0, 3, 5]), np.ones(5))
    assert found == pytest.approx((2 + 1 / np.log2(3)) / 3)


def test_a_click_where_few_look_counts_for_more() -> None:
    """Worth 1 / 0.25 = 4 put second behind 1: (1 + 4 / log2(3)) / (4 + 1 / log2(3))."""
    discount = 1 / np.log2(3)
    found = ips_ndcg(np.array([2.0, 1.0]), np.ones(2), np.array([0, 2]), np.array([1.0, 0.25]))
    assert found == pytest.approx((1 + 4 * discount) / (4 + discount))


def test_lists_of_nothing_have_nothing() -> None:
    assert ips_ndcg(np.zeros(2), np.zeros(2), np.array([0, 2]), np.ones(2)) == 0
