"""Where in a short list an item stands: an open-addressed hash table, for kernels that look up many in few.

For the two lists of a user, so that what a list says of 500 candidates, or of their 25,000 neighbours, costs a look
each and not a pass over the list.
"""

from __future__ import annotations

import numpy as np

from features.arrays import I32
from features.kernels.compiled import compiled

_LEAST = 4096
"""Slots of the smallest table. So many that nearly every item that is not in a list of 100 meets an empty slot at once:
with 512 a look-up took three times as long, most of it in branches guessed wrong."""
_SPREAD = 40503
"""Odd, and so keeps neighbouring rows apart: a brand's items often stand together, and would probe past each other."""


@compiled
def home(slots: I32, item: int) -> np.uint32:
    """The slot where the search for an item begins; empty (`-1`) only where it is not in the list."""
    # A mask in place of `%` (a division), and unsigned, so that no index is looked at for being negative.
    return np.uint32(np.uint32(item) * np.uint32(_SPREAD) & np.uint32(len(slots) - 1))


@compiled
def find(slots: I32, items: I32, item: int) -> int:
    """The first place of an item in the list that `slots_of` was given, `-1` where it is not there."""
    slot = home(slots, item)
    while slots[slot] >= 0 and items[slots[slot]] != item:
        slot = np.uint32(slot + np.uint32(1) & np.uint32(len(slots) - 1))
    return int(slots[slot])


@compiled
def slots_of(items: I32) -> I32:
    """int32[a power of two]: the first place of each item of a list at its slot, `-1` in empty ones; `-1` left out."""
    size = _LEAST
    while size < 8 * len(items):
        size *= 2
    slots = np.full(size, -1, np.int32)
    for place in range(len(items)):
        if items[place] >= 0:
            slot = home(slots, items[place])
            while slots[slot] >= 0 and items[slots[slot]] != items[place]:
                slot = np.uint32(slot + np.uint32(1) & np.uint32(size - 1))
            if slots[slot] < 0:
                slots[slot] = place
    return slots
