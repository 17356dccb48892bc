"""Every kind of bad row is rejected with its own reason and a message with place, problem and remedy."""

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


def csv_config(folder: Path, *lines: str | bytes, header: str = HEADER, **source: Any) -> ImportConfig:
    folder.mkdir(exist_ok=True)
    raw = [header, *lines]
    (folder / "events.csv").write_bytes(b"\n".join(r.encode() if isinstance(r, str) else r for r in raw) + b"\n")
    return ImportConfig(events=(EventSource(path=folder / "events.csv", **source),), unknown_items="keep")


def jsonl_config(folder: Path, *rows: Any, **source: Any) -> ImportConfig:
    text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
    (folder / "events.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    return ImportConfig(events=(EventSource(path=folder / "events.jsonl", **source),), unknown_items="keep")


def stamps(config: ImportConfig, folder: Path) -> list[str]:
    import_data(config, folder / "out", NOW)
    return [t.isoformat() for t in pq.read_table(folder / "out/events.parquet")["timestamp"].to_pylist()]


LONG = "u" * 257
CASES: dict[str, tuple[str | bytes, str]] = {
    "missing_user": (
        "click,,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: the row does not identify a user (missing_user)."
        " Log the ID of the customer or anonymous visitor with every event.",
    ),
    "missing_item": (
        "click,u1,null,2026-05-01,,,,",
        "events.csv, row 3, column item_id: 'null' does not identify an item (missing_item)."
        " Log the item ID with every row.",
    ),
    "id_too_long": (
        f"click,{LONG},i1,2026-05-01,,,,",
        f"events.csv, row 3, column user_id: '{'u' * 200}' is longer than 256 bytes (id_too_long)."
        " Map a column that contains IDs, or shorten the IDs.",
    ),
    "control_character": (
        "click,u\x001,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: 'u\\x001' contains a control character (control_character)."
        " Remove control characters (tab, newline, NUL) from the IDs at the source.",
    ),
    "bad_encoding": (
        b"click,caf\xe9,i1,2026-05-01,,,,",
        "events.csv, row 3, column user_id: 'caf\\\\xe9' is not UTF-8 (bad_encoding)."
        " Set `encoding` of this source (often latin-1 or cp1252), or export as UTF-8.",
    ),
    "missing_timestamp": (
        "click,u1,i1,,,,,",
        "events.csv, row 3, column timestamp: the row does not contain a timestamp (missing_timestamp)."
        " Log a timestamp with every event, or set `order_column` if only the order is known.",
    ),
    "bad_timestamp": (
        "click,u1,i1,yesterday,,,,",
        "events.csv, row 3, column timestamp: 'yesterday' is not a recognised timestamp (bad_timestamp)."
        " Use ISO 8601 or Unix time, or set `timestamp_unit` or `timestamp_format` of this source.",
    ),
    "timestamp_too_old": (
        "click,u1,i1,0,,,,",
        "events.csv, row 3, column timestamp: '0' is before `earliest` (timestamp_too_old)."
        " Check `timestamp_unit` of this source, or lower `earliest` if the event really is that old.",
    ),
    "future_event": (
        "click,u1,i1,2026-06-01T00:10:01Z,,,,",
        "events.csv, row 3, column timestamp: '2026-06-01T00:10:01Z' is in the future (future_event)."
        " Check the clock, `timezone` and `timestamp_unit` of this source, then import it again.",
    ),
    "missing_event": (
        ",u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: the row does not name an event kind (missing_event)."
        " Fill in the column, or set `event` if all rows are of one kind.",
    ),
    "unknown_event": (
        "stare,u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: 'stare' is not a known event kind (unknown_event)."
        " Use impression, view, click, cart, purchase, rating or a GA4 event name, or map it in `event_values`.",
    ),
    "dropped_event": (
        "refund,u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: 'refund' is dropped by `event_values` (dropped_event)."
        " No action needed, unless you want events of this kind.",
    ),
    "not_a_number": (
        'purchase,u1,i1,2026-05-01,,,"6,95",',
        "events.csv, row 3, column value: '6,95' is not a number (not_a_number)."
        " Write plain decimals such as 6.95, without currency or thousands separators.",
    ),
    "not_finite": (
        "purchase,u1,i1,2026-05-01,,,-inf,",
        "events.csv, row 3, column value: '-inf' is infinite (not_finite)."
        " Write a finite number, or leave the cell empty if the value is missing.",
    ),
    "negative_value": (
        "purchase,u1,i1,2026-05-01,,,-2,",
        "events.csv, row 3, column value: '-2' is a negative amount (negative_value)."
        " Returns and corrections are not purchases: map them to `drop`, or correct the sign.",
    ),
    "negative_price": (
        "purchase,u1,i1,2026-05-01,,,2,-0.5",
        "events.csv, row 3, column price: '-0.5' is a negative price (negative_price)."
        " Correct the sign, or leave the cell empty if the price is missing.",
    ),
    "bad_position": (
        "impression,u1,i1,2026-05-01,r1,-1,,",
        "events.csv, row 3, column position: '-1' is not a list position (bad_position)."
        " Use whole numbers starting at `position_base`, at most 32767, or leave the cell empty.",
    ),
    "wrong_number_of_columns": (
        "click,u1,i1",
        "events.csv, row 3: 'click,u1,i1' does not have the same number of columns as the header"
        " (wrong_number_of_columns). Quote cells that contain the delimiter, or set `delimiter`.",
    ),
    "duplicate_event": (
        GOOD,
        "events.csv, row 3, column event_id: '{id}' is a duplicate (duplicate_event)."
        " No action needed: the first event is kept. Retries should send the same `event_id`.",
    ),
}


@pytest.mark.parametrize("reason", CASES)
def test_a_bad_csv_row_is_rejected_with_its_reason_and_message(tmp_path: Path, reason: str) -> None:
    line, expected = CASES[reason]
    config = csv_config(tmp_path, GOOD, line, event_values={"refund": "drop"})
    summary = import_data(config, tmp_path / "out", NOW)
    (source,) = summary.sources
    assert (source.read, source.accepted, dict(source.quarantined)) == (2, 1, {reason: 1})
    kept = pq.read_table(tmp_path / "out/events.parquet")["event_id"][0].as_py()
    assert summary.examples == (expected.replace("{id}", kept),)
    (row,) = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert (row["file"], row["row"], row["reason"], row["remedy"]) == ("events.csv", 3, reason, REASONS[reason].remedy)


def test_a_device_of_64_characters_is_accepted_and_one_of_65_rejected(tmp_path: Path) -> None:
    header = "event,user_id,item_id,timestamp,device"
    lines = [f"click,u1,i1,2026-05-01,{'é' * 64}", f"click,u1,i2,2026-05-01,{'d' * 65}"]
    summary = validate(csv_config(tmp_path, *lines, header=header), NOW)
    assert summary.sources[0].accepted == 1
    assert summary.examples == (
        f"events.csv, row 3, column device: '{'d' * 65}' is longer than 64 characters (device_too_long)."
        " Map the device type (mobile, tablet, desktop, app), not the user agent.",
    )


JSON_CASES: dict[str, list[Any]] = {
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
def test_a_bad_json_line_is_rejected_with_its_line_number(tmp_path: Path, reason: str) -> None:
    good = {"event": "click", "user_id": "u1", "item_id": "i1", "timestamp": 1.7e9}
    config = jsonl_config(tmp_path, good, *JSON_CASES[reason])
    (source,) = import_data(config, tmp_path / "out", NOW).sources
    n = len(JSON_CASES[reason])
    assert (source.read, source.accepted, dict(source.quarantined)) == (n + 1, 1, {reason: n})
    refused = pq.read_table(tmp_path / "out/quarantine.parquet")
    assert refused["row"].to_pylist() == list(range(2, n + 2))


def test_every_reason_has_a_clause_and_a_remedy_sentence() -> None:
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
    "2023-11-14 22:13:20": "2023-11-14T21:13:20+00:00",  # Paris is one hour ahead of UTC in winter
    "2023-07-14": "2023-07-13T22:00:00+00:00",  # and two in summer
    "2023-10-29 02:30": "2023-10-29T01:30:00+00:00",  # this time occurs twice: the second is used
    "2023-03-26 02:30": "2023-03-26T01:00:00+00:00",  # this time does not exist: it shifts forward to 3:00
}


@pytest.mark.parametrize("written", TIMES)
def test_a_timestamp_is_parsed_in_common_formats_and_zones(tmp_path: Path, written: str) -> None:
    config = csv_config(tmp_path, f"click,u1,i1,{written},,,,", timezone="Europe/Paris")
    assert stamps(config, tmp_path) == [TIMES[written]]


def test_timestamp_formats_may_be_mixed_in_one_column(tmp_path: Path) -> None:
    lines = [f"click,u{n},i1,{written},,,," for n, written in enumerate(TIMES)]
    assert stamps(csv_config(tmp_path, *lines, timezone="Europe/Paris"), tmp_path) == sorted(TIMES.values())


def test_a_configured_unit_or_format_is_not_detected(tmp_path: Path) -> None:
    seconds_as_us = csv_config(tmp_path, GOOD, "click,u2,i1,1700000000,,,,", timestamp_unit="us")
    assert validate(seconds_as_us, NOW).table()[2] == ("events.csv", "timestamp_too_old", 1)
    american = csv_config(tmp_path, "click,u1,i1,12/1/2010 8:26,,,,", timestamp_format="%m/%d/%Y %H:%M")
    assert stamps(american, tmp_path) == ["2010-12-01T08:26:00+00:00"]
    compact = csv_config(tmp_path, "click,u1,i1,20101201,,,,", timestamp_unit="iso")
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
def test_an_absurd_timestamp_is_rejected(tmp_path: Path, written: str) -> None:
    (source,) = validate(csv_config(tmp_path, GOOD, f"click,u1,i1,{written},,,,"), NOW).sources
    assert source.accepted == 1
    assert set(source.quarantined) <= {"bad_timestamp", "future_event", "timestamp_too_old"}


def parquet_times(folder: Path, times: pa.Array, **source: Any) -> list[str]:
    n = len(times)
    events = {"event": ["click"] * n, "user_id": [f"u{i}" for i in range(n)], "item_id": ["i1"] * n, "timestamp": times}
    pq.write_table(pa.table(events), folder / "events.parquet")
    config = ImportConfig(events=(EventSource(path=folder / "events.parquet", **source),), unknown_items="keep")
    return stamps(config, folder)


def test_parquet_timestamps_of_every_type_are_supported(tmp_path: Path) -> None:
    at = datetime(2023, 7, 14, 12)
    for kind in (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us"), pa.timestamp("ns")):
        assert parquet_times(tmp_path, pa.array([at], kind)) == ["2023-07-14T12:00:00+00:00"]
    in_paris = parquet_times(tmp_path, pa.array([at], pa.timestamp("us")), timezone="Europe/Paris")
    assert in_paris == ["2023-07-14T10:00:00+00:00"]
    zoned = parquet_times(tmp_path, pa.array([at], pa.timestamp("us", "UTC")), timezone="Europe/Paris")
    assert zoned == ["2023-07-14T12:00:00+00:00"]
    assert parquet_times(tmp_path, pa.array([date(2023, 7, 14)])) == ["2023-07-14T00:00:00+00:00"]


def test_an_id_column_of_an_unsupported_type_is_rejected_row_by_row(tmp_path: Path) -> None:
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


def test_ids_may_be_whole_floats_or_dictionary_encoded(tmp_path: Path) -> None:
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


def test_a_configured_encoding_is_used_for_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    config = csv_config(tmp_path, "click,café,i1,2026-05-01,,,,".encode("latin-1"), encoding="latin-1")
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
        "items.csv, row 3, column item_id: the row does not identify an item (missing_item)."
        " Log the item ID with every row.",
    ),
    "negative_price": (
        "i2,A,-1,1,true",
        "items.csv, row 3, column price: '-1' is a negative price (negative_price)."
        " Correct the sign, or leave the cell empty if the price is missing.",
    ),
    "not_finite": (
        "i2,A,inf,1,true",
        "items.csv, row 3, column price: 'inf' is infinite (not_finite)."
        " Write a finite number, or leave the cell empty if the value is missing.",
    ),
    "not_a_number": (
        "i2,A,£2,1,true",
        "items.csv, row 3, column price: '£2' is not a number (not_a_number)."
        " Write plain decimals such as 6.95, without currency or thousands separators.",
    ),
    "duplicate_item": (
        "i1,B,1,1,true",
        "items.csv, row 3, column item_id: 'i1' is a duplicate (duplicate_item)."
        " The first row is kept. Give each item one row.",
    ),
    "not_a_product": (
        "post,P,1,1,false",
        "items.csv, row 3, column item_id: 'post' is not a product (not_a_product)."
        " No action needed, unless `not_products` or `product_column` excludes too much.",
    ),
    "wrong_type": (
        "i2,A,1,1,perhaps",
        "items.csv, row 3, column ok: 'perhaps' has the wrong type (wrong_type)."
        " Use a string, a number or null. Attributes may also be lists of strings.",
    ),
    "text_too_long": (
        f"i2,{'x' * 100_001},1,1,true",
        f"items.csv, row 3, column title: '{'x' * 200}' is longer than 100,000 characters (text_too_long)."
        " Shorten the text, or map another column.",
    ),
}


