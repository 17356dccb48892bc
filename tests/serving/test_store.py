"""The data in Redis: lists in log order for any order of arrival, each event once, and any kind of ID."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.history import ENGAGEMENTS, SHOWN, Histories
from features.log import Events, Kind
from features.retention import DAY_S, Retention
from serving.store import (
    DUPLICATES_S,
    START,
    BulkStore,
    BulkWrittenItems,
    Event,
    Outcome,
    Pointer,
    Store,
    StoreAway,
    UserLimits,
    WrittenItems,
    tombstone,
    user_hash,
    users,
)
from serving.store.embedded import EmbeddedError, connect_url
from serving.store.errors import StoreCorrupt
from serving.store.layout import Layout
from serving.store.stream import encode_event
from serving.store.users import EVENTS_PER_SCRIPT, event_hash, write_commands
from tests.bench.scale import UNITS

NOW = 1_700_000_000.0
NEW, DUPLICATE, REFUSED = Outcome.NEW, Outcome.DUPLICATE, Outcome.REFUSED
ITEMS = ["a", "b", "é", "z"]


def catalogue(item_ids: list[str]) -> Catalogue:
    n = len(item_ids)
    return Catalogue(
        item_ids,
        item_ids,
        np.full(n + 1, np.nan),
        np.zeros(n + 1, np.int32),
        [],
        np.zeros(n + 1, np.int32),
        [],
        np.full(n + 1, np.nan),
        np.empty((n + 1, 0)),
        [],
        np.zeros(n + 2, np.int64),
        np.empty(0, np.int32),
        [],
    )


def event(n: int, at: float, kind: Kind = Kind.CLICK, item: str = "a", user: str = "u") -> Event:
    return Event(f"e{n}", kind, user, item, at)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
        yield raw


@pytest.fixture
def store(url: str, raw: redis.Redis) -> Iterator[BulkStore]:
    with BulkStore(url) as store:
        yield store


def newest_first(events: list[Event]) -> list[tuple[float, int, bytes, str]]:
    """The expected list: the log without duplicate IDs, sorted, newest first."""
    distinct = {e.event_id: e for e in reversed(events)}.values()
    order = sorted(
        distinct, key=lambda e: (e.at, e.kind, e.item_id.encode(), event_hash(e.event_id) % 2**64), reverse=True
    )
    return [(e.at, e.kind, e.item_id.encode(), e.event_id) for e in order]


def records(raw: redis.Redis, key: str) -> list[tuple[float, int, bytes, int]]:
    """(at, kind, item ID, hash of the event ID) of each record of a list."""
    found = []
    for r in raw.lrange(key, 0, -1):
        assert isinstance(r, bytes)
        at, kind, hashed = struct.unpack("<dBq", r[:17])
        found.append((at, kind, r[17:], hashed))
    return found


some_events = st.lists(
    st.builds(
        lambda n, at, kind, item: Event(f"e{n}", kind, "u", item, NOW + at / 2),
        st.integers(0, 400),
        st.integers(0, 60),
        st.sampled_from([Kind.IMPRESSION, Kind.CLICK, Kind.CART]),
        st.sampled_from([*ITEMS, "ab", "unheard of"]),
    ),
    max_size=150,
)


@settings(max_examples=40, deadline=None)
@given(events=some_events, cut=st.integers(0, 150))
def test_the_lists_are_the_newest_events_of_the_log_for_any_order_of_arrival(
    url: str, events: list[Event], cut: int
) -> None:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        new = store.write(events[:cut], NOW) + store.write(events[cut:], NOW)
        repeated = store.write(events, NOW)
        # An ID that first arrived as an impression is not an engagement later: the first arrival counts.
        first = {e.event_id: e for e in reversed(events)}
        e = newest_first([x for x in first.values() if x.kind != Kind.IMPRESSION])
        s = newest_first([x for x in first.values() if x.kind == Kind.IMPRESSION])
        assert [(a, k, i, event_hash(x)) for a, k, i, x in e][:ENGAGEMENTS] == records(raw, "sw:{u}:e")
        assert [(a, k, i, event_hash(x)) for a, k, i, x in s][:SHOWN] == records(raw, "sw:{u}:s")
        assert len(first) == sum(new) == raw.xlen("sw:events")
        assert not any(repeated)


SHARED = "é" * 100
adversarial_events = st.lists(
    st.builds(
        lambda n, at, kind, item: Event(f"e{n}", kind, "u", item, NOW + at),
        st.integers(0, 60),
        st.integers(0, 2),
        st.sampled_from([Kind.IMPRESSION, Kind.IMPRESSION, Kind.CLICK, Kind.CART]),
        # Equal, prefixes of each other, different in the first, a middle or only the last byte, of one to four bytes.
        st.sampled_from([*ITEMS, "", "aa", SHARED, SHARED[:50], *(SHARED + c for c in "aéz\U0001f600")]),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(
    events=adversarial_events,
    cuts=st.lists(st.integers(0, 60), max_size=4),
    per_script=st.integers(1, 12),
    engagements=st.integers(1, 8),
    shown=st.integers(1, 8),
)
def test_any_order_and_division_of_events_gives_the_lists_of_a_sorted_log(
    url: str, events: list[Event], cuts: list[int], per_script: int, engagements: int, shown: int
) -> None:
    """Of the events with one ID, the first counts. Each list is the head of the others, sorted, for any lengths, number
    of requests and events per script; the stream has each counted event once, in order of arrival."""
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "EVENTS_PER_SCRIPT", per_script)
        patch.setattr(users, "ENGAGEMENTS", engagements)
        patch.setattr(users, "SHOWN", shown)
        raw.flushall()
        bounds = [0, *sorted(cuts), len(events)]
        new = [n for a, b in pairwise(bounds) for n in store.write(events[a:b], NOW)]
        first = {e.event_id: n for n, e in reversed(list(enumerate(events)))}
        assert new == [NEW if first[e.event_id] == n else DUPLICATE for n, e in enumerate(events)]
        kept = [events[n] for n in first.values()]
        for key, cap, of_list in (
            ("sw:{u}:e", engagements, [e for e in kept if e.kind != Kind.IMPRESSION]),
            ("sw:{u}:s", shown, [e for e in kept if e.kind == Kind.IMPRESSION]),
        ):
            expected = [(at, kind, item, event_hash(i)) for at, kind, item, i in newest_first(of_list)][:cap]
            assert records(raw, key) == expected
        assert store.events()[1] == [e for e, is_new in zip(events, new, strict=True) if is_new]


def test_a_script_writes_at_most_100_events_of_a_user_in_the_order_of_the_request() -> None:
    """250 events of u and 1 of v, of which u sends 30 twice: 100 + 100 + 50 and 1, and the 30 are in no command."""
    sent = [event(n, NOW - n) for n in range(250)]
    batch = [*sent, event(300, NOW, user="v"), *sent[:30]]
    commands, members = write_commands(Layout(cluster=False), batch, NOW)
    assert EVENTS_PER_SCRIPT == 100
    # Each command begins with its name, the script, the number of keys, 9 keys and 9 arguments, and has 4 per event.
    assert [(len(command) - 21) / 4 for command in commands] == [100, 100, 50, 1]
    assert members == [[*range(100)], [*range(100, 200)], [*range(200, 250)], [250]]


@pytest.mark.parametrize("backwards", [False, True])
def test_the_commands_of_a_write_do_not_depend_on_the_order_of_its_events(
    store: BulkStore, raw: redis.Redis, backwards: bool
) -> None:
    """1,000 impressions at one moment, between which a full list lies, take 10 scripts, each of which reads the list at
    most once and inserts at most its own 100 events."""
    ids = [f"{SHARED}{n:04d}" for n in range(2000)]
    store.write([event(n, NOW, Kind.IMPRESSION, ids[n]) for n in range(1520, 2000, 2)], NOW)
    raw.config_resetstat()
    batch = [event(n, NOW, Kind.IMPRESSION, ids[n]) for n in range(1, 2000, 2)]
    assert all(store.write(batch[::-1] if backwards else batch, NOW))
    calls = {name: stats["calls"] for name, stats in raw.info("commandstats").items()}
    assert calls["cmdstat_eval"] + calls["cmdstat_evalsha"] == 10
    assert calls["cmdstat_lrange"] <= 10
    # The oldest 760 are older than the full list; of the others, 240 lie between or before its records.
    assert calls["cmdstat_linsert"] + calls.get("cmdstat_rpush", 0) <= 240
    assert [item.decode()[len(SHARED) :] for _, _, item, _ in records(raw, "sw:{u}:s")] == [
        f"{n:04d}" for n in range(1999, 1999 - SHOWN, -1)
    ]


def test_an_event_older_than_a_full_list_does_not_cause_a_read_of_the_list(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(n, NOW + n, Kind.IMPRESSION) for n in range(SHOWN)], NOW)
    raw.config_resetstat()
    assert store.write([event(1000 + n, NOW - 1, Kind.IMPRESSION) for n in range(50)], NOW) == [NEW] * 50
    assert "cmdstat_lrange" not in raw.info("commandstats")
    assert raw.xlen("sw:events") == SHOWN + 50


def test_a_full_list_keeps_its_newest_events_and_inserts_a_late_event_in_order(
    store: BulkStore, raw: redis.Redis
) -> None:
    store.write([event(n, NOW + 2 * n) for n in range(ENGAGEMENTS)], NOW)
    store.write([event(1000, NOW + 3), event(1001, NOW - 1)], NOW)
    times = [at for at, *_ in records(raw, "sw:{u}:e")]
    # 100 events at 0, 2, .., 198: an event at 3 replaces that at 0, and an event at -1 is too old.
    assert sorted([NOW + 2 * n for n in range(1, ENGAGEMENTS)] + [NOW + 3], reverse=True) == times


def test_replay_and_redis_give_the_same_history_at_the_same_time(store: BulkStore) -> None:
    rng = np.random.default_rng(7)
    n, known = 600, catalogue(ITEMS)
    at = NOW + np.sort(rng.integers(0, 300, n)).astype(float)
    item, kind = rng.integers(-1, len(ITEMS), n).astype(np.int32), rng.integers(0, 6, n).astype(np.int8)
    order = np.lexsort((item, kind, at))
    at, item, kind = at[order], item[order], kind[order]
    log = Events(
        at,
        np.zeros(n, np.int32),
        item,
        kind,
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int16),
        np.full(n, np.nan),
        ["u"],
        [],
        np.full(n, -1, np.int32),
        np.full(n, -1, np.int8),
    )
    arrival = rng.permutation(n).tolist()
    names = [ITEMS[i] if i >= 0 else "m, unknown" for i in item.tolist()]
    store.write([Event(f"e{k}", int(kind[k]), "u", names[k], float(at[k])) for k in arrival], NOW)
    for end in (NOW + 301, float(at[-1]), float(at[-1]) - 3):
        expected = Histories.of(log.before(end)).read(0, end)
        history = store.read("u", known, end)
        if end > at[-1]:
            assert [x.tolist() for x in expected] == [x.tolist() for x in history]
        assert [x.dtype for x in expected] == [x.dtype for x in history]
        assert all((x < end).all() for x in (history.at, history.shown_at))
        assert all(x.flags.c_contiguous for x in history)


@pytest.mark.parametrize(("user", "days"), [("u", 180), ("anon-u", 30)])
def test_replay_and_redis_give_the_same_history_after_gaps(store: BulkStore, user: str, days: int) -> None:
    """Of 40 events, some are up to a minute less than the retention apart, and some up to a minute more."""
    rng = np.random.default_rng(days)
    gaps = np.where(rng.random(40) < 0.2, days * DAY_S, 0) + rng.uniform(-60, 60, 40)
    at, kind = NOW + np.abs(gaps).cumsum(), rng.integers(0, 6, 40).astype(np.int8)
    n, known, lengths = len(at), catalogue(ITEMS), set[int]()
    none = np.full(n, -1, np.int32)
    log = Events(
        at,
        np.zeros(n, np.int32),
        np.zeros(n, np.int32),
        kind,
        none,
        none.astype(np.int16),
        np.full(n, np.nan),
        [user],
        [],
        none,
        none.astype(np.int8),
    )
    for k, now in enumerate(at.tolist()):
        expected, history = Histories.of(log).read(0, now), store.read(user, known, now)
        assert [x.tolist() for x in expected] == [x.tolist() for x in history]
        lengths.add(len(history.at))
        store.write([Event(f"e{k}", int(kind[k]), user, "a", now)], now)
    assert 0 in lengths
    assert max(lengths) > 5


def test_a_list_is_deleted_a_day_after_it_expires_counted_from_its_newest_event(
    store: BulkStore, raw: redis.Redis
) -> None:
    """Later events extend the time, late events and reads do not. A list that has expired on arrival is kept a day."""

    def days_left(key: str) -> int:
        return round(int(raw.ttl(key)) / DAY_S)

    store.write([event(1, NOW - 10 * DAY_S), event(2, NOW - 20 * DAY_S, Kind.IMPRESSION)], NOW)
    assert (days_left("sw:{u}:e"), days_left("sw:{u}:s")) == (180 - 10 + 1, 180 - 20 + 1)
    store.write([event(3, NOW - 15 * DAY_S)], NOW)
    store.read("u", catalogue(ITEMS), NOW)
    assert days_left("sw:{u}:e") == 171
    store.write([event(4, NOW)], NOW)
    assert (days_left("sw:{u}:e"), days_left("sw:{u}:s")) == (181, 161)
    store.write([event(5, NOW, user="anon-1"), event(6, NOW - 400 * DAY_S, user="old")], NOW)
    assert (days_left("sw:{anon-1}:e"), days_left("sw:{old}:e")) == (31, 1)


def test_seeding_leaves_out_what_has_expired_by_the_end_of_the_log(store: BulkStore, raw: redis.Redis) -> None:
    """The list of u has a gap of 181 days, and the last event of v is 181 days old."""
    log = [event(1, NOW - 200 * DAY_S), event(2, NOW - 19 * DAY_S), event(3, NOW - 181 * DAY_S, user="v")]
    assert seed(store, log) == 1
    assert [at for at, *_ in records(raw, "sw:{u}:e")] == [NOW - 19 * DAY_S]
    assert round(int(raw.ttl("sw:{u}:e")) / DAY_S) == 180 - 19 + 1
    assert not raw.exists("sw:{v}:e")


def test_a_list_without_expiry_written_by_an_earlier_version_gets_one_when_it_is_seeded(
    store: BulkStore, raw: redis.Redis
) -> None:
    store.write([event(1, NOW)], NOW)
    raw.persist("sw:{u}:e")
    raw.unlink("sw:users")
    seed(store, [event(1, NOW)])
    assert raw.ttl("sw:{u}:e") > 180 * DAY_S
    assert raw.zcard("sw:users") == 1


def test_users_beyond_the_maximum_are_refused_until_others_expire(url: str, raw: redis.Redis) -> None:
    """A refused event is not in the stream either, and can be sent again. Known users are never refused."""
    with BulkStore(url, limits=UserLimits(Retention(10 * DAY_S), 2)) as store:
        u, v, w = (event(n, NOW, user=user) for n, user in enumerate("uvw"))
        assert store.write([u, w], NOW) == [NEW, NEW]
        assert store.write([u, v, event(3, NOW, Kind.IMPRESSION), event(4, NOW, user="v"), v], NOW) == [
            DUPLICATE,
            REFUSED,
            NEW,
            REFUSED,
            REFUSED,
        ]
        assert [e.event_id for e in store.events()[1]] == ["e0", "e2", "e3"]
        assert store.seed(["v"], np.array([0, 1]), np.array([NOW]), np.array([2]), ["a"], ["x"], NOW, NOW) == (0, 1)
        assert not raw.exists("sw:{v}:e")
        assert store.write([event(5, NOW + 9 * DAY_S)], NOW + 9 * DAY_S) == [NEW]
        assert store.write([v], NOW + 11 * DAY_S - 1) == [REFUSED], "the list of w is deleted after 10 + 1 days"
        assert store.write([v], NOW + 11 * DAY_S) == [NEW]


def test_an_erased_user_is_no_longer_counted(url: str, raw: redis.Redis) -> None:
    async def erase() -> None:
        store = Store(url, 1.0)
        try:
            await store.write([event(1, NOW), event(2, NOW, user="v")], NOW)
            await store.erase("u", NOW)
        finally:
            await store.close()

    asyncio.run(erase())
    assert raw.zcard("sw:users") == 1


def test_an_event_from_before_an_erasure_is_erased_even_at_the_maximum_of_users(url: str, raw: redis.Redis) -> None:
    """It must not be sent again, unlike a refused one. A repeated event has the outcome of the first one."""
    with BulkStore(url, limits=UserLimits(most=1)) as store:
        assert store.write([event(1, NOW, user="known")], NOW) == [NEW]
        store.refuse_events("00", {tombstone("00", user_hash("u")): NOW})
        batch = [event(1, NOW), event(2, NOW + 1), event(1, NOW), event(2, NOW + 1), event(1, NOW, user="known")]
        assert store.write(batch, NOW + 1) == [Outcome.ERASED, REFUSED, Outcome.ERASED, REFUSED, DUPLICATE]
    assert not raw.exists("sw:{u}:e", "sw:{u}:s")


def test_a_history_ends_strictly_before_the_given_time(store: BulkStore) -> None:
    store.write([event(1, NOW), event(2, NOW - 1)], NOW)
    assert store.read("u", catalogue(ITEMS), NOW).at.tolist() == [NOW - 1]


def test_an_unknown_user_has_empty_lists(store: BulkStore) -> None:
    assert [x.tolist() for x in store.read("nobody", catalogue(ITEMS), NOW)] == [[], [], [], [], []]


@pytest.mark.parametrize("user", ["}", "{}", "a}:e", "%7D", "ключ", "a b\n", "*", "u" * 256])
def test_every_user_id_has_its_own_lists(store: BulkStore, user: str) -> None:
    """A brace would end the hash tag of a cluster, and escaping must not merge two users."""
    store.write([event(1, NOW, user=user, item="b")], NOW)
    store.write([event(2, NOW, user="u")], NOW)
    assert store.read(user, catalogue(ITEMS), NOW + 1).item.tolist() == [1]
    assert store.read(user + "x", catalogue(ITEMS), NOW + 1).item.tolist() == []


def test_event_ids_are_deduplicated_for_at_least_two_days_and_then_expire(store: BulkStore, raw: redis.Redis) -> None:
    begin = NOW // DUPLICATES_S * DUPLICATES_S
    assert store.write([event(1, NOW)], begin) == [NEW]
    assert store.write([event(1, NOW + 9)], begin + 2 * DUPLICATES_S - 1) == [DUPLICATE]
    assert store.write([event(1, NOW + 9)], begin + 2 * DUPLICATES_S) == [NEW]
    assert 0 < raw.ttl(f"sw:{{u}}:d:{int(begin // DUPLICATES_S)}") <= 2 * DUPLICATES_S


def test_a_record_is_in_its_list_once_even_if_its_event_id_has_expired(store: BulkStore, raw: redis.Redis) -> None:
    """Neither the newest, nor one in the middle, nor the oldest of a list is inserted again."""
    events = [event(n, NOW + n) for n in range(3)]
    store.write(events, NOW)
    assert store.write(events, NOW + 2 * DUPLICATES_S) == [NEW] * 3
    assert [at for at, *_ in records(raw, "sw:{u}:e")] == [NOW + 2, NOW + 1, NOW]


def test_event_ids_take_eight_bytes_each(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(n, NOW + n) for n in range(1000)], NOW)
    assert raw.object("encoding", f"sw:{{u}}:d:{int(NOW // DUPLICATES_S)}") == b"intset"


def test_the_results_of_a_write_are_in_the_order_of_its_events(store: BulkStore) -> None:
    store.write([event(2, NOW, user="v")], NOW)
    batch = [event(1, NOW, user="u"), event(2, NOW, user="v"), event(3, NOW, user="u"), event(1, NOW, user="u")]
    assert store.write(batch, NOW) == [NEW, DUPLICATE, NEW, DUPLICATE]


@pytest.mark.parametrize("at", [float("nan"), float("inf")])
def test_a_time_that_is_not_finite_is_refused(store: BulkStore, at: float) -> None:
    with pytest.raises(ValueError, match=r"event 'e1' has time (nan|inf): pass Unix seconds"):
        store.write([event(1, at)], NOW)


def test_the_stream_returns_every_event_once_in_order_of_arrival(store: BulkStore) -> None:
    events = [event(n, NOW - n, Kind.CART, item=ITEMS[n % 4], user=f"u{n % 3}") for n in range(25)]
    for e in events:
        store.write([e, e], NOW)
    last, seen = START, []
    while (tail := store.tail(last, count=10)).item_ids:
        seen += list(zip(tail.item_ids, tail.kind.tolist(), tail.at.tolist(), strict=True))
        last = tail.last
    assert [(e.item_id, e.kind, e.at) for e in events] == seen
    assert last == tail.last
    assert events == store.events()[1]


def test_trimming_deletes_only_entries_that_arrived_before_the_given_time(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(1, NOW)], NOW)
    arrived = int(raw.xinfo_stream("sw:events")["last-generated-id"].split(b"-")[0]) / 1000
    assert store.trim(arrived - 1) == 0
    assert store.trim(arrived + 1) == 1
    assert store.tail().item_ids == []


def test_many_entries_are_read_and_deleted_a_thousand_at_a_time(url: str, store: BulkStore, raw: redis.Redis) -> None:
    """2,500 of each: three commands or more, because Redis serves no other client during a command. The result is the
    same as from one command: written items in order of their last write, then of their ID."""
    n = 2500
    pipeline = raw.pipeline(transaction=False)
    for k in range(n):
        pipeline.zadd(store.layout.items, {f"i{k:04d}": NOW + (k * 7 % n) // 2})
        pipeline.xadd("sw:erased", {"u": f"u{k}", "t": repr(NOW + k)}, id=f"{k + 1}-0")
        pipeline.xadd("sw:events", {"e": encode_event(event(k, NOW + k, user=f"u{k}"))}, id=f"{k + 1}-0")
    pipeline.execute()
    expected = sorted((f"i{k:04d}" for k in range(n)), key=lambda i: ((int(i[1:]) * 7 % n) // 2, i))

    def calls(command: str) -> int:
        made = int(raw.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])
        raw.config_resetstat()
        return made

    raw.config_resetstat()
    assert BulkWrittenItems(store).ids() == expected
    assert calls("zscan") >= 3

    async def ids() -> list[str]:
        online = Store(url, timeout_s=5)
        try:
            return await WrittenItems(online).ids()
        finally:
            await online.close()

    assert asyncio.run(ids()) == expected
    assert calls("zscan") >= 3
    last, erased = store.erased()
    assert (last, erased) == (f"{n}-0", [(f"u{k}", NOW + k) for k in range(n)])
    assert calls("xrange") >= 3
    # Events of even users are as old as the erasure of their user, and events of odd users a second newer.
    assert store.drop_events({f"u{k}": NOW + k - k % 2 for k in range(n)}.__getitem__) == n // 2
    assert calls("xdel") >= 3
    assert store.trim_to("sw:events", f"{n}-0") == n // 2 - 1
    assert calls("xtrim") >= 3
    assert [e.event_id for e in store.events()[1]] == [f"e{n - 1}"]


def seed(store: BulkStore, events: list[Event], now: float = NOW) -> int:
    users = sorted({e.user_id for e in events})
    events = sorted(events, key=lambda e: e.user_id)
    start = np.searchsorted([e.user_id for e in events], [*users, "\U0010ffff"])
    return store.seed(
        users,
        start,
        np.array([e.at for e in events]),
        np.array([e.kind for e in events], np.int8),
        [e.item_id for e in events],
        [e.event_id for e in events],
        now,
        now,
    ).records


@settings(max_examples=30, deadline=None)
@given(events=some_events, live=st.sets(st.integers(0, 149)))
def test_seeding_adds_missing_events_and_counts_events_from_both_sources_once(
    url: str, events: list[Event], live: set[int]
) -> None:
    log = list({e.event_id: e for e in events}.values())
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.write([e for n, e in enumerate(log) if n in live], NOW)
        added = seed(store, log)
        assert seed(store, log) == 0
        e = newest_first([e for e in log if e.kind != Kind.IMPRESSION])[:ENGAGEMENTS]
        assert [(a, k, i, event_hash(x)) for a, k, i, x in e] == records(raw, "sw:{u}:e")
        if len(log) <= ENGAGEMENTS:
            assert len(log) - len(live & set(range(len(log)))) == added


@settings(max_examples=60, deadline=None)
@given(events=adversarial_events, live=st.sets(st.integers(0, 59)), cap=st.integers(1, 8), ids=st.integers(1, 12))
def test_seeding_between_written_events_gives_the_lists_of_the_whole_log(
    url: str, events: list[Event], live: set[int], cap: int, ids: int
) -> None:
    """For lists of any length, and any number of IDs per script; events of the log are then known by their IDs."""
    log = list({e.event_id: e for e in events}.values())
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "ENGAGEMENTS", cap)
        patch.setattr(users, "SHOWN", cap)
        patch.setattr(users, "_IDS_PER_SCRIPT", ids)
        raw.flushall()
        store.write([e for n, e in enumerate(log) if n in live], NOW)
        seed(store, log)
        for key, shown in (("sw:{u}:e", False), ("sw:{u}:s", True)):
            expected = newest_first([e for e in log if (e.kind == Kind.IMPRESSION) == shown])[:cap]
            assert records(raw, key) == [(at, kind, item, event_hash(i)) for at, kind, item, i in expected]
        assert seed(store, log) == 0
        assert not any(store.write(log, NOW))


def test_an_event_of_the_log_sent_again_through_the_api_counts_once(store: BulkStore, raw: redis.Redis) -> None:
    """An event retried after the nightly run may have another time, so it is recognised only by its ID."""
    seed(store, [event(1, NOW - 60)])
    assert store.write([event(1, NOW)], NOW) == [DUPLICATE]
    assert [at for at, *_ in records(raw, "sw:{u}:e")] == [NOW - 60]


def test_seeding_keeps_a_written_event_that_has_another_time_in_the_log(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(1, NOW)], NOW)
    assert seed(store, [event(1, NOW - 60), event(2, NOW - 30)]) == 1
    assert [at for at, *_ in records(raw, "sw:{u}:e")] == [NOW, NOW - 30]


def test_seeding_keeps_only_the_newest_events_and_reports_progress(store: BulkStore, raw: redis.Redis) -> None:
    seed(store, [event(n, NOW + n) for n in range(3 * ENGAGEMENTS)])
    assert [NOW + n for n in range(3 * ENGAGEMENTS - 1, 2 * ENGAGEMENTS - 1, -1)] == [
        at for at, *_ in records(raw, "sw:{u}:e")
    ]
    progress: list[tuple[int, int]] = []
    empty = np.empty(0)
    store.seed(
        ["x", "y"], np.zeros(3, np.int64), empty, empty.astype(np.int8), [], [], NOW, NOW, lambda *x: progress.append(x)
    )
    assert progress == [(2, 2)]


def test_vectors_are_read_in_half_precision_and_a_missing_vector_is_nan(store: BulkStore, raw: redis.Redis) -> None:
    rng = np.random.default_rng(1)
    ids, vectors = [f"i{n}" for n in range(1500)], rng.normal(size=(1500, 8)).astype(np.float32)
    vectors[3] = np.nan
    progress: list[tuple[int, int]] = []
    store.write_vectors("f00d", ids, vectors, lambda *x: progress.append(x))
    assert progress == [(1000, 1500), (1500, 1500)]
    read = store.read_vectors("f00d", ["i7", "i3", "none", "i1499"], 8)
    np.testing.assert_array_equal(vectors[[7, 3, 3, 1499]].astype(np.float16).astype(np.float32), read)
    assert vectors[0].astype("<f2").tobytes() == raw.get("sw:v:f00d:i0")
    assert store.read_vectors("f00d", [], 8).shape == (0, 8)
    store.write_vectors("f00d2", ids[:2], vectors[:2])
    assert store.drop_vectors("f00d") == 1500
    assert store.drop_vectors("f00d2") == 2


def test_invalid_vectors_are_refused_with_the_reason(store: BulkStore) -> None:
    vectors = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"vectors have shape \(2, 3\) for 1 items: expected one row per item"):
        store.write_vectors("f", ["a"], vectors)
    vectors[1, 2] = np.inf
    with pytest.raises(
        ValueError, match="vector of item 'b' is infinite or too large for float16: scale it to unit length"
    ):
        store.write_vectors("f", ["a", "b"], vectors)
    store.write_vectors("f", ["a"], vectors[:1])
    with pytest.raises(
        StoreCorrupt, match="has 6 bytes, expected 8 for 4 dimensions: write this encoder's vectors again"
    ):
        store.read_vectors("f", ["a"], 4)


def test_the_pointer_is_read_as_written_and_is_none_before_the_first_release(store: BulkStore) -> None:
    assert store.pointer() is None
    store.set_pointer(Pointer("20250131-0123456789", "/somewhere"))
    assert Pointer("20250131-0123456789", "/somewhere") == store.pointer()


def test_invalid_values_under_shelfwise_keys_are_reported_with_the_key(store: BulkStore, raw: redis.Redis) -> None:
    raw.lpush("sw:{u}:e", b"short")
    with pytest.raises(
        StoreCorrupt, match=r"sw:\{u\}:e has a record of less than 17 bytes, too short for an event: delete"
    ):
        store.read("u", catalogue(ITEMS), NOW)
    raw.lpush("sw:{v}:e", struct.pack("<dBq", NOW, 99, 1) + b"a")
    with pytest.raises(
        StoreCorrupt, match=r"sw:\{v\}:e has a record with an event kind unknown to this version \(0 to 5\)"
    ):
        store.read("v", catalogue(ITEMS), NOW)
    raw.xadd("sw:events", {"x": "y"})
    with pytest.raises(StoreCorrupt, match=r"the event stream has an entry between .* that is not a valid event"):
        store.tail()
    raw.set("sw:release", b"{")
    with pytest.raises(StoreCorrupt, match="sw:release is not valid JSON of a release pointer"):
        store.pointer()


def test_the_asyncio_store_behaves_like_the_bulk_store(url: str, raw: redis.Redis) -> None:
    async def use() -> None:
        store = Store(url, timeout_s=5)
        assert await store.write([], NOW) == []
        assert await store.write([event(1, NOW), event(1, NOW)], NOW) == [NEW, DUPLICATE]
        history = await store.read("u", catalogue(ITEMS), NOW + 1)
        assert (history.item.tolist(), history.at.tolist()) == ([0], [NOW])
        pointer, tail, away, shadow, stamp, stops = await store.poll(START)
        assert (pointer, tail.item_ids, away, shadow, stamp, stops) == (None, ["a"], "", None, None, None)
        assert (await store.poll(START, merchandising=True)).merchandising == "", "there are no rules"
        again = await store.poll(tail.last)
        assert (None, [], tail.last) == (again[0], again[1].item_ids, again[1].last)
        raw.script_flush()
        assert await store.write([event(2, NOW), event(3, NOW, user="w")], NOW) == [NEW, NEW]
        await store.close()

    asyncio.run(use())


def test_an_unreachable_or_silent_server_is_reported_within_the_timeout(tmp_path: Path) -> None:
    async def use() -> None:
        away = Store(f"unix://{tmp_path / 'none'}", timeout_s=1)
        with pytest.raises(StoreAway, match=r"Redis cannot be used \(ConnectionError\)"):
            await away.read("u", catalogue(ITEMS), NOW)
        await away.close()
        with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections but never answers
            silent = Store(f"redis://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.05)
            with pytest.raises(StoreAway, match=r"Redis did not answer within 0\.05 s"):
                await silent.write([event(1, NOW)], NOW)
            await silent.close()

    asyncio.run(use())


def test_an_embedded_server_keeps_its_data_and_is_shared_by_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 40)
    with connect_url(None, deep) as first:
        with connect_url(None, deep) as second, BulkStore(second) as store:
            assert first == second
            store.set_pointer(Pointer("r", "/r"))
        with BulkStore(first) as store:
            assert Pointer("r", "/r") == store.pointer(), "the server is stopped only by the block that started it"
    with connect_url(None, deep) as again, BulkStore(again) as store:
        assert Pointer("r", "/r") == store.pointer()
    assert connect_url("redis://elsewhere:1", deep).__enter__() == "redis://elsewhere:1"


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("work", ["time.sleep(60)", "serve(ServiceConfig(port=int(sys.argv[2])), url)"])
def test_a_process_stops_the_server_it_started_on_sigterm(tmp_path: Path, work: str) -> None:
    """Both while idle and while serving over HTTP."""
    code = f"""
