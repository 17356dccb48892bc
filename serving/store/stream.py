"""The event stream: accepted events in order of arrival, and the positions of readers in it.

A position is the ID of the last entry read. In a cluster the stream has one part per shard, and a position is the
comma-separated list of one ID per part; a single ID applies to every part. IDs begin with the time of arrival in
milliseconds, by the clock of the node, so a time can be used as a position in both cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from features.arrays import F64, I8
from features.log import Kind
from serving.store.errors import StoreCorrupt
from serving.store.layout import STREAM, Layout

START = "0-0"
END = f"{2**63 - 1}-0"
"""The positions before the first entry and after every entry of the stream."""

_MIN_PER_PART = 100
"""Minimum number of entries read from a part at a time, so that a part that is far behind catches up."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accepted event. at: Unix seconds, a whole number of microseconds. columns: of an impression, those of its
    request, as a JSON object. placement: of the list that it belongs to. Missing fields are None."""

    event_id: str
    kind: Annotated[int, msgspec.Meta(ge=0, lt=len(Kind))]
    user_id: str
    item_id: str
    at: float
    request_id: str | None = None
    position: int | None = None
    value: float | None = None
    session_id: str | None = None
    device: str | None = None
    query: str | None = None
    columns: str | None = None
    placement: str | None = None


class Tail(NamedTuple):
    """Events of the stream after a position, in order of arrival. kind: int8[n]. at: float64[n], Unix seconds.

    last: position of the last entry, to continue from. since: arrival time of the first entry, Unix seconds by the
    clock of Redis; NaN if there are no entries.
    """

    last: str
    item_ids: list[str]
    kind: I8
    at: F64
    since: float = math.nan


_DECODE_EVENT = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Encode an event as an entry of the stream."""
    return msgspec.json.encode(event)


def decode_event(entry: bytes) -> Event:
    """Decode an entry of the event stream. Raises StoreCorrupt if it is not a valid event."""
    try:
        return _DECODE_EVENT.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise StoreCorrupt(f"the event stream has an entry that is not a valid event ({e}): delete it") from e


def tail_commands(layout: Layout, last: str, count: int) -> list[list[Any]]:
    """Commands, one per part, that read about `count` entries in all after position `last`."""
    per_part = count if layout.shards == 1 else max(_MIN_PER_PART, count // layout.shards)
    return [
        ["XRANGE", part, f"({position}", "+", "COUNT", per_part]
        for part, position in zip(layout.parts(STREAM), positions_of(layout, last), strict=True)
    ]


def decode_tail(layout: Layout, parts: Sequence[Any], last: str) -> Tail:
    """Decode the replies to `tail_commands`. Raises StoreCorrupt."""
    events = decode_events(parts)
    return Tail(
        last_position(layout, parts, last),
        [e.item_id for e in events],
        np.array([e.kind for e in events], np.int8),
        np.array([e.at for e in events], np.float64),
        min((int(entries[0][0].partition(b"-")[0]) / 1e3 for entries in parts if entries), default=math.nan),
    )


def last_position(layout: Layout, parts: Sequence[Any], last: str) -> str:
    """The position of the last of these entries; `last` for a part without entries."""
    positions = positions_of(layout, last)
    return ",".join(
        entries[-1][0].decode() if entries else position for entries, position in zip(parts, positions, strict=True)
    )


def decode_events(parts: Sequence[Any]) -> list[Event]:
    """The events of all parts; sorted by time if there are several parts. Raises StoreCorrupt."""
    events = [event for entries in parts for event in _decode_part(entries)]
    return events if len(parts) == 1 else sorted(events, key=lambda e: e.at)


def entry_number(entry: str) -> tuple[int, int]:
    """The ID of an entry as two numbers, which are ordered as the entries are."""
    milliseconds, _, number = entry.partition("-")
    return int(milliseconds), int(number or 0)


def _decode_part(entries: Any) -> list[Event]:
    try:
        return [_DECODE_EVENT.decode(fields[b"e"]) for _, fields in entries]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as e:
        first, end = entries[0][0].decode(), entries[-1][0].decode()
        raise StoreCorrupt(
            f"the event stream has an entry between {first} and {end} that is not a valid event ({e}): delete it"
        ) from e


def positions_of(layout: Layout, last: str) -> list[str]:
    """The ID in each part of a position."""
    positions = last.split(",")
    return positions * layout.shards if len(positions) == 1 else positions
