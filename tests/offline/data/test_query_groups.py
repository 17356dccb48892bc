"""Query groups: attribution of actions to lists, gains, and rebuilt lists for a log without impressions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.context import NO_DEVICE, Device
from features.history import Merges
from features.log import GAIN, Events, Kind, Lists
from features.replay import Replay
from offline.data.query_groups import (
    baskets,
    concat,
    find_targets,
    has_gain,
    has_logged_list,
    iter_baskets,
    iter_logged_lists,
    keys,
    logged_keys,
    logged_lists,
    merge,
    rebuild_lists,
    select,
    without_logged,
)
from tests.worlds import DAY, START, logs, make_events, make_replay

SHOWN, VIEW, CLICK, CART, BOUGHT, RATED = Kind
Row = tuple[float, int, int, Kind, int]


def log(*rows: Row) -> Events:
    """Events from rows (seconds after START, user, item, kind, request). Request -1: none."""
    return make_events(list(rows), n_users=4)


def rebuild(replay: Replay, size: int) -> Lists:
    """Rebuild a list for every basket of a log."""
    return rebuild_lists(replay, baskets(replay.events, 0.0), size)


def gains(lists: Lists) -> dict[str, dict[int, int]]:
    """Request ID -> item -> gain."""
    return {
        lists.request_ids[g]: dict(zip(lists.item[a:b].tolist(), lists.gain[a:b].tolist(), strict=True))
        for g, (a, b) in enumerate(zip(lists.start[:-1].tolist(), lists.start[1:].tolist(), strict=True))
    }


LIST = tuple((10.0, 0, item, SHOWN, 3) for item in (1, 2, 3))
"""Items 1, 2 and 3, shown to user 0 in request r3, ten seconds after START."""


def test_gain_is_the_best_action() -> None:
    """Item 1 was clicked, added to the cart and bought: 3. Item 2 was added to the cart, then viewed: 2. Item 3: 0."""
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


@pytest.mark.parametrize(("kind", "gain"), [(VIEW, 1), (CLICK, 1), (CART, 2), (BOUGHT, 3), (RATED, 1)])
@pytest.mark.parametrize("request_", [3, -1])
def test_the_gain_of_an_action_does_not_depend_on_how_it_is_attributed(kind: Kind, gain: int, request_: int) -> None:
    assert gains(logged_lists(log(*LIST, (20, 0, 2, kind, request_))))["r3"] == {1: 0, 2: gain, 3: 0}


def merged(*merges: tuple[int, int, float]) -> Merges:
    """Merges of (user, user merged into, seconds after START)."""
    source, into, at = zip(*merges, strict=True)
    return Merges(np.array(source, np.int32), np.array(into, np.int32), START + np.array(at, np.float64))


def test_what_a_guest_was_shown_counts_for_what_the_user_does_after_login() -> None:
    """Item 1 is bought by user 1 after the merge at 30 s, item 2 before it, and item 3 a day and a second after the
    list."""
    bought = [(40, 1, 1, BOUGHT, -1), (25, 1, 2, BOUGHT, -1), (10 + DAY + 1, 1, 3, BOUGHT, -1)]
    events = log(*LIST, *bought)
    assert gains(logged_lists(events)) == {"r3": {1: 0, 2: 0, 3: 0}}
    assert gains(logged_lists(events, merges=merged((0, 1, 30)))) == {"r3": {1: 3, 2: 0, 3: 0}}
    assert gains(concat(iter_logged_lists(events, DAY, 2, merged((0, 1, 30)))))["r3"] == {1: 3, 2: 0, 3: 0}


def test_after_a_merge_the_latest_list_of_either_user_counts_and_none_of_the_next_guest() -> None:
    """User 1 was shown item 1 before the guest was (r4, 5 s), or after (r5, 20 s); r6 is shown to the guest's ID after
    the login. Through a second merge, what user 2 buys counts for the guest's list as well."""
    bought, of_next = (60, 1, 1, BOUGHT, -1), (50, 0, 1, SHOWN, 6)
    once, twice = merged((0, 1, 30)), merged((0, 1, 30), (1, 2, 40))
    first = gains(logged_lists(log(*LIST, (5, 1, 1, SHOWN, 4), of_next, bought), merges=once))
    assert (first["r3"][1], first["r4"][1], first["r6"][1]) == (3, 0, 0)
    second = gains(logged_lists(log(*LIST, (20, 1, 1, SHOWN, 5), of_next, bought), merges=once))
    assert (second["r3"][1], second["r5"][1], second["r6"][1]) == (0, 3, 0)
    by_other = log(*LIST, (60, 2, 1, BOUGHT, -1))
    assert gains(logged_lists(by_other, merges=once))["r3"][1] == 0
    assert gains(logged_lists(by_other, merges=twice))["r3"][1] == 3


