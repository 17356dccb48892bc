"""Slices: parts of a test that are reported on their own, by list or by target.

A slice of lists (by how much is known about the user) keeps whole lists. A slice of targets (new or repeat items, head
or tail) measures how well those targets are ranked: other targets of the same list are removed from the ranking, so
that a basket of old and new items is evaluated on each (as repetition and exploration are in Li et al., TOIS 2023).

Other candidates stay in the ranking. If users often return to items they had before, these fill the top, and new items
can look worse than under a random order. Therefore `new_only` also removes the items that the user had before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrays import F64, I32, I64
from features.catalogue import Catalogue
from features.log import Events, Lists
from offline.data import LogFiles, Targets, Windows
from offline.evaluation.baselines import EngagementCounts, RunningCounts
from offline.evaluation.ease import pairs
from offline.runtime import DataError

Mask = NDArray[np.bool_]

BY_HISTORY = {"1_4": (1, 5), "5_19": (5, 20), "20_49": (20, 50), "50_plus": (50, np.inf)}
"""Engagements of the user before the list: lower bound, exclusive upper bound."""
BY_SEEN = {"1_4": (1, 5), "5_19": (5, 20), "20_plus": (20, np.inf)}
"""Engagements of all users with the item before the list: lower bound, exclusive upper bound."""
HEAD = 0.2
"""Share of the catalogue, by most engagements, that is the head."""
CATEGORIES = 5
"""Categories with a slice of their own: those with most targets."""


def list_slices(events: Events, lists: Lists, warm: Mask) -> dict[str, Mask]:
    """bool[lists] by name: `all`, `warm_users`, `cold_users`, `history_1_4` and so on.

    warm: bool[lists], whether the user had a history. The `history` slices count engagements, not impressions.
    """
    known = EngagementCounts(events, lambda e: e.user.astype(np.int64)).before(lists.user.astype(np.int64), lists.at)
    out = {"all": np.ones(len(lists), bool), "warm_users": warm, "cold_users": ~warm}
    return out | {f"history_{name}": (known >= low) & (known < high) for name, (low, high) in BY_HISTORY.items()}


def target_slices(events: Events, lists: Lists, targets: Targets, catalogue: Catalogue, count: F64) -> dict[str, Mask]:
    """bool[targets] by name: `warm_items`, `cold_items`, `seen_1_4` and so on, `repeats`, `new_items`, `head`, `tail`,
    and `category:NAME` for the categories with most targets.

    Engagements before the list decide: with the item by any user (warm, cold, seen), or by this user (repeats, new).
    count: float64[items], from `known_engagements`, for head and tail.
    """
    at, item = lists.at[targets.of], targets.item.astype(np.int64)
    seen = EngagementCounts(events, lambda e: e.item.astype(np.int64)).before(item, at)
    again = EngagementCounts(events, _pairs).before(pairs(lists.user[targets.of], targets.item), at) > 0
    head = np.zeros(len(count), bool)
    head[np.argsort(-count, kind="stable")[: int(np.ceil(HEAD * len(count)))]] = True
    out = {"warm_items": seen > 0, "cold_items": seen == 0}
    out |= {f"seen_{name}": (seen >= low) & (seen < high) for name, (low, high) in BY_SEEN.items()}
    out |= {"repeats": again, "new_items": ~again, "head": head[item], "tail": ~head[item]}
    category, names = catalogue.category[item], catalogue.category_names
    most = np.argsort(-np.bincount(category, minlength=len(names) + 1)[: len(names)], kind="stable")[:CATEGORIES]
    return out | {f"category:{names[c]}": category == c for c in most.tolist()}


def seen_before(events: Events, lists: Lists, order: I32) -> Mask:
    """bool, like `order` (int32[lists, depth], `-1` after the last): whether the list's user engaged with it before."""
    user, at = np.broadcast_to(lists.user[:, None], order.shape), np.broadcast_to(lists.at[:, None], order.shape)
    filled, out = order >= 0, np.zeros(order.shape, bool)
    out[filled] = EngagementCounts(events, _pairs).before(pairs(user[filled], order[filled]), at[filled]) > 0
    return out


def _pairs(events: Events) -> I64:
    return pairs(events.user, events.item)


def known_engagements(events: Events, windows: Windows, targets: Targets, n_items: int) -> F64:
    """float64[items]: engagements with each item, without those of the test."""
    whole = windows.protocol == "leave-last-out"
    every = RunningCounts(events, n_items).before(np.arange(n_items, dtype=np.int32), np.inf if whole else windows.test)
    return (every - np.bincount(targets.item, minlength=n_items)).clip(0) if whole else every


VALUES = 8
"""Values of a column with a slice of their own: those with most lists or targets."""
MISSING, OTHER = "(none)", "(other)"


