"""Ranking metrics per list, beyond-accuracy metrics, and bootstrap intervals of differences.

A list is a query group: rows `start[g]:start[g + 1]`. Metrics have names such as `"ndcg@10"` and return one value per
list, so that two orders can be compared in pairs. `tie_break` orders equal scores. It depends only on the items of the
list, not on the order of the rows: in logs, rows are in shown order, and keeping it would favour scorers with many
ties.
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
    """float64[lists]: the metric of each list, 0 to 1; NaN if it is undefined for the list.

    metric: `name@k`, evaluated on the first k rows; without `@k`, on the whole list. `auc` has no k. An item is
    relevant if its gain is above 0. A metric is undefined for lists without a relevant item; `auc` also needs an
    irrelevant one.

    - ndcg: DCG, the sum of (2^gain - 1) / log2(1 + rank) over the first k, divided by the DCG of the ideal order
      (Burges 2005).
    - map: sum over the relevant items in the first k of the precision at their rank, divided by min(relevant, k).
    - mrr: 1 / rank of the first relevant item, 0 if it is beyond k.
    - recall: relevant items in the first k / all relevant items. precision: relevant items in the first k / k.
    - hit_rate: 1 if any item in the first k is relevant, else 0.
    - auc: share of (relevant, irrelevant) pairs in the right order; equal scores count half.

    scores: float[rows], higher is better; NaN ranks last, after -inf. gain: int[rows], 0 to 30. start: int[lists + 1].
    tie_break: uint64[rows], from `tie_break`. missed: int[lists], the number of relevant items of gain 1 that were not
    retrieved, or int[lists, m], where column j counts those of gain j + 1. They are part of the ideal order and of the
    relevant count; `auc` ignores them. Raises `ValueError` naming the invalid argument and row.
    """
    kind, k = _parse_metric(metric)
    bounds = _checked_start(start, len(scores))
    gains = _as_int64(gain, "gain", len(scores))
    if len(gains) and not 0 <= gains.min() <= gains.max() <= 30:
        row = int(np.flatnonzero((gains < 0) | (gains > 30))[0])
        raise ValueError(f"gain[{row}] is {gains[row]}, expected 0 to 30")
    if tie_break.dtype != np.uint64 or tie_break.shape != scores.shape:
        raise ValueError(f"tie_break is {tie_break.dtype}{list(tie_break.shape)}, expected uint64[{len(scores)}]")
    lists = len(bounds) - 1
    missed_counts = np.zeros((lists, 0), np.int64)
    if missed is not None:
        missed_counts = _as_int64(missed, "missed", lists)
        if missed_counts.size and missed_counts.min() < 0:
            raise ValueError(f"missed contains {missed_counts.min()}, expected counts of at least 0")
        missed_counts = missed_counts.reshape(lists, -1 if lists else 1)
    return _score_lists(kind, k, _sort_keys(scores), gains, bounds, tie_break, missed_counts)


def tie_break(items: Numbers, start: Numbers) -> U64:
    """uint64[rows]: sort keys for rows with equal scores, a hash of the item and of the set of items in its list.

    items: int[rows], any identifier of the item, such as its catalogue row. start: int[lists + 1]. The keys do not
    depend on the order of rows or lists. An item that wins a tie in one list may lose it in another.
    """
    bounds = _checked_start(start, len(items))
    item_hash = _splitmix64(_as_int64(items, "items", len(items)).astype(np.uint64))
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(item_hash, dtype=np.uint64)])
    list_sum = total[bounds[1:]] - total[bounds[:-1]]
    return _splitmix64(item_hash ^ np.repeat(_splitmix64(list_sum), np.diff(bounds)))


def top_k(scores: Numbers, start: Numbers, tie_break: U64, k: int) -> I64:
    """int64[lists, k]: the k best rows of each list, best first, padded with `-1`.

    scores: float[rows], higher is better; NaN ranks last. start: int[lists + 1]. tie_break: uint64[rows], from
    `tie_break`. Same order as in `score_lists`. Raises `ValueError` like `score_lists`, and if k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    bounds = _checked_start(start, len(scores))
    if tie_break.dtype != np.uint64 or tie_break.shape != scores.shape:
        raise ValueError(f"tie_break is {tie_break.dtype}{list(tie_break.shape)}, expected uint64[{len(scores)}]")
    return np.asarray(_top_k(_sort_keys(scores), bounds, tie_break, k), np.int64)


