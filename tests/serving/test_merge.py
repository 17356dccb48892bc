"""Merges of users in Redis: lists equal those of a plain model and of replay, in any order, repeated or late."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.bounds import COLUMNS
from features.columns import Scalar
from features.history import ENGAGEMENTS, Histories, Merges
from features.log import Events, Kind
from features.retention import Retention
from offline.data import collect
from serving.http.credentials import KeysError
from serving.http.keys import new_key
from serving.store import (
    MERGES,
    REFUSED,
    AttributeWrite,
    BulkStore,
    Event,
    Merge,
    Outcome,
    Store,
    UserLimits,
    decode_merge,
    merging,
    users,
)
from serving.store.attributes import decode_attributes, read_command, write_command
from serving.store.erasure import erase_commands
from serving.store.users import event_hash
from tests.offline.data.test_collection import data
from tests.serving.test_service import client, ranked, refused, releases, running, served, url
from tests.serving.test_store import ITEMS, NOW, catalogue, newest_first, raw, records, store

__all__ = ["client", "data", "raw", "releases", "running", "store", "url"]
DAY = 86400.0
EXAMPLE = itertools.count()
"""A number for each example of Hypothesis, so that its users are new."""


@pytest.fixture
def store_of_service(client: httpx.Client, url: str) -> Iterator[BulkStore]:
    with BulkStore(url) as store:
        yield store


def merge(store: BulkStore, into: str, source: str, at: float) -> int:
    """The reply of the script that `Store.merge` runs."""
    return int(store.run(merging.merge_command(store.layout, Merge(into, source, at), store._limits))[0])


def click(n: int, user: str, at: float, item: str = "a", kind: Kind = Kind.CLICK) -> Event:
    return Event(f"e{n}", kind, user, item, at)


def _users(merges: list[Merge]) -> tuple[list[str], list[str]]:
    return [m.from_id for m in merges], [m.user_id for m in merges]


def as_log(events: list[Event], merges: list[Merge], names: list[str]) -> tuple[Events, Merges, np.ndarray]:
    """What the log has of these events and merges, as arrays, and the hash of each event's ID."""
    order = sorted(events, key=lambda e: (e.at, e.kind, e.item_id, event_hash(e.event_id) % 2**64))
    n, none = len(order), np.full(len(order), -1, np.int32)
    log = Events(
        np.array([e.at for e in order], np.float64),
        np.array([names.index(e.user_id) for e in order], np.int32),
        np.array([ITEMS.index(e.item_id) for e in order], np.int32),
        np.array([e.kind for e in order], np.int8),
        none,
        none.astype(np.int16),
        np.full(n, np.nan),
        names,
        [],
        none,
        none.astype(np.int8),
    )
    source, into = (np.array([names.index(user) for user in of], np.int32) for of in _users(merges))
    both = Merges(source, into, np.array([m.at for m in merges], np.float64))
    return log, both, np.array([event_hash(e.event_id) % 2**64 for e in order], np.uint64)


def logged(store: BulkStore, names: list[str]) -> tuple[list[Event], list[Merge]]:
    """The events and merges of some users that `shelfwise collect` would find."""
    events = [e for e in store.events(count=100_000)[1] if e.user_id in names]
    found = (decode_merge(entry) for _, entry in store.entries(store.layout.key(MERGES), b"m", count=100_000))
    return events, [m for m in found if m.user_id in names]


