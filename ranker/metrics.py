"""How good an order is: rank metrics list by list, what they do not see, and the interval of a difference.

A list is a query group: rows `start[g]:start[g + 1]`. Metrics are asked by name, `"ndcg@10"`, and come back one value a
list, so that whoever compares two orders can pair them. Equal scores have one order, set by `tie_break`: it depends on
the items of the list alone, never on the order of the rows, which in logs is the shown position and would flatter any
scorer that ties.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ranker.compiled import compiled

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Numbers = NDArray[np.floating] | NDArray[np.integer]

NDCG, MAP, MRR, RECALL, HIT_RATE, PRECISION, AUC = range(7)
NAMES = {
    "ndcg": NDCG,
    "map": MAP,
    "mrr": MRR,
    "recall": RECALL,
    "hit_rate": HIT_RATE,
    "precision": PRECISION,
    "auc": AUC,
}


def score_lists(
    metric: str, scores: Numbers, gain: Numbers, start: Numbers, tie_break: U64, missed: Numbers | None = None
) -> F64:
    """float64[lists]: the metric of each list, in [0, 1]; NaN where it is undefined.

    metric: `name@k`, k the length looked at; without `@k` the whole list; `auc` takes no k. An item is relevant when
    its gain is above 0. Undefined is a list without a relevant item, and for `auc` also one without another.

    - ndcg: DCG sums (2^gain - 1) / log2(1 + rank) over the first k; divided by the DCG of the best order (Burges 2005).
    - map: mean over the relevant items of precision at their rank, 0 beyond k; divided by min(relevant, k).
    - mrr: 1 / rank of the first relevant item, 0 when it is beyond k.
    - recall: relevant in the first k / relevant. precision: relevant in the first k / k. hit_rate: 1 if there is any.
    - auc: share of (relevant, other) pairs in the right order; equal scores count half.

    scores: float[rows], higher is better; NaN ranks after everything, -inf included. gain: int[rows] from 0 to 30.
    start: int[lists + 1]. tie_break: uint64[rows] of `tie_break`. missed: int[lists], relevant items of gain 1 that
    were not retrieved at all, or int[lists, m] where column j counts those of gain j + 1: they belong to the best order
    and to the relevant count, and `auc` leaves them out. Raises `ValueError` naming the argument and the row that does
    not fit.
    """
    kind, k = _asked(metric)
    bounds = _checked_start(start, len(scores))
    gains = _whole(gain, "gain", len(scores))
    if len(gains) and not 0 <= gains.min() <= gains.max() <= 30:
        row = int(np.flatnonzero((gains < 0) | (gains > 30))[0])
        raise ValueError(f"gain[{row}] is {gains[row]}, expected 0 to 30")
    if tie_break.dtype != np.uint64 or tie_break.shape != scores.shape:
        raise ValueError(f"tie_break is {tie_break.dtype}{list(tie_break.shape)}, expected uint64[{len(scores)}]")
    lists = len(bounds) - 1
    beside = np.zeros((lists, 0), np.int64)
    if missed is not None:
        beside = _whole(missed, "missed", lists)
        if beside.size and beside.min() < 0:
            raise ValueError(f"missed holds {beside.min()}, expected counts")
        beside = beside.reshape(lists, -1 if lists else 1)
    return _score_lists(kind, k, _sortable(scores), gains, bounds, tie_break, beside)


def tie_break(items: Numbers, start: Numbers) -> U64:
    """uint64[rows]: an order among equals, by a hash of the item and of the set of items in its list.

    items: int[rows], any number that stands for the item (its catalogue row). start: int[lists + 1]. The same for every
    order of the rows and of the lists; an item that wins a tie in one list may lose it in another.
    """
    bounds = _checked_start(start, len(items))
    own = _mixed(_whole(items, "items", len(items)).astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(own, dtype=np.uint64)])
    whole = total[bounds[1:]] - total[bounds[:-1]]
    return _mixed(own ^ np.repeat(_mixed(whole), np.diff(bounds)))


def top_k(scores: Numbers, start: Numbers, tie_break: U64, k: int) -> I64:
    """int64[lists, k]: the rows of the best k of each list, best first; `-1` where the list is shorter.

    scores: float[rows], higher is better, NaN after everything. start: int[lists + 1]. tie_break: uint64[rows] of
    `tie_break`. The order is that of `score_lists`. Raises `ValueError` as it does, and for k below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    bounds = _checked_start(start, len(scores))
    if tie_break.dtype != np.uint64 or tie_break.shape != scores.shape:
        raise ValueError(f"tie_break is {tie_break.dtype}{list(tie_break.shape)}, expected uint64[{len(scores)}]")
    return np.asarray(_top_k(_sortable(scores), bounds, tie_break, k), np.int64)


