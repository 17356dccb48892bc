"""Objectives of placements: what a list should earn, weighed against its relevance.

An objective is compiled for a release, which has the map from scores to probabilities, and its catalogue, which has the
value of each item. It changes the scores of a ranking before the rules. `ranker.rerank` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, I64, Bool
from features.catalogue import Catalogue
from ranker.calibration import Maps, Outcome, probabilities
from ranker.rerank import blend
from serving.api import ObjectivePart, RankedItem
from serving.config import ObjectiveConfig
from serving.ranking.ranking import Ranking, Valued
from serving.rules import RuleError


class Worth(NamedTuple):
    """The worth of candidates if they are shown. float64[m] each.

    probability: by outcome. chance: of the outcomes of the objective, summed with their weights. relevance, value: the
    probability of a click and the expected amount, relative to those of an average shown item. expected: the amount.
    """

    probability: Mapping[Outcome, F64]
    chance: F64
    relevance: F64
    value: F64
    expected: F64


@dataclass(frozen=True)
class Objective:
    """An objective for one release and its catalogue.

    amount: float64[n + 1], the value of each item, with the median of the catalogue in place of missing ones. assumed:
    bool[n + 1], whether it was missing; the last row is the unknown item. scale: the expected amount of an average
    shown item with a value of average size.
    """

    config: ObjectiveConfig
    maps: Maps
    amount: F64
    assumed: Bool
    scale: float

    @classmethod
    def of(cls, config: ObjectiveConfig, maps: Maps, catalogue: Catalogue, path: str) -> Objective:
        """Compile an objective. path: of the objective in the configuration.

        Raises RuleError if the release has no probability of an outcome that the objective needs, or if its catalogue
        has no such value.
        """
        needed: list[Outcome] = ["click", *config.outcomes]
        if missing := next((outcome for outcome in needed if outcome not in maps), None):
            raise RuleError(
                f"{path}.outcomes",
                f"the release has no probability of a {missing}: its log had too few, or it was made by an earlier "
                "version; use another outcome, or make a new release from a longer log",
            )
        amount, assumed = amounts(catalogue, config.value, path)
        size = float(np.abs(amount[:-1][~assumed[:-1]]).mean())
        rate = sum(weight * maps[outcome].rate for outcome, weight in config.outcomes.items())
        return cls(config, maps, amount, assumed, size * rate if size > 0 else 1.0)

    def worth(self, score: F64, item: I32) -> Worth:
        """The worth of candidates. score: float64[m], the ranker's. item: int32[m], catalogue rows, -1 outside it."""
        probability = probabilities(self.maps, score)
        chance = np.zeros(len(score))
        for outcome, weight in self.config.outcomes.items():
            chance += weight * probability[outcome]
        expected = chance * self.amount[item]
        relevance = probability["click"] / self.maps["click"].rate
        return Worth(probability, chance, relevance, expected / self.scale, expected)

    def apply(self, ranking: Ranking) -> Ranking:
        """The ranking with scores for the objective, and ordered by them; equal scores by item ID."""
        config, worth = self.config, self.worth(ranking.score, ranking.item)
        score, below = blend(ranking.score, worth.relevance, worth.value, config.weight, config.floor)
        valued = Valued(
            worth.probability,
            self.amount[ranking.item],
            self.assumed[ranking.item],
            (1.0 - config.weight) * worth.relevance,
            config.weight * worth.value,
            worth.expected,
            score - ranking.score,
            below,
        )
        order = by_score(score, ranking.item_ids)
        return ranking._replace(score=score, valued=valued).take(order)


def compile_objectives(
    configs: Mapping[str, ObjectiveConfig | None], maps: Maps, catalogue: Catalogue
) -> dict[str, Objective]:
    """The objectives of placements by name, without those of weight 0, which change nothing. Raises RuleError."""
    return {
        name: Objective.of(config, maps, catalogue, f"placements.{name}.objective")
        for name, config in configs.items()
        if config is not None and config.weight > 0
    }


def amounts(catalogue: Catalogue, value: str | float, path: str) -> tuple[F64, Bool]:
    """(float64[n + 1], bool[n + 1]): the value of each item, the median if it is missing, and whether it is.

    value: as in `ObjectiveConfig`. path: of the objective in the configuration. Raises RuleError if the catalogue has
    no such numeric attribute, or no item has a value.
    """
    n = len(catalogue)
    if not isinstance(value, str):
        return np.full(n + 1, float(value)), np.zeros(n + 1, np.bool_)
    found = catalogue.amounts(value)
    if found is None:
        names = ", ".join(catalogue.amount_names)
        raise RuleError(f"{path}.value", f"{value!r} is not a numeric attribute; those are {names}")
    assumed = np.isnan(found)
    if assumed.all():
        raise RuleError(f"{path}.value", f"no item has a value of {value!r}; use another attribute")
    return np.where(assumed, np.median(found[~assumed]), found), assumed


def by_score(score: F64, item_ids: Sequence[str]) -> I64:
    """int64: items best first, equal scores by ID."""
    order = np.argsort(-score, kind="stable")
    if (np.diff(score[order]) == 0).any():
        values = score.tolist()
        order = np.array(sorted(range(len(values)), key=lambda k: (-values[k], item_ids[k])), np.int64)
    return order


def objective_parts(items: Sequence[RankedItem], ranking: Ranking) -> None:
    """Set `objective` of the items of a response, which are those of the ranking, if it has one."""
    if (valued := ranking.valued) is None:
        return
    for k, item in enumerate(items):
        item.objective = ObjectivePart(
            float(valued.added[k]),
            float(valued.relevance[k]),
            float(valued.value[k]),
            {outcome: float(p[k]) for outcome, p in valued.probability.items()},
            float(valued.amount[k]),
            float(valued.expected[k]),
            bool(valued.assumed[k]),
            bool(valued.below_floor[k]),
        )
