"""The event log and the shown lists as arrays, the form that all other modules use.

Ids are strings only at the boundary. Inside, a user, an item or a request is a row number, `-1` for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I8, I16, I32, I64


class Kind(IntEnum):
    """Type of a user's event on an item. The number is stored in Redis records: append, never renumber."""

    IMPRESSION = 0
    VIEW = 1
    CLICK = 2
    CART = 3
    PURCHASE = 4
    RATING = 5


KINDS = tuple(k.name.lower() for k in Kind)

GA4 = {
    "view_item_list": "impression",
    "select_item": "click",
    "view_item": "view",
    "add_to_cart": "cart",
    "purchase": "purchase",
}
"""Google Analytics 4 e-commerce event names and our kinds; accepted wherever a kind is expected, in files and calls."""

GAIN = np.array([0, 1, 1, 2, 3, 1], np.int8)
"""Gain of the best action on a listed item, indexed by `Kind`: purchase above cart above click, view and rating."""


ATTRIBUTION_S = 86400.0
"""Default attribution time (one day): an action this long after an impression still counts for it, in labels as in
features."""

CHUNK_ROWS = 131_072
"""Events per chunk when a whole log is processed from beginning to end."""


@dataclass(frozen=True)
class Events:
    """Events in time order, one row each; equal times are ordered by kind, then item.

    at: float64[n], Unix seconds UTC. user: int32[n]. item: int32[n], `-1` for an item outside the catalogue.
    kind: int8[n], a `Kind`. request: int32[n], the list it belongs to, `-1` for none. position: int16[n], place in
    that list from 0, `-1` unknown. value: float64[n], NaN for none (money, quantity or stars, as the source had it).
    session: int32[n], the logged session, `-1` for none. device: int8[n], a `Device`, `-1` for none.
    queries: search text by request number, taken from the impressions of the request.
    """

    at: F64
    user: I32
    item: I32
    kind: I8
    request: I32
    position: I16
    value: F64
    user_ids: Sequence[str]
    request_ids: Sequence[str]
    session: I32
    device: I8
    queries: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.at)

    @property
    def n_users(self) -> int:
        """Number of users in the log."""
        return len(self.user_ids)

    def take(self, rows: NDArray[np.bool_] | I64 | slice) -> Events:
        """The events selected by a mask, by row numbers in ascending order, or by a slice; ids are shared."""
        return type(self)(
            self.at[rows],
            self.user[rows],
            self.item[rows],
            self.kind[rows],
            self.request[rows],
            self.position[rows],
            self.value[rows],
            self.user_ids,
            self.request_ids,
            self.session[rows],
            self.device[rows],
            self.queries,
        )

    def parts(self, rows: int = CHUNK_ROWS) -> Iterator[Events]:
        """Consecutive chunks of about `rows` events; events with equal times stay in one chunk."""
        begin = 0
        while begin < len(self):
            end = begin + rows
            end = int(np.searchsorted(self.at, self.at[end], side="right")) if end < len(self) else len(self)
            yield self.take(slice(begin, end))
            begin = end

    def before(self, at: float) -> Events:
        """The events strictly before a time: all that a row at that time may use."""
        return self.take(slice(0, int(np.searchsorted(self.at, at, side="left"))))


@dataclass(frozen=True)
class Lists:
    """Shown lists in time order: the query groups of training and evaluation.

    List `g` was shown to `user[g]` at `at[g]` and holds the rows `start[g]:start[g + 1]` of the arrays below it.
    item: int32[rows]. position: int16[rows] from 0, `-1` in a list that was rebuilt because none was logged. gain:
    int8[rows], 0 to 3 (see `GAIN`). missed: int32[g, 3], column j: items of gain j + 1 that a rebuilt list did not
    retrieve; they count in the ideal of a metric. device: int8[g], a `Device`, `-1` unknown. query: search text of each
    list, empty for none. columns: float32[k, rows], values of declared columns; empty if none are read. seeds:
    int32[g, m], the known items that the request of each list named, then `-1`; empty if none are read.
    """

    at: F64
    user: I32
    request_ids: Sequence[str]
    start: I64
    item: I32
    position: I16
    gain: I8
    missed: I32
    device: I8
    query: Sequence[str]
    columns: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    seeds: I32 = field(default_factory=lambda: np.empty((0, 0), np.int32))

    def __len__(self) -> int:
        return len(self.at)

    @property
    def rows(self) -> int:
        """Number of candidates over all lists."""
        return len(self.item)

    @property
    def group(self) -> I32:
        """int32[rows]: the list each row belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.start))

    def take(self, lists: I64) -> Lists:
        """The lists with these numbers, in the order given."""
        sizes = np.diff(self.start)[lists]
        start = np.concatenate(([0], np.cumsum(sizes)))
        rows = np.repeat(self.start[lists] - start[:-1], sizes) + np.arange(start[-1])
        return Lists(
            self.at[lists],
            self.user[lists],
            [self.request_ids[g] for g in lists.tolist()],
            start,
            self.item[rows],
            self.position[rows],
            self.gain[rows],
            self.missed[lists],
            self.device[lists],
            [self.query[g] for g in lists.tolist()],
            self.columns[:, rows] if len(self.columns) else self.columns,
            self.seeds[lists] if len(self.seeds) else self.seeds,
        )

    def columns_of(self, number: int) -> F32 | None:
        """float32[k, c]: the columns of one list; None if none are read."""
        return self.columns[:, self.start[number] : self.start[number + 1]] if len(self.columns) else None

    def seeds_of(self, number: int) -> I32:
        """int32[s]: the seeds of one list."""
        if not len(self.seeds):
            return np.empty(0, np.int32)
        row: I32 = self.seeds[number]
        return row[row >= 0]
