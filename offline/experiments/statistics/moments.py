"""Means and ratios of arms, and their variances, from the sums of outcomes and of their products over units.

A unit, a user or a session, is what was assigned to an arm at random, so all variances are over units: the mean of an
outcome per unit, a ratio of two outcomes by the delta method (Deng, Knoblich and Lu, "Applying the delta method in
metric analytics", KDD 2018), and both adjusted for outcomes before the experiment (CUPED; Deng, Xu, Kohavi and Walker,
WSDM 2013). All follow from the same sums, which add up over parts of the units, so no unit is kept in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F64

UNIT = "unit"
"""The first column: 1 for each unit."""


class Moments(NamedTuple):
    """Sums over units up to each look.

    columns: names of the outcomes; the first is `UNIT`. sums: float64[looks, arms, m, m], of the products of two
    columns, so `sums[..., 0, k]` is the sum of column k, and `sums[..., 0, 0]` the number of units.
    """

    columns: tuple[str, ...]
    sums: F64

    @classmethod
    def of(cls, columns: Sequence[str], values: F64, arm: np.ndarray, arms: int) -> Moments:
        """Of a single look. values: float64[units, m - 1], without `UNIT`. arm: int[units]."""
        x = np.hstack([np.ones((len(values), 1)), values])
        sums = [x[arm == a].T @ x[arm == a] for a in range(arms)]
        return cls((UNIT, *columns), np.array(sums)[None])

    @property
    def units(self) -> F64:
        """float64[looks, arms]: number of units."""
        return self.sums[..., 0, 0]

    def totals(self, column: str) -> F64:
        """float64[looks, arms]: sum of a column."""
        return self.sums[..., 0, self.columns.index(column)]


class Estimate(NamedTuple):
    """A metric by look and arm.

    value, variance: float64[looks, arms]; variance of the value over units. NaN with fewer than two units, or without a
    denominator. units, base: float64[looks, arms], number of units and total of the denominator. explained:
    float64[looks], share of the variance that the covariates explain, 0 without.
    """

    value: F64
    variance: F64
    units: F64
    base: F64
    explained: F64


def estimate(
    moments: Moments, numerator: str, denominator: str = UNIT, covariates: Sequence[str] = (), least: int = 2
) -> Estimate:
    """Sum of `numerator` over sum of `denominator` in each arm, adjusted for `covariates`.

    The variance is that of the linearised metric `(y - R d) / mean(d)`. Covariates must not depend on the arm: they are
    outcomes from before the experiment. Their coefficients are fitted within arms, pooled over arms, and the value of
    an arm is that at the mean of the covariates over all arms. least: units an arm needs for a value.
    """
    place = {name: k for k, name in enumerate(moments.columns)}
    used = [place[numerator], place[denominator], *(place[c] for c in covariates)]
    n = moments.units
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = moments.sums[..., 0, :][..., used] / n[..., None]
        second = moments.sums[..., used, :][..., used] / n[..., None, None]
        centred = (second - mean[..., :, None] * mean[..., None, :]) * (n / (n - 1))[..., None, None]
        value = mean[..., 0] / mean[..., 1]
        # Weights of the columns in the linearised metric. A denominator of 1 for each unit has no variance.
        weights = np.stack([1 / mean[..., 1], -value / mean[..., 1]], axis=-1)
        variance = np.einsum("lai,laij,laj->la", weights, centred[..., :2, :2], weights)
    explained = np.zeros(len(n))
    if covariates:
        value, variance, explained = _adjust(value, variance, n, mean[..., 2:], centred, weights)
    too_few = (n < least) | ~np.isfinite(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, variance = np.where(too_few, np.nan, value), np.where(too_few, np.nan, variance / n)
    return Estimate(value, variance, n, moments.totals(denominator), explained)


def _adjust(value: F64, variance: F64, n: F64, mean: F64, centred: F64, weights: F64) -> tuple[F64, F64, F64]:
    """(value, variance per unit, share explained) after adjusting for the covariates. mean: of the covariates."""
    value, variance, explained = value.copy(), variance.copy(), np.zeros(len(n))
    for look in range(len(n)):
        arms = np.flatnonzero((n[look] >= 2) & np.isfinite(value[look]))
        if not len(arms):
            continue
        share = n[look, arms] / n[look, arms].sum()
        xx = np.einsum("a,aij->ij", share, centred[look, arms, 2:, 2:])
        xu_by_arm = np.einsum("aij,aj->ai", centred[look, arms, 2:, :2], weights[look, arms])
        # The smallest solution: a covariate that is the same for all units gets no weight.
        coefficient = np.linalg.lstsq(xx, share @ xu_by_arm, rcond=1e-9)[0]
        before = variance[look, arms]
        after = before - 2 * xu_by_arm @ coefficient
        after += np.einsum("i,aij,j->a", coefficient, centred[look, arms, 2:, 2:], coefficient)
        value[look, arms] -= (mean[look, arms] - share @ mean[look, arms]) @ coefficient
        variance[look, arms] = np.maximum(after, 0)
        explained[look] = 1 - (share @ after) / (share @ before) if share @ before > 0 else 0.0
    return value, variance, explained


class Contrast(NamedTuple):
    """Difference of an arm from the control, by look.

    value, variance: float64[looks]. time: float64[looks], the variance of the difference of sums, the time scale of
    always-valid intervals. relative: the difference divided by the control's value. log_variance: variance of the log
    of the ratio of the two values, by the delta method; NaN unless both are positive.
    """

    value: F64
    variance: F64
    time: F64
    relative: F64
    log_variance: F64


def contrast(found: Estimate, arm: int, control: int = 0) -> Contrast:
    """The difference between an arm and the control. Relative ones are NaN unless the control's value is positive.

    The variance is the larger of two: with the variance per unit of each arm, and with that of both arms together. If
    one arm is small and an outcome is rare and skewed, its own variance is too small whenever it lacks the few large
    outcomes: at 90:10, intervals with the first alone miss twice as often as they should (docs/decisions.md). With
    equal arms the two are the same.
    """
    a, b = found.value[:, arm], found.value[:, control]
    n, m = found.units[:, arm], found.units[:, control]
    with np.errstate(divide="ignore", invalid="ignore"):
        together = (found.variance[:, arm] * n**2 + found.variance[:, control] * m**2) / (n + m)
        of_arm = np.maximum(found.variance[:, arm], together / n)
        of_control = np.maximum(found.variance[:, control], together / m)
        variance = np.maximum(found.variance[:, arm] + found.variance[:, control], together * (1 / n + 1 / m))
        time = np.square(found.base[:, arm] + found.base[:, control]) * variance
        base = np.where(b > 0, b, np.nan)
        log_variance = np.where(a > 0, of_arm / a**2 + of_control / base**2, np.nan)
    return Contrast(a - b, variance, time, a / base - 1, log_variance)