def coverage(items: I64, n_items: int) -> float:
    """Share of the catalogue that occurs in at least one of the lists, 0 to 1 (Ge et al., RecSys 2010).

    items: int[lists, k], padded with `-1`. n_items: size of the catalogue, at least 1.
    """
    return len(np.unique(items[items >= 0])) / n_items


def novelty(items: I64, count: F64) -> F64:
    """float64[lists]: mean self-information, -log2 p, of the items of each list, in bits (Zhou et al., PNAS 2010).

    items: int[lists, k], padded with `-1`; the result is NaN for an empty list. count: float64[n_items], engagements
    with each item. p is (count + 1) / (sum + n_items), so that items without engagements have a finite value.
    """
    information = -np.log2((count + 1) / (count.sum() + len(count)))
    return _list_mean(information, items)


def popularity_percentile(items: I64, count: F64) -> F64:
    """float64[lists]: mean popularity percentile of the items of each list, 0 to 1; about 0.5 for random lists.

    The percentile of an item is the share of items with fewer engagements; items with equal counts count half. It
    measures popularity bias like average recommendation popularity (Yin et al., VLDB 2012), on a scale that is
    comparable between shops. items, count: as in `novelty`.
    """
    ascending = np.sort(count)
    below, up_to = np.searchsorted(ascending, count, "left"), np.searchsorted(ascending, count, "right")
    return _list_mean((below + up_to) / (2.0 * len(count)), items)


def intra_list_diversity(items: I64, vectors: NDArray[np.float32]) -> F64:
    """float64[lists]: mean of 1 - cosine over the pairs of items of each list, 0 to 2 (Ziegler et al., WWW 2005).

    items: int[lists, k], padded with `-1`. vectors: float32[n_items, d]; a row that is not finite or all zeros is
    missing. NaN for lists with fewer than two items that have a vector.
    """
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    has_vector = np.isfinite(length[:, 0]) & (length[:, 0] > 0)
    unit = np.where(has_vector[:, None], vectors, 0) / np.where(has_vector[:, None], length, 1)
    out = np.full(len(items), np.nan)
    # In blocks of lists, which bounds the memory for their vectors.
    for first in range(0, len(items), 4096):
        block = items[first : first + 4096]
        used = (block >= 0) & has_vector[block]
        m = used.sum(axis=1)
        total = np.einsum("lkd,lk->ld", unit[block], used.astype(unit.dtype))
        # For unit vectors, |sum|^2 is m plus twice the sum of the cosines of all pairs.
        cosine = ((total.astype(np.float64) ** 2).sum(axis=1) - m) / np.maximum(m * (m - 1), 1)
        out[first : first + 4096] = np.where(m > 1, 1 - cosine, np.nan)
    return out