def test_an_action_of_a_merged_users_list_is_in_no_basket() -> None:
    events, merges = (
        log(*LIST, (40, 1, 1, BOUGHT, -1), (40, 1, 3, CLICK, -1), (40, 1, 5, BOUGHT, -1)),
        merged((0, 1, 30)),
    )
    shown = logged_lists(events, merges=merges)
    (left,) = without_logged(iter_baskets(events, -np.inf), shown, DAY, merges)
    assert left.item.tolist() == [5]


def test_an_action_with_a_request_is_attributed_to_its_list_only() -> None:
    """A click on request 3 counts there, although request 4 showed the item later."""
    found = logged_lists(log(*LIST, (15, 0, 1, SHOWN, 4), (20, 0, 1, CLICK, 3)))
    assert gains(found) == {"r3": {1: 1, 2: 0, 3: 0}, "r4": {1: 0}}


def test_an_action_without_a_request_is_attributed_to_the_latest_list_with_the_item() -> None:
    """The latest list, request 5, did not contain item 1; request 4 did."""
    found = logged_lists(log(*LIST, (15, 0, 1, SHOWN, 4), (18, 0, 2, SHOWN, 5), (20, 0, 1, CLICK, -1)))
    assert gains(found) == {"r3": {1: 0, 2: 0, 3: 0}, "r4": {1: 1}, "r5": {2: 0}}


def test_an_action_of_another_user_is_not_attributed() -> None:
    assert gains(logged_lists(log(*LIST, (20, 1, 1, CLICK, -1))))["r3"] == {1: 0, 2: 0, 3: 0}


@pytest.mark.parametrize("request_", [3, -1])
@pytest.mark.parametrize(("after", "counts"), [(-1, 0), (0, 1), (60, 1), (61, 0)])
def test_an_action_counts_from_the_time_of_its_list_to_the_attribution_time(
    request_: int, after: float, counts: int
) -> None:
    """With a list at 10 s and attribution for 60 s, actions at 10 s and 70 s count, those at 9 s and 71 s do not."""
    found = logged_lists(log(*LIST, (10 + after, 0, 1, CLICK, request_)), attribution_s=60)
    assert gains(found)["r3"][1] == counts


def test_an_action_on_an_item_that_its_list_did_not_show_is_ignored() -> None:
    assert gains(logged_lists(log(*LIST, (20, 0, 7, BOUGHT, 3), (20, 0, 7, BOUGHT, -1))))["r3"] == {1: 0, 2: 0, 3: 0}


def test_an_item_shown_twice_in_a_list_is_kept_once_at_its_first_position() -> None:
    events = log((10, 0, 1, SHOWN, 3), (10, 0, 1, SHOWN, 3), (10, 0, 2, SHOWN, 3), (20, 0, 1, CLICK, 3))
    found = logged_lists(replace(events, position=np.array([5, 0, 2, -1], np.int16)))
    assert found.item.tolist() == [1, 2]
    assert found.position.tolist() == [0, 2]
    assert found.gain.tolist() == [1, 0]


def test_candidates_are_in_shown_order_and_the_list_has_the_time_of_its_first_impression() -> None:
    events = log((10, 0, 1, SHOWN, 3), (10, 0, 2, SHOWN, 3), (12, 0, 3, SHOWN, 3))
    found = logged_lists(replace(events, position=np.array([1, 0, 2], np.int16)))
    assert found.item.tolist() == [2, 1, 3]
    assert found.at.tolist() == [START + 10]


def test_impressions_of_unknown_items_or_without_a_request_are_ignored() -> None:
    found = logged_lists(log(*LIST, (10, 0, -1, SHOWN, 3), (10, 0, 5, SHOWN, -1), (12, 0, -1, CLICK, 3)))
    assert gains(found) == {"r3": {1: 0, 2: 0, 3: 0}}


def test_lists_with_equal_times_are_sorted_by_id() -> None:
    found = logged_lists(log((10, 1, 1, SHOWN, 7), (10, 0, 1, SHOWN, 2), (5, 2, 4, SHOWN, 9)))
    assert list(found.request_ids) == ["r9", "r2", "r7"]
    assert found.user.tolist() == [2, 0, 1]


