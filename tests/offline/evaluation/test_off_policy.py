"""Off-policy values: planted logs, incomplete lists, and propensities from another log."""

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
    """Lists shown in the given order, each to a different user."""
    lists = make_lists(list(range(len(items))), list(range(len(items))), items)
    position = np.concatenate([np.arange(len(i)) for i in items]).astype(np.int16)
    return replace(lists, position=position, gain=np.array([g for one in gain for g in one], np.int8))


def order(*items: list[int]) -> I32:
    """int32[lists, 100]: these items of each list, padded with -1."""
    out = np.full((len(items), 100), -1, np.int32)
    for g, one in enumerate(items):
        out[g, : len(one)] = one
    return out


TWO = shown([[3, 5, 7], [2, 4, 6]], [[1, 0, 0], [0, 3, 0]])
PROPENSITY = np.array([0.5, 0.25, 0.25, 0.5, 0.25, 0.25])


def test_ips_divides_the_gain_at_matching_positions_by_the_propensity() -> None:
    """List 0: item 3 stays first, gain 1, propensity 0.5. List 1: item 4 stays second, gain 3, propensity 0.25.
    (1 / 0.5 + 3 / 0.25) / 2 = 7."""
    found = value_estimates(
        TWO, PROPENSITY, {"ranker": order([3, 7, 5], [6, 4, 2])}, TWO, order([3, 7, 5], [6, 4, 2]), None, 0.95
    )
    ips = found["systems"]["ranker"]["ips"]
    assert (ips["value"], ips["matches"]) == ((1 / 0.5 + 3 / 0.25) / 2, 2)
    assert (found["k"], found["lists"], found["systems"]["ranker"]["truth"]) == (K, 2, None)


def test_the_shown_order_is_worth_its_mean_gain() -> None:
    """(1 + 3) / 2 by every estimator, without weights."""
    orders = {"shown_order": order([3, 5, 7], [2, 4, 6]), "ranker": order([3, 7, 5], [6, 4, 2])}
    by = value_estimates(TWO, PROPENSITY, orders, TWO, orders["ranker"], None, 0.95)["systems"]["shown_order"]
    assert [by[e]["value"] for e in ("ips", "snips", "doubly_robust")] == pytest.approx([2.0] * 3)
    assert by["ips"]["weight"] == 1


def test_the_true_value_is_utility_times_examination_probability() -> None:
    utility = np.array([1.0, 0.5, 0.25, 0.0, 2.0, 1.0])
    orders = {"ranker": order([5, 3, 7], [4, 2, 6])}
    found = value_estimates(TWO, PROPENSITY, orders, TWO, orders["ranker"], utility, 0.95)
    e = power_law(3, POSITION_BIAS)
    assert found["systems"]["ranker"]["truth"] == pytest.approx(
        ((0.5 * e[0] + 1.0 * e[1] + 0.25 * e[2]) + (2.0 * e[0] + 0.0 * e[1] + 1.0 * e[2])) / 2
    )


def test_an_order_without_a_match_has_no_self_normalised_estimate() -> None:
    orders = {"ranker": order([5, 7, 3], [4, 6, 2])}
    by = value_estimates(TWO, PROPENSITY, orders, TWO, orders["ranker"], None, 0.95)["systems"]["ranker"]
    assert set(by) == {"ips", "doubly_robust", "truth"}
    assert by["ips"]["value"] == 0


def test_items_missing_from_an_order_come_last() -> None:
    """The order has item 7 alone: it takes the first position, and the others follow by tie-break."""
    orders = {"ranker": order([7], [6])}
    by = value_estimates(TWO, PROPENSITY, orders, TWO, orders["ranker"], None, 0.95)["systems"]["ranker"]
    assert by["ips"]["matches"] <= 4


def test_lists_without_clicks_and_without_earlier_lists_have_a_value_of_zero() -> None:
    unclicked, no_lists = replace(TWO, gain=np.zeros(6, np.int8)), TWO.take(np.empty(0, np.int64))
    orders = {"ranker": order([3, 7, 5], [6, 4, 2])}
    found = value_estimates(unclicked, PROPENSITY, orders, no_lists, orders["ranker"][:0], None, 0.95)
    assert found["systems"]["ranker"]["doubly_robust"]["value"] == 0


def propensities() -> dict[tuple[str, str], tuple[int, float]]:
    """0.5 for every row of TWO, at its position."""
    return {
        (f"r{g}", IDS[item]): (place, 0.5)
        for g, items in enumerate(([3, 5, 7], [2, 4, 6]))
        for place, item in enumerate(items)
    }


def test_a_list_without_all_its_propensities_is_left_out_whole() -> None:
    incomplete = propensities()
    del incomplete["r0", IDS[5]]
    numbers, propensity = complete_lists(TWO, incomplete, IDS)
    assert (numbers.tolist(), propensity.tolist()) == ([1], [0.5] * 3)


def test_a_partly_logged_list_is_left_out_whole() -> None:
    """Its item at position 1 is not in the catalogue, so positions 0 and 2 are left."""
    part = replace(shown([[3, 7], [2, 4, 6]], [[0, 1], [0, 0, 0]]), position=np.array([0, 2, 0, 1, 2], np.int16))
    numbers, _ = complete_lists(part, propensities(), IDS)
    assert numbers.tolist() == [1]


def test_propensities_of_another_log_are_rejected() -> None:
    other = propensities() | {("r1", IDS[4]): (2, 0.5)}
    with pytest.raises(DataError, match=r"item 'i004' of list 'r1' has position 2, but 1 in the log \(1 such rows\)"):
        complete_lists(TWO, other, IDS)
