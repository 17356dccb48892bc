"""Probabilities of outcomes from ranker scores, and their calibration error. Raw scores only define an order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from ranker.metrics import F64, I64

I8 = NDArray[np.int8]

Outcome = Literal["click", "cart", "purchase"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
"""Outcomes of a shown item, from the least gain. An outcome includes those after it: who buys has clicked."""
LEAST_POSITIVES = 50
"""Number of rows with an outcome below which its probability is not estimated."""


class OutcomeMap(Struct, frozen=True):
    """Map from a ranker score to the probability of an outcome: 1 / (1 + exp(-(slope * score + intercept))).

    rate: share of the rows that it was fitted on with the outcome. rows: their number.
    """

    slope: Annotated[float, Meta(gt=0)]
    intercept: float
    rate: Annotated[float, Meta(gt=0, le=1)]
    rows: Annotated[int, Meta(ge=1)]

    def __call__(self, score: F64) -> F64:
        """float64, like `score`: probabilities, 0 to 1."""
        return _logistic(self.slope * score + self.intercept)


Maps = Mapping[Outcome, OutcomeMap]
"""The map of each outcome that has one."""


def fit_maps(score: F64, gain: I8) -> dict[Outcome, OutcomeMap]:
    """The map of each outcome, by Platt scaling; see `click_probability`.

    score: float64[n], finite, of a ranker that was not trained on these rows. gain: int8[n], 0 to 3, the best outcome
    of each row. Left out: an outcome of fewer than `LEAST_POSITIVES` rows, and one whose probability does not rise with
    the score, so that every map keeps the ranker's order.
    """
    out: dict[Outcome, OutcomeMap] = {}
    for least, outcome in enumerate(OUTCOMES, 1):
        occurred = gain >= least
        if (count := int(occurred.sum())) < LEAST_POSITIVES:
            continue
        slope, intercept = click_probability(score, occurred)
        if slope > 0:
            out[outcome] = OutcomeMap(slope, intercept, count / len(score), len(score))
    return out


def probabilities(maps: Maps, score: F64) -> dict[Outcome, F64]:
    """The probability of each mapped outcome, float64 like `score`: none above that of a lesser outcome."""
    out: dict[Outcome, F64] = {}
    bound = np.ones(len(score))
    for outcome in OUTCOMES:
        if outcome in maps:
            bound = out[outcome] = np.minimum(bound, maps[outcome](score))
    return out


def click_probability(scores: F64, clicked: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of the best-fitting click probability 1 / (1 + exp(-(slope * score + intercept))).

    Platt scaling (1999) with smoothed targets, which keep the result finite if all rows or no rows are clicked.
    scores: float64[n], finite. clicked: bool[n]. The slope is 0 if all scores are equal. Raises `ValueError` if there
    are no rows or a score is not finite.
    """
    if not len(scores) or not np.isfinite(scores).all():
        invalid = np.count_nonzero(~np.isfinite(scores))
        raise ValueError(f"scores: {invalid} of {len(scores)} are not finite; at least one score is needed, all finite")
    clicks = int(np.count_nonzero(clicked))
    target = np.where(clicked, (clicks + 1) / (clicks + 2), 1 / (len(scores) - clicks + 2))
    mean, deviation = float(scores.mean()), float(scores.std()) or 1.0
    x = np.column_stack([(scores - mean) / deviation, np.ones(len(scores))])
    beta = np.array([0.0, np.log(target.mean() / (1 - target.mean()))])
    for _ in range(100):
        p = _logistic(x @ beta)
        # The ridge term only keeps the system solvable when all scores are equal; it does not change the solution.
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + 1e-9 * np.eye(2), x.T @ (target - p))
        beta += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    slope = float(beta[0] / deviation)
    return slope, float(beta[1] - slope * mean)


@dataclass(frozen=True)
class Calibration:
    """Predicted and observed click probability in bins of equal row counts, lowest predictions first.

    predicted, observed: float64[bins], means of the bin. rows: int64[bins]. error: the expected calibration error, 0 to
    1: the mean over rows of |predicted - observed| of the row's bin (Naeini et al., AAAI 2015).
    """

    predicted: F64
    observed: F64
    rows: I64
    error: float


def calibration(probability: F64, clicked: NDArray[np.bool_], bins: int = 10) -> Calibration:
    """Calibration of predicted click probabilities.

    probability: float64[n], 0 to 1. clicked: bool[n]. bins: maximum number of bins, at least 1; equal predictions share
    a bin. Raises `ValueError` if there are no rows or a probability is outside 0 to 1.
    """
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{len(probability)} probabilities: expected at least one, each from 0 to 1")
    # Integer arithmetic finds the last row of each bin: a quantile at 0.6000000000000001 would be one row too far.
    edges = np.unique(np.sort(probability)[-(-len(probability) * np.arange(1, bins) // bins) - 1])
    bin_of_row = np.searchsorted(edges, probability, side="left")
    rows = np.bincount(bin_of_row, minlength=len(edges) + 1)
    nonempty = rows > 0
    predicted = np.bincount(bin_of_row, probability, minlength=len(rows))[nonempty] / rows[nonempty]
    observed = np.bincount(bin_of_row, clicked, minlength=len(rows))[nonempty] / rows[nonempty]
    error = float((np.abs(predicted - observed) * rows[nonempty]).sum() / len(probability))
    return Calibration(predicted, observed, rows[nonempty].astype(np.int64), error)


def _logistic(x: F64) -> F64:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
