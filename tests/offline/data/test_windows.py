"""Time windows: shares of the lists, whole moments, and never the future on the wrong side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.log import Lists
from offline.config.windows import PROTOCOLS, WindowConfig
from offline.data.windows import HELD_OUT, WINDOWS, Windows
from offline.runtime.errors import DataError
from tests.worlds import START, make_lists

DEFAULT = WindowConfig.model_validate({})
LAST_OUT = WindowConfig.model_validate({"protocol": "leave-last-out"})
moments = st.lists(st.integers(0, 40), min_size=4, max_size=80).filter(lambda at: len(set(at)) >= 4)
shares = st.lists(st.integers(1, 20), min_size=4, max_size=4).map(
    lambda w: WindowConfig.model_validate(dict(zip(WINDOWS, (x / sum(w) for x in w), strict=True)))
)


def sizes(windows: Windows, at: list[float] | np.ndarray) -> list[int]:
    """Lists in each window."""
    found = make_lists([float(t) - START for t in at], [0] * len(at), [[0]] * len(at))
    return [len(windows.lists(name, found)) for name in WINDOWS]


def split(at: np.ndarray, config: WindowConfig = DEFAULT) -> Windows:
    """Windows by time, everybody one user."""
    return Windows.split(at, np.zeros(len(at), np.int32), config)


def test_fine_timestamps_get_their_shares() -> None:
    """100 moments at 15, 55, 10 and 20 percent are 15, 55, 10 and 20 lists."""
    at = START + np.arange(100.0)
    assert sizes(split(at), at) == [15, 55, 10, 20]


def test_the_order_in_which_moments_come_does_not_matter() -> None:
    at = START + np.arange(100.0)
    assert split(np.random.default_rng(0).permutation(at)) == split(at)


def test_five_coarse_moments_still_give_four_windows() -> None:
    """Days 0 to 4 hold 10, 50, 5, 5, 30 lists; 0.10 before day 1 and 0.60 before day 2 are as near to 0.30 and 0.70 as
    whole moments come; 0.70 before day 4 is what is left for 0.80, once day 3 has been given to validation."""
    at = START + np.repeat(np.arange(5.0), [10, 50, 5, 5, 30])
    windows = split(at)
    assert all(sizes(windows, at))
    assert sum(sizes(windows, at)) == 100
    assert windows.ranker == START + 1


def test_four_moments_are_one_window_each_whatever_hangs_on_them() -> None:
    at = START + np.repeat(np.arange(4.0), [1, 1, 1, 97])
    assert sizes(split(at), at) == [1, 1, 1, 97]


@pytest.mark.parametrize("at", [[], [1.0], [1.0, 1.0, 2.0, 3.0]])
def test_too_few_moments_are_refused(at: list[float]) -> None:
    with pytest.raises(DataError, match=rf"fall on {len(set(at))} different moments; 4 windows need at least 4"):
        split(np.array(at))


def test_a_list_without_a_time_is_refused_by_number() -> None:
    with pytest.raises(DataError, match="list 2 is at nan"):
        split(np.array([1, 2, np.nan, 4, 5]))


def test_shares_that_are_not_all_of_it_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the shares add up to 0\.9"):
        WindowConfig(encoder=0.3, ranker=0.4, validation=0.1, test=0.1)


@settings(max_examples=80, deadline=None)
@given(moments, shares)
def test_windows_follow_one_another_and_leave_nothing_out(at: list[int], config: WindowConfig) -> None:
    """No window is empty; each ends exactly where the next begins; every list is in one; no moment is in two."""
    times = START + np.array(at, np.float64)
    windows = split(times, config)
    edges = [windows.bounds(name) for name in WINDOWS]
    assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]
    assert all(begin < end for begin, end in edges)
    assert all(sizes(windows, times))
    assert sum(sizes(windows, times)) == len(at)
    assert all(sum(begin <= t < end for begin, end in edges) == 1 for t in times)


@settings(max_examples=80, deadline=None)
@given(moments, shares)
def test_what_the_encoder_saw_is_before_the_first_row_of_the_ranker(at: list[int], config: WindowConfig) -> None:
    times = START + np.array(at, np.float64)
    windows = split(times, config)
    begin, end = windows.bounds("encoder")
    assert begin == times.min()
    assert end == windows.bounds("ranker")[0]
    assert times[times < end].max() < times[times >= end].min()


def lists_of(rows: list[tuple[int, int]]) -> Lists:
    """Lists of (second, user), in time order, one a user and second."""
    rows = sorted(set(rows))
    return make_lists([float(at) for at, _ in rows], [user for _, user in rows], [[0]] * len(rows))


def parts(windows: Windows, lists: Lists) -> dict[str, list[tuple[int, int]]]:
    """(second, user) of the lists of each window."""
    return {
        name: [(int(lists.at[g] - START), int(lists.user[g])) for g in windows.lists(name, lists)] for name in WINDOWS
    }


def test_leave_last_out_tests_each_users_last_list_and_validates_on_the_one_before() -> None:
    """User 0 comes at 1, 2, 3, 4, 9, user 1 at 1, 5, 6, 7, user 2 at 8 alone. Lists before the last two are at 1, 1, 2,
    3 and 5: 2 of 5 before moment 2 is nearest to the encoder's 0.3 / 0.7 = 0.43 of them, so the ranker's begin at 2."""
    lists = lists_of([*((t, 0) for t in (1, 2, 3, 4, 9)), *((t, 1) for t in (1, 5, 6, 7)), (8, 2)])
    windows = Windows.split(lists.at, lists.user, LAST_OUT)
    assert windows.ranker == START + 2
    later = lists.take(np.flatnonzero(lists.at >= windows.ranker))
    assert parts(windows, later) == {
        "encoder": [],
        "ranker": [(2, 0), (3, 0), (5, 1)],
        "validation": [(4, 0), (6, 1)],
        "test": [(7, 1), (8, 2), (9, 0)],
    }
    assert windows.bounds("encoder") == (START + 1, START + 2)
    assert (windows.validation, windows.test) == (START + 4, START + 7)


def test_leave_last_out_needs_somebody_who_came_back() -> None:
    alone = lists_of([(t, t) for t in range(5)])
    with pytest.raises(DataError, match="no user has two baskets: leave-last-out needs three or more of some"):
        Windows.split(alone.at, alone.user, LAST_OUT)
    twice = lists_of([(t, t // 2) for t in range(6)])
    with pytest.raises(DataError, match="0 different moments; 2 windows need at least 2"):
        Windows.split(twice.at, twice.user, LAST_OUT)


def test_only_known_protocols_are_taken() -> None:
    assert PROTOCOLS == ("time-split", "leave-last-out", "given-lists")
    with pytest.raises(ValueError, match="protocol"):
        WindowConfig.model_validate({"protocol": "random-split"})


visits = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=12, max_size=80)


@settings(max_examples=60, deadline=None)
@given(visits, st.integers(1, 10))
def test_leave_last_out_counts_every_list_once_and_thinning_keeps_what_is_judged(
    rows: list[tuple[int, int]], most: int
) -> None:
    """No list is in two windows; each user's test list is his last; thinning takes the ranker's lists alone."""
    lists = lists_of(rows)
    try:
        windows = Windows.split(lists.at, lists.user, LAST_OUT)
    except DataError:
        return
    later = lists.take(np.flatnonzero(lists.at >= windows.ranker))
    found = parts(windows, later)
    counted = sorted(pair for of_window in found.values() for pair in of_window)
    assert counted == sorted(zip((later.at - START).astype(int), later.user, strict=True))
    last = {int(u): int(max(later.at[later.user == u]) - START) for u in np.unique(later.user)}
    assert {u: at for at, u in found["test"]} == last
    thinned = parts(windows, later.take(windows.kept(later, most, seed=1)))
    assert (thinned["validation"], thinned["test"]) == (found["validation"], found["test"])
    assert len(thinned["ranker"]) == min(most, len(found["ranker"]))
    assert set(thinned["ranker"]) <= set(found["ranker"])


def test_of_too_many_users_whole_users_are_kept() -> None:
    """20,050 users of 3 lists: 20,000 stay, each with his last list as test; a user's last list is never missing."""
    users = HELD_OUT + 50
    rows = np.arange(3 * users)
    lists = make_lists((rows // users * 1.0).tolist(), (rows % users).tolist(), [[]] * len(rows))
    lists = lists.take(np.argsort(lists.at, kind="stable"))
    windows = Windows(START, START, START + 1, START + 2, START + 3, "leave-last-out")
    kept = lists.take(windows.kept(lists, 100, seed=0))
    assert [len(windows.lists(name, kept)) for name in WINDOWS[1:]] == [100, HELD_OUT, HELD_OUT]
    assert set(kept.at[windows.lists("test", kept)]) == {START + 2}


def test_by_time_the_rankers_lists_are_thinned_evenly_and_the_same_every_time() -> None:
    lists = lists_of([(t, t % 7) for t in range(1000)])
    windows = split(lists.at)
    kept = windows.kept(lists, 50, seed=4)
    assert [len(windows.lists(name, lists.take(kept))) for name in WINDOWS] == [0, 50, 100, 200]
    assert (np.diff(kept) > 0).all()
    assert kept.tolist() == windows.kept(lists, 50, seed=4).tolist() != windows.kept(lists, 50, seed=5).tolist()
    assert (np.diff(np.quantile(kept[:50], [0, 0.5, 1])) > 100).all(), "from all over the window"
