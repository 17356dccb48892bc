"""Exploration: random swaps of neighbouring items with known propensities, for off-policy evaluation.

It is small on purpose: lists are not shuffled, and an item moves by at most one position. `ranker.offpolicy` uses the
propensities.
"""

from __future__ import annotations

import numpy as np

from features.arrays import F64, I64


def explore(length: int, share: float, rng: np.random.Generator) -> tuple[I64, F64]:
    """Draw the order in which to show a ranked list. Returns (order, propensity).

    order: int64[length], the ranker's position of the item shown at each position. propensity: float64[length] in
    (0, 1], the probability of that item at that position, over all lists. With probability `share` a list explores: it
    is cut into pairs starting at its first or second position (equally likely), and each pair is swapped with
    probability 1/2. So an item moves one position up with probability share/4, one down with share/4, and otherwise
    stays; items at the ends have only one neighbour.
    """
    order = np.arange(length)
    if rng.random() < share:
        first = np.arange(rng.integers(2), length - 1, 2)
        first = first[rng.random(len(first)) < 0.5]
        order[first], order[first + 1] = first + 1, first
    neighbours = (np.arange(length) > 0).astype(np.int64) + (np.arange(length) < length - 1)
    moved = order != np.arange(length)
    return order, np.where(moved, share / 4, 1 - neighbours[order] * share / 4)
