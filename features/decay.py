"""Item state: exponentially decayed sums, `S(t) = sum_i amount_i * 2^-((t - t_i) / half_life)`.

Such a sum is linear, so it does not matter in which order events come, late ones count for what they are worth, two
shards' sums add up, and a value is never stale because reading takes the moment. Kept as `(value, at)`: decayed step by
step as events come. (Prefix sums of growing exponentials would overflow float64 within weeks at one hour's half-life.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.compiled import compiled
from features.log import F64, I8, I32, Kind

HALF_LIVES_S = (3600.0, 86400.0, 7 * 86400.0, 30 * 86400.0)
HALF_LIFE_NAMES = ("1h", "1d", "7d", "30d")


@compiled
def _add(value: F64, latest: F64, row: int, kind: int, at: float, amount: float, half_lives: F64) -> None:
    late_s = latest[row] - at
    for h in range(len(half_lives)):
        if late_s > 0:
            value[row, kind, h] += amount * 2.0 ** (-late_s / half_lives[h])
        else:
            keep = 2.0 ** (late_s / half_lives[h])
            for k in range(value.shape[1]):
                value[row, k, h] *= keep
            value[row, kind, h] += amount
    if late_s < 0:
        latest[row] = at


@compiled
def _apply(
    value: F64, latest: F64, category: I32, n_items: int, n_categories: int,
    item: I32, kind: I8, at: F64, half_lives: F64,
) -> None:  # fmt: skip
    """One pass over events: the item's sums, its category's, and the shop's (the last row)."""
    shop = n_items + 1 + n_categories + 1
    for e in range(len(item)):
        i = item[e] if item[e] >= 0 else n_items
        k = kind[e]
        _add(value, latest, i, k, at[e], 1.0, half_lives)
        _add(value, latest, n_items + 1 + category[i], k, at[e], 1.0, half_lives)
        _add(value, latest, shop, k, at[e], 1.0, half_lives)


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
        return cls(
            np.zeros((entities, len(Kind), len(HALF_LIVES_S))), np.zeros(entities), category, n_categories
        )  # fmt: skip

    def apply(self, item: I32, kind: I8, at: F64) -> None:
        """Take in events, in any order; `item` is `-1` for one outside the catalogue."""
        n_items = len(self.category) - 1
        _apply(
            self.value, self.latest, self.category, n_items, self.n_categories,
            item, kind, at, np.array(HALF_LIVES_S),
        )  # fmt: skip

    def of_items(self, item: I32, at: float) -> F64:
        """float64[len(item), kinds, half-lives]: decayed counts of these items at a moment; 0 is "never"."""
        return self._read(np.where(item < 0, len(self.category) - 1, item), at)

    def of_categories(self, item: I32, at: float) -> F64:
        """The same for the category of each item; items without category share one."""
        return self._read(len(self.category) + self.category[item], at)

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

    def _read(self, entity: np.ndarray, at: float) -> F64:
        # A moment before the newest event (a clock a little behind) reads the sums as they are.
        age = np.maximum(at - self.latest[entity], 0.0)
        out: F64 = self.value[entity] * np.exp2(-age[:, None] / np.array(HALF_LIVES_S))[:, None, :]
        return out

    def copy(self) -> ItemState:
        """An independent copy: a worker's own, from a release's snapshot."""
        return ItemState(self.value.copy(), self.latest.copy(), self.category, self.n_categories)
