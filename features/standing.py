"""Where a value stands among those of its list: rank and distance from the mean, from one sort."""

from __future__ import annotations

import numpy as np

from features.compiled import compiled
from features.log import F32, I64


@compiled
def standing(value: F32) -> F32:
    """float32[2, c]: the rank of each value, 0 to 1, and its difference from the mean; NaN where it is missing.

    value: float32[c], contiguous. A rank is half of each tie below and half above, as a share of the known. The mean
    adds ascending values, so neither depends on the order of the list.
    """
    out = np.full((2, len(value)), np.nan, np.float32)
    order = _ascending(value)
    total = 0.0
    for i in order:
        total += value[i]
    known = len(order)
    first = 0
    while first < known:
        end = first
        while end < known and value[order[end]] == value[order[first]]:
            end += 1
        for k in range(first, end):
            out[0, order[k]] = (first + end) / (2.0 * known)
            out[1, order[k]] = value[order[k]] - total / known
        first = end
    return out


@compiled
def standings(values: F32) -> F32:
    """float32[2k, c]: `standing` of each of k lines of values. values: float32[k, c]."""
    out = np.empty((2 * len(values), values.shape[1]), np.float32)
    for k in range(len(values)):
        out[2 * k : 2 * k + 2] = standing(values[k])
    return out


@compiled
def _ascending(value: F32) -> I64:
    """int64[known]: the places of all that is not NaN, by value: a radix sort, a third of the time of `argsort`."""
    bits = value.view(np.uint32)
    key, place = np.empty(len(value), np.uint32), np.empty(len(value), np.int64)
    known = 0
    for i in range(len(value)):
        if value[i] == value[i]:
            # Unsigned integers in the order of the floats: a negative one's bits turned, a positive one's sign set.
            sign = bits[i] >> np.uint32(31)
            key[known] = bits[i] ^ (np.uint32(0x80000000) if sign == 0 else np.uint32(0xFFFFFFFF))
            place[known] = i
            known += 1
    key, place = key[:known], place[:known]
    start = np.zeros((4, 257), np.int64)
    for i in range(known):
        for digit in range(4):
            start[digit, ((key[i] >> np.uint32(8 * digit)) & np.uint32(255)) + 1] += 1
    next_key, next_place = np.empty(known, np.uint32), np.empty(known, np.int64)
    for digit in range(4):
        begin = start[digit]
        for value_of_digit in range(256):
            begin[value_of_digit + 1] += begin[value_of_digit]
        for i in range(known):
            d = (key[i] >> np.uint32(8 * digit)) & np.uint32(255)
            next_key[begin[d]], next_place[begin[d]] = key[i], place[i]
            begin[d] += 1
        key, next_key = next_key, key
        place, next_place = next_place, place
    return place
