"""Off-policy evaluation: estimates of the value of a new order from lists that were logged with randomisation.

The value of an order is the expected gain of its first k positions per list, if it had been shown. The new order was
not shown. But if the logged order was partly random, and the log contains the probability of each placement (the
propensity), the positions at which both orders agree can be reweighted to represent all positions.

The estimators assume the item-position model: the gain of an item depends on the item, the position, the user and the
time, but not on the other items in the list (Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay & Wen 2018, Offline
Evaluation of Ranking Policies with Click Models). Positions can therefore be weighted one by one instead of whole
orders at once: of shuffled lists of 24, 1 in 24 agrees at a given position, 1 in 24! as a whole. The examination
probabilities need not be known. The pseudoinverse estimator (Swaminathan et al. 2017) makes the same assumption, but is
meant for logs with one gain per list; here every position has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ranker.metrics import F64, I64, U64, Numbers


@dataclass(frozen=True)
class LoggedLists:
    """Shown lists with their gains and propensities.

    start: int[lists + 1]; list g is rows `start[g]:start[g + 1]`. gain: float[rows], the gain of the item at its shown
    position: 1 for a click, any graded gain, or an amount, which may be negative. position: int[rows], the shown
    position; a list of n has each of 0 to n - 1 once. propensity: float[rows] in (0, 1], the probability that the
    logging policy puts this item at this position, given the items of the list. cluster: int[lists], the user; lists of
    one user are not independent.

    Raises `ValueError` naming the invalid array and row. Propensities that are 0 or missing are rejected, because they
    give no valid weight. Leave out lists that contain any.
    """

    start: Numbers
    gain: Numbers
    position: Numbers
    propensity: Numbers
    cluster: Numbers

    def __post_init__(self) -> None:
        rows = _checked_start(self.start)
        for name in ("gain", "position", "propensity"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} has shape {list(getattr(self, name).shape)}, expected [{rows}], one per row")
        if self.cluster.shape != (len(self),):
            raise ValueError(f"cluster has shape {list(self.cluster.shape)}, expected [{len(self)}], one per list")
        _check_values("gain", self.gain, ~np.isfinite(self.gain), "a finite number")
        _check_values(
            "propensity",
            self.propensity,
            ~((self.propensity > 0) & (self.propensity <= 1)),
            "above 0 and at most 1; leave out the whole list if a propensity is unknown",
        )
        _check_places("position", self.position, self.start)

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def group(self) -> I64:
        """int64[rows]: the list each row belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))


@dataclass(frozen=True)
class Estimate:
    """Estimated value of an order, the expected gain of its first k positions per list, with an interval.

    low, high: confidence interval at `level`, clustered by user and corrected for skewness; NaN with fewer than two
    users. It covers sampling variation but not the bias from clipping. matches: number of positions at which the logged
    and the new order agree. effective: their effective sample size, (sum of weights)^2 / sum of squared weights (Kish);
    below a few hundred the interval is too narrow. weight: mean weight over the positions that the new order fills. Its
    expectation without clipping is 1, so a very different value means that the propensities are wrong. clipped: share
    of the matches whose weight was clipped.
    """

    value: float
    low: float
    high: float
    level: float
    lists: int
    clusters: int
    matches: int
    effective: float
    weight: float
    clipped: float


def places(scores: Numbers, start: Numbers, tie_break: U64) -> I64:
    """int64[rows]: the position of each row, from 0, after sorting its list by descending score.

    scores: float[rows]; NaN ranks last. tie_break: uint64[rows], from `ranker.metrics.tie_break`, ascending, so ties
    are broken as in the metrics.
    """
    rows = _checked_start(start)
    if scores.shape != (rows,) or tie_break.shape != (rows,):
        raise ValueError(f"scores and tie_break have {len(scores)} and {len(tie_break)} rows, start has {rows}")
    group = np.repeat(np.arange(len(start) - 1), np.diff(start))
    missing = np.isnan(scores)
    order = np.lexsort((tie_break, np.where(missing, 0, -scores), missing, group))
    out = np.empty(rows, np.int64)
    out[order] = np.arange(rows) - np.asarray(start)[group]
    return out


def ips(logged: LoggedLists, place: I64, k: int, clip: float | None = None, level: float = 0.95) -> Estimate:
    """Value of a new order by inverse propensity scoring: unbiased, with the widest interval of the three estimators.

        V = 1 / lists * sum over lists, over positions j < k, of w * gain
        w = 1 / propensity if the new and the logged order have the same item at j, else 0

    (Horvitz & Thompson 1952; by item and position, Li et al. 2018.)

    place: int64[rows], from `places`, the positions in the new order. k: number of positions that count; shorter lists
    count all of theirs. clip: upper bound of the weights, which lowers the variance and biases the value downwards;
    None for no bound. level: confidence level of the interval. Raises `ValueError` for an invalid place, k below 1,
    clip below 1 or a level outside (0, 1).
    """
    weights = _Weights.of(logged, place, k, clip)
    list_values = weights.per_list(weights.w * logged.gain)
    return weights.estimate(float(list_values.mean()), list_values, level)


