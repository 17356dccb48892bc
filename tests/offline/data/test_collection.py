"""Collection: accepted events and served lists are written to disk exactly once, and clicks join their lists."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow.fs import SubTreeFileSystem, _MockFileSystem

from features.log import KINDS, Kind
from offline.data import collection as module
from offline.data.collection import collect
from offline.data.dataset import load_dataset
from offline.data.log import LogFiles
from offline.data.partitions import Storage
from offline.data.query_groups import iter_logged_lists, logged_keys, logged_lists
from offline.data.schema import EVENTS_SCHEMA
from serving.ranking.exploration import explore
from serving.records import Served
from serving.release.release import load_release as load_release
from serving.store import SERVED, STREAM, BulkStore, Event
from tests.killed import collect_killed, exit_status
from tests.serving.test_release import CUT_OFF, columns, planted_items
from tests.serving.test_service import FAST, clear, click, client, ranked, ready, releases, running, served, until, url

DAY = 86400.0
__all__ = ["client", "releases", "running", "url"]


@pytest.fixture
def store(client: httpx.Client, url: str) -> Iterator[BulkStore]:
    """The empty Redis of a running service."""
    with BulkStore(url) as store:
        yield store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with a catalogue and no log."""
    items = columns(planted_items()).select(["item_id"]).append_column("title", [["t"] * 20])
    pq.write_table(items, tmp_path / "items.parquet")
    return tmp_path


def event_ids(data: Path) -> list[str]:
    """IDs of all collected events, in the order of the files."""
    parts = sorted((data / "events").glob("date=*/part-*.parquet"))
    return [i for p in parts for i in pq.read_table(p, partitioning=None)["event_id"].to_pylist()]


def wait_for_lists(store: BulkStore, lists: int) -> None:
    """Wait until the stream has this many served lists."""
    until(lambda: store.length(SERVED) >= lists)


def log_lists(store: BulkStore, *lists: Served) -> None:
    """Write served lists, as a worker does."""
    store.run([["XADD", store.layout.key(SERVED), "*", "l", msgspec.msgpack.encode(one)] for one in lists])


def test_every_field_of_an_event_is_written_unchanged(store: BulkStore, data: Path) -> None:
    events = [
        Event("e1", Kind.IMPRESSION, "u", "red-01", CUT_OFF + 1.25, "r", 3, 9.5, "s", "iPad", "mug", '{"bm25":0.1}'),
        Event("e2", Kind.PURCHASE, "ü", "not in the catalogue", CUT_OFF),
    ]
    store.write(events, time.time())
    assert collect(data, store)[:2] == (2, 0)
    (part,) = (data / "events").glob("date=*/part-*.parquet")
    rows = pq.read_table(part, partitioning=None).to_pylist()
    assert part.parent.name == time.strftime("date=%Y-%m-%d", time.gmtime(CUT_OFF)), "the day of the event"
    for row, e in zip(rows, events, strict=True):
        assert (row["timestamp"].timestamp(), row["event"]) == (e.at, KINDS[e.kind])
        assert {k: v for k, v in row.items() if k not in ("timestamp", "event")} == {
            k: getattr(e, k) for k in row if k not in ("timestamp", "event")
        }


def test_a_second_run_continues_where_the_first_ended(store: BulkStore, data: Path) -> None:
    for n in range(3):
        store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n)], time.time())
        assert collect(data, store).events == 1
        assert collect(data, store).events == 0
    assert event_ids(data) == ["e0", "e1", "e2"]
    assert store.length(STREAM) == 3, "events that a release may still read stay in the stream"


def test_a_late_event_is_written_to_the_partition_of_its_own_day(store: BulkStore, data: Path) -> None:
    """Four events on three days. The earliest is collected last, in a second run, which adds a file to its day."""
    late, *others = (
        Event(f"e{n}", Kind.CLICK, "u", "i", at) for n, at in enumerate((4.9 * DAY, 4 * DAY, 5 * DAY, 7 * DAY))
    )
    store.write(others, time.time())
    assert collect(data, store).events == 3
    store.write([late], time.time())
    assert collect(data, store).events == 1
    rows_per_file = sorted(
        (p.parent.name, pq.read_metadata(p).num_rows) for p in (data / "events").glob("date=*/*.parquet")
    )
    assert rows_per_file == [
        ("date=1970-01-05", 1),
        ("date=1970-01-05", 1),
        ("date=1970-01-06", 1),
        ("date=1970-01-08", 1),
    ]
    assert list(load_dataset(data).event_id) == ["e1", "e0", "e2", "e3"]


