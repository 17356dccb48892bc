"""Query groups: the lists that were shown, with the gain of what became of them; or, where none was logged, rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from features.arrays import F64, I8, I32, I64
from features.context import NO_DEVICE
from features.log import GAIN, PART_ROWS, Events, Kind, Lists
from features.replay import Replay
from features.retrieval import retrieve
from offline.data.append_only import release_pages
from offline.runtime import LOCAL, Engine, split_evenly

NO_LISTS = Lists(
    np.empty(0),
    np.empty(0, np.int32),
    [],
    np.zeros(1, np.int64),
    np.empty(0, np.int32),
    np.empty(0, np.int16),
    np.empty(0, np.int8),
    np.empty((0, 3), np.int32),
    np.empty(0, np.int8),
    [],
)
"""No list."""
ATTRIBUTION_S = 86400.0
"""An action this long after an impression is still the list's (one day)."""


def iter_logged_lists(events: Events, attribution_s: float, rows: int = PART_ROWS) -> Iterator[Lists]:
    """The lists of `logged`, some at a time, one after the other: those that begin among about `rows` events, or within
    the attribution time where that holds more."""
    begin = 0
    while begin < len(events):
        end = int(np.searchsorted(events.at, events.at[begin] + attribution_s, side="right"))
        end = max(end, begin + rows)
        # A small rest goes along.
        until = float(events.at[end]) if end + rows // 2 < len(events) else np.inf
        since = float(events.at[begin])
        seen = slice(
            int(np.searchsorted(events.at, since - attribution_s)),
            int(np.searchsorted(events.at, until + attribution_s, side="right")),
        )
        yield logged_lists(events.take(seen), attribution_s, since, until)
        release_pages(events)
        begin = int(np.searchsorted(events.at, until))


def logged_lists(
    events: Events, attribution_s: float = ATTRIBUTION_S, since: float = -np.inf, until: float = np.inf
) -> Lists:
    """The lists in the log: impressions of one request, at the time of the first, candidates in shown order.

    since, until: only lists from one moment up to, not including, the other; the events must hold those of the
    attribution time before and after. Impressions that come later than that after a list's first are none of it.

    The gain of an item is its best action there: by request where the event names one, else by the same user on the
    same item within `attribution_s` of the latest list that showed it. An item shown twice in a list stands once, at
    its first position; an impression of an item outside the catalogue is left out. Device and query are the first that
    an impression names: those of a click would tell which lists were clicked.
    """
    shown = events.take((events.kind == Kind.IMPRESSION) & (events.request >= 0) & (events.item >= 0))
    order = np.lexsort((shown.position, shown.at, shown.request))
    _, first = np.unique(_pair(shown.request, shown.item)[order], return_index=True)
    shown = shown.take(order[np.sort(first)])
    shown = shown.take(shown.at - _list_start(shown) <= attribution_s)
    start = np.flatnonzero(np.diff(shown.request, prepend=-1))
    at = np.minimum.reduceat(shown.at, start) if len(start) else np.empty(0)
    bounds = np.append(start, len(shown))
    gain = _gains(events, shown, np.repeat(at, np.diff(bounds)), attribution_s)
    request_ids = [events.request_ids[r] for r in shown.request[start].tolist()]
    none_missed = np.zeros((len(start), 3), np.int32)
    device = _first_device(shown.device, bounds)
    query = [events.queries.get(r, "") for r in shown.request[start].tolist()]
    lists = Lists(
        at, shown.user[start], request_ids, bounds, shown.item, shown.position, gain, none_missed, device, query
    )
    inside = np.flatnonzero((at >= since) & (at < until))
    return lists.take(inside[np.lexsort(([request_ids[g] for g in inside], at[inside]))])


def _list_start(shown: Events) -> F64:
    """float64[n]: when the list of each impression began; those of a list stand together."""
    start = np.flatnonzero(np.diff(shown.request, prepend=-1))
    at = np.minimum.reduceat(shown.at, start) if len(start) else np.empty(0)
    return np.repeat(at, np.diff(np.append(start, len(shown))))


