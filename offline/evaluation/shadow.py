"""A release in shadow against the live one, on what the service answered: how alike, how fast, and which was right.

The service scores a share of its lists by both. Of each the log has the correlation over all candidates, the places
that the first ten share, both times, and both scores of the items that were shown; clicks come later, by the list's
request id. Which was right is told on shown items alone: what only the release in shadow would have shown, nobody saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, I64
from features.log import Lists
from offline.config import AttributeKind
from offline.data import Dataset, LogFiles, load_dataset, logged_lists
from offline.evaluation import off_policy
from offline.runtime import DataError
from ranker.metrics import Difference, paired_difference, score_lists, tie_break
from ranker.offpolicy import Estimate, LoggedLists, snips

SHADOW_METRIC = "ndcg@10"


class Quality(NamedTuple):
    """Which release ordered clicked lists better. live, shadow: mean ndcg@10; difference: shadow less live."""

    live: float
    shadow: float
    difference: Difference


class Comparison(NamedTuple):
    """lists: how many were scored by both. correlation: of the scores of all candidates, quantiles 5, 50 and 95 %.
    overlap: mean share of the first ten in common. ms: the middle and the 95th percentile, live, then in shadow.

    quality: None before two shoppers have clicked. worth: estimated gain of the first ten places of the live order and
    of that in shadow, from lists whose order was partly left to chance; empty where none was.
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
    attribution_s: float = 86400.0,
    log: str | None = None,
) -> Comparison:
    """What was collected of a release in shadow, by default the last one. Raises DataError where that is nothing.

    attributes, attribution_s: as the night reads the data set and joins clicks to lists. log: as in `dataset.load`.
    """
    files = LogFiles.of(directory, log)
    served = files.read_served()
    served = served.filter(pc.is_valid(served["shadow"])).sort_by("at")
    if release is None and len(served):
        release = str(served["shadow"][-1].as_py())
    served = served.filter(pc.equal(served["shadow"], pa.scalar(release, pa.string())))
    if release is None or not len(served):
        raise DataError(
            f"{directory / 'served'}: no list was scored by {release or 'a release in shadow'}; put one there with "
            "`shelfwise releases shadow ID`, let the service answer, and run `shelfwise collect`"
        )
    known = served["shadow_correlation"].drop_null().to_numpy()
    low, middle, high = np.quantile(known, (0.05, 0.5, 0.95)).tolist() if len(known) else [float("nan")] * 3
    live_ms, ms = (
        tuple(np.quantile(served[name].to_numpy(), (0.5, 0.95)).tolist()) for name in ("live_ms", "shadow_ms")
    )
    data = load_dataset(directory, attributes, files)
    lists, placed = _place_lists(served, data, attribution_s)
    return Comparison(
        release,
        tuple(pc.unique(served["release"]).to_pylist()),
        len(served),
        (low, middle, high),
        float(np.mean(served["shadow_overlap"].to_numpy())),
        (live_ms, ms),
        _quality(lists, placed),
        _worth(lists, placed, data),
    )


def _place_lists(served: pa.Table, data: Dataset, attribution_s: float) -> tuple[Lists, tuple[I64, I64]]:
    """The lists with what came of them; int64[rows], the place from 0 that the live release gives each item of what was
    shown, and the one in shadow."""
    of = {
        row["request_id"]: dict(zip(row["item_ids"], zip(row["score"], row["shadow_score"], strict=True), strict=True))
        for row in served.select(["request_id", "item_ids", "score", "shadow_score"]).to_pylist()
    }
    lists = logged_lists(data.shown, attribution_s)
    lists = lists.take(np.flatnonzero([r in of for r in lists.request_ids]))
    ids, nothing = data.catalogue.item_ids, (np.nan, np.nan)
    both = [
        of[lists.request_ids[g]].get(ids[item], nothing)
        for g, item in zip(lists.group.tolist(), lists.item.tolist(), strict=True)
    ]
    live, shadow = np.array(both, np.float64).reshape(-1, 2).T
    return lists, (_place(live, lists), _place(shadow, lists))


def _place(score: F64, lists: Lists) -> I64:
    """Best first, NaN last, equal scores by id, as the service ranks."""
    missing = np.isnan(score)
    order = np.lexsort((lists.item, np.where(missing, 0, -score), missing, lists.group))
    out = np.empty(len(score), np.int64)
    out[order] = np.arange(len(score)) - lists.start[lists.group]
    return out


def _quality(lists: Lists, placed: tuple[I64, I64]) -> Quality | None:
    ties = tie_break(lists.item, lists.start)
    live, shadow = (score_lists(SHADOW_METRIC, -place.astype(float), lists.gain, lists.start, ties) for place in placed)
    clicked = ~np.isnan(live)
    if len(np.unique(lists.user[clicked])) < 2:
        return None
    difference = paired_difference(shadow, live, lists.user)
    return Quality(float(live[clicked].mean()), float(shadow[clicked].mean()), difference)


def _worth(lists: Lists, placed: tuple[I64, I64], data: Dataset) -> dict[str, Estimate]:
    """By self-normalised propensities, on the lists that have one for each place."""
    if data.propensities is None or not len(lists):
        return {}
    numbers, chance = off_policy.complete_lists(lists, data.propensities.of(lists.request_ids), data.catalogue.item_ids)
    rows = np.isin(lists.group, numbers)
    judged, out = lists.take(numbers), {}
    seen = LoggedLists(judged.start, judged.gain, judged.position.astype(np.int64), chance, judged.user)
    for name, place in zip(("live", "shadow"), (p[rows] for p in placed), strict=True):
        if ((place == judged.position) & (place < off_policy.K)).any():
            out[name] = snips(seen, place, off_policy.K)
    return out


def to_json(found: Comparison) -> dict[str, Any]:
    """All figures, as JSON values."""
    quality = found.quality
    return found._asdict() | {
        "quality": quality and quality._asdict() | {"difference": vars(quality.difference)},
        "worth": {name: vars(estimate) for name, estimate in found.worth.items()},
    }