def test_a_long_log_is_written_in_batches_without_losing_entries(
    store: BulkStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "_LOGS", tuple(log._replace(batch=3) for log in module._LOGS))
    store.write([Event(f"e{n}", Kind.CLICK, f"u{n % 2}", "red-01", CUT_OFF + n) for n in range(20)], time.time())
    assert collect(data, store).events == 20
    assert sorted(event_ids(data)) == sorted(f"e{n}" for n in range(20))
    assert len(list((data / "events").glob("date=*/*.parquet"))) == 3  # 9, 9, 2


@pytest.mark.parametrize(
    ("function", "calls"), [("fsync", n) for n in (1, 3, 4, 5, 7, 9, 10, 15)] + [("_read_batch", 3), ("_trim", 1)]
)
def test_a_killed_run_neither_duplicates_nor_loses_events(
    store: BulkStore, data: Path, url: str, function: str, calls: int
) -> None:
    """Killed during or after the write of a mark or a file, between two files of a batch, between two batches, and
    before the stream is trimmed."""
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n % 3 * DAY) for n in range(12)], time.time())
    assert exit_status(collect_killed, data, url, function, calls) == -signal.SIGKILL
    store.write([Event(f"f{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n) for n in range(3)], time.time())
    collect(data, store)
    assert sorted(event_ids(data)) == sorted([f"e{n}" for n in range(12)] + ["f0", "f1", "f2"])


def test_a_log_can_be_on_another_file_system(store: BulkStore, data: Path, tmp_path: Path) -> None:
    """At a `file://` URI and in an Arrow file system without a URI. Only the log is there, not the data set."""
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n * DAY) for n in range(3)], time.time())
    elsewhere = (tmp_path / "elsewhere").as_uri()
    arrow = Storage(SubTreeFileSystem("bucket", _MockFileSystem()), "shop")
    for log in (elsewhere, arrow):
        assert collect(data, store, log=log).events == 3
        assert collect(data, store, log=log).events == 0
        assert list(load_dataset(data, log=log).event_id) == ["e0", "e1", "e2"]
    with pytest.raises(FileNotFoundError):
        load_dataset(data)


def test_days_long_before_the_oldest_cut_off_are_deleted(store: BulkStore, data: Path, releases: list[Path]) -> None:
    """Three days before the cut-off of the oldest release are kept. Later events do not change that."""
    oldest = min(load_release(r).manifest.cut_off for r in releases)
    at = [oldest + day * DAY for day in (-5, -4, -3, 0, 1, 9)]
    store.write([Event(f"e{day}", Kind.CLICK, "u", "red-01", t) for day, t in enumerate(at)], time.time())
    collect(data, store, releases[0].parent)
    assert list(load_dataset(data).event_id) == ["e0", "e1", "e2", "e3", "e4", "e5"], (
        "without keep_days all events stay"
    )
    collect(data, store, None, keep_days=3)
    assert len(load_dataset(data).events) == 6, "without a release nothing is deleted"
    collect(data, store, releases[0].parent, keep_days=3)
    assert list(load_dataset(data).event_id) == ["e2", "e3", "e4", "e5"]
    assert collect(data, store, releases[0].parent, keep_days=3).events == 0, "deleted events are not collected again"


def test_events_that_a_release_does_not_include_stay_in_the_stream(
    store: BulkStore, data: Path, releases: list[Path]
) -> None:
    """The cut-off of the test releases is in 2023. They still read events written since then from the stream."""
    store.write([Event("e", Kind.CLICK, "u", "red-01", CUT_OFF)], time.time())
    assert collect(data, store, releases[0].parent).trimmed == 0
    assert store.length(STREAM) == 1


def test_a_served_list_is_logged_as_it_was_returned(client: httpx.Client, store: BulkStore, data: Path) -> None:
    answer = client.post("/v1/rank", json={"user_id": "u", "limit": 3, "device": "app", "query": "red hat"}).json()
    wait_for_lists(store, 1)
    assert collect(data, store).served == 1
    (row,) = LogFiles.of(data).read_served().to_pylist()
    assert (row["request_id"], row["release"], row["user_id"]) == (answer["request_id"], answer["release"], "u")
    assert (row["route"], row["device"], row["query"], row["degraded"]) == ("rank", "app", "red hat", False)
    assert row["item_ids"] == [i["item_id"] for i in answer["items"]]
    assert row["score"] == [i["score"] for i in answer["items"]]
    assert (row["propensity"], row["candidates"], row["rows"]) == (None, None, None)
    assert abs(row["at"].timestamp() - time.time()) < 60
    assert store.length(SERVED) <= 1, "collected lists are removed from Redis, except possibly the last"
    assert collect(data, store).served == 0