def test_the_query_of_a_list_is_that_of_its_request() -> None:
    found = logged_lists(replace(log((10.0, 0, 1, SHOWN, 3), (11.0, 0, 1, SHOWN, 4)), queries={3: "oak"}))
    assert list(found.query) == ["oak", ""]
    assert found.take(np.array([1, 0])).query == ["", "oak"]


def test_the_device_of_a_list_comes_from_its_impressions_and_never_from_its_clicks() -> None:
    """A device from clicks would reveal which lists were clicked. The first impression with a device counts."""
    shown = [(10.0, 0, 1, SHOWN, 3), (10.0, 0, 2, SHOWN, 3), (11.0, 0, 1, SHOWN, 4), (12.0, 0, 3, SHOWN, 5)]
    events = log(*shown, (13.0, 0, 3, CLICK, 5))
    device = np.array([NO_DEVICE, Device.APP, Device.MOBILE, NO_DEVICE, Device.TABLET], np.int8)
    found = logged_lists(replace(events, device=device))
    assert found.request_ids == ["r3", "r4", "r5"]
    assert found.device.tolist() == [Device.APP, Device.MOBILE, NO_DEVICE]
    assert baskets(replace(events, device=device), 0.0).device.tolist() == [Device.TABLET]


def test_a_log_without_impressions_or_engagements_has_no_lists() -> None:
    for events in (log(), log((10, 0, 1, CLICK, -1)), log((10, 0, -1, SHOWN, 3))):
        assert len(logged_lists(events)) == logged_lists(events).rows == 0
    assert len(baskets(log(), -np.inf)) == 0
    assert len(rebuild(make_replay(log()), size=5)) == 0


@settings(max_examples=50, deadline=None)
@given(logs(), st.sampled_from([DAY / 6, DAY, 30 * DAY]))
def test_every_gain_has_an_action_and_every_list_its_impressions(rows: list[Row], attribution_s: float) -> None:
    """Compared with a direct search of the log. No gain comes from before its list or after the attribution time."""
    found = logged_lists(make_events(rows, 3), attribution_s)
    assert (np.diff(found.at) >= 0).all()
    for g in range(len(found)):
        request = int(found.request_ids[g][1:])
        part = slice(found.start[g], found.start[g + 1])
        shown = [r for r in rows if r[3] == SHOWN and r[4] == request and r[2] >= 0]
        assert found.at[g] == START + min(r[0] for r in shown)
        in_time = {r[2] for r in shown if START + r[0] - found.at[g] <= attribution_s}
        assert sorted(found.item[part].tolist()) == sorted(in_time), (
            "impressions after the attribution time are ignored"
        )
        for item, gain in zip(found.item[part].tolist(), found.gain[part].tolist(), strict=True):
            possible = [
                GAIN[r[3]]
                for r in rows
                if r[3] != SHOWN
                and r[2] == item
                and r[4] in (request, -1)
                and 0 <= START + r[0] - found.at[g] <= attribution_s
            ]
            by_request = [
                GAIN[r[3]]
                for r in rows
                if r[3] != SHOWN
                and r[2] == item
                and r[4] == request
                and 0 <= START + r[0] - found.at[g] <= attribution_s
            ]
            assert max(by_request, default=0) <= gain <= max(possible, default=0)


def test_a_basket_has_the_engagements_of_a_user_at_one_time_with_their_best_gain() -> None:
    """User 0 at 20 s: item 1 in the cart and bought, item 2 clicked. User 1 at 20 s and user 0 at 30 s are separate."""
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


def test_two_baskets_in_the_same_second_have_different_ids() -> None:
    """IDs of baskets contain the time in microseconds."""
    found = baskets(log((20.25, 0, 1, CLICK, -1), (20.75, 0, 2, CLICK, -1)), 0.0)
    assert list(found.request_ids) == ["u0@1700000020.250000", "u0@1700000020.750000"]


def test_items_that_retrieval_did_not_offer_are_counted_by_gain() -> None:
    """Item 1 has no date and no engagements, and the user no history: no retrieval source offers it. Others are new."""
    replay = make_replay(log((20, 0, 1, BOUGHT, -1), (20, 0, 3, CART, -1), (20, 0, 4, CLICK, -1)))
    found = rebuild(replay, size=12)
    assert found.missed.tolist() == [[0, 0, 1]]
    assert {i: g for i, g in gains(found)["u0@1700000020.000000"].items() if g} == {3: 2, 4: 1}
    assert 1 not in found.item
    assert (found.position == -1).all()