def _first_device(device: I8, bounds: I64) -> I8:
    """int8[g]: the first device named between each two bounds, `NO_DEVICE` where none is."""
    out = np.full(len(bounds) - 1, NO_DEVICE, np.int8)
    named = np.flatnonzero(device != NO_DEVICE)[::-1]
    # Of several writes to one place the last stays: the first that is named.
    out[np.searchsorted(bounds, named, side="right") - 1] = device[named]
    return out


def _pair(a: I32, b: I32) -> I64:
    return a.astype(np.int64) << 32 | b


def _gains(events: Events, shown: Events, shown_at: np.ndarray, attribution_s: float) -> I8:
    """One for each shown row: the best gain among the actions that are its."""
    acts = events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0))
    rows = pd.DataFrame(
        {"at": shown_at, "request": shown.request, "user": shown.user, "item": shown.item, "row": np.arange(len(shown))}
    )
    acted = pd.DataFrame(
        {"at": acts.at, "request": acts.request, "user": acts.user, "item": acts.item, "gain": GAIN[acts.kind]}
    )
    named = acted[acted.request >= 0].merge(rows, on=["request", "item"], suffixes=("", "_shown"))
    named = named[(named["at"] >= named["at_shown"]) & (named["at"] - named["at_shown"] <= attribution_s)]
    loose = pd.merge_asof(
        acted[acted.request < 0],
        rows.sort_values("at", kind="stable"),
        on="at",
        by=["user", "item"],
        tolerance=attribution_s,  # type: ignore[arg-type]  # seconds, as `at` is
    ).dropna(subset="row")
    gain = np.zeros(len(shown), np.int8)
    for found in (named, loose):
        np.maximum.at(gain, found["row"].to_numpy(np.int64), found["gain"].to_numpy(np.int8))
    return gain


class RebuildJob(NamedTuple):
    """What is retrieved for: `size` candidates at most for each basket."""

    replay: Replay
    baskets: Lists
    size: int


def _retrieve(asked: RebuildJob, part: range) -> Iterator[I32]:
    """int32[candidates] for each basket of a run of neighbours: what retrieval would have offered at its moment."""
    baskets = asked.baskets.take(np.arange(part.start, part.stop))
    none = replace(baskets, start=np.zeros(len(baskets) + 1, np.int64), item=np.empty(0, np.int32))
    for r in asked.replay.snapshots(none):
        yield retrieve(r.items, r.history, r.at, asked.size, r.context).item


