"""Query groups: which action is a list's, what it is worth, and lists rebuilt where none was logged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.context import NO_DEVICE, Device
from features.log import GAIN, Events, Kind, Lists
from features.replay import Replay
from offline.data.query_groups import (
    baskets,
    concat,
    find_targets,
    iter_baskets,
    iter_logged_lists,
    keys,
    logged_lists,
    rebuild_lists,
    select,
)
from tests.worlds import DAY, START, logs, make_events, make_replay

SHOWN, VIEW, CLICK, CART, BOUGHT, RATED = Kind
Row = tuple[float, int, int, Kind, int]


def log(*rows: Row) -> Events:
    """Events from (seconds after START, user, item, kind, request), `-1` for no request."""
    return make_events(list(rows), n_users=4)


def rebuilt_of(replay: Replay, size: int) -> Lists:
    """Lists rebuilt for every basket of a log."""
    return rebuild_lists(replay, baskets(replay.events, 0.0), size)


def gains(lists: Lists) -> dict[str, dict[int, int]]:
    """Gain by item, by request."""
    return {
        lists.request_ids[g]: dict(zip(lists.item[a:b].tolist(), lists.gain[a:b].tolist(), strict=True))
        for g, (a, b) in enumerate(zip(lists.start[:-1].tolist(), lists.start[1:].tolist(), strict=True))
    }


LIST = tuple((10.0, 0, item, SHOWN, 3) for item in (1, 2, 3))
"""Items 1, 2 and 3, shown to user 0 in request r3, ten seconds after START."""


def test_gain_is_the_best_action() -> None:
    """Item 1 was clicked, put in the cart and bought: 3. Item 2 was put in the cart, then viewed: 2. Item 3: 0."""
    found = logged_lists(
        log(
            *LIST,
            (20, 0, 1, CLICK, 3),
            (30, 0, 1, CART, 3),
            (40, 0, 1, BOUGHT, 3),
            (25, 0, 2, CART, 3),
            (50, 0, 2, VIEW, 3),
        )
    )
    assert gains(found) == {"r3": {1: 3, 2: 2, 3: 0}}


@pytest.mark.parametrize(("kind", "worth"), [(VIEW, 1), (CLICK, 1), (CART, 2), (BOUGHT, 3), (RATED, 1)])
@pytest.mark.parametrize("request_", [3, -1])
def test_an_action_is_worth_the_same_by_request_and_by_user_and_time(kind: Kind, worth: int, request_: int) -> None:
    assert gains(logged_lists(log(*LIST, (20, 0, 2, kind, request_))))["r3"] == {1: 0, 2: worth, 3: 0}


def test_an_action_that_names_its_list_is_that_lists_and_no_others() -> None:
    """A click on request 3 counts there, though request 4 showed the item later."""
    found = logged_lists(log(*LIST, (15, 0, 1, SHOWN, 4), (20, 0, 1, CLICK, 3)))
    assert gains(found) == {"r3": {1: 1, 2: 0, 3: 0}, "r4": {1: 0}}


def test_an_action_that_names_no_list_is_the_latest_that_showed_the_item() -> None:
    """The latest list of all, request 5, did not hold item 1; request 4 did."""
    found = logged_lists(log(*LIST, (15, 0, 1, SHOWN, 4), (18, 0, 2, SHOWN, 5), (20, 0, 1, CLICK, -1)))
    assert gains(found) == {"r3": {1: 0, 2: 0, 3: 0}, "r4": {1: 1}, "r5": {2: 0}}


def test_somebody_elses_action_is_not_this_lists() -> None:
    assert gains(logged_lists(log(*LIST, (20, 1, 1, CLICK, -1))))["r3"] == {1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize("request_", [3, -1])
@pytest.mark.parametrize(("after", "counts"), [(-1, 0), (0, 1), (60, 1), (61, 0)])
def test_an_action_counts_from_its_list_until_the_attribution_time(request_: int, after: float, counts: int) -> None:
    """The list is at 10 s and attribution lasts 60 s: an action at 9 s or 71 s is nobody's, one at 10 s or 70 s is."""
    found = logged_lists(log(*LIST, (10 + after, 0, 1, CLICK, request_)), attribution_s=60)
    assert gains(found)["r3"][1] == counts


