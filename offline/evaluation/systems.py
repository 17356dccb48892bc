"""Comparison of systems on the same lists: metrics with intervals, paired differences, and slices.

A system is represented by the items that it ranks first in each list. Therefore rankings of a list's candidates and of
the whole catalogue are evaluated alike: against everything the user engaged with, and by the coverage, popularity and
diversity of what they recommend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32, I64
from features.log import Lists
from features.replay import Snapshot
from offline.data import Targets
from offline.evaluation.baselines import BASELINES, DEPTH, order_of
from offline.runtime import DataError
from ranker.calibration import calibration, click_probability
from ranker.examination import ips_ndcg
from ranker.metrics import (
    coverage,
    gap_closed,
    intervals,
    intra_list_diversity,
    novelty,
    paired_difference,
    popularity_percentile,
    score_lists,
    tie_break,
)

METRICS = ("ndcg@10", "map@10", "mrr@10", "recall@10", "hit_rate@10", "precision@10")
DEEP_METRICS = ("recall@50",)
"""For lists with more than 50 items."""
WHOLE_METRICS = ("auc",)
"""For lists of at most `DEPTH` items, whose whole ranking is known."""
PRIMARY = METRICS[0]
"""The metric of comparisons, learning curves and the gate."""
LEVEL = 0.95
"""Level of the intervals."""
SHOWN = 10
"""Top items that coverage, novelty, popularity and diversity use."""
SMALL = 100
"""Slices with fewer lists are marked: their bootstrap intervals are wide, and still too narrow for their level."""
LEAST_LISTS = 20
"""Number of lists with a target below which a slice of users is not judged."""
USERS = ("all", "warm_users", "cold_users")
"""Slices of users."""

Values = Mapping[str, Mapping[str, F64]]
"""System -> metric -> float64[lists], NaN where the metric is undefined."""
Mask = NDArray[np.bool_]


def has_history(snapshot: Snapshot) -> bool:
    """True if the user had an engagement or an impression before the list."""
    return bool(len(snapshot.history.item) or len(snapshot.history.shown_item))


def lists_with_gain(lists: Lists) -> Mask:
    """bool[lists]: whether any item, in the list or missed by it, has gain. Without gain the metrics are undefined."""
    any_gain = np.zeros(len(lists), bool)
    any_gain[lists.group[lists.gain > 0]] = True
    return any_gain | lists.missed.any(axis=1)


def orders(
    lists: Lists, baselines: I32, ranker: F64, truth: Mapping[tuple[str, str], float] | None, item_ids: Sequence[str]
) -> dict[str, I32]:
    """System -> int32[lists, DEPTH]: its top items, best first, `-1` after the last.

    The systems are the baselines that can score anything here, the shown order for logged lists, the ranker, and the
    best possible order if the true utility is known. In a list that a baseline cannot score it has the order of
    `random`.

    baselines: int32[lists, BASELINES, DEPTH], from `Baselines.best`. ranker: float64[rows], scores. truth: the
    simulator's utility by (request ID, item ID). It covers the lists that were shown, so rebuilt lists have no best
    possible order. Raises DataError where it covers some rows and not others.
    """
    ties = tie_break(lists.item, lists.start)
    has_order: Mask = np.asarray((baselines >= 0).any(axis=2))
    out = {"random": baselines[:, BASELINES.index("random")]}
    if (lists.position >= 0).any():
        out["shown_order"] = order_of(-lists.position.astype(np.float64), lists.item, lists.start, ties)
    for k, name in enumerate(BASELINES):
        if name != "random" and has_order[:, k].any():
            out[name] = np.where(has_order[:, k, None], baselines[:, k], out["random"])
    out["ranker"] = order_of(ranker, lists.item, lists.start, ties)
    best = utility(lists, truth, item_ids)
    return out if best is None else out | {"best_possible": order_of(best, lists.item, lists.start, ties)}


def utility(lists: Lists, truth: Mapping[tuple[str, str], float] | None, item_ids: Sequence[str]) -> F64 | None:
    """float64[rows]: the simulator's hidden utility of each candidate; None where it is unknown.

    Raises DataError where it is known for some candidates and not for others.
    """
    if truth is None:
        return None
    requests = (lists.request_ids[g] for g in lists.group.tolist())
    pairs = list(zip(requests, (item_ids[i] for i in lists.item.tolist()), strict=True))
    unknown = [pair for pair in pairs if pair not in truth]
    if unknown and len(unknown) < len(pairs):
        raise DataError(
            f"truth.parquet: no utility for item {unknown[0][1]!r} of list {unknown[0][0]!r} ({len(unknown)} such "
            "rows). The file belongs to another log: run `shelfwise simulate` again, or remove the file"
        )
    return None if unknown else np.array([truth[pair] for pair in pairs])


def metrics_for(lists: Lists) -> tuple[str, ...]:
    """Metrics that are meaningful for the length of these lists: `METRICS`, `DEEP_METRICS` and `WHOLE_METRICS`."""
    longest = int(np.diff(lists.start).max(initial=0))
    return METRICS + (DEEP_METRICS if longest > 50 else ()) + (WHOLE_METRICS if longest <= DEPTH else ())


def per_list(order: I32, targets: Targets, metrics: Sequence[str], part: Mask | None = None) -> dict[str, F64]:
    """Metric -> float64[lists]: how well one order ranks the targets, or a part of them.

    order: int32[lists, depth], items best first, `-1` after the last. part: bool[targets]; the other targets are
    removed from the order. NaN for a list without a target, or without one of the part. A target that is not in the
    order counts as missed.
    """
    of_part = np.ones(len(targets.of), bool) if part is None else part
    number = _match_targets(order, targets)
    hit, gain = np.append(of_part, False)[number], np.append(targets.gain, np.int8(0))[number]
    gain = np.where(hit, gain, np.int8(0))
    kept = (order >= 0) & ((number < 0) | hit)
    start = np.concatenate(([0], np.cumsum(kept.sum(axis=1))))
    score = np.broadcast_to(-np.arange(order.shape[1], dtype=np.float64), order.shape)[kept]
    targets_by_gain = _count_by_gain(targets.of[of_part], targets.gain[of_part], len(order))
    lists, _ = np.nonzero(hit)
    missed = targets_by_gain - _count_by_gain(lists, gain[hit], len(order))
    ties = np.zeros(len(score), np.uint64)
    return {m: score_lists(m, score, gain[kept], start, ties, missed) for m in metrics}


def debiased_ndcg(
    order: I32, targets: Targets, examination_probability: F64, part: Mask | None = None
) -> tuple[F64, F64]:
    """(float64[lists], float64[lists]): ndcg@10 weighted by inverse propensity, and the weight of each list in a mean.

    See `ranker.examination.ips_ndcg`. examination_probability: float64[targets], in (0, 1]; with 1 throughout, the
    result is the ndcg of `per_list`. order, part, NaN: as in `per_list`.
    """
    of_part = np.ones(len(targets.of), bool) if part is None else part
    number = _match_targets(order, targets)
    hit = np.append(of_part, False)[number]
    rank = np.full(len(targets.of), SHOWN)
    rank[number[hit]] = (np.cumsum((order >= 0) & ((number < 0) | hit), axis=1) - 1)[hit]
    gain = np.exp2(targets.gain[of_part].astype(np.float64)) - 1
    return ips_ndcg(targets.of[of_part], rank[of_part], gain, examination_probability[of_part], len(order), SHOWN)


def _match_targets(order: I32, targets: Targets) -> I64:
    """int64, like `order`: row of the target that each item is, `-1` for items that are not targets."""
    key = targets.of << 32 | targets.item.astype(np.int64)
    if not len(key):
        return np.full(order.shape, -1, np.int64)
    by_key = np.argsort(key)
    order_key = np.arange(len(order), dtype=np.int64)[:, None] << 32 | order.astype(np.int64).clip(0)
    found = by_key[np.minimum(np.searchsorted(key[by_key], order_key), len(key) - 1)]
    return np.where((key[found] == order_key) & (order >= 0), found, -1)


def _count_by_gain(of: I64, gain: NDArray[np.int8], n: int) -> I64:
    """int64[n, 3]: number of targets of each list by gain, 1 to 3."""
    return np.bincount(of * 3 + gain.astype(np.int64) - 1, minlength=3 * n).reshape(n, 3)


def beyond_accuracy(order: I32, count: F64, vectors: F32) -> dict[str, F64]:
    """Metric -> float64[lists]: novelty, popularity and diversity of the first ten items of each list.

    count: float64[items], engagements outside the test. vectors: float32[items, d], from the pretrained encoder, so
    that no system is measured with the vectors that it ranks by.
    """
    top = order[:, :SHOWN].astype(np.int64)
    return {
        f"novelty@{SHOWN}": novelty(top, count),
        f"popularity@{SHOWN}": popularity_percentile(top, count),
        f"diversity@{SHOWN}": intra_list_diversity(top, vectors),
    }


def judge(
    orders: Mapping[str, I32],
    lists: Lists,
    targets: Targets,
    of_lists: Mapping[str, Mask],
    of_targets: Mapping[str, Mask],
    count: F64,
    vectors: F32,
    seed: int,
    had: Mapping[str, Mask] | None = None,
) -> dict[str, Any]:
    """`systems`, `intervals`, `comparisons` and `small_slices` of an evaluation; `shares` if the best order is known.

    - `systems`: system -> slice -> `lists`, the number of lists with a target, and the mean of each metric. Slice `all`
      also has coverage, as a share of the catalogue.
    - `intervals`: system -> slice -> metric -> [low, high].
    - `comparisons`: `PRIMARY` in every slice, of `ranker` with each other system and of `text` with `text_zero_shot`.
    - `shares`: slice of lists -> `share` of the gap between popularity and the best possible order that the ranker
      closes, with `low`, `high` and `lists`.

    All intervals are bootstraps over users; those of comparisons are paired by list. of_lists: slice -> bool[lists].
    of_targets: slice -> bool[targets]. had: like `orders`, whether the user had the item before; with it, slice
    `new_only` ranks the targets `new_items` in orders without such items.
    """
    metrics, counted = metrics_for(lists), lists_with_gain(lists)
    out: dict[str, Any] = {"systems": {s: {} for s in orders}, "intervals": {s: {} for s in orders}, "comparisons": []}
    whole = {s: per_list(o, targets, metrics) | beyond_accuracy(o, count, vectors) for s, o in orders.items()}
    for name, mask in of_lists.items():
        _add(out, name, whole, lists.user, mask & counted, seed)
        _add_share(out, name, whole, lists.user, mask & counted, seed)
    for name, part in of_targets.items():
        _add_part(out, name, orders, lists, targets, part, seed)
    if had is not None:
        new = {s: np.where(had[s], np.int32(-1), o) for s, o in orders.items()}
        _add_part(out, "new_only", new, lists, targets, of_targets["new_items"], seed)
    for system, order in orders.items():
        if "all" in out["systems"][system]:
            covered = coverage(order[:, :SHOWN].astype(np.int64), len(count))
            out["systems"][system]["all"][f"coverage@{SHOWN}"] = covered
    first: dict[str, dict[str, Any]] = next(iter(out["systems"].values()), {})
    out["small_slices"] = [name for name, by in first.items() if by["lists"] < SMALL]
    return out


def _add_part(
    out: dict[str, Any], name: str, orders: Mapping[str, I32], lists: Lists, targets: Targets, part: Mask, seed: int
) -> None:
    """Add a slice of the targets to an evaluation, over the lists that have one of them."""
    values = {s: per_list(o, targets, METRICS, part) for s, o in orders.items()}
    has_target = np.zeros(len(lists), bool)
    has_target[targets.of[part]] = True
    _add(out, name, values, lists.user, has_target, seed)


def _add(out: dict[str, Any], name: str, values: Values, user: I32, mask: Mask, seed: int) -> None:
    """Add a slice to an evaluation; a slice without lists is left out."""
    if not mask.any():
        return
    cells = [(s, m) for s, by_metric in values.items() for m in by_metric]
    compared = [("ranker", s) for s in values if s != "ranker" and "ranker" in values]
    compared += [("text", "text_zero_shot")] if {"text", "text_zero_shot"} <= set(values) else []
    columns = [values[s][m][mask] for s, m in cells]
    columns += [(values[a][PRIMARY] - values[b][PRIMARY])[mask] for a, b in compared]
    mean, low, high = (x.tolist() for x in intervals(np.column_stack(columns), user[mask], seed=seed, level=LEVEL))
    for k, (system, metric) in enumerate(cells):
        out["systems"][system].setdefault(name, {"lists": int(mask.sum())})[metric] = mean[k]
        out["intervals"][system].setdefault(name, {})[metric] = [low[k], high[k]]
    for k, (a, b) in enumerate(compared, len(cells)):
        out["comparisons"].append(
            {
                "a": a,
                "b": b,
                "metric": PRIMARY,
                "slice": name,
                "difference": mean[k],
                "low": low[k],
                "high": high[k],
                "lists": int(mask.sum()),
            }
        )


def _add_share(out: dict[str, Any], name: str, values: Values, user: I32, mask: Mask, seed: int) -> None:
    """Add the share of the gap that the ranker closes, if the best order is known and better than popularity."""
    if not mask.any() or not {"ranker", "popularity", "best_possible"} <= set(values):
        return
    own, base, top = (values[s][PRIMARY][mask] for s in ("ranker", "popularity", "best_possible"))
    share, low, high = gap_closed(own, base, top, user[mask], seed=seed, level=LEVEL)
    if not np.isnan(share):
        out.setdefault("shares", {})[name] = {"share": share, "low": low, "high": high, "lists": int(mask.sum())}


def best_rivals(own: F64, others: Mapping[str, F64], user: I32, of_lists: Mapping[str, Mask]) -> list[dict[str, Any]]:
    """The comparison with the best other order in each of `USERS`; slices with few lists or one user are left out.

    Each has `slice`; `rival`, the order with the highest mean there; `own` and `theirs`, the two means; `difference`,
    `low` and `high`, with the `level` of the interval; `p`, two-sided and not corrected; `lists`; and `result`:
    "better", "worse" or "undecided". The level is 95% after a Bonferroni correction for the number of slices and for
    the choice of the best of several orders on these lists.

    Gate and report read the same results, so that the report never calls worse what the gate publishes as no worse.

    own, others: float64[lists], ndcg@10, NaN without a target. of_lists: bool[lists] by slice; `all` need not be in it.
    """
    masks = {"all": np.ones(len(own), bool)} | {n: of_lists[n] for n in USERS[1:] if n in of_lists}
    used = {name: mask & ~np.isnan(own) for name, mask in masks.items()}
    used = {n: m for n, m in used.items() if m.sum() >= LEAST_LISTS and len(np.unique(user[m])) > 1}
    out = []
    for name, mask in used.items() if others else ():
        rival, theirs = max(others.items(), key=lambda pair: float(pair[1][mask].mean()))
        level = 1 - 0.05 / (len(used) * len(others))
        d = paired_difference(own[mask], theirs[mask], user[mask], n=10_000, level=level)
        out.append(
            {
                "slice": name,
                "rival": rival,
                "own": float(own[mask].mean()),
                "theirs": float(theirs[mask].mean()),
                "difference": d.difference,
                "low": d.low,
                "high": d.high,
                "level": level,
                "p": d.p,
                "lists": d.lists,
                "result": "worse" if d.high < 0 else "better" if d.low > 0 else "undecided",
            }
        )
    return out


def calibrate(valid_score: F64, valid_gain: NDArray[np.int8], score: F64, gain: NDArray[np.int8]) -> dict[str, Any]:
    """Calibration of click probabilities derived from the ranker's scores: `bins`, and their mean `error`.

    The map from score to probability is fitted on validation rows and evaluated on test rows. It is needed because a
    ranker learns an order, not probabilities.
    """
    slope, intercept = click_probability(valid_score, valid_gain > 0)
    result = calibration(0.5 * (1 + np.tanh((slope * score + intercept) / 2)), gain > 0)
    return {
        "error": result.error,
        "bins": [
            {"predicted": p, "observed": o, "rows": n}
            for p, o, n in zip(result.predicted.tolist(), result.observed.tolist(), result.rows.tolist(), strict=True)
        ],
    }


def learning_curve(
    fit: Callable[[I64], F64],
    n_lists: int,
    lists: Lists,
    targets: Targets,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """`lists`, `ndcg@10`, `low` and `high` for an eighth, a quarter, a half and all of the ranker's training lists.

    fit: trains on the lists with these numbers (ascending, below `n_lists`) and returns float64[rows], the scores of
    the test rows. The sample is drawn with `seed`, and each smaller part is contained in the larger ones.
    """
    shuffled = np.random.default_rng(seed).permutation(n_lists)
    ties = tie_break(lists.item, lists.start)
    out: list[dict[str, Any]] = []
    sizes = list(dict.fromkeys(max(1, n_lists // divisor) for divisor in (8, 4, 2, 1)))
    for k, size in enumerate(sizes, 1):
        order = order_of(fit(np.sort(shuffled[:size])), lists.item, lists.start, ties)
        value = per_list(order, targets, (PRIMARY,))[PRIMARY]
        mean, low, high = intervals(value[:, None], lists.user, seed=seed, level=LEVEL)
        out.append({"lists": size, PRIMARY: float(mean[0]), "low": float(low[0]), "high": float(high[0])})
        if on_progress:
            on_progress(k, len(sizes))
    return out
