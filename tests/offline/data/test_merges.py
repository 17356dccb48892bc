"""Merges in the log: collected, replayed at their moment to the bit, and found by an erasure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history import Histories
from features.retention import DEFAULT_RETENTION
from offline.data import erasures
from offline.data.collection import collect
from offline.data.dataset import load_dataset
from offline.data.erasures import Erasures, erased_by_merges
from offline.data.log import LogFiles, user_histories
from offline.data.schema import EVENTS_SCHEMA
from offline.evaluation.skew import compare_rows
from serving.store import MERGES, WRITES, BulkStore, Merge, tombstone, user_hash
from tests.offline.data.test_collection import data
from tests.offline.data.test_erasure import all_stored_bytes
from tests.serving.test_columns import IDS, emptied_store, ranked
from tests.serving.test_service import FAST, clear, until, url
from tests.serving.test_user_attributes import release, running

__all__ = ["data", "release", "running", "url"]
ANN, GUEST = "ann", "anon-guest"


@pytest.fixture
def store(running: httpx.Client, url: str) -> Iterator[BulkStore]:
    """The store of a service that logs all feature rows, without users and logs."""
    with emptied_store(running, url) as store:
        clear(url)
        yield store


def send(client: httpx.Client, user: str, event_id: str, item: str = IDS[0], at: float | None = None) -> None:
    event = {"event": "click", "user_id": user, "item_id": item, "event_id": event_id}
    answer = client.post("/v1/events", json=event if at is None else event | {"timestamp": at})
    assert answer.json().get("accepted") == 1, answer.text


def show(client: httpx.Client, *users: str) -> None:
    """A list for each of these users, once the worker has applied what was sent to its item state."""
    time.sleep(6 * FAST.poll_s)
    for user in users:
        ranked(client, {"user_id": user, "candidates": IDS[:5], "columns": {"bm25": [1.0, 2.0, 3.0, 4.0, 5.0]}})


def log_in(client: httpx.Client, user: str = ANN, guest: str = GUEST) -> dict[str, Any]:
    answer = client.post(f"/v1/users/{user}/merge", json={"from": guest})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_served_lists_before_and_after_a_merge_replay_to_the_bit(
    running: httpx.Client, store: BulkStore, data: Path, release: Path
) -> None:
    """Lists of the guest, of the user before and after two merges, and of the guest's next session; with attributes, an
    event that arrives after its merge, and one that the merge dropped because the user has its ID."""
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    running.put(f"/v1/users/{GUEST}", json={"attributes": {"country": "DE", "age": 30.5}})
    running.put(f"/v1/users/{ANN}", json={"attributes": {"country": "AT"}})
    for n in range(3):
        send(running, GUEST, f"g{n}", IDS[n])
    send(running, ANN, "a0", IDS[7])
    send(running, ANN, "g1", IDS[6])
    show(running, GUEST, ANN)
    first = log_in(running)
    assert first["moved"] == 3
    send(running, GUEST, "late", IDS[3], at=first["at"] - 0.001)
    show(running, ANN, GUEST)
    send(running, GUEST, "next", IDS[4])
    running.put(f"/v1/users/{GUEST}", json={"attributes": {"age": 50}})
    show(running, GUEST, ANN)
    assert log_in(running)["moved"] == 1
    show(running, ANN, GUEST)
    until(lambda: store.length("served") == 8)
    collect(data, store)
    found = compare_rows(data, release.parent)
    assert (found.lists, [f.name for f in found.features if f.differ]) == (8, [])
    assert (store.length(MERGES), store.length(WRITES)) == (0, 0), "collected merges are removed from Redis"

    dataset = load_dataset(data)
    histories = user_histories(
        dataset.events, data, DEFAULT_RETENTION, merges=dataset.merges, event_key=dataset.event_key
    )
    ids, users = dataset.catalogue.item_ids, dataset.events.user_ids
    clicked = [
        [[IDS.index(ids[i]) for i in histories.read(users.index(user), at).item] for user in (ANN, GUEST)]
        for at in (first["at"], first["at"] + 0.01, first["at"] + 60)
    ]
    # Newest first. Item 1, the guest's event `g1`, is left out: the user has this event ID, for item 6.
    assert clicked == [[[6, 7], [3, 2, 1, 0]], [[3, 6, 7, 2, 0], []], [[4, 3, 6, 7, 2, 0], []]]


def merge_rows(data: Path) -> list[tuple[str, str]]:
    """(user, merged user) of the collected merges."""
    return [(r["user_id"], r["from_id"]) for r in rows_of(data, "merges")]


def rows_of(data: Path, folder: str) -> list[dict[str, Any]]:
    """The rows of a log, in the order of its files."""
    files = sorted((data / folder).glob("date=*/*.parquet"))
    return [row for path in files for row in pq.read_table(path, partitioning=None).to_pylist()]


@pytest.mark.parametrize("collected", [False, True])
def test_erasing_a_user_erases_what_was_merged_into_it(
    running: httpx.Client, store: BulkStore, data: Path, url: str, collected: bool
) -> None:
    """Events, lists, attributes and the merge itself, whether in the log already or still in Redis. What the guest's
    ID did after the merge is another shopper's, and another user keeps everything."""
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    for guest, user in ((GUEST, ANN), ("anon-2", "bob")):
        send(running, guest, f"of {guest}")
        running.put(f"/v1/users/{guest}", json={"attributes": {"age": 30}})
        show(running, guest)
        log_in(running, user, guest)
        send(running, user, f"of {user}")
    send(running, GUEST, "next session")
    until(lambda: store.length("served") == 2)
    if collected:
        collect(data, store)
        assert sorted(merge_rows(data)) == [(ANN, GUEST), ("bob", "anon-2")]
    assert running.delete(f"/v1/users/{ANN}").status_code == 202
    assert collect(data, store).erased == 2, "the user and the guest"
    assert merge_rows(data) == [("bob", "anon-2")]
    dataset = load_dataset(data)
    kept = sorted(zip(dataset.event_id, (dataset.events.user_ids[u] for u in dataset.events.user), strict=True))
    assert kept == [("next session", GUEST), ("of anon-2", "anon-2"), ("of bob", "bob")]
    assert set(LogFiles.of(data).read_served()["user_id"].to_pylist()) == {"anon-2"}
    with redis.Redis.from_url(url) as raw:
        assert not raw.exists(f"sw:{{{ANN}}}:e", f"sw:{{{GUEST}}}:m")
    assert b'"ann"' not in all_stored_bytes(url, data), "nothing names the erased user"
    assert {r["user_id"] for r in rows_of(data, "attributes")} == {"anon-2", "bob"}


