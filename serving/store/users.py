"""User state in Redis: two lists of packed records, and sets of recent event IDs for deduplication.

A record is float64 at, uint8 kind, uint64 hash of the event ID, all little-endian, then the item ID in UTF-8. Records
are sorted by (at, kind, item ID, hash), descending. A list therefore holds the newest L events of the sorted,
deduplicated log, regardless of the order of arrival. A Lua script writes up to EVENTS_PER_SCRIPT events of one user: it
is atomic and idempotent, and other clients of Redis wait for at most one script. Event IDs are kept for one to two
periods of DUPLICATES_S after they arrive.

After a merge (`serving.store.merging`), late events of the one user from before it are written to the lists of the
other.

A list is deleted a day after it has expired (`Retention`); until then, readers skip its expired records. The number of
users who have lists is limited (`UserLimits`).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import IntEnum
from hashlib import blake2b, sha1
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F64, I8, I32, I64
from features.catalogue import Catalogue
from features.history import ENGAGEMENTS, NO_OUTSIDE, SHOWN, History, Outside
from features.log import Kind
from features.retention import DEFAULT_RETENTION, Retention, unexpired
from serving.store.erasure import user_hash
from serving.store.errors import StoreCorrupt
from serving.store.layout import DUPLICATES_S, ERASED_UNTIL, STREAM, USERS, Layout
from serving.store.stream import Event, encode_event

EVENTS_PER_SCRIPT = 100
"""Maximum number of events that one run of a script writes. More events of a user are divided over several runs."""
_IDS_PER_SCRIPT = 1000
"""Maximum number of event IDs that one run of SEED adds to the IDs seen."""

_PACK, _TIME = struct.Struct("<dBq"), struct.Struct("<d")
_HASH = slice(9, _PACK.size)
"""The hash of the event ID in a record."""
_HEADER = np.dtype([("at", "<f8"), ("kind", "u1"), ("hash", "<i8")])
_LUA = {name: Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("lists", "write", "seed")}
WRITE, SEED = _LUA["lists"] + _LUA["write"], _LUA["lists"] + _LUA["seed"]


class Outcome(IntEnum):
    """Outcome of writing an event.

    REFUSED: its user is new and the maximum number of users have lists. ERASED: it is from before the erasure of its
    user, and was refused for good.
    """

    REFUSED = -2
    ERASED = -1
    DUPLICATE = 0
    NEW = 1


class Moved(NamedTuple):
    """Events that were not written because a merge moved them to another user.

    into: that user. at: Unix seconds of the merge. places: (index of the reply, place in it) of each event.
    """

    into: str
    at: float
    places: list[tuple[int, int]]


class UserLimits(NamedTuple):
    """Limits of the users in Redis: how long their lists are kept, and the maximum number of users who have lists.

    In a cluster, each shard of the users has an equal part of the maximum.
    """

    retention: Retention = DEFAULT_RETENTION
    most: int = 10_000_000

    def most_of(self, layout: Layout) -> int:
        """The maximum number of users in a shard."""
        return -(-self.most // layout.shards)


DEFAULT_LIMITS = UserLimits()


def event_hash(event_id: str) -> int:
    """The int64 hash of an event ID in records and in the deduplication sets (BLAKE2b, 8 bytes)."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little", signed=True)


def member(user_id: str) -> bytes:
    """The member of USERS for a user (BLAKE2b, 8 bytes)."""
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def record(at: float, kind: int, event_id: str, item_id: str) -> bytes:
    """The packed record of an event. Raises ValueError if `at` is not finite or `kind` is not a `Kind`."""
    if not math.isfinite(at):
        raise ValueError(f"event {event_id!r} has time {at}: pass Unix seconds")
    return _PACK.pack(at, Kind(kind), event_hash(event_id)) + item_id.encode()


def script_commands(script: str, calls: Sequence[list[Any]], shards: Sequence[int]) -> list[list[Any]]:
    """Commands that run a script, one per call. calls: `[number of keys, keys, arguments]`. shards: of the keys.

    The first command of each shard contains the text of the script and the others only its hash, so they also work on a
    server that has lost its cached scripts.
    """
    digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
    loaded = set[int]()
    out = []
    for call, shard in zip(calls, shards, strict=True):
        out.append(["EVALSHA", digest, *call] if shard in loaded else ["EVAL", script, *call])
        loaded.add(shard)
    return out


