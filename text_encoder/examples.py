"""Training examples from the log: a user's engagement history and the item they engaged with next.

A skip is an item of the same shown list that the user did not engage with. Skips come from the impressions in the log
before the end of the window, not from `features.log.Lists`, whose gains include later purchases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I16, I32, I64
from features.history import engagement_weights
from features.log import CHUNK_ROWS, GAIN, Events, Kind
from features.retention import DEFAULT_RETENTION, Retention

HISTORY_LENGTH = 20
"""Engagements per history. Older ones have a very small weight because of the half-life."""

MAX_SKIPS = 4
MAX_EXAMPLES = 500_000


@dataclass(frozen=True)
class Examples:
    """Examples of history -> next engaged item, in time order.

    at: float64[n], Unix seconds. user: int32[n]. target: int32[n], catalogue row of the next engaged item. weight:
    float32[n], 1 for a view, click or rating, 2 for a cart, 3 for a purchase. history: int32[n, H], catalogue rows,
    newest first, padded with `-1`. history_weight: float32[n, H], from `features.history.engagement_weights` with the
    age at `at`; 0 for padding. Each history has at least one entry with a weight, and never contains the target.
    skipped: int32[n, K], skips from the list of the target, those closest above the target first, padded with `-1`.
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


def _histories(events: Events, targets: I64, length: int, retention: Retention) -> tuple[I32, F32]:
    """(items, weights) of the engagements before each target row, without expired ones.

    events: engagements only, in (user, at) order. targets: int64, rows of `events`.
    """
    row = np.arange(len(events))
    new_user = np.r_[True, events.user[1:] != events.user[:-1]][: len(events)]
    kept_s = retention.of_all(events.user_ids)[events.user]
    # After a gap in which the user's list has expired, the history begins again.
    new_user |= np.diff(events.at, prepend=-np.inf) > kept_s
    new_time = new_user | np.r_[True, events.at[1:] != events.at[:-1]][: len(events)]
    first_of_user = np.maximum.accumulate(np.where(new_user, row, 0))[targets]
    first_at_time = np.maximum.accumulate(np.where(new_time, row, 0))[targets]
    source = first_at_time[:, None] - 1 - np.arange(length)
    inside = source >= first_of_user[:, None]
    source = np.where(inside, source, 0)
    item = np.where(inside, events.item[source], -1).astype(np.int32)
    # The target is excluded, so that the view, cart and purchase of one item have the same history.
    counts = (item >= 0) & (item != events.item[targets, None])
    age_s = np.where(counts, events.at[targets, None] - events.at[source], 0.0)
    weight = np.where(counts, engagement_weights(events.kind[source], age_s), np.float32(0)).astype(np.float32)
    return np.where(weight > 0, item, -1).astype(np.int32), weight


def _skips(engaged: Events, shown: Events, targets: I64, length: int) -> I32:
    """Skips from the list of each target row of `engaged`, those closest above the target first."""
    n_items = int(max(engaged.item.max(initial=-1), shown.item.max(initial=-1))) + 2

    def key(events: Events) -> I64:
        out: I64 = events.request.astype(np.int64) * n_items + events.item + 1
        return out

    skips = shown.take((shown.item >= 0) & ~np.isin(key(shown), key(engaged)))
    order = np.lexsort((skips.item, skips.position, skips.request))
    request, item = skips.request[order], skips.item[order]
    sort_key = request.astype(np.int64) * 2**16 + skips.position[order]

    target_request = engaged.request[targets]
    low = np.searchsorted(request, target_request, side="left")
    high = np.where(target_request >= 0, np.searchsorted(request, target_request, side="right"), low)
    position = _positions(engaged.take(targets), key(engaged)[targets], shown, key(shown))
    above = np.searchsorted(sort_key, target_request.astype(np.int64) * 2**16 + position)
    # First the skips above the target, closest first. If these are too few, the skips below follow.
    step = np.arange(length)
    n_above = (above - low)[:, None]
    source = np.where(step < n_above, above[:, None] - 1 - step, low[:, None] + step)
    inside = source < high[:, None]
    if not len(item):
        return np.full((len(targets), length), -1, np.int32)
    return np.where(inside, item[np.where(inside, source, 0)], -1).astype(np.int32)


