"""An item's vector by an encoder, as Redis holds it: float16[d], little-endian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.arrays import F32
from serving.store.errors import StoreCorrupt


def vector_key(fingerprint: str, item_id: str) -> str:
    """Where the vector of an item by an encoder stands."""
    return f"sw:v:{fingerprint}:{item_id}"


def decode_vectors(fingerprint: str, held: Sequence[bytes | None], dimension: int) -> F32:
    """float32[items, dimension] of what Redis holds by `vector_key`, NaN for none. Raises StoreCorrupt."""
    out = np.full((len(held), dimension), np.nan, np.float32)
    for row, vector in zip(out, held, strict=True):
        if vector is not None and len(vector) != 2 * dimension:
            raise StoreCorrupt(
                f"a vector of encoder {fingerprint} has {len(vector)} bytes, expected {2 * dimension} "
                f"for {dimension} dimensions: write this encoder's vectors anew"
            )
        if vector is not None:
            row[:] = np.frombuffer(vector, "<f2")
    return out


def encode_vectors(item_ids: Sequence[str], vectors: F32) -> list[bytes]:
    """The same as bytes. Raises ValueError where a value is infinite or beyond float16."""
    wrong = np.flatnonzero((np.abs(vectors) > np.finfo(np.float16).max).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"the vector of item {item_ids[wrong[0]]!r} is infinite or beyond float16: scale it to unit length"
        )
    return [row.tobytes() for row in vectors.astype("<f2")]