def snips(logged: LoggedLists, place: I64, k: int, clip: float | None = None, level: float = 0.95) -> Estimate:
    """Value of a new order by self-normalised inverse propensity scoring: slightly biased, much lower variance.

        V = mean number of positions that count * sum of w * gain / sum of w

    The sum of the weights and the sum of the weighted gains are correlated, and dividing removes their common
    variation. A constant added to every gain changes the value by exactly that constant times the number of positions
    (Swaminathan & Joachims 2015, The Self-Normalized Estimator for Counterfactual Learning). The bias decreases as 1 /
    lists. The interval comes from the linearised ratio (delta method).

    Arguments and weights as in `ips`. Also raises `ValueError` if the two orders do not agree at any position, because
    the value is then undefined.
    """
    weights = _Weights.of(logged, place, k, clip)
    if not weights.matched.any():
        raise ValueError(
            f"the new order does not agree with the logged one at any of the first {k} positions of {len(logged)} "
            "lists, so its value cannot be estimated; log more lists or use a larger k"
        )
    list_gain, list_weight = weights.per_list(weights.w * logged.gain), weights.per_list(weights.w)
    ratio, mean_positions = list_gain.sum() / list_weight.sum(), weights.positions.mean()
    influence = mean_positions / list_weight.mean() * (list_gain - ratio * list_weight) + ratio * (
        weights.positions - mean_positions
    )
    return weights.estimate(float(mean_positions * ratio), influence, level)


def doubly_robust(
    logged: LoggedLists, place: I64, k: int, predicted: Numbers, clip: float | None = None, level: float = 0.95
) -> Estimate:
    """Value of a new order by doubly robust estimation: predicted gains, corrected by the weighted prediction errors.

        V = 1 / lists * sum over lists, over positions j < k, of q + w * (gain - q),   q predicted for the new item at j

    Unbiased if either the propensities or the predictions are correct. Better predictions give narrower intervals
    (Dudik, Langford & Li 2011, Doubly Robust Policy Evaluation and Learning; by item and position, as in `ips`).

    predicted: float[rows], the expected gain of each row's item at its position in the new order, finite. Fit the
    predictions on earlier lists or on other folds: predictions fit on the gains of these lists make the interval too
    narrow. With all zeros, the result is that of `ips`. Other arguments as in `ips`; clipping biases the value towards
    the predictions.
    """
    weights = _Weights.of(logged, place, k, clip)
    list_values = weights.doubly_robust(predicted, place < k)
    return weights.estimate(float(list_values.mean()), list_values, level)


def doubly_robust_change(
    logged: LoggedLists, new: I64, old: I64, k: int, predicted: Numbers, level: float = 0.95
) -> tuple[float, float, float]:
    """(change, low, high): of the doubly robust value, from an old order to a new one, as a share of the old value.

    Both orders have the same lists, so what they have in common cancels, and the interval is narrower than those of the
    two values suggest. It is that of the ratio of the values (delta method), clustered by user and corrected for
    skewness. All are NaN if the old value is not above 0; low and high are NaN with fewer than two users.

    new, old: int64[rows], from `places`. predicted: as in `doubly_robust`, for both orders: it must not depend on the
    position. Raises `ValueError` as `doubly_robust` does.
    """
    values = [_Weights.of(logged, place, k, None).doubly_robust(predicted, place < k) for place in (new, old)]
    value, base = (float(of_order.mean()) for of_order in values)
    if not base > 0:
        return np.nan, np.nan, np.nan
    change = value / base - 1
    below, above = _clustered_interval(logged, (values[0] - (1 + change) * values[1]) / base, level)
    return change, change + below, change + above


