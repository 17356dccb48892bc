"""Companions of items in few baskets: the items with the most similar texts, and what goes with their category.

The prior of an item in n baskets has the weight `PRIOR / (n + PRIOR)`, beside what its own baskets say. Items with
similar texts are companions of each other with weight `s * cosine^SHARPNESS`. The scale s is what this weight is on
average between items whose baskets do tell (`text_scale`): gifts of one series are bought together, but few buy two
brands of yoghurt. The row of its category, what is bought with its items, counts `CATEGORY`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32
from features.companions.pairs import blended, nearest
from features.text.vectors import Vectors

THIN = 20
"""Items in at most this many baskets have a prior."""
PRIOR = 3.0
"""Baskets of an item at which its prior has half of its weight."""
ALIKE = 10
"""Items with similar texts per item."""
SHARPNESS = 4.0
CATEGORY = 0.3
"""Weight of the row of its category in the prior of an item."""
SCALE, SCALE_STRENGTH = 0.3, 5.0
"""The scale of a shop in which no item is in more than `THIN` baskets, and its weight beside what is measured, in pairs
of equal texts."""
MEASURED = 1000
"""Items on which the scale is measured: those in the fewest baskets above `THIN`, as they are most like thin ones."""
MOST_COMPARED, MOST_PAIRS = 20_000, 500_000_000
"""Items whose texts are compared with those of thin items: those in the most baskets. Pairs that are compared. Bounds
the work: a million thin items are compared with 500 others."""
_BLOCK = 256
"""Items that are compared at a time, which bounds the memory."""


class Alike(NamedTuple):
    """Items, and those with the most similar texts among the items they can be companions of.

    item: int32[m]. alike: int32[m, a], best first. cosine: float64[m, a], 0 for none.
    """

    item: I32
    alike: I32
    cosine: F64


class Texts(NamedTuple):
    """thin: the items in few baskets that have a text vector. measured: those on which the scale is measured."""

    thin: Alike
    measured: Alike


def similar_texts(vectors: Vectors, count: F64, kinds: I32) -> Texts:
    """The items most similar to each item in few baskets.

    count: float64[n], baskets of each item. kinds: as in `top_pairs`; items of one kind are not similar here.
    """
    has_text = np.isfinite(vectors.scale[: len(count)])
    by_count = np.argsort(count, kind="stable")
    by_count = by_count[has_text[by_count]].astype(np.int32)
    few, many = by_count[count[by_count] <= THIN], by_count[count[by_count] > THIN]
    known = np.sort(by_count[::-1][: min(MOST_COMPARED, MOST_PAIRS // max(len(few), 1))])
    return Texts(
        *(_most_similar(vectors, np.sort(item).astype(np.int32), known, kinds) for item in (few, many[:MEASURED]))
    )


def _most_similar(vectors: Vectors, item: I32, known: I32, kinds: I32) -> Alike:
    alike, cosine = np.zeros((len(item), ALIKE), np.int32), np.zeros((len(item), ALIKE))
    for first in range(0, len(item), _BLOCK):
        block = slice(first, first + _BLOCK)
        found, cosine[block] = nearest(vectors.cosines(item[block], known), item[block], known, kinds, ALIKE)
        alike[block] = np.maximum(found, 0)
    return Alike(item, alike, cosine)


def text_scale(texts: Texts, item: I32, weight: F32) -> float:
    """Weight of a pair of items with equal texts: a regression through 0 of the weights by baskets on the similarities.

    item, weight: the table by baskets; a pair that is not in it has weight 0. Shrunk to `SCALE`.
    """
    row, alike, cosine = texts.measured
    similarity = cosine**SHARPNESS
    listed = item[row][:, :, None] == alike[:, None, :]
    by_baskets = (listed * weight[row][:, :, None].astype(np.float64)).sum(axis=1)
    fitted = SCALE_STRENGTH * SCALE + (similarity * by_baskets).sum()
    return float(fitted / (SCALE_STRENGTH + (similarity**2).sum()))


def blend(item: I32, weight: F32, count: F64, texts: Texts, category: I32, kinds: I32, k: int) -> tuple[I32, F32]:
    """int32[n, k], float32[n, k]: the rows of all items, with the priors of the thin ones.

    item, weight: the table by baskets: int32[n + c, k], float32[n + c, k], a row for each item and category. count,
    kinds: as in `similar_texts`. category: int32[n], from 0 to c - 1.
    """
    n = len(count)
    prior = PRIOR / (count + PRIOR)
    thin, alike = np.repeat(texts.thin.item, ALIKE), texts.thin.alike.ravel()
    similar = text_scale(texts, item, weight) * texts.thin.cosine.ravel() ** SHARPNESS * prior[thin]
    few = np.flatnonzero(count <= THIN)
    owner = np.concatenate([thin, alike, few])
    source = np.concatenate([alike, thin, n + category[few]]).astype(np.int32)
    of_row = np.concatenate([np.zeros(2 * len(thin)), CATEGORY * prior[few]])
    of_item = np.concatenate([similar, similar, np.zeros(len(few))])
    order = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[order], np.arange(n + 1))
    return blended(start, source[order], of_row[order], of_item[order], item, weight, kinds, k)
