"""Replay: rows are computed before events are applied, and a past row equals the row that would have been served."""

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
from tests.worlds import DAY, START, LogRow, logs, make_events, make_lists, make_replay

TIMES = [d * DAY for d in (0.0, 1.0, 3.0, 5.0, 5.0, 8.0)]
LISTS = make_lists(
    TIMES,
    [0, 1, 2, 0, 1, 0],
    [[0, 3, 5], [1, -1], [2], [11, 0], [], [4, 5, 6, 7]],
    [Device.MOBILE, NO_DEVICE, Device.APP, Device.TABLET, NO_DEVICE, Device.OTHER],
)


@given(logs())
@settings(max_examples=30, deadline=None)
def test_a_replayed_row_equals_one_computed_from_scratch(log: list[LogRow]) -> None:
    """Applying events step by step gives the same bits as applying everything before that time at once."""
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


def test_a_list_is_replayed_with_its_device() -> None:
    """Every row of the list has the device code, NaN if it is unknown."""
    column = list(names(make_replay(make_events([], 3)).items_at(START))).index("device")
    found = make_replay(make_events([], 3)).rows(LISTS)[:, column]
    np.testing.assert_array_equal(found, [0, 0, 0, np.nan, np.nan, 3, 1, 1, 4, 4, 4, 4])


@given(logs(), logs())
@settings(max_examples=30, deadline=None)
def test_future_events_do_not_change_rows(past: list[LogRow], other: list[LogRow]) -> None:
    """Events at or after the time of a list do not change its rows, not even through refit neighbours and priors."""
    cut = 5 * DAY
    before = [r for r in past if r[0] < cut]
    past_lists = LISTS.take(np.flatnonzero(LISTS.at <= START + cut))
    found = [
        make_replay(make_events(before + later, 3)).rows(past_lists)
        for later in ([], [(r[0] + cut, *r[1:]) for r in other])
    ]
    np.testing.assert_array_equal(found[0], found[1])


def test_lists_out_of_time_order_are_rejected() -> None:
    """State can only move forward in time."""
    with pytest.raises(ValueError, match="not in time order"):
        make_replay(make_events([], 1)).rows(make_lists([5.0, 1.0], [0, 0], [[1], [1]]))


def test_progress_ends_at_the_number_of_lists() -> None:
    """The last call reports all lists as done."""
    calls: list[tuple[int, int]] = []
    make_replay(make_events([], 3)).rows(LISTS, lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(LISTS), len(LISTS))


def test_a_row_uses_the_vectors_of_the_last_encoder_before_it() -> None:
    """Vectors change at the refreshes on days 2 and 4: a list between them has those of the first revision."""
    plain = make_replay(make_events([], 3), (2.0, 4.0))
    second, third = plain.vectors[::-1].copy(), -plain.vectors
    encoder_vectors = replace(plain, encoder_vectors=((START + 2 * DAY, second), (START + 4 * DAY, third)))
    code_by_list = {r.number: r.items.vectors.code for r in encoder_vectors.snapshots(LISTS)}
    for number, at in enumerate(TIMES):
        expected = plain.vectors if at < 2 * DAY else second if at < 4 * DAY else third
        np.testing.assert_array_equal(code_by_list[number], Vectors.quantise(expected).code)
    np.testing.assert_array_equal(encoder_vectors.items_at(np.inf).vectors.code, Vectors.quantise(third).code)


def test_taste_factors_use_the_most_recently_shown_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users 0 to 4 were shown a list a day each, then user 0 again; the log is read from its end in pairs of events."""
    rows_ = [(d * DAY, u, 1, Kind.IMPRESSION, d) for d, u in enumerate((0, 1, 2, 3, 4, 0))]
    events = make_events([*rows_, (6 * DAY, 1, 1, Kind.CLICK, -1)], 5)
    monkeypatch.setattr(replay, "CHUNK_ROWS", 2)
    assert _most_recently_shown(events, 3) == [0, 4, 3]
    assert _most_recently_shown(events, 99) == [0, 4, 3, 2, 1]
    assert _most_recently_shown(events.before(START), 3) == []


def test_neighbours_use_the_newest_engagements_of_every_user() -> None:
    """User 0 clicked 250 times and user 1 engaged twice: the newest 200 and both are used, in log order."""
    rows_ = [(float(t), 0, t % 12, Kind.CLICK, -1) for t in range(250)]
    rows_ += [(7.5, 1, 3, Kind.CLICK, -1), (240.5, 1, 4, Kind.CART, -1), (8.5, 1, 5, Kind.IMPRESSION, 1)]
    found = make_replay(make_events(rows_, 3)).recent(START + 249)
    assert found.at[found.user == 0].tolist() == [START + t for t in range(49, 249)]
    assert found.item[found.user == 1].tolist() == [3, 4]
    assert (np.diff(found.at) >= 0).all()
