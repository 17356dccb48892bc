"""What a night's data look like in numbers: counts, shares and medians that the next night is held against.

All of it is plain JSON, a few kilobytes whatever the size of the log. What the numbers mean is decided in `checks.py`.
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
"""Days back from the end that are counted one by one."""
RECENT = 8
"""Days whose shares are the usual that the last one is held against: those from 1 to 7 days old."""
_BINS = 10
_AT_ONCE = 2**20
Numbers = F64 | I64


def psi(usual: Numbers, now: Numbers) -> float:
    """The population stability index of two histograms over the same bins, less what chance alone explains; from 0.

    `sum (p - q) ln(p / q)`, a count of 0.5 added to each bin; its expectation without any drift is about
    (bins - 1) (1/n + 1/m), twice which is taken off. usual, now: counts, float64[bins] or int64[bins]. Below 0.1 is
    commonly taken for no drift, above 0.25 for a large one (Siddiqi 2006). 0 where one side is empty.
    """
    n, m = float(usual.sum()), float(now.sum())
    if not n or not m:
        return 0.0
    some = (usual + now) > 0
    bins = int(some.sum())
    p, q = (usual[some] + 0.5) / (n + 0.5 * bins), (now[some] + 0.5) / (m + 0.5 * bins)
    return max(0.0, float(((p - q) * np.log(p / q)).sum()) - 2 * (bins - 1) * (1 / n + 1 / m))


def data_statistics(data: Dataset, until: float, now: float) -> dict[str, Any]:
    """The statistics of a data set. until: the end of the last day, Unix seconds. now: the clock, for the future."""
    events = data.events
    recent = events.take(slice(int(np.searchsorted(events.at, until - DAYS * DAY_S, side="right")), len(events)))
    day = _days_before(until, recent.at)
    acted = recent.kind != Kind.IMPRESSION
    seen = np.zeros(events.n_users, bool)
    for part in events.parts():
        seen[part.user] = True
    return {
        "until": until,
        "events": len(events),
        "items": len(data.catalogue),
        "users": int(seen.sum()),
        "span_days": int(_days_before(until, events.at[:1]).max(initial=0)) + 1,
        "latest": float(events.at[-1]),
        "future": len(events) - int(np.searchsorted(events.at, now, side="right")),
        "per_day": _per_day(recent, day),
        "null": _nulls(data),
        "keys": _keys(data, recent, day, acted),
        "repeated": _repeated(recent, day),
        "top_user": _top_user(recent, day, acted),
        "catalogue": _catalogue(data),
        "inputs": _inputs(data, recent, day, acted),
    }


def _days_before(until: float, at: F64) -> I64:
    """int64: 0 for the last day, 1 for the one before it, and so on."""
    return np.floor((until - at) / DAY_S).astype(np.int64).clip(0)


def _per_day(events: Events, day: I64) -> dict[str, list[int]]:
    """By kind, and `events`: how many on the last day, the day before it, and so on."""
    count = np.bincount(day * len(KINDS) + events.kind, minlength=DAYS * len(KINDS))
    table = count.reshape(DAYS, len(KINDS))
    return {"events": table.sum(axis=1).tolist()} | {k: table[:, n].tolist() for n, k in enumerate(KINDS)}


def _nulls(data: Dataset) -> dict[str, float]:
    """The share of rows that lack a value: of events on the last day's own, of items by column."""
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


def _keys(data: Dataset, events: Events, day: I64, acted: np.ndarray) -> dict[str, float]:
    """Integrity of ids: ids that stand twice, of all events; of these, lists of several users, and actions on the last
    day before their list."""
    listed = events.request >= 0
    pairs = np.unique(events.request[listed].astype(np.int64) << 32 | events.user[listed])
    of_many = int((np.unique(pairs >> 32, return_counts=True)[1] > 1).sum())
    requests, of = np.unique(events.request, return_inverse=True)
    shown = np.full(len(requests), np.inf)
    impressions = listed & ~acted
    np.minimum.at(shown, of[impressions], events.at[impressions])
    first = shown[of]
    told = listed & acted & np.isfinite(first) & (day == 0)
    return {
        "repeated event ids": len(data.event_key) - _distinct(data.event_key),
        "lists of several users": of_many / max(len(np.unique(pairs >> 32)), 1),
        "actions before their list": _share(events.at[told] < first[told] - 1.0),
    }


