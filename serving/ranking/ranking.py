"""A ranking: ordered candidates with scores and feature rows, before it becomes a response."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32, I64


class Ranking(NamedTuple):
    """Items best first, equal scores by item id.

    item: int32[k], catalogue rows. score: float64[k]. rows: float32[k, features]. query_bonus: float64[k], the part of
    the score for matching the query, added if the ranker was trained without queries. unknown: number of candidates
    that are not in the catalogue, whether or not they are among the items. seed_bonus: float64[k], the same for going
    with the items of the request, added if the ranker was trained without these; None if it was not.
    """

    item_ids: list[str]
    item: I32
    score: F64
    rows: F32
    query_bonus: F64
    unknown: int = 0
    seed_bonus: F64 | None = None

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
        )

    def first(self, limit: int | None) -> Ranking:
        """The first `limit` items; all if it is None."""
        if limit is None or limit >= len(self.item_ids):
            return self
        return self.take(np.arange(limit))
