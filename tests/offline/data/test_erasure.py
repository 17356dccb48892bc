"""Erasure: an erased user is removed from Redis and the log, and excluded from nightly runs and later imports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.data import erasures
from offline.data.collection import collect
from offline.data.dataset import load_dataset
from offline.data.log import LogFiles
from offline.ingest.detection import detect
from offline.ingest.importer import import_data
from serving.store import SERVED, STREAM, BulkStore, user_hash
from tests.offline.data.test_collection import data
from tests.serving.test_service import (
    FAST,
    click,
    client,
    ranked,
    ready,
    refused,
    releases,
    running,
    served,
    until,
    url,
)

__all__ = ["client", "data", "releases", "running", "url"]
HOSTILE = "a/b} {%7D?#ü \u2028z"


@pytest.fixture
def store(client: httpx.Client, url: str) -> Iterator[BulkStore]:
    with BulkStore(url) as store:
        yield store


def shop(client: httpx.Client, store: BulkStore, *users: str) -> None:
    """Each user gets a list and sends two clicks. Waits until the lists are in the stream."""
    lists = store.length(SERVED)
    for user in users:
        ranked(client, user_id=user, limit=2)
        client.post("/v1/events", json=[click(user=user), click("blue-00", user)])
    until(lambda: store.length(SERVED) == lists + len(users))


def erase(client: httpx.Client, user: str) -> None:
    """Erase a user through the API."""
    answer = client.delete(f"/v1/users/{quote(user, safe='')}")
    assert (answer.status_code, set(answer.json())) == (202, {"at"})


def all_stored_bytes(url: str, data: Path) -> bytes:
    """The contents of Redis and of the collected files."""
    with redis.Redis.from_url(url) as raw:
        out = list(raw.scan_iter())
        for key in list(out):
            kind = raw.type(key)
            if kind == b"stream":
                out += [v for _, fields in raw.xrange(key) for v in fields.values()]
            elif kind == b"list":
                out += raw.lrange(key, 0, -1)
    for path in data.rglob("*.parquet"):
        if path.name != "items.parquet":
            out.append(str(pq.read_table(path, partitioning=None).to_pylist()).encode())
    return b"\n".join(out)


@pytest.mark.parametrize("user", ["someone", HOSTILE])
def test_an_erased_user_is_removed_everywhere_and_other_users_are_kept(
    client: httpx.Client, store: BulkStore, data: Path, url: str, user: str
) -> None:
    """Part of the log is already collected, part is still in Redis. A user with a similar ID keeps everything."""
    other = user + "2"
    shop(client, store, user, other)
    collect(data, store)
    shop(client, store, user, other)
    stored = all_stored_bytes(url, data)
    needle = b"someone" if user == "someone" else b"%257D?#"
    assert needle in stored
    erase(client, user)
    erase(client, user)
    assert not store.read(user, load_dataset(data).catalogue, time.time() + 1).item.size
    assert collect(data, store).erased == 1
    assert load_dataset(data).events.user_ids == [other]
    assert set(LogFiles.of(data).read_served()["user_id"].to_pylist()) == {other}
    assert len(load_dataset(data).events) == 4
    left = all_stored_bytes(url, data).replace(other.encode(), b"").replace(_key(other), b"")
    assert user.encode() not in left
    assert _key(user) not in left
    assert store.read(other, load_dataset(data).catalogue, time.time() + 1).item.size == 4


def _key(user: str) -> bytes:
    return user.replace("%", "%25").replace("}", "%7D").encode()


def test_events_after_the_erasure_are_kept(client: httpx.Client, store: BulkStore, data: Path) -> None:
    shop(client, store, "u")
    erase(client, "u")
    shop(client, store, "u")
    collect(data, store)
    assert len(load_dataset(data).events) == 2
    assert store.read("u", load_dataset(data).catalogue, time.time() + 1).item.size == 2


def test_imported_events_of_an_erased_user_are_removed(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    shop(client, store, "u", "v")
    collect(data, store)
    (part,) = (data / "events").glob("date=*/*.parquet")
    table = pq.read_table(part, partitioning=None)
    part.unlink()
    column = table.schema.get_field_index("user_id")
    table = table.set_column(column, "user_id", table["user_id"].dictionary_encode())
    pq.write_table(table, data / "events.parquet")
    erase(client, "u")
    with redis.Redis.from_url(url) as raw:
        raw.delete(STREAM)
    collect(data, store)
    assert load_dataset(data).events.user_ids == ["v"]
    written = pq.read_table(data / "events.parquet", read_dictionary=["user_id"])["user_id"].combine_chunks()
    assert written.dictionary.to_pylist() == ["v"], "the rewritten file has no dictionary that still contains the ID"


def test_a_later_import_does_not_restore_an_erased_user(tmp_path: Path) -> None:
    """Only the purchase of u after the erasure is imported, and both purchases of v."""
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    data.mkdir()
    (source / "items.csv").write_text("item_id,title\nA,Chair\n")
    lines = [f"purchase,{user},A,{at}" for user in "uv" for at in (1_700_000_000, 1_700_000_100)]
    (source / "events.csv").write_text("\n".join(["event,user_id,item_id,timestamp", *lines]))
    pq.write_table(erasures.to_table({user_hash("u"): 1_700_000_050.0}), data / erasures.FILE)
    import_data(detect(source)[0], data, datetime.now(UTC))
    assert sorted(pq.read_table(data / "events.parquet")["user_id"].to_pylist()) == ["u", "v", "v"]


def test_a_tombstone_does_not_contain_the_user_id(client: httpx.Client, store: BulkStore, data: Path) -> None:
    """It has a hash of the ID."""
    erase(client, "someone")
    collect(data, store)
    assert set(erasures.read_erasures(data)) == {user_hash("someone")}
    assert b"someone" not in (data / erasures.FILE).read_bytes()


def test_erasing_an_unknown_user_succeeds(client: httpx.Client) -> None:
    erase(client, "never seen")


@pytest.mark.parametrize(("path", "message"), [("%00", "contains a control character"), ("x" * 257, "has 257 bytes")])
def test_an_invalid_user_id_is_an_error(client: httpx.Client, path: str, message: str) -> None:
    document = refused(client.delete(f"/v1/users/{path}"), 422)
    assert document["field"] == "user_id"
    assert message in document["detail"]


def test_erasure_fails_with_503_while_redis_is_unreachable(releases: list[Path], tmp_path: Path) -> None:
    with served(f"unix://{tmp_path}/none.sock", FAST, releases[0]) as away:
        ready(away)
        answer = away.delete("/v1/users/u")
    assert refused(answer, 503)["type"].endswith("store-away")
    assert answer.headers["Retry-After"] == "1"


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.floats(0, 9)),
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 9))),
)
def test_rows_up_to_the_erasure_are_removed_and_later_ones_kept(
    erased: dict[str, float], rows: list[tuple[str, int]]
) -> None:
    table = pa.table(
        {
            "user_id": pa.array([u for u, _ in rows], pa.string()),
            "at": pa.array([at * 10**6 for _, at in rows], pa.int64()).cast(pa.timestamp("us", "UTC")),
        }
    )
    left = erasures.without_erased(table, {user_hash(u): at for u, at in erased.items()}, "at")
    assert left["user_id"].to_pylist() == [u for u, at in rows if at > erased.get(u, -1)]


@pytest.mark.parametrize("user", ["u", HOSTILE])
def test_users_erased_after_a_backup_are_erased_again_from_the_restored_data(
    client: httpx.Client, store: BulkStore, data: Path, url: str, tmp_path: Path, user: str
) -> None:
    """The restored log and the restored lists contain the user, and the tombstone may have been restored or not.

    Events after the erasure are kept: the user came back.
    """
    shop(client, store, user, "v")
    collect(data, store)
    shop(client, store, user)
    erased_at = time.time()
    saved = tmp_path / "saved.parquet"
    pq.write_table(erasures.to_table({user_hash(user): erased_at}), saved)
    client.post("/v1/events", json=click("blue-02", user))
    for _ in range(2):
        collected = collect(data, store, saved_erasures=saved)
        assert collected.erased == 1
        left = LogFiles.of(data)
        assert set(left.read_served()["user_id"].to_pylist()) == {"v"}
        assert sorted(load_dataset(data).events.user_ids) == sorted([user, "v"])
        assert len(load_dataset(data).events) == 2 + 1
        catalogue, now = load_dataset(data).catalogue, time.time() + 1
        assert [catalogue.item_ids[row] for row in store.read(user, catalogue, now).item.tolist()] == ["blue-02"]
        assert store.read("v", catalogue, now).item.size == 2
    assert erasures.read_erasures(data) == {user_hash(user): erased_at}
    with redis.Redis.from_url(url) as raw:
        assert not list(raw.scan_iter(f"sw:{{{_key(user).decode()}}}:d:*")), "the key of the event IDs has the user ID"