def coverage(items: I64, n_items: int) -> float:
    """The share of the catalogue that stands in any of these lists, 0 to 1 (Ge et al., RecSys 2010).

    items: int[lists, k], `-1` for an empty place. n_items: size of the catalogue, at least 1.
    """
    return len(np.unique(items[items >= 0])) / n_items


def novelty(items: I64, count: F64) -> F64:
    """float64[lists]: mean self-information of the items of each list, -log2 p, in bits (Zhou et al., PNAS 2010).

    items: int[lists, k], `-1` for an empty place; NaN for a list of nothing else. count: float64[n_items], how often
    each was engaged with; p is (count + 1) / (sum + n_items), so that one never engaged with is rare, not impossible.
    """
    information = -np.log2((count + 1) / (count.sum() + len(count)))
    return _mean_of(information, items)


def popularity_percentile(items: I64, count: F64) -> F64:
    """float64[lists]: mean popularity percentile of the items of each list, 0 to 1; about 0.5 where none is favoured.

    A percentile is the share of items engaged with less often, equals counting half. The bias toward the popular, as
    average recommendation popularity measures it (Yin et al., VLDB 2012), on a scale that can be read across shops.
    items, count: as in `novelty`.
    """
    order = np.sort(count)
    below, upto = np.searchsorted(order, count, "left"), np.searchsorted(order, count, "right")
    return _mean_of((below + upto) / (2.0 * len(count)), items)


def intra_list_diversity(items: I64, vectors: NDArray[np.float32]) -> F64:
    """float64[lists]: mean of 1 - cosine over the pairs of items of each list, 0 to 2 (Ziegler et al., WWW 2005).

    items: int[lists, k], `-1` for an empty place. vectors: float32[n_items, d], a row that is not finite or all zeros
    is missing. NaN for a list with fewer than two items that have a vector.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    known = np.isfinite(length[:, 0]) & (length[:, 0] > 0)
    unit = np.where(known[:, None], vectors, 0) / np.where(known[:, None], length, 1)
    out = np.full(len(items), np.nan)
    # A few thousand lists at a time: their vectors together are large.
    for first in range(0, len(items), 4096):
        part = items[first : first + 4096]
        there = (part >= 0) & known[part]
        m = there.sum(axis=1)
        total = np.einsum("lkd,lk->ld", unit[part], there.astype(unit.dtype))
        # Unit vectors: |sum|^2 is m plus twice the cosines of all pairs.
        cosine = ((total.astype(np.float64) ** 2).sum(axis=1) - m) / np.maximum(m * (m - 1), 1)
        out[first : first + 4096] = np.where(m > 1, 1 - cosine, np.nan)
    return out


@dataclass(frozen=True)
class Difference:
    """How much better a is than b, on the lists where both are defined.

    difference: mean over lists of a - b. low, high: the bootstrap interval at `level`. p: two-sided, twice the share of
    resamples on the far side of zero. The last three are NaN with fewer than two clusters: one user says nothing about
    others.
    """

    difference: float
    low: float
    high: float
    p: float
    lists: int
    clusters: int
    level: float


def paired_difference(
    a: F64, b: F64, cluster: Numbers, n: int = 2000, seed: int = 0, level: float = 0.95
) -> Difference:
    """The mean difference a - b with its interval: paired by list, resampled by whole users (percentile bootstrap).

    a, b: float64[lists], one metric of two orders of the same lists; NaN, in both or in neither, is left out. cluster:
    int[lists], the user: lists of one user are not independent, so users are drawn, with all their lists. n: resamples.
    The same seed gives the same answer. Raises `ValueError` on lengths that differ, a NaN on one side only, infinities,
    nothing left to compare, `n` below 1 or `level` outside (0, 1).
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n={n} and level={level}: expected n >= 1 and a level between 0 and 1")
    if not len(a) == len(b) == len(cluster):
        raise ValueError(f"a, b and cluster have {len(a)}, {len(b)} and {len(cluster)} lists, expected the same")
    odd = np.flatnonzero((np.isnan(a) != np.isnan(b)) | np.isinf(a) | np.isinf(b))
    if len(odd):
        raise ValueError(f"list {odd[0]}: a is {a[odd[0]]} and b is {b[odd[0]]}; a pair is two numbers or two NaN")
    both = ~np.isnan(a)
    if not both.any():
        raise ValueError("no list has a value in both a and b: nothing to compare")
    _, user = np.unique(cluster[both], return_inverse=True)
    totals = np.bincount(user, (a - b)[both]).astype(np.float64)
    counts = np.bincount(user).astype(np.int64)
    low, high, p = _interval(totals, counts, n, seed, level)
    return Difference(
        difference=float(totals.sum() / counts.sum()),
        low=low,
        high=high,
        p=p,
        lists=int(both.sum()),
        clusters=len(counts),
        level=level,
    )


