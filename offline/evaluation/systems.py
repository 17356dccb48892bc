"""How good is an order: systems compared on the same lists, with intervals, and on parts of them.

A system is what it puts first: the items of each list, best first. So an order of a list's candidates and one of the
whole catalogue are judged alike, against all that was engaged with, and so is what no metric of hits sees: how much of
the catalogue is ever recommended, how popular it is, how unlike each other the items are.
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
from ranker.metrics import (
    coverage,
    intervals,
    intra_list_diversity,
    novelty,
    popularity_percentile,
    score_lists,
    share_of_the_way,
    tie_break,
)

METRICS = ("ndcg@10", "map@10", "mrr@10", "recall@10", "hit_rate@10", "precision@10")
DEEP_METRICS = ("recall@50",)
"""Where lists are longer than that."""
WHOLE_METRICS = ("auc",)
"""Where the whole list is known, not only its best `DEPTH`."""
PRIMARY = METRICS[0]
LEVEL = 0.95
SHOWN = 10
"""Items at the top of an order that coverage, novelty, popularity and diversity look at."""
SMALL = 100
"""A slice of fewer lists is marked: its intervals are wide, and too narrow for what they claim."""

Values = Mapping[str, Mapping[str, F64]]
"""float64[lists] by system, by metric; NaN where the metric is undefined."""
Mask = NDArray[np.bool_]


def has_history(reading: Snapshot) -> bool:
    """Whether anything was known of the user: an engagement or an earlier list."""
    return bool(len(reading.history.item) or len(reading.history.shown_item))


def lists_with_gain(lists: Lists) -> Mask:
    """bool[lists]: whether anything in the list, or missed by it, has gain; a metric is undefined elsewhere."""
    any_gain = np.zeros(len(lists), bool)
    any_gain[lists.group[lists.gain > 0]] = True
    return any_gain | lists.missed.any(axis=1)


def orders(
    lists: Lists, baselines: I32, ranker: F64, truth: Mapping[tuple[str, str], float] | None, item_ids: Sequence[str]
) -> dict[str, I32]:
    """int32[lists, DEPTH] by system: the items it puts first, `-1` after the last.

    The baselines that have anything to say here, the shown order if there was one, the ranker, and the best if known.
    Where a baseline has nothing to say of a list its order there is `random`. baselines: int32[lists, BASELINES, DEPTH]
    of `Baselines.best`. ranker: float64[rows]. truth: the simulator's utility by (request, item); it knows the lists
    that were shown, so for rebuilt ones there is no best possible. Raises DataError where it knows some and not others.
    """
    ties = tie_break(lists.item, lists.start)
    spoke: Mask = np.asarray((baselines >= 0).any(axis=2))
    out = {"random": baselines[:, BASELINES.index("random")]}
    if (lists.position >= 0).any():
        out["shown_order"] = order_of(-lists.position.astype(np.float64), lists.item, lists.start, ties)
    for k, name in enumerate(BASELINES):
        if name != "random" and spoke[:, k].any():
            out[name] = np.where(spoke[:, k, None], baselines[:, k], out["random"])
    out["ranker"] = order_of(ranker, lists.item, lists.start, ties)
    best = utility(lists, truth, item_ids)
    return out if best is None else out | {"best_possible": order_of(best, lists.item, lists.start, ties)}


def utility(lists: Lists, truth: Mapping[tuple[str, str], float] | None, item_ids: Sequence[str]) -> F64 | None:
    """float64[rows]: the simulator's hidden utility of each candidate; None where it is not known. Raises DataError."""
    if truth is None:
        return None
    requests = (lists.request_ids[g] for g in lists.group.tolist())
    pairs = list(zip(requests, (item_ids[i] for i in lists.item.tolist()), strict=True))
    unknown = [pair for pair in pairs if pair not in truth]
    if unknown and len(unknown) < len(pairs):
        raise DataError(
            f"truth.parquet: no utility for item {unknown[0][1]!r} of list {unknown[0][0]!r} ({len(unknown)} such "
            "rows); it is of another log: run `shelfwise simulate` again, or remove the file"
        )
    return None if unknown else np.array([truth[pair] for pair in pairs])


