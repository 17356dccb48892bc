"""What the bytes in Redis promise: lists in log order whatever arrives when, once only, for every kind of id."""

from __future__ import annotations

import asyncio
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.history import ENGAGEMENTS, SHOWN, Histories
from features.log import Events, Kind
from serving.store import DUPLICATES_S, START, STREAM, BulkStore, Event, Pointer, Store, StoreAway
from serving.store.embedded import EmbeddedError, connect_url
from serving.store.errors import StoreCorrupt
from serving.store.layout import POINTER
from serving.store.users import event_hash

NOW = 1_700_000_000.0
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
    """The model: the log without repeated ids, in order, turned round."""
    once = {e.event_id: e for e in reversed(events)}.values()
    order = sorted(once, key=lambda e: (e.at, e.kind, e.item_id.encode(), event_hash(e.event_id) % 2**64), reverse=True)
    return [(e.at, e.kind, e.item_id.encode(), e.event_id) for e in order]


def held(raw: redis.Redis, key: str) -> list[tuple[float, int, bytes, int]]:
    return [
        (*struct.unpack("<dBq", r[:17])[:2], r[17:], struct.unpack("<dBq", r[:17])[2]) for r in raw.lrange(key, 0, -1)
    ]


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
def test_the_lists_are_the_newest_of_the_log_whatever_the_order_of_arrival(
    url: str, events: list[Event], cut: int
) -> None:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        new = store.write(events[:cut], NOW) + store.write(events[cut:], NOW)
        repeated = store.write(events, NOW)
        # An id that came as an impression first is no engagement later: the first arrival counts.
        first = {e.event_id: e for e in reversed(events)}
        e = newest_first([x for x in first.values() if x.kind != Kind.IMPRESSION])
        s = newest_first([x for x in first.values() if x.kind == Kind.IMPRESSION])
        assert [(a, k, i, event_hash(x)) for a, k, i, x in e][:ENGAGEMENTS] == held(raw, "sw:{u}:e")
        assert [(a, k, i, event_hash(x)) for a, k, i, x in s][:SHOWN] == held(raw, "sw:{u}:s")
        assert len(first) == sum(new) == raw.xlen(STREAM)
        assert not any(repeated)


def test_a_full_list_keeps_its_newest_and_takes_a_late_event_in_its_place(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(n, NOW + 2 * n) for n in range(ENGAGEMENTS)], NOW)
    store.write([event(1000, NOW + 3), event(1001, NOW - 1)], NOW)
    times = [at for at, *_ in held(raw, "sw:{u}:e")]
    # 100 events at 0, 2, .., 198: one at 3 pushes out the one at 0, and one at -1 is too old to enter.
    assert sorted([NOW + 2 * n for n in range(1, ENGAGEMENTS)] + [NOW + 3], reverse=True) == times


def test_replay_and_redis_give_the_same_history_at_the_same_moment(store: BulkStore) -> None:
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
    for moment in (NOW + 301, float(at[-1]), float(at[-1]) - 3):
        expected = Histories.of(log.before(moment)).read(0, moment)
        found = store.read("u", known, moment)
        if moment > at[-1]:
            assert [x.tolist() for x in expected] == [x.tolist() for x in found]
        assert [x.dtype for x in expected] == [x.dtype for x in found]
        assert all((x < moment).all() for x in (found.at, found.shown_at))
        assert all(x.flags.c_contiguous for x in found)


def test_an_event_at_the_moment_itself_is_not_before_it(store: BulkStore) -> None:
    store.write([event(1, NOW), event(2, NOW - 1)], NOW)
    assert store.read("u", catalogue(ITEMS), NOW).at.tolist() == [NOW - 1]


def test_a_user_never_seen_has_empty_lists(store: BulkStore) -> None:
    assert [x.tolist() for x in store.read("nobody", catalogue(ITEMS), NOW)] == [[], [], [], [], []]


@pytest.mark.parametrize("user", ["}", "{}", "a}:e", "%7D", "ключ", "a b\n", "*", "u" * 256])
def test_any_user_id_has_lists_of_its_own(store: BulkStore, user: str) -> None:
    """Braces would end what a cluster hashes; an escape must not make two users one."""
    store.write([event(1, NOW, user=user, item="b")], NOW)
    store.write([event(2, NOW, user="u")], NOW)
    assert store.read(user, catalogue(ITEMS), NOW + 1).item.tolist() == [1]
    assert store.read(user + "x", catalogue(ITEMS), NOW + 1).item.tolist() == []


