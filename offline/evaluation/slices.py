"""Parts of a test that are reported on their own: which lists, or which of the items that were engaged with.

A slice of lists (people known and not, by how much) keeps whole lists. A slice of targets (new items and old, head and
tail) asks how well an order finds *those*: other items engaged with in the same list are neither hits nor in the way,
so a basket of old and new is judged on each (as repetition and exploration are in Li et al., TOIS 2023). Other
candidates stay in the way: where people come back to what they had, that fills the top, and new items seem worse found
than by chance. `new_only` therefore takes what the user had before out of the order too: a list of new items alone.
"""

from __future__ import annotations

from collections.abc import Sequence
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
"""Engagements of the user before the list: from, up to but not including."""
BY_SEEN = {"1_4": (1, 5), "5_19": (5, 20), "20_plus": (20, np.inf)}
"""Engagements of anyone with the item before the list."""
HEAD = 0.2
"""The share of the catalogue, most engaged with first, that is the head."""
CATEGORIES = 5


def list_slices(events: Events, lists: Lists, warm: Mask) -> dict[str, Mask]:
    """bool[lists] by name: `all`, `warm_users`, `cold_users`, `history_1_4` and so on.

    warm: whether anything was known of the user. A user's history is counted in engagements; impressions are none.
    """
    known = EngagementCounts(events, lambda e: e.user.astype(np.int64)).before(lists.user.astype(np.int64), lists.at)
    out = {"all": np.ones(len(lists), bool), "warm_users": warm, "cold_users": ~warm}
    return out | {f"history_{name}": (known >= low) & (known < high) for name, (low, high) in BY_HISTORY.items()}


def target_slices(events: Events, lists: Lists, targets: Targets, catalogue: Catalogue, count: F64) -> dict[str, Mask]:
    """bool[targets] by name: `warm_items`, `cold_items`, `seen_1_4` and so on, `repeats`, `new_items`, `head`, `tail`,
    and `category:NAME` of those most engaged with here.

    Cold, seen and repeat are as of the list's moment: engaged with by nobody before, by so many, by this user. count:
    float64[items], of `known_engagements`, for head and tail.
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
    """bool, like `order` (int32[lists, depth], `-1` for none): whether the list's user had engaged with it before."""
    user, at = np.broadcast_to(lists.user[:, None], order.shape), np.broadcast_to(lists.at[:, None], order.shape)
    some, out = order >= 0, np.zeros(order.shape, bool)
    out[some] = EngagementCounts(events, _pairs).before(pairs(user[some], order[some]), at[some]) > 0
    return out


def _pairs(events: Events) -> I64:
    return pairs(events.user, events.item)


def known_engagements(events: Events, windows: Windows, targets: Targets, n_items: int) -> F64:
    """float64[items]: engagements with each item that are no part of the test."""
    whole = windows.protocol == "leave-last-out"
    every = RunningCounts(events, n_items).before(np.arange(n_items, dtype=np.int32), np.inf if whole else windows.test)
    return (every - np.bincount(targets.item, minlength=n_items)).clip(0) if whole else every


VALUES = 8
"""Values of a column that are slices of their own: those of most lists or targets."""


MISSING, OTHER = "(none)", "(other)"


