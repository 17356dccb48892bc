"""Rank of a value within its list and its difference from the list's mean, from one sort."""

from __future__ import annotations

import numpy as np

from features.arrays import F32, U64
from features.kernels.compiled import compiled

_MISSING = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)


def rank_within_list(values: F32) -> F32:
    """float32[2k, c]: for each of k lists, the rank of each value, 0 to 1, then its difference from the list's mean.

    values: float32[k, c], contiguous; a NaN gives NaN for both. The rank counts the values below and half of the ties,
    as a share of the known values. The mean adds values in ascending order, so neither depends on the order of the
    list.
    """
    keys = _sort_keys(values)
    # The keys are distinct, so any sort gives the same result; numpy's uses SIMD.
    keys.sort(axis=1)
    return _ranks(values, keys)


@compiled
def _sort_keys(values: F32) -> U64:
    """uint64, like `values`: keys in the order of the values, with the index in the list in the low bits; NaN last."""
    bits = values.view(np.uint32)
    out = np.empty(values.shape, np.uint64)
    for k in range(len(values)):
        for i in range(values.shape[1]):
            # Flip all bits of a negative float, and only the sign of a positive one.
            mask = np.uint32(0xFFFFFFFF) if bits[k, i] >> np.uint32(31) else np.uint32(0x80000000)
            key = np.uint64(bits[k, i] ^ mask) << np.uint64(32) | np.uint64(i)
            out[k, i] = _MISSING if np.isnan(values[k, i]) else key
    return out


@compiled
def _ranks(values: F32, keys: U64) -> F32:
    """See `rank_within_list`. keys: from `_sort_keys`, each row sorted."""
    out = np.full((2 * len(values), values.shape[1]), np.nan, np.float32)
    for k in range(len(values)):
        value, rank, difference = values[k], out[2 * k], out[2 * k + 1]
        total, known = 0.0, 0
        while known < len(value) and keys[k, known] != _MISSING:
            total += value[keys[k, known] & _LOW]
            known += 1
        first = 0
        while first < known:
            end, tied = first, value[keys[k, first] & _LOW]
            while end < known and value[keys[k, end] & _LOW] == tied:
                end += 1
            for position in range(first, end):
                i = keys[k, position] & _LOW
                rank[i] = (first + end) / (2.0 * known)
                difference[i] = value[i] - total / known
            first = end
    return out