def test_rebuilding_reports_progress() -> None:
    calls: list[tuple[int, int]] = []
    replay = make_replay(log(*((20.0 + k, 0, 3, CLICK, -1) for k in range(70))))
    rebuild_lists(replay, baskets(replay.events, 0.0), 3, lambda done, total: calls.append((done, total)))
    assert calls == [(32, 70), (64, 70)]


@settings(max_examples=25, deadline=None)
@given(logs(), st.integers(1, 9) | st.just(60))
def test_retrieval_does_not_use_the_future(rows: list[Row], k: int) -> None:
    """The lists before a time are identical with and without the events after it."""
    cut = k * DAY / 6
    whole = rebuild(make_replay(make_events(rows, 3)), size=4)
    past = rebuild(make_replay(make_events([r for r in rows if r[0] < cut], 3)), size=4)
    before = whole.take(np.flatnonzero(whole.at < START + cut))
    assert list(before.request_ids) == list(past.request_ids)
    for a, b in zip(vars(before).values(), vars(past).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=25, deadline=None)
@given(logs())
def test_a_rebuilt_list_offers_or_misses_every_item_of_its_basket(rows: list[Row]) -> None:
    """For each gain, offered and missed items add up to those of the basket. No candidate occurs twice."""
    events = make_events(rows, 3)
    wanted, found = baskets(events, 0.0), rebuild(make_replay(events), size=4)
    for g in range(len(found)):
        offered = found.gain[found.start[g] : found.start[g + 1]]
        basket = wanted.gain[wanted.start[g] : wanted.start[g + 1]]
        counted = np.bincount(offered, minlength=4)[1:] + found.missed[g]
        assert counted.tolist() == np.bincount(basket, minlength=4)[1:].tolist()
        assert len(offered) <= 4
        assert len(set(found.item[found.start[g] : found.start[g + 1]].tolist())) == len(offered)


def test_targets_include_items_that_were_not_offered() -> None:
    """The basket at 20 s has items 1, 3 and 4. Retrieval does not offer item 1, so the list alone does not have it."""
    replay = make_replay(log((20, 0, 1, BOUGHT, -1), (20, 0, 3, CART, -1), (20, 0, 4, CLICK, -1), (9, 1, 5, CLICK, -1)))
    wanted = baskets(replay.events, 0.0)
    found = find_targets(rebuild_lists(replay, wanted, 12).take(np.array([1])), wanted)
    assert found.of.tolist() == [0, 0, 0]
    assert dict(zip(found.item.tolist(), found.gain.tolist(), strict=True)) == {1: 3, 3: 2, 4: 1}


def test_logged_lists_have_a_time_a_user_and_perhaps_an_action() -> None:
    """Two lists, one of them clicked. A log of purchases has none."""
    served = [(10.0, 0, 1, SHOWN, 3), (15.0, 1, 2, SHOWN, 4), (20.0, 0, 1, CLICK, 3)]
    found = logged_keys(iter_logged_lists(log(*served), DAY))
    assert found.at.tolist() == [START + 10, START + 15]
    assert found.user.tolist() == [0, 1]
    assert found.has_gain.tolist() == [True, False]
    bought = log((30.0, 1, 1, BOUGHT, -1), (31.0, 1, 1, SHOWN, -1))
    assert [has_logged_list(log(*served)), has_logged_list(bought)] == [True, False]
    assert len(logged_keys(iter_logged_lists(bought, DAY)).at) == 0


def test_an_action_that_belongs_to_a_logged_list_is_in_no_basket() -> None:
    """Item 1 was clicked in the list, and item 2 bought from it half a day later.

    Left are the purchase of item 9 at the same time, and those of item 1 two days after the list and by another user.
    """
    served = [(0.0, 0, 1, SHOWN, 3), (0.0, 0, 2, SHOWN, 3), (5.0, 0, 1, CLICK, 3), (DAY / 2, 0, 2, BOUGHT, -1)]
    other = [(DAY / 2, 0, 9, BOUGHT, -1), (2 * DAY, 0, 1, BOUGHT, -1), (6.0, 1, 1, BOUGHT, -1)]
    events = log(*served, *other)
    (left,) = without_logged(iter_baskets(events, -np.inf), logged_lists(events), DAY)
    assert [(at - START, user) for at, user in zip(left.at.tolist(), left.user.tolist(), strict=True)] == [
        (6, 1),
        (DAY / 2, 0),
        (2 * DAY, 0),
    ]
    assert left.item.tolist() == [1, 9, 1]
    assert left.request_ids[0] == f"u1@{START + 6:.6f}"