@dataclass(frozen=True)
class _Weights:
    """Importance weights of the logged rows for the new order.

    w: float64[rows], 0 if the orders disagree or the position is k or more. matched: bool[rows], whether the orders
    agree. clipped: share of the matches with a clipped weight. positions: int64[lists], positions that count, at most
    k.
    """

    logged: LoggedLists
    w: F64
    matched: np.ndarray
    clipped: float
    positions: I64

    @classmethod
    def of(cls, logged: LoggedLists, place: I64, k: int, clip: float | None) -> _Weights:
        if k < 1 or (clip is not None and not clip >= 1):
            raise ValueError(f"k={k} and clip={clip}: expected k >= 1 and clip >= 1 or None")
        if place.shape != logged.gain.shape:
            raise ValueError(f"place has shape {list(place.shape)}, expected [{len(logged.gain)}], one per row")
        _check_places("place", place, logged.start)
        matched = (place == logged.position) & (place < k)
        unclipped = matched / logged.propensity
        w = unclipped if clip is None else np.minimum(unclipped, clip)
        clipped = float((w < unclipped).sum() / max(matched.sum(), 1))
        return cls(logged, w, matched, clipped, np.minimum(np.diff(logged.start), k))

    def per_list(self, values: F64) -> F64:
        """float64[lists]: sums over the rows of each list."""
        return np.bincount(self.logged.group, values, len(self.logged)).astype(np.float64)

    def doubly_robust(self, predicted: Numbers, counts: np.ndarray) -> F64:
        """float64[lists]: doubly robust value of each list. counts: bool[rows], rows among the first k of the order."""
        logged = self.logged
        if predicted.shape != logged.gain.shape:
            raise ValueError(f"predicted has shape {list(predicted.shape)}, expected [{len(logged.gain)}], one per row")
        _check_values("predicted", predicted, ~np.isfinite(predicted), "a finite number")
        return self.per_list(np.where(counts, predicted, 0.0) + self.w * (logged.gain - predicted))

    def estimate(self, value: float, influence: F64, level: float) -> Estimate:
        """The value with its interval, from the influence of each list on the value. Users are the sampling units."""
        below, above = _clustered_interval(self.logged, influence, level)
        total, squares = self.w.sum(), (self.w**2).sum()
        return Estimate(
            value=value,
            low=value + below,
            high=value + above,
            level=level,
            lists=len(self.logged),
            clusters=len(np.unique(self.logged.cluster)),
            matches=int(self.matched.sum()),
            effective=float(total**2 / squares) if squares else 0.0,
            clipped=self.clipped,
            weight=float(total / self.positions.sum()),
        )


def _clustered_interval(logged: LoggedLists, influence: F64, level: float) -> tuple[float, float]:
    """(low, high) relative to a value, from the influence of each list on it. Users are the sampling units."""
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a level between 0 and 1")
    users, user = np.unique(logged.cluster, return_inverse=True)
    return _interval(np.bincount(user, influence - influence.mean()) * len(users) / len(logged), level)


def _interval(deviations: F64, level: float) -> tuple[float, float]:
    """(low, high) relative to the value, for a mean of these deviations: a normal interval corrected for skewness.

    Rare large weights make the deviations skewed, and their spread is small if the value is low by chance. A symmetric
    interval then misses too often: 12% of the time instead of 5% with 20% of the lists explored. Hall's cubic
    transformation restores symmetry (Hall 1992, On the Removal of Skewness by Transformation, JRSS B 54).
    """
    n = len(deviations)
    if n < 2:
        return np.nan, np.nan
    scale = deviations.std()
    if scale == 0:
        return 0.0, 0.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    error = float(scale / np.sqrt(n - 1))
    skewness = float(((deviations / scale) ** 3).mean())
    # For smaller skewness the correction is negligible and its formula approaches 0 / 0.
    if abs(skewness) < 1e-6:
        return -z * error, z * error
    root = np.sqrt(n)
    ends = [3 * root / skewness * (np.cbrt(1 + skewness * (x / root - skewness / (6 * n))) - 1) for x in (z, -z)]
    return float(-ends[0] * error), float(-ends[1] * error)


def _checked_start(start: Numbers) -> int:
    """The number of rows. Raises `ValueError` for an invalid start."""
    integers = np.issubdtype(start.dtype, np.integer) and start.ndim == 1
    if not integers or len(start) < 2 or start[0] != 0 or (np.diff(start) < 1).any():
        raise ValueError(f"start is {start[:4]}..., expected integers rising from 0, with at least one row per list")
    return int(start[-1])


def _check_places(name: str, place: Numbers, start: Numbers) -> None:
    """Raises `ValueError` unless every list of n rows has each of 0 to n - 1 once."""
    if not np.issubdtype(place.dtype, np.integer):
        raise ValueError(f"{name} is {place.dtype}, expected integers")
    group = np.repeat(np.arange(len(start) - 1), np.diff(start))
    expected = np.arange(len(place)) - np.asarray(start)[group]
    wrong = np.flatnonzero(place[np.lexsort((place, group))] != expected)
    if len(wrong):
        g = int(group[wrong[0]])
        found = np.sort(place[start[g] : start[g + 1]])[:8].tolist()
        raise ValueError(f"{name} of list {g} is {found}; expected each of 0 to {start[g + 1] - start[g] - 1} once")


def _check_values(name: str, values: Numbers, invalid: np.ndarray, expected: str) -> None:
    rows = np.flatnonzero(invalid)
    if len(rows):
        raise ValueError(f"{name}[{rows[0]}] is {values[rows[0]]}, expected {expected} (invalid rows: {len(rows)})")
