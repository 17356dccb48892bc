"""State: decayed sums of items, and the two short lists of each user."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.decay import HALF_LIVES_S, ItemState
from features.history import ENGAGEMENTS, SHOWN, Histories
from features.log import Kind
from features.retention import Retention
from tests.worlds import DAY, START, LogRow, logs, make_events

CATEGORY = np.array([0, 0, 1, 2], np.int32)  # three items in two categories; the unknown item has none


def state_of(rows: list[tuple[int, int, float]]) -> ItemState:
    state = ItemState.empty(CATEGORY, 2)
    for item, kind, at in rows:
        state.apply(np.array([item], np.int32), np.array([kind], np.int8), np.array([at]))
    return state


def test_a_sum_halves_in_one_half_life() -> None:
    """Two clicks now and one an hour ago are 2 + 1/2 at a half-life of one hour, and half of that an hour later."""
    hour = HALF_LIVES_S[0]
    state = state_of([(0, Kind.CLICK, START - hour), (0, Kind.CLICK, START), (0, Kind.CLICK, START)])
    item = np.array([0], np.int32)
    assert state.of_items(item, START)[0, Kind.CLICK, 0] == pytest.approx(2 + 1 / 2)
    assert state.of_items(item, START + hour)[0, Kind.CLICK, 0] == pytest.approx((2 + 1 / 2) / 2)


def test_an_event_counts_for_its_item_its_category_and_the_shop() -> None:
    """Items 0 and 1 share a category, which counts both, as does the shop; each item counts its own."""
    state = state_of([(0, Kind.VIEW, START), (1, Kind.VIEW, START), (2, Kind.VIEW, START)])
    items = np.array([0, 1, 2], np.int32)
    assert state.of_items(items, START)[:, Kind.VIEW, 3].tolist() == [1, 1, 1]
    assert state.of_categories(items, START)[:, Kind.VIEW, 3].tolist() == [2, 2, 1]
    assert state.of_shop(START)[Kind.VIEW, 3] == 3


def test_an_item_outside_the_catalogue_counts_for_the_unknown_item() -> None:
    """Row -1 is an ordinary row, so that the total of the shop includes events on unknown items."""
    state = state_of([(-1, Kind.CLICK, START)])
    assert state.of_items(np.array([-1], np.int32), START)[0, Kind.CLICK, 3] == 1
    assert state.of_items(np.array([0, 1, 2], np.int32), START)[:, Kind.CLICK, 3].sum() == 0
    assert state.of_shop(START)[Kind.CLICK, 3] == 1


@given(st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 5), st.integers(0, 10**6)), max_size=30), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_arrival_does_not_matter(rows: list[tuple[int, int, int]], random: object) -> None:
    """A decayed sum is linear: late events are decayed correctly, up to rounding."""
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    a = state_of([(i, k, START + t) for i, k, t in sorted(rows, key=lambda r: r[2])])
    b = state_of([(i, k, START + t) for i, k, t in shuffled])
    at, items = START + 10**6, np.array([0, 1, 2, -1], np.int32)
    np.testing.assert_allclose(a.of_items(items, at), b.of_items(items, at), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(a.of_shop(at), b.of_shop(at), rtol=1e-9, atol=1e-300)


def test_ten_years_at_a_half_life_of_an_hour_do_not_overflow() -> None:
    """After 87,600 half-lives the old sum is 0, without warnings, and a new event counts 1."""
    state = state_of([(0, Kind.CLICK, START - 10 * 365 * 86400), (0, Kind.CLICK, START)])
    assert state.of_items(np.array([0], np.int32), START)[0, Kind.CLICK].tolist() == pytest.approx([1, 1, 1, 1])


def test_a_copy_is_independent() -> None:
    """A worker applies events to its own copy and leaves the release's snapshot unchanged."""
    state = state_of([(0, Kind.CLICK, START)])
    copy = state.copy()
    copy.apply(np.array([0], np.int32), np.array([Kind.CLICK], np.int8), np.array([START]))
    assert state.of_shop(START)[Kind.CLICK, 3] == 1
    assert copy.of_shop(START)[Kind.CLICK, 3] == 2


@given(logs(), st.integers(0, 60), st.integers(0, 2))
@settings(max_examples=50, deadline=None)
def test_a_history_is_the_users_newest_events_strictly_before_a_time(rows: list[LogRow], sixth: int, user: int) -> None:
    """Compared with the plain definition: filter, sort by (time, kind, item) descending, truncate."""
    at = START + sixth * 86400 / 6
    found = Histories.of(make_events(rows, 3)).read(user, at)
    expected = sorted((START + t, k, i) for t, u, i, k, _ in rows if u == user and START + t < at)[::-1]
    engaged, shown = ([e for e in expected if (e[1] == Kind.IMPRESSION) == s] for s in (False, True))
    assert list(zip(found.at, found.kind, found.item, strict=True)) == engaged[:ENGAGEMENTS]
    assert list(zip(found.shown_at, found.shown_item, strict=True)) == [(t, i) for t, _, i in shown[:SHOWN]]


@given(logs(), st.integers(0, 60), st.integers(0, 2), st.sampled_from([0.4, 1.0, 2.0]))
@settings(max_examples=50, deadline=None)
def test_each_list_of_a_history_begins_after_the_newest_gap_longer_than_the_retention(
    rows: list[LogRow], sixth: int, user: int, days: float
) -> None:
    """Also after a gap before the time of reading: the list is then empty. u2 is anonymous, and kept half as long."""
    at, events = START + sixth * 86400 / 6, make_events(rows, 3)
    retention = Retention(days * DAY, days * DAY / 2, ("u2",))
    found = Histories.of(events, retention).read(user, at)
    whole = Histories.of(events, Retention(1000 * DAY, 1000 * DAY)).read(user, at)
    kept_s = days * DAY / (2 if user == 2 else 1)
    for kept, all_times in ((found.at, whole.at), (found.shown_at, whole.shown_at)):
        times = [at, *all_times]
        gaps = [n for n in range(len(all_times)) if times[n] - times[n + 1] > kept_s]
        assert kept.tolist() == all_times[: gaps[0] if gaps else None].tolist()
    assert found.item.tolist() == whole.item[: len(found.item)].tolist()
    assert found.shown_item.tolist() == whole.shown_item[: len(found.shown_item)].tolist()


def test_lists_keep_only_the_newest_events() -> None:
    """Of 110 clicks, the newest 100 are kept."""
    events = make_events([(float(t), 0, t % 12, Kind.CLICK, -1) for t in range(110)], 1)
    found = Histories.of(events).read(0, START + 1000)
    assert found.at.tolist() == [START + t for t in range(109, 9, -1)]
