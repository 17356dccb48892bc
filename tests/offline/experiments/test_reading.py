"""Exposures and outcomes are read from the log as the definitions say. Expected sums are counted by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from offline.config import EarningsConfig
from offline.data import LogFiles
from offline.experiments.design import Design, Observed, Window
from offline.experiments.money import Prices
from offline.experiments.reading import read, read_all
from tests.experiment_logs import HOUR_US, START_US, acted, shown, write_log

TEST = Design("test", ("control", "new"), (1.0, 1.0), start=START_US / 1e6)
DAY_S = 86400.0


def observe(
    directory: Path,
    *log: Any,
    design: Design = TEST,
    window: Window | None = None,
    earnings: Mapping[str, str] | None = None,
    **others: Any,
) -> Observed:
    """earnings: keys of that section of the configuration; None if values are revenues."""
    files = LogFiles.of(write_log(directory, *log, **others))
    prices = None if earnings is None else Prices.of(directory, {}, EarningsConfig.model_validate(earnings))
    return read(files, design, window, prices)


def totals(found: Observed, look: int = -1) -> dict[str, list[float]]:
    """Sums of the columns by arm."""
    assert found.moments is not None
    return {name: found.moments.totals(name)[look].tolist() for name in found.moments.columns}


def test_actions_count_from_the_exposure_until_the_attribution_time(tmp_path: Path) -> None:
    """Too early, at the exposure, in time, at the last moment, and too late: three of five clicks count."""
    clicks = [acted("u", "click", hours) for hours in (0.5, 1.0, 5.0, 25.0, 25.001)]
    found = observe(tmp_path, [shown("u", "new", 1.0)], clicks)
    assert totals(found)["clicks"] == [0, 3]
    assert found.counts == {"actions after the attribution time": 1}


def test_a_later_exposure_extends_the_time(tmp_path: Path) -> None:
    """Only the latest exposure before an action matters: 30 hours after the first, but 10 after the second."""
    found = observe(tmp_path, [shown("u", "new", 0), shown("u", "new", 20)], [acted("u", "cart", 30)])
    assert totals(found)["carts"] == [0, 1]


def test_sums_are_of_each_arm_and_each_day(tmp_path: Path) -> None:
    """Two users in each arm over two days; what happens on the second day is not in the first look."""
    lists = [shown("a", "control", 1), shown("b", "control", 30), shown("c", "new", 2), shown("c", "new", 26)]
    events = [
        acted("a", "purchase", 3, 10.0, item_id="a"),
        acted("a", "purchase", 4, 20.0, item_id="c"),
        acted("c", "purchase", 27, 5.0, item_id="b"),
        acted("stranger", "purchase", 5, 99.0),
    ]
    found = observe(tmp_path, lists, events, earnings={"value": "amount", "margin": "margin"})
    first, last = totals(found, 0), totals(found)
    assert (first["unit"], last["unit"]) == ([1, 1], [2, 1])
    assert (first["lists"], last["lists"]) == ([1, 1], [2, 2])
    assert (first["purchases"], last["purchases"]) == ([2, 0], [2, 1])
    assert (first["revenue"], last["revenue"]) == ([30, 0], [30, 5])
    assert last["margin"] == [2, 3], "item c has no margin, which counts as 0"
    assert found.counts == {"purchases without a known margin": 1}
    assert found.moments is not None
    k = found.moments.columns.index("revenue")
    assert found.moments.sums[-1, :, k, k].tolist() == [30**2, 5**2]


def test_units_in_several_arms_are_counted_and_left_out(tmp_path: Path) -> None:
    lists = [shown("a", "control", 1), shown("a", "new", 2), shown("b", "new", 3)]
    found = observe(tmp_path, lists, [acted("a", "click", 3), acted("b", "click", 4)])
    assert totals(found)["unit"] == [0, 1]
    assert totals(found)["clicks"] == [0, 1]
    assert found.counts == {"users in several arms": 1}


def test_lists_that_nobody_saw_are_no_exposures(tmp_path: Path) -> None:
    """An empty list, a list without a user, a list outside the experiment, and one of an unknown arm."""
    lists = [
        shown("a", "new", 1, item_ids=[]),
        shown(None, "new", 2),
        shown("b", None, 3),
        shown("c", "removed", 4),
        shown("d", "control", 5),
    ]
    found = observe(tmp_path, lists, [acted(u, "click", 6) for u in "abcd"])
    assert totals(found)["unit"] == [1, 0]
    assert totals(found)["clicks"] == [1, 0]
    assert found.counts == {
        "lists without items": 1, "lists without a user": 1, "lists of an arm that is not configured": 1,
    }  # fmt: skip


def test_lists_before_the_start_and_after_the_end_are_no_exposures(tmp_path: Path) -> None:
    """An action after the end counts, if it is in time."""
    design = Design("test", TEST.arms, TEST.shares, start=START_US / 1e6, end=START_US / 1e6 + 10 * 3600)
    lists = [shown("a", "new", -1), shown("b", "new", 9), shown("c", "new", 10)]
    found = observe(tmp_path, lists, [acted(u, "click", 12) for u in "abc"], design=design)
    assert totals(found)["unit"] == [0, 1]
    assert totals(found)["clicks"] == [0, 1]


def test_a_purchase_without_a_value_is_a_purchase_without_revenue(tmp_path: Path) -> None:
    events = [acted("a", "purchase", 2), acted("a", "purchase", 3, float("nan")), acted("a", "purchase", 4, 7.0)]
    found = observe(tmp_path, [shown("a", "new", 1)], events)
    assert (totals(found)["purchases"], totals(found)["revenue"]) == ([0, 3], [0, 7])
    assert found.counts == {"purchases without a known revenue": 2}


def test_revenue_is_by_the_configuration(tmp_path: Path) -> None:
    """Three a at 10 and two d, which have no price."""
    events = [acted("a", "purchase", 2, 3.0), acted("a", "purchase", 3, 2.0, item_id="d")]
    found = observe(tmp_path, [shown("a", "new", 1)], events, earnings={"value": "quantity"})
    assert (totals(found)["purchases"], totals(found)["revenue"]) == ([0, 2], [0, 30])
    assert found.counts == {"purchases without a known revenue": 1}, "a margin that nobody asked for is not missing"


def test_a_return_takes_back_revenue_and_is_no_purchase(tmp_path: Path) -> None:
    events = [acted("a", "purchase", 2, 7.0), acted("a", "purchase", 3, -3.0)]
    found = observe(tmp_path, [shown("a", "new", 1)], events)
    assert (totals(found)["purchases"], totals(found)["revenue"]) == ([0, 1], [0, 4])
    assert found.counts == {"returns": 1}


def test_outcomes_before_the_start_are_kept_apart(tmp_path: Path) -> None:
    """Of the four days before the start, and only of units that were exposed later."""
    lists = [shown("a", "control", 1), shown("b", "new", 30)]
    events = [acted("a", "purchase", hours, 4.0) for hours in (-97, -95, -1)]
    events += [acted("b", "click", -2), acted("c", "click", -2), acted("b", "click", 3)]
    found = observe(tmp_path, lists, events, window=Window(before_days=4))
    assert totals(found)["revenue_before"] == [8, 0]
    assert totals(found)["clicks_before"] == [0, 1]
    assert totals(found)["clicks"] == [0, 0], "the click after the start precedes the exposure"
    assert totals(found, 0)["clicks_before"] == [0, 0], "user b is exposed on the second day"


def test_a_merge_makes_the_guest_and_the_user_one_unit(tmp_path: Path) -> None:
    """The guest's exposure before the merge is the user's; what a guest with the same ID does later is not."""
    lists = [shown("guest", "new", 1), shown("guest", "control", 9), shown("user", "new", 6)]
    events = [acted("user", "click", 7), acted("guest", "click", 10)]
    merges = [{"user_id": "user", "from_id": "guest", "at": START_US + 5 * HOUR_US}]
    found = observe(tmp_path, lists, events, merges)
    assert totals(found)["unit"] == [1, 1]
    assert totals(found)["lists"] == [1, 2]
    assert totals(found)["clicks"] == [1, 1]


def test_guardrails_of_lists(tmp_path: Path) -> None:
    """Items a and b are of one category, c of another: 2 of 3 pairs differ. Item d has none, so a list of a and d has
    no pair."""
    lists = [
        shown("a", "new", 1, took_ms=4.0, degraded=True),
        shown("a", "new", 2, took_ms=6.0),
        shown("a", "new", 3, item_ids=["a", "d"]),
    ]
    sums = totals(observe(tmp_path, lists, [acted("b", "click", 4)]))
    assert (sums["ms"], sums["timed"], sums["degraded"]) == ([0, 10], [0, 2], [0, 1])
    assert sums["diversity"][1] == pytest.approx(2 / 3 + 2 / 3)
    assert sums["varied"] == [0, 2]


def test_sessions_as_units(tmp_path: Path) -> None:
    design = Design("test", TEST.arms, TEST.shares, unit="session", start=START_US / 1e6)
    lists = [shown("a", "new", 1, session_id="s"), shown("a", "control", 2, session_id="t"), shown("a", "new", 3)]
    events = [acted("a", "click", 4, session_id="s"), acted("a", "click", 4)]
    found = observe(tmp_path, lists, events, design=design)
    assert (totals(found)["unit"], totals(found)["clicks"]) == ([1, 1], [0, 1])
    assert found.counts == {"lists without a session": 1}


def test_interleaved_lists_prefer_the_arm_whose_items_are_acted_on(tmp_path: Path) -> None:
    """Four lists: one for the second arm, one tie, one without a click, and one with a click on an item of no arm."""
    design = Design("test", TEST.arms, TEST.shares, start=START_US / 1e6, interleaved=True)
    teams = {"teams": ["control", "new", None]}
    lists = [shown("u", "interleaved", h, **teams) for h in range(3)] + [shown("v", "interleaved", 3, **teams)]
    events = [
        acted("u", "click", 1, request_id="r0", item_id="b"),
        acted("u", "click", 1, request_id="r0", item_id="b"),
        acted("u", "click", 2, request_id="r1", item_id="a"),
        acted("u", "click", 2, request_id="r1", item_id="b"),
        acted("v", "click", 4, request_id="r3", item_id="c"),
    ]
    found = observe(tmp_path, lists, events, design=design)
    assert found.preference is not None
    sums = {name: found.preference.totals(name)[-1, 0] for name in found.preference.columns}
    assert sums == {"unit": 2, "lists": 4, "decided": 2, "preference": 1}


def test_no_exposure_is_no_moments(tmp_path: Path) -> None:
    found = observe(tmp_path, [shown("a", None, 1)], [acted("a", "click", 2)])
    assert found.moments is None


def test_a_plan_reads_all_lists_of_the_placements(tmp_path: Path) -> None:
    """Whatever experiment they were in; the last list is of another placement."""
    lists = [shown("a", None, 1), shown("a", "new", 2), shown("b", "new", 3, placement="cart")]
    events = [acted("a", "click", 4), acted("b", "click", 4)]
    files = LogFiles.of(write_log(tmp_path, lists, events))
    found = read_all(files, ["home"], "user", 1.0)
    assert (totals(found)["unit"], totals(found)["lists"], totals(found)["clicks"]) == ([1], [2], [1])


def test_a_plan_reads_impressions_of_a_log_without_served_lists(tmp_path: Path) -> None:
    """Two impressions of one request are one list."""
    events = [acted("a", "impression", 1, request_id="x", item_id=i) for i in "ab"]
    events += [acted("a", "impression", 2, request_id="y"), acted("a", "purchase", 3, 8.0)]
    found = read_all(LogFiles.of(write_log(tmp_path, [], events)), [], "user", 1.0)
    assert (totals(found)["unit"], totals(found)["lists"], totals(found)["revenue"]) == ([1], [2], [8])
