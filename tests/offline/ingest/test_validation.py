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
from offline.ingest.importer import DataError, ImportConfig, import_data, validate
from offline.ingest.quarantine import REASONS, describe_refusal

NOW = datetime(2026, 6, 1, tzinfo=UTC)
HEADER = "event,user_id,item_id,timestamp,request_id,position,value,price"
GOOD = "click,u1,i1,2026-05-01T10:00:00Z,,,,"


def csv_config(
    folder: Path, *lines: str | bytes, header: str = HEADER, columns: dict[str, Any] | None = None, **rules: Any
) -> ImportConfig:
    folder.mkdir(exist_ok=True)
    raw = [header, *lines]
    (folder / "events.csv").write_bytes(b"\n".join(r.encode() if isinstance(r, str) else r for r in raw) + b"\n")
    return events_config(folder, "events.csv", columns, **rules)


def jsonl_config(folder: Path, *rows: Any) -> ImportConfig:
    text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows)
    (folder / "events.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    return events_config(folder, "events.jsonl", None)


def events_config(folder: Path, file: str, columns: dict[str, Any] | None, **rules: Any) -> ImportConfig:
    source = {"from": file, "columns": columns or {}}
    return ImportConfig.model_validate({"folder": folder, "events": [source], "unknown_items": "keep", **rules})


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
        "events.csv, row 3, column item_id: the row does not identify an item (missing_item)."
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
    "missing_timestamp": (
        "click,u1,i1,,,,,",
        "events.csv, row 3, column timestamp: the row does not contain a timestamp (missing_timestamp)."
        " Log a timestamp with every event, or set `order_column` if only the order is known.",
    ),
    "bad_timestamp": (
        "click,u1,i1,yesterday,,,,",
        "events.csv, row 3, column timestamp: 'yesterday' is not a recognised timestamp (bad_timestamp)."
        " Set `format` of the column, as for strptime.",
    ),
    "timestamp_too_old": (
        "click,u1,i1,0,,,,",
        "events.csv, row 3, column timestamp: '0' is before `earliest` (timestamp_too_old)."
        " Check `unit` of the column, or lower `earliest` if the event really is that old.",
    ),
    "future_event": (
        "click,u1,i1,2026-06-01T00:10:01Z,,,,",
        "events.csv, row 3, column timestamp: '2026-06-01T00:10:01Z' is in the future (future_event)."
        " Check the clock, and `zone` and `unit` of the column, then import it again.",
    ),
    "missing_event": (
        ",u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: the row does not name an event kind (missing_event)."
        " Fill in the column, or set `event: {value: purchase}` if all rows are of one kind.",
    ),
    "unknown_event": (
        "stare,u1,i1,2026-05-01,,,,",
        "events.csv, row 3, column event: 'stare' is not a known event kind (unknown_event)."
        " Use impression, view, click, cart, purchase, rating or a GA4 event name, or map it in `values` of `event`.",
    ),
    "negative_value": (
        "purchase,u1,i1,2026-05-01,,,-2,",
        "events.csv, row 3, column value: '-2' is a negative amount (negative_value)."
        " Returns and corrections are not purchases: leave them out with `where`, or correct the sign.",
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
    config = csv_config(tmp_path, GOOD, line)
    summary = import_data(config, tmp_path / "out", NOW)
    (source,) = summary.sources
    assert (source.read, source.accepted, dict(source.quarantined)) == (2, 1, {reason: 1})
    kept = pq.read_table(tmp_path / "out/events.parquet")["event_id"][0].as_py()
    assert summary.examples == (expected.replace("{id}", kept),)
    (row,) = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert (row["file"], row["row"], row["reason"], row["remedy"]) == ("events.csv", 3, reason, REASONS[reason].remedy)


BAD_CELLS = {
    "device": ("d" * 65, "d" * 64),
    "query": ("w" * 201, " oak\u00a0"),
    "position": ("-1", "0"),
    "position ": ("1.5", "32767"),
    "value": ("-inf", "2.5"),
    "price": ("-0.5", "9"),
    "session_id": ("[object Object]", "s1"),
    "request_id": ("x" * 257, "r1"),
}


@pytest.mark.parametrize("column", BAD_CELLS)
def test_a_bad_optional_cell_costs_the_cell_and_is_counted_with_an_example(tmp_path: Path, column: str) -> None:
    bad, good = BAD_CELLS[column]
    name = column.strip()
    config = csv_config(
        tmp_path,
        f"purchase,u1,i1,2026-05-01,{bad}",
        f"purchase,u2,i1,2026-05-01,{good}",
        header=f"event,user_id,item_id,timestamp,{name}",
    )
    (source,) = import_data(config, tmp_path / "out", NOW).sources
    assert (source.accepted, dict(source.quarantined)) == (2, {})
    assert source.notes == (f"{name}: 1 cells cannot be read and count as missing, such as {bad[:80]!r}",)
    if name != "price":
        found = pq.read_table(tmp_path / "out/events.parquet")[name].to_pylist()
        assert [None if v is None else f"{v:g}" if isinstance(v, float) else str(v) for v in found] == [
            None,
            good.strip(),
        ]


def test_events_that_are_dropped_or_excluded_by_a_condition_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(
        f"{HEADER}\n{GOOD}\nrefund,u1,i1,2026-05-01,,,,\nclick,test,i1,2026-05-01,,,,\n"
    )
    source = {
        "from": "events.csv",
        "where": "user_id <> 'test'",
        "columns": {"event": {"path": "event", "values": {"refund": "drop"}}},
    }
    config = {"folder": tmp_path, "events": [source], "unknown_items": "keep"}
    (found,) = validate(ImportConfig.model_validate(config), NOW).sources
    assert (found.read, found.accepted, dict(found.quarantined)) == (3, 1, {})
    assert dict(found.left_out) == {"event refund": 1, "row excluded by `where`": 1}


JSON_CASES: dict[str, list[Any]] = {
    "bad_json": ["{", "\x00", "[" * 3000],
    "not_an_object": ["[1]", '"click"', "null"],
    "wrong_type": [
        {"event": "click", "user_id": ["u1"], "item_id": "i1", "timestamp": 1.7e9},
        {"event": "click", "user_id": {"id": "u1"}, "item_id": "i1", "timestamp": 1.7e9},
    ],
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
    "2023-03-26 02:30": "2023-03-26T01:30:00+00:00",  # this time does not exist: it is read as 3:30
}


@pytest.mark.parametrize("written", TIMES)
def test_a_timestamp_is_parsed_in_common_formats_and_zones(tmp_path: Path, written: str) -> None:
    config = csv_config(tmp_path, f"click,u1,i1,{written},,,,", timezone="Europe/Paris")
    assert stamps(config, tmp_path) == [TIMES[written]]


def test_timestamp_formats_may_be_mixed_in_one_column(tmp_path: Path) -> None:
    lines = [f"click,u{n},i1,{written},,,," for n, written in enumerate(TIMES)]
    assert stamps(csv_config(tmp_path, *lines, timezone="Europe/Paris"), tmp_path) == sorted(TIMES.values())


def test_a_configured_unit_or_format_is_not_detected(tmp_path: Path) -> None:
    seconds_as_us = csv_config(
        tmp_path, GOOD, "click,u2,i1,1700000000,,,,", columns={"timestamp": {"path": "timestamp", "unit": "us"}}
    )
    assert validate(seconds_as_us, NOW).table()[2] == ("events.csv", "timestamp_too_old", 1)
    form = {"timestamp": {"path": "timestamp", "format": "%m/%d/%Y %H:%M"}}
    american = csv_config(tmp_path, "click,u1,i1,12/1/2010 8:26,,,,", columns=form)
    assert stamps(american, tmp_path) == ["2010-12-01T08:26:00+00:00"]


COLUMNS_OF_DAYS = {
    # A day above 12 anywhere in the column decides the order for all of it.
    "day first": (["03/04/2026", "28/04/2026"], ["2026-04-03", "2026-04-28"]),
    "month first": (["03/04/2026", "03/28/2026"], ["2026-03-04", "2026-03-28"]),
    "8 digits": (["20260403", "20260428"], ["2026-04-03", "2026-04-28"]),
    "a spreadsheet": (["46115", "46140.5"], ["2026-04-03", "2026-04-28"]),
    "names of months": (["3 Apr 2026", "28 Apr 2026"], ["2026-04-03", "2026-04-28"]),
    "Go": (["2026-04-03 00:00:00 +0000 UTC", "2026-04-28 00:00:00 UTC"], ["2026-04-03", "2026-04-28"]),
    "Chinese": (["2026年4月3日", "2026年4月28日 12:00:00"], ["2026-04-03", "2026-04-28"]),
}


@pytest.mark.parametrize("name", COLUMNS_OF_DAYS)
def test_the_convention_of_a_column_of_days_is_found_from_all_of_its_values(tmp_path: Path, name: str) -> None:
    written, days = COLUMNS_OF_DAYS[name]
    config = csv_config(tmp_path, *[f"click,u{i},i1,{day},,,," for i, day in enumerate(written)])
    assert [at[:10] for at in stamps(config, tmp_path)] == days


def test_days_that_fit_both_orders_are_read_day_first_and_said(tmp_path: Path) -> None:
    (source,) = validate(csv_config(tmp_path, "click,u1,i1,03/04/2026,,,,"), NOW).sources
    assert source.notes == (
        "timestamp: moments are read as %d/%m/%Y (guessed); %m/%d/%Y fits as well: set `format` if the month is first",
    )


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


def parquet_times(folder: Path, times: pa.Array, **rules: Any) -> list[str]:
    n = len(times)
    events = {"event": ["click"] * n, "user_id": [f"u{i}" for i in range(n)], "item_id": ["i1"] * n, "timestamp": times}
    pq.write_table(pa.table(events), folder / "events.parquet")
    return stamps(events_config(folder, "events.parquet", None, **rules), folder)


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
        (source,) = validate(events_config(tmp_path, "events.parquet", None), NOW).sources
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
    config = events_config(tmp_path, "events.parquet", {"event": {"value": "view"}})
    import_data(config, tmp_path / "out", NOW)
    assert pq.read_table(tmp_path / "out/events.parquet")["item_id"].to_pylist() == ["7", "8"]


LATIN = "click,café,i1,2026-05-01,,,,"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig"])
def test_the_encoding_of_a_file_is_found_or_given(tmp_path: Path, encoding: str) -> None:
    for table in ({}, {"encoding": encoding}):
        (tmp_path / "events.csv").write_bytes(f"{HEADER}\n{LATIN}\n".encode(encoding))
        config = {"folder": tmp_path, "tables": {"log": {"files": "events.csv", **table}}, "events": [{"from": "log"}]}
        import_data(ImportConfig.model_validate({**config, "unknown_items": "keep"}), tmp_path / "out", NOW)
        assert pq.read_table(tmp_path / "out/events.parquet")["user_id"].to_pylist() == ["café"]


def items_file(folder: Path, *lines: str) -> ImportConfig:
    (folder / "items.csv").write_text("\n".join(["item_id,title,price,weight,ok", *lines]) + "\n")
    (folder / "events.csv").write_text(f"{HEADER}\n{GOOD}\n")
    items = {"from": "items.csv", "product_column": "ok"}
    return ImportConfig.model_validate({"folder": folder, "items": [items], "events": [{"from": "events.csv"}]})


ITEM_CASES = {
    "missing_item": (
        ",A,1,1,true",
        "items.csv, row 3, column item_id: the row does not identify an item (missing_item)."
        " Log the item ID with every row.",
    ),
    "duplicate_item": (
        "i1,B,1,1,true",
        "items.csv, row 3, column item_id: 'i1' is a duplicate (duplicate_item)."
        " The first row is kept. Give each item one row, or set `merge` on the source of items.",
    ),
    "not_a_product": (
        "post,P,1,1,false",
        "items.csv, row 3, column item_id: 'post' is not a product (not_a_product)."
        " No action needed, unless `not_products` or `product_column` excludes too much.",
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


PRICES = {
    "6.95": 6.95,
    "£2": 2.0,
    "7.59 USD": 7.59,
    "CHF 1'299.00": 1299.0,
    "1,299.50": 1299.5,
    "free": None,
    "-1": None,
    "inf": None,
    "": None,
}
COMMA_PRICES = {"6,95": 6.95, "1.299,00 €": 1299.0, "1.299": 1299.0, "12": 12.0}


@pytest.mark.parametrize("written", [PRICES, COMMA_PRICES])
def test_a_price_is_read_with_its_currency_and_the_decimal_separator_of_its_column(
    tmp_path: Path, written: dict[str, float | None]
) -> None:
    lines = [f'i{n},A,"{price}",1,true' for n, price in enumerate(written, 1)]
    import_data(items_file(tmp_path, *lines), tmp_path / "out", NOW)
    found = pq.read_table(tmp_path / "out/items.parquet")["price"].to_pylist()
    assert dict(zip(sorted(f"i{n}" for n in range(1, len(lines) + 1)), found, strict=True)) == {
        f"i{n}": price for n, price in enumerate(written.values(), 1)
    }


def test_a_missing_price_is_null_not_zero(tmp_path: Path) -> None:
    import_data(items_file(tmp_path, "i1,,,,", "i2,B,nan,1,"), tmp_path / "out", NOW)
    items = pq.read_table(tmp_path / "out/items.parquet")
    assert items["price"].to_pylist() == [None, None]
    assert items["title"].to_pylist() == ["", "B"]


def test_an_event_of_an_unknown_item_is_rejected_or_kept_as_configured(tmp_path: Path) -> None:
    config = items_file(tmp_path, "i9,A,1,1,true").model_copy(update={"most_unknown": 1.0})
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
    def error(source: dict[str, Any], **rules: Any) -> str:
        section = {"folder": tmp_path, "events": [{"from": "e.csv", **source}], "unknown_items": "keep", **rules}
        with pytest.raises(ValidationError) as raised:
            ImportConfig.model_validate(section)
        return str(raised.value)

    left = "'customer' is not a canonical column; the left-hand side must be one of event_id, event,"
    assert left in error({"columns": {"customer": "c"}})
    kind = "'stare' is not an event kind; use one of impression, view, click, cart, purchase, rating, drop"
    assert kind in error({"columns": {"event": {"value": "stare"}}})
    assert kind in error({"columns": {"event": {"path": "e", "values": {"a": "stare"}}}})
    zone = "'Mars/Olympus' is not a time zone; use an IANA name such as Europe/London"
    assert zone in error({}, timezone="Mars/Olympus")
    encoding = "'utf-9' is not a text encoding; use utf-8, latin-1, cp1252, ..."
    assert encoding in error({}, tables={"t": {"files": "e.csv", "encoding": "utf-9"}})
    assert "set either `files` or `sql`" in error({}, tables={"t": {}})
    assert "Extra inputs are not permitted" in error({"colums": {}})
    assert "Input should be 0 or 1" in error({"columns": {"position": {"path": "p", "start": 2}}})
    assert "set exactly one of `path`, `first`" in error({"columns": {"value": {"path": "a", "value": "b"}}})
    assert "no source describes items, so every event would be rejected" in error({}, unknown_items="quarantine")
    assert "is not a regular expression" in error({}, not_products="(")


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


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(LIKELY, ROW), min_size=1, max_size=12))
def test_every_row_of_a_dirty_csv_is_accepted_or_rejected_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    cells = [[c.replace('"', '""') for c in row.values()] for row in rows]
    config = csv_config(folder, *[",".join(f'"{c}"' for c in row).encode("utf-8", "replace") for row in cells])
    check_counts(config, folder, len(rows))


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(LIKELY, JSON_ROW), min_size=1, max_size=12))
def test_every_line_of_dirty_json_is_accepted_or_rejected_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("dirty")
    check_counts(jsonl_config(folder, *rows), folder, len(rows))