def test_an_action_on_what_its_list_did_not_show_counts_nothing() -> None:
    assert gains(logged_lists(log(*LIST, (20, 0, 7, BOUGHT, 3), (20, 0, 7, BOUGHT, -1))))["r3"] == {1: 0, 2: 0, 3: 0}


def test_an_item_shown_twice_in_a_list_stands_once_at_its_first_place() -> None:
    events = log((10, 0, 1, SHOWN, 3), (10, 0, 1, SHOWN, 3), (10, 0, 2, SHOWN, 3), (20, 0, 1, CLICK, 3))
    found = logged_lists(replace(events, position=np.array([5, 0, 2, -1], np.int16)))
    assert found.item.tolist() == [1, 2]
    assert found.position.tolist() == [0, 2]
    assert found.gain.tolist() == [1, 0]


def test_candidates_stand_in_shown_order_and_the_list_is_at_its_first_impression() -> None:
    events = log((10, 0, 1, SHOWN, 3), (10, 0, 2, SHOWN, 3), (12, 0, 3, SHOWN, 3))
    found = logged_lists(replace(events, position=np.array([1, 0, 2], np.int16)))
    assert found.item.tolist() == [2, 1, 3]
    assert found.at.tolist() == [START + 10]


def test_an_impression_outside_the_catalogue_or_of_no_list_is_left_out() -> None:
    found = logged_lists(log(*LIST, (10, 0, -1, SHOWN, 3), (10, 0, 5, SHOWN, -1), (12, 0, -1, CLICK, 3)))
    assert gains(found) == {"r3": {1: 0, 2: 0, 3: 0}}


def test_two_lists_at_one_time_stay_two_in_the_order_of_their_ids() -> None:
    found = logged_lists(log((10, 1, 1, SHOWN, 7), (10, 0, 1, SHOWN, 2), (5, 2, 4, SHOWN, 9)))
    assert list(found.request_ids) == ["r9", "r2", "r7"]
    assert found.user.tolist() == [2, 0, 1]


def test_the_query_of_a_list_is_that_of_its_request() -> None:
    found = logged_lists(replace(log((10.0, 0, 1, SHOWN, 3), (11.0, 0, 1, SHOWN, 4)), queries={3: "oak"}))
    assert list(found.query) == ["oak", ""]
    assert found.take(np.array([1, 0])).query == ["", "oak"]


def test_the_device_of_a_list_is_that_of_its_impressions_and_never_that_of_its_clicks() -> None:
    """Else a device would be known of clicked lists alone, and say which they are. The first that is named counts."""
    shown = [(10.0, 0, 1, SHOWN, 3), (10.0, 0, 2, SHOWN, 3), (11.0, 0, 1, SHOWN, 4), (12.0, 0, 3, SHOWN, 5)]
    events = log(*shown, (13.0, 0, 3, CLICK, 5))
    device = np.array([NO_DEVICE, Device.APP, Device.MOBILE, NO_DEVICE, Device.TABLET], np.int8)
    found = logged_lists(replace(events, device=device))
    assert found.request_ids == ["r3", "r4", "r5"]
    assert found.device.tolist() == [Device.APP, Device.MOBILE, NO_DEVICE]
    assert baskets(replace(events, device=device), 0.0).device.tolist() == [Device.TABLET]


def test_a_log_without_lists_has_none() -> None:
    for events in (log(), log((10, 0, 1, CLICK, -1)), log((10, 0, -1, SHOWN, 3))):
        assert len(logged_lists(events)) == logged_lists(events).rows == 0
    assert len(baskets(log(), -np.inf)) == 0
    assert len(rebuilt_of(make_replay(log()), size=5)) == 0