Step = tuple[str, int, int, int, Kind, str]
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.tuples(
        st.sampled_from(["event", "event", "event", "merge"]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 12),
        st.sampled_from([Kind.IMPRESSION, Kind.CLICK, Kind.CART]),
        st.sampled_from(ITEMS),
    ),
    max_size=30,
)
"""(event or merge, user, user that is merged, days before now or since the step before, kind, item)."""


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_lists_are_those_of_a_plain_model_in_any_order_of_events_and_merges(url: str, steps: list[Step]) -> None:
    """The model is the definition: at a merge, all that one user had before goes to the other one, and a late event
    goes where it would have been. The log has the same result, and repeating every event changes nothing."""
    names = [f"{user}-{next(EXAMPLE)}" for user in ("ann", "bob", "anon-1", "anon-2")]
    model: dict[str, list[Event]] = {name: [] for name in names}
    merged: list[Merge] = []
    last: dict[str, str] = {}
    sent = list[Event]()
    with BulkStore(url) as store:
        for n, (what, user, other, days, kind, item) in enumerate(steps):
            now = NOW + 60.0 * n
            if what == "event":
                event = Event(f"e{n}", kind, names[user], item, now - DAY / 24 * days)
                assert store.write([event], now) == [Outcome.NEW]
                sent.append(event)
                owner, since = event.user_id, event.at
                for m in merged:
                    if m.from_id == owner and m.at > since:
                        owner, since = m.user_id, m.at
                model[owner].append(event)
            elif user != other:
                moved = [e for e in model[names[other]] if e.at < now]
                assert merge(store, names[user], names[other], now) == len(moved)
                assert merge(store, names[user], names[other], now + 1) == 0, "there is nothing left"
                if moved or last.get(names[other]) != names[user]:
                    merged.append(Merge(names[user], names[other], now))
                last[names[other]] = names[user]
                model[names[user]] += moved
                model[names[other]].clear()
        assert store.write(sent, NOW + 60.0 * len(steps)) == [Outcome.DUPLICATE] * len(sent)
        log = as_log(*logged(store, names), names)
        end = NOW + 60.0 * len(steps)
        with redis.Redis.from_url(url) as raw:
            for name in names:
                for suffix, shown in (("e", False), ("s", True)):
                    theirs = [e for e in model[name] if (e.kind == Kind.IMPRESSION) is shown]
                    expected = [(a, k, i, event_hash(e)) for a, k, i, e in newest_first(theirs)]
                    assert records(raw, f"sw:{{{name}}}:{suffix}") == expected
                live, replayed = (
                    store.read(name, catalogue(ITEMS), end),
                    Histories.of(log[0], merges=log[1], event_key=log[2]).read(names.index(name), end),
                )
                assert [x.tolist() for x in live] == [x.tolist() for x in replayed]


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_replay_and_redis_give_the_same_history_before_and_after_every_merge(url: str, steps: list[Step]) -> None:
    """Of events in order of time, with gaps around the retention of 9 and 6 days: at each step, replay reads from the
    whole log what Redis had then."""
    names = [f"{user}-{next(EXAMPLE)}" for user in ("ann", "bob", "anon-1", "anon-2")]
    retention, now = Retention(9 * DAY, 6 * DAY), NOW
    seen = list[tuple[float, str, list[list[float]]]]()
    with BulkStore(url, limits=UserLimits(retention)) as store:
        for n, (what, user, other, days, kind, item) in enumerate(steps):
            now += days * DAY / 2 + 1
            for name in names:
                history = store.read(name, catalogue(ITEMS), now, retention)
                seen.append((now, name, [x.tolist() for x in history]))
            if what == "event":
                # Redis deletes by its own clock what has expired, which this test cannot move: readers skip it.
                store.write([Event(f"e{n}", kind, names[user], item, now)], now)
            elif user != other:
                merge(store, names[user], names[other], now)
        log, merges, key = as_log(*logged(store, names), names)
    histories = Histories.of(log, retention, merges, key)
    for at, name, expected in seen:
        assert [x.tolist() for x in histories.read(names.index(name), at)] == expected


def test_a_merge_moves_everything_and_leaves_only_what_late_events_need(store: BulkStore, raw: redis.Redis) -> None:
    """Lists and attributes of the anonymous user are gone; the known user's are kept for the retention of known users,
    counted from the newest event, 100 s before the merge."""
    store.write([click(1, "anon-1", NOW - 100), click(2, "anon-1", NOW - 200, kind=Kind.IMPRESSION)], NOW)
    store.write([click(3, "ann", NOW - 300)], NOW)
    assert merge(store, "ann", "anon-1", NOW) == 2
    assert sorted(k.decode() for k in raw.scan_iter("sw:{anon-1}:*")) == ["sw:{anon-1}:d:9837", "sw:{anon-1}:m"]
    assert [r[3] for r in records(raw, "sw:{ann}:e")] == [event_hash("e1"), event_hash("e3")]
    assert [r[3] for r in records(raw, "sw:{ann}:s")] == [event_hash("e2")]
    assert raw.ttl("sw:{ann}:e") == pytest.approx(181 * DAY - 100, abs=5)
    assert raw.ttl("sw:{anon-1}:m") == pytest.approx(4 * DAY, abs=5)
    assert raw.zrange("sw:users", 0, -1) == [users.member("ann")]
    assert logged(store, ["ann"])[1] == [Merge("ann", "anon-1", NOW)]


