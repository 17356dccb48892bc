"""How good is an order: systems compared on the same lists, with intervals, people with a history and without apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.log import F32, F64, Kind, Lists
from features.moment import LONGEST, RATE_STRENGTH, Moment
from features.replay import Reading
from features.retrieval import popularity
from features.vectors import Vectors
from offline.quarantine import DataError
from ranker.metrics import paired_difference, score_lists, tie_break

METRICS = ("ndcg@10", "mrr", "map@10", "recall@10")
PRIMARY = METRICS[0]
BASELINES = ("popularity", "item_click_rate", "cooccurrence", "text_zero_shot", "text")
"""Dull orders computed in replay, each from what was known at the moment of the list."""


def baselines(reading: Reading, zero_shot: Vectors) -> F64:
    """float64[candidates, BASELINES]: the score of each candidate by each baseline, NaN where it has nothing to say.

    item_click_rate shrinks toward the shop's rate, not toward a prediction: it stands for counting alone.
    """
    r = reading
    moment = Moment(r.items, r.history, r.candidates, r.at)
    clicks, shown = moment.counts[:, Kind.CLICK, LONGEST], moment.counts[:, Kind.IMPRESSION, LONGEST]
    shop = moment.shop_rate(Kind.CLICK, Kind.IMPRESSION)
    return np.column_stack(
        [
            popularity(r.items, r.candidates, r.at),
            (clicks + RATE_STRENGTH * shop) / (shown + RATE_STRENGTH),
            moment.co_occurrence[0],
            zero_shot.toward(r.candidates, zero_shot.pooled(moment.engaged.item, moment.weight)),
            r.items.vectors.toward(r.candidates, r.items.vectors.pooled(moment.engaged.item, moment.weight)),
        ]
    )


def has_history(reading: Reading) -> bool:
    """Whether anything was known of the user: an engagement or an earlier list."""
    return bool(len(reading.history.item) or len(reading.history.shown_item))


def per_list(lists: Lists, scores: Mapping[str, F32 | F64]) -> dict[str, dict[str, F64]]:
    """For each system, for each of `METRICS`: float64[lists], NaN for a list without gain.

    scores: float[rows] by system, higher is better. Ties are broken by a hash, never by the order shown.
    """
    ties = tie_break(lists.item, lists.start)
    return {
        system: {m: score_lists(m, s, lists.gain, lists.start, ties, lists.missed) for m in METRICS}
        for system, s in scores.items()
    }


def compare(
    values: Mapping[str, Mapping[str, F64]], lists: Lists, warm: NDArray[np.bool_], seed: int
) -> dict[str, Any]:
    """The `systems` and `comparisons` of an evaluation: every mean with its interval, and `ranker` against each other.

    values: of `per_list`. warm: bool[lists], whether anything was known of the user. Intervals are paired bootstraps
    over whole users.
    """
    slices = {"all": np.ones(len(lists), bool), "warm_users": warm, "cold_users": ~warm}
    counted = lists_with_gain(lists)
    systems: dict[str, Any] = {
        system: {
            name: _summary(by_metric, lists, mask & counted, seed)
            for name, mask in slices.items()
            if (mask & counted).any()
        }
        for system, by_metric in values.items()
    }
    comparisons = [
        _comparison("ranker", other, metric, name, values, lists, mask & counted, seed)
        for other in values
        for name, mask in slices.items()
        for metric in (PRIMARY,)
        if "ranker" in values and other != "ranker" and (mask & counted).any()
    ]
    return {"systems": systems, "comparisons": comparisons}


def lists_with_gain(lists: Lists) -> NDArray[np.bool_]:
    """bool[lists]: whether anything in the list, or missed by it, has gain; a metric is undefined elsewhere."""
    any_gain = np.zeros(len(lists), bool)
    any_gain[lists.group[lists.gain > 0]] = True
    return any_gain | lists.missed.any(axis=1)


def _summary(by_metric: Mapping[str, F64], lists: Lists, mask: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    out: dict[str, Any] = {"lists": int(mask.sum())}
    for metric, value in by_metric.items():
        d = paired_difference(value[mask], np.zeros(mask.sum()), lists.user[mask], seed=seed)
        out[metric] = {"value": d.difference, "low": d.low, "high": d.high}
    return out


def _comparison(
    a: str, b: str, metric: str, name: str, values: Mapping[str, Mapping[str, F64]], lists: Lists,
    mask: NDArray[np.bool_], seed: int,
) -> dict[str, Any]:  # fmt: skip
    d = paired_difference(values[a][metric][mask], values[b][metric][mask], lists.user[mask], seed=seed)
    return {
        "a": a, "b": b, "metric": metric, "slice": name,
        "difference": d.difference, "low": d.low, "high": d.high, "lists": int(mask.sum()),
    }  # fmt: skip


def system_scores(
    lists: Lists, columns: F64, ranker: F64, truth: Mapping[tuple[str, str], float] | None, item_ids: Sequence[str]
) -> dict[str, F64]:
    """float64[rows] by system: the baselines that have anything to say here, the ranker, and the best if known.

    columns: of `baselines`, one row a candidate. truth: the simulator's utility by (request, item); it knows the lists
    that were shown, so for rebuilt ones there is no best possible. Raises DataError where it knows some and not others.
    """
    out: dict[str, F64] = {"random": np.zeros(lists.rows)}
    if (lists.position >= 0).any():
        out["shown_order"] = -lists.position.astype(np.float64)
    out |= {name: columns[:, k] for k, name in enumerate(BASELINES) if np.isfinite(columns[:, k]).any()}
    out["ranker"] = ranker
    if truth is not None:
        requests = (lists.request_ids[g] for g in lists.group.tolist())
        items = (item_ids[i] for i in lists.item.tolist())
        pairs = list(zip(requests, items, strict=True))
        unknown = [pair for pair in pairs if pair not in truth]
        if unknown and len(unknown) < len(pairs):
            raise DataError(
                f"truth.parquet: no utility for item {unknown[0][1]!r} of list {unknown[0][0]!r} ({len(unknown)} such "
                "rows); it is of another log: run `shelfwise simulate` again, or remove the file"
            )
        if not unknown:
            out["best_possible"] = np.array([truth[pair] for pair in pairs])
    return out
