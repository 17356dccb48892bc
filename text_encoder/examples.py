"""Training examples from the log: what a shopper had engaged with, and the item they engaged with next.

A skip is an item of the same shown list that the shopper never touched. It is read from the impressions of the log
before the cut, never from `Lists`, whose gains know what was bought after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I16, I32, I64
from features.history import engagement_weights
from features.log import GAIN, PART_ROWS, Events, Kind

HISTORY = 20
"""Engagements of a history that training reads; with the weights' half-life older ones hardly count."""

SKIPPED = 4
MOST = 500_000
"""Engagements that become examples: the newest."""


@dataclass(frozen=True)
class Examples:
    """History -> next engaged item, in time order.

    at: float64[n], Unix seconds. user: int32[n]. target: int32[n], the catalogue row engaged with next. weight:
    float32[n], 1 for a view, click or rating, 2 for a cart, 3 for a purchase. history: int32[n, H], catalogue rows,
    newest first, `-1` for none. history_weight: float32[n, H], from `features.interest.weights` with age at `at`; 0 for
    none. Each history has at least one entry of weight, and never the target. skipped: int32[n, K], items of the same
    list that were shown and not touched, those just above the target first, `-1` for none.
    """

    at: F64
    user: I32
    target: I32
    weight: F32
    history: I32
    history_weight: F32
    skipped: I32

    def __len__(self) -> int:
        return len(self.at)

    def take(self, rows: NDArray[np.bool_] | I64 | slice) -> Examples:
        """The examples selected by a mask, row numbers or a slice."""
        return Examples(
            self.at[rows],
            self.user[rows],
            self.target[rows],
            self.weight[rows],
            self.history[rows],
            self.history_weight[rows],
            self.skipped[rows],
        )


def _histories(events: Events, chosen: I64, length: int) -> tuple[I32, F32]:
    """Items and weights before each chosen row of `events`, which is in (user, at) order and holds engagements only."""
    row = np.arange(len(events))
    new_user = np.r_[True, events.user[1:] != events.user[:-1]][: len(events)]
    new_moment = new_user | np.r_[True, events.at[1:] != events.at[:-1]][: len(events)]
    first = np.maximum.accumulate(np.where(new_user, row, 0))[chosen]
    moment = np.maximum.accumulate(np.where(new_moment, row, 0))[chosen]
    source = moment[:, None] - 1 - np.arange(length)
    inside = source >= first[:, None]
    source = np.where(inside, source, 0)
    item = np.where(inside, events.item[source], -1).astype(np.int32)
    # The target itself is no evidence for the target: view, cart and purchase of one item share one history.
    counts = (item >= 0) & (item != events.item[chosen, None])
    age_s = np.where(counts, events.at[chosen, None] - events.at[source], 0.0)
    weight = np.where(counts, engagement_weights(events.kind[source], age_s), np.float32(0)).astype(np.float32)
    return np.where(weight > 0, item, -1).astype(np.int32), weight


def _skips(engaged: Events, shown: Events, chosen: I64, length: int) -> I32:
    """Untouched items of the list of each chosen row of `engaged`, nearest above the row's position first."""
    n_items = int(max(engaged.item.max(initial=-1), shown.item.max(initial=-1))) + 2

    def key(events: Events) -> I64:
        out: I64 = events.request.astype(np.int64) * n_items + events.item + 1
        return out

    untouched = shown.take((shown.item >= 0) & ~np.isin(key(shown), key(engaged)))
    order = np.lexsort((untouched.item, untouched.position, untouched.request))
    request, item = untouched.request[order], untouched.item[order]
    place = request.astype(np.int64) * 2**16 + untouched.position[order]

    wanted = engaged.request[chosen]
    low = np.searchsorted(request, wanted, side="left")
    high = np.where(wanted >= 0, np.searchsorted(request, wanted, side="right"), low)
    position = _positions(engaged.take(chosen), key(engaged)[chosen], shown, key(shown))
    above = np.searchsorted(place, wanted.astype(np.int64) * 2**16 + position)
    # Those above, nearest first; where they are too few, those below.
    step = np.arange(length)
    n_above = (above - low)[:, None]
    source = np.where(step < n_above, above[:, None] - 1 - step, low[:, None] + step)
    inside = source < high[:, None]
    if not len(item):
        return np.full((len(chosen), length), -1, np.int32)
    return np.where(inside, item[np.where(inside, source, 0)], -1).astype(np.int32)


