"""Statistics of the data of a nightly run: counts, shares and medians, for comparison with the next run.

Plain JSON, a few kilobytes regardless of the size of the log. `checks.py` decides what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F32, F64, I64, U64
from features.log import KINDS, Events, Kind
from offline.data import Dataset, release_pages

DAY_S = 86400
DAYS = 28
"""Number of days with daily counts, up to the last one."""
RECENT = 8
"""Days in the histograms of the inputs: the last day, and the 7 days before it as the reference."""
_BINS = 10
_KEYS_PER_PART = 2**20
Counts = F64 | I64


def psi(usual: Counts, now: Counts) -> float:
    """Population stability index of two histograms over the same bins, corrected for chance; at least 0.

    `sum (p - q) ln(p / q)`, with 0.5 added to each count. Its expectation without drift is about
    (bins - 1) (1/n + 1/m), and twice that is subtracted. usual, now: counts, float64[bins] or int64[bins]. A PSI below
    0.1 is commonly read as no drift, above 0.25 as large drift (Siddiqi 2006). 0 if one side is empty.
    """
    n, m = float(usual.sum()), float(now.sum())
    if not n or not m:
        return 0.0
    nonempty = (usual + now) > 0
    bins = int(nonempty.sum())
    p, q = (usual[nonempty] + 0.5) / (n + 0.5 * bins), (now[nonempty] + 0.5) / (m + 0.5 * bins)
    return max(0.0, float(((p - q) * np.log(p / q)).sum()) - 2 * (bins - 1) * (1 / n + 1 / m))


def data_statistics(data: Dataset, until: float, now: float) -> dict[str, Any]:
    """Statistics of a data set.

    until: end of the last day, Unix seconds. now: Unix seconds; events after it count as in the future.
    """
    events = data.events
    recent = events.take(slice(int(np.searchsorted(events.at, until - DAYS * DAY_S, side="right")), len(events)))
    day = _days_before(until, recent.at)
    is_action = recent.kind != Kind.IMPRESSION
    is_active = np.zeros(events.n_users, bool)
    for part in events.parts():
        is_active[part.user] = True
    return {
        "until": until,
        "events": len(events),
        "items": len(data.catalogue),
        "users": int(is_active.sum()),
        "span_days": int(_days_before(until, events.at[:1]).max(initial=0)) + 1,
        "latest": float(events.at[-1]),
        "future": len(events) - int(np.searchsorted(events.at, now, side="right")),
        "per_day": _per_day(recent, day),
        "null": _nulls(data),
        "keys": _keys(data, recent, day, is_action),
        "repeated": _repeated(recent, day),
        "top_user": _top_user(recent, day, is_action),
        "catalogue": _catalogue(data),
        "inputs": _inputs(data, recent, day, is_action),
    }


def _days_before(until: float, at: F64) -> I64:
    """int64: number of days before the last one, 0 for the last day."""
    return np.floor((until - at) / DAY_S).astype(np.int64).clip(0)


def _per_day(events: Events, day: I64) -> dict[str, list[int]]:
    """Number of events of each kind, and of all (`events`): on the last day, the day before it, and so on."""
    count = np.bincount(day * len(KINDS) + events.kind, minlength=DAYS * len(KINDS))
    table = count.reshape(DAYS, len(KINDS))
    return {"events": table.sum(axis=1).tolist()} | {k: table[:, n].tolist() for n, k in enumerate(KINDS)}


def _nulls(data: Dataset) -> dict[str, float]:
    """Share of rows without a value, by column of the events and of the items."""
    events, table = data.events, data.items
    count = np.zeros(6, np.int64)
    for part in events.parts():
        bought = part.kind == Kind.PURCHASE
        unpriced = np.isnan(part.value) & bought
        lacks = (part.item < 0, part.request < 0, part.position < 0, part.device < 0, unpriced, bought)
        count += [int(mask.sum()) for mask in lacks]
    item, request, position, device = (count[:4] / max(len(events), 1)).tolist()
    out = {
        "event item_id (not in the catalogue)": item,
        "event request_id": request,
        "event position": position,
        "event value of purchases": float(count[4] / max(count[5], 1)),
        "event device": device,
    }
    for name in table.column_names:
        column = table[name]
        empty = column.null_count
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            empty += int(pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0)
        out[f"item {name}"] = empty / max(len(table), 1)
    return out


def _share(mask: np.ndarray) -> float:
    return float(mask.mean()) if len(mask) else 0.0


def _keys(data: Dataset, events: Events, day: I64, is_action: np.ndarray) -> dict[str, float]:
    """Integrity of IDs.

    The number of repeated event IDs, among all events. The share of lists with several users, and the share of the last
    day's actions that precede their list, among `events`.
    """
    listed = events.request >= 0
    pairs = np.unique(events.request[listed].astype(np.int64) << 32 | events.user[listed])
    several_users = int((np.unique(pairs >> 32, return_counts=True)[1] > 1).sum())
    requests, request_row = np.unique(events.request, return_inverse=True)
    shown = np.full(len(requests), np.inf)
    impressions = listed & ~is_action
    np.minimum.at(shown, request_row[impressions], events.at[impressions])
    first = shown[request_row]
    actions = listed & is_action & np.isfinite(first) & (day == 0)
    return {
        "repeated event ids": len(data.event_key) - _distinct(data.event_key),
        "lists of several users": several_users / max(len(np.unique(pairs >> 32)), 1),
        "actions before their list": _share(events.at[actions] < first[actions] - 1.0),
    }


def _distinct(key: U64) -> int:
    """Number of distinct keys. Counted in parts, by remainder, so that no more than a part is sorted at a time."""
    parts, distinct = 1 + len(key) // _KEYS_PER_PART, 0
    for p in range(parts):
        in_part = [k[k % np.uint64(parts) == p] for k in np.array_split(key, parts)]
        distinct += len(np.unique(np.concatenate(in_part)))
        release_pages(key)
    return distinct


def _repeated(events: Events, day: I64) -> dict[str, Any]:
    """Of the last `DAYS`, the day with the largest share of rows that occur again among `events`.

    A row occurs again if user, item, kind and time of day are the same, on any day. share: of the rows of that day.
    """
    calendar = np.floor(events.at / DAY_S).astype(np.int64)
    micro = np.round((events.at - calendar * DAY_S) * 1e6).astype(np.uint64)
    # A hash with odd multipliers: equal rows have equal keys, others with a probability of 2^-64.
    key = micro * np.uint64(0x9E3779B97F4A7C15) + events.kind.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    key += (events.user.astype(np.int64).astype(np.uint64) << np.uint64(32)) ^ (
        events.item.astype(np.int64).astype(np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
    )
    _, key_row, count = np.unique(key, return_inverse=True, return_counts=True)
    is_repeated = count[key_row] > 1
    rows = np.bincount(day, minlength=DAYS)
    share = np.bincount(day, is_repeated, DAYS) / np.maximum(rows, 1)
    worst = int(np.argmax(np.where(rows >= 20, share, 0)))
    return {"days_ago": worst, "share": float(share[worst]), "rows": int(rows[worst])}


def _top_user(events: Events, day: I64, is_action: np.ndarray) -> dict[str, Any]:
    """The most active user of the last day."""
    users = events.user[is_action & (day == 0)]
    if not len(users):
        return {"user": None, "actions": 0, "share": 0.0}
    count = np.bincount(users)
    top = int(count.argmax())
    return {"user": events.user_ids[top], "actions": int(count[top]), "share": float(count[top] / len(users))}


def _catalogue(data: Dataset) -> dict[str, Any]:
    """Items per category, median price of all items and per category, and mean length of the texts."""
    c = data.catalogue
    n = len(c)
    count = np.bincount(c.category[:n], minlength=len(c.category_names) + 1)
    table = data.items
    texts = [n for n in ("description", "title") if n in table.column_names]
    return {
        "categories": {name: int(count[k]) for k, name in enumerate(c.category_names)},
        "median_price": _median(c.price[:n]),
        "median_price_by_category": {
            name: _median(c.price[:n][c.category[:n] == k]) for k, name in enumerate(c.category_names) if count[k]
        },
        "mean_length": {t: float(pc.mean(pc.fill_null(pc.utf8_length(table[t]), 0)).as_py() or 0) for t in texts},
    }


def _median(values: F64) -> float | None:
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.median(positive)) if len(positive) else None


def _inputs(data: Dataset, events: Events, day: I64, is_action: np.ndarray) -> dict[str, dict[str, Any]]:
    """Histograms and PSI of the inputs: kind of event, hour of day, and category and price acted on.

    For each, `bins` and the counts of the last day (`now`) and of the week before it (`usual`), with their PSI (`psi`).
    `psi_before` is the largest PSI of a day of that week against its other days: events come in lists and sessions, so
    days differ by more than independent draws would.
    """
    c = data.catalogue
    known = is_action & (events.item >= 0)
    hour = (events.at % DAY_S // 3600).astype(np.int64)
    price = c.price[events.item]
    priced = c.price[np.isfinite(c.price)]
    edges: F64 = np.unique(np.quantile(priced, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(priced) else np.empty(0)
    every_event = np.ones(len(events), bool)
    columns: dict[str, tuple[I64, Sequence[str], np.ndarray]] = {
        "kind of event": (events.kind.astype(np.int64), list(KINDS), every_event),
        "hour of day": (hour, [str(h) for h in range(24)], every_event),
        "category acted on": (c.category[events.item].astype(np.int64), [*c.category_names, "none"], known),
        "price acted on": (
            np.where(np.isnan(price), len(edges) + 1, np.searchsorted(edges, np.nan_to_num(price), side="right")),
            [*(f"below {e:g}" for e in edges), "above", "none"],
            known,
        ),
    }
    out = {}
    for name, (code, bins, included) in columns.items():
        counted = included & (day < RECENT)
        counts = np.bincount(day[counted] * len(bins) + code[counted], minlength=RECENT * len(bins))
        table = counts.reshape(RECENT, len(bins))
        usual = table[1:].sum(axis=0)
        out[name] = {
            "bins": list(bins),
            "now": table[0].tolist(),
            "usual": usual.tolist(),
            "psi": psi(usual, table[0]),
            "psi_before": max(psi(usual - table[d], table[d]) for d in range(1, RECENT)),
        }
    return out


def feature_drift(train: F32, test: F32, names: Sequence[str]) -> dict[str, float]:
    """PSI of each feature between training and test rows, binned by the deciles of the training rows.

    Missing values are a bin of their own. train, test: float32[rows, features].
    """
    out = {}
    for column, name in enumerate(names):
        a, b = (np.asarray(x[:, column], np.float64) for x in (train, test))
        present = a[~np.isnan(a)]
        edges = np.unique(np.quantile(present, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(present) else np.empty(0)
        counts = [
            np.bincount(np.where(np.isnan(x), len(edges) + 1, np.searchsorted(edges, x)), minlength=len(edges) + 2)
            for x in (a, b)
        ]
        out[name] = psi(counts[0], counts[1])
    return out
