"""What another order would have been worth, from lists that were shown in a partly random order.

The value of an order is the expected gain of its first k places, per list: what the items it puts there would have
gained had they been shown there. Nobody saw that order. But where chance had a part in the logged one, and the log says
how large a part (the propensity), the places at which both agree stand for those at which they do not.

Assumed is the item-position model: what an item gains depends on the item, the place, the person and the moment, not
on what stands around it (Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay & Wen 2018, Offline Evaluation of Ranking
Policies with Click Models). So places are weighed one by one and not whole orders at once: 1 in 24 shuffled lists
agrees at a place, 1 in 24! as a whole. No examination curve need be known. The pseudoinverse estimator (Swaminathan et
al. 2017) assumes as much and is for logs that hold one gain for a whole list; here each place has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ranker.metrics import F64, I64, U64, Numbers


@dataclass(frozen=True)
class LoggedLists:
    """Lists as they were shown, with what came of them and with what probability they looked like that.

    start: int[lists + 1], list g is rows `start[g]:start[g + 1]`. gain: float[rows] from 0, what the item gained at the
    place where it stood: a click as 1, or any graded gain. position: int[rows], that place: each of 0 to n - 1 once in
    a list of n. propensity: float[rows] in (0, 1], the probability, given the list's items, that the logging policy
    would put this item at this place. cluster: int[lists], the user: lists of one user are not independent.

    Raises `ValueError` naming the array and the row that does not fit. A propensity of zero, or one that is missing, is
    refused: a place that could not have come about has no weight, and one of unknown chance none that is right. Leave
    such lists out whole.
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
                raise ValueError(f"{name} has shape {list(getattr(self, name).shape)}, expected [{rows}], one a row")
        if self.cluster.shape != (len(self),):
            raise ValueError(f"cluster has shape {list(self.cluster.shape)}, expected [{len(self)}], one a list")
        _refuse("gain", self.gain, ~(np.isfinite(self.gain) & (self.gain >= 0)), "a finite number from 0")
        _refuse(
            "propensity",
            self.propensity,
            ~((self.propensity > 0) & (self.propensity <= 1)),
            "above 0 and at most 1; leave out lists without known propensities, whole",
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
    """The value of an order: expected gain of its first k places, per list, with its interval.

    low, high: the interval at `level`, over users and corrected for skewness; NaN with fewer than two users. It is of
    the estimate's own spread and knows nothing of a bias that clipping brings. matches: places at which the logged and
    the new order agree, on which all rests. effective: their effective number, (sum of weights)^2 / sum of squared
    weights (Kish); with fewer than some hundred the interval is too narrow. weight: mean weight over the places the
    new order fills; its expectation is 1 without clipping, so a value well off says that the propensities are wrong.
    clipped: share of the matches whose weight was cut.
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
    """int64[rows]: the place, from 0, each row takes in its list when ordered by score, best first.

    scores: float[rows], NaN after everything. tie_break: uint64[rows] of `ranker.metrics.tie_break`, smaller first, so
    that the order among equals is that of the metrics.
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
    """The value of a new order by inverse propensity scoring: unbiased, and the widest interval.

        V = 1 / lists * sum over lists, over places j < k, of w * gain
        w = 1 / propensity where the new order and the logged one have the same item at j, else 0

    (Horvitz & Thompson 1952; by item and position, Li et al. 2018.)

    place: int64[rows] of `places`, where the new order puts each row. k: places that count; a shorter list counts those
    it has. clip: no weight is larger than this, which lowers the variance and biases the value downwards; None leaves
    them whole. level: of the interval. Raises `ValueError` for a place that does not fit, k below 1, clip below 1 or a
    level outside (0, 1).
    """
    weights = _Weights.of(logged, place, k, clip)
    value = weights.per_list(weights.w * logged.gain)
    return weights.estimate(float(value.mean()), value, level)


def snips(logged: LoggedLists, place: I64, k: int, clip: float | None = None, level: float = 0.95) -> Estimate:
    """The value of a new order by self-normalised inverse propensity scoring: a little biased, much less spread.

        V = mean places that count * sum of w * gain / sum of w

    The sum of the weights varies as the sum of gains does; dividing by it takes out what both share, so that a constant
    added to every gain moves the value by just that, times the places (Swaminathan & Joachims 2015, The Self-Normalized
    Estimator for Counterfactual Learning). The bias goes as 1 / lists. The interval is that of the linearised ratio
    (delta method).

    Arguments as of `ips`, whose weights these are. Raises also where the two orders agree nowhere: nothing is known.
    """
    weights = _Weights.of(logged, place, k, clip)
    if not weights.matched.any():
        raise ValueError(
            f"the new order agrees with the logged one at none of its first {k} places in {len(logged)} lists: "
            "its value cannot be told from this log; log more lists, or take a larger k"
        )
    gained, weight = weights.per_list(weights.w * logged.gain), weights.per_list(weights.w)
    ratio, counted = gained.sum() / weight.sum(), weights.counted.mean()
    influence = counted / weight.mean() * (gained - ratio * weight) + ratio * (weights.counted - counted)
    return weights.estimate(float(counted * ratio), influence, level)


def doubly_robust(
    logged: LoggedLists, place: I64, k: int, predicted: Numbers, clip: float | None = None, level: float = 0.95
) -> Estimate:
    """The value of a new order by a prediction of its gains, corrected where the log knows better.

        V = 1 / lists * sum over lists, over places j < k, of q + w * (gain - q),   q predicted for the new item at j

    Right when either the propensities or the predictions are; the better the predictions, the narrower the interval
    (Dudik, Langford & Li 2011, Doubly Robust Policy Evaluation and Learning; by item and position as `ips`).

    predicted: float[rows], the expected gain of each row's item at the place the new order gives it, finite. It must
    not be learnt from these lists' gains, or the interval is too narrow: learn it from earlier ones, or from other
    folds.
    All zeros make this `ips`. Other arguments as of `ips`; clipping biases the value toward the prediction.
    """
    if predicted.shape != logged.gain.shape:
        raise ValueError(f"predicted has shape {list(predicted.shape)}, expected [{len(logged.gain)}], one a row")
    _refuse("predicted", predicted, ~np.isfinite(predicted), "a finite number")
    weights = _Weights.of(logged, place, k, clip)
    value = weights.per_list(np.where(place < k, predicted, 0.0) + weights.w * (logged.gain - predicted))
    return weights.estimate(float(value.mean()), value, level)


@dataclass(frozen=True)
class _Weights:
    """What each logged row says of the new order. w: float64[rows], 0 where the orders disagree or beyond k."""

    logged: LoggedLists
    w: F64
    matched: np.ndarray
    clipped: float
    counted: I64

    @classmethod
    def of(cls, logged: LoggedLists, place: I64, k: int, clip: float | None) -> _Weights:
        if k < 1 or (clip is not None and not clip >= 1):
            raise ValueError(f"k={k} and clip={clip}: expected k >= 1 and clip >= 1 or None")
        if place.shape != logged.gain.shape:
            raise ValueError(f"place has shape {list(place.shape)}, expected [{len(logged.gain)}], one a row")
        _check_places("place", place, logged.start)
        matched = (place == logged.position) & (place < k)
        whole = matched / logged.propensity
        w = whole if clip is None else np.minimum(whole, clip)
        cut = float((w < whole).sum() / max(matched.sum(), 1))
        return cls(logged, w, matched, cut, np.minimum(np.diff(logged.start), k))

    def per_list(self, values: F64) -> F64:
        """float64[lists]: sums of the rows."""
        return np.bincount(self.logged.group, values, len(self.logged)).astype(np.float64)

    def estimate(self, value: float, influence: F64, level: float) -> Estimate:
        """A value with the interval that its lists' influences on it imply, users with all their lists as units."""
        if not 0 < level < 1:
            raise ValueError(f"level={level}: expected a level between 0 and 1")
        users, user = np.unique(self.logged.cluster, return_inverse=True)
        spread = np.bincount(user, influence - influence.mean()) * len(users) / len(self.logged)
        below, above = _interval(spread, level)
        total, squares = self.w.sum(), (self.w**2).sum()
        return Estimate(
            value=value,
            low=value + below,
            high=value + above,
            level=level,
            lists=len(self.logged),
            clusters=len(users),
            matches=int(self.matched.sum()),
            effective=float(total**2 / squares) if squares else 0.0,
            clipped=self.clipped,
            weight=float(total / self.counted.sum()),
        )


def _interval(spread: F64, level: float) -> tuple[float, float]:
    """Both ends, relative to the value, for a mean of these deviations: normal once their skewness is taken out.

    Rare large weights make the deviations skewed, and their spread small where the value is: the symmetric interval
    then misses (12% of the time instead of 5% with 20% of the lists explored). Hall's cubic transformation restores
    symmetry (Hall 1992, On the Removal of Skewness by Transformation, JRSS B 54).
    """
    n = len(spread)
    if n < 2:
        return np.nan, np.nan
    scale = spread.std()
    if scale == 0:
        return 0.0, 0.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    error = float(scale / np.sqrt(n - 1))
    skewness = float(((spread / scale) ** 3).mean())
    # Below this the correction is nothing, and its formula 0 / 0.
    if abs(skewness) < 1e-6:
        return -z * error, z * error
    root = np.sqrt(n)
    ends = [3 * root / skewness * (np.cbrt(1 + skewness * (x / root - skewness / (6 * n))) - 1) for x in (z, -z)]
    return float(-ends[0] * error), float(-ends[1] * error)


def _checked_start(start: Numbers) -> int:
    """The number of rows."""
    integers = np.issubdtype(start.dtype, np.integer) and start.ndim == 1
    if not integers or len(start) < 2 or start[0] != 0 or (np.diff(start) < 1).any():
        raise ValueError(f"start must be integers that rise from 0, a list holding a row or more; found {start[:4]}")
    return int(start[-1])


def _check_places(name: str, place: Numbers, start: Numbers) -> None:
    """Each of 0 to n - 1 once in every list of n."""
    if not np.issubdtype(place.dtype, np.integer):
        raise ValueError(f"{name} is {place.dtype}, expected integers")
    group = np.repeat(np.arange(len(start) - 1), np.diff(start))
    expected = np.arange(len(place)) - np.asarray(start)[group]
    wrong = np.flatnonzero(place[np.lexsort((place, group))] != expected)
    if len(wrong):
        g = int(group[wrong[0]])
        held = np.sort(place[start[g] : start[g + 1]])[:8].tolist()
        raise ValueError(f"{name} of list {g} holds {held}; expected each of 0 to {start[g + 1] - start[g] - 1} once")


def _refuse(name: str, values: Numbers, wrong: np.ndarray, expected: str) -> None:
    rows = np.flatnonzero(wrong)
    if len(rows):
        raise ValueError(f"{name}[{rows[0]}] is {values[rows[0]]}, expected {expected} ({len(rows)} such rows)")
