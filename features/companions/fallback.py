"""Companions of items in few baskets: the items with the most similar texts, and what goes with these.

The prior of an item in n baskets has the weight `PRIOR / (n + PRIOR)`, beside what its own baskets say. It has the
items with similar texts, each way, with weight `TEXT * cosine^SHARPNESS`, and their rows with `BORROWED` times that. An
item without a text vector has the row of its category instead: what is bought with the items of the category.
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
"""Items with similar texts per thin item."""
TEXT, SHARPNESS, BORROWED = 0.3, 4.0, 0.1
MOST_COMPARED = 20_000
"""Items whose texts are compared with those of thin items: those in the most baskets. Bounds the work."""
_BLOCK = 256
"""Thin items that are compared at a time, which bounds the memory."""


class Texts(NamedTuple):
    """Thin items that have a text vector, and the items with the most similar texts.

    thin: int32[m], ascending. alike: int32[m, a], best first. cosine: float64[m, a], 0 for none.
    """

    thin: I32
    alike: I32
    cosine: F64


def similar_texts(vectors: Vectors, count: F64) -> Texts:
    """The items most similar to each item in few baskets. count: float64[n], baskets of each item."""
    has_text = np.isfinite(vectors.scale[: len(count)])
    thin = np.flatnonzero((count <= THIN) & has_text).astype(np.int32)
    known = np.flatnonzero(has_text)
    known = np.sort(known[np.argsort(-count[known], kind="stable")[:MOST_COMPARED]]).astype(np.int32)
    alike, cosine = np.zeros((len(thin), ALIKE), np.int32), np.zeros((len(thin), ALIKE))
    for first in range(0, len(thin), _BLOCK):
        block = slice(first, first + _BLOCK)
        found, cosine[block] = nearest(vectors.cosines(thin[block], known), thin[block], known, ALIKE)
        alike[block] = np.maximum(found, 0)
    return Texts(thin, alike, cosine)


def blend(item: I32, weight: F32, count: F64, texts: Texts, category: I32, kinds: I32, k: int) -> tuple[I32, F32]:
    """int32[n, k], float32[n, k]: the rows of all items, with the priors of the thin ones.

    item, weight: the table by baskets: int32[n + c, k], float32[n + c, k], a row for each item and category. count: as
    in `similar_texts`. category: int32[n], from 0 to c - 1. kinds: as in `top_pairs`.
    """
    n = len(count)
    prior = PRIOR / (count + PRIOR)
    thin, alike = np.repeat(texts.thin, texts.alike.shape[1]), texts.alike.ravel()
    share = texts.cosine.ravel() ** SHARPNESS * prior[thin]
    textless = np.setdiff1d(np.flatnonzero(count <= THIN), texts.thin)
    owner = np.concatenate([thin, alike, textless])
    source = np.concatenate([alike, thin, n + category[textless]]).astype(np.int32)
    of_row = np.concatenate([BORROWED * share, np.zeros(len(alike)), BORROWED * prior[textless]])
    of_item = np.concatenate([TEXT * share, TEXT * share, np.zeros(len(textless))])
    order = np.argsort(owner, kind="stable")
    start = np.searchsorted(owner[order], np.arange(n + 1))
    return blended(start, source[order], of_row[order], of_item[order], item, weight, kinds, k)