def test_a_list_that_is_not_shown_is_a_list_only_once_impressions_are_sent(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    """Of two lists for an e-mail, one is opened: its one impression is the list, and the other one never was."""
    request = {"user_id": "u", "limit": 2, "shown": False}
    unseen = client.post("/v1/recommend", json=request).json()["request_id"]
    opened = client.post("/v1/rank", json=request).json()
    seen = {"event": "impression", "user_id": "u", "item_id": opened["items"][0]["item_id"], "position": 0}
    client.post("/v1/events", json=[seen | {"request_id": opened["request_id"]}])
    client.post("/v1/rank", json=request | {"shown": True})  # comes after the others in the stream
    wait_for_lists(store, 1)
    assert collect(data, store) == (1, 1, 0, 0, 0, None)
    lists = logged_lists(load_dataset(data).shown)
    assert unseen not in lists.request_ids
    assert np.diff(lists.start)[list(lists.request_ids).index(opened["request_id"])] == 1


def test_lists_for_a_mailing_are_no_lists_of_the_next_night(client: httpx.Client, store: BulkStore, data: Path) -> None:
    """Of 107 lists for an e-mail and one for a page, the page's list is logged. A click on the way from the e-mail into
    the shop is an event with the e-mail's request ID, and gives a list to nobody."""
    mailed = [
        client.post("/v1/recommend", json={"user_id": f"u{k}", "limit": 2, "shown": False}).json() for k in range(107)
    ]
    page = client.post("/v1/recommend", json={"user_id": "u0", "limit": 2}).json()
    first = mailed[0]
    client.post("/v1/events", json=[click(first["items"][0]["item_id"], user_id="u0", request_id=first["request_id"])])
    wait_for_lists(store, 1)
    assert collect(data, store)[:2] == (1, 1)
    dataset = load_dataset(data)
    assert list(logged_lists(dataset.shown).request_ids) == [page["request_id"]]
    assert not logged_keys(iter_logged_lists(dataset.shown, DAY)).has_gain.any(), "the e-mail's click is not the page's"


def test_clicks_join_served_lists_without_logged_impressions(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    """The list becomes a query group with positions and gain. Its impressions are in `shown`, but not in `events`."""
    answer = client.post("/v1/rank", json={"user_id": "u", "candidates": ["red-01", "blue-00", "red-03"]}).json()
    shown = [i["item_id"] for i in answer["items"]]
    client.post("/v1/rank", json={"candidates": ["red-01"]})  # a list without a user is not a query group
    sent = client.post("/v1/rank", json={"user_id": "v", "candidates": ["red-01", "blue-00"]}).json()["request_id"]
    client.post(
        "/v1/events",
        json=[
            click(shown[2], request_id=answer["request_id"]),
            {"event": "impression", "user_id": "v", "item_id": "red-01", "request_id": sent, "position": 0},
        ],
    )
    wait_for_lists(store, 3)
    collect(data, store)
    dataset = load_dataset(data)
    assert len(dataset.events) == 2
    assert dataset.events.user_ids == dataset.shown.user_ids
    lists = logged_lists(dataset.shown)
    g = list(lists.request_ids).index(answer["request_id"])
    at = slice(lists.start[g], lists.start[g + 1])
    assert [dataset.catalogue.item_ids[i] for i in lists.item[at]] == shown
    assert (lists.position[at].tolist(), lists.gain[at].tolist()) == ([0, 1, 2], [0, 0, 1])
    assert sorted(lists.request_ids) == sorted([answer["request_id"], sent])
    assert np.diff(lists.start)[1 - g] == 1, "logged impressions take precedence over the served list"


def test_an_event_both_imported_and_collected_counts_once(store: BulkStore, data: Path) -> None:
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n) for n in range(3)], time.time())
    collect(data, store)
    (part,) = (data / "events").glob("date=*/*.parquet")
    pq.write_table(
        pq.read_table(part, partitioning=None).drop(["session_id", "device"]).slice(0, 2), data / "events.parquet"
    )
    assert sorted(load_dataset(data).event_id) == ["e0", "e1", "e2"]


def test_feature_rows_are_logged_for_the_configured_share_of_lists(url: str, releases: list[Path], data: Path) -> None:
    """The rows of all candidates, including those beyond `limit`. They give the logged scores."""
    clear(url)
    with BulkStore(url) as store:
        with served(url, FAST.model_copy(update={"log_rows_share": 1.0}), releases[0]) as one:
            ready(one)
            assert len(ranked(one, user_id="u", limit=2)) == 2
        collect(data, store)
    (row,) = LogFiles.of(data).read_served().to_pylist()
    assert len(row["item_ids"]) == 2
    assert row["candidates"][:2] == row["item_ids"]
    assert len(row["candidates"]) == 20
    release = load_release(releases[0])
    table = np.frombuffer(row["rows"], "<f4").reshape(20, -1).astype(np.float32)
    assert release.trees.score(table)[:2].tolist() == row["score"]


