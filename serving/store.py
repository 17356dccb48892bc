"""The bytes in Redis: users' two lists, the event stream, the release pointer, item vectors. Nothing else knows them.

    sw:{<user>}:e              list of records, newest first: the last engagements, at most ENGAGEMENTS
    sw:{<user>}:s              list of records, newest first: the last impressions, at most SHOWN
    sw:{<user>}:d:<period>     set of int64 hashes of the event ids that came in this period, against duplicates
    sw:events                  stream of accepted events, field `e`: JSON of an `Event`
    sw:served                  stream of answered lists, see `served.Served`
    sw:i:.., sw:items, sw:item-changes     items written since a release: see `written`
    sw:erased                  stream of erased users, fields `u` (see `user_hash`) and `t` (Unix seconds)
    sw:release                 JSON of a `Pointer`
    sw:audit                   list of JSON lines, oldest first: the last changes of the pointer, at most AUDITED
    sw:v:<encoder>:<item id>   float16[d], little-endian: the item's vector by the encoder of this fingerprint

A record is float64 at, uint8 kind, uint64 hash of the event id, all little-endian, then the item id in UTF-8. Records
stand in the order of (at, kind, item id, hash), descending, so a list is the newest L of the ordered, de-duplicated
log whatever the order in which events arrive. A user is written by one Lua script: atomic, and the same event twice is
the same as once. Ids are remembered for one to two periods of DUPLICATES_S after they came.
"""

from __future__ import annotations

import asyncio
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b, sha1
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

import msgspec
import numpy as np
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from features.catalogue import Catalogue
from features.history import ENGAGEMENTS, SHOWN, History
from features.log import F32, F64, I8, I32, I64, Kind
from serving.breaker import Breaker

DUPLICATES_S = 48 * 3600
STREAM = "sw:events"
SERVED = "sw:served"
ERASED = "sw:erased"
POINTER = "sw:release"
AUDIT = "sw:audit"
AUDITED = 1000
START = "0-0"
END = f"{2**63 - 1}-0"
"""Where a reader of the stream begins, and a place after every entry."""

_PACK = struct.Struct("<dBq")
_HEADER = np.dtype([("at", "<f8"), ("kind", "u1"), ("hash", "<i8")])
_BATCH = 1000
_LUA = {name: Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("order", "write", "seed")}
_WRITE, _SEED = _LUA["order"] + _LUA["write"], _LUA["order"] + _LUA["seed"]


class StoreAway(RuntimeError):
    """Redis did not answer in time, not at all, or with an error; the message says which."""


class StoreCorrupt(StoreAway):
    """Redis holds something under one of our keys that this version cannot read; the message says what and where."""


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


class Pointer(msgspec.Struct, frozen=True):
    """Which release is live. path: its directory, as every worker sees it. pinned: no night may replace it."""

    id: str
    path: str
    pinned: bool = False


class Tail(NamedTuple):
    """Events of the stream after some entry, in order of arrival. kind: int8[n]. at: float64[n], Unix seconds.

    last: the id of the last entry, to go on from. since: when the first came, Unix seconds by Redis' clock; NaN where
    there is none.
    """

    last: str
    item_ids: list[str]
    kind: I8
    at: F64
    since: float = math.nan


_DECODE_EVENT = msgspec.json.Decoder(Event)


_STEP, _STEPS = 1000, 5
"""Keys that one look for users goes over, and how many such looks: what a page asks must not tire Redis."""


