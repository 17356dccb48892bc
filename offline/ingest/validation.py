"""Converts the batches of a file to canonical columns, and rejects invalid rows.

There are two passes. The first checks each row on its own (types, IDs, timestamps, numbers), vectorised over a batch.
The second checks across rows (duplicates, lists, unknown items), once all sources are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import I64
from features.bounds import EVENT_MOMENTS, MAX_POSITION
from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from features.log import GA4, KINDS, Kind
from offline.config import DROP
from offline.ingest.cells import (
    Limits,
    Moments,
    as_flag,
    as_id,
    as_moments,
    as_number,
    as_text,
    as_words,
    bounded_text,
    decode_dictionary,
    null_mask,
)
from offline.ingest.quarantine import Mask, Quarantine, Rows

DAY_US = 86400 * 10**6
_WITHOUT_AMOUNT = (Kind.IMPRESSION, Kind.VIEW, Kind.CLICK)


# --- single rows ----------------------------------------------------------------------------------------------------


def _kinds(rows: Rows, array: pa.Array, limits: Limits, values: Mapping[str, str]) -> I64:
    """int64 `Kind` of each row, 0 for rejected rows."""
    text = as_text(rows, "event", array, limits)
    rows.refuse(np.asarray(text.is_null()), "event", array, "missing_event")
    coded = text.dictionary_encode()
    code = np.zeros(len(coded.dictionary) + 1, np.int64)
    for i, name in enumerate(coded.dictionary.to_pylist()):
        low = name.lower()
        kind = values.get(name, values.get(low, GA4.get(low, low)))
        code[i] = KINDS.index(kind) if kind in KINDS else -2 if kind == DROP else -1
    out: I64 = code[pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy().astype(np.int64)]
    rows.refuse(out == -1, "event", array, "unknown_event")
    rows.refuse(out == -2, "event", array, "dropped_event")
    return np.maximum(out, 0)


def _event_moments(rows: Rows, columns: Mapping[str, pa.Array], limits: Limits, how: Moments) -> I64:
    stamp = columns["timestamp"]
    out = as_moments(rows, "timestamp", stamp, limits, how, required=True)
    earliest_us = max(limits.earliest_us, EVENT_MOMENTS[0] * 10**6)
    rows.refuse(out < earliest_us, "timestamp", decode_dictionary(stamp), "timestamp_too_old")
    rows.refuse(out > limits.latest_us, "timestamp", decode_dictionary(stamp), "future_event")
    return out


def _amounts(rows: Rows, columns: Mapping[str, pa.Array], limits: Limits, kind: I64) -> dict[str, pa.Array]:
    out = {}
    for name, reason in (("value", "negative_value"), ("price", "negative_price")):
        if name in columns:
            number = as_number(rows, name, columns[name], limits)
            negative = (number < 0) & ((kind != Kind.RATING) | (name == "price"))
            rows.refuse(negative, name, decode_dictionary(columns[name]), reason)
            if name == "value":
                number = np.where(np.isin(kind, _WITHOUT_AMOUNT), np.nan, number)
            out[name] = pa.array(number, from_pandas=True)
    return out


def _positions(rows: Rows, array: pa.Array, limits: Limits, base: int) -> pa.Array:
    number = as_number(rows, "position", array, limits) - base
    bad = ~np.isnan(number) & ((number < 0) | (number > MAX_POSITION) | (number != np.trunc(number)))
    rows.refuse(bad, "position", decode_dictionary(array), "bad_position")
    return pa.array(np.where(bad | np.isnan(number), 0, number).astype(np.int16), mask=bad | np.isnan(number))


@dataclass(frozen=True)
class EventRules:
    """Settings for the events of one source, as in the configuration. ordered: it has an order, but no timestamps."""

    event: str | None
    event_values: Mapping[str, str]
    moments: Moments
    ordered: bool
    position_base: int
    float_ids: Sequence[str]


def event_columns(rows: Rows, columns: Mapping[str, pa.Array], rules: EventRules, limits: Limits) -> pa.Table:
    """The accepted rows of a batch as canonical columns, with their `#row`.

    Columns: kind int8; user_id, item_id, request_id, session_id, event_id, device and query string; timestamp int64
    (Unix us, or 0 for a source with only an order, which is then in `order`); position int16; value float64. If the
    source has them: price, clicked and the item texts.
    """
    n = len(rows.row)
    nulls = pa.nulls(n, pa.string())
    kind = (
        _kinds(rows, columns["event"], limits, rules.event_values)
        if rules.event is None
        else np.full(n, KINDS.index(rules.event))
    )
    out = {"#row": pa.array(rows.row), "kind": pa.array(kind.astype(np.int8))}
    for name, missing in (
        ("user_id", "missing_user"),
        ("item_id", "missing_item"),
        ("request_id", None),
        ("session_id", None),
        ("event_id", None),
    ):
        out[name] = as_id(rows, name, columns[name], limits, missing) if name in columns else nulls
        if name in rules.float_ids:
            out[name] = pc.replace_substring_regex(out[name], r"^(-?\d+)\.0+$", r"\1")
    for name, most in (("device", DEVICE_CHARACTERS), ("query", QUERY_CHARACTERS)):
        out[name] = as_words(rows, name, columns[name], limits, most) if name in columns else nulls
    if rules.ordered:
        order = as_number(rows, "order_column", columns["order_column"], limits)
        rows.refuse(np.isnan(order), "order_column", decode_dictionary(columns["order_column"]), "bad_order")
        out["order"] = pa.array(order)
    stamp = np.zeros(n, np.int64) if rules.ordered else _event_moments(rows, columns, limits, rules.moments)
    out["timestamp"] = pa.array(stamp)
    no_position = pa.nulls(n, pa.int16())
    position = _positions(rows, columns["position"], limits, rules.position_base) if "position" in columns else None
    out["position"] = no_position if position is None else position
    out |= {"value": pa.nulls(n, pa.float64())} | _amounts(rows, columns, limits, kind)
    if "clicked" in columns:
        out["clicked"] = as_flag(rows, "clicked", columns["clicked"], limits)
    for name in ("title", "description", "category", "brand"):
        if name in columns:
            out[name] = bounded_text(rows, name, columns[name], limits)
    return pa.table(out).filter(pa.array(rows.good))


# --- across rows ----------------------------------------------------------------------------------------------------


def codes(*columns: pa.ChunkedArray) -> I64:
    """int64[n]: codes that are equal for rows with equal values in all columns. Null counts as a value."""
    out: I64 = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        coded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
        pair = out * (len(coded.dictionary) + 1) + coded.indices.to_numpy(zero_copy_only=False)
        out = np.unique(pair, return_inverse=True)[1].astype(np.int64)
    return out


def find_duplicates(code: I64) -> Mask:
    """bool[n]: every row except the first of each code."""
    out = np.ones(len(code), np.bool_)
    out[np.unique(code, return_index=True)[1]] = False
    return out


def refuse_rows(
    events: pa.Table,
    bad: Mask,
    files: Sequence[str],
    column: str,
    reason: str,
    quarantine: Quarantine,
    names: Sequence[Mapping[str, str]],
) -> pa.Table:
    """The table without its bad rows, which are added to the quarantine with their file and row."""
    if not bad.any():
        return events
    refused = events.select(["#source", "#row", column]).filter(pa.array(bad))
    source = refused["#source"].to_numpy()
    for s in np.unique(source).tolist():
        of_source = refused.filter(pa.array(source == s))
        values = of_source[column].to_pylist()
        quarantine.add(files[s], of_source["#row"].to_numpy(), names[s].get(column, column), values, reason)
    return events.filter(pa.array(~bad))


def times_from_order(events: pa.Table, last_us: int) -> pa.Table:
    """Generate timestamps for rows with only an order: one day apart, the last of each user on the same day.

    Users are aligned at the end, so that a split by time holds out each user's last event. Rows with equal order get
    equal timestamps.
    """
    order = events["order"].to_numpy()
    user = codes(events["user_id"])
    place = np.lexsort((order, user))
    u, o = user[place], order[place]
    step = np.concatenate(([0], np.cumsum((u[1:] != u[:-1]) | (o[1:] != o[:-1]))))
    last = step[np.searchsorted(u, u, side="right") - 1]
    at = np.empty(len(u), np.int64)
    at[place] = last_us - (last - step) * DAY_US
    return events.set_column(events.schema.get_field_index("timestamp"), "timestamp", pa.array(at))


def event_ids(events: pa.Table) -> pa.Array:
    """Event IDs: the event's own, or else a hash of its content, so that duplicates of an event get the same ID.

    The hash is 128-bit BLAKE2b over user, item, kind, time (us) and list, with the position for impressions and the
    value for other events.
    """
    kind = events["kind"].to_numpy()
    shown = pa.array(kind == Kind.IMPRESSION)
    blank = pa.scalar("", pa.string())
    parts = [
        events["user_id"],
        events["item_id"],
        pa.array(KINDS).take(pa.array(kind.astype(np.int32))),
        events["timestamp"].cast(pa.string()),
        pc.fill_null(events["request_id"], ""),
        pc.if_else(shown, pc.fill_null(events["position"].cast(pa.string()), ""), blank),
        pc.if_else(shown, blank, pc.fill_null(events["value"].cast(pa.string()), "")),
    ]
    own = events["event_id"].combine_chunks()
    need = np.flatnonzero(np.asarray(own.is_null()))
    chunked = [p.combine_chunks() if isinstance(p, pa.ChunkedArray) else p for p in parts]
    content = pc.binary_join_element_wise(*[c.take(pa.array(need)) for c in chunked], "\x1f")
    blake = hashlib.blake2b
    derived = [blake(c.encode(), digest_size=16).hexdigest() for c in content.to_pylist()]
    return pc.replace_with_mask(own, own.is_null(), pa.array(derived, pa.string()))


def make_lists_unique(events: pa.Table, within_us: int, sources: Sequence[int]) -> tuple[pa.Table, int]:
    """Assign rows of these sources without a list to the user's newest list that showed the item; also their number.

    For GA4, whose clicks name no list. The list must not be later than the row, and at most `within_us` older.
    """
    kind, at = events["kind"].to_numpy(), events["timestamp"].to_numpy()
    request = events["request_id"].combine_chunks()
    who = codes(events["user_id"], events["item_id"])
    alone = (kind != Kind.IMPRESSION) & np.asarray(request.is_null()) & np.isin(events["#source"].to_numpy(), sources)
    shown = np.flatnonzero((kind == Kind.IMPRESSION) & np.asarray(request.is_valid()))
    left = pd.DataFrame({"at": at[alone], "who": who[alone], "to": np.flatnonzero(alone)})
    right = pd.DataFrame({"at": at[shown], "who": who[shown], "shown": shown})
    pairs = pd.merge_asof(
        left.sort_values("at", kind="stable"),
        right.sort_values("at", kind="stable"),
        on="at",
        by="who",
        tolerance=within_us,
    ).dropna()
    if not len(pairs):
        return events, 0
    take = np.arange(len(events))
    take[pairs["to"].to_numpy().astype(np.int64)] = pairs["shown"].to_numpy().astype(np.int64)
    place = events.schema.get_field_index("request_id")
    return events.set_column(place, "request_id", request.take(pa.array(take))), len(pairs)


def find_shared_lists(events: pa.Table) -> Mask:
    """bool[n]: rows of a list that was first shown to another user."""
    request, user = codes(events["request_id"]), codes(events["user_id"])
    listed = (events["kind"].to_numpy() == Kind.IMPRESSION) & np.asarray(events["request_id"].is_valid())
    owner = np.full(request.max(initial=-1) + 1, -1)
    first = np.flatnonzero(listed)[::-1]
    owner[request[first]] = user[first]  # reversed, so that the first row is written last and stays
    return np.asarray((owner[request] >= 0) & (owner[request] != user))


def unify_list_times(events: pa.Table) -> tuple[pa.Table, int]:
    """Set impressions to the earliest time of their list; also returns how many were moved."""
    at = events["timestamp"].to_numpy().copy()
    listed = (events["kind"].to_numpy() == Kind.IMPRESSION) & np.asarray(events["request_id"].is_valid())
    request = codes(events["request_id"])
    first = np.full(request.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, request[listed], at[listed])
    moved = int((at[listed] != first[request[listed]]).sum())
    at[listed] = first[request[listed]]
    return events.set_column(events.schema.get_field_index("timestamp"), "timestamp", pa.array(at)), moved


def find_repeated_items(events: pa.Table) -> Mask:
    """bool[n]: impressions of an item that is already in its list."""
    out = np.zeros(len(events), np.bool_)
    shown = np.flatnonzero((events["kind"].to_numpy() == Kind.IMPRESSION) & np.asarray(events["request_id"].is_valid()))
    of_lists = events.take(pa.array(shown))
    out[shown] = find_duplicates(codes(of_lists["request_id"], of_lists["item_id"]))
    return out


def find_click_conflicts(events: pa.Table) -> tuple[int, int]:
    """Number of impressions with a `clicked` flag, and how many of the flags contradict the click events."""
    if "clicked" not in events.column_names:
        return 0, 0
    pair = codes(events["request_id"], events["item_id"])
    clicked = pair[events["kind"].to_numpy() == Kind.CLICK]
    flagged = np.asarray(events["clicked"].is_valid())
    found = np.isin(pair[flagged], clicked)
    return int(flagged.sum()), int((found != null_mask(events["clicked"].combine_chunks())[flagged]).sum())
