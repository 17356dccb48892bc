"""Collect: what was taken in and answered is on disk exactly once, and joins: lists to clicks, whoever answered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
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
from offline.data.query_groups import logged_lists
from offline.data.schema import EVENTS_SCHEMA
from serving.ranking.exploration import explore
from serving.release.release import load_release as load_release
from serving.store import SERVED, STREAM, BulkStore, Event
from tests.serving.test_release import CUT_OFF, columns, planted_items
from tests.serving.test_service import FAST, click, client, ranked, ready, releases, running, served, until, url

DAY = 86400.0
__all__ = ["client", "releases", "running", "url"]


@pytest.fixture
def store(client: httpx.Client, url: str) -> Iterator[BulkStore]:
    """An empty Redis that a service answers from."""
    with BulkStore(url) as store:
        yield store


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with a catalogue and no log."""
    items = columns(planted_items()).select(["item_id"]).append_column("title", [["t"] * 20])
    pq.write_table(items, tmp_path / "items.parquet")
    return tmp_path


def event_ids(data: Path) -> list[str]:
    parts = sorted((data / "events").glob("date=*/part-*.parquet"))
    return [i for p in parts for i in pq.read_table(p, partitioning=None)["event_id"].to_pylist()]


def waiting(store: BulkStore, lists: int) -> None:
    until(lambda: store.length(SERVED) >= lists)


def test_every_field_of_every_event_is_on_disk_as_it_came(store: BulkStore, data: Path) -> None:
    events = [
        Event("e1", Kind.IMPRESSION, "u", "red-01", CUT_OFF + 1.25, "r", 3, 9.5, "s", "iPad"),
        Event("e2", Kind.PURCHASE, "ü", "not in the catalogue", CUT_OFF),
    ]
    store.write(events, time.time())
    assert collect(data, store)[:2] == (2, 0)
    (part,) = (data / "events").glob("date=*/part-*.parquet")
    rows = pq.read_table(part, partitioning=None).to_pylist()
    assert part.parent.name == time.strftime("date=%Y-%m-%d", time.gmtime(CUT_OFF)), "the day it happened"
    for row, e in zip(rows, events, strict=True):
        assert (row["timestamp"].timestamp(), row["event"]) == (e.at, KINDS[e.kind])
        assert {k: v for k, v in row.items() if k not in ("timestamp", "event")} == {
            k: getattr(e, k) for k in row if k not in ("timestamp", "event")
        }


def test_a_second_run_goes_on_where_the_first_ended(store: BulkStore, data: Path) -> None:
    for n in range(3):
        store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n)], time.time())
        assert collect(data, store).events == 1
        assert collect(data, store).events == 0
    assert event_ids(data) == ["e0", "e1", "e2"]
    assert store.length(STREAM) == 3, "what a release may still have to read stays"


def test_an_event_goes_into_the_day_on_which_it_happened_however_late_it_comes(store: BulkStore, data: Path) -> None:
    """Of four events of three days the first comes last, in a run of its own: a second file in a day that was there."""
    first, *others = (
        Event(f"e{n}", Kind.CLICK, "u", "i", at) for n, at in enumerate((4.9 * DAY, 4 * DAY, 5 * DAY, 7 * DAY))
    )
    store.write(others, time.time())
    assert collect(data, store).events == 3
    store.write([first], time.time())
    assert collect(data, store).events == 1
    found = sorted((p.parent.name, pq.read_metadata(p).num_rows) for p in (data / "events").glob("date=*/*.parquet"))
    assert found == [("date=1970-01-05", 1), ("date=1970-01-05", 1), ("date=1970-01-06", 1), ("date=1970-01-08", 1)]
    assert list(load_dataset(data).event_id) == ["e1", "e0", "e2", "e3"]


def test_a_long_log_is_several_files_and_nothing_is_lost_between_them(
    store: BulkStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "_LOGS", tuple(log._replace(batch=3) for log in module._LOGS))
    store.write([Event(f"e{n}", Kind.CLICK, f"u{n % 2}", "red-01", CUT_OFF + n) for n in range(20)], time.time())
    assert collect(data, store).events == 20
    assert sorted(event_ids(data)) == sorted(f"e{n}" for n in range(20))
    assert len(list((data / "events").glob("date=*/*.parquet"))) == 3  # 9, 9, 2


_KILLED = """
import sys
from pathlib import Path
from offline.data import collection as module
from serving.store import BulkStore
import os
module.os = os
module._ROWS = 5
module._LOGS = tuple(log._replace(batch=5) for log in module._LOGS)
plain, left = module.{function}, [{calls}]
def dies(*given):
    left[0] -= 1
    if not left[0]:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*given)
module.{function} = dies
with BulkStore(sys.argv[2]) as store:
    module.collect(Path(sys.argv[1]), store)
"""