@dataclass(frozen=True)
class Difference:
    """Mean difference a - b over the lists where both are defined, with a bootstrap interval.

    low, high: the interval at `level`, widened for few users (see `_expanded`). p: two-sided, twice the share of
    resamples on the other side of zero. These three are NaN with fewer than two clusters, because one user says nothing
    about the variation between users.
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
    """Mean difference a - b, paired by list, with a percentile bootstrap interval over users.

    a, b: float64[lists], one metric of two orders of the same lists. NaN must be in both or in neither; such lists are
    ignored. cluster: int[lists], the user. Lists of one user are not independent, so users are resampled with all their
    lists. n: number of resamples. The same seed gives the same result. Raises `ValueError` if lengths differ, a NaN is
    on one side only, a value is infinite, no list is left, `n` is below 1 or `level` is outside (0, 1).
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError(f"n={n} and level={level}: expected n >= 1 and a level between 0 and 1")
    if not len(a) == len(b) == len(cluster):
        raise ValueError(f"a, b and cluster have {len(a)}, {len(b)} and {len(cluster)} lists, expected the same")
    invalid = np.flatnonzero((np.isnan(a) != np.isnan(b)) | np.isinf(a) | np.isinf(b))
    if len(invalid):
        row = invalid[0]
        raise ValueError(f"list {row}: a is {a[row]} and b is {b[row]}; expected two finite numbers or two NaN")
    defined = ~np.isnan(a)
    if not defined.any():
        raise ValueError("no list has a value in both a and b: nothing to compare")
    _, user = np.unique(cluster[defined], return_inverse=True)
    totals = np.bincount(user, (a - b)[defined]).astype(np.float64)
    counts = np.bincount(user).astype(np.int64)
    low, high, p = _interval(totals, counts, n, seed, level)
    return Difference(
        difference=float(totals.sum() / counts.sum()),
        low=low,
        high=high,
        p=p,
        lists=int(defined.sum()),
        clusters=len(counts),
        level=level,
    )


