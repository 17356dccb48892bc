"""Inverted lists: the catalogue cut into groups of items with like texts, so that a search looks at a few of them.

A direction is compared with the centre of every list, and then, exactly, with the items of the nearest lists alone. The
cosines are those of `Vectors`, bit for bit; what is given up is an item that lies in a list farther away. There is no
second copy of the vectors. (Inverted file: Sivic and Zisserman, ICCV 2003; with k-means over descriptors as in Jégou et
al., TPAMI 2011.) The centres are found offline, in
`offline.training.inverted_lists`; docs/decisions.md has the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F32, F64, I32, I64, Bool
from features.text.vectors import Vectors

EXACT_UP_TO = 50_000
"""Items that are all compared, at about 20 us a thousand; a catalogue above this gets inverted lists."""
LOOK_AT = 32
"""Nearest lists that are looked at: of 1,264 over 100,000 items and of 4,000 over a million, where no more was found
by looking at more."""
_ROWS = 8192


@dataclass(frozen=True)
class InvertedLists:
    """centre: of the c lists, as unit vectors. start: int64[c + 1]. row: int32, rows of the catalogue; list l holds
    `row[start[l]:start[l + 1]]`, ascending. An item without vector is in none."""

    centre: Vectors
    start: I64
    row: I32

    @classmethod
    def assigned(cls, vectors: F32, centres: F32) -> InvertedLists:
        """Every item in the list of its nearest centre. vectors: float32[n + 1, d], NaN rows missing, the last row the
        unknown item. centres: float32[c, d], c at least 1."""
        n = len(vectors) - 1
        known = np.flatnonzero(np.isfinite(vectors[:n]).all(axis=1))
        unit = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
        nearest = [(vectors[known[b : b + _ROWS]] @ unit.T).argmax(axis=1) for b in range(0, len(known), _ROWS)]
        of = np.concatenate(nearest) if nearest else np.empty(0, np.int64)
        order = np.argsort(of, kind="stable")
        start = np.searchsorted(of[order], np.arange(len(centres) + 1)).astype(np.int64)
        return cls(Vectors.quantise(unit.astype(np.float32)), start, known[order].astype(np.int32))

    def near(self, direction: F64, admitted: Bool | None = None, look_at: int = LOOK_AT) -> I32:
        """int32, ascending: the rows of the lists nearest to a direction, those not admitted (bool[n]) left out."""
        cosine = np.nan_to_num(self.centre.toward(np.arange(len(self.start) - 1, dtype=np.int32), direction), nan=-2.0)
        few = min(look_at, len(cosine))
        lists = np.argpartition(-cosine, few - 1)[:few].tolist()
        rows = np.sort(np.concatenate([self.row[self.start[k] : self.start[k + 1]] for k in lists]))
        return rows if admitted is None else rows[admitted[rows]]