def rebuild_lists(
    replay: Replay,
    asked: Lists,
    size: int,
    on_progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> Lists:
    """Lists for a log that holds none: for each basket, what retrieval would have offered that user at that moment.

    asked: of `baskets`, in time order; the items of a basket are the gain. What retrieval failed to offer is counted in
    `missed`, and in the ideal of a metric. size: candidates at most.
    """
    starts, items, gains, missed = [0], [np.empty(0, np.int32)], [np.empty(0, np.int8)], []
    parts = split_evenly(np.arange(len(asked) + 1), engine.parts)
    for number, offered in enumerate(engine.map(_retrieve, RebuildJob(replay, asked, size), parts)):
        of_basket = slice(asked.start[number], asked.start[number + 1])
        wanted, worth = asked.item[of_basket], asked.gain[of_basket]
        gain = np.zeros(len(offered), np.int8)
        for item, g in zip(wanted, worth, strict=True):
            gain[offered == item] = g
        items.append(offered)
        gains.append(gain)
        missed.append(np.bincount(worth[~np.isin(wanted, offered)], minlength=4)[1:])
        starts.append(starts[-1] + len(offered))
        if on_progress and number % 32 == 31:
            on_progress(number + 1, len(asked))
    item = np.concatenate(items)
    return replace(
        asked,
        start=np.array(starts, np.int64),
        item=item,
        position=np.full(len(item), -1, np.int16),
        gain=np.concatenate(gains),
        missed=np.array(missed, np.int32).reshape(-1, 3),
    )


class Targets(NamedTuple):
    """What was engaged with, one row an item of a list, offered there or not: what an order is to find.

    of: int64[t], ascending, the number of the list. item: int32[t], a row of the catalogue. gain: int8[t], 1 to 3.
    """

    of: I64
    item: I32
    gain: I8


def find_targets(lists: Lists, asked: Lists) -> Targets:
    """What was engaged with in each of `lists`.

    asked: the lists that hold it all, by the same ids: `lists` themselves where they were logged, else `baskets`.
    Raises KeyError for a list that is not among them.
    """
    number = {request: g for g, request in enumerate(asked.request_ids)}
    found = asked.take(np.array([number[r] for r in lists.request_ids], np.int64))
    some = found.gain > 0
    return Targets(found.group[some].astype(np.int64), found.item[some], found.gain[some])


def concat(parts: Iterable[Lists]) -> Lists:
    """Lists of which each part is later than the one before, as one."""
    held = [NO_LISTS, *parts]
    item, position, gain, missed, device = (
        np.concatenate([getattr(p, name) for p in held]) for name in ("item", "position", "gain", "missed", "device")
    )
    start = np.cumsum([0, *(p.rows for p in held)])
    return Lists(
        np.concatenate([p.at for p in held]),
        np.concatenate([p.user for p in held]),
        [r for p in held for r in p.request_ids],
        np.concatenate([[0], *(p.start[1:] + s for p, s in zip(held, start[:-1], strict=True))]).astype(np.int64),
        item,
        position,
        gain,
        missed,
        device,
        [q for p in held for q in p.query],
    )


def keys(parts: Iterable[Lists]) -> Lists:
    """When the lists were and whose, without what was in them or what they are called."""
    each = [(p.at, p.user) for p in parts]
    at = np.concatenate([NO_LISTS.at, *(a for a, _ in each)])
    user = np.concatenate([NO_LISTS.user, *(u for _, u in each)])
    n = len(at)
    return replace(
        NO_LISTS,
        at=at,
        user=user,
        request_ids=[""] * n,
        start=np.zeros(n + 1, np.int64),
        missed=np.zeros((n, 3), np.int32),
        device=np.full(n, NO_DEVICE, np.int8),
        query=[""] * n,
    )


def select(parts: Iterable[Lists], numbers: I64) -> Lists:
    """The lists of these numbers, ascending, counted through all parts."""
    out, first = [], 0
    for part in parts:
        low, high = np.searchsorted(numbers, (first, first + len(part)))
        out.append(part.take(numbers[low:high] - first))
        first += len(part)
    return concat(out)


def iter_baskets(events: Events, begin: float) -> Iterator[Lists]:
    """The lists of `baskets`, some at a time, one after the other."""
    later = events.take(slice(int(np.searchsorted(events.at, begin)), len(events)))
    return (baskets(part, begin) for part in later.parts())


def baskets(events: Events, begin: float) -> Lists:
    """The engagements at or after `begin`, grouped by user and time, as lists of the engaged items alone."""
    acts = events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0) & (events.at >= begin))
    order = np.lexsort((-GAIN[acts.kind], acts.item, acts.user, acts.at))
    acts = acts.take(order)
    new_basket = (np.diff(acts.at, prepend=-np.inf) != 0) | (np.diff(acts.user, prepend=-1) != 0)
    basket = np.cumsum(new_basket) - 1
    distinct = new_basket | (np.diff(acts.item, prepend=-1) != 0)
    acts, basket = acts.take(distinct), basket[distinct]
    start = np.flatnonzero(np.diff(basket, prepend=-1))
    # To the microsecond, as finely as times are stored: two baskets of a second are two lists.
    ids = [f"{events.user_ids[u]}@{at:.6f}" for u, at in zip(acts.user[start], acts.at[start], strict=True)]
    bounds = np.append(start, len(acts)).astype(np.int64)
    return Lists(
        acts.at[start],
        acts.user[start],
        ids,
        bounds,
        acts.item,
        np.full(len(acts), -1, np.int16),
        GAIN[acts.kind],
        np.zeros((len(start), 3), np.int32),
        _first_device(acts.device, bounds),
        [""] * len(start),
    )