def write_commands(
    layout: Layout, events: Sequence[Event], now: float, limits: UserLimits = DEFAULT_LIMITS, moved: Moved | None = None
) -> tuple[list[list[Any]], list[list[int]]]:
    """Script commands that write these events, and the indices of the events in each. now: Unix seconds.

    moved: the merge that moved these events: they are written to the lists of the user who has them since, and to the
    stream with their own user, where replay finds the merge.

    A user's events are divided over several commands if there are more than EVENTS_PER_SCRIPT. Of several events with
    one ID, the first is written and the others are in no command.
    """
    packed = [record(e.at, e.kind, e.event_id, e.item_id) for e in events]
    of_user: dict[str, dict[bytes, int]] = {}
    for n, event in enumerate(events):
        of_user.setdefault(moved.into if moved else event.user_id, {}).setdefault(packed[n][_HASH], n)
    period, calls, members, shards = _period(now), list[list[Any]](), list[list[int]](), list[int]()
    for user, distinct in of_user.items():
        shard = layout.shard(user)
        head: list[Any] = [
            9,
            layout.user(user, "e"),
            layout.user(user, "s"),
            layout.user(user, f"d:{period}"),
            layout.user(user, f"d:{period - 1}"),
            layout.part(STREAM, shard),
            layout.part(USERS, shard),
            layout.part(ERASED_UNTIL, shard),
            layout.user(user, "a"),
            layout.user(user, "m"),
            ENGAGEMENTS,
            SHOWN,
            2 * DUPLICATES_S,
            member(user),
            limits.retention.of(user),
            limits.most_of(layout),
            now,
            user_hash(user),
            moved.at if moved else 0.0,
        ]
        numbers = list(distinct.values())
        for first in range(0, len(numbers), EVENTS_PER_SCRIPT):
            part = numbers[first : first + EVENTS_PER_SCRIPT]
            # Sorting takes 40 us here, and would hold Redis for longer. The stream keeps the order of the request.
            oldest_first = sorted(range(len(part)), key=lambda k: _order(packed[part[k]]))
            call = list(head)
            for n, k in zip(part, oldest_first, strict=True):
                call += (_hash(packed[n]), packed[n], encode_event(events[n]), k + 1)
            calls.append(call)
            members.append(part)
            shards.append(shard)
    return script_commands(WRITE, calls, shards), members


def outcomes(replies: Sequence[Any], members: Sequence[Sequence[int]], events: Sequence[Event]) -> list[Outcome]:
    """The outcome of each event, from the replies per command.

    An event that is in no command repeats another one: it is a duplicate if that one is stored.
    """
    found = {
        n: Outcome(outcome)
        for reply, numbers in zip(replies, members, strict=True)
        for outcome, n in zip(reply, numbers, strict=True)
    }
    first = {(events[n].user_id, events[n].event_id): outcome for n, outcome in found.items()}
    repeated = (min(Outcome.DUPLICATE, first.get((e.user_id, e.event_id), Outcome.DUPLICATE)) for e in events)
    return [found.get(n, other) for n, other in enumerate(repeated)]


def moved_events(replies: Sequence[Any]) -> list[Moved]:
    """The events in the replies to `write_commands` that belong to other users, by merge."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    for k, reply in enumerate(replies):
        for place, outcome in enumerate(reply):
            if isinstance(outcome, bytes):
                found.setdefault(outcome, []).append((k, place))
    return [Moved(mark[_TIME.size :].decode(), _TIME.unpack_from(mark)[0], p) for mark, p in found.items()]


def forget_command(layout: Layout, user_id: str) -> list[Any]:
    """The command that no longer counts a user among those who have lists."""
    return ["ZREM", layout.part(USERS, layout.shard(user_id)), member(user_id)]


def record_time(packed: bytes) -> float:
    """Unix seconds of the event of a packed record."""
    return float(_PACK.unpack_from(packed)[0])


def seed_calls(
    layout: Layout,
    user_id: str,
    at: F64,
    kind: I8,
    item_ids: Sequence[str],
    event_ids: Sequence[str],
    rows: I64,
    now: float,
    as_of: float,
    limits: UserLimits,
) -> list[list[Any]]:
    """The arguments of SEED for these rows of the log: all of one user, in any order. Several calls, each idempotent.

    as_of: the end of the log, Unix seconds. Events that have expired by then are left out. IDs are added before the
    lists: if the calls end in between, an event of the log is still not written twice.
    """
    shown = kind[rows] == Kind.IMPRESSION
    recent = [event_hash(event_ids[n]) for n in rows[at[rows] > now - DUPLICATES_S].tolist()]
    engagements, impressions, seen = (layout.user(user_id, suffix) for suffix in ("e", "s", f"d:{_period(now)}"))
    keys = [seen, layout.part(USERS, layout.shard(user_id)), engagements, impressions, layout.user(user_id, "m")]
    kept_s = limits.retention.of(user_id)
    of_user = [2 * DUPLICATES_S, member(user_id), kept_s, limits.most_of(layout), as_of]
    calls: list[list[Any]] = [
        [6, engagements, *keys, ENGAGEMENTS, *of_user, 0, *recent[first : first + _IDS_PER_SCRIPT]]
        for first in range(0, len(recent), _IDS_PER_SCRIPT)
    ]
    for key, cap, of_list in ((engagements, ENGAGEMENTS, ~shown), (impressions, SHOWN, shown)):
        kept = _kept(at, rows[of_list], as_of, kept_s)
        if records := _seed_records(at, kind, item_ids, event_ids, kept, cap):
            calls.append([6, key, *keys, cap, *of_user, len(records), *records])
    return calls


def read_commands(layout: Layout, user_id: str) -> list[list[Any]]:
    """The commands that read a user's two lists."""
    # Read up to the cap only: a worker of a version with a larger cap may write the same list.
    return [
        ["LRANGE", layout.user(user_id, "e"), 0, ENGAGEMENTS - 1],
        ["LRANGE", layout.user(user_id, "s"), 0, SHOWN - 1],
    ]


