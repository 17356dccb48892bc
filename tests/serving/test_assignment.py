"""Assignment of units to arms: shares, independence, layers, ramp-up, and the team draft. No service."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import I64
from serving.config import ExperimentConfig
from serving.experiments import Assignment, draft, unit_hash, unit_hashes
from tests import ROOT

MILLION = 1_000_000
UNITS = unit_hashes([f"anon-{k:x}" for k in range(MILLION)])


def experiment(*shares: float, **more: object) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"arms": {f"arm{k}": {"share": s} for k, s in enumerate(shares)}, **more})


def chi_square(observed: I64, expected: np.ndarray) -> float:
    """Pearson's statistic: the sum of (observed - expected)^2 / expected."""
    return float(((observed - expected) ** 2 / expected).sum())


def beyond_chance(statistic: float, freedom: int) -> bool:
    """True if chi-square exceeds this with probability below 1e-6.

    By the approximation of Wilson and Hilferty (1931); the 1 - 1e-6 quantile of a standard normal is 4.753.
    """
    return statistic > freedom * (1 - 2 / (9 * freedom) + 4.753 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_million_units_have_arms_in_proportion_to_their_shares() -> None:
    """Shares 1 : 2 : 1 of the half that takes part: 0.125, 0.25 and 0.125 of all."""
    arm = Assignment.of("x", experiment(1, 2, 1, traffic=0.5)).arms(UNITS)
    expected = MILLION * np.array([1 - 0.5, 0.5 * 1 / 4, 0.5 * 2 / 4, 0.5 * 1 / 4])
    assert not beyond_chance(chi_square(np.bincount(arm + 1, minlength=4), expected), 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", {}), ("b", {})),
        (("a", {"layer": "x"}), ("a2", {"layer": "y"})),
        (("a", {"salt": "first"}), ("a", {"salt": "second"})),
        (("control-2026-01", {}), ("control-2026-02", {})),
    ],
)
def test_two_experiments_are_independent(one: tuple[str, dict[str, str]], other: tuple[str, dict[str, str]]) -> None:
    """The table of both arms of a million units against the product of its margins: (2 - 1) * (3 - 1) = 2 degrees."""
    first = Assignment.of(one[0], experiment(1, 1, **one[1])).arms(UNITS)
    second = Assignment.of(other[0], experiment(1, 1, 2, **other[1])).arms(UNITS)
    table = np.bincount(first * 3 + second, minlength=6).reshape(2, 3)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / MILLION
    assert not beyond_chance(chi_square(table, expected), 2)


def test_who_takes_part_is_independent_of_the_arm() -> None:
    """Otherwise arms would change their shares as traffic grows."""
    whole = Assignment.of("x", experiment(1, 1)).arms(UNITS)
    part = Assignment.of("x", experiment(1, 1, traffic=0.3)).arms(UNITS) >= 0
    table = np.bincount(whole * 2 + part, minlength=4).reshape(2, 2)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / MILLION
    assert not beyond_chance(chi_square(table, expected), 1)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.text(max_size=80), min_size=1, max_size=30),
    name=st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True),
    shares=st.lists(st.floats(0.001, 1000), min_size=2, max_size=10),
    traffic=st.floats(0.01, 0.6),
    offset=st.floats(0, 0.4),
)
def test_one_unit_has_the_arm_that_it_has_among_many(
    ids: list[str], name: str, shares: list[float], traffic: float, offset: float
) -> None:
    """The service assigns one unit at a time, analyses many at once."""
    assignment = Assignment.of(name, experiment(*shares, traffic=traffic, offset=offset))
    hashes = unit_hashes(ids)
    assert [unit_hash(i) for i in ids] == hashes.tolist()
    assert [assignment.arm(h) for h in hashes.tolist()] == assignment.arms(hashes).tolist()


@settings(max_examples=60, deadline=None)
@given(
    before=st.floats(0.01, 0.5),
    more=st.floats(0, 0.3),
    offset=st.floats(0, 0.2),
    shares=st.lists(st.floats(0.01, 10), min_size=2, max_size=5),
)
def test_a_unit_that_took_part_keeps_its_arm_when_traffic_grows(
    before: float, more: float, offset: float, shares: list[float]
) -> None:
    units = UNITS[:20_000]
    small = Assignment.of("x", experiment(*shares, traffic=before, offset=offset)).arms(units)
    large = Assignment.of("x", experiment(*shares, traffic=before + more, offset=offset)).arms(units)
    assert (large[small >= 0] == small[small >= 0]).all()