def intervals(values: F64, cluster: Numbers, n: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[F64, F64, F64]:
    """float64[m] each: the mean of every column and its bootstrap interval, all from one set of resamples.

    values: float64[lists, m], NaN is left out, column by column. cluster, n, seed, level: as in `paired_difference`,
    whose interval is the one of the column a - b; many columns at once cost little more than one. A column without a
    number is NaN, and with fewer than two clusters there is no interval. Raises `ValueError` on lengths that differ.
    """
    if len(values) != len(cluster):
        raise ValueError(f"values and cluster have {len(values)} and {len(cluster)} lists, expected the same")
    _, user = np.unique(cluster, return_inverse=True)
    known = ~np.isnan(values)
    users = int(user.max(initial=-1)) + 1
    totals, counts = np.zeros((users, values.shape[1])), np.zeros((users, values.shape[1]))
    np.add.at(totals, user, np.where(known, values, 0))
    np.add.at(counts, user, known)
    with np.errstate(invalid="ignore"):
        mean = totals.sum(axis=0) / counts.sum(axis=0)
    if users < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    means = _resampled(totals, counts, n, np.random.default_rng(seed))
    for column in np.flatnonzero((counts > 0).sum(axis=0) > 1):
        drawn = means[:, column]
        low[column], high[column] = np.quantile(drawn[~np.isnan(drawn)], [(1 - level) / 2, (1 + level) / 2])
    return mean, low, high


def share_of_the_way(
    own: F64, base: F64, top: F64, cluster: Numbers, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """(share, low, high): `(own - base) / (top - base)`, of means over lists, and its bootstrap interval.

    own, base, top: float64[lists], one metric of three orders of the same lists; a list with a NaN in any is left out.
    cluster, n, seed, level: as in `paired_difference`. 0 is no better than the base, 1 as good as the top. NaN
    throughout where the top is not above the base, and no interval with fewer than two clusters.
    """
    known = ~np.isnan(own + base + top)
    _, user = np.unique(cluster[known], return_inverse=True)
    gained, possible = (np.bincount(user, (x - base)[known]).astype(np.float64)[:, None] for x in (own, top))
    if not possible.sum() > 0:
        return np.nan, np.nan, np.nan
    share = float(gained.sum() / possible.sum())
    if len(gained) < 2:
        return share, np.nan, np.nan
    with np.errstate(divide="ignore"):
        drawn = _resampled(gained, possible, n, np.random.default_rng(seed))[:, 0]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return share, float(low), float(high)


def _interval(totals: F64, counts: I64, n: int, seed: int, level: float) -> tuple[float, float, float]:
    """Low, high and p."""
    if len(counts) < 2:
        return np.nan, np.nan, np.nan
    means = _resampled(totals[:, None], counts[:, None].astype(np.float64), n, np.random.default_rng(seed))[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    # One is added to both, so that no number of resamples claims certainty.
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (n + 1))


def _resampled(totals: F64, counts: F64, n: int, random: np.random.Generator) -> F64:
    """float64[n, m]: the mean over the lists of as many clusters as there are, drawn with replacement.

    totals, counts: float64[clusters, m]; NaN where a resample holds no list of the column.
    """
    users = len(totals)
    both = np.hstack([totals, counts])
    means = np.empty((n, totals.shape[1]))
    # A few million draws at a time, whatever the number of users.
    step = max(1, 2**22 // users)
    for first in range(0, n, step):
        size = min(step, n - first)
        drawn = random.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
        total, count = np.hsplit(times @ both, 2)
        with np.errstate(invalid="ignore"):
            means[first : first + size] = total / count
    return means


def _mean_of(value: F64, items: I64) -> F64:
    """float64[lists]: mean of an item's value over the filled places; NaN for none."""
    there = items >= 0
    total = np.where(there, value[items], 0).sum(axis=1)
    return np.where(there.any(axis=1), total / np.maximum(there.sum(axis=1), 1), np.nan)


def _asked(metric: str) -> tuple[int, int]:
    """The metric's number and k, the largest integer where none is asked."""
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]{0,8}))?", metric)
    kind = NAMES.get(match[1]) if match else None
    if match is None or kind is None or (kind == AUC and match[2]):
        raise ValueError(
            f"metric {metric!r}: expected one of {', '.join(NAMES)}, with @k (not for auc), as in 'ndcg@10'"
        )
    if kind == PRECISION and not match[2]:
        raise ValueError("metric 'precision': say how many are looked at, as in 'precision@10'")
    return kind, int(match[2]) if match[2] else np.iinfo(np.int64).max


