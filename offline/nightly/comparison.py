"""Two releases compared on the same held-out lists: scores, ndcg@10 by slice, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrays import F32, F64, I64
from features.log import Lists
from features.replay import Replay
from offline.data import Targets
from offline.evaluation import order_of, systems
from ranker.booster import BoosterTrees
from ranker.metrics import tie_break
from ranker.trees import Trees
from serving.release import Release

Mask = NDArray[np.bool_]


class HeldOut(NamedTuple):
    """Held-out lists as the gate reads them. random: float64[lists], ndcg@10 of a random order. of_lists: bool[lists]
    and of_targets: bool[targets] by slice. examination_probability: float64[targets], the chance that
    each was looked at in its place."""

    lists: Lists
    targets: Targets
    random: F64
    of_lists: Mapping[str, Mask]
    of_targets: Mapping[str, Mask]
    examination_probability: F64


def score_with_live(live: Release, replay: Replay, lists: Lists) -> F64:
    """float64[rows]: what the live release gives each candidate of these lists, each list at its moment."""
    of_live = live.items.catalogue.rows(list(replay.catalogue.item_ids))  # -1, the unknown item, has no vector
    vectors = live.items.vectors
    held: F32 = (vectors.code[of_live].astype(np.float32) * vectors.scale[of_live, None]).astype(np.float32)
    return score_with_vectors(live.trees, held, replay, lists)


def score_with_vectors(trees: Trees | BoosterTrees, vectors: F32, replay: Replay, lists: Lists) -> F64:
    """float64[rows]: the score by these trees on rows of these vectors (float32[n, d], NaN for an item without), all
    else as of each list's moment."""
    unknown = np.full((1, vectors.shape[1]), np.nan, np.float32)
    own = Replay(
        replay.catalogue,
        np.vstack([vectors, unknown]),
        replay.events,
        replay.refresh_at,
        replay.custom,
        replay.session_weight,
        words=replay.words,
        given=replay.histories,
    )
    return score_by_name(trees, [f.name for f in own.features], own.rows(lists))


def score_by_name(trees: Trees | BoosterTrees, columns: Sequence[str], rows: F32) -> F64:
    """float64[n]: the score of rows whose columns are matched by name; a feature that is not among them is missing."""
    at = {name.replace(" ", "_"): k for k, name in enumerate(columns)}
    matched = np.full((len(rows), len(trees.names)), np.nan, np.float32)
    for column, name in enumerate(trees.names):
        if name in at:
            matched[:, column] = rows[:, at[name]]
    return trees.score(matched)


def ndcg_by_slice(new: F64, old: F64, judged: HeldOut, fair: Mask) -> dict[str, tuple[F64, F64]]:
    """float64[lists] of both scores (float64[rows]) by slice, whose means are ndcg@10; NaN for a list outside it.

    By what was clicked over the chance of a look: the live release put what it likes on top, where it is clicked more.
    fair: bool[lists], those to compare on.
    """
    orders = [_order(score, judged.lists) for score in (new, old)]

    def both(of_lists: Mask, part: Mask | None = None) -> tuple[F64, F64]:
        values = [systems.ips_ndcg(o, judged.targets, judged.examination_probability, part) for o in orders]
        (a, weight), (b, _) = values
        used = fair & of_lists & ~np.isnan(a)
        share = np.where(used, weight, np.nan) / (weight[used].mean() if used.any() else 1.0)
        return a * share, b * share

    every = np.ones(len(judged.lists), bool)
    return (
        {"all": both(every)}
        | {name: both(mask) for name, mask in judged.of_lists.items()}
        | {name: both(every, part) for name, part in judged.of_targets.items()}
    )


def ndcg(score: F64, lists: Lists, targets: Targets) -> F64:
    """float64[lists]: ndcg@10 of a score (float64[rows])."""
    return systems.per_list(_order(score, lists), targets, (systems.PRIMARY,))[systems.PRIMARY]


def _order(score: F64, lists: Lists) -> Any:
    return order_of(score, lists.item, lists.start, tie_break(lists.item, lists.start))


def comparable_lists(lists: Lists, live: Release) -> I64:
    """int64: numbers of the lists that the live release cannot have learnt from, by the windows it was made with."""
    begin = live.manifest.window.get("test", {}).get("from")
    since = datetime.fromisoformat(begin).timestamp() if begin else live.manifest.cut_off
    return np.flatnonzero(lists.at >= since)


def write_scores(path: Path, judged: Lists, item_ids: Sequence[str], new: F64, live: F64 | None) -> None:
    """Both releases' scores of every candidate of the test lists, side by side, as Parquet."""
    missing = np.full(len(new), np.nan)
    pq.write_table(
        pa.table(
            {
                "request_id": [judged.request_ids[g] for g in judged.group.tolist()],
                "item_id": [item_ids[i] for i in judged.item.tolist()],
                "gain": judged.gain,
                "new": new,
                "live": missing if live is None else live,
            }
        ),
        path,
    )