def test_no_unit_is_in_two_experiments_of_a_layer_and_each_has_its_share() -> None:
    """Traffic 0.2, 0.3 and 0.4 from 0, 0.25 and 0.6: half of the layer's 0.1 that is left lies between."""
    parts = [(0.0, 0.2), (0.25, 0.3), (0.6, 0.4)]
    inside = [
        Assignment.of(f"e{k}", experiment(1, 1, layer="l", offset=offset, traffic=traffic)).arms(UNITS) >= 0
        for k, (offset, traffic) in enumerate(parts)
    ]
    assert not any((a & b).any() for a, b in combinations(inside, 2))
    counts = np.array([int(one.sum()) for one in inside] + [MILLION - sum(int(one.sum()) for one in inside)])
    assert not beyond_chance(chi_square(counts, MILLION * np.array([0.2, 0.3, 0.4, 0.1])), 3)


def test_arms_are_drawn_anew_in_an_experiment_that_uses_the_units_of_another_again() -> None:
    """Two experiments in the same part of a layer, one after the other: no arm inherits the effects of the first."""
    first, second = (Assignment.of(n, experiment(1, 1, layer="l", traffic=0.5)).arms(UNITS) for n in ("a", "b"))
    assert ((first >= 0) == (second >= 0)).all()
    table = np.bincount((first * 2 + second)[first >= 0], minlength=4).reshape(2, 2)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    assert not beyond_chance(chi_square(table, expected), 1)


def test_a_process_of_another_hash_seed_has_the_same_arms() -> None:
    """Assigned once for all: a change of these arms would move the users of experiments that run."""
    code = (
        "from serving.config import ExperimentConfig; from serving.experiments import Assignment, unit_hash\n"
        "config = ExperimentConfig.model_validate({'arms': {'a': {}, 'b': {}}, 'traffic': 0.8})\n"
        "print([Assignment.of('june', config).arm(unit_hash(u)) for u in ('u1', 'u2', 'u3', 'anon-7', 'Zoë', '')])"
    )
    environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[1, -1, 1, 1, 0, 0]"


lists_of_items = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=8)


@settings(max_examples=200, deadline=None)
@given(one=lists_of_items, other=lists_of_items, limit=st.integers(0, 10), seed=st.integers(0, 1000))
def test_a_draft_alternates_and_each_arm_chooses_its_best_item_that_is_left(
    one: list[str], other: list[str], limit: int, seed: int
) -> None:
    mixed = draft((one, other), limit, np.random.default_rng(seed))
    assert len(mixed.item_ids) == len(set(mixed.item_ids)) == min(limit, len({*one, *other}))
    for k, (item, team) in enumerate(zip(mixed.item_ids, mixed.teams, strict=True)):
        assert team is not None
        left = [i for i in (one, other)[team] if i not in mixed.item_ids[:k]]
        assert item == left[0]
        theirs = [i for i in (other, one)[team] if i not in mixed.item_ids[:k]]
        behind = mixed.teams[:k].count(team) - mixed.teams[:k].count(1 - team)
        assert behind <= 0 or not theirs, "an arm is ahead by more than one only if the other has no item left"


def test_a_coin_decides_which_arm_begins() -> None:
    """1,000 drafts: each arm begins half of them, within five standard deviations, sqrt(1000) / 2 = 15.8."""
    rng = np.random.default_rng(3)
    first = sum(draft((["a", "b"], ["c", "d"]), 2, rng).teams[0] or 0 for _ in range(1000))
    assert abs(first - 500) < 5 * math.sqrt(1000) / 2


def test_an_item_that_is_fixed_belongs_to_no_arm() -> None:
    mixed = draft((["a", "x", "b"], ["c", "x", "d"]), 3, np.random.default_rng(0), {1: "x"})
    assert (mixed.item_ids[1], mixed.teams[1]) == ("x", None)
    assert mixed.item_ids.count("x") == 1
    assert set(mixed.item_ids) == {"a", "x", "c"}