@pytest.mark.parametrize("reason", ITEM_CASES)
def test_a_bad_item_is_rejected_with_its_reason_and_message(tmp_path: Path, reason: str) -> None:
    line, expected = ITEM_CASES[reason]
    summary = import_data(items_file(tmp_path, "i1,A,1,2.5,true", line), tmp_path / "out", NOW)
    assert summary.table()[:3] == [("items.csv", "read", 2), ("items.csv", "accepted", 1), ("items.csv", reason, 1)]
    assert summary.examples == (expected,)
    (item,) = pq.read_table(tmp_path / "out/items.parquet").to_pylist()
    assert (item["title"], item["price"], item["weight"]) == ("A", 1.0, 2.5)


def test_a_missing_price_is_null_not_zero(tmp_path: Path) -> None:
    import_data(items_file(tmp_path, "i1,,,,", "i2,B,nan,1,"), tmp_path / "out", NOW)
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert items["price"].to_pylist() == [None, None]
    assert items["title"].to_pylist() == ["", "B"]


def test_an_event_of_an_unknown_item_is_rejected_or_kept_as_configured(tmp_path: Path) -> None:
    config = items_file(tmp_path, "i9,A,1,1,true")
    assert validate(config, NOW).examples == (
        "events.csv, row 2, column item_id: 'i1' is not in the catalogue (unknown_item)."
        " Add the item, or set `unknown_items: keep` to import it with its ID only.",
    )
    keep = config.model_copy(update={"unknown_items": "keep"})
    summary = import_data(keep, tmp_path / "out", NOW)
    assert "1 items have no catalogue entry; imported with their ID only" in summary.notes
    assert pq.read_table(tmp_path / "out/items.parquet")["item_id"].to_pylist() == ["i1", "i9"]