def test_a_repeated_merge_and_one_of_an_unknown_user_change_nothing(store: BulkStore, raw: redis.Redis) -> None:
    store.write([click(1, "anon-1", NOW - 100)], NOW)
    assert merge(store, "ann", "anon-1", NOW) == 1
    before = records(raw, "sw:{ann}:e")
    assert merge(store, "ann", "anon-1", NOW) == merge(store, "ann", "anon-1", NOW + 9) == 0
    assert raw.xlen("sw:merges") == raw.llen("sw:{anon-1}:m") == 1
    assert merge(store, "ann", "never seen", NOW) == merge(store, "ann", "never seen", NOW + 1) == 0
    assert records(raw, "sw:{ann}:e") == before
    assert raw.xlen("sw:merges") == 2, "events of that guest may still arrive"
    assert not raw.exists("sw:{never seen}:e")


def test_joined_lists_have_the_newest_events_of_both_and_an_id_once(store: BulkStore, raw: redis.Redis) -> None:
    """80 events each at alternating seconds, of which the oldest of the guest has the ID of one that the user has, too:
    of 160 events the newest 100 stay, which are the newest 50 of each."""
    theirs = [click(n, "ann", NOW - 2 * n) for n in range(80)]
    guests = [click(1000 + n, "anon-1", NOW - 2 * n - 1) for n in range(79)]
    store.write([*theirs, *guests, Event("e5", Kind.CLICK, "anon-1", "b", NOW - 1000)], NOW + 1)
    assert merge(store, "ann", "anon-1", NOW + 1) == 80
    found = records(raw, "sw:{ann}:e")
    assert found == [(a, k, i, event_hash(e)) for a, k, i, e in newest_first(theirs + guests)][:ENGAGEMENTS]
    assert [r[0] for r in found] == [NOW - n for n in range(100)]

    store.write([click(1, "eve", NOW), Event("e1", Kind.CLICK, "anon-2", "b", NOW - 5)], NOW + 1)
    merge(store, "eve", "anon-2", NOW + 1)
    assert [r[2] for r in records(raw, "sw:{eve}:e")] == [b"a"], "the user's own event of this ID stays"


def test_events_after_a_merge_begin_a_new_history_and_late_ones_join_the_old(
    store: BulkStore, raw: redis.Redis
) -> None:
    """Also through two merges: what a guest did before the first, and the user before the second, is the last
    user's."""
    store.write([click(1, "anon-1", NOW - 100)], NOW)
    merge(store, "ann", "anon-1", NOW)
    merge(store, "new account", "ann", NOW + 50)
    late, later = click(2, "anon-1", NOW - 90), click(3, "anon-1", NOW + 60)
    assert store.write([late, later, late], NOW + 100) == [Outcome.NEW, Outcome.NEW, Outcome.DUPLICATE]
    assert [r[3] for r in records(raw, "sw:{new account}:e")] == [event_hash("e2"), event_hash("e1")]
    assert [r[3] for r in records(raw, "sw:{anon-1}:e")] == [event_hash("e3")]
    assert [(e.event_id, e.user_id) for e in store.events()[1]] == [
        ("e1", "anon-1"),
        ("e3", "anon-1"),
        ("e2", "anon-1"),
    ]
    assert store.write([late], NOW + 200) == [Outcome.DUPLICATE]
    assert merge(store, "new account", "anon-1", NOW + 300) == 1
    assert len(records(raw, "sw:{new account}:e")) == 3


def attributes(store: BulkStore, user: str) -> dict[str, Scalar]:
    reply = store.run([read_command(store.layout, user)])[0]
    return decode_attributes(store.layout, user, reply)


def put(store: BulkStore, user: str, **values: Scalar) -> None:
    store.run(write_command(store.layout, AttributeWrite(user, NOW - 10, values), store._limits))


def test_attributes_that_the_user_lacks_are_taken_and_a_cleared_one_is_not(store: BulkStore, raw: redis.Redis) -> None:
    put(store, "ann", country="AT", age=None)
    put(store, "anon-1", country="DE", age=30, **{'na"me/ü': 'v"\\ü', "none": None})
    merge(store, "ann", "anon-1", NOW)
    assert attributes(store, "ann") == {"country": "AT", 'na"me/ü': 'v"\\ü'}
    assert raw.hget("sw:{ann}:a", "age") == b"null"
    assert attributes(store, "anon-1") == {}
    assert not raw.exists("sw:{anon-1}:a")

    put(store, "full", **{f"a{k}": k for k in range(COLUMNS)})
    put(store, "anon-2", more=1)
    merge(store, "full", "anon-2", NOW)
    assert "more" not in attributes(store, "full"), f"{COLUMNS} attributes are the maximum"