@pytest.mark.parametrize(
    ("function", "calls"), [("os.fsync", n) for n in (1, 3, 4, 5, 7, 9, 10, 15)] + [("_next", 3), ("_trim", 1)]
)
def test_a_run_that_is_killed_leaves_nothing_twice_and_nothing_out(
    store: BulkStore, data: Path, url: str, function: str, calls: int
) -> None:
    """Killed while a mark or a file is written, once it has its name, between the files of three days that were taken
    together, between two times, before the stream is trimmed."""
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n % 3 * DAY) for n in range(12)], time.time())
    script = _KILLED.format(function=function, calls=calls)
    code = subprocess.run(
        [sys.executable, "-c", script, str(data), url], env={**os.environ, "PYTHONPATH": "."}
    ).returncode
    assert code == -signal.SIGKILL
    store.write([Event(f"f{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n) for n in range(3)], time.time())
    collect(data, store)
    assert sorted(event_ids(data)) == sorted([f"e{n}" for n in range(12)] + ["f0", "f1", "f2"])


def test_a_log_on_another_file_system_is_moved_and_read_the_same(store: BulkStore, data: Path, tmp_path: Path) -> None:
    """By `file://`, and in a store that only Arrow knows; beside the data set, events alone are elsewhere."""
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n * DAY) for n in range(3)], time.time())
    elsewhere = (tmp_path / "elsewhere").as_uri()
    arrows = Storage(SubTreeFileSystem("bucket", _MockFileSystem()), "shop")
    for log in (elsewhere, arrows):
        assert collect(data, store, log=log).events == 3
        assert collect(data, store, log=log).events == 0
        assert list(load_dataset(data, log=log).event_id) == ["e0", "e1", "e2"]
    with pytest.raises(FileNotFoundError):
        load_dataset(data)


def test_days_that_no_release_needs_any_more_go_and_the_live_ones_stay(
    store: BulkStore, data: Path, releases: list[Path]
) -> None:
    """Three days are kept before the cut-off of the oldest release, whatever later or future events say."""
    oldest = min(load_release(r).manifest.cut_off for r in releases)
    at = [oldest + day * DAY for day in (-5, -4, -3, 0, 1, 9)]
    store.write([Event(f"e{day}", Kind.CLICK, "u", "red-01", t) for day, t in enumerate(at)], time.time())
    collect(data, store, releases[0].parent)
    assert list(load_dataset(data).event_id) == ["e0", "e1", "e2", "e3", "e4", "e5"], "without a setting all stay"
    collect(data, store, None, keep_days=3)
    assert len(load_dataset(data).events) == 6, "nor does anything go while there is no release"
    collect(data, store, releases[0].parent, keep_days=3)
    assert list(load_dataset(data).event_id) == ["e2", "e3", "e4", "e5"]
    assert collect(data, store, releases[0].parent, keep_days=3).events == 0, "what went does not come back"


def test_events_that_every_release_has_leave_the_stream_once_they_are_on_disk(
    store: BulkStore, data: Path, releases: list[Path]
) -> None:
    """The planted releases end in 2023; what came since is still to be read by them."""
    store.write([Event("e", Kind.CLICK, "u", "red-01", CUT_OFF)], time.time())
    assert collect(data, store, releases[0].parent).trimmed == 0
    assert store.length(STREAM) == 1


def test_an_answer_is_logged_as_it_was_shown(client: httpx.Client, store: BulkStore, data: Path) -> None:
    answer = client.post("/v1/rank", json={"user_id": "u", "limit": 3, "device": "app", "query": "red hat"}).json()
    waiting(store, 1)
    assert collect(data, store).served == 1
    (row,) = LogFiles.of(data).read_served().to_pylist()
    assert (row["request_id"], row["release"], row["user_id"]) == (answer["request_id"], answer["release"], "u")
    assert (row["route"], row["device"], row["query"], row["degraded"]) == ("rank", "app", "red hat", False)
    assert row["item_ids"] == [i["item_id"] for i in answer["items"]]
    assert row["score"] == [i["score"] for i in answer["items"]]
    assert (row["propensity"], row["candidates"], row["rows"]) == (None, None, None)
    assert abs(row["at"].timestamp() - time.time()) < 60
    assert store.length(SERVED) <= 1, "what is on disk has left Redis, but for the last"
    assert collect(data, store).served == 0