def test_events_of_excluded_products_are_rejected(tmp_path: Path) -> None:
    config = csv_config(tmp_path, GOOD, "click,u1,POST,2026-05-01,,,,", "click,u1,POSTER,2026-05-01,,,,")
    summary = validate(config.model_copy(update={"not_products": "POST|FEE"}), NOW)
    assert summary.table()[1:] == [("events.csv", "accepted", 2), ("events.csv", "not_a_product", 1)]


def test_lists_are_checked_across_rows(tmp_path: Path) -> None:
    config = csv_config(
        tmp_path,
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,0,,",
        "impression,u1,i2,2026-05-01T10:00:02Z,r1,1,,",  # logged late: moved to the time of its list
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,2,,",  # the same item at a lower position
        "impression,u1,i1,2026-05-01T10:00:00Z,r1,0,,",  # an exact duplicate
        "impression,u2,i1,2026-05-01T10:00:00Z,r1,0,,",  # another user's
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
        " The first position is kept. Log a new `request_id` for every list shown." in summary.examples
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


def test_the_first_of_several_events_with_the_same_id_is_kept(tmp_path: Path) -> None:
    header = "event_id,event,user_id,item_id,timestamp"
    config = csv_config(
        tmp_path, "e1,click,u1,i1,2026-05-02", "e1,purchase,u2,i2,2026-05-01", ",click,u1,i1,2026-05-02", header=header
    )
    import_data(config, tmp_path / "out", NOW)
    events = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    # The row without an ID gets a generated one: nothing shows that it is e1.
    assert [(e["event"], e["user_id"]) for e in events] == [("click", "u1")] * 2


def test_purchases_with_different_amounts_are_distinct_and_ratings_may_be_negative(tmp_path: Path) -> None:
    config = csv_config(
        tmp_path, *[f"purchase,u1,i1,2026-05-01,,,{v}," for v in (1, 2, 1)], "rating,u1,i1,2026-05-01,,,-1,"
    )
    (source,) = validate(config, NOW).sources
    assert (source.accepted, dict(source.quarantined)) == (3, {"duplicate_event": 1})


def test_an_invalid_configuration_is_rejected_with_the_allowed_values(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    for wrong, words in (
        (
            {"columns": {"customer": "c"}},
            "'customer' is not a canonical column; the left-hand side must be one of event_id, event,",
        ),
        (
            {"event": "stare"},
            "'stare' is not an event kind; use one of impression, view, click, cart, purchase, rating",
        ),
        (
            {"event_values": {"a": "b"}},
            "'b' is not an event kind; the right-hand side must be one of impression, view,",
        ),
        ({"timezone": "Mars/Olympus"}, "'Mars/Olympus' is not a time zone; use an IANA name such as Europe/London"),
        ({"encoding": "utf-9"}, "'utf-9' is not a text encoding; use utf-8, latin-1, cp1252, ..."),
        ({"colums": {}}, "Extra inputs are not permitted"),
        ({"position_base": 2}, "Input should be 0 or 1"),
    ):
        with pytest.raises(ValidationError) as error:
            EventSource(path=path, **wrong)
        assert words in str(error.value)
    with pytest.raises(ValidationError, match="no source describes items, so every event would be rejected"):
        ImportConfig(events=(EventSource(path=path, format="csv"),))
    with pytest.raises(ValidationError, match="is not a regular expression"):
        ImportConfig(events=(EventSource(path=path),), not_products="(")


def test_now_without_a_time_zone_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="now is 2026-06-01T00:00:00, without a time zone; pass a timezone-aware datetime"
    ):
        validate(csv_config(tmp_path, GOOD), datetime(2026, 6, 1))


def test_an_import_without_accepted_events_raises_and_keeps_the_quarantine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No event was accepted. Most common reason: missing_user \(2 rows of events"):
        import_data(
            csv_config(tmp_path, "click,,i1,1,,,,", "click,,i1,2,,,,", "stare,u,i,3,,,,"), tmp_path / "out", NOW
        )
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


def check_counts(config: ImportConfig, folder: Path, rows: int) -> None:
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
    assert refused.group_by(["file", "row"]).aggregate([]).num_rows == len(refused), "a row is rejected once"
    if source.accepted:
        events = pq.read_table(out / "events.parquet").to_pylist()
        assert len({e["event_id"] for e in events}) == len(events) == source.accepted
        assert all(e["event"] in KINDS and e["user_id"] and e["item_id"] for e in events)
        keys = [(e["timestamp"], e["event"], e["item_id"]) for e in events]
        assert keys == sorted(keys)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(LIKELY, ROW), min_size=1, max_size=12))
def test_every_row_of_a_dirty_csv_is_accepted_or_rejected_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    cells = [[c.replace('"', '""') for c in row.values()] for row in rows]
    config = csv_config(folder, *[",".join(f'"{c}"' for c in row).encode("utf-8", "replace") for row in cells])
    check_counts(config, folder, len(rows))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(LIKELY, JSON_ROW), min_size=1, max_size=12))
def test_every_line_of_dirty_json_is_accepted_or_rejected_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    check_counts(jsonl_config(folder, *rows, format="jsonl"), folder, len(rows))