def test_a_user_beyond_the_maximum_is_refused_unless_in_the_place_of_the_guest(url: str, raw: redis.Redis) -> None:
    """A guest with a list makes room for the user; one with attributes only is counted as well."""
    with BulkStore(url, limits=UserLimits(most=2)) as store:
        store.write([click(1, "anon-1", NOW), click(2, "anon-2", NOW)], NOW + 1)
        assert merge(store, "ann", "anon-1", NOW + 1) == 1
        raw.zrem("sw:users", users.member("anon-2"))
        raw.zadd("sw:users", {b"other": NOW + 9 * DAY})
        assert merge(store, "bob", "anon-2", NOW + 1) == REFUSED
        assert not raw.exists("sw:{bob}:e", "sw:{anon-2}:m")
        assert len(records(raw, "sw:{anon-2}:e")) == 1, "nothing was moved"
        assert merge(store, "bob", "unknown", NOW + 1) == 0


def test_a_merge_brings_nothing_of_an_erased_user_back(store: BulkStore, raw: redis.Redis) -> None:
    """Events up to the erasure of the user are dropped, whichever ID they had; later ones are moved."""
    store.write([click(1, "anon-1", NOW - 100), click(2, "anon-1", NOW - 10)], NOW)
    put(store, "anon-1", age=30)
    store.run(erase_commands(store.layout, "ann", "secret", NOW - 50))
    assert merge(store, "ann", "anon-1", NOW) == 1
    assert [r[3] for r in records(raw, "sw:{ann}:e")] == [event_hash("e2")]
    assert attributes(store, "ann") == {}, "attributes have no time"
    store.run(erase_commands(store.layout, "ann", "secret", NOW + 50))
    late = [click(3, "anon-1", NOW - 5)]
    assert store.write(late, NOW + 60) == [Outcome.ERASED]
    assert merge(store, "ann", "anon-1", NOW + 70) == 0
    assert not raw.exists("sw:{ann}:e", "sw:{anon-1}:e")


def test_a_night_does_not_bring_a_merged_guest_back(store: BulkStore, raw: redis.Redis) -> None:
    """It has read the log before the merge: what it adds of the guest is only what is newer than the merge."""
    store.write([click(1, "anon-1", NOW - 100)], NOW)
    put(store, "anon-1", age=30)
    merge(store, "ann", "anon-1", NOW)
    at, kind = np.array([NOW - 100, NOW + 5]), np.full(2, Kind.CLICK, np.int8)
    added = store.seed(["anon-1"], np.array([0, 2]), at, kind, ["a", "a"], ["e1", "e2"], NOW + 10, NOW + 10)
    assert added.records == 1
    assert [r[3] for r in records(raw, "sw:{anon-1}:e")] == [event_hash("e2")]
    store.seed_attributes([AttributeWrite("anon-1", NOW + 10, {"age": 30})])
    assert attributes(store, "anon-1") == {}


def test_workers_that_write_and_merge_at_once_lose_and_double_no_event(url: str, raw: redis.Redis) -> None:
    """Three workers write 90 events of a guest while a fourth merges: all are the user's, once, after a last merge."""

    async def run() -> int:
        workers = [Store(url, 10.0) for _ in range(4)]
        clock = itertools.count()

        async def write(worker: Store, first: int) -> None:
            for n in range(first, 90, 3):
                at = NOW + next(clock)
                await asyncio.sleep(0)
                assert await worker.write([click(n, "anon-1", at)], at) == [Outcome.NEW]

        async def move() -> int:
            moved = 0
            for _ in range(40):
                moved += await workers[3].merge(Merge("ann", "anon-1", NOW + next(clock)))
                await asyncio.sleep(0)
            return moved

        writing = [asyncio.create_task(write(w, k)) for k, w in enumerate(workers[:3])]
        moved = await move()
        await asyncio.gather(*writing)
        moved += await workers[3].merge(Merge("ann", "anon-1", NOW + next(clock)))
        for worker in workers:
            await worker.close()
        return moved

    moved = asyncio.run(run())
    found = records(raw, "sw:{ann}:e")
    assert sorted(r[3] for r in found) == sorted(event_hash(f"e{n}") for n in range(90))
    assert 0 < moved <= 90, "the others arrived late and were written as the user's own"
    assert not raw.exists("sw:{anon-1}:e")


