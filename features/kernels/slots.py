"""Open-addressed hash table of the items in a short list, for kernels that look up many items in it.

It is used for the two lists of a user: looking up each of 500 candidates, or of their 25,000 neighbours, costs one
probe instead of a pass over the list.
"""

from __future__ import annotations

import numpy as np

from features.arrays import I32
from features.kernels.compiled import compiled

_MIN_SLOTS = 4096
"""Slots of the smallest table. It is large so that nearly every item outside a list of 100 meets an empty slot at once:
with 512 slots a lookup took three times as long, mostly in mispredicted branches."""
_MULTIPLIER = 40503
"""Odd, so that neighbouring rows get distant slots: the items of a brand are often consecutive, and would otherwise
probe each other's slots."""


@compiled
def first_slot(slots: I32, item: int) -> np.uint32:
    """The first slot to probe for an item; it is empty (`-1`) only if the item is not in the list."""
    # A mask instead of `%` (a division), and unsigned, which avoids the check for negative indices.
    return np.uint32(np.uint32(item) * np.uint32(_MULTIPLIER) & np.uint32(len(slots) - 1))


@compiled
def find(slots: I32, items: I32, item: int) -> int:
    """Position of the first occurrence of an item in the list given to `slots_of`, `-1` if it is not there."""
    slot = first_slot(slots, item)
    while slots[slot] >= 0 and items[slots[slot]] != item:
        slot = np.uint32(slot + np.uint32(1) & np.uint32(len(slots) - 1))
    return int(slots[slot])


@compiled
def slots_of(items: I32) -> I32:
    """int32[a power of two]: first position of each item, at its slot; `-1` in empty slots. Items `-1` are skipped."""
    size = _MIN_SLOTS
    while size < 8 * len(items):
        size *= 2
    slots = np.full(size, -1, np.int32)
    for position in range(len(items)):
        if items[position] >= 0:
            slot = first_slot(slots, items[position])
            while slots[slot] >= 0 and items[slots[slot]] != items[position]:
                slot = np.uint32(slot + np.uint32(1) & np.uint32(size - 1))
            if slots[slot] < 0:
                slots[slot] = position
    return slots
