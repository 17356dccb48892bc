"""Log files: the arrays do not depend on the split into files, and only one span is in memory at a time."""

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
from features.retention import Retention
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
    """Events from dicts. By default each is a click of user u on item A at Unix time 0, with a unique ID."""
    defaults = {"event": "click", "user_id": "u", "item_id": "A", "timestamp": 0}
    return pa.Table.from_pylist([{"event_id": f"e{n}", **defaults, **row} for n, row in enumerate(rows)], EVENTS_SCHEMA)


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


def write_days(directory: Path, log: pa.Table, parts: int) -> Path:
    """Write a log as day partitions, with the rows spread over several files per day."""
    storage = Storage.of(directory)
    for part in range(parts):
        some = log.take(pa.array(range(part, len(log), parts), pa.int64()))
        for day, of_day in split_by_day(some, "timestamp"):
            storage.write_table(day_name(EVENTS, day, f"{part}.parquet"), of_day)
    return directory


@settings(max_examples=25, deadline=None)
@given(st.lists(rows, min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 9), st.randoms())
def test_the_arrays_do_not_depend_on_the_split_into_files_and_spans(
    tmp_path_factory: pytest.TempPathFactory, log: list[dict[str, Any]], parts: int, span: int, random: Any
) -> None:
    """A single file; several shuffled files per day; and both together, where every event is a duplicate."""
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
        write_days(tmp_path / name, whole.take(pa.array(order)), parts)
    one = load_dataset(tmp_path / "one")
    defaults = Partitions.spans.__defaults__
    assert defaults is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Partitions.spans, "__defaults__", (*defaults[:-1], span))
        others = [load_dataset(tmp_path / name) for name in ("one", "days", "both")]
    for other in others:
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(other.events, name), getattr(one.events, name), name)
        assert list(other.event_id) == list(one.event_id)
        assert other.events.user_ids == one.events.user_ids
        assert list(other.events.request_ids) == list(one.events.request_ids)


def test_a_long_log_is_read_in_spans(tmp_path: Path) -> None:
    """1,000 rows evenly spread over ten days, in spans of about 100 rows: none has 200 or more."""
    log = table([{"timestamp": n * DAY_US // 100} for n in range(1000)])
    files = write_days(tmp_path, log, 2)
    spans = list(LogFiles.of(files).events.spans(["event_id", "timestamp"], rows=100))
    assert sum(map(len, spans)) == 1000
    assert max(map(len, spans)) < 200
    first_last = [
        (int(to_microseconds(t["timestamp"]).min()), int(to_microseconds(t["timestamp"]).max())) for t in spans
    ]
    assert all(a[1] < b[0] for a, b in pairwise(first_last)), "spans are in time order and do not overlap"


def test_rows_with_equal_times_are_in_one_span(tmp_path: Path) -> None:
    write_days(tmp_path, table([{"timestamp": 7}] * 50), 3)
    (only,) = LogFiles.of(tmp_path).events.spans(["timestamp"], rows=10)
    assert len(only) == 50


def test_a_time_range_is_read_only_from_the_files_that_may_have_it(tmp_path: Path) -> None:
    """The end is exclusive. Files of later days do not change the checksums of an earlier range."""
    write_days(tmp_path, table([{"timestamp": day * DAY_US} for day in range(5)]), 1)
    log = LogFiles.of(tmp_path)
    found = pa.concat_tables(log.events.spans(["event_id", "timestamp"], DAY_US, 3 * DAY_US))
    assert found["event_id"].to_pylist() == ["e1", "e2"]
    assert [day_of(name) for _, name in log.events.files(DAY_US, 3 * DAY_US)] == [1, 2]
    until = 3 * 86400.0
    before = LogFiles.of(tmp_path, until=until).checksums()
    write_days(tmp_path, table([{"timestamp": 3 * DAY_US}]), 2)
    assert LogFiles.of(tmp_path, until=until).checksums() == before
    write_days(tmp_path, table([{"event_id": "late", "timestamp": DAY_US}]), 1)
    assert LogFiles.of(tmp_path, until=until).checksums() != before, "a late event changes the checksums"
    pq.write_table(items(), tmp_path / "items.parquet")
    cut = load_dataset(tmp_path, log=LogFiles.of(tmp_path, since=86400.0, until=until))
    assert list(cut.event_id) == ["late", "e2"]
    with pytest.raises(DataError, match="no event is in the requested time range; the log is from 1970-01-01T"):
        load_dataset(tmp_path, log=LogFiles.of(tmp_path, since=86400.0 * 99))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"event": "wishlist"}, "column 'event': 'wishlist' is not one of impression, view, click"),
        ({"user_id": None}, "column 'user_id': is null, but a value is required"),
        ({"timestamp": None}, "column 'timestamp': is null, but a value is required"),
    ],
)
def test_an_invalid_cell_is_an_error_with_file_and_row(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    pq.write_table(table([{"timestamp": 3}, {"timestamp": 4}, wrong]), tmp_path / "events.parquet", row_group_size=2)
    with pytest.raises(DataError) as error:
        list(LogFiles.of(tmp_path).event_spans())
    assert str(error.value).startswith(f"{tmp_path / 'events.parquet'}, row 2, {message}")


def test_a_folder_name_that_is_not_a_date_is_an_error() -> None:
    with pytest.raises(
        DataError, match=r"events/date=today/a\.parquet: the folder name is not a date; rename it like date="
    ):
        day_of("events/date=today/a.parquet")
    assert day_of("events/date=1970-02-01/a.parquet") == 31


def test_a_uri_of_an_unknown_file_system_is_an_error() -> None:
    with pytest.raises(DataError, match=r"gopher://x/y: .*; give a directory, or a URI such as s3://bucket/shop"):
        Storage.of("gopher://x/y")


def test_different_events_with_the_same_id_are_all_kept(tmp_path: Path) -> None:
    """So that a data check can report reused IDs. An event that is logged twice counts once."""
    (tmp_path / "items.parquet").touch()
    pq.write_table(items(), tmp_path / "items.parquet")
    log: list[dict[str, Any]] = [
        {"event_id": "e", "timestamp": 5},
        {"event_id": "e", "timestamp": 6},
        {"event_id": "e", "user_id": "v"},
    ]
    write_days(tmp_path, table(log), 1)
    found = load_dataset(tmp_path)
    assert list(found.event_id) == ["e", "e"]
    assert sorted(found.events.user_ids) == ["u", "v"]
    assert found.events.at.tolist() == [0.0, 5e-6], "the earliest duplicate is kept"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2 * DUPLICATE_WINDOW_US)), max_size=20), st.integers(0, 20))
