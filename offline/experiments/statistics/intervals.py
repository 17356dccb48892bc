"""Intervals of one estimate: always valid, which may be looked at every day, and with a fixed horizon.

Always-valid intervals are asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 2024): Robbins' normal
mixture, on the time scale of the variance of the summed outcomes. With the number of units as time, it is the mixture
sequential probability ratio test of Johari, Koomen, Pekelis and Walsh ("Peeking at A/B tests", KDD 2017). Here the
variance is the time, because the outcomes of the same users accumulate: the data grow even without new users.
docs/decisions.md has the comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri  # type: ignore[import-untyped]

from features.arrays import F64

ALPHA = 0.05
"""Default error probability of an interval."""


class Interval(NamedTuple):
    """An estimate with its intervals; NaN where they are not known.

    low, high: always valid. p: always valid, in (0, 1]. fixed_low, fixed_high, fixed_p: valid only for a single look at
    a time that was chosen in advance. se: standard error.
    """

    value: float
    se: float
    low: float
    high: float
    p: float
    fixed_low: float
    fixed_high: float
    fixed_p: float

    @property
    def sign(self) -> int:
        """1 if the always-valid interval is above zero, -1 if it is below, 0 if it has zero or is not known."""
        return int(self.low > 0) - int(self.high < 0)


def best_ratio(alpha: float = ALPHA) -> float:
    """The ratio of time to the scale of the mixture at which the interval is narrowest: x = log(1 + x) - 2 log alpha.

    There the half width is `sqrt(1 + x)` standard errors: 3.03 for 0.05, against 1.96 with a fixed horizon.
    """
    x = 10.0
    for _ in range(60):
        x = np.log1p(x) - 2 * np.log(alpha)
    return float(x)


def multiplier(time: F64 | float, target: float, alpha: float = ALPHA, tuned: float | None = None) -> F64:
    """float64: half width of the always-valid interval, in standard errors.

    `sqrt((1 + 1/x) (log(1 + x) - 2 log alpha))` with `x = best_ratio(tuned) time / target`. time: the variance of the
    summed outcomes, at least 0. target: the time at which the interval is narrowest. It must not depend on the outcome:
    see `tuned_target`. tuned: the alpha for which it is narrowest there, by default `alpha`. Infinite at time 0, NaN
    where `time` or `target` are.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        x = best_ratio(alpha if tuned is None else tuned) * np.asarray(time, np.float64) / target
        out: F64 = np.sqrt((1 + 1 / x) * (np.log1p(x) - 2 * np.log(alpha)))
    return out


def sequential_p(z: F64 | float, time: F64 | float, target: float, tuned: float = ALPHA) -> F64:
    """float64: the smallest alpha whose always-valid interval excludes zero, in (0, 1]; NaN where an input is.

    z: estimate in standard errors. The others: as in `multiplier`.
    """
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        x = best_ratio(tuned) * np.asarray(time, np.float64) / target
        out: F64 = np.sqrt(1 + x) * np.exp(-0.5 * np.square(z) * x / (1 + x))
    # The smallest positive number in place of an underflow: no finite data are certain.
    return np.clip(out, np.finfo(float).tiny, 1.0)


def tuned_target(time: F64, days: F64, planned_days: float) -> float:
    """The target of the mixture: the time expected at the planned end, from the first look at which the time is known.

    time: float64[looks], NaN or 0 where it is not known. days: float64[looks], days since the start. Extrapolates
    linearly. It uses the first variance, not the difference between arms. A target that is ten times too large widens
    the interval at the planned end by 26%, one ten times too small by 7%. NaN without a usable look.
    """
    known = np.flatnonzero(np.isfinite(time) & (time > 0) & (days > 0))
    if not len(known):
        return np.nan
    first = known[0]
    return float(time[first] * max(planned_days / days[first], 1.0))


def interval(value: float, variance: float, time: float, target: float, alpha: float = ALPHA) -> Interval:
    """The estimate with both intervals at level 1 - alpha.

    variance: of the estimate. time, target: as in `multiplier`. All ends are NaN if the variance is not positive.
    """
    if not (np.isfinite(value) and variance > 0 and time > 0 and target > 0):
        return Interval(value, np.nan, *[np.nan] * 6)
    se = float(np.sqrt(variance))
    half, fixed = float(multiplier(time, target, alpha)) * se, float(-ndtri(alpha / 2)) * se
    return Interval(
        value,
        se,
        value - half,
        value + half,
        float(sequential_p(value / se, time, target, alpha)),
        value - fixed,
        value + fixed,
        float(2 * ndtr(-abs(value) / se)),
    )
