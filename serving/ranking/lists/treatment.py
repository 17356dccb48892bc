"""One way to make a list: the release that ranks it, and what the arms of the request change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from features.arrays import F64
from features.retrieval import recent_popularity
from serving.config import ArmConfig
from serving.experiments import Key
from serving.ranking.explanation import Reason, ScoreParts
from serving.ranking.live import Live, first_places
from serving.ranking.objective import Objective, by_score
from serving.ranking.placements import Placement
from serving.ranking.ranking import Ranking
from serving.rules import Applied

Order = Literal["shown", "popularity"]
_TEXTS = {"shown": "the order in which the candidates were sent", "popularity": "the most popular first"}


class Treatment(NamedTuple):
    """Release and settings that make a list.

    arms: that apply. placement: with the exploration of the arms. objective: None without one. order: in place of the
    ranker's; None for the ranker's.
    """

    live: Live
    arms: tuple[Key, ...]
    placement: Placement
    objective: Objective | None
    order: Order | None

    @classmethod
    def of(
        cls,
        keys: tuple[Key, ...],
        configs: Sequence[ArmConfig],
        placement: Placement,
        live: Live,
        live_of: Callable[[str], Live | None],
    ) -> Treatment:
        """The treatment of some arms. configs: of `keys`. live: the release without arms. live_of: another one."""
        release = next((c.release for c in configs if c.release is not None), None)
        # Loaded when the arms were assigned, and nothing was awaited that could have dropped it.
        chosen = live if release is None else live_of(release) or live
        objective = None if placement.name is None else chosen.objectives.get(placement.name)
        for key in keys:
            if key in chosen.arms.objectives:
                objective = chosen.arms.objectives[key]
        explore = next((c.explore for c in configs if c.explore is not None), None)
        if explore is not None:
            placement = placement._replace(config=placement.config.model_copy(update={"explore": explore}))
        order = next((c.order for c in configs if c.order is not None), None)
        return cls(chosen, keys, placement, None if order else objective, order)


def ordered(ranking: Ranking, order: Order, live: Live, ids: Sequence[str] | None, at: float) -> Ranking:
    """The ranking in another order, with scores that fall with it; equal ones by item ID.

    The score is the popularity of the item, or for `shown` the place among the candidates, from 0, with a minus.
    ids: the candidates as they were sent.
    """
    score: F64
    if order == "popularity":
        score = recent_popularity(live.items, ranking.item, at)
    else:
        assert ids is not None
        score = -first_places(list(ids), ranking.item_ids).astype(np.float64)
    return ranking._replace(score=score).take(by_score(score, ranking.item_ids))


def order_parts(score: F64, applied: Sequence[list[Applied]] | None, order: Order) -> list[ScoreParts]:
    """The parts of scores of `ordered` after rules. score: float64[k]. applied: the effects of the rules."""
    added = [0.0] * len(score) if applied is None else [sum(one.added or 0.0 for one in rules) for rules in applied]
    values = [value - of_rules for value, of_rules in zip(score.tolist(), added, strict=True)]
    return [ScoreParts(0.0, [Reason(f"order.{order}", value, _TEXTS[order])], 0.0) for value in values]