def test_duplicates_within_two_days_are_dropped(pairs: list[tuple[int, int]], cut: int) -> None:
    """Over two calls: the first occurrence of every key is kept."""
    pairs = sorted(pairs, key=lambda pair: pair[1])
    key, at = np.array([k for k, _ in pairs], np.uint64), np.array([t for _, t in pairs], np.int64)
    deduplicator = Deduplicator()
    kept = np.concatenate([deduplicator.is_first(key[:cut], at[:cut]), deduplicator.is_first(key[cut:], at[cut:])])
    kept_at: dict[int, int] = {}
    for n, (k, t) in enumerate(pairs):
        if kept[n]:
            kept_at[k] = t
        else:
            assert k in kept_at
    assert set(kept_at) == {k for k, _ in pairs}


@given(st.lists(st.lists(st.sampled_from([None, "", "a", "b", "ü", "\x00"]), max_size=6), max_size=6))
def test_ids_are_numbered_by_first_appearance(spans: list[list[str | None]]) -> None:
    encoder, seen = IdEncoder(), []
    for n, ids in enumerate(spans):
        code, new = encoder.encode(pa.array(ids, pa.string()), n)
        seen += list(new)
        assert [seen[c] if c >= 0 else None for c in code.tolist()] == ids
    assert len(seen) == len(set(seen))


def test_append_only_arrays_return_what_was_appended(tmp_path: Path) -> None:
    with AppendOnlyArrays(tmp_path, {"x": np.int32, "none": np.float64}) as arrays:
        arrays.append(x=np.arange(3), none=np.empty(0))
        arrays.append(x=np.arange(3, 5000))
        mapped = arrays.mapped()
    assert list(tmp_path.iterdir()) == [], "the files have no names, so a killed process leaves none behind"
    assert mapped["x"].tolist() == list(range(5000))
    release_pages(*mapped.values())
    assert mapped["x"].tolist() == list(range(5000)), "released pages are read again"
    assert len(mapped["none"]) == 0


def test_writes_are_atomic(tmp_path: Path) -> None:
    """After an error during a write, the previous file is unchanged."""
    storage, log = Storage.of(tmp_path), table([{}, {}])
    storage.write_table("events/date=1970-01-01/a.parquet", log)

    def failing_tables() -> Any:
        yield log
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        storage.write_tables("events/date=1970-01-01/a.parquet", log.schema, failing_tables())
    assert len(storage.table("events/date=1970-01-01/a.parquet")) == 2
    assert storage.parts("events") == ["events/date=1970-01-01/a.parquet"], "the incomplete file is not listed"


def test_days_are_in_utc() -> None:
    late = int(datetime(2026, 1, 31, 23, 59, 59, 999_999, UTC).timestamp() * 1e6)
    days = list(
        split_by_day(table([{"timestamp": late}, {"timestamp": late + 1}, {"timestamp": -1}]), EVENTS_FORM.moment)
    )
    assert [(day_name("events", day, "x"), len(part)) for day, part in days] == [
        ("events/date=1969-12-31/x", 1),
        ("events/date=2026-01-31/x", 1),
        ("events/date=2026-02-01/x", 1),
    ]
    assert partitions.DAY_US == 86_400 * 10**6


RETENTION = Retention(user_s=2 * 86400, anonymous_s=86400, anonymous=("u1",))


@settings(max_examples=40, deadline=None)
@given(logs(), st.integers(1, 9), st.integers(0, 61))
def test_histories_in_files_equal_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, log: list[Any], part_rows: int, sixth: int
) -> None:
    """Events are sorted by user in parts of a few events, and read as of any time."""
    events, at = make_events(log, 3), START + sixth * 86400 / 6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Events.parts, "__defaults__", (part_rows,))
        histories = user_histories(events, tmp_path_factory.getbasetemp(), RETENTION)
    expected = Histories.of(events, RETENTION)
    for user in range(3):
        for a, b in zip(histories.read(user, at), expected.read(user, at), strict=True):
            np.testing.assert_array_equal(a, b)
    for cap in (1, 3, 100):
        a, b = (h.engagements.newest_of_all(at, cap) for h in (histories, expected))
        np.testing.assert_array_equal(a, b)