def metrics_for(lists: Lists) -> tuple[str, ...]:
    """The metrics that mean something on these lists: more of them the longer, `auc` where `DEPTH` holds the whole."""
    longest = int(np.diff(lists.start).max(initial=0))
    return METRICS + (DEEP_METRICS if longest > 50 else ()) + (WHOLE_METRICS if longest <= DEPTH else ())


def per_list(order: I32, targets: Targets, metrics: Sequence[str], part: Mask | None = None) -> dict[str, F64]:
    """float64[lists] by metric: how well one order finds the targets, or a part of them.

    order: int32[lists, depth], items best first, `-1` after the last. part: bool[targets]; the others are taken out of
    the order. NaN for a list without a target, of the part. A target that the order does not hold counts as missed.
    """
    of_part = np.ones(len(targets.of), bool) if part is None else part
    number = _match_targets(order, targets)
    there, gain = np.append(of_part, False)[number], np.append(targets.gain, np.int8(0))[number]
    gain = np.where(there, gain, np.int8(0))
    kept = (order >= 0) & ((number < 0) | there)
    start = np.concatenate(([0], np.cumsum(kept.sum(axis=1))))
    falling = np.broadcast_to(-np.arange(order.shape[1], dtype=np.float64), order.shape)[kept]
    wanted = _count_by_gain(targets.of[of_part], targets.gain[of_part], len(order))
    lists, _ = np.nonzero(there)
    missed = wanted - _count_by_gain(lists, gain[there], len(order))
    ties = np.zeros(len(falling), np.uint64)
    return {m: score_lists(m, falling, gain[kept], start, ties, missed) for m in metrics}


def ips_ndcg(order: I32, targets: Targets, examination_probability: F64, part: Mask | None = None) -> tuple[F64, F64]:
    """(float64[lists], float64[lists]): ndcg@10 with what each target is worth over the chance that it was looked at
    where it stood, and the weight of each list in a mean: the clicks that makes.

    What was shown on top is clicked more for standing there, so clicks as they are favour the order that was shown. The
    weighted mean is, in expectation, that of the lists as they would have been clicked had everything been looked at
    (Joachims et al., WSDM 2017). examination_probability: float64[targets] in (0, 1]; all 1 is the ndcg of
    `per_list`. order, part, NaN: as there.
    """
    of_part = np.ones(len(targets.of), bool) if part is None else part
    number = _match_targets(order, targets)
    there = np.append(of_part, False)[number]
    due = (np.exp2(targets.gain.astype(np.float64)) - 1) / examination_probability
    rank = np.cumsum((order >= 0) & ((number < 0) | there), axis=1) - 1
    discount = np.where(there & (rank < SHOWN), 1 / np.log2(np.maximum(rank, 0) + 2.0), 0.0)
    found = (np.append(due, 0.0)[number] * discount).sum(axis=1)
    # The best order has the dearest targets on top.
    of, worth = targets.of[of_part], due[of_part]
    by_worth = np.lexsort((-worth, of))
    of, worth = of[by_worth], worth[by_worth]
    rank_best = np.arange(len(of)) - np.searchsorted(of, of)
    discounted = np.where(rank_best < SHOWN, worth / np.log2(rank_best + 2.0), 0.0)
    best = np.bincount(of, discounted, minlength=len(order))
    value: F64 = np.divide(found, best, out=np.full(len(order), np.nan), where=best > 0)
    weight = np.bincount(targets.of[of_part], 1 / examination_probability[of_part], minlength=len(order))
    return value, weight.astype(np.float64)


def _match_targets(order: I32, targets: Targets) -> I64:
    """int64, like `order`: which target of its list each item is, `-1` for none."""
    key = targets.of << 32 | targets.item.astype(np.int64)
    if not len(key):
        return np.full(order.shape, -1, np.int64)
    by_key = np.argsort(key)
    asked = np.arange(len(order), dtype=np.int64)[:, None] << 32 | order.astype(np.int64).clip(0)
    found = by_key[np.minimum(np.searchsorted(key[by_key], asked), len(key) - 1)]
    return np.where((key[found] == asked) & (order >= 0), found, -1)


def _count_by_gain(of: I64, gain: NDArray[np.int8], n: int) -> I64:
    """int64[n, 3]: targets of each list by gain, 1 to 3."""
    return np.bincount(of * 3 + gain.astype(np.int64) - 1, minlength=3 * n).reshape(n, 3)


