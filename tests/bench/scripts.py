"""Time for which one script holds Redis: `python -m tests.bench.scripts`, with a real Valkey on this machine.

Redis runs one script at a time, so any other request may have to wait for the slowest script that the API accepts. Each
case writes one request of 1,000 events, in an order and with IDs and lists that are as unfavourable as the API accepts.
The last cases seed the lists of a user, and merge two users with full lists. Times are those that Valkey reports for
each script in its slow log, without transfer and parsing. The figure of a case is the median over repetitions of the
slowest script, so that other jobs on the machine hardly matter. Ends with one line of JSON:

worst_ms, worst: the slowest script of all cases, and the name of its case
request_ms: all scripts of one request together, in the slowest case; Redis serves other clients between them
honest_ms, honest_request_ms: the same two for impressions of ranked lists at one moment, IDs sharing 29 characters
ratio_to_append: time of the honest request divided by that of a script that only appends its events to a stream
seed_ms: the slowest script that seeds a user
merge_ms: the script that merges two users with full lists
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import redis
from msgspec.structs import replace

from features.bounds import ID_BYTES
from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from features.history import ENGAGEMENTS, SHOWN
from features.log import Kind
from serving.store import BulkStore, Event, Merge, UserLimits, merging
from serving.store.embedded import connect_url
from serving.store.stream import encode_event
from tests.bench.made_up import AT

_SMILE = 0x1F600
"""A character of four bytes in UTF-8, the first of 64 that differ in the last byte only."""
_DIGITS = 6
_LONG = ID_BYTES - _DIGITS
SHARE_29 = "IDs that share 29 characters"
LONGEST = "1,024-byte IDs"
"""Four times what is accepted since IDs are limited in bytes: a margin."""
IDS: dict[str, Callable[[int], str]] = {
    "8-byte IDs": lambda n: f"{n:08d}",
    SHARE_29: lambda n: f"shop/products/autumn/outdoor-{n:06d}",
    "256-byte IDs": lambda n: "a" * _LONG + f"{n:06d}",
    LONGEST: lambda n: chr(_SMILE) * _LONG + "".join(chr(_SMILE + int(c)) for c in f"{n:06d}"),
}
ORDERS: dict[str, Callable[[list[int]], list[int]]] = {
    "oldest first": lambda ranks: ranks,
    "newest first": lambda ranks: ranks[::-1],
    "shuffled": lambda ranks: random.Random(0).sample(ranks, len(ranks)),
}

_APPEND = "for i = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'e', ARGV[i]) end"


class Case(NamedTuple):
    """A request. before: events already in Redis. events: those of the request. seeded: whether they are seeded.

    merged: whether the request merges their user, `guest`, into the user of the others; all of them are in Redis.
    """

    name: str
    before: list[Event]
    events: list[Event]
    seeded: bool = False
    merged: bool = False


class Times(NamedTuple):
    """Milliseconds in Redis: the slowest script, and all scripts of the request together."""

    slowest: float
    request: float


def event(rank: int, name: Callable[[int], str], kind: Kind, apart_s: float = 0.0, user: str = "u") -> Event:
    """The event of a rank. Events `apart_s` apart are sorted by time, those at one moment by item ID: both by rank."""
    text = name(rank)
    return Event(text, int(kind), user, text, AT + apart_s * rank)


def longest(event: Event) -> Event:
    """The event with every optional field at its maximum length."""
    text = chr(_SMILE) * ID_BYTES
    return replace(
        event,
        request_id=text,
        position=32767,
        value=0.1,
        session_id=text,
        device=text[:DEVICE_CHARACTERS],
        query=text[:QUERY_CHARACTERS],
    )


def cases(count: int) -> Iterator[Case]:
    """All cases, with `count` events per request."""
    for ids, name in IDS.items():
        for times, apart_s in (("at one moment", 0.0), ("a second apart", 1.0)):
            for order, of in ORDERS.items():
                for kind, cap in ((Kind.IMPRESSION, SHOWN), (Kind.CLICK, ENGAGEMENTS)):
                    what = f"{kind.name.lower()}s {times}, {ids}, {order}"
                    events = [event(r, name, kind, apart_s) for r in of(list(range(1, 2 * count, 2)))]
                    yield Case(f"{what}, empty list", [], events)
                    # The records of the full list have even ranks, so new and existing records alternate.
                    full = [event(2 * (count - n), name, kind, apart_s) for n in range(cap)]
                    yield Case(f"{what}, full list", full, events)
    name = IDS[LONGEST]
    older = [event(r, name, Kind.IMPRESSION) for r in range(count)]
    newer = [event(r, name, Kind.IMPRESSION) for r in range(count, count + SHOWN)]
    yield Case("older than a full list", newer, older)
    yield Case("all sent again", older, older)
    yield Case("one event many times", [], older[:1] * count)
    yield Case("as many users", [], [event(r, name, Kind.CLICK, user=f"u{r}") for r in range(count)])
    mixed = [longest(event(r, name, (Kind.IMPRESSION, Kind.CLICK)[r % 2])) for r in range(count)]
    yield Case("longest fields, both kinds", mixed[::2][:SHOWN], mixed)
    # As many as one script writes, spread over the full list: 5 events between 12 records, 20 times.
    spread = [longest(event(r, name, Kind.IMPRESSION)) for r in range(17 * 20)]
    one_script = [e for r, e in enumerate(spread) if r % 17 in (1, 4, 7, 10, 13)]
    yield Case("spread over a full list", [e for e in spread if e not in one_script], one_script)
    # With 4,096 IDs, Valkey changes the encoding of the set of a user's IDs.
    seen = [event(r, IDS["8-byte IDs"], Kind.CLICK, 1.0) for r in range(4090)]
    yield Case(
        "the set of IDs is converted", seen, [event(r, name, Kind.CLICK, 1.0) for r in range(5000, 5000 + count)]
    )
    for kind, cap in ((Kind.IMPRESSION, SHOWN), (Kind.CLICK, ENGAGEMENTS)):
        both = [event(r, name, kind) for r in range(2 * cap)]
        yield Case(f"seed {kind.name.lower()}s between those of a full list", both[::2], both[1::2], seeded=True)
    yield Case("seed recent events", [], older, seeded=True)
    for ids in (SHARE_29, LONGEST):
        pairs = [(kind, r) for kind, cap in ((Kind.IMPRESSION, SHOWN), (Kind.CLICK, ENGAGEMENTS)) for r in range(cap)]
        own = [event(2 * r, IDS[ids], kind) for kind, r in pairs]
        theirs = [event(2 * r + 1, IDS[ids], kind, user="guest") for kind, r in pairs]
        yield Case(f"merge two users with full lists, {ids}", own, theirs, merged=True)


def honest(count: int) -> Case:
    """Impressions of one user at one moment, in the order of a ranking, all newer than the user's full list."""
    name = IDS[SHARE_29]
    before = [replace(event(r, name, Kind.IMPRESSION), at=AT - 1) for r in range(count, count + SHOWN)]
    ranked = ORDERS["shuffled"](list(range(count)))
    return Case("honest", before, [event(r, name, Kind.IMPRESSION) for r in ranked])


