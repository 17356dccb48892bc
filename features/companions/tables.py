"""`Companions`: the tables of a release that lead from an item to the items that go with it.

The weight of item j in the row of item i, from the baskets (or sessions) g that have both:

    t_ij / (t_i^(1 - POPULARITY_EXPONENT) t_j^POPULARITY_EXPONENT) * n_ij / (n_ij + SUPPORT_SHRINKAGE)

n_ij is the number of baskets, and t_ij their number weighted by `|g|^-SIZE_EXPONENT`, since an item of a large basket
says less about the others; both decay with age. t_i is the weighted number of baskets of i. An exponent of popularity
of 0 gives the conditional probability of j given i, which recommends what is popular, and 1/2 the cosine, which
recommends what is rare. The second factor shrinks pairs with little support (Koren, KDD 2008). For what comes next in a
session, only items after i count, by their distance. See docs/decisions.md for the measurements behind the constants,
and `fallback.py` for items in few baskets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.companions.fallback import blend, similar_texts
from features.companions.groups import Groups, baskets, sessions
from features.companions.pairs import top_pairs
from features.companions.repurchase import repurchase_seconds
from features.log import Events
from features.neighbours import Neighbours
from features.text.vectors import Vectors

K = 50
"""Companions per item."""
HALF_LIFE_S = 365 * 86400.0
"""A basket of this age has half the weight of a new one."""
SIZE_EXPONENT = 0.5
POPULARITY_EXPONENT = 0.25
SUPPORT_SHRINKAGE = 5.0
BY_DISTANCE = 0.8
"""Weight of a pair in a session for each further moment between its items; those at one moment go both ways."""
REACH = 10
"""Moments after an item whose items follow it."""
_TO_EXACT = 2.0**20
"""Weights of baskets are multiples of one over this, so that sums are exact in any order, and do not depend on the
numbering of users."""


class _Kinds(NamedTuple):
    """The categories of items, and the items that do not form a pair.

    code: int32[n], from 0 to `missing`. apart: int32[codes, n], as `kinds` of `top_pairs`.
    """

    code: I32
    missing: int
    apart: I32


@dataclass(frozen=True)
class Companions:
    """Items that go with an item, from baskets and sessions of the log up to a time.

    Each table has int32[n + 1, K] items, best first, -1 if there are fewer, and float32[n + 1, K] weights in (0, 1], 0
    if there are fewer; the last row, the unknown item, has none. A row is read from the seed to its companions: use
    `seed_scores` for candidates, not `Neighbours.scores`. Items in few baskets also have items with similar texts.

    together: bought together. goes_with: bought together and not of the same category (complements). following: next
    in the session. None of them has another variant of the same product. repurchase_s: float32[n + 1], typical seconds
    until a user buys the item again, NaN if nobody ever bought anything twice; the last is that of the shop.
    """

    together: Neighbours
    goes_with: Neighbours
    following: Neighbours
    repurchase_s: F32

    @classmethod
    def none(cls, n_items: int, k: int = 1) -> Companions:
        """Companions before anything is logged: no item has any."""
        nothing = Neighbours.none(n_items, k)
        return cls(nothing, nothing, nothing, np.full(n_items + 1, np.nan, np.float32))

    @classmethod
    def build(
        cls, catalogue: Catalogue, vectors: Vectors, events: Events, n_items: int, at: float, k: int = K
    ) -> Companions:
        """Companions at a time, from the events strictly before it.

        The more events of a user, the better; the newest `MAX_PER_USER` engagements per user are enough. Raises
        ValueError if the catalogue or the vectors have another number of items.
        """
        if not n_items == len(catalogue) == len(vectors.scale) - 1:
            raise ValueError(
                f"{n_items} items, {len(catalogue)} in the catalogue and {len(vectors.scale) - 1} vectors; expected "
                "the same number, and one more vector for the unknown item"
            )
        past = events.before(at)
        bought, visited = baskets(past), sessions(past)
        bought = bought._replace(place=np.zeros_like(bought.place))
        category, missing = catalogue.category[:n_items], len(catalogue.category_names)
        # Variants of one product are chosen between, and not bought together.
        product = np.full((1, n_items), -1, np.int32)
        if catalogue.group is not None:
            group, alone = catalogue.group[:n_items], len(catalogue.group_names)
            product = np.where(group < alone, group, -1).astype(np.int32)[None]
        same_category = np.where(category < missing, category, -1).astype(np.int32)[None]
        anything = _Kinds(category, missing, product)
        others = anything._replace(apart=np.vstack([same_category, product]))
        distance = np.rint(BY_DISTANCE ** np.arange(REACH, dtype=np.float64) * 4096) / 4096  # exact sums, see _TO_EXACT
        return cls(
            _table(bought, at, np.ones(1), anything, vectors, k),
            _table(bought, at, np.ones(1), others, vectors, k),
            _table(visited, at, distance, anything, vectors, k),
            repurchase_seconds(past, catalogue.category, at),
        )


def _table(groups: Groups, at: float, by_distance: F64, kinds: _Kinds, vectors: Vectors, k: int) -> Neighbours:
    n = len(kinds.code)
    recent = np.exp2((groups.at - at) / HALF_LIFE_S)
    weight, support = _exact(recent * np.diff(groups.start) ** -SIZE_EXPONENT), _exact(recent)
    of_row = weight[groups.group]
    right = _total(groups.item, of_row, n) ** POPULARITY_EXPONENT

    def counted(owner: I32, owners: int) -> tuple[I32, F32]:
        by_owner = np.argsort(owner, kind="stable")
        left = _total(owner, of_row, owners) ** (1 - POPULARITY_EXPONENT)
        return top_pairs(
            np.searchsorted(owner[by_owner], np.arange(owners + 1)),
            by_owner,
            groups.group,
            groups.start,
            groups.item,
            groups.place,
            weight,
            support,
            by_distance,
            left,
            right,
            SUPPORT_SHRINKAGE,
            kinds.apart,
            k,
        )

    own, of_category = counted(groups.item, n), counted(kinds.code[groups.item], kinds.missing + 1)
    of_category[0][kinds.missing], of_category[1][kinds.missing] = -1, 0.0  # items without a category share nothing
    item, score = (np.vstack(pair) for pair in zip(own, of_category, strict=True))
    count = np.bincount(groups.item, minlength=n).astype(np.float64)
    texts = similar_texts(vectors, count, kinds.apart)
    item, score = blend(item, score, count, texts, kinds.code, kinds.apart, k)
    nothing = Neighbours.none(0, k)
    return Neighbours(np.vstack([item, nothing.item]), np.vstack([np.minimum(score, np.float32(1)), nothing.weight]))


def _total(owner: I32, weight: F64, owners: int) -> F64:
    """float64[owners]: total weight of each owner, above 0."""
    return _at_least(np.bincount(owner, weight, minlength=owners).astype(np.float64))


def _exact(weight: F64) -> F64:
    return _at_least(np.rint(weight * _TO_EXACT) / _TO_EXACT)


def _at_least(weight: F64) -> F64:
    """Weights above 0: at least the smallest weight of a basket."""
    out: F64 = np.maximum(weight, 1.0 / _TO_EXACT)
    return out