def beyond_accuracy(order: I32, count: F64, vectors: F32) -> dict[str, F64]:
    """float64[lists] by metric: novelty, popularity and diversity of the first ten items of each list.

    count: float64[items], engagements known before the test. vectors: float32[items, d] of the encoder as it came, so
    that no system is measured by its own eye.
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
    """`systems`, `intervals` and `comparisons` of an evaluation, and `shares` where the best possible order is known.

    systems: by system, by slice: `lists`, how many have something to find, and the mean of each metric; coverage of
    slice `all` is of the catalogue. intervals: by system, slice and metric: low and high. comparisons: `ranker` against
    each other system, and `text` against `text_zero_shot`, by `PRIMARY` in every slice. All intervals are bootstraps
    over whole users, and those of comparisons paired by list. shares: by slice of lists, how far of the way from
    popularity to the best possible order the ranker goes: `share`, `low`, `high`, `lists`. of_lists: bool[lists],
    of_targets: bool[targets]. had: like `orders`, what the user had before; then slice `new_only` is each order without
    that, and the targets `new_items`.
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
    found: dict[str, dict[str, Any]] = next(iter(out["systems"].values()), {})
    out["small_slices"] = [name for name, by in found.items() if by["lists"] < SMALL]
    return out


def _add_part(
    out: dict[str, Any], name: str, orders: Mapping[str, I32], lists: Lists, targets: Targets, part: Mask, seed: int
) -> None:
    """Put how well a part of the targets is found into an evaluation, over the lists that hold one."""
    values = {s: per_list(o, targets, METRICS, part) for s, o in orders.items()}
    some = np.zeros(len(lists), bool)
    some[targets.of[part]] = True
    _add(out, name, values, lists.user, some, seed)


def _add(out: dict[str, Any], name: str, values: Values, user: I32, mask: Mask, seed: int) -> None:
    """Put one slice into an evaluation; a slice of no list is left out."""
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
    """Put the ranker's share of the way into an evaluation; where the best order is not known, or not better, none."""
    if not mask.any() or not {"ranker", "popularity", "best_possible"} <= set(values):
        return
    own, base, top = (values[s][PRIMARY][mask] for s in ("ranker", "popularity", "best_possible"))
    share, low, high = share_of_the_way(own, base, top, user[mask], seed=seed, level=LEVEL)
    if not np.isnan(share):
        out.setdefault("shares", {})[name] = {"share": share, "low": low, "high": high, "lists": int(mask.sum())}


def calibrate(valid_score: F64, valid_gain: NDArray[np.int8], score: F64, gain: NDArray[np.int8]) -> dict[str, Any]:
    """How far click probabilities made of the ranker's scores are from clicks: bins, and their mean error.

    The map from score to probability is fitted on validation rows and looked at on test rows; a ranker learns an order,
    so its scores are no probabilities by themselves.
    """
    slope, intercept = click_probability(valid_score, valid_gain > 0)
    found = calibration(0.5 * (1 + np.tanh((slope * score + intercept) / 2)), gain > 0)
    return {
        "error": found.error,
        "bins": [
            {"predicted": p, "observed": o, "rows": n}
            for p, o, n in zip(found.predicted.tolist(), found.observed.tolist(), found.rows.tolist(), strict=True)
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
    """`lists`, `ndcg@10`, `low`, `high` for an eighth, a quarter, a half and all of the ranker's training lists.

    fit: trains on these numbers (ascending, of `n_lists`) and gives float64[rows], the score of the test rows. Smaller
    parts are within larger ones, drawn by `seed`.
    """
    shuffled = np.random.default_rng(seed).permutation(n_lists)
    ties = tie_break(lists.item, lists.start)
    out: list[dict[str, Any]] = []
    sizes = list(dict.fromkeys(max(1, n_lists // part) for part in (8, 4, 2, 1)))
    for k, size in enumerate(sizes, 1):
        order = order_of(fit(np.sort(shuffled[:size])), lists.item, lists.start, ties)
        value = per_list(order, targets, (PRIMARY,))[PRIMARY]
        mean, low, high = intervals(value[:, None], lists.user, seed=seed, level=LEVEL)
        out.append({"lists": size, PRIMARY: float(mean[0]), "low": float(low[0]), "high": float(high[0])})
        if on_progress:
            on_progress(k, len(sizes))
    return out