def intervals(values: F64, cluster: Numbers, n: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[F64, F64, F64]:
    """(mean, low, high) of every column, float64[m] each, with bootstrap intervals from shared resamples.

    values: float64[lists, m]; NaN is ignored per column. cluster, n, seed, level: as in `paired_difference`, which
    gives the same interval as the column a - b here. Many columns cost little more than one. The mean of a column of
    NaN is NaN; low and high are NaN with fewer than two clusters. Raises `ValueError` if lengths differ.
    """
    if len(values) != len(cluster):
        raise ValueError(f"values and cluster have {len(values)} and {len(cluster)} lists, expected the same")
    _, user = np.unique(cluster, return_inverse=True)
    defined = ~np.isnan(values)
    users = int(user.max(initial=-1)) + 1
    totals, counts = np.zeros((users, values.shape[1])), np.zeros((users, values.shape[1]))
    np.add.at(totals, user, np.where(defined, values, 0))
    np.add.at(counts, user, defined)
    with np.errstate(invalid="ignore"):
        mean = totals.sum(axis=0) / counts.sum(axis=0)
    if users < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    means = _bootstrap_means(totals, counts, n, np.random.default_rng(seed))
    clusters = (counts > 0).sum(axis=0)
    for column in np.flatnonzero(clusters > 1):
        resampled, wider = means[:, column], _expanded(level, int(clusters[column]))
        low[column], high[column] = np.quantile(resampled[~np.isnan(resampled)], [(1 - wider) / 2, (1 + wider) / 2])
    return mean, low, high


def gap_closed(
    system: F64, base: F64, top: F64, cluster: Numbers, n: int = 2000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """(share, low, high): share of the gap between base and top that the system closes, with its bootstrap interval.

    The share is `(system - base) / (top - base)` of the means over lists: 0 if no better than the base, 1 if as good as
    the top. system, base, top: float64[lists], one metric of three orders of the same lists; lists with a NaN in any of
    them are ignored. cluster, n, seed, level: as in `paired_difference`. All three are NaN if the top is not above the
    base; low and high are NaN with fewer than two clusters.
    """
    defined = ~np.isnan(system + base + top)
    _, user = np.unique(cluster[defined], return_inverse=True)
    gained, possible = (np.bincount(user, (x - base)[defined]).astype(np.float64)[:, None] for x in (system, top))
    if not possible.sum() > 0:
        return np.nan, np.nan, np.nan
    share = float(gained.sum() / possible.sum())
    if len(gained) < 2:
        return share, np.nan, np.nan
    with np.errstate(divide="ignore"):
        resampled = _bootstrap_means(gained, possible, n, np.random.default_rng(seed))[:, 0]
    wider = _expanded(level, len(gained))
    low, high = np.nanquantile(resampled, [(1 - wider) / 2, (1 + wider) / 2])
    return share, float(low), float(high)


def _interval(totals: F64, counts: I64, n: int, seed: int, level: float) -> tuple[float, float, float]:
    """(low, high, p) of the mean, NaN with fewer than two clusters."""
    if len(counts) < 2:
        return np.nan, np.nan, np.nan
    means = _bootstrap_means(totals[:, None], counts[:, None].astype(np.float64), n, np.random.default_rng(seed))[:, 0]
    wider = _expanded(level, len(counts))
    low, high = np.quantile(means, [(1 - wider) / 2, (1 + wider) / 2])
    beyond = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    # Adding 1 to both keeps p above 0, since a finite number of resamples cannot show certainty.
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (n + 1))


def _expanded(level: float, users: int) -> float:
    """The level at which percentiles of resampled means are as wide as a Student t interval of this level.

    Percentiles are too narrow with few users, most of all at a level near 1. This is the expanded percentile interval
    of Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician, 2015. users: at least 2.
    """
    from scipy.special import ndtr, stdtrit  # type: ignore[import-untyped]  # the service has no SciPy

    t = stdtrit(users - 1, (1 + level) / 2) * np.sqrt(users / (users - 1))
    return float(2 * ndtr(t) - 1)


def _bootstrap_means(totals: F64, counts: F64, n: int, random: np.random.Generator) -> F64:
    """float64[n, m]: mean per list of each resample. A resample draws as many clusters as there are, with replacement.

    totals, counts: float64[clusters, m], sum and number of the lists of a cluster. NaN if no drawn cluster has a list
    of the column.
    """
    users = len(totals)
    totals_and_counts = np.hstack([totals, counts])
    means = np.empty((n, totals.shape[1]))
    # In blocks of at most a few million draws, which bounds the memory.
    step = max(1, 2**22 // users)
    for first in range(0, n, step):
        size = min(step, n - first)
        drawn = random.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(np.float64)
        total, count = np.hsplit(times @ totals_and_counts, 2)
        with np.errstate(invalid="ignore"):
            means[first : first + size] = total / count
    return means


def _list_mean(value: F64, items: I64) -> F64:
    """float64[lists]: mean value of the items of each list; NaN for an empty list."""
    filled = items >= 0
    total = np.where(filled, value[items], 0).sum(axis=1)
    return np.where(filled.any(axis=1), total / np.maximum(filled.sum(axis=1), 1), np.nan)


def _parse_metric(metric: str) -> tuple[int, int]:
    """(number of the metric, k); k is the largest integer if the name has none."""
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]{0,8}))?", metric)
    kind = NAMES.get(match[1]) if match else None
    if match is None or kind is None or (kind == AUC and match[2]):
        raise ValueError(
            f"metric {metric!r}: expected one of {', '.join(NAMES)}, with @k (not for auc), as in 'ndcg@10'"
        )
    if kind == PRECISION and not match[2]:
        raise ValueError("metric 'precision' has no cutoff; add one, as in 'precision@10'")
    return kind, int(match[2]) if match[2] else np.iinfo(np.int64).max


def _as_int64(values: Numbers, name: str, length: int) -> I64:
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} is {values.dtype}, expected integers")
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} values, expected {length}")
    return values.astype(np.int64)


def _checked_start(start: Numbers, rows: int) -> I64:
    bounds = _as_int64(start, "start", len(start))
    if not len(bounds) or bounds[0] != 0 or bounds[-1] != rows or (np.diff(bounds) < 0).any():
        raise ValueError(
            f"start is {bounds[:3]}...{bounds[-3:]}, expected row numbers rising from 0 to {rows}, the number of rows"
        )
    return bounds


