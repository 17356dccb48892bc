"""Click probabilities made of scores, and how far they are from clicks: a ranker learns an order, not a rate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranker.metrics import F64, I64


def click_probability(scores: F64, clicked: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of the click probability 1 / (1 + exp(-(slope * score + intercept))) that fits best.

    Platt's scaling (1999) with his smoothed targets, so that it is finite for clicks all or none. scores: float64[n],
    finite. clicked: bool[n]. Slope 0 where all scores are one. Raises `ValueError` for no rows or a score not finite.
    """
    if not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"{len(scores)} scores, {np.count_nonzero(~np.isfinite(scores))} not finite; all must be")
    yes = int(np.count_nonzero(clicked))
    target = np.where(clicked, (yes + 1) / (yes + 2), 1 / (len(scores) - yes + 2))
    mean, spread = float(scores.mean()), float(scores.std()) or 1.0
    x = np.column_stack([(scores - mean) / spread, np.ones(len(scores))])
    beta = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    for _ in range(100):
        p = _logistic(x @ beta)
        # The ridge only keeps the step defined where all scores are one; the solution does not feel it.
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2), x.T @ (target - p))
        beta += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    slope = float(beta[0] / spread)
    return slope, float(beta[1] - slope * mean)


@dataclass(frozen=True)
class Calibration:
    """Predicted against observed click probability, by bins of as many rows each, lowest first.

    predicted, observed: float64[bins], means of the bin. rows: int64[bins]. error: the expected calibration error, the
    mean over rows of |predicted - observed| of their bin (Naeini et al., AAAI 2015), 0 to 1.
    """

    predicted: F64
    observed: F64
    rows: I64
    error: float


def calibration(probability: F64, clicked: NDArray[np.bool_], bins: int = 10) -> Calibration:
    """How far predicted probabilities are from what was observed.

    probability: float64[n], 0 to 1. clicked: bool[n]. bins: at most so many, at least 1; equal predictions share one.
    Raises `ValueError` for no rows, or a probability outside 0 to 1.
    """
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{len(probability)} probabilities; at least one, and each from 0 to 1, is needed")
    # The last of each bin, by whole numbers: a quantile at 0.6000000000000001 is one row too far.
    edges = np.unique(np.sort(probability)[-(-len(probability) * np.arange(1, bins) // bins) - 1])
    of = np.searchsorted(edges, probability, side="left")
    rows = np.bincount(of, minlength=len(edges) + 1)
    held = rows > 0
    predicted = np.bincount(of, probability, minlength=len(rows))[held] / rows[held]
    observed = np.bincount(of, clicked, minlength=len(rows))[held] / rows[held]
    error = float((np.abs(predicted - observed) * rows[held]).sum() / len(probability))
    return Calibration(predicted, observed, rows[held].astype(np.int64), error)


def _logistic(x: F64) -> F64:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
