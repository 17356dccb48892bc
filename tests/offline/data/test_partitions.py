"""A log in files: the same arrays however it is cut into them, a span in memory at a time, wherever the files are."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history import Histories
from features.log import KINDS, Events
from offline.data import partitions
from offline.data.append_only import DUPLICATE_WINDOW_US, AppendOnlyArrays, Deduplicator, IdEncoder, release_pages
from offline.data.dataset import load_dataset
from offline.data.log import LogFiles, user_histories
from offline.data.partitions import DAY_US, Partitions, Storage, day_name, day_of, split_by_day, to_microseconds
from offline.data.schema import EVENTS, EVENTS_FORM, EVENTS_SCHEMA
from offline.runtime.errors import DataError
from tests.offline.data.test_dataset import items
from tests.worlds import START, logs, make_events

ARRAYS = ("at", "user", "item", "kind", "request", "position", "value", "session", "device")


def table(rows: list[dict[str, Any]]) -> pa.Table:
    """Events, each with an id of its own and at Unix time 0, of a user u and the item A, where nothing else is said."""
    usual = {"event": "click", "user_id": "u", "item_id": "A", "timestamp": 0}
    return pa.Table.from_pylist([{"event_id": f"e{n}", **usual, **row} for n, row in enumerate(rows)], EVENTS_SCHEMA)


rows = st.fixed_dictionaries(
    {
        "event": st.sampled_from(KINDS),
        "user_id": st.sampled_from("uvw"),
        "item_id": st.sampled_from(["A", "B", "gone"]),
        "timestamp": st.integers(0, 40).map(lambda k: k * DAY_US // 8),
        "request_id": st.sampled_from([None, "r1", "r2"]),
        "position": st.sampled_from([None, 0, 3]),
        "value": st.sampled_from([None, 1.5]),
        "session_id": st.sampled_from([None, "s1", "s2"]),
        "device": st.sampled_from([None, "mobile"]),
    }
)


def in_days(directory: Path, log: pa.Table, parts: int) -> Path:
    """The log as day partitions, rows dealt out to several files a day."""
    storage = Storage.of(directory)
    for part in range(parts):
        some = log.take(pa.array(range(part, len(log), parts), pa.int64()))
        for day, of_day in split_by_day(some, "timestamp"):
            storage.write_table(day_name(EVENTS, day, f"{part}.parquet"), of_day)
    return directory


@settings(max_examples=25, deadline=None)
@given(st.lists(rows, min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 9), st.randoms())
def test_however_a_log_is_cut_into_files_and_spans_the_arrays_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, log: list[dict[str, Any]], parts: int, span: int, random: Any
) -> None:
    """One file; days in several parts, shuffled; and both, where each event stands twice and counts once."""
    tmp_path = tmp_path_factory.mktemp("log")
    whole = table(log)
    order = list(range(len(log)))
    random.shuffle(order)
    for name in ("one", "days", "both"):
        (tmp_path / name).mkdir()
        pq.write_table(items(), tmp_path / name / "items.parquet")
    for name in ("one", "both"):
        pq.write_table(whole, tmp_path / name / "events.parquet", row_group_size=5)
    for name in ("days", "both"):
        in_days(tmp_path / name, whole.take(pa.array(order)), parts)
    one = load_dataset(tmp_path / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partitions.spans, "__defaults__", (*Partitions.spans.__defaults__[:-1], span))
        others = [load_dataset(tmp_path / name) for name in ("one", "days", "both")]
    for other in others:
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(other.events, name), getattr(one.events, name), name)
        assert list(other.event_id) == list(one.event_id)
        assert other.events.user_ids == one.events.user_ids
        assert list(other.events.request_ids) == list(one.events.request_ids)


def test_a_long_log_is_read_a_span_at_a_time(tmp_path: Path) -> None:
    """1,000 rows evenly over ten days, 100 rows asked for: spans of about a hundred, none of twice that."""
    log = table([{"timestamp": n * DAY_US // 100} for n in range(1000)])
    files = in_days(tmp_path, log, 2)
    found = list(LogFiles.of(files).events.spans(["event_id", "timestamp"], rows=100))
    assert sum(map(len, found)) == 1000
    assert max(map(len, found)) < 200
    first_last = [
        (int(to_microseconds(t["timestamp"]).min()), int(to_microseconds(t["timestamp"]).max())) for t in found
    ]
    assert all(a[1] < b[0] for a, b in pairwise(first_last)), "one after the other in time"


def test_rows_of_one_moment_are_of_one_span(tmp_path: Path) -> None:
    in_days(tmp_path, table([{"timestamp": 7}] * 50), 3)
    (only,) = LogFiles.of(tmp_path).events.spans(["timestamp"], rows=10)
    assert len(only) == 50


def test_a_part_of_the_time_is_read_from_the_files_that_can_hold_it(tmp_path: Path) -> None:
    """Bounds are from the begin, inclusive, to the end, exclusive; later days' files change no checksum of earlier."""
    in_days(tmp_path, table([{"timestamp": day * DAY_US} for day in range(5)]), 1)
    log = LogFiles.of(tmp_path)
    found = pa.concat_tables(log.events.spans(["event_id", "timestamp"], DAY_US, 3 * DAY_US))
    assert found["event_id"].to_pylist() == ["e1", "e2"]
    assert [day_of(name) for _, name in log.events.files(DAY_US, 3 * DAY_US)] == [1, 2]
    until = {"until": 3 * 86400.0}
    before = LogFiles.of(tmp_path, **until).checksums()
    in_days(tmp_path, table([{"timestamp": 3 * DAY_US}]), 2)
    assert LogFiles.of(tmp_path, **until).checksums() == before
    in_days(tmp_path, table([{"event_id": "late", "timestamp": DAY_US}]), 1)
    assert LogFiles.of(tmp_path, **until).checksums() != before, "what comes late is seen"
    pq.write_table(items(), tmp_path / "items.parquet")
    cut = load_dataset(tmp_path, log=LogFiles.of(tmp_path, since=86400.0, **until))
    assert list(cut.event_id) == ["late", "e2"]
    with pytest.raises(DataError, match="no event lies in the time asked for; the log is from 1970-01-01T"):
        load_dataset(tmp_path, log=LogFiles.of(tmp_path, since=86400.0 * 99))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"event": "wishlist"}, "column 'event': 'wishlist' is not one of impression, view, click"),
        ({"user_id": None}, "column 'user_id': is null, which it may not be"),
        ({"timestamp": None}, "column 'timestamp': is null, which it may not be"),
    ],
)
def test_a_cell_that_cannot_be_is_named_with_file_and_row(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    pq.write_table(table([{"timestamp": 3}, {"timestamp": 4}, wrong]), tmp_path / "events.parquet", row_group_size=2)
    with pytest.raises(DataError) as refused:
        list(LogFiles.of(tmp_path).event_spans())
    assert str(refused.value).startswith(f"{tmp_path / 'events.parquet'}, row 2, {says}")


def test_a_folder_that_names_no_day_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"events/date=today/a\.parquet: the folder names no day: call it date="):
        day_of("events/date=today/a.parquet")
    assert day_of("events/date=1970-02-01/a.parquet") == 31