def _sort_keys(scores: Numbers) -> U64:
    """Keys that sort scores in descending order with NaN last. Keys are equal exactly if scores are equal."""
    # Adding 0.0 turns -0.0 into 0.0.
    numbers = scores.astype(np.float64) + 0.0
    bits = numbers.view(np.uint64)
    negative = bits >> np.uint64(63) == 1
    descending = np.where(negative, bits, ~bits ^ np.uint64(1 << 63))
    return np.where(np.isnan(numbers), np.uint64(2**64 - 1), descending)


def _splitmix64(numbers: U64) -> U64:
    """64-bit hash of each number (splitmix64: Steele, Lea and Flood, 2014)."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


@compiled
def _score_lists(kind: int, k: int, keys: U64, gains: I64, start: I64, ties: U64, missed: I64) -> F64:
    values = np.full(len(start) - 1, np.nan)
    for group in range(len(values)):
        first, last = start[group], start[group + 1]
        relevant = np.count_nonzero(gains[first:last])
        if kind == AUC:
            if 0 < relevant < last - first:
                values[group] = _auc(keys[first:last], gains[first:last])
            continue
        relevant += missed[group].sum()
        if relevant == 0:
            continue
        by_tie = np.argsort(ties[first:last], kind="mergesort")
        order = by_tie[np.argsort(keys[first:last][by_tie], kind="mergesort")]
        ranked = gains[first:last][order[:k]]
        if kind == NDCG:
            values[group] = _dcg(ranked) / _ideal_dcg(gains[first:last], missed[group], k)
        else:
            values[group] = _binary_metric(kind, ranked, k, relevant)
    return values


@compiled
def _top_k(keys: U64, start: I64, ties: U64, k: int) -> I64:
    best = np.full((len(start) - 1, k), -1, np.int64)
    for group in range(len(best)):
        first, last = start[group], start[group + 1]
        by_tie = np.argsort(ties[first:last], kind="mergesort")
        order = by_tie[np.argsort(keys[first:last][by_tie], kind="mergesort")]
        for rank in range(min(k, len(order))):
            best[group, rank] = first + order[rank]
    return best


@compiled
def _dcg(ranked: I64) -> float:
    total = 0.0
    for rank in range(len(ranked)):
        total += (2.0 ** ranked[rank] - 1.0) / np.log2(rank + 2.0)
    return total


@compiled
def _ideal_dcg(gains: I64, missed: I64, k: int) -> float:
    """DCG@k of the ideal order of all relevant items, including those that were not retrieved."""
    highest = len(missed)
    for gain in gains:
        highest = max(highest, gain)
    counts = np.zeros(highest + 1, np.int64)
    counts[1 : len(missed) + 1] = missed
    for gain in gains:
        counts[gain] += 1
    total, rank = 0.0, 0
    for gain in range(highest, 0, -1):
        for _ in range(min(counts[gain], k - rank)):
            total += (2.0**gain - 1.0) / np.log2(rank + 2.0)
            rank += 1
    return total


@compiled
def _binary_metric(kind: int, ranked: I64, k: int, relevant: int) -> float:
    """Metrics that only distinguish relevant from irrelevant items."""
    hits, precisions, reciprocal = 0, 0.0, 0.0
    for rank in range(len(ranked)):
        if ranked[rank] > 0:
            hits += 1
            precisions += hits / (rank + 1.0)
            if hits == 1:
                reciprocal = 1.0 / (rank + 1.0)
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
    """Share of (relevant, irrelevant) pairs in the right order. The list must contain both kinds of item."""
    order = np.argsort(keys, kind="mergesort")
    correct, relevant_above, begin = 0.0, 0, 0
    while begin < len(order):
        end, relevant = begin, 0
        while end < len(order) and keys[order[end]] == keys[order[begin]]:
            relevant += gains[order[end]] > 0
            end += 1
        irrelevant = end - begin - relevant
        correct += irrelevant * (relevant_above + relevant / 2.0)
        relevant_above += relevant
        begin = end
    return correct / (relevant_above * (len(order) - relevant_above))