def test_a_guest_who_logs_in_is_ranked_for_by_what_they_did(client: httpx.Client) -> None:
    """Three clicks on a red item as a guest, sent before login or after it, put red items first for the user."""
    before = ranked(client, user_id="ann", limit=3)
    guest = {"event": "click", "user_id": "anon-7", "item_id": "red-01", "timestamp": time.time()}
    assert client.post("/v1/events", json=[guest | {"event_id": "a"}, guest | {"event_id": "b"}]).status_code == 202
    answer = client.post("/v1/users/ann/merge", json={"from": "anon-7"})
    assert (answer.status_code, answer.json()["moved"]) == (200, 2)
    assert client.post("/v1/events", json=guest | {"event_id": "late"}).json()["accepted"] == 1
    assert client.post("/v1/users/ann/merge", json={"from": "anon-7"}).json()["moved"] == 0
    assert client.post("/v1/users/ann/merge", json={"from": "nobody"}).json()["moved"] == 0
    after = ranked(client, user_id="ann", limit=3)
    assert all(item.startswith("red") for item in after)
    assert ranked(client, user_id="anon-7", limit=3) == before


def test_late_events_of_a_guest_are_refused_once_the_user_is_erased(
    client: httpx.Client, store_of_service: BulkStore, data: Path
) -> None:
    """Before the next `collect` as events of the user, after it as those of an erased guest; later ones are kept."""
    guest = {"event": "click", "user_id": "anon-8", "item_id": "red-01"}
    client.post("/v1/events", json=guest)
    at = client.post("/v1/users/ann/merge", json={"from": "anon-8"}).json()["at"]
    client.delete("/v1/users/ann")
    late = guest | {"timestamp": at - 0.001}
    for event_id in ("before", "after"):
        answer = refused(client.post("/v1/events", json=late | {"event_id": event_id}), 422)
        assert answer["rejected"][0]["message"] == "the user was erased after this time"
        collect(data, store_of_service)
    assert client.post("/v1/events", json=guest).json()["accepted"] == 1


@pytest.mark.parametrize(
    ("user", "body", "status", "field", "message"),
    [
        ("ann", {"from": "ann"}, 422, "from", "`from` is the user of the path"),
        ("ann", {"from": " ann "}, 422, "from", "`from` is the user of the path"),
        ("ann", {"from": "null"}, 422, "from", "stands for a missing ID"),
        ("ann", {"from": "a" * 300}, 422, "from", ""),
        ("undefined", {"from": "anon-1"}, 422, "user_id", "stands for a missing ID"),
        ("ann", {"from": 7}, 422, "from", "Expected `str`"),
        ("ann", {}, 422, "from", "missing required field"),
        ("ann", {"from": "x", "to": "y"}, 422, "to", "unknown field"),
        ("ann", [], 422, None, "Expected `object`"),
    ],
)
def test_an_invalid_merge_is_refused_with_its_field(
    client: httpx.Client, user: str, body: object, status: int, field: str | None, message: str
) -> None:
    answer = refused(client.post(f"/v1/users/{user}/merge", json=body), status)
    assert (answer.get("field"), message in answer["detail"]) == (field, True), answer


def test_ids_with_slashes_are_merged(client: httpx.Client) -> None:
    client.post("/v1/events", json={"event": "click", "user_id": "anon/1/merge", "item_id": "red-01"})
    assert client.post("/v1/users/ann%2Fmerge/merge", json={"from": "anon/1/merge"}).json()["moved"] == 1


def test_without_redis_a_merge_is_refused_with_503() -> None:
    with served("redis://127.0.0.1:1") as client:
        answer = client.post("/v1/users/ann/merge", json={"from": "anon-1"})
        assert refused(answer, 503)["type"] == "urn:shelfwise:problem:store-away"
        assert answer.headers["retry-after"] == "1"


def test_a_public_key_cannot_merge_users() -> None:
    """A visitor who could would read the history of any shopper by merging it into an account of their own."""
    with pytest.raises(KeysError, match="a public key cannot have scope merge"):
        new_key("page", ["rank", "events", "merge"], public=True)
    assert "merge" in new_key("back", ["merge"])[1]
