"""Item state: exponentially decayed sums, `S(t) = sum_i amount_i * 2^-((t - t_i) / half_life)`.

Such a sum is linear, so it does not matter in which order events come, late ones count for what they are worth, two
shards' sums add up, and a value is never stale because reading takes the moment. Kept as `(value, at)`: decayed step by
step as events come. (Prefix sums of growing exponentials would overflow float64 within weeks at one hour's half-life.)
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
def _keep(age_s: float) -> tuple[float, ...]:
    """What is left of 1 after `age_s` seconds, for each half-life."""
    # Written out: a tuple of known length stays in registers.
    h1, h2, h3, h4 = HALF_LIVES_S
    return 2.0 ** (-age_s / h1), 2.0 ** (-age_s / h2), 2.0 ** (-age_s / h3), 2.0 ** (-age_s / h4)


@compiled
def _apply(value: F64, latest: F64, category: I32, n_items: int, shop: int, item: I32, kind: I8, at: F64) -> None:
    """One pass over events: each counts for its item, its category, and the shop (the last row).

    One function on purpose: with what is inside the loops as a function of its own, a pass takes twice the time.
    """
    for e in range(len(item)):
        i = item[e] if item[e] >= 0 else n_items
        for row in (i, n_items + 1 + category[i], shop):
            age_s = at[e] - latest[row]
            if age_s > 0:
                # The newest event of this entity: all its sums move on to the event's time.
                keep = _keep(age_s)
                for k in range(value.shape[1]):
                    for h in range(len(HALF_LIVES_S)):
                        value[row, k, h] *= keep[h]
                latest[row] = at[e]
            if age_s >= 0:
                for h in range(len(HALF_LIVES_S)):
                    value[row, kind[e], h] += 1.0
            else:
                late = _keep(-age_s)
                for h in range(len(HALF_LIVES_S)):
                    value[row, kind[e], h] += late[h]


@compiled
def _read(value: F64, entity: I64, keep: F64) -> F64:
    """float64[kinds, half-lives, entities]: each sum by itself contiguous, as features read them."""
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

    value: float64[entities, kinds, half-lives] as of `latest`: float64[entities], Unix seconds (0: nothing yet).
    Entities are the n items, the unknown item, the categories, the missing category, the shop: in that order.
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
        """Take in events, in any order; `item` is `-1` for one outside the catalogue."""
        n_items, shop = len(self.category) - 1, len(self.value) - 1
        _apply(self.value, self.latest, self.category, n_items, shop, item, kind, at)

    def of_items(self, item: I32, at: float) -> F64:
        """float64[len(item), kinds, half-lives]: decayed counts of these items at a moment; 0 is "never"."""
        return self._read(np.where(item < 0, len(self.category) - 1, item).astype(np.int64), at)

    def of_categories(self, item: I32, at: float) -> F64:
        """float64[len(item), kinds, half-lives]: of the category of each item; items without category share one."""
        return self._read(len(self.category) + self.category[item].astype(np.int64), at)

    def of_shop(self, at: float) -> F64:
        """float64[kinds, half-lives]: the same for the whole shop."""
        out: F64 = self._read(np.array([len(self.value) - 1]), at)[0]
        return out

    def engaged(self, at: float, half_life: int) -> F64:
        """float64[n]: decayed engagements, impressions left out, of every item of the catalogue at one half-life."""
        n = len(self.category) - 1
        age = np.maximum(at - self.latest[:n], 0.0)
        out: F64 = self.value[:n, Kind.VIEW :, half_life].sum(axis=1) * np.exp2(-age / HALF_LIVES_S[half_life])
        return out

    def _read(self, entity: I64, at: float) -> F64:
        # A moment before the newest event (a clock a little behind) reads the sums as they are.
        age = np.maximum(at - self.latest[entity], 0.0)
        keep = np.exp2(age[:, None] / -np.array(HALF_LIVES_S))
        return _read(self.value, entity, keep).transpose(2, 0, 1)

    def copy(self) -> ItemState:
        """An independent copy: a worker's own, from a release's snapshot."""
        return ItemState(self.value.copy(), self.latest.copy(), self.category, self.n_categories)
