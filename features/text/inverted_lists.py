"""Inverted lists: the catalogue split into groups of similar texts, so that a search compares only a few of them.

A direction is compared with the centre of every list, and then exactly with the items of the nearest lists. The cosines
are those of `Vectors`, bit for bit; items that lie in a list farther away are missed. The vectors are not copied.
(Inverted file: Sivic and Zisserman, ICCV 2003; with k-means over descriptors as in Jégou et al., TPAMI 2011.) The
centres are computed offline, in `offline.training.inverted_lists`; docs/decisions.md explains the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.text.vectors import Vectors

EXACT_UP_TO = 50_000
"""Up to this many items, all are compared, at about 20 us per thousand; larger catalogues get inverted lists."""
N_PROBE = 32
"""Number of nearest lists that are searched, of 1,264 lists over 100,000 items and of 4,000 over a million; searching
more lists found no more."""
_CHUNK = 8192


@dataclass(frozen=True)
class InvertedLists:
    """Items grouped by their nearest centre.

    centre: unit vectors of the c centres. start: int64[c + 1]. row: int32, catalogue rows; list l holds
    `row[start[l]:start[l + 1]]`, ascending. An item without a vector is not in any list.
    """

    centre: Vectors
    start: I64
    row: I32

    @classmethod
    def assigned(cls, vectors: F32, centres: F32) -> InvertedLists:
        """Assign every item to the list of its nearest centre.

        vectors: float32[n + 1, d], NaN rows missing, the last row the unknown item. centres: float32[c, d], c at least
        1.
        """
        n = len(vectors) - 1
        known = np.flatnonzero(np.isfinite(vectors[:n]).all(axis=1))
        unit = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        nearest = [(vectors[known[b : b + _CHUNK]] @ unit.T).argmax(axis=1) for b in range(0, len(known), _CHUNK)]
        list_of = np.concatenate(nearest) if nearest else np.empty(0, np.int64)
        order = np.argsort(list_of, kind="stable")
        start = np.searchsorted(list_of[order], np.arange(len(centres) + 1)).astype(np.int64)
        return cls(Vectors.quantise(unit.astype(np.float32)), start, known[order].astype(np.int32))

    def near(self, direction: F64, admitted: Bool | None = None, look_at: int = N_PROBE) -> I32:
        """int32, ascending: rows in the lists nearest to a direction. admitted: bool[n], rows to keep; None for all."""
        cosine = np.nan_to_num(
            self.centre.cosines_to(np.arange(len(self.start) - 1, dtype=np.int32), direction), nan=-2.0
        )
        few = min(look_at, len(cosine))
        lists = np.argpartition(-cosine, few - 1)[:few].tolist()
        rows = np.sort(np.concatenate([self.row[self.start[k] : self.start[k + 1]] for k in lists]))
        return rows if admitted is None else rows[admitted[rows]]