@settings(max_examples=50, deadline=None)
@given(logs(), st.sampled_from([DAY / 6, DAY, 30 * DAY]))
def test_every_gain_has_its_action_and_every_list_its_impressions(rows: list[Row], attribution_s: float) -> None:
    """Checked by going through the log action by action; a gain never comes from before its list or from afterwards."""
    found = logged_lists(make_events(rows, 3), attribution_s)
    assert (np.diff(found.at) >= 0).all()
    for g in range(len(found)):
        request = int(found.request_ids[g][1:])
        part = slice(found.start[g], found.start[g + 1])
        shown = [r for r in rows if r[3] == SHOWN and r[4] == request and r[2] >= 0]
        assert found.at[g] == START + min(r[0] for r in shown)
        in_time = {r[2] for r in shown if START + r[0] - found.at[g] <= attribution_s}
        assert sorted(found.item[part].tolist()) == sorted(in_time), "what came later is none of it"
        for item, gain in zip(found.item[part].tolist(), found.gain[part].tolist(), strict=True):
            within = [
                GAIN[r[3]]
                for r in rows
                if r[3] != SHOWN
                and r[2] == item
                and r[4] in (request, -1)
                and 0 <= START + r[0] - found.at[g] <= attribution_s
            ]
            named = [
                GAIN[r[3]]
                for r in rows
                if r[3] != SHOWN
                and r[2] == item
                and r[4] == request
                and 0 <= START + r[0] - found.at[g] <= attribution_s
            ]
            assert max(named, default=0) <= gain <= max(within, default=0)


def test_a_basket_is_one_users_engagements_at_one_time_each_item_once_at_its_best() -> None:
    """User 0 at 20 s bought item 1, which was also in the cart, and clicked 2; user 1 then, and user 0 later, apart."""
    found = baskets(
        log(
            (20, 0, 1, CART, -1),
            (20, 0, 1, BOUGHT, -1),
            (20, 0, 2, CLICK, -1),
            (20, 1, 1, CLICK, -1),
            (30, 0, 1, CLICK, -1),
            (30, 0, 4, SHOWN, 3),
            (30, 0, -1, BOUGHT, -1),
            (5, 0, 1, CLICK, -1),
        ),
        START + 20,
    )
    assert list(gains(found).values()) == [{1: 3, 2: 1}, {1: 1}, {1: 1}]
    assert found.user.tolist() == [0, 1, 0]
    assert found.position.tolist() == [-1] * 4


def test_two_baskets_of_one_second_are_told_apart() -> None:
    """Times are stored to the microsecond, and so are the names of baskets."""
    found = baskets(log((20.25, 0, 1, CLICK, -1), (20.75, 0, 2, CLICK, -1)), 0.0)
    assert list(found.request_ids) == ["u0@1700000020.250000", "u0@1700000020.750000"]


def test_what_retrieval_did_not_offer_is_counted_by_gain() -> None:
    """Item 1 has no date, nobody engaged with it and the user has no past: no source offers it. All else is new."""
    replay = make_replay(log((20, 0, 1, BOUGHT, -1), (20, 0, 3, CART, -1), (20, 0, 4, CLICK, -1)))
    found = rebuilt_of(replay, size=12)
    assert found.missed.tolist() == [[0, 0, 1]]
    assert {i: g for i, g in gains(found)["u0@1700000020.000000"].items() if g} == {3: 2, 4: 1}
    assert 1 not in found.item
    assert (found.position == -1).all()


def test_progress_of_rebuilding_is_told_on_the_way() -> None:
    told: list[tuple[int, int]] = []
    replay = make_replay(log(*((20.0 + k, 0, 3, CLICK, -1) for k in range(70))))
    rebuild_lists(replay, baskets(replay.events, 0.0), 3, lambda done, total: told.append((done, total)))
    assert told == [(32, 70), (64, 70)]


