"""Time windows: shares of the lists, boundaries between distinct times, and no leakage from the future."""

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
list_times = st.lists(st.integers(0, 40), min_size=4, max_size=80).filter(lambda at: len(set(at)) >= 4)
shares = st.lists(st.integers(1, 20), min_size=4, max_size=4).map(
    lambda w: WindowConfig.model_validate(dict(zip(WINDOWS, (x / sum(w) for x in w), strict=True)))
)


def sizes(windows: Windows, at: list[float] | np.ndarray) -> list[int]:
    """Number of lists in each window."""
    lists = make_lists([float(t) - START for t in at], [0] * len(at), [[0]] * len(at))
    return [len(windows.lists(name, lists)) for name in WINDOWS]


def split(at: np.ndarray, config: WindowConfig = DEFAULT) -> Windows:
    """Windows by time, with all lists from one user."""
    return Windows.split(at, np.zeros(len(at), np.int32), config)


def test_distinct_times_are_split_exactly_by_the_shares() -> None:
    """100 times split at 15, 55, 10 and 20 percent: 15, 55, 10 and 20 lists."""
    at = START + np.arange(100.0)
    assert sizes(split(at), at) == [15, 55, 10, 20]


def test_the_order_of_the_lists_does_not_matter() -> None:
    at = START + np.arange(100.0)
    assert split(np.random.default_rng(0).permutation(at)) == split(at)


def test_five_distinct_times_give_four_windows() -> None:
    """Days 0 to 4 have 10, 50, 5, 5 and 30 lists. For a boundary at 0.15 the closest is day 1, with 0.10 of the lists
    before it. The other boundaries leave at least one day to each window."""
    at = START + np.repeat(np.arange(5.0), [10, 50, 5, 5, 30])
    windows = split(at)
    assert all(sizes(windows, at))
    assert sum(sizes(windows, at)) == 100
    assert windows.ranker == START + 1


def test_four_distinct_times_are_one_window_each() -> None:
    at = START + np.repeat(np.arange(4.0), [1, 1, 1, 97])
    assert sizes(split(at), at) == [1, 1, 1, 97]


@pytest.mark.parametrize("at", [[], [1.0], [1.0, 1.0, 2.0, 3.0]])
def test_too_few_distinct_times_are_an_error(at: list[float]) -> None:
    with pytest.raises(DataError, match=rf"have {len(set(at))} distinct times, but 4 windows need at least 4"):
        split(np.array(at))


def test_a_list_without_a_time_is_an_error() -> None:
    with pytest.raises(DataError, match="list 2 has time nan"):
        split(np.array([1, 2, np.nan, 4, 5]))


def test_shares_that_do_not_add_up_to_one_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the shares add up to 0\.9"):
        WindowConfig(encoder=0.3, ranker=0.4, validation=0.1, test=0.1)


@settings(max_examples=80, deadline=None)
@given(list_times, shares)
def test_windows_are_consecutive_and_cover_every_list(at: list[int], config: WindowConfig) -> None:
    """No window is empty, each ends where the next begins, and every list is in exactly one window."""
    times = START + np.array(at, np.float64)
    windows = split(times, config)
    edges = [windows.bounds(name) for name in WINDOWS]
    assert [end for _, end in edges[:-1]] == [begin for begin, _ in edges[1:]]
    assert all(begin < end for begin, end in edges)
    assert all(sizes(windows, times))
    assert sum(sizes(windows, times)) == len(at)
    assert all(sum(begin <= t < end for begin, end in edges) == 1 for t in times)


@settings(max_examples=80, deadline=None)
@given(list_times, shares)
def test_the_encoder_window_ends_before_the_first_row_of_the_ranker(at: list[int], config: WindowConfig) -> None:
    times = START + np.array(at, np.float64)
    windows = split(times, config)
    begin, end = windows.bounds("encoder")
    assert begin == times.min()
    assert end == windows.bounds("ranker")[0]
    assert times[times < end].max() < times[times >= end].min()


def lists_of(rows: list[tuple[int, int]]) -> Lists:
    """Lists from (second, user) pairs, in time order and without duplicates."""
    rows = sorted(set(rows))
    return make_lists([float(at) for at, _ in rows], [user for _, user in rows], [[0]] * len(rows))


def lists_by_window(windows: Windows, lists: Lists) -> dict[str, list[tuple[int, int]]]:
    """(second, user) of the lists in each window."""
    return {
        name: [(int(lists.at[g] - START), int(lists.user[g])) for g in windows.lists(name, lists)] for name in WINDOWS
    }


