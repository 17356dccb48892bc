"""Item vectors in Redis, by encoder: float16[d], little-endian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.arrays import F32
from serving.store.errors import StoreCorrupt


def decode_vectors(fingerprint: str, values: Sequence[bytes | None], dimension: int) -> F32:
    """Item vectors from the values of their keys: float32[items, dimension], NaN for None. Raises StoreCorrupt."""
    out = np.full((len(values), dimension), np.nan, np.float32)
    for row, vector in zip(out, values, strict=True):
        if vector is not None and len(vector) != 2 * dimension:
            raise StoreCorrupt(
                f"a vector of encoder {fingerprint} has {len(vector)} bytes, expected {2 * dimension} "
                f"for {dimension} dimensions: write this encoder's vectors again"
            )
        if vector is not None:
            row[:] = np.frombuffer(vector, "<f2")
    return out


def encode_vectors(item_ids: Sequence[str], vectors: F32) -> list[bytes]:
    """Encode vectors as values of their keys. Raises ValueError for values infinite or too large for float16."""
    invalid = np.flatnonzero((np.abs(vectors) > np.finfo(np.float16).max).any(axis=1))
    if len(invalid):
        raise ValueError(
            f"the vector of item {item_ids[invalid[0]]!r} is infinite or too large for float16: scale it to unit length"
        )
    return [row.tobytes() for row in vectors.astype("<f2")]
