"""Encoders of a nightly run: the moments at which they are trained, and the shrinkage of their vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Kind
from offline.config.windows import Protocol
from offline.data.windows import Windows
from offline.training.encoders import refresh_moments, shrink_by_count
from tests.worlds import DAY, START, make_events

EVENTS = make_events([(d * DAY, 0, 0, Kind.CLICK, -1) for d in range(10)], 1)


def windows(protocol: Protocol = "time-split") -> Windows:
    return Windows(START, START + DAY, START + 5 * DAY, START + 7 * DAY, START + 9 * DAY + 1, protocol)


def days(refreshes: int, protocol: Protocol = "time-split") -> list[float]:
    return [(at - START) / DAY for at in refresh_moments(EVENTS, windows(protocol), refreshes)]


def test_moments_are_the_start_of_the_ranker_window_evenly_spaced_ones_after_it_and_the_start_of_the_test() -> None:
    """There are six events on days 1 to 6, before the test on day 7. Two moments between split them into thirds."""
    assert days(3) == [1, 1 + 6 / 3, 1 + 2 * 6 / 3, 7]
    assert days(1) == [1, 7]


def test_without_refreshes_there_is_only_the_first_moment() -> None:
    assert days(0) == [1]


def test_with_leave_last_out_moments_are_spread_up_to_the_end_of_the_log() -> None:
    """The thirds of days 1 to 9 start on days 4 and 7. Day 7 is also the first test."""
    assert days(3, "leave-last-out") == [1, 1 + 9 / 3, 1 + 2 * 9 / 3]


def test_equal_moments_are_merged() -> None:
    """With one event, or none, between the windows there is nothing to split."""
    few = make_events([(1 * DAY, 0, 0, Kind.CLICK, -1)], 1)
    assert refresh_moments(few, windows(), 5) == [START + DAY, START + 7 * DAY]
    assert refresh_moments(make_events([], 1), windows(), 5) == [START + DAY, START + 7 * DAY]


def test_tuned_vectors_are_shrunk_by_example_count() -> None:
    """0 examples: zero-shot. 10: halfway, (1, 1) / sqrt(2). 30: (1, 3) / sqrt(10). No text: NaN."""
    zero_shot = np.array([[1, 0], [1, 0], [1, 0], [np.nan, np.nan]], np.float32)
    tuned = np.array([[0, 1], [0, 1], [0, 1], [np.nan, np.nan]], np.float32)
    target = np.repeat(np.array([1, 2], np.int32), [10, 30])
    half, quarter = 1 / np.sqrt(2), 1 / np.sqrt(10)
    expected = np.array([[1, 0], [half, half], [quarter, 3 * quarter], [np.nan, np.nan]])
    np.testing.assert_allclose(shrink_by_count(tuned, zero_shot, target), expected, rtol=1e-6)


def test_opposite_vectors_give_the_tuned_one() -> None:
    """Their mean has no direction."""
    zero_shot = np.array([[1.0, 0.0]], np.float32)
    assert shrink_by_count(-zero_shot, zero_shot, np.zeros(10, np.int32)).tolist() == [[-1, 0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 50))
def test_shrunk_vectors_have_unit_length_and_lie_between_the_two(seed: int, examples: int) -> None:
    """Their cosine with either vector is at least the cosine of the two with each other."""
    rng = np.random.default_rng(seed)
    zero_shot, tuned = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 6, 8)).astype(np.float32)
    )
    shrunk = shrink_by_count(tuned, zero_shot, rng.integers(0, 6, examples).astype(np.int32))
    assert np.linalg.norm(shrunk, axis=1) == pytest.approx(1, abs=1e-5)
    cosine = (zero_shot * tuned).sum(axis=1)
    assert ((shrunk * zero_shot).sum(axis=1) >= cosine - 1e-5).all()
    assert ((shrunk * tuned).sum(axis=1) >= cosine - 1e-5).all()
