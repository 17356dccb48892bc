"""The catalogue as arrays: one row an item, and one more for every item that is not in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from features.log import F64, I32, I64


@dataclass(frozen=True)
class Catalogue:
    """Attributes of every item.

    `item_ids` is sorted, so row order is id order. Every array has one row more than there are items: the last row is
    the unknown item (nothing known, all missing), which is what index `-1` reads in numpy and numba alike.

    price: float64[n + 1], NaN missing. category, brand: int32[n + 1] into their names; the names' count stands for
    missing, so it too is a valid row. available_from: float64[n + 1], Unix seconds, NaN missing.
    numbers: float64[n + 1, k], the numeric attributes named in `number_names`, NaN missing.
    tags of item i: `tag[tag_start[i]:tag_start[i + 1]]` (int32, into `tag_names`, each as `attribute=value`).
    titles: for people to read; never a feature.
    """

    item_ids: Sequence[str]
    titles: Sequence[str]
    price: F64
    category: I32
    category_names: Sequence[str]
    brand: I32
    brand_names: Sequence[str]
    available_from: F64
    numbers: F64
    number_names: Sequence[str]
    tag_start: I64
    tag: I32
    tag_names: Sequence[str]
    _row: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._row.update(zip(self.item_ids, range(len(self.item_ids)), strict=True))

    def __len__(self) -> int:
        return len(self.item_ids)

    def rows(self, item_ids: Iterable[str]) -> I32:
        """int32: the row of each id, `-1` for an id the catalogue does not know."""
        row = self._row
        return np.array([row.get(i, -1) for i in item_ids], np.int32)