def event_hash(event_id: str) -> int:
    """int64: what stands for an event id in records and in the sets against duplicates (BLAKE2b, 8 bytes)."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little", signed=True)


def user_hash(user_id: str) -> str:
    """What stands for a user who was erased (BLAKE2b, 16 bytes as hexadecimal digits)."""
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def record(at: float, kind: int, event_id: str, item_id: str) -> bytes:
    """One event as the lists hold it. Raises ValueError where `at` is not finite or `kind` not a `Kind`."""
    if not math.isfinite(at):
        raise ValueError(f"event {event_id!r} is at {at}: give Unix seconds")
    return _PACK.pack(at, Kind(kind), event_hash(event_id)) + item_id.encode()


def _key(user_id: str, suffix: str) -> str:
    # Braces mark what a cluster hashes, so that the keys of one user share a node; one in the id would end it early.
    return f"sw:{{{user_id.replace('%', '%25').replace('}', '%7D')}}}:{suffix}"


def decode_vectors(fingerprint: str, held: Sequence[bytes | None], dimension: int) -> F32:
    """float32[items, dimension] of what Redis holds by `vector_key`, NaN for none. Raises StoreCorrupt."""
    out = np.full((len(held), dimension), np.nan, np.float32)
    for row, vector in zip(out, held, strict=True):
        if vector is not None and len(vector) != 2 * dimension:
            raise StoreCorrupt(
                f"a vector of encoder {fingerprint} has {len(vector)} bytes, expected {2 * dimension} "
                f"for {dimension} dimensions: write this encoder's vectors anew"
            )
        if vector is not None:
            row[:] = np.frombuffer(vector, "<f2")
    return out


def _user_of(key: bytes) -> str:
    """The user of a key that `_key` made."""
    return key.decode().partition("{")[2].rpartition("}")[0].replace("%7D", "}").replace("%25", "%")


def _period(now: float) -> int:
    return int(now // DUPLICATES_S)


def vector_key(fingerprint: str, item_id: str) -> str:
    """Where the vector of an item by an encoder stands."""
    return f"sw:v:{fingerprint}:{item_id}"


def _scripted(script: str, calls: Sequence[list[Any]]) -> list[list[Any]]:
    """Commands that run a script with each `[number of keys, keys, arguments]`.

    The first brings the script's text, so that the others find it by its hash whatever the server has forgotten.
    """
    digest = sha1(script.encode(), usedforsecurity=False).hexdigest()
    return [["EVALSHA", digest, *call] if n else ["EVAL", script, *call] for n, call in enumerate(calls)]


def _write_calls(events: Sequence[Event], now: float) -> tuple[list[list[Any]], list[list[int]]]:
    """A call of the script for each user, and which of the events it holds."""
    of_user: dict[str, list[int]] = {}
    for n, event in enumerate(events):
        of_user.setdefault(event.user_id, []).append(n)
    period, calls = _period(now), []
    for user, members in of_user.items():
        call: list[Any] = [
            5, _key(user, "e"), _key(user, "s"), _key(user, f"d:{period}"), _key(user, f"d:{period - 1}"), STREAM,
            ENGAGEMENTS, SHOWN, 2 * DUPLICATES_S,
        ]  # fmt: skip
        for n in members:
            e = events[n]
            call += (event_hash(e.event_id), record(e.at, e.kind, e.event_id, e.item_id), msgspec.json.encode(e))
        calls.append(call)
    return calls, list(of_user.values())


def _flags(replies: Sequence[Any], members: Sequence[Sequence[int]], count: int) -> list[bool]:
    out = [False] * count
    for reply, numbers in zip(replies, members, strict=True):
        for flag, n in zip(reply, numbers, strict=True):
            out[n] = bool(flag)
    return out


def _newest(at: F64, cap: int) -> I64:
    """Row numbers of the newest `cap`, and of whatever is exactly as old as the oldest of them."""
    oldest = -np.inf if len(at) <= cap else np.partition(at, len(at) - cap)[len(at) - cap]
    return np.flatnonzero(at >= oldest)


def _order(record: bytes) -> tuple[float, int, bytes, bytes]:
    at, kind, _ = _PACK.unpack_from(record)
    return at, kind, record[_PACK.size :], record[_PACK.size - 1 : 8 : -1]


def _seed_records(
    at: F64, kind: I8, item_ids: Sequence[str], event_ids: Sequence[str], rows: I64, cap: int
) -> list[bytes]:  # fmt: skip
    """Distinct records of the newest `cap` of these rows, newest first."""
    once = {event_ids[n]: n for n in reversed(rows[_newest(at[rows], cap)].tolist())}
    records = [record(float(at[n]), int(kind[n]), i, item_ids[n]) for i, n in once.items()]
    return sorted(records, key=_order, reverse=True)[:cap]


def _decode_list(records: Sequence[bytes], catalogue: Catalogue, at: float, key: str) -> tuple[I32, I8, F64]:
    """Item rows, kinds and times of a list strictly before a moment, newest first, contiguous."""
    size = _HEADER.itemsize
    text = np.frombuffer(b"".join(records), np.uint8)
    end = np.cumsum(np.fromiter(map(len, records), np.int64, len(records)))
    start = end - np.diff(end, prepend=0)
    if (end - start < size).any():
        raise StoreCorrupt(
            f"{key} holds a record that is none of ours, under {size} bytes: delete the key, or mend what wrote it"
        )
    header = text[start[:, None] + np.arange(size)].view(_HEADER)[:, 0]
    if len(header) and header["kind"].max() >= len(Kind):
        raise StoreCorrupt(
            f"{key} holds a record with a kind this version does not know (0 to {len(Kind) - 1}): upgrade"
        )
    items = catalogue.places.find_bytes(text, end, size)
    when, kind = header["at"].astype(np.float64), header["kind"].astype(np.int8)
    past = int(np.searchsorted(-when, -at, side="right"))
    items, kind, when = items[past:], kind[past:], when[past:]
    if (items < 0).any():
        # Here equal times stand by item id, in replay by row, which differs for ids outside the catalogue.
        order = np.lexsort((items, kind, when))[::-1]
        items, kind, when = items[order], kind[order], when[order]
    return items, kind, when


def _decode_history(replies: Sequence[Any], user_id: str, catalogue: Catalogue, at: float) -> History:
    item, kind, when = _decode_list(replies[0], catalogue, at, _key(user_id, "e"))
    shown, _, shown_at = _decode_list(replies[1], catalogue, at, _key(user_id, "s"))
    return History(item, kind, when, shown, shown_at)


def _read_commands(user_id: str) -> list[list[Any]]:
    # Zero to the end, not to the cap: an old worker with a smaller cap and a new one may write the same list.
    return [["LRANGE", _key(user_id, "e"), 0, ENGAGEMENTS - 1], ["LRANGE", _key(user_id, "s"), 0, SHOWN - 1]]


def _decode_tail(entries: Any, last: str) -> Tail:
    events = _decode_events(entries)
    return Tail(
        entries[-1][0].decode() if entries else last,
        [e.item_id for e in events],
        np.array([e.kind for e in events], np.int8),
        np.array([e.at for e in events], np.float64),
        int(entries[0][0].partition(b"-")[0]) / 1e3 if entries else math.nan,
    )


def decode_event(entry: bytes) -> Event:
    """An entry of the event stream. Raises StoreCorrupt where it is none of ours."""
    try:
        return _DECODE_EVENT.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        raise StoreCorrupt(f"{STREAM} holds an entry that is none of ours ({e}): delete it") from e


def _decode_events(entries: Any) -> list[Event]:
    try:
        return [_DECODE_EVENT.decode(fields[b"e"]) for _, fields in entries]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as e:
        first, end = entries[0][0].decode(), entries[-1][0].decode()
        raise StoreCorrupt(
            f"{STREAM} holds an entry between {first} and {end} that is none of ours ({e}): delete it"
        ) from e


def _tail_command(last: str, count: int) -> list[Any]:
    return ["XRANGE", STREAM, f"({last}", "+", "COUNT", count]


def _decode_pointer(reply: bytes | None) -> Pointer | None:
    if reply is None:
        return None
    try:
        return msgspec.json.decode(reply, type=Pointer)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(
            f"{POINTER} does not hold the JSON of a release pointer ({e}): promote a release anew"
        ) from e


class Store:
    """The service's side: asyncio, every call within a deadline, every failure a `StoreAway`."""

    def __init__(self, url: str, timeout_s: float, breaker: Breaker | None = None) -> None:
        """url: `redis://`, `rediss://` or `unix://`. timeout_s: deadline of each call, in seconds.

        breaker: when to leave Redis alone; `poll` looks all the same, and so finds out when it is back.
        """
        self._timeout_s = timeout_s
        self.breaker = breaker or Breaker(3, 1.0)
        # One retry at once: after a restart of the server, pooled connections are dead and the next one is not.
        # Every command here may safely be sent twice.
        # Connections are as many as requests at once, which the guard bounds.
        self._client: Any = redis.asyncio.Redis.from_url(
            url, retry=AsyncRetry(NoBackoff(), 1), socket_timeout=None, max_connections=2**31 - 1
        )

    async def close(self) -> None:
        """Give back the connections."""
        await self._client.aclose()

    async def run(self, commands: Sequence[Sequence[Any]], look: bool = False) -> list[Any]:
        """Replies to commands sent in one round trip. look: ask even while Redis is being left alone."""
        if not self.breaker.allows() and not look:
            raise StoreAway(self.breaker.reason)
        try:
            replies = await self._send(commands)
        except ResponseError as e:  # refused, out of memory, not ours: but there
            self.breaker.succeeded()
            raise StoreAway(f"Redis: {type(e).__name__}: {e}") from e
        except (TimeoutError, RedisError, OSError) as e:
            late = f"Redis did not answer within {self._timeout_s} s"
            reason = late if isinstance(e, TimeoutError) else f"Redis: {type(e).__name__}: {e}"
            self.breaker.failed(reason)
            raise StoreAway(reason) from e
        self.breaker.succeeded()
        return replies

    async def _send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            due = loop.call_later(self._timeout_s, _last_call, limit, self._timeout_s / 10)
            try:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                replies: list[Any] = await pipeline.execute()
                return replies
            finally:
                due.cancel()

    async def write(self, events: Sequence[Event], now: float) -> list[bool]:
        """True for each event that was new, False for a duplicate; on return all are in their users' lists.

        now: Unix seconds, for how long ids are remembered. If StoreAway is raised, some, all or none were written:
        the same call again completes them.
        """
        if not events:
            return []
        calls, members = _write_calls(events, now)
        return _flags(await self.run(_scripted(_WRITE, calls)), members, len(events))

    async def read(self, user_id: str, catalogue: Catalogue, at: float) -> History:
        """What a user did and was shown strictly before `at`; empty lists for a user never seen."""
        return _decode_history(await self.run(_read_commands(user_id)), user_id, catalogue, at)

    async def erase(self, user_id: str, at: float) -> None:
        """Forget a user: the lists and ids now, the log by a tombstone that `shelfwise collect` obeys.

        at: Unix seconds; what the user did later is kept. Twice is the same as once.
        """
        # The tombstone first: cut off in between, the call is made again.
        tombstone = ["XADD", ERASED, "*", "u", user_hash(user_id), "t", repr(at)]
        period = _period(at)
        keys = [_key(user_id, s) for s in ("e", "s", f"d:{period}", f"d:{period - 1}")]
        await self.run([tombstone, ["UNLINK", *keys]])

    async def append(self, stream: str, entries: Sequence[bytes]) -> int:
        """Add entries to the end of a stream, each as its field `l`; returns how long it is then."""
        commands = [["XADD", stream, "*", "l", entry] for entry in entries]
        return int((await self.run([*commands, ["XLEN", stream]]))[-1])

    async def pointer(self) -> Pointer | None:
        """The live release, None before the first."""
        return _decode_pointer((await self.run([["GET", POINTER]]))[0])

    async def some_users(self, count: int) -> list[str]:
        """At most `count` users who have a list, in no order, as a few short steps through the keys find them."""
        found, cursor = set[str](), 0
        for _ in range(_STEPS):
            cursor, keys = (await self.run([["SCAN", cursor, "MATCH", _key("*", "e"), "COUNT", _STEP]]))[0]
            found |= {_user_of(key) for key in keys}
            if len(found) >= count or not int(cursor):
                break
        return sorted(found)[:count]

    async def poll(self, last: str, count: int = 5 * _BATCH) -> tuple[Pointer | None, Tail]:
        """The live release, and at most `count` events of the stream after entry `last`: one round trip."""
        pointer, entries = await self.run([["GET", POINTER], _tail_command(last, count)], look=True)
        return _decode_pointer(pointer), _decode_tail(entries, last)