def test_a_repeated_id_is_known_for_two_days_and_forgotten_in_the_end(store: BulkStore, raw: redis.Redis) -> None:
    begin = NOW // DUPLICATES_S * DUPLICATES_S
    assert store.write([event(1, NOW)], begin) == [True]
    assert store.write([event(1, NOW + 9)], begin + 2 * DUPLICATES_S - 1) == [False]
    assert store.write([event(1, NOW + 9)], begin + 2 * DUPLICATES_S) == [True]
    assert 0 < raw.ttl(f"sw:{{u}}:d:{int(begin // DUPLICATES_S)}") <= 2 * DUPLICATES_S


def test_ids_cost_eight_bytes_each(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(n, NOW + n) for n in range(1000)], NOW)
    assert raw.object("encoding", f"sw:{{u}}:d:{int(NOW // DUPLICATES_S)}") == b"intset"


def test_users_of_one_batch_are_answered_in_the_order_of_the_batch(store: BulkStore) -> None:
    store.write([event(2, NOW, user="v")], NOW)
    batch = [event(1, NOW, user="u"), event(2, NOW, user="v"), event(3, NOW, user="u"), event(1, NOW, user="u")]
    assert store.write(batch, NOW) == [True, False, True, False]


@pytest.mark.parametrize("at", [float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_refused(store: BulkStore, at: float) -> None:
    with pytest.raises(ValueError, match=r"event 'e1' is at (nan|inf): give Unix seconds"):
        store.write([event(1, at)], NOW)


def test_the_stream_gives_every_event_once_in_order_of_arrival(store: BulkStore) -> None:
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


def test_trimming_drops_what_came_before_and_nothing_after(store: BulkStore, raw: redis.Redis) -> None:
    store.write([event(1, NOW)], NOW)
    came = int(raw.xinfo_stream(STREAM)["last-generated-id"].split(b"-")[0]) / 1000
    assert store.trim(came - 1) == 0
    assert store.trim(came + 1) == 1
    assert store.tail().item_ids == []


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
    )


@settings(max_examples=30, deadline=None)
@given(events=some_events, live=st.sets(st.integers(0, 149)))
def test_seeding_adds_what_is_missing_and_counts_what_came_both_ways_once(
    url: str, events: list[Event], live: set[int]
) -> None:
    log = list({e.event_id: e for e in events}.values())
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.write([e for n, e in enumerate(log) if n in live], NOW)
        added = seed(store, log)
        assert seed(store, log) == 0
        e = newest_first([e for e in log if e.kind != Kind.IMPRESSION])[:ENGAGEMENTS]
        assert [(a, k, i, event_hash(x)) for a, k, i, x in e] == held(raw, "sw:{u}:e")
        if len(log) <= ENGAGEMENTS:
            assert len(log) - len(live & set(range(len(log)))) == added


def test_an_event_of_the_log_that_comes_again_by_the_api_counts_once(store: BulkStore, raw: redis.Redis) -> None:
    """A retry after the night has no time of its own, so only its id can tell."""
    seed(store, [event(1, NOW - 60)])
    assert store.write([event(1, NOW)], NOW) == [False]
    assert [at for at, *_ in held(raw, "sw:{u}:e")] == [NOW - 60]


def test_seeding_keeps_only_the_newest_and_says_how_far_it_is(store: BulkStore, raw: redis.Redis) -> None:
    seed(store, [event(n, NOW + n) for n in range(3 * ENGAGEMENTS)])
    assert [NOW + n for n in range(3 * ENGAGEMENTS - 1, 2 * ENGAGEMENTS - 1, -1)] == [
        at for at, *_ in held(raw, "sw:{u}:e")
    ]
    done: list[tuple[int, int]] = []
    nothing = np.empty(0)
    store.seed(
        ["x", "y"], np.zeros(3, np.int64), nothing, nothing.astype(np.int8), [], [], NOW, lambda *x: done.append(x)
    )
    assert done == [(2, 2)]


def test_vectors_come_back_at_half_precision_and_a_missing_one_is_nan(store: BulkStore, raw: redis.Redis) -> None:
    rng = np.random.default_rng(1)
    ids, vectors = [f"i{n}" for n in range(1500)], rng.normal(size=(1500, 8)).astype(np.float32)
    vectors[3] = np.nan
    done: list[tuple[int, int]] = []
    store.write_vectors("f00d", ids, vectors, lambda *x: done.append(x))
    assert done == [(1000, 1500), (1500, 1500)]
    found = store.read_vectors("f00d", ["i7", "i3", "none", "i1499"], 8)
    np.testing.assert_array_equal(vectors[[7, 3, 3, 1499]].astype(np.float16).astype(np.float32), found)
    assert vectors[0].astype("<f2").tobytes() == raw.get("sw:v:f00d:i0")
    assert store.read_vectors("f00d", [], 8).shape == (0, 8)
    store.write_vectors("f00d2", ids[:2], vectors[:2])
    assert store.drop_vectors("f00d") == 1500
    assert store.drop_vectors("f00d2") == 2


def test_vectors_that_cannot_be_kept_are_refused_by_name(store: BulkStore) -> None:
    vectors = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"vectors have shape \(2, 3\) for 1 items: one row an item"):
        store.write_vectors("f", ["a"], vectors)
    vectors[1, 2] = np.inf
    with pytest.raises(ValueError, match="vector of item 'b' is infinite or beyond float16: scale it to unit length"):
        store.write_vectors("f", ["a", "b"], vectors)
    store.write_vectors("f", ["a"], vectors[:1])
    with pytest.raises(
        StoreCorrupt, match="has 6 bytes, expected 8 for 4 dimensions: write this encoder's vectors anew"
    ):
        store.read_vectors("f", ["a"], 4)


