"""Segments of users: a posterior computed by hand, planted clusters that are found, and small or uniform data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.segments import SEGMENTS, Segments, fit_segments
from features.taste import Evidence, logits, taste_posterior_mean

NONE = np.empty(0, np.int32)


def test_a_taste_moves_toward_the_segments_that_explain_it() -> None:
    """One item at 2, residual 0.5, curvature 0.25: precision 1.8 and pull 1, as without segments.

    Two segments of equal share at 1 and -1 have the log likelihoods (1 + 1)^2 / 3.6 - 1/2 and (1 - 1)^2 / 3.6 - 1/2, so
    the first has probability p = 1 / (1 + e^(-4 / 3.6)), and the taste is (1 + p - (1 - p)) / 1.8.
    """
    two = Segments(np.array([[1.0], [-1.0]], np.float32), np.log(np.array([0.5, 0.5], np.float32)))
    factor = np.array([[2.0], [0.0]], np.float32)
    found = taste_posterior_mean(factor, *two, np.array([0], np.int32), np.array([0.5]), np.array([0.25]), 1.0, NONE)
    probability = 1 / (1 + math.exp(-4 / 3.6))
    assert found == pytest.approx([2 * probability / 1.8])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 6), k=st.integers(1, 5), shown=st.integers(0, 20))
def test_a_taste_is_the_posterior_mean_of_a_mixture(seed: int, d: int, k: int, shown: int) -> None:
    """Each segment's posterior by numpy, weighted by its likelihood."""
    rng = np.random.default_rng(seed)
    factor, centre = rng.normal(size=(20, d)).astype(np.float32), rng.normal(size=(k, d)).astype(np.float32)
    share = rng.dirichlet(np.ones(k)).astype(np.float32) + np.float32(1e-3)
    item = rng.integers(0, 19, shown).astype(np.int32)
    residual, curvature = rng.uniform(-1, 1, shown), rng.uniform(0, 0.25, shown)
    x = factor[item].astype(np.float64)
    mean = curvature @ x
    precision = np.eye(d) + (x.T * curvature) @ x - np.outer(mean, mean) / (1 + curvature.sum())
    each = np.linalg.solve(precision, (residual @ x + centre).T).T
    log = np.log(share) - (centre.astype(np.float64) ** 2).sum(axis=1) / 2
    log += ((residual @ x + centre) * each).sum(axis=1) / 2
    weight = np.exp(log - log.max())
    found = taste_posterior_mean(factor, centre, np.log(share), item, residual, curvature, 3.0, NONE)
    np.testing.assert_allclose(found, weight @ each / weight.sum(), rtol=1e-5, atol=1e-6)


FACTOR = np.vstack([np.eye(8), np.zeros((1, 8))]).astype(np.float32) * 2


def _clusters(users: int) -> list[Evidence]:
    """Two clusters of users, who click items 0 to 3 or 4 to 7 of eight unrelated items; all were shown to everyone."""
    rng, item = np.random.default_rng(3), np.arange(8, dtype=np.int32)
    likes = [np.where((item < 4) == (u % 2 == 0), 0.9, 0.1) for u in range(users)]
    return [Evidence(item, np.where(rng.uniform(size=8) < chance, 0.5, -0.5), np.full(8, 0.25)) for chance in likes]


def test_a_user_who_shows_part_of_a_taste_is_expected_to_share_the_rest() -> None:
    """After a single click on item 0, items 1 to 3 gain and 4 to 7 lose, although no factor relates them."""
    segments = fit_segments(FACTOR, _clusters(2000))
    clicked = (np.array([0], np.int32), np.array([0.5]), np.array([0.25]), 1.0, NONE)
    every = np.arange(8, dtype=np.int32)
    found = logits(FACTOR, every, taste_posterior_mean(FACTOR, segments.centre, segments.log_share, *clicked))
    assert found[1:4].min() > 0.5
    assert found[4:].max() < -0.5
    none = Segments.none()
    assert not logits(FACTOR, every, taste_posterior_mean(FACTOR, none.centre, none.log_share, *clicked))[1:].any()


def test_shares_add_up_to_1_and_centres_match_the_clusters() -> None:
    found = fit_segments(FACTOR, _clusters(2000))
    assert found.centre.shape == (SEGMENTS, 8)
    assert np.exp(found.log_share).sum() == pytest.approx(1)
    assert np.exp(found.log_share) @ (found.centre[:, :4].sum(axis=1) > 0) == pytest.approx(0.5, abs=0.05)


def test_segments_are_deterministic() -> None:
    a, b = (fit_segments(FACTOR, _clusters(100)) for _ in range(2))
    np.testing.assert_array_equal(a.centre, b.centre)
    np.testing.assert_array_equal(a.log_share, b.log_share)


@pytest.mark.parametrize("users", [0, 1, 39])
def test_few_users_give_no_segments(users: int) -> None:
    """Two segments need at least 20 users each."""
    assert len(fit_segments(FACTOR, _clusters(users)).centre) == 0
    assert len(fit_segments(FACTOR, _clusters(40)).centre) == 2


def test_without_factors_there_are_no_segments() -> None:
    assert len(fit_segments(np.empty((9, 0), np.float32), _clusters(100)).centre) == 0


def test_identical_users_give_finite_segments() -> None:
    """All points of k-means are equal, and nothing is divided by zero."""
    same = [Evidence(np.arange(4, dtype=np.int32), np.array([0.5, -0.5, 0.5, -0.5]), np.full(4, 0.25))] * 100
    found = fit_segments(FACTOR, same)
    assert np.isfinite(found.centre).all()
    assert np.isfinite(found.log_share).all()