def test_served_lists_beyond_the_limit_are_dropped_and_counted(url: str, releases: list[Path]) -> None:
    clear(url)
    with redis.Redis.from_url(url) as raw:
        with served(url, FAST.model_copy(update={"log_served_most": 2}), releases[0]) as one:
            ready(one)
            for _ in range(3):
                ranked(one, limit=1)
                time.sleep(0.15)
            until(lambda: "shelfwise_served_dropped_total 1.0" in one.get("/metrics").text)
        assert raw.xlen("sw:served") == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 2**32))
def test_exploration_only_swaps_neighbours(length: int, share: float, seed: int) -> None:
    order, propensity = explore(length, share, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(length))
    assert (np.abs(order - np.arange(length)) <= 1).all()
    assert ((propensity > 0) & (propensity <= 1)).all()


def test_propensities_match_the_frequencies_of_positions() -> None:
    """20,000 lists of 4, half of them explored: one position up or down with probability .5/4 each, if there is one."""
    rng = np.random.default_rng(0)
    count, propensities = np.zeros((4, 4)), np.zeros((4, 4))
    for _ in range(20_000):
        order, propensity = explore(4, 0.5, rng)
        count[order, np.arange(4)] += 1
        propensities[order, np.arange(4)] = propensity
    expected = np.diag([7 / 8, 6 / 8, 6 / 8, 7 / 8]) + (np.eye(4, k=1) + np.eye(4, k=-1)) / 8
    np.testing.assert_allclose(propensities, expected)
    np.testing.assert_allclose(count / 20_000, expected, atol=0.012)  # four standard deviations of .003


def test_propensities_of_an_explored_list_are_logged(url: str, releases: list[Path], data: Path) -> None:
    clear(url)
    with BulkStore(url) as store:
        with served(url, FAST.model_copy(update={"explore": 1.0}), releases[0]) as one:
            ready(one)
            orders = {tuple(ranked(one, user_id="u")) for _ in range(5)}
        assert len(orders) > 1
        collect(data, store)
    for row in LogFiles.of(data).read_served().to_pylist():
        assert tuple(row["item_ids"]) in orders
        assert set(row["propensity"]) <= {1 / 4, 1 / 2, 3 / 4}


def test_truth_is_ignored_once_lists_are_collected(client: httpx.Client, store: BulkStore, data: Path) -> None:
    """The simulator has no utility for collected lists."""
    pq.write_table(pa.table({"request_id": ["r"], "item_id": ["red-01"], "utility": [0.5]}), data / "truth.parquet")
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    truth = load_dataset(data).truth
    assert truth
    assert truth.of(["r"]) == {("r", "red-01"): 0.5}
    ranked(client, user_id="u", limit=1)
    wait_for_lists(store, 1)
    collect(data, store)
    assert load_dataset(data).truth is None


def test_the_arms_of_a_list_are_columns_that_only_lists_of_experiments_have(store: BulkStore, data: Path) -> None:
    """What was collected without experiments has files without the columns, and reads as missing."""
    plain = Served("r1", CUT_OFF, "release", "rank", ["red-01"], np.zeros(1).tobytes(), "u")
    mixed = {"draft": "interleaved", "price": "control"}
    arms = Served("r2", CUT_OFF + DAY, "release", "rank", ["red-01", "red-03"], np.zeros(2).tobytes(), "v")
    arms = msgspec.structs.replace(
        arms, experiments=mixed, teams=["new", None], session_id="s", took_ms=4.25, degraded=True
    )
    for one in (plain, arms):
        log_lists(store, one)
        collect(data, store)
    without, with_arms = sorted((data / "served").glob("date=*/part-*.parquet"))
    assert "experiments" not in pq.read_schema(without).names
    assert pq.read_schema(with_arms).field("experiments").type == pa.map_(pa.string(), pa.string())
    names = ["request_id", "experiments", "teams", "session_id", "took_ms", "degraded"]
    assert LogFiles.of(data).read_served(names).to_pylist() == [
        dict(zip(names, ["r1", None, None, None, None, False], strict=True)),
        dict(zip(names, ["r2", list(mixed.items()), ["new", None], "s", 4.25, True], strict=True)),
    ]


def test_an_erased_user_leaves_no_arm(client: httpx.Client, store: BulkStore, data: Path) -> None:
    one = Served("r", CUT_OFF, "release", "rank", ["red-01"], np.zeros(1).tobytes(), experiments={"x": "a"})
    log_lists(store, *(msgspec.structs.replace(one, request_id=f"r-{user}", user_id=user) for user in "uv"))
    collect(data, store)
    assert client.delete("/v1/users/u").status_code == 202
    collect(data, store)
    rows = LogFiles.of(data).read_served(["user_id", "experiments"]).to_pylist()
    assert rows == [{"user_id": "v", "experiments": [("x", "a")]}]
