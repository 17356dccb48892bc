"""Item state: exponentially decayed sums, `S(t) = sum_i amount_i * 2^-((t - t_i) / half_life)`.

The sum is linear, so events may arrive in any order, late events are decayed correctly, and the sums of two shards can
be added. A value is never stale because every read takes a time. Stored as `(value, at)` and decayed incrementally as
events arrive. (Prefix sums of growing exponentials would overflow float64 within weeks at a half-life of one hour.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.arrays import F64, I8, I32, I64
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.log import Kind

HALF_LIVES_S = (3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0)
HALF_LIFE_NAMES = ("1h", "1d", "7d", "30d")


@compiled
def _remaining(age_s: float) -> tuple[float, ...]:
    """The fraction of a sum that remains after `age_s` seconds, for each half-life."""
    # Written out: a tuple of known length stays in registers.
    h1, h2, h3, h4 = HALF_LIVES_S
    return 2.0 ** (-age_s / h1), 2.0 ** (-age_s / h2), 2.0 ** (-age_s / h3), 2.0 ** (-age_s / h4)


@compiled
def _apply(value: F64, latest: F64, category: I32, n_items: int, shop: int, item: I32, kind: I8, at: F64) -> None:
    """Apply events in one pass: each counts for its item, its category and the shop (the last row).

    This is one function on purpose: moving the bodies of the loops into another function doubles the time.
    """
    for e in range(len(item)):
        i = item[e] if item[e] >= 0 else n_items
        for row in (i, n_items + 1 + category[i], shop):
            age_s = at[e] - latest[row]
            if age_s > 0:
                # The newest event of this entity so far: decay all its sums to the time of the event.
                keep = _remaining(age_s)
                for k in range(value.shape[1]):
                    for h in range(len(HALF_LIVES_S)):
                        value[row, k, h] *= keep[h]
                latest[row] = at[e]
            if age_s >= 0:
                for h in range(len(HALF_LIVES_S)):
                    value[row, kind[e], h] += 1.0
            else:
                late = _remaining(-age_s)
                for h in range(len(HALF_LIVES_S)):
                    value[row, kind[e], h] += late[h]


@compiled
def _read(value: F64, entity: I64, keep: F64) -> F64:
    """float64[kinds, half-lives, entities]: decayed sums, contiguous for each kind and half-life for the features."""
    n, kinds, half_lives = len(entity), value.shape[1], value.shape[2]
    out = np.empty((kinds, half_lives, n))
    for c in range(n):
        prefetch(value, entity[min(c + AHEAD, n - 1)])
        sums = value[entity[c]]
        for k in range(kinds):
            for h in range(half_lives):
                out[k, h, c] = sums[k, h] * keep[c, h]
    return out


@dataclass
class ItemState:
    """Decayed event counts of every item, every category and the whole shop.

    value: float64[entities, kinds, half-lives] as of `latest`: float64[entities], Unix seconds (0: no event yet).
    Entities are, in this order, the n items, the unknown item, the categories, the missing category and the shop.
    """

    value: F64
    latest: F64
    category: I32
    n_categories: int

    @classmethod
    def empty(cls, category: I32, n_categories: int) -> ItemState:
        """State before any event. category: int32[n + 1], as in `Catalogue`."""
        entities = len(category) + n_categories + 1 + 1
        return cls(np.zeros((entities, len(Kind), len(HALF_LIVES_S))), np.zeros(entities), category, n_categories)

    def apply(self, item: I32, kind: I8, at: F64) -> None:
        """Apply events, in any order; `item` is `-1` for an item outside the catalogue."""
        n_items, shop = len(self.category) - 1, len(self.value) - 1
        _apply(self.value, self.latest, self.category, n_items, shop, item, kind, at)

    def of_items(self, item: I32, at: float) -> F64:
        """float64[len(item), kinds, half-lives]: decayed event counts of these items at a time; 0 means never."""
        return self._read(np.where(item < 0, len(self.category) - 1, item).astype(np.int64), at)

    def of_categories(self, item: I32, at: float) -> F64:
        """float64[len(item), kinds, half-lives]: decayed event counts of each item's category, which may be missing."""
        return self._read(len(self.category) + self.category[item].astype(np.int64), at)

    def of_shop(self, at: float) -> F64:
        """float64[kinds, half-lives]: decayed event counts of the whole shop."""
        out: F64 = self._read(np.array([len(self.value) - 1]), at)[0]
        return out

    def engaged(self, at: float, half_life: int) -> F64:
        """float64[n]: decayed engagements (all kinds except impressions) of every catalogue item at one half-life."""
        n = len(self.category) - 1
        age = np.maximum(at - self.latest[:n], 0.0)
        out: F64 = self.value[:n, Kind.VIEW :, half_life].sum(axis=1) * np.exp2(-age / HALF_LIVES_S[half_life])
        return out

    def _read(self, entity: I64, at: float) -> F64:
        # At a time before the newest event (a clock slightly behind), the sums are returned as they are.
        age = np.maximum(at - self.latest[entity], 0.0)
        keep = np.exp2(age[:, None] / -np.array(HALF_LIVES_S))
        return _read(self.value, entity, keep).transpose(2, 0, 1)

    def copy(self) -> ItemState:
        """An independent copy, such as a worker's own copy of a release's snapshot."""
        return ItemState(self.value.copy(), self.latest.copy(), self.category, self.n_categories)