def check_columns(directory: Path, event_columns: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError for a column that neither the items of the data set in `directory` nor its events have."""
    of_items = _columns(directory / "items.parquet")
    for name in columns:
        if name not in of_items and name not in event_columns:
            raise DataError(
                f"slice {name!r}: no such column; items have {', '.join(of_items)}; events have "
                f"{', '.join(event_columns)}"
            )


def item_column_slices(items: pa.Table, columns: Sequence[str], targets: Targets) -> dict[str, Mask]:
    """bool[targets] by `column:value`, for the columns that `items` has; its rows are the catalogue's."""
    out: dict[str, Mask] = {}
    for name in columns:
        if name in items.column_names:
            out |= _slices(name, items[name].take(pa.array(targets.item)))
    return out


def event_column_slices(log: LogFiles, columns: Sequence[str], lists: Lists, but: Sequence[str]) -> dict[str, Mask]:
    """bool[lists] by `column:value`, of the first impression of each list that fills the column.

    but: columns left out, those of items. A list that was rebuilt has none of it. Only
    impressions are asked: what a click says would tell which lists were clicked.
    """
    here = log.event_columns
    asked = [name for name in columns if name in here and name not in but]
    if not asked:
        return {}
    wanted, parts = pa.array(lists.request_ids, pa.string()), []
    for span in log.events.spans(list(dict.fromkeys(("timestamp", "request_id", "event", *asked)))):
        listed = pc.and_(pc.is_in(span["request_id"], wanted), pc.equal(span["event"], "impression"))
        parts.append(span.filter(listed).sort_by("timestamp"))
    if not parts:
        return {}
    shown = pa.concat_tables(parts, promote_options="permissive")
    out: dict[str, Mask] = {}
    for name in asked:
        filled = shown.filter(pc.is_valid(shown[name]))
        # The first of each: of several numbers written to one place the last stays.
        row = pc.index_in(wanted, filled["request_id"].combine_chunks())
        out |= _slices(name, filled[name].take(row))
    return out


def _columns(path: Path) -> list[str]:
    try:
        return list(pq.read_schema(path).names) if path.is_file() else []
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path}: cannot be read as Parquet ({e}); bring it in again") from e


def _slices(name: str, values: pa.ChunkedArray | pa.Array) -> dict[str, Mask]:
    """bool[n] by `column:value`."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        of, value = pc.list_parent_indices(column).to_numpy(), pc.list_flatten(column)
    else:
        of, value = np.arange(len(column)), column
    if pa.types.is_temporal(value.type) or (_is_number(value.type) and pc.count_distinct(value).as_py() > VALUES):
        return _quarters(name, value, len(column))
    texts = pc.cast(value, pa.string()).to_pylist()
    held = [(int(g), text) for g, text in zip(of.tolist(), texts, strict=True) if text]
    number = {text: k for k, text in enumerate(sorted({text for _, text in held}))}
    lists = np.array([g for g, _ in held], np.int64)
    code = np.array([number[text] for _, text in held], np.int64)
    most = np.argsort(-np.bincount(code, minlength=len(number)), kind="stable")[:VALUES].tolist()
    names, out = list(number), {}
    for k in most:
        out[f"{name}:{names[k]}"] = _marked(lists[code == k], len(column))
    rest = _marked(lists[~np.isin(code, most)], len(column))
    out |= {f"{name}:{OTHER}": rest} if rest.any() else {}
    return out | {f"{name}:{MISSING}": ~_marked(lists, len(column))}


def _quarters(name: str, value: pa.Array, n: int) -> dict[str, Mask]:
    """By quartiles of the values met; a moment is named by its day."""
    days = pa.types.is_temporal(value.type)
    numbers = pc.cast(pc.cast(value, pa.timestamp("s")), pa.int64()) if days else value
    x = pc.cast(numbers, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    known = np.isfinite(x)
    if not known.any():
        return {f"{name}:{MISSING}": np.ones(n, np.bool_)}
    ends = np.unique(np.quantile(x[known], (0, 0.25, 0.5, 0.75, 1), method="nearest"))
    quarter = np.searchsorted(ends[1:-1], x, side="left")
    said = [str(np.datetime64(int(e), "s"))[:10] if days else f"{e:,.4g}" for e in ends]
    out = {
        f"{name}:{low} to {high}" if k == 0 else f"{name}:over {low} to {high}": known & (quarter == k)
        for k, (low, high) in enumerate(pairwise(said))
    } or {f"{name}:{said[0]}": known}
    return out | {f"{name}:{MISSING}": ~known}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _marked(rows: np.ndarray, n: int) -> Mask:
    out = np.zeros(n, np.bool_)
    out[rows] = True
    return out
