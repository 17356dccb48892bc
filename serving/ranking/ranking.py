"""A ranking: candidates in order with their scores, before it becomes an answer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64


class Ranking(NamedTuple):
    """Items best first, equal scores by id. item: int32[k]. score: float64[k]. rows: float32[k, features].

    query_bonus: float64[k], what of the score is there for matching a query of which the ranker has learned nothing.
    """

    item_ids: list[str]
    item: I32
    score: F64
    rows: F32
    query_bonus: F64

    def take(self, order: I64) -> Ranking:
        """The same items in another order."""
        return Ranking(
            [self.item_ids[k] for k in order.tolist()],
            self.item[order],
            self.score[order],
            self.rows[order],
            self.query_bonus[order],
        )

    def first(self, limit: int | None) -> Ranking:
        """At most `limit` of them; all where it is None."""
        if limit is None or limit >= len(self.item_ids):
            return self
        return self.take(np.arange(limit))