def _distinct(key: U64) -> int:
    """How many different ones there are: counted by parts of their range, so that no more than a part is sorted."""
    parts, found = 1 + len(key) // _AT_ONCE, 0
    for p in range(parts):
        some = [k[k % np.uint64(parts) == p] for k in np.array_split(key, parts)]
        found += len(np.unique(np.concatenate(some)))
        release_pages(key)
    return found


def _repeated(events: Events, day: I64) -> dict[str, Any]:
    """The day, of the last `DAYS`, most of whose rows stand in these once more: at the same time of another day or of
    the same. share: of its rows."""
    calendar = np.floor(events.at / DAY_S).astype(np.int64)
    micro = np.round((events.at - calendar * DAY_S) * 1e6).astype(np.uint64)
    # Multiplied by odd constants and added: equal rows meet, and others by chance once in 2^64.
    key = micro * np.uint64(0x9E3779B97F4A7C15) + events.kind.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    key += (events.user.astype(np.int64).astype(np.uint64) << np.uint64(32)) ^ (
        events.item.astype(np.int64).astype(np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
    )
    _, place, count = np.unique(key, return_inverse=True, return_counts=True)
    again = count[place] > 1
    rows = np.bincount(day, minlength=DAYS)
    share = np.bincount(day, again, DAYS) / np.maximum(rows, 1)
    worst = int(np.argmax(np.where(rows >= 20, share, 0)))
    return {"days_ago": worst, "share": float(share[worst]), "rows": int(rows[worst])}


def _top_user(events: Events, day: I64, acted: np.ndarray) -> dict[str, Any]:
    """Who did most on the last day."""
    users = events.user[acted & (day == 0)]
    if not len(users):
        return {"user": None, "actions": 0, "share": 0.0}
    count = np.bincount(users)
    top = int(count.argmax())
    return {"user": events.user_ids[top], "actions": int(count[top]), "share": float(count[top] / len(users))}


def _catalogue(data: Dataset) -> dict[str, Any]:
    """Items by category, the median price (of the whole, and of each category), the mean length of descriptions."""
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


def _inputs(data: Dataset, events: Events, day: I64, acted: np.ndarray) -> dict[str, dict[str, Any]]:
    """By input: what it holds as `bins`, how often on the last day (`now`) and in the week before it (`usual`), their
    PSI, and the largest of any day of that week against its others (`psi_before`): events come in lists and visits, so
    days differ by more than chance alone would have them."""
    c = data.catalogue
    known = acted & (events.item >= 0)
    hour = (events.at % DAY_S // 3600).astype(np.int64)
    price = c.price[events.item]
    priced = c.price[np.isfinite(c.price)]
    edges: F64 = np.unique(np.quantile(priced, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(priced) else np.empty(0)
    everything = np.ones(len(events), bool)
    columns: dict[str, tuple[I64, Sequence[str], np.ndarray]] = {
        "kind of event": (events.kind.astype(np.int64), list(KINDS), everything),
        "hour of day": (hour, [str(h) for h in range(24)], everything),
        "category acted on": (c.category[events.item].astype(np.int64), [*c.category_names, "none"], known),
        "price acted on": (
            np.where(np.isnan(price), len(edges) + 1, np.searchsorted(edges, np.nan_to_num(price), side="right")),
            [*(f"below {e:g}" for e in edges), "above", "none"],
            known,
        ),
    }
    out = {}
    for name, (code, bins, part) in columns.items():
        counted = part & (day < RECENT)
        of_day = np.bincount(day[counted] * len(bins) + code[counted], minlength=RECENT * len(bins))
        table = of_day.reshape(RECENT, len(bins))
        usual = table[1:].sum(axis=0)
        out[name] = {
            "bins": list(bins),
            "now": table[0].tolist(),
            "usual": usual.tolist(),
            "psi": psi(usual, table[0]),
            "psi_before": max(psi(usual - table[d], table[d]) for d in range(1, RECENT)),
        }
    return out


def feature_drift(learnt: F32, tested: F32, names: Sequence[str]) -> dict[str, float]:
    """By feature, the PSI of test rows against the rows learnt from, in tenths of the latter; missing is a bin.

    learnt, tested: float32[rows, features].
    """
    out = {}
    for column, name in enumerate(names):
        a, b = (np.asarray(x[:, column], np.float64) for x in (learnt, tested))
        held = a[~np.isnan(a)]
        edges = np.unique(np.quantile(held, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(held) else np.empty(0)
        counts = [
            np.bincount(np.where(np.isnan(x), len(edges) + 1, np.searchsorted(edges, x)), minlength=len(edges) + 2)
            for x in (a, b)
        ]
        out[name] = psi(counts[0], counts[1])
    return out
