"""Intervals: arithmetic by hand, invariances, and coverage with daily looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.experiments.statistics import best_ratio, interval, multiplier, sequential_p, tuned_target

Z = st.floats(0.01, 30)
TIME = st.floats(1e-3, 1e6)
ALPHAS = st.floats(1e-4, 0.3)


def test_the_half_width_follows_the_formula() -> None:
    """At twice the target, x is 2 * 8.2 = 16.4, and the half width sqrt((1 + 1/16.4) (log 17.4 + 6.0)) = 3.06."""
    x = 2 * best_ratio(0.05)
    expected = np.sqrt((1 + 1 / x) * (np.log(1 + x) - 2 * np.log(0.05)))
    assert multiplier(20.0, 10.0, 0.05) == pytest.approx(expected)
    assert expected == pytest.approx(3.064, abs=0.001)


@given(ALPHAS)
def test_the_interval_is_narrowest_at_the_target(alpha: float) -> None:
    """There the half width is sqrt(1 + x)."""
    best = float(multiplier(1.0, 1.0, alpha))
    assert best == pytest.approx(np.sqrt(1 + best_ratio(alpha)))
    assert all(multiplier(t, 1.0, alpha) > best for t in (0.5, 0.9, 1.1, 2.0))


@given(Z, TIME, TIME, ALPHAS)
def test_p_is_the_alpha_whose_interval_ends_at_zero(z: float, time: float, target: float, alpha: float) -> None:
    p = float(sequential_p(z, time, target, alpha))
    if 1e-300 < p < 1:
        assert multiplier(time, target, p, tuned=alpha) == pytest.approx(z, rel=1e-6)


@given(st.floats(-10, 10), st.floats(0.01, 10), TIME, st.floats(0.1, 10))
def test_an_interval_is_mirrored_and_scaled_with_its_estimate(value: float, se: float, time: float, by: float) -> None:
    """Swapping the arms changes the sign; another currency changes the scale."""
    one = interval(value, se**2, time, time)
    mirrored, scaled = interval(-value, se**2, time, time), interval(by * value, (by * se) ** 2, time, time)
    assert (mirrored.low, mirrored.high, mirrored.p) == pytest.approx((-one.high, -one.low, one.p))
    assert (scaled.low, scaled.high) == pytest.approx((by * one.low, by * one.high))
    assert scaled.sign == -mirrored.sign == one.sign


@given(st.floats(-10, 10), st.floats(0.01, 10), TIME, TIME)
def test_an_always_valid_interval_has_the_one_with_a_fixed_horizon_inside(
    value: float, se: float, time: float, target: float
) -> None:
    one = interval(value, se**2, time, target)
    assert one.low < one.fixed_low < value < one.fixed_high < one.high
    assert one.p >= one.fixed_p


@pytest.mark.parametrize(
    ("variance", "time", "target"), [(0.0, 1.0, 1.0), (np.nan, 1.0, 1.0), (1.0, 0.0, 1.0), (1, 1, np.nan)]
)
def test_without_a_variance_nothing_is_known(variance: float, time: float, target: float) -> None:
    """Both intervals are NaN, and neither sign is certain."""
    one = interval(1.0, variance, time, target)
    assert np.isnan([one.low, one.high, one.p, one.fixed_low, one.fixed_p]).all()
    assert one.sign == 0


def test_the_target_is_extrapolated_from_the_first_known_look() -> None:
    """Time 6 after two days is 3 a day, so 42 in 14 days; a look after the planned end is its own target."""
    time, days = np.array([np.nan, 6.0, 100.0]), np.array([1.0, 2.0, 3.0])
    assert tuned_target(time, days, 14) == 42
    assert tuned_target(time, days, 1) == 6
    assert np.isnan(tuned_target(np.full(3, np.nan), days, 14))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_daily_looks_at_noise_rarely_exclude_zero(seed: int) -> None:
    """Of 2,000 tests of noise with 50 looks, at most 5% ever exclude zero; with a fixed horizon, over a quarter do."""
    noise = np.random.default_rng(seed).normal(size=(2000, 50)).cumsum(axis=1)
    time = np.arange(1.0, 51)
    z = noise / np.sqrt(time)
    always = (sequential_p(z, time, tuned_target(time, time, 50)) <= 0.05).any(axis=1)
    assert 0.005 < always.mean() <= 0.05
    assert (np.abs(z) > 1.96).any(axis=1).mean() > 0.25
