"""What orders would have been worth: planted logs, lists left out whole, a log of something else refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from features.arrays import I32
from features.log import Lists
from offline.config.simulation import POSITION_BIAS
from offline.evaluation.off_policy import K, complete_lists, value_estimates
from offline.runtime.errors import DataError
from ranker.examination import power_law
from tests.worlds import make_lists

IDS = [f"i{k:03d}" for k in range(12)]


def shown(items: list[list[int]], gain: list[list[int]]) -> Lists:
    """Lists shown in the order given, a user each."""
    lists = make_lists(list(range(len(items))), list(range(len(items))), items)
    position = np.concatenate([np.arange(len(i)) for i in items]).astype(np.int16)
    return replace(lists, position=position, gain=np.array([g for one in gain for g in one], np.int8))


def order(*items: list[int]) -> I32:
    out = np.full((len(items), 100), -1, np.int32)
    for g, one in enumerate(items):
        out[g, : len(one)] = one
    return out


TWO = shown([[3, 5, 7], [2, 4, 6]], [[1, 0, 0], [0, 3, 0]])
CHANCE = np.array([0.5, 0.25, 0.25, 0.5, 0.25, 0.25])


def test_an_order_is_worth_what_was_gained_where_it_agrees_over_the_chance_of_that() -> None:
    """List 0: 3 stays on top, gain 1 at a chance of 0.5. List 1: 4 stays second, gain 3 at 0.25: (2 + 12) / 2 = 7."""
    found = value_estimates(
        TWO, CHANCE, {"ranker": order([3, 7, 5], [6, 4, 2])}, TWO, order([3, 7, 5], [6, 4, 2]), None, 0.95
    )
    ips = found["systems"]["ranker"]["ips"]
    assert (ips["value"], ips["matches"]) == ((1 / 0.5 + 3 / 0.25) / 2, 2)
    assert (found["k"], found["lists"], found["systems"]["ranker"]["truth"]) == (K, 2, None)


def test_what_was_shown_is_worth_what_it_gained() -> None:
    """(1 + 3) / 2, by every estimator, without a weight."""
    orders = {"shown_order": order([3, 5, 7], [2, 4, 6]), "ranker": order([3, 7, 5], [6, 4, 2])}
    by = value_estimates(TWO, CHANCE, orders, TWO, orders["ranker"], None, 0.95)["systems"]["shown_order"]
    assert [by[e]["value"] for e in ("ips", "snips", "doubly_robust")] == pytest.approx([2.0] * 3)
    assert by["ips"]["weight"] == 1


def test_the_truth_is_utility_times_the_chance_that_a_place_is_looked_at() -> None:
    utility = np.array([1.0, 0.5, 0.25, 0.0, 2.0, 1.0])
    orders = {"ranker": order([5, 3, 7], [4, 2, 6])}
    found = value_estimates(TWO, CHANCE, orders, TWO, orders["ranker"], utility, 0.95)
    e = power_law(3, POSITION_BIAS)
    assert found["systems"]["ranker"]["truth"] == pytest.approx(
        ((0.5 * e[0] + 1.0 * e[1] + 0.25 * e[2]) + (2.0 * e[0] + 0.0 * e[1] + 1.0 * e[2])) / 2
    )


def test_an_order_that_agrees_nowhere_has_no_self_normalised_value() -> None:
    orders = {"ranker": order([5, 7, 3], [4, 6, 2])}
    by = value_estimates(TWO, CHANCE, orders, TWO, orders["ranker"], None, 0.95)["systems"]["ranker"]
    assert set(by) == {"ips", "doubly_robust", "truth"}
    assert by["ips"]["value"] == 0


def test_what_an_order_leaves_out_comes_last() -> None:
    """7 alone is named: it takes the top, where 3 stood; the others follow in the order of ties."""
    orders = {"ranker": order([7], [6])}
    by = value_estimates(TWO, CHANCE, orders, TWO, orders["ranker"], None, 0.95)["systems"]["ranker"]
    assert by["ips"]["matches"] <= 4


def test_lists_without_a_click_are_good_enough_and_earlier_ones_may_be_none() -> None:
    silent, nothing = replace(TWO, gain=np.zeros(6, np.int8)), TWO.take(np.empty(0, np.int64))
    orders = {"ranker": order([3, 7, 5], [6, 4, 2])}
    found = value_estimates(silent, CHANCE, orders, nothing, orders["ranker"][:0], None, 0.95)
    assert found["systems"]["ranker"]["doubly_robust"]["value"] == 0


def chances() -> dict[tuple[str, str], tuple[int, float]]:
    return {
        (f"r{g}", IDS[item]): (place, 0.5)
        for g, items in enumerate(([3, 5, 7], [2, 4, 6]))
        for place, item in enumerate(items)
    }


def test_a_list_without_all_its_propensities_is_left_out_whole() -> None:
    held = chances()
    del held["r0", IDS[5]]
    numbers, chance = complete_lists(TWO, held, IDS)
    assert (numbers.tolist(), chance.tolist()) == ([1], [0.5] * 3)


def test_a_list_that_was_logged_in_part_is_left_out_whole() -> None:
    """Its item on place 1 is not in the catalogue, so 0 and 2 are left."""
    part = replace(shown([[3, 7], [2, 4, 6]], [[0, 1], [0, 0, 0]]), position=np.array([0, 2, 0, 1, 2], np.int16))
    numbers, _ = complete_lists(part, chances(), IDS)
    assert numbers.tolist() == [1]


def test_propensities_of_another_log_are_refused() -> None:
    held = chances() | {("r1", IDS[4]): (2, 0.5)}
    with pytest.raises(DataError, match=r"item 'i004' of list 'r1' has position 2, the log has 1 \(1 such rows\)"):
        complete_lists(TWO, held, IDS)
