"""Batches of texts in which the vector of a text depends only on the text itself, to the last bit.

Kernels may split their sums by the shape of a matrix, that is by the number of tokens to which texts are padded and the
number of texts in the batch. Here, both follow from the text's own number of tokens: it is padded to a multiple of 8,
and all batches of one length have the same number of texts. A batch with fewer texts is filled up with copies of the
last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import I64

_STEP = 8
_TOKENS = {"cuda": 32_768}
_CPU_TOKENS = 512
"""Tokens per batch. On a CPU, larger batches are hardly faster, and a few new texts fill a large one with copies."""


class Batch(NamedTuple):
    """Texts of about the same length. length: tokens to which they are padded. size: texts in the batch with copies."""

    texts: list[str]
    length: int
    size: int

    @property
    def padded_texts(self) -> list[str]:
        """The texts, with copies of the last one up to `size`."""
        return self.texts + self.texts[-1:] * (self.size - len(self.texts))


def padded_length(tokens: float, most: int) -> int:
    """Number of tokens to which a text is padded: the next multiple of 8, but at most `most`."""
    return min(most, _STEP * math.ceil(tokens / _STEP))


def batches(texts: Sequence[str], counts: I64, most: int, device: str) -> Iterator[tuple[I64, Batch]]:
    """Yields (row numbers, batch) for all texts, longest first.

    texts: not blank. counts: int64[n], their numbers of tokens. most: maximum number of tokens of a text. device: type
    of device, such as "cuda".
    """
    lengths = np.array([padded_length(count, most) for count in counts.tolist()], np.int64)
    for length in np.unique(lengths)[::-1].tolist():
        size = max(1, _TOKENS.get(device, _CPU_TOKENS) // length)
        rows = np.flatnonzero(lengths == length)
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            yield chosen, Batch([texts[row] for row in chosen.tolist()], length, size)
