"""Last touch: which list a click, cart, purchase or return counts for, on hand-made logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.earnings.attribution import last_touches, named_lists
from offline.earnings.cells import Cell, Cells
from offline.earnings.rows import RowKind, make_rows
from offline.experiments import UserMerges
from tests.offline.earnings.logs import DAY, Log, settings_of


def by_placement(tables: dict[str, Any]) -> dict[str | None, dict[str, Any]]:
    """The figures of all days by placement."""
    return {entry["placement"]: entry["total"] for entry in tables["placements"]}


def test_of_two_lists_within_the_window_the_last_one_gets_the_purchase(tmp_path: Path) -> None:
    log = (
        Log()
        .show(0, "q1", "u", ["a", "b"])
        .show(100, "q2", "u", ["a"], "cart")
        .event(200, "purchase", "u", "a", value=9.0)
    )
    found = by_placement(log.earnings(tmp_path))
    assert (found["home"]["purchases"], found["home"]["revenue"]) == (0, 0.0)
    assert (found["cart"]["purchases"], found["cart"]["revenue"]) == (1, 9.0)


def test_an_action_counts_for_the_list_it_names_even_if_a_later_one_showed_the_item(tmp_path: Path) -> None:
    log = Log().show(0, "q1", "u", ["a"]).show(100, "q2", "u", ["a"], "cart")
    log.event(200, "click", "u", "a", request_id="q1").event(300, "purchase", "u", "a", request_id="q1", value=9.0)
    found = by_placement(log.earnings(tmp_path))
    assert (found["home"]["clicks"], found["home"]["revenue"]) == (1, 9.0)
    assert (found["cart"]["clicks"], found["cart"]["revenue"]) == (0, 0.0)


@pytest.mark.parametrize(("seconds", "purchases"), [(DAY, 1), (DAY + 0.001, 0)])
def test_a_purchase_counts_up_to_the_end_of_the_window(tmp_path: Path, seconds: float, purchases: int) -> None:
    log = Log().show(0, "q1", "u", ["a"]).event(seconds, "purchase", "u", "a", value=9.0)
    tables = log.earnings(tmp_path)
    assert by_placement(tables)["home"]["purchases"] == purchases
    assert tables["shop"]["total"]["revenue"] == 9.0, "the shop's own revenue counts either way"


def test_a_list_named_too_late_leaves_the_purchase_to_a_later_list(tmp_path: Path) -> None:
    log = Log().show(0, "q1", "u", ["a"]).show(DAY, "q2", "u", ["a"], "cart")
    log.event(DAY + 10, "purchase", "u", "a", request_id="q1", value=9.0)
    assert by_placement(log.earnings(tmp_path))["cart"]["revenue"] == 9.0


def test_a_purchase_before_the_list_counts_for_none(tmp_path: Path) -> None:
    log = Log().event(5, "purchase", "u", "a", value=9.0).show(10, "q1", "u", ["a"])
    log.event(7, "click", "u", "a", request_id="q1")
    found = by_placement(log.earnings(tmp_path))["home"]
    assert (found["lists"], found["clicks"], found["purchases"]) == (1, 0, 0)


def test_items_that_were_not_in_the_list_and_other_users_count_for_none(tmp_path: Path) -> None:
    log = (
        Log()
        .show(0, "q1", "u", ["a"])
        .event(1, "purchase", "u", "b", value=9.0)
        .event(2, "purchase", "v", "a", value=9.0)
    )
    assert by_placement(log.earnings(tmp_path))["home"]["purchases"] == 0


def test_a_duplicate_event_counts_once(tmp_path: Path) -> None:
    log = Log().show(0, "q1", "u", ["a"]).event(1, "purchase", "u", "a", value=9.0)
    log.events.append(dict(log.events[-1]))
    log.events.append(dict(log.events[0]))
    found = by_placement(log.earnings(tmp_path))["home"]
    assert (found["lists"], found["users"], found["purchases"], found["revenue"]) == (1, 1, 1, 9.0)


def test_a_return_is_subtracted_from_the_list_of_the_purchase(tmp_path: Path) -> None:
    """Bought for 9 + 9 from the list in the cart; one is sent back after a week, when another list showed it."""
    log = (
        Log()
        .show(0, "q1", "u", ["a"], "cart")
        .event(1, "purchase", "u", "a", value=9.0)
        .event(2, "purchase", "u", "a", value=9.0)
    )
    log.show(7 * DAY, "q2", "u", ["a"]).event(7 * DAY + 1, "purchase", "u", "a", value=-9.0)
    found = by_placement(log.earnings(tmp_path))
    assert (found["cart"]["purchases"], found["cart"]["returns"], found["cart"]["revenue"]) == (2, 1, 9.0 + 9.0 - 9.0)
    assert (found["home"]["returns"], found["home"]["revenue"]) == (0, 0.0)


def test_a_return_of_what_was_bought_without_a_list_counts_for_the_shop_only(tmp_path: Path) -> None:
    log = (
        Log()
        .event(1, "purchase", "u", "a", value=9.0)
        .show(2, "q1", "u", ["a"])
        .event(3, "purchase", "u", "a", value=-9.0)
    )
    tables = log.earnings(tmp_path)
    assert by_placement(tables)["home"]["returns"] == 0
    assert tables["shop"]["total"] == {"purchases": 1, "returns": 1, "without_revenue": 0, "revenue": 0.0}


def test_a_list_without_a_user_counts_but_not_as_a_user(tmp_path: Path) -> None:
    """An action that names it counts for it; who did it is known from the event only."""
    log = Log().serve(0, "q1", None, ["a"]).event(5, "purchase", "u", "a", request_id="q1", value=9.0)
    tables = log.earnings(tmp_path)
    found = by_placement(tables)["home"]
    assert (found["lists"], found["users"], found["revenue"]) == (1, 0, 9.0)
    assert tables["notes"] == ["Lists without a user, which are in no count of users: 1."]


def test_a_guest_who_logs_in_is_one_user_and_buys_from_the_list_of_the_guest(tmp_path: Path) -> None:
    log = Log().show(0, "q1", "guest", ["a"]).merge(50, "guest", "u").show(60, "q2", "u", ["b"])
    log.event(100, "purchase", "u", "a", value=9.0)
    found = by_placement(log.earnings(tmp_path))["home"]
    assert (found["lists"], found["users"], found["revenue"]) == (2, 1, 9.0)


def test_what_a_guest_does_after_the_merge_is_not_the_users(tmp_path: Path) -> None:
    log = Log().merge(50, "guest", "u").show(60, "q1", "guest", ["a"]).event(100, "purchase", "u", "a", value=9.0)
    assert by_placement(log.earnings(tmp_path))["home"]["purchases"] == 0


def test_where_impressions_are_reported_a_list_without_any_was_not_shown(tmp_path: Path) -> None:
    """Of two served lists at home, one has impressions. In e-mails nobody reports any, so the list counts as shown."""
    log = Log().serve(0, "q1", "u", ["a"]).show(1, "q1", "u", ["a"]).serve(10, "q2", "u", ["b"])
    log.serve(20, "q3", "u", ["b"], "mail").event(30, "purchase", "u", "b", value=9.0)
    tables = log.earnings(tmp_path)
    found = by_placement(tables)
    assert (found["home"]["lists"], found["home"]["purchases"]) == (1, 0)
    assert (found["mail"]["lists"], found["mail"]["revenue"]) == (1, 9.0)
    assert tables["notes"] == [
        "home: served lists without any reported impression or click are left out: 1.",
        "mail: no impressions are reported, so served lists count as shown, from top to bottom: 1.",
    ]


def test_a_list_that_only_a_click_names_was_shown(tmp_path: Path) -> None:
    log = Log().serve(0, "q1", "u", ["a"]).show(1, "q1", "u", ["a"]).serve(10, "q2", "u", ["b"])
    log.event(11, "click", "u", "b", request_id="q2").event(20, "purchase", "u", "b", value=9.0)
    found = by_placement(log.earnings(tmp_path))["home"]
    assert (found["lists"], found["clicks"], found["revenue"]) == (2, 1, 9.0)


def test_lists_of_a_log_without_served_lists_have_a_placement_and_no_release(tmp_path: Path) -> None:
    log = Log().show(0, "q1", "u", ["a"]).show(1, "q2", "v", ["a"], "search")
    found = log.earnings(tmp_path)["releases"]
    assert [(e["placement"], e["release"], e["total"]["lists"]) for e in found] == [
        ("home", None, 1),
        ("search", None, 1),
    ]


def test_a_served_list_has_the_placement_of_its_impressions_if_its_request_had_none(tmp_path: Path) -> None:
    log = Log().serve(0, "q1", "u", ["a"], None).show(1, "q1", "u", ["a"], "cart")
    assert [(e["placement"], e["release"]) for e in log.earnings(tmp_path)["releases"]] == [("cart", "r1")]


def test_the_day_of_a_purchase_is_that_of_its_list(tmp_path: Path) -> None:
    """Shown at 23:59, bought at 00:01: the first day. That day is complete once its window has passed."""
    log = Log().show(DAY - 60, "q1", "u", ["a"]).event(DAY + 60, "purchase", "u", "a", value=9.0)
    log.event(2 * DAY, "click", "u", "a")
    tables = log.earnings(tmp_path)
    assert [(d["day"], d["lists"], d["revenue"]) for d in tables["placements"][0]["days"]] == [("2024-10-04", 1, 9.0)]
    assert [(d["day"], d["revenue"]) for d in tables["shop"]["days"]] == [("2024-10-05", 9.0)]
    assert (tables["first_day"], tables["last_day"], tables["complete_to"]) == (
        "2024-10-04",
        "2024-10-06",
        "2024-10-04",
    )


def test_the_same_figures_come_from_one_file_and_from_many(tmp_path: Path) -> None:
    """400 users with lists and purchases; 5 rows per file make 200 files."""
    rng, log = np.random.default_rng(0), Log()
    for k in range(400):
        user, at = f"u{rng.integers(60)}", float(rng.uniform(0, 3 * DAY))
        log.serve(at, f"q{k}", user, ["a", "b"], ["home", "cart"][k % 2], arms={"x": "y"} if k % 3 else None)
        log.show(at + 1, f"q{k}", user, ["a", "b"][: 1 + k % 2], ["home", "cart"][k % 2])
        log.event(at + float(rng.uniform(-DAY, 2 * DAY)), "purchase", user, "ab"[k % 2], value=float(k))
    whole, split = tmp_path / "whole", tmp_path / "split"
    whole.mkdir()
    split.mkdir()
    assert log.earnings(whole) == log.earnings(split, settings_of()._replace(rows_per_file=5))


Shown = tuple[int, int, int]
"""User, time and items as bits, of the list whose number is its place."""
Action = tuple[int, int, int, int]
"""User, item, time, and the number of the list that it names, from 1; 0 for none."""
WINDOW = 4


@given(
    st.lists(st.tuples(st.integers(1, 2), st.integers(0, 12), st.integers(1, 7)), max_size=5),
    st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 16), st.integers(0, 6)), max_size=6),
)
def test_each_action_counts_for_the_list_that_a_loop_finds(lists: list[Shown], actions: list[Action]) -> None:
    """Each list has a cell of its own. Lists at the same time and with the same item are told apart by neither."""

    def expected(user: int, item: int, at: int, named: int) -> set[int]:
        if 0 < named <= len(lists) and 0 <= at - lists[named - 1][1] <= WINDOW:
            return {named - 1}
        touches = [
            (shown_at, k)
            for k, (of, shown_at, items) in enumerate(lists)
            if of == user and items >> (item - 1) & 1 and 0 <= at - shown_at <= WINDOW
        ]
        return {k for shown_at, k in touches if shown_at == max(touches)[0]} or {-1}

    cells = Cells()
    for k in range(len(lists)):
        cells.number(Cell(f"p{k}", None))
    given_rows = [
        (k + 1, user, item, at, RowKind.SHOWN, k, 0.0)
        for k, (user, at, items) in enumerate(lists)
        for item in (1, 2, 3)
        if items >> (item - 1) & 1
    ]
    given_rows += [(named, u, i, at, RowKind.CART, -1, float(n)) for n, (u, i, at, named) in enumerate(actions)]
    rows = make_rows(len(given_rows))
    for row, values in zip(rows, given_rows, strict=True):
        for name, value in zip(("request", "user", "item", "at", "kind", "cell", "revenue"), values, strict=True):
            row[name] = value
    named = rows["request"] != 0
    found = last_touches(np.concatenate((rows[~named], named_lists(rows[named], cells, WINDOW).rows)), WINDOW)
    assert len(found) == len(actions)
    for row in found:
        assert int(row["cell"]) in expected(*actions[int(row["revenue"])])


merges = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)), max_size=6)


@given(merges, st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=8))
def test_a_user_is_followed_through_all_later_merges(
    of: list[tuple[int, int, int]], rows: list[tuple[int, int]]
) -> None:
    """As a loop does it: while there is a merge of the user after the time, take the first one."""
    of = sorted(set(of), key=lambda m: (m[0], m[2], m[1]))
    source, into = (np.array([m[k] for m in of], np.uint64) for k in (0, 1))
    one = UserMerges(source, into, np.array([m[2] for m in of], np.int64))

    def follow(user: int, at: int) -> int:
        while later := [m for m in of if m[0] == user and m[2] > at]:
            _, user, at = later[0]
        return user

    user, at = np.array([r[0] for r in rows], np.uint64), np.array([r[1] for r in rows])
    assert one.apply(user, at).tolist() == [follow(*r) for r in rows]


def test_a_log_of_purchases_without_any_list_has_the_revenue_of_the_shop(tmp_path: Path) -> None:
    tables = Log().event(0, "purchase", "u", "a", value=9.0).earnings(tmp_path)
    assert [tables[name] for name in ("all", "placements", "releases", "arms", "experiments")] == [[]] * 5
    assert tables["shop"]["total"]["revenue"] == 9.0


def test_only_the_last_days_are_read(tmp_path: Path) -> None:
    """Of three days the last two; what was bought on the first is not in the revenue of the shop either."""
    log = Log()
    for day in range(3):
        log.show(day * DAY, f"q{day}", "u", ["a"]).event(day * DAY + 1, "purchase", "u", "a", value=9.0)
    tables = log.earnings(tmp_path, settings_of(days=2))
    assert (tables["first_day"], tables["last_day"]) == ("2024-10-05", "2024-10-06")
    assert (tables["all"][0]["total"]["lists"], tables["shop"]["total"]["revenue"]) == (2, 2 * 9.0)


def test_an_impression_of_no_list_is_counted_in_a_note(tmp_path: Path) -> None:
    tables = Log().event(0, "impression", "u", "a").event(1, "purchase", "u", "a", value=9.0).earnings(tmp_path)
    assert tables["placements"] == []
    assert tables["notes"] == ["Impressions without a request ID, which belong to no list and are left out: 1."]


def test_a_list_in_two_experiments_is_in_the_tables_of_both(tmp_path: Path) -> None:
    log = Log().serve(0, "q1", "u", ["a"], arms={"x": "one", "y": "two"}).show(1, "q1", "u", ["a"])
    tables = log.event(2, "purchase", "u", "a", value=9.0).earnings(tmp_path)
    assert [(e["experiment"], e["arm"], e["total"]["revenue"]) for e in tables["arms"]] == [
        ("x", "one", 9.0),
        ("y", "two", 9.0),
    ]
    assert tables["all"][0]["total"]["revenue"] == 9.0
