"""Where a value stands among those of its list: rank and distance from the mean, from one sort."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, U64
from features.kernels.compiled import compiled

_MISSING = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)


def rank_within_list(values: F32) -> F32:
    """float32[2k, c]: of each of k lines, the rank of each value, 0 to 1, then its difference from the line's mean.

    values: float32[k, c], contiguous; where one is NaN, so are both. A rank is half of each tie below and half above,
    as a share of the known. The mean adds ascending values, so neither depends on the order of the list.
    """
    keys = _sort_keys(values)
    # All distinct, so every way of sorting has one result; numpy's has the processor's wide registers at its disposal.
    keys.sort(axis=1)
    return _ranks(values, keys)


@compiled
def _sort_keys(values: F32) -> U64:
    """uint64, like `values`: integers in the order of the values, with the place in the list below; NaN last."""
    bits = values.view(np.uint32)
    out = np.empty(values.shape, np.uint64)
    for k in range(len(values)):
        for i in range(values.shape[1]):
            # A negative float's bits turned, a positive one's sign set.
            turned = np.uint32(0xFFFFFFFF) if bits[k, i] >> np.uint32(31) else np.uint32(0x80000000)
            key = np.uint64(bits[k, i] ^ turned) << np.uint64(32) | np.uint64(i)
            out[k, i] = _MISSING if np.isnan(values[k, i]) else key
    return out


@compiled
def _ranks(values: F32, keys: U64) -> F32:
    """See `standings`; keys: as `_keys`, each line sorted."""
    out = np.full((2 * len(values), values.shape[1]), np.nan, np.float32)
    for k in range(len(values)):
        value, rank, over = values[k], out[2 * k], out[2 * k + 1]
        total, known = 0.0, 0
        while known < len(value) and keys[k, known] != _MISSING:
            total += value[keys[k, known] & _LOW]
            known += 1
        first = 0
        while first < known:
            end, of_ties = first, value[keys[k, first] & _LOW]
            while end < known and value[keys[k, end] & _LOW] == of_ties:
                end += 1
            for place in range(first, end):
                i = keys[k, place] & _LOW
                rank[i] = (first + end) / (2.0 * known)
                over[i] = value[i] - total / known
            first = end
    return out
