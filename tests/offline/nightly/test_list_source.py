"""The query groups of a run: their source when a shop of purchases starts to log what it shows, and their length."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.history import NO_MERGES
from features.log import Events, Kind
from offline.config import load
from offline.data import WINDOWS, query_groups
from offline.nightly.evaluate import _list_counts
from offline.nightly.inputs import Inputs
from offline.nightly.list_source import Support, judged_kind, split_both
from tests.worlds import LogRow, make_events, make_lists

BOUGHT, HOUR = 4000, 3600.0


def run_on(log: Events, lists: dict[str, Any] | None = None, protocol: str = "time-split") -> Inputs:
    out = Inputs(load(None, lists=lists or {}, windows={"protocol": protocol}), None, ())
    out.__dict__["data"] = SimpleNamespace(shown=log, events=log, merges=NO_MERGES)  # in the cache of the property
    return out


def shop(lists: int, users: int = 50, step_s: float = HOUR, clicked: bool = True, bought: int = BOUGHT) -> Events:
    """A log of purchases, one every hour, and then of lists in a row, each clicked after a second.

    Shoppers take turns: list k is of user k modulo `users`.
    """
    rows: list[LogRow] = [(HOUR * k, k % 50, 1, Kind.PURCHASE, -1) for k in range(bought)]
    for k in range(lists):
        at = HOUR * bought + step_s * k
        rows.append((at, k % users, 2, Kind.IMPRESSION, k))
        if clicked:
            rows.append((at + 1, k % users, 2, Kind.CLICK, k))
    return make_events(rows, n_users=50, n_requests=max(lists, 1))


@pytest.mark.parametrize(
    ("lists", "kind"), [(0, "rebuilt"), (1, "mixed"), (3, "mixed"), (60, "mixed"), (990, "mixed"), (1000, "logged")]
)
def test_rebuilt_lists_go_on_until_logged_lists_carry_each_window(lists: int, kind: str) -> None:
    """The smallest window, validation, has a tenth of the lists: 100 of 1,000 and 99 of 990."""
    assert run_on(shop(lists)).list_source.kind == kind


def test_a_window_needs_lists_of_thirty_users_at_thirty_times() -> None:
    """Of 1,000 lists, those of one user or of few times carry no window. Of 30 users in turn, they do."""
    assert run_on(shop(1000, users=30)).list_source.kind == "logged"
    (one, few, at_once) = (
        run_on(log).list_source for log in (shop(1000, users=1), shop(1000, users=29), shop(1000, step_s=0.0))
    )
    assert [one.kind, few.kind, at_once.kind] == ["mixed"] * 3
    assert one.reason == "the ranker window has 1 of 30 users with such a list"
    assert few.reason == "the ranker window has 29 of 30 users with such a list"
    assert at_once.reason == "with 1 different time they cannot be split into windows"


def test_a_run_says_why_rebuilt_lists_go_on() -> None:
    """Of 60 lists, 33 are in the ranker window: .55."""
    assert run_on(shop(60)).list_source.notice == (
        "Rebuilt lists go on: the 60 logged lists with an action cannot carry each window alone (the ranker window has "
        "33 of 100 logged lists with an action; lists.window_lists). The report and the gate judge both kinds apart."
    )
    assert run_on(shop(7, clicked=False)).list_source.notice == (
        "Lists were rebuilt, because none of the 7 logged lists has an action."
    )
    assert [run_on(shop(n)).list_source.notice for n in (0, 1000)] == [None, None]


def test_a_shop_whose_actions_mostly_belong_to_lists_uses_these_alone() -> None:
    """Of 20 lists with a click and 20 other purchases, lists are not fewer. With 21 purchases, they are."""
    assert run_on(shop(20, bought=20)).list_source.kind == "logged"
    assert run_on(shop(20, bought=21)).list_source.kind == "mixed"


def test_a_source_that_is_set_is_used_whatever_the_counts() -> None:
    assert run_on(shop(3), {"source": "logged"}).is_logged
    assert run_on(shop(2000), {"source": "rebuilt"}).list_source.kind == "rebuilt"
    assert run_on(shop(20), {"window_lists": 2}).list_source.kind == "mixed", "20 lists are of 20 users"


@pytest.mark.parametrize(("protocol", "kind"), [("leave-last-out", "rebuilt"), ("given-lists", "logged")])
def test_a_protocol_of_one_kind_is_not_mixed(protocol: str, kind: str) -> None:
    assert run_on(shop(60), protocol=protocol).list_source.kind == kind


def test_both_kinds_are_in_time_order_and_each_knows_its_targets() -> None:
    """Five lists after 4,000 purchases. The clicks on the lists are no baskets, so that nothing counts twice."""
    run = run_on(shop(5))
    both = query_groups.concat(run.lists())
    logged = run.are_logged(both)
    assert (len(both), int(logged.sum())) == (BOUGHT + 5, 5)
    assert logged[-5:].all()
    assert (np.diff(both.at) > 0).all()
    assert run.targets(both.take(np.flatnonzero(logged))).item.tolist() == [2] * 5
    assert run.targets(both.take(np.array([0, 7]))).item.tolist() == [1, 1]


def test_logged_lists_without_an_action_are_no_query_groups_beside_rebuilt_ones() -> None:
    log = shop(5)
    unclicked = log.take(~((log.kind == Kind.CLICK) & (log.request == 4)))
    assert sum(run_on(unclicked).are_logged(block).sum() for block in run_on(unclicked).lists()) == 4


def test_logged_lists_decide_once_they_carry_the_test_window() -> None:
    """Of 400 test lists at different times of 50 users, 100 logged ones decide, 99 do not, and 201 do in any case."""
    lists = make_lists([float(k) for k in range(400)], [k % 50 for k in range(400)], [[1]] * 400)
    everything = np.ones(400, bool)

    def judged(logged: int, least: int = 100) -> str:
        return judged_kind(lists, everything, np.arange(400) < logged, least)

    assert [judged(0), judged(99), judged(100), judged(400)] == ["rebuilt", "rebuilt", "logged", "logged"]
    assert [judged(200, 1000), judged(201, 1000)] == ["rebuilt", "logged"]


def windows_of(lists: int, users: int = 50) -> tuple[list[int], list[int]]:
    """Numbers of logged and of rebuilt lists in the windows for training, validation and test."""
    run = run_on(shop(lists, users))
    both = query_groups.concat(run.lists())
    windows, logged = split_both(both, run.logged_keys, run.config), run.are_logged(both)
    numbers = [windows.lists(name, both) for name in WINDOWS[1:]]
    return [int(logged[n].sum()) for n in numbers], [int((~logged[n]).sum()) for n in numbers]


def test_a_few_logged_lists_are_all_in_the_test_window() -> None:
    """Of 4,299 lists in all, training starts after 645 (.15), validation after 3,009 (.7) and test after 3,439 (.8)."""
    assert windows_of(299) == ([0, 0, 299], [3009 - 645, 3439 - 3009, 4299 - 3439 - 299])


@pytest.mark.parametrize(("lists", "logged"), [(300, [100, 100, 100]), (500, [300, 100, 100]), (900, [620, 100, 180])])
def test_logged_lists_that_fill_a_window_each_are_validation_and_test(lists: int, logged: list[int]) -> None:
    """Of 900 lists, a fifth (180) is the test; validation has its least number, as a tenth would be 90.

    The ranker learns from the other logged lists, and from all baskets but those of the encoder's window, .15 of all.
    """
    baskets = BOUGHT - round(0.15 * (BOUGHT + lists))
    assert windows_of(lists) == (logged, [baskets, 0, 0])


def test_logged_lists_of_one_user_fill_no_window() -> None:
    """They are in the test window, as few lists are."""
    logged, _ = windows_of(500, users=1)
    assert logged == [0, 0, 500]


def test_what_a_window_lacks_is_said_in_numbers() -> None:
    assert Support(99, 50, 50).lack(100) == "99 of 100 logged lists with an action"
    assert Support(100, 50, 29).lack(100) == "29 of 30 different times of such lists"
    assert Support(100, 30, 30).lack(100) is None


def test_a_list_too_long_for_lambdarank_is_left_out() -> None:
    """Of lists of 10,050 and of 2 items, the ranker trains on the second."""
    rows: list[LogRow] = [(0.0, 0, item, Kind.IMPRESSION, 0) for item in range(10_050)]
    rows += [(50.0, 1, item, Kind.IMPRESSION, 1) for item in range(2)]
    rows += [(51.0, 0, 1, Kind.CLICK, 0), (52.0, 1, 1, Kind.CLICK, 1)]
    run = run_on(make_events(rows, n_users=2))
    assert [list(block.request_ids) for block in run.lists()] == [["r1"]]
    assert [_list_counts(block) for block in run.logged_lists()] == [(2, 0, 1)]
