"""A list that was made, before it becomes an answer; and the mix of two of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F64
from features.context import Context
from features.retrieval import Retrieved
from serving.experiments import draft
from serving.ranking.lists.known import Known
from serving.ranking.lists.treatment import Treatment
from serving.ranking.ranking import Ranking
from serving.rules import Applied, Plan, Removed


class Made(NamedTuple):
    """A list as one treatment makes it.

    candidates: those that were ranked; None for the whole catalogue. plan: the rules. whole: the ranking of all
    candidates, before anything else. ranking: the list. applied: the effects of rules on its items, None without rules.
    removed: the items that rules and variants left out. propensity: of each position, None without exploration.
    live_ms: milliseconds that the ranking took. sampled, shadowed: whether to log it with all candidates, and with
    scores of the shadow release. found: what was retrieved; None for given candidates.
    """

    treatment: Treatment
    known: Known
    candidates: list[str] | None
    context: Context
    plan: Plan | None
    whole: Ranking
    ranking: Ranking
    applied: Sequence[list[Applied]] | None
    removed: list[Removed] | None
    propensity: F64 | None
    live_ms: float
    sampled: bool
    shadowed: bool
    found: Retrieved | None = None

    def only(self, item_ids: Sequence[str]) -> Made:
        """The list with these of its items only, in this order."""
        place = {item_id: k for k, item_id in enumerate(self.ranking.item_ids)}
        chosen = np.array([place[item_id] for item_id in item_ids], np.int64)
        applied = None if self.applied is None else [self.applied[k] for k in chosen.tolist()]
        return self._replace(ranking=self.ranking.take(chosen), applied=applied, propensity=None)


class Mixed(NamedTuple):
    """Two lists mixed by team draft. parts: each with the items that it gives to the mix, in order.

    item_ids: the mix. part: of each item, the list that it is from. teams: the arm that chose it, None for neither.
    """

    parts: tuple[Made, Made]
    item_ids: list[str]
    part: list[int]
    teams: list[str | None]


def mixed(one: Made, other: Made, arms: tuple[str, str], limit: int | None, rng: np.random.Generator) -> Mixed:
    """Mix two lists of the same request. arms: their names. limit: maximum length; None for that of the longer list.

    An item that rules pin to the same position of both stays there.
    """
    lists = one.ranking.item_ids, other.ranking.item_ids
    drafted = draft(lists, limit or max(map(len, lists)), rng, _pinned(one, other))
    part = [0 if team is None else team for team in drafted.teams]
    chosen = list(zip(drafted.item_ids, part, strict=True))
    parts = (one.only([i for i, p in chosen if p == 0]), other.only([i for i, p in chosen if p == 1]))
    return Mixed(parts, drafted.item_ids, part, [None if t is None else arms[t] for t in drafted.teams])


def _pinned(one: Made, other: Made) -> dict[int, str]:
    """The items that rules pin to the same position of both lists, by position."""
    if one.plan is None or other.plan is None:
        return {}
    pins = {pin.position: pin.item_id for _, pin in one.plan.pins}
    a, b = one.ranking.item_ids, other.ranking.item_ids
    return {k: i for k, i in pins.items() if k < min(len(a), len(b)) and a[k] == b[k] == i}