@settings(max_examples=25, deadline=None)
@given(logs(), st.integers(1, 9) | st.just(60))
def test_nothing_from_the_future_is_retrieved(rows: list[Row], k: int) -> None:
    """Lists before a moment are the same, to the last candidate, whether or not the log goes on after it."""
    cut = k * DAY / 6
    whole = rebuilt_of(make_replay(make_events(rows, 3)), size=4)
    past = rebuilt_of(make_replay(make_events([r for r in rows if r[0] < cut], 3)), size=4)
    before = whole.take(np.flatnonzero(whole.at < START + cut))
    assert list(before.request_ids) == list(past.request_ids)
    for a, b in zip(vars(before).values(), vars(past).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(logs())
def test_a_rebuilt_list_holds_or_misses_every_item_of_its_basket(rows: list[Row]) -> None:
    """Items of each gain, offered and missed together, are those of the basket; no candidate stands twice."""
    events = make_events(rows, 3)
    wanted, found = baskets(events, 0.0), rebuilt_of(make_replay(events), size=4)
    for g in range(len(found)):
        offered = found.gain[found.start[g] : found.start[g + 1]]
        basket = wanted.gain[wanted.start[g] : wanted.start[g + 1]]
        counted = np.bincount(offered, minlength=4)[1:] + found.missed[g]
        assert counted.tolist() == np.bincount(basket, minlength=4)[1:].tolist()
        assert len(offered) <= 4
        assert len(set(found.item[found.start[g] : found.start[g + 1]].tolist())) == len(offered)


def test_targets_are_what_was_engaged_with_offered_or_not() -> None:
    """The basket of 20 s held items 1, 3 and 4, of which no source offers 1; by the list alone it would be unknown."""
    replay = make_replay(log((20, 0, 1, BOUGHT, -1), (20, 0, 3, CART, -1), (20, 0, 4, CLICK, -1), (9, 1, 5, CLICK, -1)))
    asked = baskets(replay.events, 0.0)
    found = find_targets(rebuild_lists(replay, asked, 12).take(np.array([1])), asked)
    assert found.of.tolist() == [0, 0, 0]
    assert dict(zip(found.item.tolist(), found.gain.tolist(), strict=True)) == {1: 3, 3: 2, 4: 1}


def test_targets_of_logged_lists_are_their_items_with_gain() -> None:
    found = logged_lists(log(*LIST, (15, 1, 9, SHOWN, 4), (20, 0, 2, CLICK, 3), (21, 1, 9, BOUGHT, 4)))
    wanted = find_targets(found, found)
    assert list(zip(wanted.of.tolist(), wanted.item.tolist(), wanted.gain.tolist(), strict=True)) == [
        (0, 2, 1),
        (1, 9, 3),
    ]


def test_a_list_without_its_basket_is_refused() -> None:
    found = logged_lists(log(*LIST))
    with pytest.raises(KeyError, match="r3"):
        find_targets(found, baskets(log((10, 0, 1, CLICK, -1)), 0.0))


def same(a: Lists, b: Lists) -> None:
    for name in ("at", "user", "start", "item", "position", "gain", "missed", "device"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert list(a.request_ids) == list(b.request_ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 5)), max_size=12), logs(), st.data())
def test_lists_made_some_at_a_time_are_the_lists_made_at_once(
    shown: list[tuple[int, int, int]], acted: list[Row], data: st.DataObject
) -> None:
    """Lists of three at quarters of a day, actions by request and without at any time, parts of one event and more."""
    rows: list[Row] = [
        (quarter * DAY / 4, user, (item + k) % 12, SHOWN, request)
        for request, (quarter, user, item) in enumerate(shown)
        for k in range(3)
    ]
    rows += [(t, u, i, k, min(r, len(shown) - 1)) for t, u, i, k, r in acted if k != SHOWN]
    events, at_once = make_events(rows, n_users=4), data.draw(st.integers(1, 30))
    for attribution_s in (3600.0, DAY):
        same(concat(iter_logged_lists(events, attribution_s, at_once)), logged_lists(events, attribution_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Events.parts, "__defaults__", (at_once,))
        same(concat(iter_baskets(events, START + DAY)), baskets(events, START + DAY))


def test_of_lists_that_come_some_at_a_time_those_chosen_are_taken() -> None:
    whole = baskets(log(*((day * DAY, day % 4, day, CLICK, -1) for day in range(7))), 0.0)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 3), (3, 3), (3, 7))]
    numbers = np.array([0, 2, 3, 6])
    same(select(parts, numbers), whole.take(numbers))
    found = keys(parts)
    assert (found.at.tolist(), found.user.tolist()) == (whole.at.tolist(), whole.user.tolist())
    assert len(concat([])) == len(keys([])) == len(select([], numbers[:0])) == 0


def test_an_impression_long_after_its_list_began_is_none_of_it() -> None:
    """An hour's attribution: item 2 comes within it, item 3 a second after."""
    found = logged_lists(log((0, 0, 1, SHOWN, 3), (3600, 0, 2, SHOWN, 3), (3601, 0, 3, SHOWN, 3)), 3600.0)
    assert found.item.tolist() == [1, 2]
