"""Time windows: shares of the lists, whole moments, and never the future on the wrong side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.quarantine import DataError
from offline.windows import NAMES, WindowConfig, Windows
from tests.worlds import START, make_lists

DEFAULT = WindowConfig.model_validate({})
moments = st.lists(st.integers(0, 40), min_size=4, max_size=80).filter(lambda at: len(set(at)) >= 4)
shares = st.lists(st.integers(1, 20), min_size=4, max_size=4).map(
    lambda w: WindowConfig.model_validate(dict(zip(NAMES, (x / sum(w) for x in w), strict=True)))
)


def sizes(windows: Windows, at: list[float] | np.ndarray) -> list[int]:
    """Lists in each window."""
    found = make_lists([float(t) - START for t in at], [0] * len(at), [[0]] * len(at))
    return [len(windows.lists(name, found)) for name in NAMES]


def test_fine_timestamps_get_their_shares() -> None:
    """100 moments at 30, 40, 10 and 20 percent are 30, 40, 10 and 20 lists."""
    at = START + np.arange(100.0)
    assert sizes(Windows.split(at, DEFAULT), at) == [30, 40, 10, 20]


def test_the_order_in_which_moments_come_does_not_matter() -> None:
    at = START + np.arange(100.0)
    assert Windows.split(np.random.default_rng(0).permutation(at), DEFAULT) == Windows.split(at, DEFAULT)


def test_five_coarse_moments_still_give_four_windows() -> None:
    """Days 0 to 4 hold 10, 50, 5, 5, 30 lists; 0.10 before day 1 and 0.60 before day 2 are as near to 0.30 and 0.70 as
    whole moments come; 0.70 before day 4 is what is left for 0.80, once day 3 has been given to validation."""
    at = START + np.repeat(np.arange(5.0), [10, 50, 5, 5, 30])
    windows = Windows.split(at, DEFAULT)
    assert all(sizes(windows, at))
    assert sum(sizes(windows, at)) == 100
    assert windows.ranker == START + 1


def test_four_moments_are_one_window_each_whatever_hangs_on_them() -> None:
    at = START + np.repeat(np.arange(4.0), [1, 1, 1, 97])
    assert sizes(Windows.split(at, DEFAULT), at) == [1, 1, 1, 97]


@pytest.mark.parametrize("at", [[], [1.0], [1.0, 1.0, 2.0, 3.0]])
def test_too_few_moments_are_refused(at: list[float]) -> None:
    with pytest.raises(DataError, match=rf"fall on {len(set(at))} different moments; 4 windows need at least 4"):
        Windows.split(np.array(at), DEFAULT)


def test_a_list_without_a_time_is_refused_by_number() -> None:
    with pytest.raises(DataError, match="list 2 is at nan"):
        Windows.split(np.array([1, 2, np.nan, 4, 5]), DEFAULT)


def test_shares_that_are_not_all_of_it_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the shares add up to 0\.9"):
        WindowConfig(encoder=0.3, ranker=0.4, validation=0.1, test=0.1)


@settings(max_examples=80, deadline=None)
@given(moments, shares)
def test_windows_follow_one_another_and_leave_nothing_out(at: list[int], config: WindowConfig) -> None:
    """No window is empty; each ends exactly where the next begins; every list is in one; no moment is in two."""
    times = START + np.array(at, np.float64)
    windows = Windows.split(times, config)
    edges = [windows.bounds(name) for name in NAMES]
    assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]
    assert all(begin < end for begin, end in edges)
    assert all(sizes(windows, times))
    assert sum(sizes(windows, times)) == len(at)
    assert all(sum(begin <= t < end for begin, end in edges) == 1 for t in times)


@settings(max_examples=80, deadline=None)
@given(moments, shares)
def test_what_the_encoder_saw_is_before_the_first_row_of_the_ranker(at: list[int], config: WindowConfig) -> None:
    times = START + np.array(at, np.float64)
    windows = Windows.split(times, config)
    begin, end = windows.bounds("encoder")
    assert begin == times.min()
    assert end == windows.bounds("ranker")[0]
    assert times[times < end].max() < times[times >= end].min()
