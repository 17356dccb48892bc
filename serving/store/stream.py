"""Accepted events in order of arrival: an entry of the stream, and how far a reader has come.

A place in the stream is an entry's id. In a cluster the stream is in parts, and a place is an id of each, by shard,
with commas between; one id stands for itself in every part, so that a moment is a place in either. Ids begin with the
time of arrival in milliseconds, by the clock of the node.
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
"""Where a reader of the stream begins, and a place after every entry."""

_LEAST = 100
"""Entries of a part read at a time at least, so that one part far behind catches up."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accepted event. at: Unix seconds, a whole number of microseconds. Missing is None."""

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


class Tail(NamedTuple):
    """Events of the stream after some place, in order of arrival. kind: int8[n]. at: float64[n], Unix seconds.

    last: the place of the last entry, to go on from. since: when the first came, Unix seconds by Redis' clock; NaN
    where there is none.
    """

    last: str
    item_ids: list[str]
    kind: I8
    at: F64
    since: float = math.nan


_DECODE_EVENT = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """An event as an entry of the stream."""
    return msgspec.json.encode(event)


def decode_event(entry: bytes) -> Event:
    """An entry of the event stream. Raises StoreCorrupt where it is none of ours."""
    try:
        return _DECODE_EVENT.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise StoreCorrupt(f"{STREAM} holds an entry that is none of ours ({e}): delete it") from e


def tail_commands(layout: Layout, last: str, count: int) -> list[list[Any]]:
    """One for each part: about `count` entries in all after a place."""
    each = count if layout.shards == 1 else max(_LEAST, count // layout.shards)
    return [
        ["XRANGE", part, f"({place}", "+", "COUNT", each]
        for part, place in zip(layout.parts(STREAM), _places(layout, last), strict=True)
    ]


def decode_tail(layout: Layout, parts: Sequence[Any], last: str) -> Tail:
    """What `tail_commands` gave. Raises StoreCorrupt."""
    events = decode_events(parts)
    return Tail(
        reached(layout, parts, last),
        [e.item_id for e in events],
        np.array([e.kind for e in events], np.int8),
        np.array([e.at for e in events], np.float64),
        min((int(entries[0][0].partition(b"-")[0]) / 1e3 for entries in parts if entries), default=math.nan),
    )


def reached(layout: Layout, parts: Sequence[Any], last: str) -> str:
    """The place after these entries."""
    places = _places(layout, last)
    return ",".join(entries[-1][0].decode() if entries else place for entries, place in zip(parts, places, strict=True))


def decode_events(parts: Sequence[Any]) -> list[Event]:
    """The events of all parts; of several in order of their time. Raises StoreCorrupt."""
    events = [event for entries in parts for event in _decode_part(entries)]
    return events if len(parts) == 1 else sorted(events, key=lambda e: e.at)


def _decode_part(entries: Any) -> list[Event]:
    try:
        return [_DECODE_EVENT.decode(fields[b"e"]) for _, fields in entries]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as e:
        first, end = entries[0][0].decode(), entries[-1][0].decode()
        raise StoreCorrupt(
            f"{STREAM} holds an entry between {first} and {end} that is none of ours ({e}): delete it"
        ) from e


def _places(layout: Layout, last: str) -> list[str]:
    places = last.split(",")
    return places * layout.shards if len(places) == 1 else places
