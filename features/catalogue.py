"""The catalogue as arrays: one row per item, and a last row for any item outside the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from features.arrays import F64, I32, I64, Bool
from features.kernels.compiled import compiled
from features.kernels.prefetch import AHEAD, prefetch
from features.kernels.strings import StringIndex

TEXT_COLUMNS = ("title", "description", "category", "brand")
"""Columns of an item table with its texts, besides text attributes."""
STANDARD_COLUMNS = ("item_id", *TEXT_COLUMNS, "price", "available_from", "available", "group_id", "image_url")
"""Columns of an item table with a fixed meaning; all other columns are attributes."""


@compiled
def _spans(start: I64, item: I32) -> tuple[I64, I64]:
    """int64, like `item`: start and end of each item's tags.

    They are read for all items first, so that the memory accesses overlap.
    """
    first, end = np.empty(len(item), np.int64), np.empty(len(item), np.int64)
    for c in range(len(item)):
        row = item[c] if item[c] >= 0 else len(start) - 2
        first[c], end[c] = start[row], start[row + 1]
    return first, end


@compiled
def totals(start: I64, tag: I32, n_tags: int, item: I32, amount: F64) -> tuple[F64, F64]:
    """See `Tags.totals`."""
    total = np.zeros(n_tags)
    count = np.zeros(n_tags)
    first, end = _spans(start, item)
    for j in range(len(item)):
        prefetch(tag, first[min(j + AHEAD, len(item) - 1)])
        for p in range(first[j], end[j]):
            total[tag[p]] += amount[j]
            count[tag[p]] += 1.0
    return total, count


@compiled
def means(start: I64, tag: I32, value: F64, item: I32) -> F64:
    """float64[v, items]: `Tags.mean` of v values per tag at once. value: float64[n_tags, v]."""
    n = len(item)
    out = np.full((value.shape[1], n), np.nan)
    first, end = _spans(start, item)
    for c in range(n):
        prefetch(tag, first[min(c + AHEAD, n - 1)])
        if end[c] > first[c]:
            for v in range(value.shape[1]):
                total = 0.0
                for p in range(first[c], end[c]):
                    total += value[tag[p], v]
                out[v, c] = total / (end[c] - first[c])
    return out


@compiled
def _any_of(start: I64, tag: I32, selected: Bool, item: I32) -> Bool:
    out = np.zeros(len(item), np.bool_)
    for c in range(len(item)):
        row = item[c] if item[c] >= 0 else len(start) - 2
        for p in range(start[row], start[row + 1]):
            if selected[tag[p]]:
                out[c] = True
                break
    return out


@dataclass(frozen=True)
class Tags:
    """An attribute with any number of values per item. The tags of item i are `tag[start[i]:start[i + 1]]`."""

    start: I64
    tag: I32
    n_tags: int

    def totals(self, item: I32, amount: F64) -> tuple[F64, F64]:
        """float64[n_tags] each: sum of amounts over the items with each tag, and the number of those items.

        item: int32[m] catalogue rows; a repeated row counts each time. amount: float64[m].
        """
        return totals(self.start, self.tag, self.n_tags, item, amount)

    def mean(self, value: F64, item: I32) -> F64:
        """float64, like `item`: mean over each item's tags; NaN for an item without tags. value: float64[n_tags]."""
        out: F64 = means(self.start, self.tag, value[:, None], item)[0]
        return out

    def any_of(self, selected: Bool, item: I32) -> Bool:
        """bool, like `item`: whether an item has any of the selected tags. selected: bool[n_tags]."""
        return _any_of(self.start, self.tag, selected, item)


class Codes(NamedTuple):
    """An attribute with at most one value per item. code: int32[n + 1], from 0 to `missing`, which means no value."""

    code: I32
    missing: int


@dataclass(frozen=True)
class Catalogue:
    """Attributes of every item.

    `item_ids` is sorted, so row order is id order. Every array has one row more than there are items: the last row is
    the unknown item (all values missing), which index `-1` reads in both numpy and numba.

    price: float64[n + 1], NaN missing. category, brand: int32[n + 1], indices into their names; the number of names
    means missing, so that missing values also index a row of arrays by category or brand. available_from:
    float64[n + 1], Unix seconds, NaN missing.
    numbers: float64[n + 1, k], the numeric attributes named in `number_names`, NaN missing; those also in `date_names`
    are dates, in years since 1970.
    tags of item i: `tag[tag_start[i]:tag_start[i + 1]]` (int32, into `tag_names`, each as `attribute=value`).
    titles: for display; never a feature.
    group: int32[n + 1], index into `group_names`: the product of which the item is a variant. The number of names means
    that the item is a product of its own. None if that is so of every item. Never a feature.
    values: float64[n + 1, v], the numbers named in `value_names`, which are never features, such as a margin; NaN
    missing, float64[0, 0] if there are none.
    withdrawn: int32[k], rows of the items that are in the log, but must not be in results. Never a feature.
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
    date_names: Sequence[str] = ()
    group: I32 | None = None
    group_names: Sequence[str] = ()
    values: F64 = field(default_factory=lambda: np.empty((0, 0)))
    value_names: Sequence[str] = ()
    withdrawn: I32 = field(default_factory=lambda: np.empty(0, np.int32))

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def tags(self) -> Tags:
        """All values of the list and text attributes of each item."""
        return Tags(self.tag_start, self.tag, len(self.tag_names))

    @cached_property
    def by_attribute(self) -> dict[str, Tags]:
        """The same values, split by attribute and sorted by attribute name."""
        attribute = np.array([name.split("=", 1)[0] for name in self.tag_names], object)
        if len(set(attribute)) == 1:
            # The same object, so that results cached by identity are shared.
            return {attribute[0]: self.tags}
        owner = np.repeat(np.arange(len(self.tag_start) - 1), np.diff(self.tag_start))
        out = {}
        for name in sorted(set(attribute)):
            codes = np.flatnonzero(attribute == name)
            renumbered = np.full(len(self.tag_names), -1, np.int32)
            renumbered[codes] = np.arange(len(codes), dtype=np.int32)
            selected = renumbered[self.tag] >= 0
            start = np.searchsorted(owner[selected], np.arange(len(self.tag_start)))
            out[name] = Tags(start, renumbered[self.tag[selected]], len(codes))
        return out

    @cached_property
    def row_index(self) -> StringIndex:
        """Index from item id to row."""
        return StringIndex.of(self.item_ids)

    def amounts(self, name: str) -> F64 | None:
        """float64[n + 1], NaN missing: the price, or the numeric attribute of this name; None if there is none.

        Dates are not amounts.
        """
        if name == "price":
            return self.price
        if name in self.value_names:
            return self.values[:, list(self.value_names).index(name)]
        if name in self.number_names and name not in self.date_names:
            return self.numbers[:, list(self.number_names).index(name)]
        return None

    @property
    def amount_names(self) -> list[str]:
        """The names that `amounts` knows."""
        return ["price", *(n for n in self.number_names if n not in self.date_names), *self.value_names]

    def rows(self, item_ids: Iterable[str]) -> I32:
        """int32: the row of each id, `-1` for an unknown id."""
        return self.row_index.find(item_ids)