def test_a_later_import_does_not_restore_what_was_merged_into_an_erased_user(
    running: httpx.Client, store: BulkStore, data: Path
) -> None:
    """The shop's own export still has the guest's events under the guest's ID."""
    send(running, GUEST, "g0")
    log_in(running)
    collect(data, store)
    exported = pa.concat_tables(pq.read_table(p, partitioning=None) for p in (data / "events").glob("date=*/*.parquet"))
    running.delete(f"/v1/users/{ANN}")
    collect(data, store)
    pq.write_table(exported, data / "events.parquet")
    send(running, "other", "o")
    collect(data, store)
    assert load_dataset(data).events.user_ids == ["other"]


def test_a_merge_is_collected_once_and_a_second_read_of_it_changes_nothing(
    running: httpx.Client, store: BulkStore, data: Path
) -> None:
    """After a repair, everything is read again from the start of the streams that are left."""
    send(running, GUEST, "g0")
    log_in(running)
    collect(data, store)
    before = load_dataset(data)
    (part,) = (data / "merges").glob("date=*/*.parquet")
    pq.write_table(pq.read_table(part, partitioning=None), part.with_name("part-r1-1-0.parquet"))
    after = load_dataset(data)
    histories = [
        Histories.of(d.events, merges=d.merges, event_key=d.event_key).read(
            d.events.user_ids.index(ANN), before.merges.at[0] + 60
        )
        for d in (before, after)
    ]
    assert len(after.merges.at) == 2 * len(before.merges.at) == 2
    assert [x.tolist() for x in histories[0]] == [x.tolist() for x in histories[1]]
    assert len(histories[0].item) == 1


USERS = ["a", "b", "c", "d"]
MERGED = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(USERS), st.integers(1, 20)).filter(lambda m: m[0] != m[1]),
    max_size=8,
    unique_by=lambda m: m[2],
)


@given(MERGED, st.sampled_from(USERS), st.integers(0, 21))
@settings(max_examples=300, deadline=None)
def test_an_erasure_covers_every_event_that_merges_brought_to_the_user(
    merged: list[tuple[str, str, int]], gone: str, at: int
) -> None:
    """Followed through all merges, every event up to the erasure that was the erased user's then or became theirs is
    erased, however often it moved. Events after the erasure are not, nor is anybody whose events never came there."""
    merges = [Merge(into, source, float(t)) for into, source, t in merged]
    known = Erasures({tombstone("00", user_hash(gone)): float(at)}, ("00",))
    more = erased_by_merges(known, merges)
    out = known.merged(Erasures({tombstone("00", user_hash(u)): until for u, until in more.items()}))
    related = {gone}
    for user in USERS:
        for moment in np.arange(0.5, 21):
            owner, since, owners = user, moment, {user}
            for m in sorted(merges, key=lambda m: m.at):
                if m.from_id == owner and m.at > since:
                    owner, since = m.user_id, m.at
                    owners.add(owner)
            if gone in owners and moment <= at:
                assert moment <= out.until(user)
            if gone in owners:
                related.add(user)
            if moment > at:
                assert moment > out.until(user)
    reached = {m.from_id for m in merges} | {gone}
    assert {u for u in USERS if out.until(u) > -np.inf} <= reached
    assert erased_by_merges(erasures.NOBODY, merges) == {}


def test_a_log_without_merges_is_read_as_before(data: Path) -> None:
    event = {"event_id": "e", "event": "click", "user_id": "u", "item_id": IDS[0]}
    at = pa.scalar(int(time.time()) * 10**6, pa.timestamp("us", "UTC")).as_py()
    pq.write_table(pa.Table.from_pylist([event | {"timestamp": at}], EVENTS_SCHEMA), data / "events.parquet")
    dataset = load_dataset(data)
    assert len(dataset.merges.at) == 0
    assert LogFiles.of(data).merges.sources == []
