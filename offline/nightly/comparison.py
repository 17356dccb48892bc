"""Comparison of two releases on the same held-out lists: scores, and ndcg@10 by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrays import F32, F64, I32, I64
from features.log import Lists
from features.replay import Replay
from features.sequence import SequenceModel
from features.text.vocabulary import Vocabulary
from offline.data import Targets
from offline.evaluation import BASELINES, order_of, served_scores, systems
from ranker.booster import BoosterTrees
from ranker.metrics import tie_break
from ranker.trees import Trees
from serving.release import Release

Mask = NDArray[np.bool_]


class HeldOut(NamedTuple):
    """Held-out lists and what the gate needs to compare releases on them.

    random: float64[lists], ndcg@10 of a random order. simple: the same by name of every other simple order. of_lists,
    of_targets: bool[lists] and bool[targets], membership in each slice. examination_probability: float64[targets], at
    the position of each target. kind: of the lists, logged or rebuilt; empty if unknown.
    """

    lists: Lists
    targets: Targets
    random: F64
    simple: Mapping[str, F64]
    of_lists: Mapping[str, Mask]
    of_targets: Mapping[str, Mask]
    examination_probability: F64
    kind: str = ""


def score_with_live(live: Release, replay: Replay, lists: Lists) -> F64:
    """float64[rows]: scores of the live release for the candidates of these lists, at the time of each list."""
    live_row = live.items.catalogue.rows(list(replay.catalogue.item_ids))  # -1 is the unknown item, which has no vector
    vectors = live.items.vectors
    if len(lists.columns):
        # A column of the same name that was declared otherwise, such as a category with other values, has other codes.
        known = np.array([column in live.items.columns for column in replay.columns])
        lists = replace(lists, columns=np.where(known[:, None], lists.columns, np.float32(np.nan)))
    live_vectors: F32 = (vectors.code[live_row].astype(np.float32) * vectors.scale[live_row, None]).astype(np.float32)
    model = live.items.sequence and live.items.sequence.of_rows(live_row)
    return score_with_vectors(live.trees, live_vectors, replay, lists, live.items.words, model)


def score_with_vectors(
    trees: Trees | BoosterTrees,
    vectors: F32,
    replay: Replay,
    lists: Lists,
    words: Vocabulary | None,
    model: SequenceModel | None,
) -> F64:
    """float64[rows]: scores of the trees on rows computed with the given item vectors, as the service gives them.

    vectors: float32[n, d], NaN for an item without one. words: a vocabulary with the word vectors of the same encoder;
    None for those of the items. model: the sequence model of these trees, None if they have none. Everything else is as
    of the time of each list.
    """
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
        retention=replay.retention,
        columns=replay.columns,
        seeds=replay.seeds,
        vocabulary=None if words is None else Vocabulary.without_vectors(replay.catalogue).with_vectors_of(words),
        sequence_models=((-np.inf, model),) if model else (),
    )
    matched = _match_by_name(trees, [f.name for f in own.features], own.rows(lists))
    return served_scores(trees, matched, lists)


def _match_by_name(trees: Trees | BoosterTrees, columns: Sequence[str], rows: F32) -> F32:
    """float32[n, features]: rows with the columns of the trees, by name; a feature without a column is NaN."""
    at = {name: k for k, name in enumerate(columns)}
    matched = np.full((len(rows), len(trees.names)), np.nan, np.float32)
    for column, name in enumerate(trees.names):
        if name in at:
            matched[:, column] = rows[:, at[name]]
    return matched


def ndcg_by_slice(new: F64, old: F64, held_out: HeldOut, comparable: Mask) -> dict[str, tuple[F64, F64]]:
    """ndcg@10 of two scores by slice, weighted by inverse propensity: float64[lists] of each, NaN outside the slice.

    The mean over the lists of a slice is its ndcg@10. Clicks are divided by their examination probability, because the
    live release decided the positions, and clicks at the top would count in its favour. new, old: float64[rows].
    comparable: bool[lists], the lists to compare on.
    """
    orders = [_order(score, held_out.lists) for score in (new, old)]

    def both(of_lists: Mask, part: Mask | None = None) -> tuple[F64, F64]:
        values = [systems.debiased_ndcg(o, held_out.targets, held_out.examination_probability, part) for o in orders]
        (a, weight), (b, _) = values
        used = comparable & of_lists & ~np.isnan(a)
        scaled_weight = np.where(used, weight, np.nan) / (weight[used].mean() if used.any() else 1.0)
        return a * scaled_weight, b * scaled_weight

    all_lists = np.ones(len(held_out.lists), bool)
    return (
        {"all": both(all_lists)}
        | {name: both(mask) for name, mask in held_out.of_lists.items()}
        | {name: both(all_lists, part) for name, part in held_out.of_targets.items()}
    )


def ndcg(score: F64, lists: Lists, targets: Targets) -> F64:
    """float64[lists]: ndcg@10 of a score, float64[rows]."""
    return systems.per_list(_order(score, lists), targets, (systems.PRIMARY,))[systems.PRIMARY]


def ndcg_of_baselines(baselines: I32, targets: Targets) -> dict[str, F64]:
    """Baseline -> float64[lists]: its ndcg@10. A list that it cannot score has the random order, as in the report.

    baselines: int32[lists, BASELINES, DEPTH], from `Baselines.best`. Baselines that can score no list are left out.
    """
    random = baselines[:, BASELINES.index("random")]
    has_order: Mask = np.asarray((baselines >= 0).any(axis=2))
    return {
        name: systems.per_list(np.where(has_order[:, k, None], baselines[:, k], random), targets, (systems.PRIMARY,))[
            systems.PRIMARY
        ]
        for k, name in enumerate(BASELINES)
        if has_order[:, k].any()
    }


def _order(score: F64, lists: Lists) -> Any:
    return order_of(score, lists.item, lists.start, tie_break(lists.item, lists.start))


def comparable_lists(lists: Lists, live: Release) -> I64:
    """int64: numbers of the lists that the live release cannot have been trained on, by the windows in its manifest."""
    begin = live.manifest.window.get("test", {}).get("from")
    since = datetime.fromisoformat(begin).timestamp() if begin else live.manifest.cut_off
    return np.flatnonzero(lists.at >= since)


def write_scores(path: Path, lists: Lists, item_ids: Sequence[str], new: F64, live: F64 | None) -> None:
    """Write both releases' scores of every candidate of the test lists as Parquet."""
    missing = np.full(len(new), np.nan)
    pq.write_table(
        pa.table(
            {
                "request_id": [lists.request_ids[g] for g in lists.group.tolist()],
                "item_id": [item_ids[i] for i in lists.item.tolist()],
                "gain": lists.gain,
                "new": new,
                "live": missing if live is None else live,
            }
        ),
        path,
    )
