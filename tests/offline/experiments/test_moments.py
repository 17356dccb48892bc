"""Means, ratios and their variances: hand-made tables, invariances, and sums over days."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from offline.experiments.statistics import UNIT, Moments, add_days, contrast, estimate

MONEY = st.floats(-100, 100).map(lambda v: round(v, 3))
TABLES = arrays.arrays(np.float64, st.tuples(st.integers(6, 20), st.just(2)), elements=MONEY)


def two_arms(control: list[float], arm: list[float]) -> Moments:
    values = np.array([*control, *arm])[:, None]
    return Moments.of(["revenue"], values, np.repeat([0, 1], [len(control), len(arm)]), 2)


def test_a_difference_of_means_has_the_variance_of_two_samples() -> None:
    """Means 2 and 4, variances 2 and 8 of two units each: 2 / 2 + 8 / 2 = 5."""
    found = contrast(estimate(two_arms([1, 3], [2, 6]), "revenue"), 1)
    assert (found.value[0], found.variance[0]) == (2, 5)
    assert found.time[0] == 4**2 * 5
    assert found.relative[0] == 1
    # Of the control, the variance per unit of both arms counts, 5, because it is larger than 2.
    assert found.log_variance[0] == pytest.approx(8 / 2 / 4**2 + 5 / 2 / 2**2)


def test_a_small_arm_without_the_rare_outcome_has_the_variance_of_both() -> None:
    """Its own variance is 0. Of both, it is (0 * 2 + 4 * 4) / 6 = 8/3 per unit, so 8/3 (1/2 + 1/4) = 2."""
    found = contrast(estimate(two_arms([0, 0, 0, 4], [1, 1]), "revenue"), 1)
    assert found.variance[0] == pytest.approx(2)


def test_a_ratio_has_the_variance_of_the_delta_method() -> None:
    """Two clicks in four lists. (clicks - 0.5 lists) / 2 is 0.25 and -0.25, with variance 0.125, of the mean 0.0625."""
    moments = Moments.of(["lists", "clicks"], np.array([[1.0, 1], [3, 1]]), np.zeros(2, int), 1)
    found = estimate(moments, "clicks", "lists")
    assert (found.value[0, 0], found.variance[0, 0]) == (0.5, 0.0625)
    assert found.base[0, 0] == 4


def test_an_adjusted_mean_is_that_at_the_mean_of_the_covariate() -> None:
    """Revenue is twice that before, and one more in the arm. Means 4 and 7 become 5 and 6, without any variance."""
    values = np.array([[2.0, 1], [6, 3], [5, 2], [9, 4]])
    moments = Moments.of(["revenue", "before"], values, np.array([0, 0, 1, 1]), 2)
    found = estimate(moments, "revenue", covariates=["before"])
    assert found.value[0] == pytest.approx([5, 6])
    assert found.variance[0] == pytest.approx([0, 0], abs=1e-9)
    assert found.explained[0] == pytest.approx(1)


def test_a_covariate_that_is_the_same_for_all_changes_nothing() -> None:
    values = np.array([[2.0, 0], [6, 0], [5, 0], [9, 0]])
    moments = Moments.of(["revenue", "before"], values, np.array([0, 0, 1, 1]), 2)
    plain, adjusted = estimate(moments, "revenue"), estimate(moments, "revenue", covariates=["before"])
    assert adjusted.value == pytest.approx(plain.value)
    assert adjusted.variance == pytest.approx(plain.variance)


@pytest.mark.parametrize(("control", "arm"), [([], []), ([1.0], []), ([1.0], [2.0]), ([1.0, 2.0], [3.0])])
def test_an_arm_with_fewer_than_two_units_has_no_value(control: list[float], arm: list[float]) -> None:
    """Neither one unit nor none says anything about variation."""
    values = np.array([*control, *arm]).reshape(-1, 1)
    moments = Moments.of(["revenue"], values, np.repeat([0, 1], [len(control), len(arm)]), 2)
    found = contrast(estimate(moments, "revenue"), 1)
    assert np.isnan([found.value[0], found.variance[0]]).all()


@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_units_does_not_matter_and_parts_add_up(values: np.ndarray, random: object) -> None:
    arm = np.arange(len(values)) % 2
    order = np.arange(len(values))
    random.shuffle(order)  # type: ignore[attr-defined]
    whole = Moments.of(["a", "b"], values, arm, 2).sums
    assert Moments.of(["a", "b"], values[order], arm[order], 2).sums == pytest.approx(whole, abs=1e-6)
    parts = [Moments.of(["a", "b"], values[p], arm[p], 2).sums for p in (slice(0, 4), slice(4, None))]
    assert parts[0] + parts[1] == pytest.approx(whole, abs=1e-6)


@given(TABLES, st.floats(-50, 50))
def test_the_same_amount_for_all_units_changes_no_difference(values: np.ndarray, amount: float) -> None:
    """Neither the difference nor its variance."""
    arm = np.arange(len(values)) % 2
    one, other = (
        contrast(estimate(Moments.of(["a", "b"], v, arm, 2), "a", covariates=["b"]), 1)
        for v in (values, values + amount)
    )
    assert other.value == pytest.approx(one.value, abs=1e-5)
    assert other.variance == pytest.approx(one.variance, abs=1e-4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(-9, 9)), min_size=1, max_size=30))
def test_sums_up_to_a_day_are_those_of_what_units_have_done_by_then(rows: list[tuple[int, int, int]]) -> None:
    """Compared with every day on its own: the units seen by then, with their totals."""
    total: dict[tuple[int, int], float] = {}
    for unit, day, value in rows:
        total[unit, day] = total.get((unit, day), 0) + value
    keys = sorted(total)
    unit, day = np.array(keys, np.int64).T
    sums = np.zeros((4, 2, 2, 2))
    add_days(sums, unit, unit % 2, day, np.array([[total[k]] for k in keys], float))
    for look, found in enumerate(sums.cumsum(axis=0)):
        seen = sorted({u for u, d in keys if d <= look})
        values = np.array([[sum(v for (u, d), v in total.items() if u == s and d <= look)] for s in seen], float)
        expected = Moments.of(["a"], values.reshape(-1, 1), np.array(seen, int) % 2, 2).sums[0]
        assert found == pytest.approx(expected)


def test_a_column_has_its_name() -> None:
    moments = two_arms([1, 3], [2, 6])
    assert moments.columns == (UNIT, "revenue")
    assert (moments.units.tolist(), moments.totals("revenue").tolist()) == ([[2, 2]], [[4, 8]])
