"""A ranking: ordered candidates with scores and feature rows, before it becomes a response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from ranker.calibration import Outcome


class Valued(NamedTuple):
    """The findings and changes of an objective, per item of a ranking.

    probability: by outcome. amount: the value of the item. assumed: whether the item has none, so that the median of
    the catalogue was used. relevance, value: the two parts of the weighted sum, with their weights. expected: the
    expected amount per shown list position, in the unit of the value. added: the change of the score. below_floor: see
    `ranker.rerank.Blend`.
    """

    probability: Mapping[Outcome, F64]
    amount: F64
    assumed: Bool
    relevance: F64
    value: F64
    expected: F64
    added: F64
    below_floor: Bool

    def take(self, order: I64) -> Valued:
        """The same items in another order."""
        return Valued(
            {outcome: p[order] for outcome, p in self.probability.items()},
            self.amount[order],
            self.assumed[order],
            self.relevance[order],
            self.value[order],
            self.expected[order],
            self.added[order],
            self.below_floor[order],
        )


class Ranking(NamedTuple):
    """Items best first, equal scores by item id.

    item: int32[k], catalogue rows. score: float64[k]. rows: float32[k, features]. query_bonus: float64[k], the part of
    the score for matching the query, added if the ranker was trained without queries. unknown: number of candidates
    that are not in the catalogue, whether or not they are among the items. seed_bonus: float64[k], the same for going
    with the items of the request, added if the ranker was trained without these; None if it was not. valued: the
    effects of an objective, None without one.
    """

    item_ids: list[str]
    item: I32
    score: F64
    rows: F32
    query_bonus: F64
    unknown: int = 0
    seed_bonus: F64 | None = None
    valued: Valued | None = None

    def take(self, order: I64) -> Ranking:
        """The same items in another order."""
        return Ranking(
            [self.item_ids[k] for k in order.tolist()],
            self.item[order],
            self.score[order],
            self.rows[order],
            self.query_bonus[order],
            self.unknown,
            None if self.seed_bonus is None else self.seed_bonus[order],
            None if self.valued is None else self.valued.take(order),
        )

    def first(self, limit: int | None) -> Ranking:
        """The first `limit` items; all if it is None."""
        if limit is None or limit >= len(self.item_ids):
            return self
        return self.take(np.arange(limit))