def test_an_address_of_no_known_kind_is_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"gopher://x/y: .*; give a directory, or a URI as s3://bucket/shop"):
        Storage.of("gopher://x/y")


def test_the_same_id_for_another_event_is_another_event(tmp_path: Path) -> None:
    """So a check can say that ids are made up again, and nothing is lost in silence. Told twice, an event is one."""
    (tmp_path / "items.parquet").touch()
    pq.write_table(items(), tmp_path / "items.parquet")
    told = [{"event_id": "e", "timestamp": 5}, {"event_id": "e", "timestamp": 6}, {"event_id": "e", "user_id": "v"}]
    in_days(tmp_path, table(told), 1)
    found = load_dataset(tmp_path)
    assert list(found.event_id) == ["e", "e"]
    assert sorted(found.events.user_ids) == ["u", "v"]
    assert found.events.at.tolist() == [0.0, 5e-6], "the earliest stays"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * DUPLICATE_WINDOW_US)), max_size=20), st.integers(0, 20))
def test_what_is_told_again_within_two_days_counts_once(told: list[tuple[int, int]], cut: int) -> None:
    """In one call or in two: a key counts again where it was last counted more than two days before."""
    told = sorted(told, key=lambda pair: pair[1])
    key, at = np.array([k for k, _ in told], np.uint64), np.array([t for _, t in told], np.int64)
    once = Deduplicator()
    found = np.concatenate([once.first(key[:cut], at[:cut]), once.first(key[cut:], at[cut:])])
    counted: dict[int, int] = {}
    for n, (k, t) in enumerate(told):
        if found[n]:
            counted[k] = t
        else:
            assert k in counted
    assert set(counted) == {k for k, _ in told}


