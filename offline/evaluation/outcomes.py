"""Scores of held-out lists as the service gives them, and reliability of the probabilities of outcomes by slice.

The lists are shown ones, with and without gain: without those that nobody clicked, every probability would be too high.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I64
from features.context import Context
from features.log import Lists
from features.replay import Replay
from features.table import rows
from offline.evaluation.systems import SMALL, Mask, has_history
from offline.runtime import OnProgress
from ranker import query_prior
from ranker.booster import BoosterTrees
from ranker.calibration import OUTCOMES, Maps, calibration, probabilities
from ranker.trees import Trees

MOST = 2000
"""Limit on the lists of a window. Each has to be replayed."""
_CERTAIN = 1e-12
"""Distance of a probability from 0 and 1 in the log loss, which is infinite for a certain prediction that is wrong."""


class ScoredLists(NamedTuple):
    """Lists with the scores of a ranker. score: float64[rows]. warm: bool[lists], True if the user had a history."""

    lists: Lists
    score: F64
    warm: Mask

    def take(self, numbers: I64) -> ScoredLists:
        """The lists with these numbers, ascending."""
        kept = np.isin(np.arange(len(self.lists)), numbers)
        return ScoredLists(self.lists.take(numbers), self.score[kept[self.lists.group]], self.warm[numbers])


def served_scores(trees: Trees | BoosterTrees, table: F32, lists: Lists, score: F64 | None = None) -> F64:
    """float64[rows]: scores of lists as the service gives them, with bonuses for a query or seeds that trees ignore.

    table: float32[rows, features]. score: of the trees, if it is known.
    """
    searched = np.array([bool(text) for text in lists.query], bool)
    seeded = np.zeros(len(lists), bool)
    if len(lists.seeds):
        seeded |= (lists.seeds >= 0).any(axis=1)
    score = trees.score(table) if score is None else score
    return query_prior.with_bonuses(trees.names, trees.used_columns, table, score, lists.start, searched, seeded)


def served_score(trees: Trees | BoosterTrees, table: F32, context: Context) -> F64:
    """The same for the rows of one list."""
    start, of_request = np.array([0, len(table)]), (bool(context.query), bool((context.seeds >= 0).any()))
    searched, seeded = (np.array([one]) for one in of_request)
    return query_prior.with_bonuses(trees.names, trees.used_columns, table, trees.score(table), start, searched, seeded)


def score_shown(
    replay: Replay, lists: Lists, trees: tuple[Trees, Trees], since: float, on_progress: OnProgress
) -> ScoredLists:
    """Lists scored as of their time, which must be ascending.

    trees: of the ranker that was not trained on the lists before `since`, and of the final one, which was.
    """
    score, warm = np.empty(lists.rows), np.empty(len(lists), bool)
    for r in replay.snapshots(lists):
        table = rows(r.items, r.history, r.candidates, r.at, r.context)
        score[lists.start[r.number] : lists.start[r.number + 1]] = served_score(trees[r.at >= since], table, r.context)
        warm[r.number] = has_history(r)
        if r.number % 64 == 63:
            on_progress(r.number + 1, len(lists))
    return ScoredLists(lists, score, warm)


def thin(numbers: I64, most: int = MOST) -> I64:
    """At most `most` of the numbers, evenly spaced."""
    return numbers if len(numbers) <= most else numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)]


def reliability(maps: Maps, scored: ScoredLists, of_lists: Mapping[str, Mask]) -> dict[str, dict[str, Any]]:
    """Outcome -> slice -> `lists`, `rows`, `predicted` and `observed` (means), `error`, `log_loss` and `bins`.

    of_lists: bool[lists] by slice; a slice of fewer than `systems.SMALL` lists is left out, unless it is `all`. error:
    the expected calibration error, see `ranker.calibration.Calibration`. log_loss: mean over rows, in nats, and
    `log_loss_of_rate`, that of the observed share as the probability of every row.
    """
    found = probabilities(maps, scored.score)
    kept = {name: mask for name, mask in of_lists.items() if mask.any() and (name == "all" or mask.sum() >= SMALL)}
    return {
        outcome: {
            name: {"lists": int(mask.sum())} | _fit(found[outcome], scored.lists.gain > least, mask[scored.lists.group])
            for name, mask in kept.items()
        }
        for least, outcome in enumerate(OUTCOMES)
        if outcome in maps
    }


def _fit(probability: F64, occurred: NDArray[np.bool_], part: Mask) -> dict[str, Any]:
    p, y = probability[part], occurred[part]
    found = calibration(p, y)
    bins = zip(found.predicted.tolist(), found.observed.tolist(), found.rows.tolist(), strict=True)
    return {
        "rows": len(p),
        "predicted": float(p.mean()),
        "observed": float(y.mean()),
        "error": found.error,
        "log_loss": log_loss(p, y),
        "log_loss_of_rate": log_loss(np.full(len(p), y.mean()), y),
        "bins": [{"predicted": a, "observed": b, "rows": n} for a, b, n in bins],
    }


def log_loss(probability: F64, occurred: NDArray[np.bool_]) -> float:
    """Mean of -log of the probability of what happened, in nats."""
    p = probability.clip(_CERTAIN, 1 - _CERTAIN)
    return float(-np.where(occurred, np.log(p), np.log1p(-p)).mean())
