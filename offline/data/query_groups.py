"""Query groups: logged lists with the gain of each item, or rebuilt lists for a log without impressions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from features.arrays import F32, F64, I8, I32, I64, Bool
from features.context import NO_DEVICE
from features.history import NO_MERGES, Merges
from features.log import ATTRIBUTION_S, CHUNK_ROWS, GAIN, Events, Kind, Lists
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
"""An empty set of lists."""


def iter_logged_lists(
    events: Events, attribution_s: float, rows: int = CHUNK_ROWS, merges: Merges = NO_MERGES
) -> Iterator[Lists]:
    """The lists of `logged_lists` in blocks, in time order.

    A block has the lists that start within about `rows` events, or within the attribution time if that is longer.
    """
    begin = 0
    while begin < len(events):
        end = int(np.searchsorted(events.at, events.at[begin] + attribution_s, side="right"))
        end = max(end, begin + rows)
        # A small remainder is added to the last block.
        until = float(events.at[end]) if end + rows // 2 < len(events) else np.inf
        since = float(events.at[begin])
        needed = slice(
            int(np.searchsorted(events.at, since - attribution_s)),
            int(np.searchsorted(events.at, until + attribution_s, side="right")),
        )
        yield logged_lists(events.take(needed), attribution_s, since, until, merges)
        release_pages(events)
        begin = int(np.searchsorted(events.at, until))


def logged_lists(
    events: Events,
    attribution_s: float = ATTRIBUTION_S,
    since: float = -np.inf,
    until: float = np.inf,
    merges: Merges = NO_MERGES,
) -> Lists:
    """The lists in the log. A list has the impressions of one request, in shown order, at the time of the first.

    since, until: time range of the lists, end exclusive. The events must also cover the attribution time before and
    after the range. Impressions later than the attribution time after the first one of their list are ignored.

    The gain of an item is that of the best action attributed to it. An action counts for the list of its request ID if
    it has one, otherwise for the latest list within `attribution_s` that showed the item to the user, or to a user who
    was merged into them in between: a guest who logs in and buys has bought what the guest was shown. An item shown
    twice in a list is kept once, at its first position. Impressions of items outside the catalogue are ignored. Device
    and query are taken from the first impression that has one, never from clicks: that would reveal which lists were
    clicked.
    """
    shown = events.take((events.kind == Kind.IMPRESSION) & (events.request >= 0) & (events.item >= 0))
    order = np.lexsort((shown.position, shown.at, shown.request))
    _, first = np.unique(_pair(shown.request, shown.item)[order], return_index=True)
    shown = shown.take(order[np.sort(first)])
    shown = shown.take(shown.at - _list_start(shown) <= attribution_s)
    start = np.flatnonzero(np.diff(shown.request, prepend=-1))
    at = np.minimum.reduceat(shown.at, start) if len(start) else np.empty(0)
    bounds = np.append(start, len(shown))
    gain = _gains(events, shown, np.repeat(at, np.diff(bounds)), attribution_s, merges)
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
    """float64[n]: start of the list of each impression. Impressions must be grouped by list."""
    start = np.flatnonzero(np.diff(shown.request, prepend=-1))
    at = np.minimum.reduceat(shown.at, start) if len(start) else np.empty(0)
    return np.repeat(at, np.diff(np.append(start, len(shown))))


def _first_device(device: I8, bounds: I64) -> I8:
    """int8[g]: the first known device in each range `bounds[g]:bounds[g + 1]`, `NO_DEVICE` if there is none."""
    out = np.full(len(bounds) - 1, NO_DEVICE, np.int8)
    known = np.flatnonzero(device != NO_DEVICE)[::-1]
    # The indices are in reverse order and the last write wins, so each range gets its first known device.
    out[np.searchsorted(bounds, known, side="right") - 1] = device[known]
    return out


def _pair(a: I32, b: I32) -> I64:
    return a.astype(np.int64) << 32 | b


def _gains(events: Events, shown: Events, shown_at: np.ndarray, attribution_s: float, merges: Merges) -> I8:
    """int8[n]: the best gain of the actions attributed to each impression."""
    acts = events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0))
    rows = pd.DataFrame(
        {"at": shown_at, "request": shown.request, "user": shown.user, "item": shown.item, "row": np.arange(len(shown))}
    )
    acted = pd.DataFrame(
        {"at": acts.at, "request": acts.request, "user": acts.user, "item": acts.item, "gain": GAIN[acts.kind]}
    )
    by_request = acted[acted.request >= 0].merge(rows, on=["request", "item"], suffixes=("", "_shown"))
    delay = by_request["at"] - by_request["at_shown"]
    by_request = by_request[(by_request["at"] >= by_request["at_shown"]) & (delay <= attribution_s)]
    by_user = _by_user(acted[acted.request < 0], rows.sort_values("at", kind="stable"), attribution_s, merges)
    gain = np.zeros(len(shown), np.int8)
    for matches in (by_request, by_user):
        np.maximum.at(gain, matches["row"].to_numpy(np.int64), matches["gain"].to_numpy(np.int8))
    return gain


def _by_user(acted: pd.DataFrame, rows: pd.DataFrame, attribution_s: float, merges: Merges) -> pd.DataFrame:
    """The actions with the latest list that showed the item to their user, or to users merged into them before."""
    shown = rows.rename(columns={"at": "shown_at"})[["shown_at", "user", "item", "row"]]
    # known: the time before which the user had a list for the action to count for it.
    parts = [acted.assign(act=np.arange(len(acted)), known=acted["at"])]
    if len(acted) and len(merges.at):
        between = slice(*np.searchsorted(merges.at, (acted["at"].iloc[0] - attribution_s, acted["at"].iloc[-1])))
        merged = pd.DataFrame({n: getattr(merges, n)[between] for n in ("source", "into")})
        merged["merged_at"] = merges.at[between]
        while len(parts[-1]):
            older = parts[-1].merge(merged, left_on="user", right_on="into")
            older = older[(older["known"] > older["merged_at"]) & (older["at"] - older["merged_at"] <= attribution_s)]
            parts.append(older.assign(user=older["source"], known=older["merged_at"])[parts[0].columns])
    every = pd.concat([part for part in parts if len(part)]) if len(acted) else parts[0]
    every = every.sort_values("known", kind="stable")
    found = pd.merge_asof(every, shown, left_on="known", right_on="shown_at", by=["user", "item"]).dropna(subset="row")
    found = found[found["at"] - found["shown_at"] <= attribution_s]
    return found.sort_values("shown_at", kind="stable").drop_duplicates("act", keep="last")


class RebuildJob(NamedTuple):
    """Baskets to retrieve candidates for, at most `size` each."""

    replay: Replay
    baskets: Lists
    size: int


def _retrieve(job: RebuildJob, part: range) -> Iterator[I32]:
    """int32[candidates] for each basket in a range: the items that retrieval would have offered at its time."""
    baskets = job.baskets.take(np.arange(part.start, part.stop))
    empty = replace(baskets, start=np.zeros(len(baskets) + 1, np.int64), item=np.empty(0, np.int32))
    for snapshot in job.replay.snapshots(empty):
        yield retrieve(snapshot.items, snapshot.history, snapshot.at, job.size, snapshot.context).item


def rebuild_lists(
    replay: Replay,
    wanted: Lists,
    size: int,
    on_progress: Callable[[int, int], None] | None = None,
    engine: Engine = LOCAL,
) -> Lists:
    """Rebuild lists for a log without impressions: the candidates that retrieval would have offered for each basket.

    wanted: baskets, as returned by `baskets`, in time order, with the gains. Items that retrieval did not offer are
    counted in `missed`, which adds them to the ideal order of a metric. size: maximum number of candidates.
    """
    starts, items, gains, missed = [0], [np.empty(0, np.int32)], [np.empty(0, np.int8)], []
    parts = split_evenly(np.arange(len(wanted) + 1), engine.parts)
    for number, offered in enumerate(engine.map(_retrieve, RebuildJob(replay, wanted, size), parts)):
        basket = slice(wanted.start[number], wanted.start[number + 1])
        basket_item, basket_gain = wanted.item[basket], wanted.gain[basket]
        gain = np.zeros(len(offered), np.int8)
        for item, g in zip(basket_item, basket_gain, strict=True):
            gain[offered == item] = g
        items.append(offered)
        gains.append(gain)
        missed.append(np.bincount(basket_gain[~np.isin(basket_item, offered)], minlength=4)[1:])
        starts.append(starts[-1] + len(offered))
        if on_progress and number % 32 == 31:
            on_progress(number + 1, len(wanted))
    item = np.concatenate(items)
    return replace(
        wanted,
        start=np.array(starts, np.int64),
        item=item,
        position=np.full(len(item), -1, np.int16),
        gain=np.concatenate(gains),
        missed=np.array(missed, np.int32).reshape(-1, 3),
    )


class Targets(NamedTuple):
    """The items a user engaged with, one row per list and item, whether or not the list offered them.

    of: int64[t], ascending, index of the list. item: int32[t], row of the catalogue. gain: int8[t], 1 to 3.
    """

    of: I64
    item: I32
    gain: I8


def find_targets(lists: Lists, wanted: Lists) -> Targets:
    """The items a user engaged with in each of `lists`.

    wanted: lists with all engagements, by the same request IDs: `lists` itself for logged lists, `baskets` for rebuilt
    ones. Raises KeyError for a list that is not in `wanted`.
    """
    index = {request: g for g, request in enumerate(wanted.request_ids)}
    baskets = wanted.take(np.array([index[r] for r in lists.request_ids], np.int64))
    positive = baskets.gain > 0
    return Targets(baskets.group[positive].astype(np.int64), baskets.item[positive], baskets.gain[positive])


def concat(parts: Iterable[Lists]) -> Lists:
    """Concatenate lists. The parts must be in time order."""
    parts = [NO_LISTS, *parts]
    item, position, gain, missed, device = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("item", "position", "gain", "missed", "device")
    )
    start = np.cumsum([0, *(p.rows for p in parts)])
    return Lists(
        np.concatenate([p.at for p in parts]),
        np.concatenate([p.user for p in parts]),
        [r for p in parts for r in p.request_ids],
        np.concatenate([[0], *(p.start[1:] + s for p, s in zip(parts, start[:-1], strict=True))]).astype(np.int64),
        item,
        position,
        gain,
        missed,
        device,
        [q for p in parts for q in p.query],
        _concat_columns(parts),
        _concat_seeds(parts),
    )


def _concat_columns(parts: Sequence[Lists]) -> F32:
    """The columns of all parts; NaN for a part whose columns were not read."""
    count = max(len(p.columns) for p in parts)
    if not count:
        return parts[0].columns
    missing = [np.full((count, p.rows), np.nan, np.float32) for p in parts]
    return np.concatenate([p.columns if len(p.columns) else m for p, m in zip(parts, missing, strict=True)], axis=1)


def _concat_seeds(parts: Sequence[Lists]) -> I32:
    """The seeds of all parts; -1 for a part whose seeds were not read."""
    width = max(p.seeds.shape[1] for p in parts)
    if not width:
        return parts[0].seeds
    out = np.full((sum(map(len, parts)), width), -1, np.int32)
    first = 0
    for part in parts:
        if len(part.seeds):
            out[first : first + len(part), : part.seeds.shape[1]] = part.seeds
        first += len(part)
    return out


class ListKeys(NamedTuple):
    """Time and user of logged lists, in time order, and whether they have an action.

    at: float64[n], Unix seconds. user: int32[n]. has_gain: bool[n].
    """

    at: F64
    user: I32
    has_gain: Bool


def logged_keys(blocks: Iterable[Lists]) -> ListKeys:
    """The keys of logged lists, given in blocks as by `iter_logged_lists`."""
    parts = [(b.at, b.user, has_gain(b)) for b in blocks]
    at, user, gain = ([part[k] for part in parts] for k in range(3))
    return ListKeys(
        np.concatenate([NO_LISTS.at, *at]),
        np.concatenate([NO_LISTS.user, *user]),
        np.concatenate([np.empty(0, bool), *gain]),
    )


def has_gain(lists: Lists) -> Bool:
    """bool[lists]: whether an item in the list has gain."""
    out = np.zeros(len(lists), bool)
    out[lists.group[lists.gain > 0]] = True
    return out


def has_logged_list(shown: Events) -> bool:
    """True if the log has an impression of a known item in a list. Stops at the first."""
    return any(
        bool(((part.kind == Kind.IMPRESSION) & (part.request >= 0) & (part.item >= 0)).any()) for part in shown.parts()
    )


def without_logged(
    blocks: Iterable[Lists], logged: Lists, attribution_s: float, merges: Merges = NO_MERGES
) -> Iterator[Lists]:
    """Blocks of baskets without the actions that belong to a logged list, so that each action is in one query group.

    An action belongs to a logged list if this list gives gain to the same item of the same user, or of one merged into
    them since, and is at most `attribution_s` older than the action. Baskets without other actions are left out.
    logged: lists with gain.
    """
    shown_at: dict[int, list[float]] = {}
    positive = logged.gain > 0
    group, merged = logged.group[positive], _merged_from(merges)
    pairs = zip(logged.user[group].tolist(), logged.item[positive].tolist(), strict=True)
    for (user, item), at in zip(pairs, logged.at[group].tolist(), strict=True):
        for owner in _owners(user, at, merged):
            shown_at.setdefault(owner << 32 | item, []).append(at)
    known = np.array(sorted(shown_at), np.int64)
    for block in blocks:
        pair, at, kept = _pair(block.user[block.group], block.item), block.at[block.group], np.ones(block.rows, bool)
        for row in np.flatnonzero(np.isin(pair, known)).tolist():
            kept[row] = not any(start <= at[row] <= start + attribution_s for start in shown_at[int(pair[row])])
        yield _with_rows(block, kept)


def _merged_from(merges: Merges) -> dict[int, list[tuple[float, int]]]:
    """(time, user merged into) of the merges of each user, in time order."""
    out: dict[int, list[tuple[float, int]]] = {}
    for source, into, at in zip(merges.source.tolist(), merges.into.tolist(), merges.at.tolist(), strict=True):
        out.setdefault(source, []).append((at, into))
    return out


def _owners(user: int, at: float, merged: Mapping[int, list[tuple[float, int]]]) -> Iterator[int]:
    """A user, and those to whom merges moved what they had at a time."""
    yield user
    while (found := next(((t, into) for t, into in merged.get(user, ()) if t > at), None)) is not None:
        at, user = found
        yield user


def _with_rows(lists: Lists, kept: Bool) -> Lists:
    """The lists with these rows only; a list without rows is left out."""
    sizes = np.bincount(lists.group[kept], minlength=len(lists))
    out = replace(
        lists,
        start=np.concatenate(([0], np.cumsum(sizes))),
        item=lists.item[kept],
        position=lists.position[kept],
        gain=lists.gain[kept],
        columns=lists.columns[:, kept] if len(lists.columns) else lists.columns,
    )
    return out.take(np.flatnonzero(sizes))


def merge(blocks: Iterable[Lists], other: Lists) -> Iterator[Lists]:
    """Blocks of lists with `other` among them, in time order. Lists of equal times keep their order, `other` last.

    blocks, other: in time order.
    """
    done = 0
    for block in blocks:
        if not len(block):
            continue
        until = int(np.searchsorted(other.at, block.at[-1], side="right"))
        both = concat([block, other.take(np.arange(done, until))])
        yield both.take(np.argsort(both.at, kind="stable"))
        done = until
    if done < len(other):
        yield other.take(np.arange(done, len(other)))


def keys(parts: Iterable[Lists]) -> Lists:
    """Time and user of the lists, with empty items and IDs."""
    pairs = [(p.at, p.user) for p in parts]
    at = np.concatenate([NO_LISTS.at, *(a for a, _ in pairs)])
    user = np.concatenate([NO_LISTS.user, *(u for _, u in pairs)])
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
    """The lists with these indices, which are ascending and run across all parts."""
    out, first = [], 0
    for part in parts:
        low, high = np.searchsorted(numbers, (first, first + len(part)))
        out.append(part.take(numbers[low:high] - first))
        first += len(part)
    return concat(out)


def iter_baskets(events: Events, begin: float) -> Iterator[Lists]:
    """The lists of `baskets` in blocks, in time order."""
    later = events.take(slice(int(np.searchsorted(events.at, begin)), len(events)))
    return (baskets(part, begin) for part in later.parts())


def baskets(events: Events, begin: float) -> Lists:
    """Engagements from `begin` on, grouped by user and time, as lists that contain only the engaged items."""
    acts = events.take((events.kind != Kind.IMPRESSION) & (events.item >= 0) & (events.at >= begin))
    order = np.lexsort((-GAIN[acts.kind], acts.item, acts.user, acts.at))
    acts = acts.take(order)
    new_basket = (np.diff(acts.at, prepend=-np.inf) != 0) | (np.diff(acts.user, prepend=-1) != 0)
    basket = np.cumsum(new_basket) - 1
    distinct = new_basket | (np.diff(acts.item, prepend=-1) != 0)
    acts, basket = acts.take(distinct), basket[distinct]
    start = np.flatnonzero(np.diff(basket, prepend=-1))
    # Timestamps have microseconds, so that two baskets of a user in the same second have different IDs.
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