def decode_lists(
    layout: Layout, replies: Sequence[Any], user_id: str, catalogue: Catalogue, at: float, retention: Retention
) -> tuple[History, Outside]:
    """Decode the replies to `read_commands`, keeping events strictly before `at` that have not expired by then.

    Raises StoreCorrupt.
    """
    kept_s = retention.of(user_id)
    item, kind, when, outside = _decode_list(replies[0], catalogue, at, kept_s, layout.user(user_id, "e"))
    shown, _, shown_at, outside_shown = _decode_list(replies[1], catalogue, at, kept_s, layout.user(user_id, "s"))
    if outside_shown.item_ids:
        outside = Outside(
            outside.item_ids + outside_shown.item_ids,
            np.concatenate([outside.kind, outside_shown.kind]),
            np.concatenate([outside.at, outside_shown.at]),
        )
    return History(item, kind, when, shown, shown_at), outside


def _period(now: float) -> int:
    return int(now // DUPLICATES_S)


def _kept(at: F64, rows: I64, as_of: float, kept_s: float) -> I64:
    """The rows of a list that have not expired by `as_of`, newest first."""
    newest_first = rows[np.argsort(-at[rows], kind="stable")]
    return newest_first[: unexpired(at[newest_first], as_of, kept_s)]


def _newest(at: F64, cap: int) -> I64:
    """Indices of the newest `cap` events and of any others of the same time as the oldest of these."""
    oldest = -np.inf if len(at) <= cap else np.partition(at, len(at) - cap)[len(at) - cap]
    return np.flatnonzero(at >= oldest)


def _hash(record: bytes) -> int:
    """The hash of the event ID in a record, as `event_hash` returns it."""
    return int.from_bytes(record[_HASH], "little", signed=True)


def _order(record: bytes) -> tuple[float, int, bytes, bytes]:
    at, kind, _ = _PACK.unpack_from(record)
    return at, kind, record[_PACK.size :], record[_HASH][::-1]


def _seed_records(
    at: F64, kind: I8, item_ids: Sequence[str], event_ids: Sequence[str], rows: I64, cap: int
) -> list[bytes]:
    """Records of the newest `cap` distinct events of these rows, oldest first."""
    once = {event_ids[n]: n for n in reversed(rows[_newest(at[rows], cap)].tolist())}
    records = [record(float(at[n]), int(kind[n]), i, item_ids[n]) for i, n in once.items()]
    return sorted(records, key=_order)[-cap:]


def _decode_list(
    records: Sequence[bytes], catalogue: Catalogue, at: float, kept_s: float, key: str
) -> tuple[I32, I8, F64, Outside]:
    """Item rows, kinds and times of the unexpired events of a list strictly before `at`, newest first, as contiguous
    arrays, and those events whose items are outside the catalogue."""
    size = _HEADER.itemsize
    text = np.frombuffer(b"".join(records), np.uint8)
    end = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)))
    start = end - np.diff(end, prepend=0)
    if (end - start < size).any():
        raise StoreCorrupt(
            f"{key} has a record of less than {size} bytes, too short for an event: delete the key or fix its writer"
        )
    header = text[start[:, None] + np.arange(size)].view(_HEADER)[:, 0]
    if len(header) and header["kind"].max() >= len(Kind):
        raise StoreCorrupt(
            f"{key} has a record with an event kind unknown to this version (0 to {len(Kind) - 1}): upgrade"
        )
    items = catalogue.row_index.find_bytes(text, end, size)
    when, kind = header["at"].astype(np.float64), header["kind"].astype(np.int8)
    past = int(np.searchsorted(-when, -at, side="right"))
    end_of_list = past + unexpired(when[past:], at, kept_s)
    items, kind, when = items[past:end_of_list], kind[past:end_of_list], when[past:end_of_list]
    outside = NO_OUTSIDE
    if (items < 0).any():
        unknown = np.flatnonzero(items < 0)
        ids = [records[k][size:].decode(errors="replace") for k in (past + unknown).tolist()]
        outside = Outside(ids, kind[unknown], when[unknown])
        # Records of equal time are sorted by item ID here but by row in replay, which differs for unknown items.
        order = np.lexsort((items, kind, when))[::-1]
        items, kind, when = items[order], kind[order], when[order]
    return items, kind, when, outside
