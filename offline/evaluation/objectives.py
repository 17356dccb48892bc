"""Trade-off of an objective: relevance against what the lists earn, by the weight of the value, on held-out lists.

Each weight orders the same test lists. Three kinds of figures say what the order is worth:

- observed: clicks and purchases at the top of the order, as they were logged. They are free of the model, but favour
  the order that was shown: an item at the top got more clicks there, and no items were bought that were not seen.
- expected: the same by the calibrated probabilities, with less noise, but only as good as the probabilities.
- off-policy: what the order would have got if it had been shown, where the log has propensities (`ranker.offpolicy`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from features.arrays import F64, I8, I64
from offline.evaluation.off_policy import K
from offline.evaluation.outcomes import ScoredLists
from offline.evaluation.systems import PRIMARY, SHOWN, Mask
from ranker.calibration import OUTCOMES
from ranker.metrics import intervals, score_lists, tie_break
from ranker.offpolicy import LoggedLists, doubly_robust, doubly_robust_change, places
from ranker.rerank import blend
from serving.ranking import Objective, Worth

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


Propensities = tuple[I64, F64]
"""int64: numbers of the lists with a propensity for every position, ascending; float64: propensities of their rows."""

Judged = tuple[ScoredLists, Propensities | None]


def part(scored: ScoredLists, logged: Propensities | None, mask: Mask) -> Judged:
    """Some of the lists, bool[lists], with their propensities; None if none of them has any."""
    numbers = np.flatnonzero(mask)
    if logged is None or not mask[logged[0]].any():
        return scored.take(numbers), None
    of_row = np.repeat(logged[0], np.diff(scored.lists.start)[logged[0]])
    found = np.searchsorted(numbers, logged[0][mask[logged[0]]])
    return scored.take(numbers), (found, logged[1][mask[of_row]])


def reordered(objective: Objective, scored: ScoredLists, worth: Worth, weight: float) -> F64:
    """float64[rows]: scores of the lists for the objective at a weight; at 0, those of the ranker."""
    if weight == 0:
        return scored.score
    out, start = np.empty(len(scored.score)), scored.lists.start.tolist()
    for one in map(slice, start[:-1], start[1:]):
        found = blend(scored.score[one], worth.relevance[one], worth.value[one], weight, objective.config.floor)
        out[one] = found.score
    return out


def trade_off(
    objective: Objective,
    scored: ScoredLists,
    amounts: Mapping[str, F64],
    weights: Sequence[float],
    seed: int,
    level: float,
    logged: Propensities | None = None,
) -> dict[str, Any]:
    """`lists`, `k` and `points` of an objective; a point has `weight`, and figures as `[value, low, high]`.

    Figures are means per list over its first `k` positions: `ndcg@10` (of lists with gain), `clicks`, and for each of
    `amounts` `earned:name`, the sum of that amount over the outcomes of the objective; all as observed. Those with
    the prefix `expected_` are by the probabilities, and `change_` is the difference from weight 0, in percent of it,
    paired by list. With propensities, `off_policy_` figures are doubly robust, in the gain of the same names, and so is
    their change. All intervals are over users, at `level`.

    amounts: float64[n + 1] by name, never missing. weights: evaluated besides `WEIGHTS`.
    """
    if not len(scored.lists):
        return {"lists": 0, "k": SHOWN, "points": []}
    lists, item = scored.lists, scored.lists.item
    worth, ties = objective.worth(scored.score, item), tie_break(item, lists.start)
    clicked, earning = _occurred(objective, lists.gain)
    figures = {"clicks": (clicked, worth.probability["click"])}
    for name, amount in amounts.items():
        figures[f"earned:{name}"] = (earning * amount[item], worth.chance * amount[item])
    columns: dict[tuple[float, str], F64] = {}
    estimates: dict[float, dict[str, list[float]]] = {}
    off_policy = _OffPolicy(scored, figures, level, logged) if logged else None
    for weight in sorted({*WEIGHTS, *weights}):
        order = reordered(objective, scored, worth, weight)
        place = places(order, lists.start, ties)
        columns[weight, PRIMARY] = score_lists(PRIMARY, order, lists.gain, lists.start, ties)
        for name, (observed, expected) in figures.items():
            columns[weight, name] = _at_top(observed, place, lists.start)
            columns[weight, f"expected_{name}"] = _at_top(expected, place, lists.start)
        estimates[weight] = off_policy.estimates(order, weight > 0) if off_policy else {}
    return {
        "lists": len(lists),
        "k": SHOWN,
        "points": [
            {"weight": weight, **by_name, **estimates[weight]}
            for weight, by_name in _with_intervals(columns, lists.user, seed, level).items()
        ],
    }


def _occurred(objective: Objective, gain: I8) -> tuple[F64, F64]:
    """float64[rows] each: clicks, and the outcomes of the objective that occurred, summed with their weights."""
    occurred = {outcome: (gain > least).astype(np.float64) for least, outcome in enumerate(OUTCOMES)}
    earning = np.zeros(len(gain))
    for outcome, weight in objective.config.outcomes.items():
        earning += weight * occurred[outcome]
    return occurred["click"], earning


def _at_top(values: F64, place: I64, start: I64) -> F64:
    """float64[lists]: sum of the values over the first positions of each list."""
    out: F64 = np.add.reduceat(np.where(place < SHOWN, values, 0.0), start[:-1])
    return out


def _with_intervals(
    columns: Mapping[tuple[float, str], F64], user: np.ndarray, seed: int, level: float
) -> dict[float, dict[str, list[float]]]:
    """Weight -> name -> [value, low, high], with the changes from weight 0."""
    keys = list(columns)
    table = np.column_stack([columns[key] for key in keys])
    changes = [(weight, name) for weight, name in keys if weight > 0]
    base = {name: np.nanmean(columns[0.0, name]) for _, name in changes}
    usable = [(w, name) for w, name in changes if base[name] > 0]
    table = np.column_stack(
        [table, *(100 * (columns[w, name] - columns[0.0, name]) / base[name] for w, name in usable)]
    )
    mean, low, high = (x.tolist() for x in intervals(table, user, seed=seed, level=level))
    out: dict[float, dict[str, list[float]]] = {}
    for k, (weight, name) in enumerate([*keys, *((w, f"change_{name}") for w, name in usable)]):
        out.setdefault(weight, {})[name] = [mean[k], low[k], high[k]]
    return out


class _OffPolicy:
    """Doubly robust estimates of the figures for orders of the lists with propensities."""

    def __init__(
        self, scored: ScoredLists, figures: Mapping[str, tuple[F64, F64]], level: float, logged: Propensities
    ) -> None:
        numbers, propensity = logged
        lists = scored.lists.take(numbers)
        self.start, self.level = lists.start, level
        self.kept = np.isin(np.arange(len(scored.lists)), numbers)[scored.lists.group]
        self.ties, position = tie_break(lists.item, lists.start), lists.position.astype(np.int64)
        self.figures = {
            name: (LoggedLists(lists.start, observed[self.kept], position, propensity, lists.user), expected[self.kept])
            for name, (observed, expected) in figures.items()
        }
        self.today = self._places(scored.score)

    def _places(self, order: F64) -> I64:
        return places(order[self.kept], self.start, self.ties)

    def estimates(self, order: F64, compared: bool) -> dict[str, list[float]]:
        """`off_policy_` figures of an order, and if compared, their `change_` from the order of the ranker."""
        place, out = self._places(order), dict[str, list[float]]()
        for name, (log, expected) in self.figures.items():
            found = doubly_robust(log, place, K, expected, level=self.level)
            out[f"off_policy_{name}"] = [found.value, found.low, found.high]
            change = doubly_robust_change(log, place, self.today, K, expected, self.level)
            if compared and not np.isnan(change[0]):
                out[f"change_off_policy_{name}"] = [100 * x for x in change]
        return out
