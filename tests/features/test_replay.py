"""Replay: read, then apply; and the row of the past is the row that would have been served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from features import replay
from features.context import NO_DEVICE, Context, Device
from features.history import Histories
from features.log import Kind
from features.replay import _most_recently_shown
from features.table import names, rows
from features.text.vectors import Vectors
from tests.worlds import DAY, START, logs, make_events, make_lists, make_replay

MOMENTS = [d * DAY for d in (0.0, 1.0, 3.0, 5.0, 5.0, 8.0)]
LISTS = make_lists(
    MOMENTS,
    [0, 1, 2, 0, 1, 0],
    [[0, 3, 5], [1, -1], [2], [11, 0], [], [4, 5, 6, 7]],
    [Device.MOBILE, NO_DEVICE, Device.APP, Device.TABLET, NO_DEVICE, Device.OTHER],
)


@given(logs())
@settings(max_examples=30, deadline=None)
def test_a_replayed_row_is_the_row_made_from_scratch_at_its_moment(log: list[tuple]) -> None:
    """Applying step by step gives, to the bit, what applying everything before the moment at once gives."""
    events = make_events(log, 3)
    replayed = make_replay(events, ()).rows(LISTS)
    for g in range(len(LISTS)):
        at = float(LISTS.at[g])
        fresh = make_replay(events, ())
        items = fresh.items_at(-np.inf)
        past = events.before(at)
        items.state.apply(past.item, past.kind, past.at)
        bounds = slice(LISTS.start[g], LISTS.start[g + 1])
        context = Context(int(LISTS.device[g]))
        expected = rows(items, Histories.of(events).read(int(LISTS.user[g]), at), LISTS.item[bounds], at, context)
        np.testing.assert_array_equal(replayed[bounds], expected)


def test_a_list_is_replayed_with_the_device_it_was_asked_from() -> None:
    """Its code in every row of the list, NaN where none is known."""
    column = list(names(make_replay(make_events([], 3)).items_at(START))).index("device")
    found = make_replay(make_events([], 3)).rows(LISTS)[:, column]
    np.testing.assert_array_equal(found, [0, 0, 0, np.nan, np.nan, 3, 1, 1, 4, 4, 4, 4])


@given(logs(), logs())
@settings(max_examples=30, deadline=None)
def test_changing_the_future_changes_no_row(past: list[tuple], other: list[tuple]) -> None:
    """Events at or after a list's moment, refreshed neighbours and priors included, leave its rows as they were."""
    cut = 5 * DAY
    before = [r for r in past if r[0] < cut]
    upto = LISTS.take(np.flatnonzero(LISTS.at <= START + cut))
    found = [
        make_replay(make_events(before + later, 3)).rows(upto) for later in ([], [(r[0] + cut, *r[1:]) for r in other])
    ]
    np.testing.assert_array_equal(*found)


def test_lists_out_of_time_order_are_refused() -> None:
    """State only moves forward."""
    with pytest.raises(ValueError, match="not in time order"):
        make_replay(make_events([], 1)).rows(make_lists([5.0, 1.0], [0, 0], [[1], [1]]))


def test_progress_ends_at_the_number_of_lists() -> None:
    """The last call says all lists are done."""
    seen: list[tuple[int, int]] = []
    make_replay(make_events([], 3)).rows(LISTS, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(LISTS), len(LISTS))


def test_a_row_has_the_vectors_of_the_last_encoder_made_before_it() -> None:
    """Vectors change with the refreshes at days 2 and 4, not before: a list between them has the first revision's."""
    plain = make_replay(make_events([], 3), (2.0, 4.0))
    other, third = plain.vectors[::-1].copy(), -plain.vectors
    revised = replace(plain, revised=((START + 2 * DAY, other), (START + 4 * DAY, third)))
    found = {r.number: r.items.vectors.code for r in revised.snapshots(LISTS)}
    for number, at in enumerate(MOMENTS):
        expected = plain.vectors if at < 2 * DAY else other if at < 4 * DAY else third
        np.testing.assert_array_equal(found[number], Vectors.quantise(expected).code)
    np.testing.assert_array_equal(revised.items_at(np.inf).vectors.code, Vectors.quantise(third).code)


def test_evidence_is_of_those_shown_something_last_however_far_back_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users 0 to 4 were shown a list a day each, user 0 again on the last; read from the end two events at a time."""
    rows_ = [(d * DAY, u, 1, Kind.IMPRESSION, d) for d, u in enumerate((0, 1, 2, 3, 4, 0))]
    events = make_events([*rows_, (6 * DAY, 1, 1, Kind.CLICK, -1)], 5)
    monkeypatch.setattr(replay, "PART_ROWS", 2)
    assert _most_recently_shown(events, 3) == [0, 4, 3]
    assert _most_recently_shown(events, 99) == [0, 4, 3, 2, 1]
    assert _most_recently_shown(events.before(START), 3) == []


def test_what_neighbours_are_made_of_is_the_newest_of_every_user() -> None:
    """User 0 clicked 250 times, user 1 twice: the newest 200 and both, in the order of the log."""
    rows_ = [(float(t), 0, t % 12, Kind.CLICK, -1) for t in range(250)]
    rows_ += [(7.5, 1, 3, Kind.CLICK, -1), (240.5, 1, 4, Kind.CART, -1), (8.5, 1, 5, Kind.IMPRESSION, 1)]
    found = make_replay(make_events(rows_, 3)).recent(START + 249)
    assert found.at[found.user == 0].tolist() == [START + t for t in range(49, 249)]
    assert found.item[found.user == 1].tolist() == [3, 4]
    assert (np.diff(found.at) >= 0).all()
