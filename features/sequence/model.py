"""A small causal sequence model: the order of a user's engagements as a direction in the space of item embeddings.

One transformer block with two heads reads the newest `LENGTH` engagements. Only its output at the newest one is needed,
so a request computes keys and values of the list, and one query. Attention has a bias for the distance from the newest
engagement and for the age at the time of the request (T5, Raffel et al., JMLR 2020; HSTU, Zhai et al., ICML 2024), so
nothing depends on where a sequence begins. It is trained in `offline.training.sequence`; here it is
served without torch. SASRec: Kang and McAuley, ICDM 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from features.arrays import F32, F64, I8, I32, I64
from features.kernels.compiled import compiled
from features.kernels.dots import I8Matrix
from features.text.vectors import Vectors

LENGTH: Final = 50
"""Newest engagements that the model reads."""
WIDTH: Final = 64
HEADS: Final = 2
INNER: Final = 128
"""Width of the feed-forward layer."""
KINDS: Final = 8
AGES: Final = 20
"""Age buckets: powers of two of minutes, up to a year."""
SCALE: Final = 4.0
"""Factor of the unit embedding of an item in the input, next to the embedding of the kind of event."""
_EPSILON = 1e-5

LAYOUT: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("kind", (KINDS, WIDTH)),
    ("norm1", (2, WIDTH)),
    ("query", (WIDTH, WIDTH)),
    ("key_value", (WIDTH, 2 * WIDTH)),
    ("output", (WIDTH, WIDTH)),
    ("distance", (HEADS, LENGTH)),
    ("age", (HEADS, AGES)),
    ("norm2", (2, WIDTH)),
    ("inner", (WIDTH + 1, INNER)),
    ("outer", (INNER + 1, WIDTH)),
    ("norm3", (2, WIDTH)),
    ("direction", (WIDTH, WIDTH)),
)
"""Names and shapes of the weights, in the order in which they are stored in one array. A norm has its scale and its
offset; the last row of a layer with an offset is the offset."""
_START = np.cumsum([0, *(int(np.prod(shape)) for _, shape in LAYOUT)])
WEIGHTS = int(_START[-1])
(_KIND, _NORM1, _QUERY, _KEY_VALUE, _OUTPUT, _DISTANCE, _AGE, _NORM2, _FIRST, _SECOND, _NORM3, _DIRECTION) = (
    int(start) for start in _START[:-1]
)


@compiled
def _normalise(x: F32, weights: F32, at: int, out: F32) -> None:
    """Layer norm of `x` with scale and offset at `at` of the weights."""
    mean = variance = 0.0
    for k in range(WIDTH):
        mean += x[k]
    mean /= WIDTH
    for k in range(WIDTH):
        variance += (x[k] - mean) * (x[k] - mean)
    inverse = 1.0 / np.sqrt(variance / WIDTH + _EPSILON)
    for k in range(WIDTH):
        out[k] = np.float32((x[k] - mean) * inverse) * weights[at + k] + weights[at + WIDTH + k]


@compiled
def _multiply(x: F32, weights: F32, at: int, rows: int, columns: int, out: F32) -> None:
    """Add `x @ W` to `out`. W: float32[rows, columns], at `at` of the weights."""
    for i in range(rows):
        value, row = x[i], at + i * columns
        for k in range(columns):
            out[k] += value * weights[row + k]


@compiled
def age_bucket(age_s: float) -> int:
    """Bucket of an age, 0 to `AGES - 1`: log2(1 + minutes), rounded down. A negative age is 0."""
    return min(int(np.log2(1.0 + max(age_s, 0.0) / 60.0)), AGES - 1)


def age_buckets(age_s: F64) -> I64:
    """int64, like `age_s`: `age_bucket` of each age."""
    return np.minimum(np.log2(1.0 + np.maximum(age_s, 0.0) / 60.0).astype(np.int64), AGES - 1)


@compiled
def _user_vector(weights: F32, code: I8Matrix, scale: F32, item: I32, kind: I8, at: F64, now: float) -> F64:
    """See `SequenceModel.user_vector`."""
    m, head = min(len(item), LENGTH), WIDTH // HEADS
    direction = np.zeros(WIDTH)
    if m == 0:
        return direction
    x, first, normal = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    query, pair = np.zeros(WIDTH, np.float32), np.zeros((m, 2 * WIDTH), np.float32)
    score = np.empty((HEADS, m))
    for j in range(m):
        row, of_kind = item[j], _KIND + kind[j] * WIDTH
        factor = np.float32(0.0) if np.isnan(scale[row]) else scale[row] * np.float32(SCALE)
        for k in range(WIDTH):
            x[k] = factor * code[row, k] + weights[of_kind + k]
        _normalise(x, weights, _NORM1, normal)
        if j == 0:
            first[:] = x
            _multiply(normal, weights, _QUERY, WIDTH, WIDTH, query)
        _multiply(normal, weights, _KEY_VALUE, WIDTH, 2 * WIDTH, pair[j])
        bucket = age_bucket(now - at[j])
        for h in range(HEADS):
            total = 0.0
            for k in range(h * head, (h + 1) * head):
                total += query[k] * pair[j, k]
            score[h, j] = (
                total / np.sqrt(head) + weights[_DISTANCE + h * LENGTH + j] + weights[_AGE + h * AGES + bucket]
            )
    attended = np.zeros(WIDTH, np.float32)
    for h in range(HEADS):
        peak, total = score[h].max(), 0.0
        for j in range(m):
            score[h, j] = np.exp(score[h, j] - peak)
            total += score[h, j]
        for j in range(m):
            share = np.float32(score[h, j] / total)
            for k in range(h * head, (h + 1) * head):
                attended[k] += share * pair[j, WIDTH + k]
    _multiply(attended, weights, _OUTPUT, WIDTH, WIDTH, first)
    _normalise(first, weights, _NORM2, normal)
    inner = np.empty(INNER, np.float32)
    for k in range(INNER):
        inner[k] = weights[_FIRST + WIDTH * INNER + k]
    _multiply(normal, weights, _FIRST, WIDTH, INNER, inner)
    for k in range(INNER):
        inner[k] = max(inner[k], np.float32(0.0))
    for k in range(WIDTH):
        first[k] += weights[_SECOND + INNER * WIDTH + k]
    _multiply(inner, weights, _SECOND, INNER, WIDTH, first)
    _normalise(first, weights, _NORM3, normal)
    out = np.zeros(WIDTH, np.float32)
    _multiply(normal, weights, _DIRECTION, WIDTH, WIDTH, out)
    for k in range(WIDTH):
        direction[k] = out[k]
    return direction


TOWER = 128
"""Width of the hidden layer of the item tower."""


@compiled
def _embed(tower: F32, dimension: int, vector: F32) -> F32:
    """float32[WIDTH], unit length: the embedding of an item by its text vector alone."""
    hidden, out = np.empty(TOWER, np.float32), np.zeros(WIDTH, np.float32)
    first, second = dimension * WIDTH, dimension * (WIDTH + TOWER)
    _multiply(vector, tower, 0, dimension, WIDTH, out)
    for k in range(TOWER):
        hidden[k] = tower[second + k]
    _multiply(vector, tower, first, dimension, TOWER, hidden)
    for k in range(TOWER):
        hidden[k] = max(hidden[k], np.float32(0.0))
    _multiply(hidden, tower, second + TOWER, TOWER, WIDTH, out)
    length = 0.0
    for k in range(WIDTH):
        length += out[k] * out[k]
    for k in range(WIDTH):
        out[k] = np.float32(out[k] / max(np.sqrt(length), 1e-12))
    return out


def tower_size(dimension: int) -> int:
    """Number of weights of the item tower: a linear part, and a hidden layer with an offset."""
    return dimension * (WIDTH + TOWER) + TOWER + TOWER * WIDTH


@dataclass(frozen=True)
class SequenceModel:
    """A trained model. weights: float32[WEIGHTS], see `LAYOUT`. items: embeddings of all items, of `WIDTH` dimensions.
    tower: float32[tower_size(d)], from an item's text vector to its embedding, for items that come later."""

    weights: F32
    items: Vectors
    tower: F32

    @classmethod
    def none(cls, n_items: int, dimension: int) -> SequenceModel:
        """A model before anything is learned: every item is unknown. dimension: of the text vectors."""
        unknown = Vectors.quantise(np.zeros((n_items + 1, WIDTH), np.float32))
        return cls(np.zeros(WEIGHTS, np.float32), unknown, np.zeros(tower_size(dimension), np.float32))

    def of_rows(self, rows: I32) -> SequenceModel:
        """The model with these rows as items, int32[n], `-1` for an unknown one."""
        rows = np.append(rows, -1)
        return replace(self, items=Vectors(self.items.code[rows], self.items.scale[rows]))

    def user_vector(self, item: I32, kind: I8, at: F64, now: float) -> F64:
        """float64[WIDTH]: where the user's next item is expected, not normalised; all 0 for no engagements.

        item: int32[m], rows of known items, newest first. kind: int8[m]. at: float64[m]. now: time of the request.
        """
        return _user_vector(self.weights, self.items.code, self.items.scale, item, kind, at, float(now))

    def embed(self, vectors: F32) -> F32:
        """float32[n, WIDTH]: embeddings of items by their text vectors, float32[n, d], alone. NaN stays NaN."""
        out = np.full((len(vectors), WIDTH), np.nan, np.float32)
        for row in np.flatnonzero(np.isfinite(vectors).all(axis=1)).tolist():
            out[row] = _embed(self.tower, vectors.shape[1], np.ascontiguousarray(vectors[row], np.float32))
        return out