@given(st.lists(st.lists(st.sampled_from([None, "", "a", "b", "ü", "\x00"]), max_size=6), max_size=6))
def test_ids_are_numbered_as_they_first_appear(spans: list[list[str | None]]) -> None:
    numbers, seen = IdEncoder(), []
    for n, ids in enumerate(spans):
        code, fresh = numbers.of(pa.array(ids, pa.string()), n)
        seen += list(fresh)
        assert [seen[c] if c >= 0 else None for c in code.tolist()] == ids
    assert len(seen) == len(set(seen))


def test_arrays_that_grow_are_read_as_they_were_given(tmp_path: Path) -> None:
    with AppendOnlyArrays(tmp_path, {"x": np.int32, "none": np.float64}) as grown:
        grown.append(x=np.arange(3), none=np.empty(0))
        grown.append(x=np.arange(3, 5000))
        held = grown.mapped()
    assert list(tmp_path.iterdir()) == [], "a process that is killed leaves nothing"
    assert held["x"].tolist() == list(range(5000))
    release_pages(*held.values())
    assert held["x"].tolist() == list(range(5000)), "what left memory is read again"
    assert len(held["none"]) == 0


def test_what_is_written_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """An error half-way leaves the file that was there."""
    storage, log = Storage.of(tmp_path), table([{}, {}])
    storage.write_table("events/date=1970-01-01/a.parquet", log)

    def cut_short() -> Any:
        yield log
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        storage.write_tables("events/date=1970-01-01/a.parquet", log.schema, cut_short())
    assert len(storage.table("events/date=1970-01-01/a.parquet")) == 2
    assert storage.parts("events") == ["events/date=1970-01-01/a.parquet"], "what is half written has no name"


def test_a_day_is_that_of_the_moment_in_utc() -> None:
    late = int(datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC).timestamp() * 1e6)
    found = list(
        split_by_day(table([{"timestamp": late}, {"timestamp": late + 1}, {"timestamp": -1}]), EVENTS_FORM.moment)
    )
    assert [(day_name("events", day, "x"), len(part)) for day, part in found] == [
        ("events/date=1969-12-31/x", 1),
        ("events/date=2026-01-31/x", 1),
        ("events/date=2026-02-01/x", 1),
    ]
    assert partitions.DAY_US == 86_400 * 10**6


@settings(max_examples=40, deadline=None)
@given(logs(), st.integers(1, 9), st.integers(0, 61))
def test_users_lists_from_files_are_those_from_memory(
    tmp_path_factory: pytest.TempPathFactory, log: list[Any], at_once: int, sixth: int
) -> None:
    """Sorted by user a few events at a time, and read at any moment."""
    events, at = make_events(log, 3), START + sixth * 86400 / 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Events.parts, "__defaults__", (at_once,))
        found = user_histories(events, tmp_path_factory.getbasetemp())
    expected = Histories.of(events)
    for user in range(3):
        for a, b in zip(found.read(user, at), expected.read(user, at), strict=True):
            np.testing.assert_array_equal(a, b)
    for cap in (1, 3, 100):
        a, b = (h.engagements.newest_of_all(at, cap) for h in (found, expected))
        np.testing.assert_array_equal(a, b)