def test_clicks_join_to_lists_of_which_no_impression_was_sent(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    """A list becomes a query group with positions and gain; histories and item state know of no such impression."""
    answer = client.post("/v1/rank", json={"user_id": "u", "candidates": ["red-01", "blue-00", "red-03"]}).json()
    shown = [i["item_id"] for i in answer["items"]]
    client.post("/v1/rank", json={"candidates": ["red-01"]})  # nobody's list is no query group
    sent = client.post("/v1/rank", json={"user_id": "v", "candidates": ["red-01", "blue-00"]}).json()["request_id"]
    client.post(
        "/v1/events",
        json=[
            click(shown[2], request_id=answer["request_id"]),
            {"event": "impression", "user_id": "v", "item_id": "red-01", "request_id": sent, "position": 0},
        ],
    )
    waiting(store, 3)
    collect(data, store)
    found = load_dataset(data)
    assert len(found.events) == 2
    assert found.events.user_ids == found.shown.user_ids
    lists = logged_lists(found.shown)
    g = list(lists.request_ids).index(answer["request_id"])
    at = slice(lists.start[g], lists.start[g + 1])
    assert [found.catalogue.item_ids[i] for i in lists.item[at]] == shown
    assert (lists.position[at].tolist(), lists.gain[at].tolist()) == ([0, 1, 2], [0, 0, 1])
    assert sorted(lists.request_ids) == sorted([answer["request_id"], sent])
    assert np.diff(lists.start)[1 - g] == 1, "where impressions were sent, they say what was seen"


def test_an_event_both_imported_and_collected_counts_once(store: BulkStore, data: Path) -> None:
    store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", CUT_OFF + n) for n in range(3)], time.time())
    collect(data, store)
    (part,) = (data / "events").glob("date=*/*.parquet")
    pq.write_table(
        pq.read_table(part, partitioning=None).drop(["session_id", "device"]).slice(0, 2), data / "events.parquet"
    )
    assert sorted(load_dataset(data).event_id) == ["e0", "e1", "e2"]


def test_rows_are_kept_for_the_share_that_is_asked(url: str, releases: list[Path], data: Path) -> None:
    """All candidates' rows, also of those that `limit` left out, and the scores are theirs."""
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
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


def test_lists_wait_while_redis_is_full_and_are_dropped_and_counted_in_the_end(url: str, releases: list[Path]) -> None:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
        with served(url, FAST.model_copy(update={"log_served_most": 2}), releases[0]) as one:
            ready(one)
            for _ in range(3):
                ranked(one, limit=1)
                time.sleep(0.15)
            until(lambda: "shelfwise_served_dropped_total 1.0" in one.get("/metrics").text)
        assert raw.xlen(SERVED) == 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 2**32))
def test_an_explored_list_is_the_list_with_neighbours_exchanged(length: int, share: float, seed: int) -> None:
    order, propensity = explore(length, share, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(length))
    assert (np.abs(order - np.arange(length)) <= 1).all()
    assert ((propensity > 0) & (propensity <= 1)).all()


def test_propensities_are_how_often_an_item_stands_there() -> None:
    """20,000 lists of 4, half of them explored: one place up or down with probability .5/4, the ends one way only."""
    rng = np.random.default_rng(0)
    count, said = np.zeros((4, 4)), np.zeros((4, 4))
    for _ in range(20_000):
        order, propensity = explore(4, 0.5, rng)
        count[order, np.arange(4)] += 1
        said[order, np.arange(4)] = propensity
    expected = np.diag([7 / 8, 6 / 8, 6 / 8, 7 / 8]) + (np.eye(4, k=1) + np.eye(4, k=-1)) / 8
    np.testing.assert_allclose(said, expected)
    np.testing.assert_allclose(count / 20_000, expected, atol=0.012)  # four standard deviations of .003


def test_an_explored_answer_carries_its_propensities_to_the_log(url: str, releases: list[Path], data: Path) -> None:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        with served(url, FAST.model_copy(update={"explore": 1.0}), releases[0]) as one:
            ready(one)
            orders = {tuple(ranked(one, user_id="u")) for _ in range(5)}
        assert len(orders) > 1
        collect(data, store)
    for row in LogFiles.of(data).read_served().to_pylist():
        assert tuple(row["item_ids"]) in orders
        assert set(row["propensity"]) <= {1 / 4, 1 / 2, 3 / 4}


def test_once_lists_are_collected_the_simulators_truth_is_left_aside(
    client: httpx.Client, store: BulkStore, data: Path
) -> None:
    """It knows the lists it made and no others, so nobody could say how good an order of these is."""
    pq.write_table(pa.table({"request_id": ["r"], "item_id": ["red-01"], "utility": [0.5]}), data / "truth.parquet")
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    truth = load_dataset(data).truth
    assert truth
    assert truth.of(["r"]) == {("r", "red-01"): 0.5}
    ranked(client, user_id="u", limit=1)
    waiting(store, 1)
    collect(data, store)
    assert load_dataset(data).truth is None