import sys, time
from pathlib import Path
from serving.app import serve
from serving.config import ServiceConfig
from serving.store.embedded import connect_url
with connect_url(None, Path(sys.argv[1])) as url:
    print(url, flush=True)
    {work}
"""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", code, str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with redis.Redis.from_url(url) as client:
            assert client.ping()
            while "serve" in work and not answers(port):
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) == 128 + signal.SIGTERM
            with pytest.raises(redis.ConnectionError):
                client.ping()


def test_a_directory_that_the_server_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EmbeddedError, match=r"cannot contain a path with ' '\. Choose another directory, or set REDIS_URL"
    ):
        connect_url(None, tmp_path / "a b").__enter__()


@pytest.mark.parametrize(("engagements", "shown"), [(10, 24), (50, 120), (100, 240), (100, 0), (0, 240)])
def test_a_user_takes_the_bytes_that_the_formula_says(
    store: BulkStore, raw: redis.Redis, engagements: int, shown: int
) -> None:
    """Both lists, and the user's share of the set of users; item IDs of 12 bytes. docs/scale.md has the formula."""
    kinds = [Kind.CLICK] * engagements + [Kind.IMPRESSION] * shown
    for u in range(200):
        store.write([event(n, NOW - n, kind, f"sku-{n:08d}", f"user-{u:08d}") for n, kind in enumerate(kinds)], NOW)
    lists = [raw.memory_usage(f"sw:{{user-00000007}}:{suffix}", samples=0) or 0 for suffix in "es"]
    measured = sum(lists) + (raw.memory_usage("sw:users", samples=0) or 0) / 200
    formula = UNITS["user"].value + UNITS["engagement"].value * engagements + UNITS["impression"].value * shown
    assert measured == pytest.approx(formula, rel=0.1)
