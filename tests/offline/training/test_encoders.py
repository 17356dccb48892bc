"""The encoders of a night: when each is made, and how far its vectors are believed."""

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


def test_encoders_are_made_where_the_ranker_begins_evenly_after_it_and_where_the_test_begins() -> None:
    """Events on days 1 to 6 before the test on day 7: two more divide these six into three times two, at 3 and 5."""
    assert days(3) == [1, 1 + 6 / 3, 1 + 2 * 6 / 3, 7]
    assert days(1) == [1, 7]


def test_without_refreshes_there_is_the_first_alone() -> None:
    assert days(0) == [1]


def test_with_tests_at_all_times_they_are_spread_up_to_the_end_of_the_log() -> None:
    """Days 1 to 9 in thirds begin on days 4 and 7, and on day 7 is the first test as well."""
    assert days(3, "leave-last-out") == [1, 1 + 9 / 3, 1 + 2 * 9 / 3]


def test_moments_that_coincide_are_one() -> None:
    """One event between: nothing to divide."""
    few = make_events([(1 * DAY, 0, 0, Kind.CLICK, -1)], 1)
    assert refresh_moments(few, windows(), 5) == [START + DAY, START + 7 * DAY]
    assert refresh_moments(make_events([], 1), windows(), 5) == [START + DAY, START + 7 * DAY]


def test_a_vector_is_believed_by_what_was_learnt_of_its_item() -> None:
    """None: as it came. Ten examples: halfway, (1, 1) / sqrt(2). Thirty: (1, 3) / sqrt(10). No text: none."""
    came = np.array([[1, 0], [1, 0], [1, 0], [np.nan, np.nan]], np.float32)
    tuned = np.array([[0, 1], [0, 1], [0, 1], [np.nan, np.nan]], np.float32)
    target = np.repeat(np.array([1, 2], np.int32), [10, 30])
    half, quarter = 1 / np.sqrt(2), 1 / np.sqrt(10)
    expected = np.array([[1, 0], [half, half], [quarter, 3 * quarter], [np.nan, np.nan]])
    np.testing.assert_allclose(shrink_by_count(tuned, came, target), expected, rtol=1e-6)


def test_opposite_vectors_leave_the_tuned_one() -> None:
    """Halfway between both there is no direction."""
    came = np.array([[1.0, 0.0]], np.float32)
    assert shrink_by_count(-came, came, np.zeros(10, np.int32)).tolist() == [[-1, 0]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 50))
def test_shrunk_vectors_are_of_unit_length_and_between_the_two(seed: int, examples: int) -> None:
    """Their cosine with either is at least that of the two with each other."""
    rng = np.random.default_rng(seed)
    came, tuned = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 6, 8)).astype(np.float32))
    found = shrink_by_count(tuned, came, rng.integers(0, 6, examples).astype(np.int32))
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    apart = (came * tuned).sum(axis=1)
    assert ((found * came).sum(axis=1) >= apart - 1e-5).all()
    assert ((found * tuned).sum(axis=1) >= apart - 1e-5).all()
