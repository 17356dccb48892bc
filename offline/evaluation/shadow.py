"""Comparison of a shadow release with the live one on served lists: agreement, latency and quality.

The service scores a share of its lists with both releases. For each of these lists the log has the correlation of the
scores over all candidates, the overlap of the first ten items, both latencies, and both scores of the items that were
shown; clicks arrive later and are joined by request ID. Quality is measured on shown items alone: nobody saw an item
that only the shadow release would have shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, I64
from features.log import ATTRIBUTION_S, Lists
from offline.config import AttributeKind
from offline.data import Dataset, LogFiles, load_dataset, logged_lists
from offline.evaluation import off_policy
from offline.runtime import DataError
from ranker.metrics import Difference, paired_difference, score_lists, tie_break
from ranker.offpolicy import Estimate, LoggedLists, snips

SHADOW_METRIC = "ndcg@10"


class Quality(NamedTuple):
    """Ranking quality on clicked lists. live, shadow: mean ndcg@10. difference: shadow minus live, paired by list."""

    live: float
    shadow: float
    difference: Difference


class Comparison(NamedTuple):
    """A shadow release compared with the live one.

    live: releases that were live for these lists. lists: number of lists scored by both. correlation: 5%, 50% and 95%
    quantiles of the correlation of all candidates' scores. overlap: mean share of common items in the first ten.
    ms: median and 95th percentile of the latency, live and then shadow. quality: None until two users have clicked.
    worth: estimated gain of the first ten positions, for `live` and `shadow`, from lists with propensities; empty
    without such lists.
    """

    release: str
    live: tuple[str, ...]
    lists: int
    correlation: tuple[float, float, float]
    overlap: float
    ms: tuple[tuple[float, float], tuple[float, float]]
    quality: Quality | None
    worth: Mapping[str, Estimate]


def compare_shadow(
    directory: Path,
    release: str | None = None,
    attributes: Mapping[str, AttributeKind] | None = None,
    attribution_s: float = ATTRIBUTION_S,
    log: str | None = None,
) -> Comparison:
    """Compare a shadow release, by default the latest one, on the collected lists. Raises DataError if there are none.

    attributes, attribution_s: as the nightly run reads the data set and attributes clicks. log: as in `dataset.load`.
    """
    files = LogFiles.of(directory, log)
    served = files.read_served()
    served = served.filter(pc.is_valid(served["shadow"])).sort_by("at")
    if release is None and len(served):
        release = str(served["shadow"][-1].as_py())
    served = served.filter(pc.equal(served["shadow"], pa.scalar(release, pa.string())))
    if release is None or not len(served):
        raise DataError(
            f"{directory / 'served'}: no list was scored by {release or 'a shadow release'}. Start one with `shelfwise "
            "releases shadow ID`, let the service answer requests, then run `shelfwise collect`"
        )
    correlation = served["shadow_correlation"].drop_null().to_numpy()
    low, middle, high = np.quantile(correlation, (0.05, 0.5, 0.95)).tolist() if len(correlation) else [float("nan")] * 3
    live_ms, shadow_ms = (
        tuple(np.quantile(served[name].to_numpy(), (0.5, 0.95)).tolist()) for name in ("live_ms", "shadow_ms")
    )
    data = load_dataset(directory, attributes, files)
    lists, positions = _list_positions(served, data, attribution_s)
    return Comparison(
        release,
        tuple(pc.unique(served["release"]).to_pylist()),
        len(served),
        (low, middle, high),
        float(np.mean(served["shadow_overlap"].to_numpy())),
        (live_ms, shadow_ms),
        _quality(lists, positions),
        _estimated_gain(lists, positions, data),
    )


def _list_positions(served: pa.Table, data: Dataset, attribution_s: float) -> tuple[Lists, tuple[I64, I64]]:
    """(lists with their gains; positions of their rows, from 0, by live and by shadow scores, int64[rows] each)."""
    scores = {
        row["request_id"]: dict(zip(row["item_ids"], zip(row["score"], row["shadow_score"], strict=True), strict=True))
        for row in served.select(["request_id", "item_ids", "score", "shadow_score"]).to_pylist()
    }
    lists = logged_lists(data.shown, attribution_s, merges=data.merges)
    lists = lists.take(np.flatnonzero([r in scores for r in lists.request_ids]))
    ids, missing = data.catalogue.item_ids, (np.nan, np.nan)
    both = [
        scores[lists.request_ids[g]].get(ids[item], missing)
        for g, item in zip(lists.group.tolist(), lists.item.tolist(), strict=True)
    ]
    live, shadow = np.array(both, np.float64).reshape(-1, 2).T
    return lists, (_positions(live, lists), _positions(shadow, lists))


def _positions(score: F64, lists: Lists) -> I64:
    """Position of each row by descending score, NaN last, ties by item, as the service ranks."""
    missing = np.isnan(score)
    order = np.lexsort((lists.item, np.where(missing, 0, -score), missing, lists.group))
    out = np.empty(len(score), np.int64)
    out[order] = np.arange(len(score)) - lists.start[lists.group]
    return out


def _quality(lists: Lists, positions: tuple[I64, I64]) -> Quality | None:
    """Mean metric of both releases; None until two users have clicked."""
    ties = tie_break(lists.item, lists.start)
    live, shadow = (score_lists(SHADOW_METRIC, -p.astype(float), lists.gain, lists.start, ties) for p in positions)
    clicked = ~np.isnan(live)
    if len(np.unique(lists.user[clicked])) < 2:
        return None
    difference = paired_difference(shadow, live, lists.user)
    return Quality(float(live[clicked].mean()), float(shadow[clicked].mean()), difference)


def _estimated_gain(lists: Lists, positions: tuple[I64, I64], data: Dataset) -> dict[str, Estimate]:
    """SNIPS estimates for `live` and `shadow`, from the lists with a propensity for every position."""
    if data.propensities is None or not len(lists):
        return {}
    propensities = data.propensities.of(lists.request_ids)
    numbers, propensity = off_policy.complete_lists(lists, propensities, data.catalogue.item_ids)
    rows = np.isin(lists.group, numbers)
    complete, out = lists.take(numbers), {}
    shown = complete.position.astype(np.int64)
    logged = LoggedLists(complete.start, complete.gain, shown, propensity, complete.user)
    for name, position in zip(("live", "shadow"), (p[rows] for p in positions), strict=True):
        if ((position == shown) & (position < off_policy.K)).any():
            out[name] = snips(logged, position, off_policy.K)
    return out


def to_json(comparison: Comparison) -> dict[str, Any]:
    """All values of a comparison, as JSON values."""
    quality = comparison.quality
    return comparison._asdict() | {
        "quality": quality and quality._asdict() | {"difference": vars(quality.difference)},
        "worth": {name: vars(estimate) for name, estimate in comparison.worth.items()},
    }
