"""From what units did on each day to the sums over units up to each day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I64


def add_days(sums: F64, unit: NDArray[np.integer], arm: NDArray[np.integer], day: I64, values: F64) -> None:
    """Add units to `sums`, float64[days, arms, m, m], in place: by how much each day changes them.

    `sums.cumsum(axis=0)` are the sums of `Moments`.

    The rows are what a unit did on a day: all rows of a unit are next to each other, by ascending day, and no day of a
    unit occurs twice. The first row of a unit is the day of its first exposure. unit, arm, day: int[n]. values:
    float64[n, m - 1], outcomes of that day alone; those from before the experiment are in the first row of their unit.
    """
    if not len(unit):
        return
    days, arms = sums.shape[:2]
    starts = np.append(True, unit[1:] != unit[:-1])
    first = np.flatnonzero(starts)
    total = np.cumsum(values, axis=0)
    before_unit = np.vstack([np.zeros(values.shape[1]), total])[first]
    length = np.diff(np.append(first, len(unit)))
    now = np.hstack([np.ones((len(unit), 1)), total - np.repeat(before_unit, length, axis=0)])
    before = np.vstack([np.zeros(now.shape[1]), now[:-1]])
    before[starts] = 0.0
    key = day * arms + arm
    order = np.argsort(key, kind="stable")
    bounds = np.searchsorted(key[order], np.arange(days * arms + 1))
    now, before = now[order], before[order]
    for cell in np.flatnonzero(np.diff(bounds)).tolist():
        rows = slice(bounds[cell], bounds[cell + 1])
        sums[cell // arms, cell % arms] += now[rows].T @ now[rows] - before[rows].T @ before[rows]