def check_columns(directory: Path, event_columns: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError for a column that is neither in the items of the data set in `directory` nor in its events."""
    of_items = _columns(directory / "items.parquet")
    for name in columns:
        if name not in of_items and name not in event_columns:
            raise DataError(
                f"slice {name!r}: no such column; items have {', '.join(of_items)}; events have "
                f"{', '.join(event_columns)}"
            )


def item_column_slices(items: pa.Table, columns: Sequence[str], targets: Targets) -> dict[str, Mask]:
    """bool[targets] by `column:value`, for the columns in `items`, whose rows are those of the catalogue."""
    out: dict[str, Mask] = {}
    for name in columns:
        if name in items.column_names:
            out |= _slices(name, items[name].take(pa.array(targets.item)))
    return out


def event_column_slices(log: LogFiles, columns: Sequence[str], lists: Lists, but: Sequence[str]) -> dict[str, Mask]:
    """bool[lists] by `column:value`, from the first impression of each list with a value in the column.

    but: columns to skip, because items have them. A rebuilt list has no values. Only impressions are read: a value of a
    click would reveal which lists were clicked.
    """
    available = log.event_columns
    names = [name for name in columns if name in available and name not in but]
    if not names:
        return {}
    requests, parts = pa.array(lists.request_ids, pa.string()), []
    for span in log.events.spans(list(dict.fromkeys(("timestamp", "request_id", "event", *names)))):
        listed = pc.and_(pc.is_in(span["request_id"], requests), pc.equal(span["event"], "impression"))
        parts.append(span.filter(listed).sort_by("timestamp"))
    if not parts:
        return {}
    shown = pa.concat_tables(parts, promote_options="permissive")
    out: dict[str, Mask] = {}
    for name in names:
        filled = shown.filter(pc.is_valid(shown[name]))
        # `index_in` gives the first match, which is the earliest impression.
        row = pc.index_in(requests, filled["request_id"].combine_chunks())
        out |= _slices(name, filled[name].take(row))
    return out


def placement_slices(names: Sequence[str], placements: Mapping[str, str], lists: Lists) -> dict[str, Mask]:
    """bool[lists] by `placement:name`, for each of `names` and for all others; empty if no list has a placement.

    placements: the placement of each list that has one, by request ID.
    """
    found = [placements.get(request) for request in lists.request_ids]
    if not any(found):
        return {}
    out = {name: np.array([one == name for one in found], bool) for name in names}
    out[OTHER] = np.array([one is not None and one not in names for one in found], bool)
    out[MISSING] = np.array([one is None for one in found], bool)
    return {f"placement:{name}": mask for name, mask in out.items() if mask.any()}


def _columns(path: Path) -> list[str]:
    """Column names of a Parquet file; none for a missing file."""
    try:
        return list(pq.read_schema(path).names) if path.is_file() else []
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read as Parquet ({e}); import the data set again") from e


def _slices(name: str, values: pa.ChunkedArray | pa.Array) -> dict[str, Mask]:
    """bool[n] by `column:value`: quarters for dates and for numbers with many values, else the most frequent values."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of, value = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
    else:
        of, value = np.arange(len(column)), column
    if pa.types.is_temporal(value.type) or (_is_number(value.type) and pc.count_distinct(value).as_py() > VALUES):
        return _quarters(name, value, len(column))
    texts = pc.cast(value, pa.string()).to_pylist()
    filled = [(int(row), text) for row, text in zip(of.tolist(), texts, strict=True) if text]
    number = {text: k for k, text in enumerate(sorted({text for _, text in filled}))}
    rows = np.array([row for row, _ in filled], np.int64)
    code = np.array([number[text] for _, text in filled], np.int64)
    most = np.argsort(-np.bincount(code, minlength=len(number)), kind="stable")[:VALUES].tolist()
    names, out = list(number), {}
    for k in most:
        out[f"{name}:{names[k]}"] = _mask(rows[code == k], len(column))
    rest = _mask(rows[~np.isin(code, most)], len(column))
    out |= {f"{name}:{OTHER}": rest} if rest.any() else {}
    return out | {f"{name}:{MISSING}": ~_mask(rows, len(column))}


def _quarters(name: str, value: pa.Array, n: int) -> dict[str, Mask]:
    """bool[n] by quarter of the values present. A quarter of times is named by its days."""
    days = pa.types.is_temporal(value.type)
    numbers = pc.cast(pc.cast(value, pa.timestamp("s")), pa.int64()) if days else value
    x = pc.cast(numbers, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = np.isfinite(x)
    if not known.any():
        return {f"{name}:{MISSING}": np.ones(n, np.bool_)}
    ends = np.unique(np.quantile(x[known], (0, 0.25, 0.5, 0.75, 1), method="nearest"))
    quarter = np.searchsorted(ends[1:-1], x, side="left")
    labels = [str(np.datetime64(int(e), "s"))[:10] if days else f"{e:,.4g}" for e in ends]
    out = {
        f"{name}:{low} to {high}" if k == 0 else f"{name}:over {low} to {high}": known & (quarter == k)
        for k, (low, high) in enumerate(pairwise(labels))
    } or {f"{name}:{labels[0]}": known}
    return out | {f"{name}:{MISSING}": ~known}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _mask(rows: np.ndarray, n: int) -> Mask:
    """bool[n], True at `rows`."""
    out = np.zeros(n, np.bool_)
    out[rows] = True
    return out