def _last_call(limit: asyncio.Timeout, seconds: float) -> None:
    """Past the deadline, what has come is still read: a loop that was busy itself must not take it for a slow Redis."""
    limit.reschedule(asyncio.get_running_loop().time() + seconds)


class BulkStore:
    """The offline side: plain calls, whole catalogues and logs at a time. Raises what redis-py raises, or StoreCorrupt.

    A context manager; leaving it gives back the connections.
    """

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.client: Any = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1), socket_timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.client.close()

    def run(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Replies to commands sent in one round trip."""
        pipeline = self.client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute()
        return replies

    def write(self, events: Sequence[Event], now: float) -> list[bool]:
        """As `Store.write`."""
        if not events:
            return []
        calls, members = _write_calls(events, now)
        return _flags(self.run(_scripted(_WRITE, calls)), members, len(events))

    def read(self, user_id: str, catalogue: Catalogue, at: float) -> History:
        """As `Store.read`."""
        return _decode_history(self.run(_read_commands(user_id)), user_id, catalogue, at)

    def tail(self, last: str = START, count: int = 10 * _BATCH) -> Tail:
        """At most `count` events of the stream after entry `last`; none left when its `item_ids` is empty."""
        return _decode_tail(self.run([_tail_command(last, count)])[0], last)

    def events(self, last: str = START, count: int = 10 * _BATCH) -> tuple[str, list[Event]]:
        """The same as whole events, for the log: (id of the last entry, events)."""
        entries = self.run([_tail_command(last, count)])[0]
        return (entries[-1][0].decode() if entries else last), _decode_events(entries)

    def trim(self, before: float) -> int:
        """Drop entries of the stream that came before a moment (Unix seconds); returns how many.

        For a moment no later than the cut-off of the oldest release that may still be served, and only once those
        events are in the log: whatever came before a cut-off is in the release's own item state.
        """
        return int(self.run([["XTRIM", STREAM, "MINID", max(0, int(before * 1000))]])[0])

    def entries(self, stream: str, field: bytes, last: str = START, count: int = _BATCH) -> list[tuple[str, bytes]]:
        """(id, content) of at most `count` entries of a stream after entry `last`, in order of arrival."""
        found = self.run([["XRANGE", stream, f"({last}", "+", "COUNT", count]])[0]
        if bad := next((i for i, fields in found if field not in fields), None):
            raise StoreCorrupt(f"{stream} holds an entry {bad.decode()} that is none of ours: delete it")
        return [(i.decode(), fields[field]) for i, fields in found]

    def length(self, stream: str) -> int:
        """How many entries a stream holds."""
        return int(self.run([["XLEN", stream]])[0])

    def trim_to(self, stream: str, last: str) -> int:
        """Drop the entries of a stream before `last`; returns how many."""
        return int(self.run([["XTRIM", stream, "MINID", last]])[0])

    def erased(self) -> tuple[str, list[tuple[str, float]]]:
        """Erasures that `collect` has not taken away: the last entry's id, and (user_hash, Unix seconds) of each."""
        found = self.run([["XRANGE", ERASED, "-", "+"]])[0]
        last = found[-1][0].decode() if found else START
        return last, [(fields[b"u"].decode(), float(fields[b"t"])) for _, fields in found]

    def drop_events(self, erased: Mapping[str, float]) -> int:
        """Take events of erased users, up to their erasure, out of the stream; returns how many there were."""
        dropped, last = 0, START
        while found := self.entries(STREAM, b"e", last, 10 * _BATCH):
            last = found[-1][0]
            held = ((i, decode_event(e)) for i, e in found)
            ids = [i for i, e in held if e.at <= erased.get(user_hash(e.user_id), -math.inf)]
            dropped += self.run([["XDEL", STREAM, *ids]])[0] if ids else 0
        return dropped

    def pointer(self) -> Pointer | None:
        """The live release, None before the first."""
        return _decode_pointer(self.run([["GET", POINTER]])[0])

    def point(self, pointer: Pointer) -> None:
        """Make a release live: every worker loads it within a second or so and swaps to it."""
        self.run([["SET", POINTER, msgspec.json.encode(pointer)]])

    def audit(self, line: str) -> None:
        """Add a line to the audit of releases, the oldest beyond `AUDITED` going."""
        self.run([["RPUSH", AUDIT, line], ["LTRIM", AUDIT, -AUDITED, -1]])

    def audited(self) -> list[str]:
        """The audit of releases, oldest first."""
        return [line.decode() for line in self.run([["LRANGE", AUDIT, 0, -1]])[0]]

    def seed(
        self, user_ids: Sequence[str], start: I64, at: F64, kind: I8, item_ids: Sequence[str],
        event_ids: Sequence[str], now: float, on_progress: Callable[[int, int], None] | None = None,
    ) -> int:  # fmt: skip
        """Put the log's events into users' lists where they are missing; returns how many records were added.

        Rows `start[u]:start[u + 1]` (int64[users + 1]) are user u's, in any order; at: float64[n], Unix seconds;
        kind: int8[n]. What is there already stays, and an event that came by `write` too, known by its id, counts
        once. now: Unix seconds. on_progress: called with (users done, users).
        """
        period, added, calls = _period(now), 0, []
        for u, user in enumerate(user_ids):
            rows = np.arange(start[u], start[u + 1])
            shown = kind[rows] == Kind.IMPRESSION
            first = _seed_records(at, kind, item_ids, event_ids, rows[~shown], ENGAGEMENTS)
            second = _seed_records(at, kind, item_ids, event_ids, rows[shown], SHOWN)
            recent = [event_hash(event_ids[n]) for n in rows[at[rows] > now - DUPLICATES_S].tolist()]
            keys = [_key(user, "e"), _key(user, "s"), _key(user, f"d:{period}")]
            caps = [ENGAGEMENTS, SHOWN, 2 * DUPLICATES_S, len(first), len(second)]
            calls.append([len(keys), *keys, *caps, *first, *second, *recent])
            if len(calls) == _BATCH or u + 1 == len(user_ids):
                added += sum(self.run(_scripted(_SEED, calls)))
                calls = []
                if on_progress:
                    on_progress(u + 1, len(user_ids))
        return added

    def write_vectors(
        self,
        fingerprint: str,
        item_ids: Sequence[str],
        vectors: F32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Keep the vector of each item as float16, replacing what was there for this encoder and item.

        vectors: float32[items, d]; a row of NaN is an item without text. on_progress: called with (items done, items).
        Raises ValueError where the shapes disagree or a value is infinite or beyond float16.
        """
        if vectors.ndim != 2 or len(vectors) != len(item_ids):
            raise ValueError(
                f"vectors have shape {vectors.shape} for {len(item_ids)} items: one row an item is expected"
            )
        for first in range(0, len(item_ids), _BATCH):
            part = vectors[first : first + _BATCH]
            wrong = np.flatnonzero((np.abs(part) > np.finfo(np.float16).max).any(axis=1))
            if len(wrong):
                raise ValueError(
                    f"the vector of item {item_ids[first + wrong[0]]!r} is infinite or beyond float16: "
                    "scale it to unit length"
                )
            names = (vector_key(fingerprint, i) for i in item_ids[first : first + _BATCH])
            rows = (row.tobytes() for row in part.astype("<f2"))
            self.run([["MSET", *(x for pair in zip(names, rows, strict=True) for x in pair)]])
            if on_progress:
                on_progress(min(first + _BATCH, len(item_ids)), len(item_ids))

    def read_vectors(self, fingerprint: str, item_ids: Sequence[str], dimension: int) -> F32:
        """float32[items, dimension]: what `write_vectors` kept, to float16's precision; NaN for an item without."""
        held = self.run([["MGET", *(vector_key(fingerprint, i) for i in item_ids)]])[0] if len(item_ids) else []
        return decode_vectors(fingerprint, held, dimension)

    def drop_vectors(self, fingerprint: str) -> int:
        """Delete every vector of an encoder that no release uses any more; returns how many there were."""
        dropped, batch = 0, []
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", vector_key(fingerprint, ""))
        for key in self.client.scan_iter(match=pattern + "*", count=_BATCH):
            batch.append(key)
            if len(batch) == _BATCH:
                dropped += self.run([["UNLINK", *batch]])[0]
                batch = []
        return dropped + (self.run([["UNLINK", *batch]])[0] if batch else 0)