def _whole(values: Numbers, name: str, length: int) -> I64:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} is {values.dtype}, expected integers")
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} values, expected {length}")
    return values.astype(np.int64)


def _checked_start(start: Numbers, rows: int) -> I64:
    bounds = _whole(start, "start", len(start))
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
        raise ValueError(f"start must rise from 0 to the {rows} rows, found {bounds[:3]}...{bounds[-3:]}")
    return bounds


def _sortable(scores: Numbers) -> U64:
    """Keys that rise as scores fall, equal exactly for equal scores; NaN highest of all."""
    # Adding 0.0 makes -0.0 and 0.0 the one number they are.
    numbers = scores.astype(np.float64) + 0.0
    bits = numbers.view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    falling = np.where(negative, bits, ~bits ^ np.uint64(1 << 63))
    return np.where(np.isnan(numbers), np.uint64(2**64 - 1), falling)


def _mixed(numbers: U64) -> U64:
    """A well-scattered 64-bit number for each (splitmix64: Steele, Lea and Flood, 2014)."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


@compiled
def _score_lists(kind: int, k: int, keys: U64, gains: I64, start: I64, ties: U64, missed: I64) -> F64:
    values = np.full(len(start) - 1, np.nan)
    for one in range(len(values)):
        first, last = start[one], start[one + 1]
        relevant = np.count_nonzero(gains[first:last])
        if kind == AUC:
            if 0 < relevant < last - first:
                values[one] = _auc(keys[first:last], gains[first:last])
            continue
        relevant += missed[one].sum()
        if relevant == 0:
            continue
        by_tie = np.argsort(ties[first:last], kind="mergesort")
        order = by_tie[np.argsort(keys[first:last][by_tie], kind="mergesort")]
        ranked = gains[first:last][order[:k]]
        if kind == NDCG:
            values[one] = _dcg(ranked) / _best_dcg(gains[first:last], missed[one], k)
        else:
            values[one] = _hits(kind, ranked, k, relevant)
    return values


@compiled
def _top_k(keys: U64, start: I64, ties: U64, k: int) -> I64:
    best = np.full((len(start) - 1, k), -1, np.int64)
    for one in range(len(best)):
        first, last = start[one], start[one + 1]
        by_tie = np.argsort(ties[first:last], kind="mergesort")
        order = by_tie[np.argsort(keys[first:last][by_tie], kind="mergesort")]
        for place in range(min(k, len(order))):
            best[one, place] = first + order[place]
    return best


@compiled
def _dcg(ranked: I64) -> float:
    total = 0.0
    for place in range(len(ranked)):
        total += (2.0 ** ranked[place] - 1.0) / np.log2(place + 2.0)
    return total


@compiled
def _best_dcg(gains: I64, missed: I64, k: int) -> float:
    """The DCG of the first k of all relevant items, missed ones among them, best gains first."""
    most = len(missed)
    for gain in gains:
        most = max(most, gain)
    counts = np.zeros(most + 1, np.int64)
    counts[1 : len(missed) + 1] = missed
    for gain in gains:
        counts[gain] += 1
    total, place = 0.0, 0
    for gain in range(most, 0, -1):
        for _ in range(min(counts[gain], k - place)):
            total += (2.0**gain - 1.0) / np.log2(place + 2.0)
            place += 1
    return total


@compiled
def _hits(kind: int, ranked: I64, k: int, relevant: int) -> float:
    """The metrics that know relevant from not."""
    hits, precisions, reciprocal = 0, 0.0, 0.0
    for place in range(len(ranked)):
        if ranked[place] > 0:
            hits += 1
            precisions += hits / (place + 1.0)
            if hits == 1:
                reciprocal = 1.0 / (place + 1.0)
    if kind == MAP:
        return precisions / min(relevant, k)
    if kind == MRR:
        return reciprocal
    if kind == RECALL:
        return hits / relevant
    if kind == PRECISION:
        return hits / k
    return 1.0 if hits > 0 else 0.0


@compiled
def _auc(keys: U64, gains: I64) -> float:
    """Pairs in the right order over all pairs; both kinds of item are present."""
    order = np.argsort(keys, kind="mergesort")
    right, above, at = 0.0, 0, 0
    while at < len(order):
        end, relevant = at, 0
        while end < len(order) and keys[order[end]] == keys[order[at]]:
            relevant += gains[order[end]] > 0
            end += 1
        others = end - at - relevant
        right += others * (above + relevant / 2.0)
        above += relevant
        at = end
    return right / (above * (len(order) - above))
