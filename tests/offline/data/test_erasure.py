"""Erasure: an erased user is removed from Redis and the log, and excluded from nightly runs and later imports."""

from __future__ import annotations

import contextlib
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

from offline.data import erasures, imported
from offline.data.collection import collect
from offline.data.dataset import load_dataset
from offline.data.log import LogFiles
from offline.ingest.detection import detect
from offline.ingest.importer import import_data
from offline.runtime import DataError
from serving.store import SERVED, BulkStore, Event, tombstone, user_hash
from tests.offline.data.test_collection import data
from tests.serving.test_service import (
    FAST,
    clear,
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


def erased(user: str, at: float) -> erasures.Erasures:
    """The erasures of a data set from which one user was erased."""
    return erasures.Erasures({tombstone("00", user_hash(user)): at}, ("00",))


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
    lists = {"request_id": ["r1", "r2"], "at": table["timestamp"].slice(0, 2), "user_id": ["u", "v"]}
    pq.write_table(pa.table(lists), data / "served.parquet")
    erase(client, "u")
    with redis.Redis.from_url(url) as raw:
        raw.xtrim("sw:events", maxlen=0, approximate=False)
    collect(data, store)
    assert load_dataset(data).events.user_ids == ["v"]
    assert pq.read_table(data / "served.parquet")["user_id"].to_pylist() == ["v"]
    written = pq.read_table(data / "events.parquet", read_dictionary=["user_id"])["user_id"].combine_chunks()
    assert written.dictionary.to_pylist() == ["v"], "the rewritten file has no dictionary that still contains the ID"


def test_a_later_import_does_not_restore_an_erased_user(tmp_path: Path) -> None:
    """Only the purchase of u after the erasure is imported, and both purchases of v; of attributes, only those of v."""
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    data.mkdir()
    (source / "items.csv").write_text("item_id,title\nA,Chair\n")
    lines = [f"purchase,{user},A,{at}" for user in "uv" for at in (1_700_000_000, 1_700_000_100)]
    (source / "events.csv").write_text("\n".join(["event,user_id,item_id,timestamp", *lines]))
    (source / "users.csv").write_text("user_id,city\nu,Lund\nv,Umea\n")
    erasures.write_erasures(data, erased("u", at=1_700_000_050.0))
    import_data(detect(source)[0], data, datetime.now(UTC))
    assert sorted(pq.read_table(data / "events.parquet")["user_id"].to_pylist()) == ["u", "v", "v"]
    assert pq.read_table(data / imported.PROFILES_FILE).to_pylist() == [{"user_id": "v", "city": "Umea"}]


def test_collect_removes_the_attributes_of_an_erased_user(client: httpx.Client, store: BulkStore, data: Path) -> None:
    """Of the users u and v, the attributes of v remain."""
    pq.write_table(pa.table({"user_id": ["u", "v"], "city": ["Lund", "Umea"]}), data / imported.PROFILES_FILE)
    erase(client, "u")
    collect(data, store)
    assert pq.read_table(data / imported.PROFILES_FILE).to_pylist() == [{"user_id": "v", "city": "Umea"}]


def test_a_tombstone_does_not_reveal_the_user_id_without_its_secret(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """It is a hash of the ID and a secret, so that IDs cannot be tried. Only its owner can read the secret's file."""
    erase(client, "someone")
    collect(data, store)
    found = erasures.read_erasures(data)
    assert list(found.at) == [tombstone(found.secrets[0], user_hash("someone"))]
    assert (data / erasures.SECRETS_FILE).stat().st_mode & 0o777 == 0o600
    stored = (data / erasures.FILE).read_bytes() + all_stored_bytes(url, data)
    assert b"someone" not in stored
    assert user_hash("someone").encode() not in stored


def test_tombstones_of_versions_without_a_secret_are_replaced(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """Those of the file, and those that wait in Redis. They are as valid before as after that."""
    plain = pa.table({"user": [user_hash("old")], "at": [1e9]}, erasures.SCHEMA)
    pq.write_table(plain, data / erasures.FILE)
    assert erasures.read_erasures(data).until("old") == 1e9
    with redis.Redis.from_url(url) as raw:
        raw.xadd("sw:erased", {"u": user_hash("waiting"), "t": "2e9"})
    assert collect(data, store).erased == 1, "the other one was known"
    found = erasures.read_erasures(data)
    assert [found.until(user) for user in ("old", "waiting", "other")] == [1e9, 2e9, -float("inf")]
    assert all(len(name) == 40 for name in found.at)


def test_tombstones_stay_valid_after_redis_was_emptied(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """The service then makes a new secret, unless `collect` comes first and restores the one of the file."""
    erase(client, "a")
    collect(data, store)
    clear(url)
    erase(client, "b")
    collect(data, store)
    assert len(erasures.read_erasures(data).secrets) == 2
    clear(url)
    collect(data, store)
    erase(client, "c")
    collect(data, store)
    found = erasures.read_erasures(data)
    assert len(found.secrets) == 2
    assert all(found.until(user) > 0 for user in "abc")


def test_tombstones_without_their_secret_are_an_error(tmp_path: Path) -> None:
    erasures.write_erasures(tmp_path, erased("u", at=1.0))
    (tmp_path / erasures.SECRETS_FILE).unlink()
    with pytest.raises(DataError, match=r"erasures.key: missing, so that the users erased in"):
        erasures.read_erasures(tmp_path)


def test_events_from_before_the_erasure_are_refused_whenever_they_arrive(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """A client may have kept them in its queue. They are counted, and leave nothing in Redis."""
    shop(client, store, "u")
    erase(client, "u")
    document = refused(client.post("/v1/events", json=click(user="u", timestamp=time.time() - 60)), 422)
    assert (document["field"], document["detail"]) == ("timestamp", "the user was erased after this time")
    with redis.Redis.from_url(url) as raw:
        assert not list(raw.scan_iter("sw:{u}*"))
    both = [click("blue-00", "u", timestamp=time.time() - 60), click("blue-02", "u")]
    answer = client.post("/v1/events", json=[*both, click(user="v", timestamp=time.time() - 60)]).json()
    assert (answer["accepted"], [r["index"] for r in answer["rejected"]]) == (2, [0])
    catalogue = load_dataset(data).catalogue if collect(data, store) else None
    assert catalogue is not None
    assert [catalogue.item_ids[row] for row in store.read("u", catalogue, time.time() + 1).item] == ["blue-02"]
    assert 'shelfwise_events_total{outcome="erased"} 2.0' in client.get("/metrics").text


def test_an_erasure_deletes_the_ids_of_events_of_all_periods(client: httpx.Client, store: BulkStore, url: str) -> None:
    """They are kept for up to 96 hours, which is two periods, so the oldest ones are two periods old."""
    now = time.time()
    for hours in (0, 48, 90):
        store.write([Event(f"e{hours}", 2, "someone", "red-01", now)], now - hours * 3600)
    erase(client, "someone")
    with redis.Redis.from_url(url) as raw:
        assert not list(raw.scan_iter("*someone*"))


def test_the_last_served_list_and_the_last_tombstone_leave_redis_with_the_others(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    shop(client, store, "u")
    erase(client, "u")
    collect(data, store)
    assert store.length(SERVED) == 0
    assert store.erased()[1] == []
    shop(client, store, "v")
    assert collect(data, store).served == 1, "what comes later is collected"


def test_redis_rewrites_its_append_only_file_after_an_erasure(
    client: httpx.Client, store: BulkStore, data: Path, url: str
) -> None:
    """The file has every command, also those with the ID of the user, until it is rewritten."""
    with redis.Redis.from_url(url) as raw:
        folder = Path(raw.config_get("dir")["dir"]) / raw.config_get("appenddirname")["appenddirname"]

    def commands() -> bytes:
        out = b""
        for file in folder.glob("*.aof"):
            with contextlib.suppress(FileNotFoundError):  # Redis has just replaced it
                out += file.read_bytes()
        return out

    ranked(client, user_id="someone", limit=2)
    until(lambda: store.length(SERVED) == 1)
    erase(client, "someone")
    until(lambda: b"someone" in commands())
    with redis.Redis.from_url(url) as raw:
        until(lambda: not raw.info("persistence")["aof_rewrite_in_progress"])
    assert collect(data, store).log_kept is None
    until(lambda: b"someone" not in commands())


def test_the_quarantine_and_the_summary_of_an_import_forget_an_erased_user(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    """As a cell, as a word of a cell, and in a line that was not read; other values are kept."""
    source = data / "source"
    source.mkdir()
    (source / "items.csv").write_text("item_id,title\nA,Chair\n")
    rows = [
        "purchase,v,A,1700000000,1",
        "someone,u,A,1700000000,1",
        "purchase,u,A,day someone came,1",
        "purchase,v,A,then,1",
        "purchase,someone,A",
    ]
    (source / "events.csv").write_text("\n".join(["event,user_id,item_id,timestamp,value", *rows]))
    config = detect(source)[0]
    import_data(config, data, datetime.now(UTC))
    files = [data / "quarantine.parquet", data / "import.json"]
    before = pq.read_table(files[0])
    assert "someone" in str(before.to_pylist())
    assert "someone" in files[1].read_text()
    erase(client, "someone")
    collect(data, store)
    after = [pq.read_table(files[0]).to_pylist(), files[1].read_text()]
    import_data(config, data, datetime.now(UTC))
    for content in (after, [pq.read_table(files[0]).to_pylist(), files[1].read_text()]):
        assert "someone" not in str(content)
        assert sorted(row["row"] for row in content[0]) == sorted(before["row"].to_pylist()), "no row is missing"
        assert "then" in {row["value"] for row in content[0]}


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
    times: dict[str, float], rows: list[tuple[str, int]]
) -> None:
    table = pa.table(
        {
            "user_id": pa.array([u for u, _ in rows], pa.string()),
            "at": pa.array([at * 10**6 for _, at in rows], pa.int64()).cast(pa.timestamp("us", "UTC")),
        }
    )
    known = erasures.Erasures({tombstone("secret", user_hash(u)): at for u, at in times.items()}, ("secret",))
    left = erasures.without_erased(table, known, "at")
    assert left["user_id"].to_pylist() == [u for u, at in rows if at > times.get(u, -1)]


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
    saved = tmp_path / "saved" / erasures.FILE
    saved.parent.mkdir()
    secret = store.erasure_secret("00")
    saved_erasures = erasures.Erasures({tombstone(secret, user_hash(user)): erased_at}, (secret,))
    erasures.write_erasures(saved.parent, saved_erasures)
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
    assert erasures.read_erasures(data) == saved_erasures
    document = refused(client.post("/v1/events", json=click(user=user, timestamp=erased_at - 1)), 422)
    assert document["detail"] == "the user was erased after this time"
    with redis.Redis.from_url(url) as raw:
        assert not list(raw.scan_iter(f"sw:{{{_key(user).decode()}}}:d:*")), "the key of the event IDs has the user ID"