def _positions(engaged: Events, engaged_key: I64, shown: Events, shown_key: I64) -> I16:
    """Position of each engaged item: from its event, else from its impression, else 0."""
    if not len(shown):
        return np.maximum(engaged.position, 0).astype(np.int16)
    order = np.argsort(shown_key, kind="stable")
    candidate = np.minimum(np.searchsorted(shown_key[order], engaged_key), len(order) - 1)
    logged = np.where(shown_key[order][candidate] == engaged_key, shown.position[order][candidate], 0)
    return np.maximum(np.where(engaged.position >= 0, engaged.position, logged), 0).astype(np.int16)


def newest_engagements(events: Events, most: int, known: bool = False) -> I64:
    """int64, ascending: rows of at most `most` newest engagements. Reads only as much of the log as necessary.

    known: only those with items of the catalogue.
    """
    parts: list[I64] = []
    end, count = len(events), 0
    while end and count < most:
        begin = max(0, end - CHUNK_ROWS)
        wanted = events.kind[begin:end] != Kind.IMPRESSION
        if known:
            wanted &= events.item[begin:end] >= 0
        parts.append(begin + np.flatnonzero(wanted))
        end, count = begin, count + len(parts[-1])
    rows: I64 = np.concatenate([np.empty(0, np.int64), *parts[::-1]])
    return rows[max(0, len(rows) - most) :]


def _impressions(events: Events, requests: I32) -> Events:
    """The impressions of the given lists."""
    wanted = np.unique(requests[requests >= 0])
    rows, first = [np.empty(0, np.int64)], 0
    for part in events.parts():
        listed = np.flatnonzero((part.kind == Kind.IMPRESSION) & np.isin(part.request, wanted))
        rows.append(first + listed)
        first += len(part)
    return events.take(np.concatenate(rows))


def examples(
    events: Events,
    before: float,
    history: int = HISTORY_LENGTH,
    skipped: int = MAX_SKIPS,
    most: int = MAX_EXAMPLES,
    retention: Retention = DEFAULT_RETENTION,
) -> Examples:
    """Training examples from the events strictly before a time. Later events have no effect.

    An example is an engagement (an event of any kind except impression) with a catalogue item. Its user must have
    engaged with another item at an earlier time, within their latest `history` engagements.

    before: Unix seconds. history: length of the histories, 1 to 100. skipped: maximum number of skips per example, 0 to
    100. most: use only this many newest engagements; their histories can contain as many older ones. retention: of the
    users' histories, as when they are read for a request. Raises `ValueError` if `before` is NaN or `history` or
    `skipped` is out of range.
    """
    if np.isnan(before):
        raise ValueError("before is NaN, expected the end of the encoder window in Unix seconds")
    if not 1 <= history <= 100 or not 0 <= skipped <= 100:
        raise ValueError(f"history is {history}, expected 1 to 100; skipped is {skipped}, expected 0 to 100")
    events = events.before(before)
    newest = newest_engagements(events, 2 * most)
    engaged, first_row = events.take(newest), int(newest[-most]) if len(newest) > most else 0
    by_user = np.argsort(engaged.user, kind="stable")
    engaged, row = engaged.take(by_user), newest[by_user]
    targets: I64 = np.flatnonzero((engaged.item >= 0) & (row >= first_row))
    shown = _impressions(events, engaged.request[targets])
    item, weight = _histories(engaged, targets, history, retention)
    has_history = (weight > 0).any(axis=1)
    targets, item, weight = targets[has_history], item[has_history], weight[has_history]
    out = Examples(
        engaged.at[targets],
        engaged.user[targets],
        engaged.item[targets],
        GAIN[engaged.kind[targets]].astype(np.float32),
        item,
        weight,
        _skips(engaged, shown, targets, skipped),
    )
    return out.take(np.argsort(out.at, kind="stable"))