@given(logs())
@settings(max_examples=60, deadline=None)
def test_each_action_is_in_a_logged_list_or_in_a_basket_and_lists_stay_in_time_order(rows: list[Row]) -> None:
    """Left of the baskets is what no logged list of the user gave a gain within a day."""
    events = make_events(rows, 3)
    shown = logged_lists(events)
    shown = shown.take(np.flatnonzero(has_gain(shown)))
    given = [
        (int(shown.user[g]), int(i), float(shown.at[g]))
        for g, i, gain in zip(shown.group.tolist(), shown.item.tolist(), shown.gain.tolist(), strict=True)
        if gain
    ]
    everything, left = baskets(events, -np.inf), concat(without_logged([baskets(events, -np.inf)], shown, DAY))

    def actions(lists: Lists) -> set[tuple[int, int, float]]:
        group = lists.group
        return set(zip(lists.user[group].tolist(), lists.item.tolist(), lists.at[group].tolist(), strict=True))

    expected = {
        (user, item, at)
        for user, item, at in actions(everything)
        if not any((u, i) == (user, item) and start <= at <= start + DAY for u, i, start in given)
    }
    assert actions(left) == expected
    merged = concat(merge(without_logged(iter_baskets(events, -np.inf), shown, DAY), shown))
    assert (np.diff(merged.at) >= 0).all()
    assert sorted(merged.request_ids) == sorted([*left.request_ids, *shown.request_ids])
    assert actions(merged) == actions(left) | actions(shown)


def test_targets_of_logged_lists_are_their_items_with_gain() -> None:
    found = logged_lists(log(*LIST, (15, 1, 9, SHOWN, 4), (20, 0, 2, CLICK, 3), (21, 1, 9, BOUGHT, 4)))
    wanted = find_targets(found, found)
    assert list(zip(wanted.of.tolist(), wanted.item.tolist(), wanted.gain.tolist(), strict=True)) == [
        (0, 2, 1),
        (1, 9, 3),
    ]


def test_a_list_without_its_basket_is_an_error() -> None:
    found = logged_lists(log(*LIST))
    with pytest.raises(KeyError, match="r3"):
        find_targets(found, baskets(log((10, 0, 1, CLICK, -1)), 0.0))


def assert_same(a: Lists, b: Lists) -> None:
    """Assert that two sets of lists are equal."""
    for name in ("at", "user", "start", "item", "position", "gain", "missed", "device"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    assert list(a.request_ids) == list(b.request_ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 5)), max_size=12), logs(), st.data())
def test_lists_built_in_blocks_equal_those_built_at_once(
    shown: list[tuple[int, int, int]], actions: list[Row], data: st.DataObject
) -> None:
    """Lists of three items every quarter of a day, actions with and without a request, and blocks of any size."""
    rows: list[Row] = [
        (quarter * DAY / 4, user, (item + k) % 12, SHOWN, request)
        for request, (quarter, user, item) in enumerate(shown)
        for k in range(3)
    ]
    rows += [(t, u, i, k, min(r, len(shown) - 1)) for t, u, i, k, r in actions if k != SHOWN]
    events, block_rows = make_events(rows, n_users=4), data.draw(st.integers(1, 30))
    for attribution_s in (3600.0, DAY):
        assert_same(concat(iter_logged_lists(events, attribution_s, block_rows)), logged_lists(events, attribution_s))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Events.parts, "__defaults__", (block_rows,))
        assert_same(concat(iter_baskets(events, START + DAY)), baskets(events, START + DAY))


def test_select_and_keys_read_lists_in_blocks() -> None:
    whole = baskets(log(*((day * DAY, day % 4, day, CLICK, -1) for day in range(7))), 0.0)
    parts = [whole.take(np.arange(a, b)) for a, b in ((0, 3), (3, 3), (3, 7))]
    numbers = np.array([0, 2, 3, 6])
    assert_same(select(parts, numbers), whole.take(numbers))
    found = keys(parts)
    assert (found.at.tolist(), found.user.tolist()) == (whole.at.tolist(), whole.user.tolist())
    assert len(concat([])) == len(keys([])) == len(select([], numbers[:0])) == 0


def test_an_impression_after_the_attribution_time_of_its_list_is_ignored() -> None:
    """The attribution time is an hour. Item 2 is shown at its end, item 3 a second later."""
    found = logged_lists(log((0, 0, 1, SHOWN, 3), (3600, 0, 2, SHOWN, 3), (3601, 0, 3, SHOWN, 3)), 3600.0)
    assert found.item.tolist() == [1, 2]
