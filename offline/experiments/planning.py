"""Effect that an experiment could find, and time that it takes, from the log before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]

from offline.experiments.design import Observed
from offline.experiments.metrics import METRICS
from offline.experiments.statistics import ALPHA, best_ratio, estimate
from offline.runtime import DataError

POWER = 0.8
"""Probability of finding the minimum detectable effect."""
_LEAST = 100


class Duration(NamedTuple):
    """An experiment of some days.

    units: in all arms. mean: of the metric. fixed, always: the minimum detectable effect, relative to the mean, of a
    single look at the end and of always-valid intervals; NaN if it is not known.
    """

    days: int
    units: int
    mean: float
    fixed: float
    always: float


class Plan(NamedTuple):
    """durations: ascending, one for each day of the log that was read. explained: share of the variance that outcomes
    before the start explain, at the end."""

    metric: str
    durations: tuple[Duration, ...]
    explained: float

    def needed(self, effect: float, always: bool = True) -> Duration | None:
        """The shortest duration that finds a relative effect; None if the log is too short to say."""
        return next((d for d in self.durations if (d.always if always else d.fixed) <= abs(effect)), None)


def plan(found: Observed, metric: str, shares: Sequence[float], traffic: float = 1.0, alpha: float = ALPHA) -> Plan:
    """The minimum detectable effects by duration.

    found: by `read_all`, the units that an experiment would have had in the last days of the log. shares: of the arms,
    the first is the control; the smallest other arm counts. traffic: share of the units that take part. The effects of
    always-valid intervals are those found at the end, so an experiment that stops early finds them sooner. Raises
    DataError for an unknown metric, and if the log has no lists or no such outcome.
    """
    if metric not in METRICS:
        raise DataError(f"--metric {metric}: no such metric; choose one of {', '.join(METRICS)}")
    chosen = METRICS[metric]
    if found.moments is None:
        raise DataError("the log has no lists of these placements with a user: collect some first, or name others")
    measured = estimate(found.moments, chosen.numerator, chosen.denominator, chosen.covariates, _LEAST)
    n, mean = found.moments.units[:, 0], measured.value[:, 0]
    if not mean[-1] > 0:
        raise DataError(f"the log has no {metric} after a list of these placements: choose another --metric")
    total, smallest, each = float(sum(shares)), min(shares[1:]), alpha / (len(shares) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        per_unit = measured.variance[:, 0] * n
        se = np.sqrt(per_unit / (n * traffic) * (total / shares[0] + total / smallest)) / mean
    fixed, always = -ndtri(each / 2) + ndtri(POWER), np.sqrt(1 + best_ratio(each)) + ndtri(POWER)
    durations = tuple(
        Duration(day, round(float(units * traffic)), float(m), float(fixed * s), float(always * s))
        for day, (units, m, s) in enumerate(zip(n, mean, se, strict=True), 1)
        if day <= found.days[-1]
    )
    return Plan(metric, durations, float(measured.explained[-1]))


def milestones(durations: Sequence[Duration]) -> list[Duration]:
    """The durations to show: whole weeks, and the last one."""
    return [d for d in durations if d.days % 7 == 0 or d is durations[-1]]
