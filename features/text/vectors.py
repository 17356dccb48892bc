"""Item vectors quantised to one byte per dimension, with cosines that are exact for the quantised vectors.

An integer dot product does not depend on the order of its terms, so the cosine of a row has the same bits in replay and
in serving, alone or among others, on any number of threads. It also takes a quarter of the memory of float32, and is
faster than BLAS at the sizes of a request. Quantising moves a cosine by about 0.002.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32
from features.kernels.compiled import compiled
from features.kernels.dots import I8Matrix, I16Matrix, dots
from features.kernels.prefetch import AHEAD, prefetch

I16Vector = NDArray[np.int16]


@compiled
def _dots(code: I8Matrix, rows: I32, other: I16Vector) -> I32:
    """int32[rows]: the dot product of each row with one vector."""
    out = np.empty(len(rows), np.int32)
    for i in range(len(rows)):
        a = code[rows[i]]
        # 384 * 127 * 32767 < 2^31: int32 holds every sum.
        total = np.int32(0)
        for k in range(len(other)):
            total = np.int32(total + np.int32(a[k]) * np.int32(other[k]))
        out[i] = total
    return out


@compiled
def _quantise_directions(direction: F64) -> tuple[I16Matrix, F32]:
    """Directions as `code * scale`: unit vectors, with a largest code of 32767; scale is NaN for a zero direction."""
    count, d = direction.shape
    code, scale = np.zeros((count, d), np.int16), np.full(count, np.nan, np.float32)
    for j in range(count):
        peak = 0.0
        for k in range(d):
            peak = max(peak, abs(direction[j, k]))
        if peak > 0.0:
            square = np.int64(0)
            for k in range(d):
                code[j, k] = np.int16(np.rint(direction[j, k] * (32767.0 / peak)))
                square += np.int64(code[j, k]) * np.int64(code[j, k])
            scale[j] = 1.0 / np.sqrt(square)
    return code, scale


@compiled
def _cosines(code: I8Matrix, scale: F32, rows: I32, others: I32, direction: F64) -> F32:
    """float32[m + k, rows]: cosines with m `others`, then with k directions."""
    directions, direction_scale = _quantise_directions(direction)
    product = dots(code, rows, others, directions)
    out = np.empty((len(others) + len(directions), len(rows)), np.float32)
    row_scale = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        row_scale[i] = scale[rows[i]]
    for j in range(len(out)):
        other_scale = scale[others[j]] if j < len(others) else direction_scale[j - len(others)]
        for i in range(len(rows)):
            out[j, i] = np.float32(product[j, i]) * (row_scale[i] * other_scale)
    return out


@compiled
def text_similarity(cosines: F32, taste: F64, evidence: int) -> F32:
    """float32[6, c]: see `Moment.text_similarity`. cosines: float32[m + 2, c], as `Moment.interest`.

    taste: float64[d]. evidence: number of impressions that it is based on.
    """
    m, c = len(cosines) - 2, cosines.shape[1]
    out = np.full((6, c), np.nan, np.float32)
    square = 0.0
    for k in range(len(taste)):
        square += taste[k] * taste[k]
    strength = np.sqrt(square) / (evidence + 10.0) if evidence else np.nan
    for i in range(c):
        out[0, i], out[4, i] = cosines[m, i], cosines[m + 1, i]
        out[5, i] = np.float64(cosines[m + 1, i]) * strength
    if m:
        out[1:3] = top_similarities(cosines[:m])
        out[3] = cosines[0]
    return out


@compiled
def top_similarities(cosines: F32) -> F32:
    """float32[2, c]: the largest cosine of each column and the mean of its 3 largest (of all, if there are fewer).

    cosines: float32[m, c]; NaN is ignored, and a column of NaN gives NaN.
    """
    m, c = cosines.shape
    # The three largest so far, by column, without branches, so that many columns are compared at once. NaN never
    # compares as greater.
    first = np.full(c, -2.0, np.float32)
    second, third = first.copy(), first.copy()
    for j in range(m):
        for i in range(c):
            x = cosines[j, i]
            high, x = (x, first[i]) if x > first[i] else (first[i], x)
            first[i] = high
            high, x = (x, second[i]) if x > second[i] else (second[i], x)
            second[i] = high
            third[i] = x if x > third[i] else third[i]
    out = np.full((2, c), np.nan, np.float32)
    for i in range(c):
        if third[i] > -2.0:
            out[1, i] = (np.float64(first[i]) + second[i] + third[i]) / 3.0
        elif second[i] > -2.0:
            out[1, i] = (np.float64(first[i]) + second[i]) / 2.0
        elif first[i] > -2.0:
            out[1, i] = first[i]
        if first[i] > -2.0:
            out[0, i] = first[i]
    return out


@compiled
def _pooled_pair(code: I8Matrix, scale: F32, rows: I32, weights: F64, others: I32, other_weights: F64) -> F64:
    """See `Vectors.pooled_pair`."""
    out = np.zeros((2, code.shape[1]))
    _add_weighted(code, scale, rows, weights, out[0])
    _add_weighted(code, scale, others, other_weights, out[1])
    return out


@compiled
def _add_weighted(code: I8Matrix, scale: F32, rows: I32, weights: F64, out: F64) -> None:
    """Add these vectors to `out`, weighted, in the order given."""
    for j in range(len(rows)):
        prefetch(code, rows[min(j + AHEAD, len(rows) - 1)])
        if not np.isnan(scale[rows[j]]):
            w = weights[j] * scale[rows[j]]
            vector = code[rows[j]]
            for k in range(len(out)):
                out[k] += w * vector[k]


@dataclass(frozen=True)
class Vectors:
    """Unit vectors as `code * scale`.

    code: int8[n + 1, d], d at most 516 (so that int32 holds a dot product). scale: float32[n + 1], one over the
    length of `code`; NaN for an item without a vector, including the unknown item in the last row.
    """

    code: I8Matrix
    scale: F32

    @classmethod
    def quantise(cls, vectors: F32) -> Vectors:
        """Scale each row so that its largest coordinate is 127. vectors: float32[n + 1, d]; a NaN row is missing.

        Raises ValueError for more than 516 dimensions.
        """
        if vectors.shape[1] > 516:
            raise ValueError(f"vectors have {vectors.shape[1]} dimensions; the maximum is 516: project them to fewer")
        known = np.isfinite(vectors).all(axis=1) & (np.abs(vectors).max(axis=1, initial=0) > 0)
        peak = np.where(known, np.abs(vectors).max(axis=1, initial=0), 1)
        code = np.rint(np.where(known[:, None], vectors, 0) * (127 / peak)[:, None]).astype(np.int8)
        length = np.sqrt((code.astype(np.int32) ** 2).sum(axis=1))
        return cls(code, np.where(known, 1 / np.maximum(length, 1), np.nan).astype(np.float32))

    def cosines(self, rows: I32, others: I32) -> F32:
        """float32[rows, others], -1 to 1: cosine of each row with each other; NaN if either has no vector."""
        if len(others) == 1:
            # A tile would be used for a single sum, which is too slow over a whole catalogue.
            dots = _dots(self.code, rows, self.code[others[0]].astype(np.int16))
            one: F32 = dots.astype(np.float32) * (self.scale[rows] * self.scale[others])
            return one[:, None]
        return self.interest(rows, others, np.empty((0, self.code.shape[1]))).T

    def interest(self, rows: I32, others: I32, directions: F64) -> F32:
        """float32[others + directions, rows], -1 to 1: the cosines with items, then with directions, in one pass.

        directions: float64[k, d]. The values are those of `cosines` and `cosines_to`: NaN if an item has no vector or a
        direction is zero.
        """
        return _cosines(self.code, self.scale, rows, others, directions)

    def pooled(self, rows: I32, weights: F64) -> F64:
        """float64[d]: the weighted sum of the vectors of `rows`; rows without a vector are skipped."""
        out: F64 = self.pooled_pair(rows, weights, rows[:0], weights[:0])[0]
        return out

    def pooled_pair(self, rows: I32, weights: F64, others: I32, other_weights: F64) -> F64:
        """float64[2, d]: `pooled` of `rows` with `weights`, and of `others` with `other_weights`, in one call."""
        return _pooled_pair(self.code, self.scale, rows, weights, others, other_weights)

    def cosines_to(self, rows: I32, direction: F64) -> F32:
        """float32[rows], -1 to 1: cosine of each row with a direction; NaN without a vector or for a zero direction."""
        code, scale = _quantise_directions(direction[None])
        # Convert to float32 before scaling, as `interest` does: above 2^24 the other order rounds differently.
        out: F32 = _dots(self.code, rows, code[0]).astype(np.float32) * (self.scale[rows] * scale[0])
        return out