def test_leave_last_out_holds_out_the_last_two_lists_of_each_user() -> None:
    """User 0 has lists at 1, 2, 3, 4 and 9, user 1 at 1, 5, 6 and 7, and user 2 at 8.

    Without the last two of each user, lists at 1, 1, 2, 3 and 5 remain. The encoder's share of them is 0.15 / 0.7 =
    0.21, and the closest boundary is 2, with 2 of 5 lists before it.
    """
    lists = lists_of([*((t, 0) for t in (1, 2, 3, 4, 9)), *((t, 1) for t in (1, 5, 6, 7)), (8, 2)])
    windows = Windows.split(lists.at, lists.user, LAST_OUT)
    assert windows.ranker == START + 2
    later = lists.take(np.flatnonzero(lists.at >= windows.ranker))
    assert lists_by_window(windows, later) == {
        "encoder": [],
        "ranker": [(2, 0), (3, 0), (5, 1)],
        "validation": [(4, 0), (6, 1)],
        "test": [(7, 1), (8, 2), (9, 0)],
    }
    assert windows.bounds("encoder") == (START + 1, START + 2)
    assert (windows.validation, windows.test) == (START + 4, START + 7)


def test_leave_last_out_needs_users_with_three_lists() -> None:
    alone = lists_of([(t, t) for t in range(5)])
    with pytest.raises(DataError, match="no user has two baskets, and leave-last-out needs users with three or more"):
        Windows.split(alone.at, alone.user, LAST_OUT)
    twice = lists_of([(t, t // 2) for t in range(6)])
    with pytest.raises(DataError, match="0 distinct times, but 2 windows need at least 2"):
        Windows.split(twice.at, twice.user, LAST_OUT)


def test_an_unknown_protocol_is_an_error() -> None:
    assert PROTOCOLS == ("time-split", "leave-last-out", "given-lists")
    with pytest.raises(ValueError, match="protocol"):
        WindowConfig.model_validate({"protocol": "random-split"})


user_lists = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6)), min_size=12, max_size=80)


@settings(max_examples=60, deadline=None)
@given(user_lists, st.integers(1, 10))
def test_leave_last_out_uses_every_list_once_and_keeps_held_out_lists_when_sampling(
    rows: list[tuple[int, int]], most: int
) -> None:
    """No list is in two windows, the test list of each user is their last, and only lists of the ranker are dropped."""
    lists = lists_of(rows)
    try:
        windows = Windows.split(lists.at, lists.user, LAST_OUT)
    except DataError:
        return
    later = lists.take(np.flatnonzero(lists.at >= windows.ranker))
    found = lists_by_window(windows, later)
    counted = sorted(pair for pairs in found.values() for pair in pairs)
    assert counted == sorted(zip((later.at - START).astype(int), later.user, strict=True))
    last = {int(u): int(max(later.at[later.user == u]) - START) for u in np.unique(later.user)}
    assert {u: at for at, u in found["test"]} == last
    sampled = lists_by_window(windows, later.take(windows.kept(later, most, seed=1)))
    assert (sampled["validation"], sampled["test"]) == (found["validation"], found["test"])
    assert len(sampled["ranker"]) == min(most, len(found["ranker"]))
    assert set(sampled["ranker"]) <= set(found["ranker"])


def test_leave_last_out_samples_users_rather_than_lists() -> None:
    """20,050 users with three lists each: 20,000 are kept, each with their last list as test list."""
    users = HELD_OUT + 50
    rows = np.arange(3 * users)
    lists = make_lists((rows // users * 1.0).tolist(), (rows % users).tolist(), [[]] * len(rows))
    lists = lists.take(np.argsort(lists.at, kind="stable"))
    windows = Windows(START, START, START + 1, START + 2, START + 3, "leave-last-out")
    kept = lists.take(windows.kept(lists, 100, seed=0))
    assert [len(windows.lists(name, kept)) for name in WINDOWS[1:]] == [100, HELD_OUT, HELD_OUT]
    assert set(kept.at[windows.lists("test", kept)]) == {START + 2}


def test_ranker_lists_are_sampled_uniformly_and_reproducibly() -> None:
    lists = lists_of([(t, t % 7) for t in range(1000)])
    windows = split(lists.at)
    kept = windows.kept(lists, 50, seed=4)
    assert [len(windows.lists(name, lists.take(kept))) for name in WINDOWS] == [0, 50, 100, 200]
    assert (np.diff(kept) > 0).all()
    assert kept.tolist() == windows.kept(lists, 50, seed=4).tolist() != windows.kept(lists, 50, seed=5).tolist()
    assert (np.diff(np.quantile(kept[:50], [0, 0.5, 1])) > 100).all(), "the sample covers the whole window"


def test_lists_to_keep_first_are_all_kept_before_others_are_sampled() -> None:
    """Of 550 ranker lists 50 are kept. All 30 that come first are among them; of 60, 50 are, and no other."""
    lists = lists_of([(t, t % 7) for t in range(1000)])
    windows = split(lists.at)
    for number in (30, 60):
        first = np.zeros(1000, bool)
        first[200 : 200 + number] = True
        kept = windows.kept(lists, 50, seed=4, first=first)
        ranker = kept[windows.lists("ranker", lists.take(kept))]
        assert len(ranker) == 50
        assert first[ranker].sum() == min(number, 50)
        assert len(windows.lists("test", lists.take(kept))) == 200
