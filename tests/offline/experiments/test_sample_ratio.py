"""The sample ratio: arithmetic of the Bayes factor, a planted mismatch, and false alarms with daily looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.experiments.statistics import LEVEL, log_bayes_factor, sample_ratio


def test_the_bayes_factor_of_a_uniform_prior_is_that_of_the_textbook() -> None:
    """With weight 2 over two arms, three and one of four units: 1 / (5 C(4, 1)) = 1/20 against 1/2^4, so 16/20."""
    assert np.exp(log_bayes_factor(np.array([[3, 1]]), (1, 1), [2.0])) == pytest.approx(16 / 20)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=5), st.integers(2, 9))
def test_the_order_of_arms_and_the_scale_of_shares_do_not_matter(counts: list[int], scale: int) -> None:
    shares = np.arange(1.0, len(counts) + 1)
    one = log_bayes_factor(np.array([counts]), shares)
    assert log_bayes_factor(np.array([counts[::-1]]), scale * shares[::-1]) == pytest.approx(one, rel=1e-6, abs=1e-4)


def test_a_planted_mismatch_is_found_and_stays_found() -> None:
    """48:52 from the third day on; later days that make up for it do not clear the alarm."""
    daily = np.array([[5000, 5000], [5000, 5000]] + 4 * [[4600, 5400]] + 4 * [[5400, 4600]])
    found = sample_ratio(daily.cumsum(axis=0), (1, 1))
    assert found.alarm
    assert found.since is not None
    assert found.since >= 2
    assert found.units == (50_000, 50_000)
    assert not sample_ratio(daily[:2].cumsum(axis=0), (1, 1)).alarm


def test_unequal_shares_are_expected_as_configured() -> None:
    counts = np.array([[90_000, 10_000]])
    assert not sample_ratio(counts, (9, 1)).alarm
    assert sample_ratio(counts, (8, 2)).alarm


@pytest.mark.parametrize("counts", [np.zeros((0, 2)), np.zeros((3, 2))])
def test_without_units_there_is_no_alarm(counts: np.ndarray) -> None:
    found = sample_ratio(counts, (1, 1))
    assert (found.units, found.p, found.alarm) == ((0, 0), 1.0, False)


@pytest.mark.parametrize("seed", [1, 2])
def test_daily_looks_at_fair_counts_raise_few_alarms(seed: int) -> None:
    """At most 1% of 2,000 fair tests, while most tests of 51:49 with 100,000 units have an alarm."""
    rng = np.random.default_rng(seed)
    for share, least, most in ((0.5, 0.0, LEVEL), (0.51, 0.95, 1.0)):
        second = rng.binomial(5000, share, (2000, 20)).cumsum(axis=1)
        counts = np.stack([5000 * np.arange(1, 21) - second, second], axis=-1)
        alarms = (log_bayes_factor(counts, (1, 1)) >= -np.log(LEVEL)).any(axis=1)
        assert least <= alarms.mean() <= most