def test_the_pointer_is_read_as_written_and_none_before_the_first(store: BulkStore) -> None:
    assert store.pointer() is None
    store.point(Pointer("20250131-0123456789", "/somewhere"))
    assert Pointer("20250131-0123456789", "/somewhere") == store.pointer()


def test_foreign_bytes_under_our_keys_are_named(store: BulkStore, raw: redis.Redis) -> None:
    raw.lpush("sw:{u}:e", b"short")
    with pytest.raises(StoreCorrupt, match=r"sw:\{u\}:e holds a record that is none of ours"):
        store.read("u", catalogue(ITEMS), NOW)
    raw.lpush("sw:{v}:e", struct.pack("<dBq", NOW, 99, 1) + b"a")
    with pytest.raises(
        StoreCorrupt, match=r"sw:\{v\}:e holds a record with a kind this version does not know \(0 to 5\)"
    ):
        store.read("v", catalogue(ITEMS), NOW)
    raw.xadd(STREAM, {"x": "y"})
    with pytest.raises(StoreCorrupt, match=r"sw:events holds an entry between .* that is none of ours"):
        store.tail()
    raw.set(POINTER, b"{")
    with pytest.raises(StoreCorrupt, match="sw:release does not hold the JSON of a release pointer"):
        store.pointer()


def test_the_asyncio_store_does_the_same(url: str, raw: redis.Redis) -> None:
    async def use() -> None:
        store = Store(url, timeout_s=5)
        assert await store.write([], NOW) == []
        assert await store.write([event(1, NOW), event(1, NOW)], NOW) == [True, False]
        history = await store.read("u", catalogue(ITEMS), NOW + 1)
        assert (history.item.tolist(), history.at.tolist()) == ([0], [NOW])
        pointer, tail, away, shadow = await store.poll(START)
        assert (pointer, tail.item_ids, away, shadow) == (None, ["a"], "", None)
        nothing = await store.poll(tail.last)
        assert (None, [], tail.last) == (nothing[0], nothing[1].item_ids, nothing[1].last)
        raw.script_flush()
        assert await store.write([event(2, NOW), event(3, NOW, user="w")], NOW) == [True, True]
        await store.close()

    asyncio.run(use())


def test_a_server_that_is_away_or_silent_is_said_so_within_the_deadline(tmp_path: Path) -> None:
    async def use() -> None:
        away = Store(f"unix://{tmp_path / 'none'}", timeout_s=1)
        with pytest.raises(StoreAway, match="Redis: ConnectionError"):
            await away.read("u", catalogue(ITEMS), NOW)
        await away.close()
        with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and never says a word
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
            store.point(Pointer("r", "/r"))
        with BulkStore(first) as store:
            assert Pointer("r", "/r") == store.pointer(), "who did not start it does not stop it"
    with connect_url(None, deep) as again, BulkStore(again) as store:
        assert Pointer("r", "/r") == store.pointer()
    assert connect_url("redis://elsewhere:1", deep).__enter__() == "redis://elsewhere:1"


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("work", ["time.sleep(60)", "serve(ServiceConfig(port=int(sys.argv[2])), url)"])
def test_told_to_end_a_process_stops_the_server_it_started(tmp_path: Path, work: str) -> None:
    """By SIGTERM, at rest or while it serves over HTTP."""
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


def test_a_directory_the_server_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        EmbeddedError, match=r"cannot hold a path with ' '\. Choose another directory, or set REDIS_URL"
    ):
        connect_url(None, tmp_path / "a b").__enter__()