def measure(case: Case, store: BulkStore, client: redis.Redis) -> list[float]:
    """Milliseconds of each script of a case, latest first."""
    client.flushall()
    store.write(case.before + (case.events if case.merged else []), AT)
    client.slowlog_reset()
    if case.merged:
        merge = Merge(case.before[0].user_id, case.events[0].user_id, AT + 1e6)
        store.run(merging.merge_command(store.layout, merge, UserLimits()))
    elif case.seeded:
        seed(store, case.events)
    else:
        store.write(case.events, AT)
    return slowlog(client)


def times_of(runs: list[list[float]]) -> Times:
    """The times of a case from the milliseconds of its scripts in each round."""
    of_script = [median(times) for times in zip(*runs, strict=True)]
    return Times(max(of_script), sum(of_script))


def seed(store: BulkStore, events: list[Event]) -> None:
    """Add events of one user to the user's lists, as a nightly run does."""
    at, kind = np.array([e.at for e in events]), np.array([e.kind for e in events], np.int8)
    ids = [e.item_id for e in events], [e.event_id for e in events]
    store.seed([events[0].user_id], np.array([0, len(events)]), at, kind, *ids, AT, AT)


def measure_append(events: list[Event], client: redis.Redis) -> list[float]:
    """Milliseconds of a script that only appends these events to a stream."""
    client.flushall()
    client.slowlog_reset()
    client.eval(_APPEND, 1, "stream", *map(encode_event, events))
    return slowlog(client)


def slowlog(client: redis.Redis) -> list[float]:
    """Milliseconds of each script in the slow log."""
    entries = client.slowlog_get(10**6)
    return [e["duration"] / 1e3 for e in entries if e["command"].startswith((b"EVAL ", b"EVALSHA "))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000, help="events per request, at least the 240 of a full list")
    parser.add_argument("--rounds", type=int, default=7, help="number of times that each case is measured")
    parser.add_argument("--only", default="", help="measure only cases whose name contains this text")
    options = parser.parse_args()
    count = max(SHOWN, options.events)
    measured = [case for case in cases(count) if options.only in case.name]
    page = honest(count)
    runs: dict[str, list[list[float]]] = {case.name: [] for case in (*measured, page)}
    append_runs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        connect_url(None, Path(folder) / "valkey") as url,
        BulkStore(url, timeout_s=600.0) as store,
        redis.Redis.from_url(url) as client,
    ):
        client.config_set("slowlog-max-len", 10**6)
        client.config_set("slowlog-log-slower-than", 0)
        for _ in range(options.rounds):
            for case in (*measured, page):
                runs[case.name].append(measure(case, store, client))
            append_runs.append(measure_append(page.events, client))
    times = {name: times_of(of_case) for name, of_case in runs.items()}
    for name, of_case in times.items():
        print(f"{of_case.slowest:9.2f} {of_case.request:9.2f} ms  {name}")
    worst = max(times, key=lambda name: times[name].slowest)
    figures = {
        "worst_ms": times[worst].slowest,
        "request_ms": max(t.request for t in times.values()),
        "honest_ms": times[page.name].slowest,
        "honest_request_ms": times[page.name].request,
        "ratio_to_append": times[page.name].request / times_of(append_runs).request,
        "seed_ms": max((times[case.name].slowest for case in measured if case.seeded), default=0.0),
        "merge_ms": max((times[case.name].slowest for case in measured if case.merged), default=0.0),
    }
    print(json.dumps({**{name: round(value, 3) for name, value in figures.items()}, "worst": worst}))


if __name__ == "__main__":
    main()