def _positions(engaged: Events, engaged_key: I64, shown: Events, shown_key: I64) -> I16:
    """Where each engaged item stood: as its event says, else as its impression does, else at the top."""
    if not len(shown):
        return np.maximum(engaged.position, 0).astype(np.int16)
    order = np.argsort(shown_key, kind="stable")
    found = np.minimum(np.searchsorted(shown_key[order], engaged_key), len(order) - 1)
    logged = np.where(shown_key[order][found] == engaged_key, shown.position[order][found], 0)
    return np.maximum(np.where(engaged.position >= 0, engaged.position, logged), 0).astype(np.int16)


def _newest(events: Events, most: int) -> I64:
    """int64, ascending: rows of the newest engagements, at most so many; read from the end as far as that takes."""
    parts: list[I64] = []
    end, found = len(events), 0
    while end and found < most:
        begin = max(0, end - PART_ROWS)
        parts.append(begin + np.flatnonzero(events.kind[begin:end] != Kind.IMPRESSION))
        end, found = begin, found + len(parts[-1])
    rows: I64 = np.concatenate([np.empty(0, np.int64), *parts[::-1]])
    return rows[max(0, len(rows) - most) :]


def _shown(events: Events, requests: I32) -> Events:
    """The impressions of these lists."""
    wanted = np.unique(requests[requests >= 0])
    rows, first = [np.empty(0, np.int64)], 0
    for part in events.parts():
        listed = np.flatnonzero((part.kind == Kind.IMPRESSION) & np.isin(part.request, wanted))
        rows.append(first + listed)
        first += len(part)
    return events.take(np.concatenate(rows))


def examples(
    events: Events, before: float, history: int = HISTORY, skipped: int = SKIPPED, most: int = MOST
) -> Examples:
    """History -> next engaged item, from the events strictly before a moment; no later event changes anything.

    Of the newest `most` engagements; where there are more, histories reach back over as many again.

    An example is an engagement (any kind but an impression) with an item of the catalogue, by a user who had engaged
    with another one strictly earlier, within their newest `history` engagements. before: Unix seconds.

    Raises `ValueError` where `before` is NaN or `history` or `skipped` is out of range (1 to 100, 0 to 100).
    """
    if np.isnan(before):
        raise ValueError("before is NaN; give the end of the encoder's window in Unix seconds")
    if not 1 <= history <= 100 or not 0 <= skipped <= 100:
        raise ValueError(f"history {history} must be 1 to 100 and skipped {skipped} 0 to 100")
    events = events.before(before)
    newest = _newest(events, 2 * most)
    engaged, since = events.take(newest), int(newest[-most]) if len(newest) > most else 0
    by_user = np.argsort(engaged.user, kind="stable")
    engaged, row = engaged.take(by_user), newest[by_user]
    chosen: I64 = np.flatnonzero((engaged.item >= 0) & (row >= since))
    shown = _shown(events, engaged.request[chosen])
    item, weight = _histories(engaged, chosen, history)
    some = (weight > 0).any(axis=1)
    chosen, item, weight = chosen[some], item[some], weight[some]
    out = Examples(
        engaged.at[chosen],
        engaged.user[chosen],
        engaged.item[chosen],
        GAIN[engaged.kind[chosen]].astype(np.float32),
        item,
        weight,
        _skips(engaged, shown, chosen, skipped),
    )
    return out.take(np.argsort(out.at, kind="stable"))
