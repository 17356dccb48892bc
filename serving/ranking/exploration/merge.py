"""Merging explored items into a list: each at a gap drawn on its own, with exact propensities.

The other items keep their order, and lose at most as many positions as items are explored. Because the gaps are drawn
independently, the number of explored items above another is a sum of independent draws (Poisson binomial), and the
probability of every item at every position follows without sampling.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F64, I64


class Merge(NamedTuple):
    """The distribution of a list of n items, with m others merged into it.

    gap: float64[m, n + 1], the probability of each of the m items to come after the first g of the n. above: float64[n,
    m + 1], of each of the n items, the probability of t of the m above it. between: float64[m, n + 1, m], the same of
    each of the m, counting the others of them, if it is at that gap. Items at the same gap keep their order.
    """

    gap: F64
    above: F64
    between: F64

    @classmethod
    def of(cls, gap: F64) -> Merge:
        """The distribution for independent gaps. gap: float64[m, n + 1], rows that add up to 1."""
        m, n = gap.shape[0], gap.shape[1] - 1
        at_most = np.cumsum(gap, axis=1)
        between = np.empty((m, n + 1, m))
        for e in range(m):
            # Of those at the same gap, the ones before it in the order of the m items are above it.
            others = [at_most[f] if f < e else at_most[f] - gap[f] for f in range(m) if f != e]
            between[e] = _count(others, n + 1)
        return cls(gap, _count(list(at_most[:, :n]), n), between)

    def expected(self, weight: F64, others: F64, merged: F64) -> float:
        """The expected sum of values times the weights of their positions.

        weight: float64[n + m]. others: float64[n], merged: float64[m], values of the items.
        """
        n, m = len(others), len(merged)
        shifted = weight[np.arange(n)[:, None] + np.arange(m + 1)]
        of_others = (others * (self.above * shifted).sum(axis=1)).sum()
        near = weight[np.arange(n + 1)[:, None] + np.arange(m)]
        of_merged = (merged * (self.gap * (self.between * near).sum(axis=2)).sum(axis=1)).sum()
        return float(of_others + of_merged)

    def probability(self, others: I64, merged: I64) -> tuple[F64, F64]:
        """float64[n], float64[m]: the probability of each item at its position. others: int64[n], merged: int64[m]."""
        n, m = len(others), len(merged)
        shift = others - np.arange(n)
        of_others = _at(self.above, np.arange(n), shift)
        gaps = np.arange(n + 1)
        of_merged = np.array(
            [(self.gap[e] * _at(self.between[e], gaps, merged[e] - gaps)).sum() for e in range(m)], np.float64
        )
        return of_others, of_merged


def positions(gap: I64, n: int) -> tuple[I64, I64]:
    """int64[n], int64[m]: positions of a list of n items and of the m merged into it. gap: int64[m], their gaps."""
    order = np.argsort(gap, kind="stable")
    merged = np.empty(len(gap), np.int64)
    merged[order] = gap[order] + np.arange(len(gap))
    return np.arange(n) + np.searchsorted(gap[order], np.arange(n), side="right"), merged


def _count(chances: list[F64], rows: int) -> F64:
    """float64[rows, k + 1]: distribution of the number of successes of k independent draws, given their chances."""
    out = np.zeros((rows, len(chances) + 1))
    out[:, 0] = 1.0
    for chance in chances:
        raised = out[:, :-1] * chance[:, None]
        out *= 1.0 - chance[:, None]
        out[:, 1:] += raised
    return out


def _at(table: F64, row: I64, column: I64) -> F64:
    """float64: entries of a table, 0 outside its columns."""
    inside = (column >= 0) & (column < table.shape[1])
    return np.where(inside, table[row, np.where(inside, column, 0)], 0.0)
