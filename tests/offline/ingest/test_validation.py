"""Every kind of bad row is refused for its own reason, with a sentence that says where, what and what to do."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.log import KINDS
from offline.config.imports import EventSource, ItemSource
from offline.ingest.importer import DataError, ImportConfig, import_data, validate
from offline.ingest.quarantine import REASONS, describe_refusal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HEADER = "event,user_id,item_id,timestamp,request_id,position,value,price"
GOOD = "click,u1,i1,2026-05-01T10:00:00Z,,,,"


def of_csv(folder: Path, *lines: str | bytes, header: str = HEADER, **source: Any) -> ImportConfig:
    folder.mkdir(exist_ok=True)
    raw = [header, *lines]
    (folder / "events.csv").write_bytes(b"\n".join(r.encode() if isinstance(r, str) else r for r in raw) + b"\n")
    return ImportConfig(events=(EventSource(path=folder / "events.csv", **source),), unknown_items="keep")


def of_jsonl(folder: Path, *rows: Any, **source: Any) -> ImportConfig:
    text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
    (folder / "events.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    return ImportConfig(events=(EventSource(path=folder / "events.jsonl", **source),), unknown_items="keep")


def stamps(config: ImportConfig, folder: Path) -> list[str]:
    import_data(config, folder / "out", NOW)
    return [t.isoformat() for t in pq.read_table(folder / "out/events.parquet")["timestamp"].to_pylist()]


LONG = "u" * 257
CASES = {
    "missing_user": (
        "click,,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: the row names no user (missing_user)."
        " Log the shopper's id, or an anonymous visitor's, with every event.",
    ),
    "missing_item": (
        "click,u1,null,2026-05-01,,,,",
        "events.csv, row 3, column item_id: 'null' names no item (missing_item). Log the item's id with every row.",
    ),
    "id_too_long": (
        f"click,{LONG},i1,2026-05-01,,,,",
        f"events.csv, row 3, column user_id: '{'u' * 200}' is longer than 256 bytes (id_too_long)."
        " Map a column that holds ids; shorten those that are longer.",
    ),
    "control_character": (
        "click,u\x001,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: 'u\\x001' holds a control character (control_character)."
        " Remove control characters (tab, newline, NUL) from ids at the source.",
    ),
    "bad_encoding": (
        b"click,caf\xe9,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: 'caf\\\\xe9' is not UTF-8 (bad_encoding)."
        " Set `encoding` of this source (often latin-1 or cp1252), or export UTF-8.",
    ),
    "missing_timestamp": (
        "click,u1,i1,,,,,",
        "events.csv, row 3, column timestamp: the row gives no time (missing_timestamp)."
        " Log the moment of every event; set `order_column` where only the order is known.",
    ),
    "bad_timestamp": (
        "click,u1,i1,yesterday,,,,",
        "events.csv, row 3, column timestamp: 'yesterday' is no moment (bad_timestamp)."
        " Use ISO 8601 or Unix time, or set `timestamp_unit` or `timestamp_format` of this source.",
    ),
    "timestamp_too_old": (
        "click,u1,i1,0,,,,",
        "events.csv, row 3, column timestamp: '0' lies before `earliest` (timestamp_too_old)."
        " Check `timestamp_unit` of this source; lower `earliest` if the event is that old.",
    ),
    "future_event": (
        "click,u1,i1,2026-06-01T00:10:01Z,,,,",
        "events.csv, row 3, column timestamp: '2026-06-01T00:10:01Z' lies in the future (future_event)."
        " Check the clock, `timezone` and `timestamp_unit` of this source, then import it again.",
    ),
    "missing_event": (
        ",u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: the row names no event kind (missing_event)."
        " Fill the column, or set `event` where all rows are of one kind.",
    ),
    "unknown_event": (
        "stare,u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: 'stare' is no known event kind (unknown_event)."
        " Use impression, view, click, cart, purchase or rating or a GA4 name, or map it in `event_values`.",
    ),
    "dropped_event": (
        "refund,u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: 'refund' is dropped by `event_values` (dropped_event)."
        " Nothing to do, unless you want this kind of event.",
    ),
    "not_a_number": (
        'purchase,u1,i1,2026-05-01,,,"6,95",',
        "events.csv, row 3, column value: '6,95' is no number (not_a_number)."
        " Write plain decimals (6.95): no currency, no thousands separator.",
    ),
    "not_finite": (
        "purchase,u1,i1,2026-05-01,,,-inf,",
        "events.csv, row 3, column value: '-inf' is infinite (not_finite)."
        " Write a finite number, or leave the cell empty for missing.",
    ),
    "negative_value": (
        "purchase,u1,i1,2026-05-01,,,-2,",
        "events.csv, row 3, column value: '-2' is a negative amount (negative_value)."
        " Returns and corrections are no purchases: map them to `drop`, or correct the sign.",
    ),
    "negative_price": (
        "purchase,u1,i1,2026-05-01,,,2,-0.5",
        "events.csv, row 3, column price: '-0.5' is a negative price (negative_price)."
        " Correct the sign, or leave the cell empty for missing.",
    ),
    "bad_position": (
        "impression,u1,i1,2026-05-01,r1,-1,,",
        "events.csv, row 3, column position: '-1' is no place in a list (bad_position)."
        " Use whole numbers from `position_base` on, at most 32767, or leave it empty.",
    ),
    "wrong_number_of_columns": (
        "click,u1,i1",
        "events.csv, row 3: 'click,u1,i1' does not have the header's number of columns (wrong_number_of_columns)."
        " Quote cells that hold the delimiter, or set `delimiter`.",
    ),
    "duplicate_event": (
        GOOD,
        "events.csv, row 3, column event_id: '{id}' was there before (duplicate_event)."
        " Nothing to do: the first is kept. Retries should keep `event_id`.",
    ),
}


@pytest.mark.parametrize("reason", CASES)
def test_a_bad_row_of_a_csv_is_refused_for_its_reason_in_these_words(tmp_path: Path, reason: str) -> None:
    line, expected = CASES[reason]
    config = of_csv(tmp_path, GOOD, line, event_values={"refund": "drop"})
    summary = import_data(config, tmp_path / "out", NOW)
    (source,) = summary.sources
    assert (source.read, source.accepted, dict(source.quarantined)) == (2, 1, {reason: 1})
    kept = pq.read_table(tmp_path / "out/events.parquet")["event_id"][0].as_py()
    assert summary.examples == (expected.replace("{id}", kept),)
    (row,) = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert (row["file"], row["row"], row["reason"], row["remedy"]) == ("events.csv", 3, reason, REASONS[reason].remedy)


def test_a_device_of_64_characters_is_taken_and_one_of_65_refused_with_the_remedy(tmp_path: Path) -> None:
    header = "event,user_id,item_id,timestamp,device"
    lines = [f"click,u1,i1,2026-05-01,{'é' * 64}", f"click,u1,i2,2026-05-01,{'d' * 65}"]
    summary = validate(of_csv(tmp_path, *lines, header=header), NOW)
    assert summary.sources[0].accepted == 1
    assert summary.examples == (
        f"events.csv, row 3, column device: '{'d' * 65}' is longer than 64 characters (device_too_long)."
        " Map the kind of device (mobile, tablet, desktop, app), not the user agent.",
    )


JSON_CASES = {
    "bad_json": ['{"event": "click", "value": NaN}', "{", "\x00", "[" * 3000, '{"value": 1e999}', '{"a": "\\ud800"}'],
    "not_an_object": ["[1]", '"click"', "null"],
    "bad_encoding": ['{"user_id": "caf\udce9"}'],
    "wrong_type": [
        {"event": "click", "user_id": ["u1"], "item_id": "i1", "timestamp": 1.7e9},
        {"event": "click", "user_id": {"id": "u1"}, "item_id": "i1", "timestamp": 1.7e9},
        {"event": "click", "user_id": "u1", "item_id": "i1", "timestamp": 1.7e9, "device": {"category": "mobile"}},
    ],
    "device_too_long": [
        {"event": "click", "user_id": "u1", "item_id": "i1", "timestamp": 1.7e9, "device": "\u00e9" * 65}
    ],
    "control_character": [{"event": "click", "user_id": "u1", "item_id": "i1", "timestamp": 1.7e9, "device": "a\tb"}],
    "id_too_long": [{"event": "click", "user_id": 10**300, "item_id": "i1", "timestamp": 1.7e9}],
}


@pytest.mark.parametrize("reason", JSON_CASES)
def test_a_bad_line_of_json_is_refused_with_its_line_number(tmp_path: Path, reason: str) -> None:
    good = {"event": "click", "user_id": "u1", "item_id": "i1", "timestamp": 1.7e9}
    config = of_jsonl(tmp_path, good, *JSON_CASES[reason])
    (source,) = import_data(config, tmp_path / "out", NOW).sources
    n = len(JSON_CASES[reason])
    assert (source.read, source.accepted, dict(source.quarantined)) == (n + 1, 1, {reason: n})
    refused = pq.read_table(tmp_path / "out/quarantine.parquet")
    assert refused["row"].to_pylist() == list(range(2, n + 2))


def test_every_reason_has_a_clause_and_a_remedy_that_is_a_sentence() -> None:
    for code, reason in REASONS.items():
        assert code == code.lower()
        assert reason.remedy.endswith("."), code
        assert describe_refusal("f.csv", 7, None, None, code).startswith("f.csv, row 7: the row ")


TIMES = {
    "1700000000": "2023-11-14T22:13:20+00:00",
    "1700000000.5": "2023-11-14T22:13:20.500000+00:00",
    "1700000000123": "2023-11-14T22:13:20.123000+00:00",
    "1700000000123456": "2023-11-14T22:13:20.123456+00:00",
    "1700000000123456789": "2023-11-14T22:13:20.123457+00:00",
    "2023-11-14T22:13:20Z": "2023-11-14T22:13:20+00:00",
    "2023-11-14T22:13:20.123456+05:30": "2023-11-14T16:43:20.123456+00:00",
    "2023-11-14T22:13-0800": "2023-11-15T06:13:00+00:00",
    "20231114T221320Z": "2023-11-14T22:13:20+00:00",
    "2023-11-14 22:13:20": "2023-11-14T21:13:20+00:00",  # Paris is an hour ahead of UTC in winter
    "2023-07-14": "2023-07-13T22:00:00+00:00",  # and two in summer
    "2023-10-29 02:30": "2023-10-29T01:30:00+00:00",  # this half hour is there twice: the second is read
    "2023-03-26 02:30": "2023-03-26T01:00:00+00:00",  # and this one never: the clock goes on at 3
}


@pytest.mark.parametrize("written", TIMES)
def test_a_moment_is_read_in_any_common_form_and_zone(tmp_path: Path, written: str) -> None:
    config = of_csv(tmp_path, f"click,u1,i1,{written},,,,", timezone="Europe/Paris")
    assert stamps(config, tmp_path) == [TIMES[written]]


def test_all_forms_of_a_moment_may_stand_in_one_column(tmp_path: Path) -> None:
    lines = [f"click,u{n},i1,{written},,,," for n, written in enumerate(TIMES)]
    assert stamps(of_csv(tmp_path, *lines, timezone="Europe/Paris"), tmp_path) == sorted(TIMES.values())


def test_a_declared_unit_or_format_is_not_guessed_again(tmp_path: Path) -> None:
    seconds_as_us = of_csv(tmp_path, GOOD, "click,u2,i1,1700000000,,,,", timestamp_unit="us")
    assert validate(seconds_as_us, NOW).table()[2] == ("events.csv", "timestamp_too_old", 1)
    american = of_csv(tmp_path, "click,u1,i1,12/1/2010 8:26,,,,", timestamp_format="%m/%d/%Y %H:%M")
    assert stamps(american, tmp_path) == ["2010-12-01T08:26:00+00:00"]
    compact = of_csv(tmp_path, "click,u1,i1,20101201,,,,", timestamp_unit="iso")
    assert stamps(compact, tmp_path) == ["2010-12-01T00:00:00+00:00"]


ABSURD = (
    "99999-01-01",
    "9999-12-31T23:59:59Z",
    "1e400",
    "-1e18",
    "1e308",
    "0001-01-01",
    "∞",
    "2023-13-01",
    "2023-02-30",
    "24:00",
    "Z",
    "-",
    "2023-11-14T22:13:20+99:99",
)


@pytest.mark.parametrize("written", ABSURD)
def test_an_absurd_moment_is_refused_and_breaks_nothing(tmp_path: Path, written: str) -> None:
    (source,) = validate(of_csv(tmp_path, GOOD, f"click,u1,i1,{written},,,,"), NOW).sources
    assert source.accepted == 1
    assert set(source.quarantined) <= {"bad_timestamp", "future_event", "timestamp_too_old"}


def parquet_times(folder: Path, times: pa.Array, **source: Any) -> list[str]:
    n = len(times)
    events = {"event": ["click"] * n, "user_id": [f"u{i}" for i in range(n)], "item_id": ["i1"] * n, "timestamp": times}
    pq.write_table(pa.table(events), folder / "events.parquet")
    config = ImportConfig(events=(EventSource(path=folder / "events.parquet", **source),), unknown_items="keep")
    return stamps(config, folder)


def test_timestamps_of_parquet_are_read_in_every_type(tmp_path: Path) -> None:
    at = datetime(2023, 7, 14, 12)
    for kind in (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")):
        assert parquet_times(tmp_path, pa.array([at], kind)) == ["2023-07-14T12:00:00+00:00"]
    in_paris = parquet_times(tmp_path, pa.array([at], pa.timestamp("us")), timezone="Europe/Paris")
    assert in_paris == ["2023-07-14T10:00:00+00:00"]
    zoned = parquet_times(tmp_path, pa.array([at], pa.timestamp("us", "UTC")), timezone="Europe/Paris")
    assert zoned == ["2023-07-14T12:00:00+00:00"]
    assert parquet_times(tmp_path, pa.array([date(2023, 7, 14)])) == ["2023-07-14T00:00:00+00:00"]


def test_an_odd_type_where_an_id_belongs_is_refused_row_by_row(tmp_path: Path) -> None:
    for ids in (
        pa.array([True, False]),
        pa.array([{"a": 1}, None]),
        pa.array([b"0123", b"4567"], pa.binary(4)),
        pa.array([["a"], ["b"]]),
        pa.array([1.5, math.nan]),
    ):
        table = pa.table({"event": ["click"] * 2, "user_id": ids, "item_id": ["i", "i"], "timestamp": [1.7e9, 1.7e9]})
        pq.write_table(table, tmp_path / "events.parquet")
        config = ImportConfig(events=(EventSource(path=tmp_path / "events.parquet"),), unknown_items="keep")
        (source,) = validate(config, NOW).sources
        assert source.read == 2 == source.accepted + sum(source.quarantined.values())
        assert set(source.quarantined) <= {"wrong_type", "missing_user"}


def test_whole_numbers_and_dictionaries_are_fine_ids(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array(["u", "u"]).dictionary_encode(),
            "item_id": pa.array([7.0, 8.0]),
            "timestamp": pa.array([1_700_000_000, 1_700_000_001]),
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    source = EventSource(path=tmp_path / "events.parquet", event="view")
    import_data(ImportConfig(events=(source,), unknown_items="keep"), tmp_path / "out", NOW)
    assert pq.read_table(tmp_path / "out/events.parquet")["item_id"].to_pylist() == ["7", "8"]


def test_bytes_that_are_not_utf8_are_read_where_the_encoding_is_named(tmp_path: Path) -> None:
    config = of_csv(tmp_path, "click,café,i1,2026-05-01,,,,".encode("latin-1"), encoding="latin-1")
    import_data(config, tmp_path / "out", NOW)
    assert pq.read_table(tmp_path / "out/events.parquet")["user_id"].to_pylist() == ["café"]


def items_file(folder: Path, *lines: str) -> ImportConfig:
    (folder / "items.csv").write_text("\n".join(["item_id,title,price,weight,ok", *lines]) + "\n")
    (folder / "events.csv").write_text(f"{HEADER}\n{GOOD}\n")
    items = ItemSource(path=folder / "items.csv", product_column="ok")
    return ImportConfig(items=(items,), events=(EventSource(path=folder / "events.csv"),))


ITEM_CASES = {
    "missing_item": (
        ",A,1,1,true",
        "items.csv, row 3, column item_id: the row names no item (missing_item). Log the item's id with every row.",
    ),
    "negative_price": (
        "i2,A,-1,1,true",
        "items.csv, row 3, column price: '-1' is a negative price (negative_price)."
        " Correct the sign, or leave the cell empty for missing.",
    ),
    "not_finite": (
        "i2,A,inf,1,true",
        "items.csv, row 3, column price: 'inf' is infinite (not_finite)."
        " Write a finite number, or leave the cell empty for missing.",
    ),
    "not_a_number": (
        "i2,A,£2,1,true",
        "items.csv, row 3, column price: '£2' is no number (not_a_number)."
        " Write plain decimals (6.95): no currency, no thousands separator.",
    ),
    "duplicate_item": (
        "i1,B,1,1,true",
        "items.csv, row 3, column item_id: 'i1' was there before (duplicate_item)."
        " Nothing to do: the first is kept. Give each item one row.",
    ),
    "not_a_product": (
        "post,P,1,1,false",
        "items.csv, row 3, column item_id: 'post' is no product (not_a_product)."
        " Nothing to do, unless `not_products` or `product_column` is too wide.",
    ),
    "wrong_type": (
        "i2,A,1,1,perhaps",
        "items.csv, row 3, column ok: 'perhaps' has the wrong type (wrong_type)."
        " Use a string, a number or null here; attributes may be string lists.",
    ),
    "text_too_long": (
        f"i2,{'x' * 100_001},1,1,true",
        f"items.csv, row 3, column title: '{'x' * 200}' is longer than 100000 bytes (text_too_long)."
        " Shorten the text, or map another column.",
    ),
}


@pytest.mark.parametrize("reason", ITEM_CASES)
def test_a_bad_item_is_refused_for_its_reason_in_these_words(tmp_path: Path, reason: str) -> None:
    line, expected = ITEM_CASES[reason]
    summary = import_data(items_file(tmp_path, "i1,A,1,2.5,true", line), tmp_path / "out", NOW)
    assert summary.table()[:3] == [("items.csv", "read", 2), ("items.csv", "accepted", 1), ("items.csv", reason, 1)]
    assert summary.examples == (expected,)
    (item,) = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    assert (item["title"], item["price"], item["weight"]) == ("A", 1.0, 2.5)


def test_a_missing_price_is_missing_and_not_zero(tmp_path: Path) -> None:
    import_data(items_file(tmp_path, "i1,,,,", "i2,B,nan,1,"), tmp_path / "out", NOW)
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert items["price"].to_pylist() == [None, None]
    assert items["title"].to_pylist() == ["", "B"]


def test_an_event_of_an_unknown_item_is_refused_or_kept_as_configured(tmp_path: Path) -> None:
    config = items_file(tmp_path, "i9,A,1,1,true")
    assert validate(config, NOW).examples == (
        "events.csv, row 2, column item_id: 'i1' is not in the catalogue (unknown_item)."
        " Add the item, or set `unknown_items: keep` to accept it by its id alone.",
    )
    keep = config.model_copy(update={"unknown_items": "keep"})
    summary = import_data(keep, tmp_path / "out", NOW)
    assert "1 items of the events are described nowhere: kept by their id alone" in summary.notes
    assert pq.read_table(tmp_path / "out/items.parquet")["item_id"].to_pylist() == ["i1", "i9"]


def test_events_of_what_is_no_product_go_with_it(tmp_path: Path) -> None:
    config = of_csv(tmp_path, GOOD, "click,u1,POST,2026-05-01,,,,", "click,u1,POSTER,2026-05-01,,,,")
    summary = validate(config.model_copy(update={"not_products": "POST|FEE"}), NOW)
    assert summary.table()[1:] == [("events.csv", "accepted", 2), ("events.csv", "not_a_product", 1)]


def test_lists_are_checked_row_against_row(tmp_path: Path) -> None:
    config = of_csv(
        tmp_path,
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,0,,",
        "impression,u1,i2,2026-05-01T10:00:02Z,r1,1,,",  # logged late: moved to the time of its list
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,2,,",  # again, further down
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,0,,",  # the very same row
        "impression,u2,i1,2026-05-01T10:00:00Z,r1,0,,",  # somebody else's
        "click,u2,i1,2026-05-01T10:00:09Z,r1,,,",
        "click,u1,i1,2026-05-01T10:00:09Z,r1,,1,",
    )
    summary = import_data(config, tmp_path / "out", NOW)
    assert dict(summary.sources[0].quarantined) == {
        "duplicate_event": 1,
        "item_twice_in_list": 1,
        "list_of_another_user": 2,
    }
    assert summary.notes[0] == "1 impressions were moved to the earliest time of their list"
    assert (
        "events.csv, row 4, column item_id: 'i1' is in the same list twice (item_twice_in_list)."
        " The first place is kept; log a new `request_id` for every list shown." in summary.examples
    )
    assert (
        "events.csv, row 6, column request_id: 'r1' is a list shown to another user (list_of_another_user)."
        " Log a new `request_id` for every list shown, never one shared by users." in summary.examples
    )
    events = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    assert [(e["event"], e["item_id"], e["position"], e["value"]) for e in events] == [
        ("impression", "i1", 0, None),
        ("impression", "i2", 1, None),
        ("click", "i1", None, None),
    ]
    assert {e["timestamp"].second for e in events[:2]} == {0}


def test_of_events_with_one_id_the_first_is_kept_whatever_the_others_say(tmp_path: Path) -> None:
    header = "event_id,event,user_id,item_id,timestamp"
    config = of_csv(
        tmp_path, "e1,click,u1,i1,2026-05-02", "e1,purchase,u2,i2,2026-05-01", ",click,u1,i1,2026-05-02", header=header
    )
    import_data(config, tmp_path / "out", NOW)
    events = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    # The row without an id gets one of its own: it cannot be known to be e1.
    assert [(e["event"], e["user_id"]) for e in events] == [("click", "u1")] * 2


def test_a_purchase_of_two_amounts_is_two_purchases_and_a_rating_may_be_negative(tmp_path: Path) -> None:
    config = of_csv(
        tmp_path, *[f"purchase,u1,i1,2026-05-01,,,{v}," for v in (1, 2, 1)], "rating,u1,i1,2026-05-01,,,-1,"
    )
    (source,) = validate(config, NOW).sources
    assert (source.accepted, dict(source.quarantined)) == (3, {"duplicate_event": 1})


def test_what_cannot_be_configured_is_refused_with_the_allowed_values(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    for wrong, words in (
        (
            {"columns": {"customer": "c"}},
            "'customer' is no column of ours; the left-hand side is one of event_id, event,",
        ),
        ({"event": "stare"}, "'stare' is no event kind; use one of impression, view, click, cart, purchase, rating"),
        ({"event_values": {"a": "b"}}, "'b' is no event kind; the right-hand side is one of impression, view, click,"),
        ({"timezone": "Mars/Olympus"}, "'Mars/Olympus' is no time zone; use an IANA name such as Europe/London"),
        ({"encoding": "utf-9"}, "'utf-9' is no text encoding; use utf-8, latin-1, cp1252, ..."),
        ({"colums": {}}, "Extra inputs are not permitted"),
        ({"position_base": 2}, "Input should be 0 or 1"),
    ):
        with pytest.raises(ValidationError) as error:
            EventSource(path=path, **wrong)  # type: ignore[arg-type]
        assert words in str(error.value)
    with pytest.raises(ValidationError, match="no source describes items, so every event would be refused"):
        ImportConfig(events=(EventSource(path=path, format="csv"),))
    with pytest.raises(ValidationError, match="is no regular expression"):
        ImportConfig(events=(EventSource(path=path),), not_products="(")


def test_a_clock_without_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="now is 2026-06-01T00:00:00, without a zone; pass an aware datetime"):
        validate(of_csv(tmp_path, GOOD), datetime(2026, 6, 1))


def test_nothing_accepted_is_an_error_that_keeps_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"No event was accepted. Most rows were refused for missing_user \(2 of events"
    ):
        import_data(of_csv(tmp_path, "click,,i1,1,,,,", "click,,i1,2,,,,", "stare,u,i,3,,,,"), tmp_path / "out", NOW)
    assert len(pq.read_table(tmp_path / "out/quarantine.parquet")) == 3
    assert not (tmp_path / "out/events.parquet").exists()


CELL = st.one_of(
    st.sampled_from(
        [
            "",
            "u1",
            "u2",
            "i1",
            "i2",
            "r1",
            "click",
            "impression",
            "purchase",
            "2026-05-01",
            "1700000000",
            "-1",
            "0",
            "1",
            "nan",
            "inf",
            "x" * 300,
            '"quoted"',
            "a,b",
        ]
    ),
    st.text(max_size=8),
)
ROW = st.fixed_dictionaries(dict.fromkeys(HEADER.split(","), CELL))
LIKELY = st.fixed_dictionaries(
    {
        "event": st.sampled_from(["click", "impression", "purchase", "add_to_cart", "stare", ""]),
        "user_id": st.sampled_from(["u1", "u2", ""]),
        "item_id": st.sampled_from(["i1", "i2", "i3"]),
        "timestamp": st.sampled_from(["2026-05-01", "2026-05-02T01:02:03Z", "2030-01-01", "1700000000"]),
        "request_id": st.sampled_from(["", "r1", "r2"]),
        "position": st.sampled_from(["", "0", "1", "-1"]),
        "value": st.sampled_from(["", "1", "-1", "inf"]),
        "price": st.sampled_from(["", "2.5"]),
    }
)
JSON_CELL = st.one_of(
    CELL,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.text(max_size=2), max_size=2),
    st.just({"a": 1}),
)
JSON_ROW = st.dictionaries(st.sampled_from(HEADER.split(",")), JSON_CELL)


def check_account(config: ImportConfig, folder: Path, rows: int) -> None:
    out = folder / "out"
    try:
        summary = import_data(config, out, NOW)
    except DataError:  # nothing was accepted
        summary = validate(config, NOW)
        assert sum(summary.events.values()) == 0
    (source,) = summary.sources
    assert source.read == rows == source.accepted + sum(source.quarantined.values())
    assert sum(summary.events.values()) == source.accepted
    refused = pq.read_table(out / "quarantine.parquet")
    assert dict(Counter(refused["reason"].to_pylist())) == dict(source.quarantined)
    assert refused.group_by(["file", "row"]).aggregate([]).num_rows == len(refused), "a row is refused once"
    if source.accepted:
        events = pq.read_table(out / "events.parquet").to_pylist()
        assert len({e["event_id"] for e in events}) == len(events) == source.accepted
        assert all(e["event"] in KINDS and e["user_id"] and e["item_id"] for e in events)
        keys = [(e["timestamp"], e["event"], e["item_id"]) for e in events]
        assert keys == sorted(keys)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(LIKELY, ROW), min_size=1, max_size=12))
def test_every_row_of_a_dirty_csv_is_accepted_or_refused_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    cells = [[c.replace('"', '""') for c in row.values()] for row in rows]
    config = of_csv(folder, *[",".join(f'"{c}"' for c in row).encode("utf-8", "replace") for row in cells])
    check_account(config, folder, len(rows))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(LIKELY, JSON_ROW), min_size=1, max_size=12))
def test_every_line_of_dirty_json_is_accepted_or_refused_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    check_account(of_jsonl(folder, *rows, format="jsonl"), folder, len(rows))
