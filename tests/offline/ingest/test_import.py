"""Import: every format gives the same data set, a broken source gives none, and real data imports unchanged."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from features.context import NO_DEVICE, Device
from offline.data.dataset import load_dataset
from offline.data.schema import EVENTS_SCHEMA
from offline.ingest.detection import detect
from offline.ingest.importer import DataError, ImportConfig, ImportSummary, import_data, validate
from offline.ingest.presets import load_preset
from tests import ROOT, SHARED

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DATA = SHARED / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real data of ../shared/data is not here")

# A small shop: a list of two items, a click on the second, and a purchase outside any list.
T0, T1, T2 = 1_760_000_000, 1_760_000_005, 1_760_000_100
EVENTS: list[dict[str, Any]] = [
    {"event": "impression", "user_id": "u1", "item_id": "b", "timestamp": T0, "request_id": "r1", "position": 0},
    {"event": "impression", "user_id": "u1", "item_id": "a", "timestamp": T0, "request_id": "r1", "position": 1},
    {"event": "click", "user_id": "u1", "item_id": "a", "timestamp": T1, "request_id": "r1", "position": None},
    {
        "event": "purchase",
        "user_id": "u1",
        "item_id": "a",
        "timestamp": T2,
        "request_id": None,
        "position": None,
        "value": 2.0,
    },
]
ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "title": "Lamp", "price": 9.5, "genres": ["x", "y"], "weight": 2.5},
    {"item_id": "b", "title": "Rug", "price": 20.0, "genres": ["x"], "weight": None},
]


def run(config: ImportConfig, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], ImportSummary]:
    summary = import_data(config, folder, NOW)
    return (
        pq.read_table(folder / "items.parquet").to_pylist(),
        pq.read_table(folder / "events.parquet").to_pylist(),
        summary,
    )


def recognised(path: Path) -> ImportConfig:
    return detect(path)[0]


def mapped(folder: Path, events: dict[str, Any], **rules: Any) -> ImportConfig:
    return ImportConfig.model_validate({"folder": folder, "events": [events], "unknown_items": "keep", **rules})


def as_parquet(folder: Path) -> ImportConfig:
    pq.write_table(pa.Table.from_pylist(ITEMS), folder / "items.parquet")
    events = pa.Table.from_pylist([{"value": None, **e} for e in EVENTS])
    pq.write_table(events, folder / "events.parquet")
    return recognised(folder)


def as_csv(folder: Path) -> ImportConfig:
    items = pa.Table.from_pylist([i | {"genres": "|".join(i["genres"])} for i in ITEMS])
    pa.csv.write_csv(items, folder / "items.csv")
    with gzip.open(folder / "events.csv.gz", "wb") as file:
        pa.csv.write_csv(pa.Table.from_pylist([{"value": None, **e} for e in EVENTS]), file)
    items = {"from": "items.csv", "columns": {"genres": {"path": "genres", "split": "|"}}}
    return mapped(folder, {"from": "events.csv.gz"}, items=[items])


def as_mapped_jsonl(folder: Path) -> ImportConfig:
    """Other column names, other event names, positions from 1, milliseconds as text."""
    (folder / "products.jsonl").write_text("\n".join(json.dumps(i) for i in ITEMS))
    words = {"impression": "seen", "click": "select_item", "purchase": "Purchase"}
    lines = []
    for e in EVENTS:
        place = None if e["position"] is None else e["position"] + 1
        lines.append(
            {
                "what": words[e["event"]],
                "who": e["user_id"],
                "sku": e["item_id"],
                "list": e["request_id"],
                "when": str(e["timestamp"] * 1000),
                "place": place,
                "n": e.get("value"),
            }
        )
    with gzip.open(folder / "log.jsonl.gz", "wt") as file:
        file.write("\n".join(json.dumps(line) for line in lines))
    columns = {
        "event": {"path": "what", "values": {"seen": "impression"}},
        "user_id": "who",
        "item_id": "sku",
        "timestamp": "when",
        "request_id": "list",
        "position": {"path": "place", "start": 1},
        "value": "n",
    }
    return mapped(folder, {"from": "log.jsonl.gz", "columns": columns}, items=[{"from": "products.jsonl"}])


def as_metarank(folder: Path) -> ImportConfig:
    lines: list[dict[str, Any]] = []
    for item in ITEMS:
        fields = [{"name": k, "value": v} for k, v in item.items() if k != "item_id" and v is not None]
        common = {"event": "item", "item": item["item_id"], "timestamp": "1750000000000"}
        old = [{"name": "title", "value": "Old title"}, *[f for f in fields if f["name"] == "genres"]]
        lines += [
            {"id": "1", "fields": old, **common},
            {"id": "2", "fields": fields, **common, "timestamp": "1750000000001"},
        ]
    lines.append(
        {
            "event": "ranking",
            "id": "r1",
            "user": "u1",
            "timestamp": str(T0 * 1000),
            "items": [{"id": "b", "fields": []}, {"id": "a"}],
            "fields": [],
        }
    )
    lines.append(
        {
            "event": "interaction",
            "id": "x",
            "type": "click",
            "user": "u1",
            "item": "a",
            "ranking": "r1",
            "timestamp": str(T1 * 1000),
            "fields": [],
        }
    )
    lines.append(
        {
            "event": "interaction",
            "id": "y",
            "type": "purchase",
            "user": "u1",
            "item": "a",
            "timestamp": str(T2 * 1000),
            "fields": [{"name": "quantity", "value": 2}],
        }
    )
    (folder / "metarank.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return recognised(folder)


FORMATS = [as_parquet, as_csv, as_mapped_jsonl, as_metarank]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_data_set(tmp_path: Path, write: Any) -> None:
    items, events, summary = run(write(tmp_path), tmp_path / "out")
    assert items == [
        {
            "item_id": "a",
            "title": "Lamp",
            "description": None,
            "category": None,
            "brand": None,
            "price": 9.5,
            "available_from": None,
            "genres": ["x", "y"],
            "weight": 2.5,
        },
        {
            "item_id": "b",
            "title": "Rug",
            "description": None,
            "category": None,
            "brand": None,
            "price": 20.0,
            "available_from": None,
            "genres": ["x"],
            "weight": None,
        },
    ]
    assert len({e.pop("event_id") for e in events}) == 4
    empty = {"value": None, "session_id": None, "device": None, "query": None, "columns": None}
    sorted_events = [EVENTS[1], EVENTS[0], EVENTS[2], EVENTS[3]]  # rows with equal times are sorted by kind, then item
    expected = [empty | e | {"timestamp": datetime.fromtimestamp(e["timestamp"], UTC)} for e in sorted_events]
    assert events == expected
    assert (summary.users, summary.items, summary.lists) == (1, 2, 1)
    assert summary.table()[-1][1:] in (("accepted", 4), ("accepted", 8))


def test_generated_event_ids_are_the_same_for_every_format(tmp_path: Path) -> None:
    ids = []
    for write in FORMATS:
        folder = tmp_path / write.__name__
        folder.mkdir()
        import_data(write(folder), folder / "out", NOW)
        ids.append(pq.read_table(folder / "out/events.parquet")["event_id"].to_pylist())
    assert ids == [ids[0]] * len(FORMATS)


def test_a_device_is_kept_unchanged_and_a_blank_one_is_missing(tmp_path: Path) -> None:
    rows = [("Mobile", "2026-05-01"), ("", "2026-05-02"), ("(not set)", "2026-05-03"), ("iPad", "2026-05-04")]
    lines = "".join(f"click,u,a,{day},{device}\n" for device, day in rows)
    (tmp_path / "log.csv").write_text("event,user_id,item_id,timestamp,platform\n" + lines)
    source = {"from": "log.csv", "columns": {"device": "platform"}}
    _, events, _ = run(mapped(tmp_path, source), tmp_path / "out")
    assert [e["device"] for e in events] == ["Mobile", None, None, "iPad"]
    assert load_dataset(tmp_path / "out").events.device.tolist() == [Device.MOBILE, NO_DEVICE, NO_DEVICE, Device.OTHER]


def test_a_query_is_taken_from_impressions_and_a_blank_one_is_missing(tmp_path: Path) -> None:
    rows = [
        ("impression", "r1", " Walnut "),
        ("impression", "r2", ""),
        ("click", "r2", "rug"),
        ("impression", "r1", "oak"),
    ]
    lines = "".join(
        f"{kind},u,i{n},2026-05-0{n + 1},{request},{query}\n" for n, (kind, request, query) in enumerate(rows)
    )
    (tmp_path / "log.csv").write_text("event,user_id,item_id,timestamp,request_id,search_term\n" + lines)
    source = {"from": "log.csv", "columns": {"query": "search_term"}}
    _, events, _ = run(mapped(tmp_path, source), tmp_path / "out")
    assert sorted(str(e["query"]) for e in events) == ["None", "Walnut", "oak", "rug"]
    found = load_dataset(tmp_path / "out").events
    assert {found.request_ids[r]: words for r, words in found.queries.items()} == {"r1": "Walnut"}


def test_metarank_fields_device_and_query_apply_to_rankings_and_interactions(tmp_path: Path) -> None:
    config = as_metarank(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metarank.jsonl").read_text().splitlines()]
    for line in lines:
        if line["event"] != "item":
            fields = [{"name": "device", "value": "tablet"}, {"name": "query", "value": "rug"}]
            line["fields"] = [*line.get("fields", []), *fields]
    (tmp_path / "metarank.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    items, events, _ = run(config, tmp_path / "out")
    assert [(e["device"], e["query"]) for e in events] == [("tablet", "rug")] * 4
    assert "device" not in items[0]


def test_importing_a_data_set_reproduces_it_byte_for_byte(tmp_path: Path) -> None:
    import_data(as_metarank(tmp_path), tmp_path / "one", NOW)
    import_data(recognised(tmp_path / "one"), tmp_path / "two", NOW)
    for name in ("items.parquet", "events.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_files_have_the_documented_layout(tmp_path: Path) -> None:
    import_data(as_parquet(tmp_path), tmp_path / "out", NOW)
    assert pq.read_schema(tmp_path / "out/events.parquet") == EVENTS_SCHEMA
    summary = json.loads((tmp_path / "out/import.json").read_text())
    assert summary["sources"][0] == {
        "file": "items.parquet",
        "read": 2,
        "records": 2,
        "accepted": 2,
        "quarantined": {},
        "left_out": {},
        "notes": [],
    }
    assert len(pq.read_table(tmp_path / "out/quarantine.parquet")) == 0


def test_unusable_metarank_lines_are_rejected_or_left_out_and_counted(tmp_path: Path) -> None:
    config = as_metarank(tmp_path)
    with (tmp_path / "metarank.jsonl").open("a") as file:
        file.write('\n{"event": "user", "user": "u1", "timestamp": "1", "fields": [{"name": "age", "value": 41}]}')
        file.write('\n{"event": "ranking", "id": "r2", "user": "u1", "timestamp": "1760000000000", "items": []}')
        file.write(
            '\n{"event": "interaction", "type": "like", "user": "u1", "item": "a", "timestamp": "1760000000000"}'
        )
        file.write('\n{"event": "weather"}\n{"event": "item", "item": {}, "timestamp": "1"}\n')
    summary = import_data(config, tmp_path / "out", NOW)
    (source,) = summary.sources
    # The empty ranking has no item; the item without a text as its ID is of the wrong type.
    assert dict(source.quarantined) == {"missing_item": 1, "unknown_event": 1, "wrong_type": 1}
    assert dict(source.left_out) == {"row excluded by `where`": 1}
    assert source.read == source.accepted + 3 + 1
    assert pq.read_table(tmp_path / "out/users.parquet").to_pylist() == [{"user_id": "u1", "age": 41.0}]
    assert "2 rows are about an item or user again: the last value of each field is kept" in source.notes


def ga4(name: str, at: int, items: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"event_name": name, "event_timestamp": at * 10**6, "user_pseudo_id": "p1", "items": items, **more}


def test_ga4_events_become_lists_clicks_and_items(tmp_path: Path) -> None:
    session = [
        {"key": "ga_session_id", "value": {"string_value": None, "int_value": 77}},
        {"key": "search_term", "value": {"string_value": "red rug"}},
    ]
    lines = [
        ga4(
            "view_item_list",
            T0,
            [
                {"item_id": "b", "index": 0, "item_name": "Rug", "price": 20.0},
                {"item_id": "a", "index": 1, "item_name": "Lamp", "price": 9.5},
            ],
            item_list_id="home",
            event_params=session,
            device={"category": "mobile", "language": "en"},
        ),
        ga4("select_item", T1, [{"item_id": "a", "item_name": "Lamp", "price": 9.5}], item_list_id="home"),
        ga4("purchase", T2, [{"item_id": "a", "quantity": 2}], user_id="u1"),
        ga4("page_view", T2, []),
    ]
    (tmp_path / "ga4.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    items, events, summary = run(recognised(tmp_path / "ga4.jsonl"), tmp_path / "out")
    assert [(i["item_id"], i["title"], i["price"]) for i in items] == [("a", "Lamp", 9.5), ("b", "Rug", 20.0)]
    listed = f"p1:{T0 * 10**6}:home"
    assert [
        (
            e["event"],
            e["user_id"],
            e["item_id"],
            e["request_id"],
            e["position"],
            e["value"],
            e["session_id"],
            e["device"],
            e["query"],
        )
        for e in events
    ] == [
        ("impression", "p1", "a", listed, 1, None, "77", "mobile", "red rug"),
        ("impression", "p1", "b", listed, 0, None, "77", "mobile", "red rug"),
        ("click", "p1", "a", listed, None, None, None, None, None),  # GA4 clicks name no list; it is looked up
        ("purchase", "u1", "a", None, None, 2.0, None, None, None),
    ]
    assert dict(summary.sources[0].quarantined) == {}
    assert dict(summary.sources[0].left_out) == {"event without items": 1}


WORDS = st.sampled_from(["a", "item", "ranking", "click", "1760000000000"])
KEYS = st.sampled_from(["id", "item_id", "index", "name", "key", "value"])
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner)),
    max_leaves=6,
)
METARANK_KEYS = ("event", "id", "item", "user", "timestamp", "session", "type", "ranking", "items", "fields")
ENSURED = {name: load_preset(name).tables["events"].options for name in ("metarank", "ga4")}
GA4_KEYS = ("event_name", "event_timestamp", "user_id", "items", "item_list_id", "event_params", "request_id", "device")


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "keys"), [("metarank", METARANK_KEYS), ("ga4", GA4_KEYS)])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_lines_of_any_shape_are_accepted_rejected_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, preset: str, keys: tuple[str, ...], data: st.DataObject
) -> None:
    lines = data.draw(st.lists(st.dictionaries(st.sampled_from(keys), ANYTHING), min_size=1, max_size=8))
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    section = {**load_preset(preset).mapping, "tables": {"events": {"files": "log.jsonl", **ENSURED[preset]}}}
    (source,) = validate(ImportConfig.model_validate({"folder": folder, **section}), NOW).sources
    whole = source.accepted + sum(source.quarantined.values()) + sum(source.left_out.values())
    assert source.read == whole >= len(lines)


def test_items_from_events_get_the_most_frequent_title_and_the_median_price(tmp_path: Path) -> None:
    rows = [("a", "LAMP", 2), ("a", "lamp?", 3), ("a", "LAMP", 10), ("a", "", 0), ("b", "B2", 1), ("b", "B1", 1)]
    lines = "".join(f"{n}.0,{i},2026-05-{n + 1:02d},{t},{p}\n" for n, (i, t, p) in enumerate(rows))
    (tmp_path / "sales.csv").write_text("Customer ID,StockCode,InvoiceDate,Description,Price\n" + lines)
    columns = {
        "user_id": "Customer ID",
        "item_id": "StockCode",
        "timestamp": "InvoiceDate",
        "title": "Description",
        "price": "Price",
    }
    source = {"from": "sales.csv", "columns": {**columns, "event": {"value": "purchase"}}, "items_from_events": True}
    items, events, _ = run(mapped(tmp_path, source), tmp_path / "out")
    # a: LAMP twice, lamp? once; median of 2, 3, 10 (a price of 0 is ignored). b: a tie goes to the first in order.
    assert [(i["item_id"], i["title"], i["price"]) for i in items] == [("a", "LAMP", 3.0), ("b", "B1", 1.0)]
    assert [e["user_id"] for e in events] == ["0", "1", "2", "3", "4", "5"]


def test_rows_with_only_an_order_get_timestamps_a_day_apart_that_end_on_one_day(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": ["u", "u", "u", "v"],
            "item_id": ["c", "a", "b", "a"],
            "event": ["review"] * 4,
            "timestamp": pa.nulls(4, pa.timestamp("us", "UTC")),
            "seq": [9, 2, 5, 0],
        }
    )
    pq.write_table(table, tmp_path / "events.parquet")
    _, events, summary = run(recognised(tmp_path), tmp_path / "out")
    assert [(e["user_id"], e["item_id"], e["event"], e["timestamp"].date().isoformat()) for e in events] == [
        ("u", "a", "purchase", "2019-12-30"),
        ("u", "b", "purchase", "2019-12-31"),
        ("v", "a", "purchase", "2020-01-01"),
        ("u", "c", "purchase", "2020-01-01"),
    ]
    assert summary.sources[0].notes == (
        "no timestamps, only an order (seq): timestamps were generated one day apart, the last of each user on"
        " 2020-01-01",
    )


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("uvw"), st.integers(0, 5)), min_size=1, max_size=20))
def test_generated_timestamps_keep_each_users_order_and_end_on_the_last_day(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("order")
    lines = "".join(f"{user},i{n},{order}\n" for n, (user, order) in enumerate(rows))
    (folder / "log.csv").write_text("user_id,item_id,seq\n" + lines)
    source = {"from": "log.csv", "order_column": "seq", "columns": {"event": {"value": "view"}}}
    _, events, _ = run(mapped(folder, source), folder / "out")
    at = {e["item_id"]: e["timestamp"].date() for e in events}
    for user in {u for u, _ in rows}:
        steps = sorted({order for u, order in rows if u == user})
        for n, (u, order) in enumerate(rows):
            if u == user:
                before = len(steps) - 1 - steps.index(order)
                assert at[f"i{n}"] == date(2020, 1, 1) - timedelta(days=before)


def test_item_texts_have_tags_removed_entities_decoded_and_whitespace_collapsed(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        'item_id,title,description\na,Salt &amp; Pepper,"<p>two\n  lines</p><style>p {}</style> 3 &lt; 4"\n'
    )
    (tmp_path / "events.csv").write_text("event,user_id,item_id,timestamp\nclick,u,a,2026-05-01\n")
    ((item,), _, _) = run(recognised(tmp_path), tmp_path / "out")
    assert (item["title"], item["description"]) == ("Salt & Pepper", "two lines 3 < 4")


def test_the_clicked_column_is_compared_with_click_events(tmp_path: Path) -> None:
    shown = pa.table(
        {
            "impression_id": ["r1"] * 2,
            "user_id": ["u"] * 2,
            "timestamp": [T0] * 2,
            "item_id": ["a", "b"],
            "position": [0, 1],
            "clicked": [True, True],
        }
    )
    pq.write_table(shown, tmp_path / "impressions.parquet")
    clicks = pa.table(
        {"impression_id": ["r1"], "user_id": ["u"], "timestamp": [T1], "item_id": ["a"], "event": ["click"]}
    )
    pq.write_table(clicks, tmp_path / "events.parquet")
    summary = validate(recognised(tmp_path), NOW)
    assert summary.notes[0] == "`clicked` agrees with the click events for 1 of 2 impressions; the events are used"
    assert (summary.lists, summary.events["impression"], summary.events["click"]) == (1, 2, 1)


def broken_gzip(folder: Path) -> Path:
    whole = gzip.compress(("event,user_id,item_id,timestamp\n" + "click,u,i,2026-05-01\n" * 50_000).encode())
    (folder / "events.csv.gz").write_bytes(whole[:-30])
    return folder / "events.csv.gz"


def import_error(config: ImportConfig, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        import_data(config, folder / "out", NOW)
    assert not (folder / "out").exists(), "a source that cannot be read leaves no files"
    return str(error.value)


def test_a_truncated_gzip_file_is_rejected_as_a_whole(tmp_path: Path) -> None:
    broken_gzip(tmp_path)
    assert import_error(mapped(tmp_path, {"from": "events.csv.gz"}), tmp_path) == (
        "events.csv.gz: the compressed data is truncated or corrupt (Compressed file ended before the end-of-stream"
        " marker was reached). Nothing was imported; download the file again."
    )
    jsonl = tmp_path / "log.jsonl.gz"
    jsonl.write_bytes(gzip.compress(b'{"event": "click"}\n' * 100_000)[:-30])
    config = mapped(tmp_path, {"from": "log.jsonl.gz"})
    assert import_error(config, tmp_path).startswith("log.jsonl.gz: the compressed data is truncated or corrupt")


def test_a_missing_column_raises_with_the_existing_columns_and_how_to_map_them(tmp_path: Path) -> None:
    path = tmp_path / "sales.csv"
    path.write_text("Customer ID,StockCode,event,timestamp\n1,2,click,2026-05-01\n")
    config = mapped(tmp_path, {"from": path.name, "columns": {"item_id": "StockCode"}})
    assert import_error(config, tmp_path) == (
        "sales.csv: no column 'user_id'. It has: Customer ID, StockCode, event, timestamp."
        " Map one of them in the configuration: columns: {user_id: <column>}."
    )
    wrong = {"from": path.name, "columns": {"item_id": "StockCode", "user_id": "Customer"}}
    assert import_error(mapped(tmp_path, wrong), tmp_path).startswith(
        "sales.csv: no column 'Customer' for user_id. It has: Customer ID,"
    )


def test_unreadable_files_raise_with_the_file_name(tmp_path: Path) -> None:
    def one(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return import_error(mapped(tmp_path, {"from": name}), tmp_path)

    assert one("e.parquet", b"not parquet").startswith("e.parquet: cannot be read as Parquet (")
    assert one("e.csv", b"") == "e.csv: is empty. A table needs at least one row."
    assert one("e.xlsx", b"").startswith("e.xlsx: cannot be read as an Excel workbook (")
    assert one("e.xml", b"<rss><channel>").startswith("e.xml: is not valid XML (")
    missing = import_error(mapped(tmp_path, {"from": "no.csv"}), tmp_path)
    assert missing == f"{tmp_path}/no.csv: there is no such file or folder, or it has no data files."


def test_a_quote_that_is_never_closed_stops_the_import_with_its_row(tmp_path: Path) -> None:
    rows = b"click,u,i,2026-05-01\n" * 20_000
    (tmp_path / "open.csv").write_bytes(
        b"event,user_id,item_id,timestamp\n" + b'click,"u ""x""",i,2026-05-01\nclick,"u,i,2026-05-01\n' + rows
    )
    assert import_error(mapped(tmp_path, {"from": "open.csv"}), tmp_path) == (
        "open.csv, row 3: a quote is opened and never closed, so all rows after it would be one cell:"
        " click,\"u,i,2026-05-01. Close the quote, or set `quote: ''` for this table if quotes are part of the text."
    )


def test_a_repeated_column_name_gets_a_number(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,size,size,\na,1,2,3\n")
    (tmp_path / "events.csv").write_text("event,user_id,item_id,timestamp\nclick,u,a,2026-05-01\n")
    ((item,), _, _) = run(recognised(tmp_path), tmp_path / "out")
    assert (item["size"], item["size (2)"], item["column_4"]) == (1.0, 2.0, 3.0)


def test_an_unknown_layout_raises_with_the_files_found(tmp_path: Path) -> None:
    (tmp_path / "sales.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no preset fits \(found: sales.csv \(a, b\)\)\. .*--suggest > shop.yaml"):
        detect(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        detect(tmp_path / "nowhere")


def test_a_simulated_shop_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "truth.parquet").touch()
    with pytest.raises(DataError, match=r"contains a simulated shop \(truth.parquet\)\. Import into another directory"):
        import_data(as_parquet(tmp_path), tmp_path, NOW)


def test_progress_reaches_its_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    import_data(as_csv(tmp_path), tmp_path / "out", NOW, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@real
def test_both_formats_of_ranklens_give_the_same_events_and_items(tmp_path: Path) -> None:
    folder = DATA / "ranklens"
    tables = {}
    for name, path in (("parquet", folder), ("metarank", folder / "events.metarank.jsonl.gz")):
        summary = import_data(recognised(path), tmp_path / name, NOW)
        assert (summary.lists, summary.events["impression"], summary.events["click"]) == (7840, 7840 * 24, 36309)
        assert all(not s.quarantined for s in summary.sources)
        tables[name] = [pq.read_table(tmp_path / name / f"{t}.parquet") for t in ("items", "events")]
    (items, events), (other_items, other_events) = tables["parquet"], tables["metarank"]
    # The Metarank file also has the session, which here is the user, and the relevancy of the items of a list.
    only_metarank = ["session_id", "columns"]
    assert events.drop_columns(only_metarank).equals(other_events.drop_columns(only_metarank))
    shared = [c for c in items.column_names if c in other_items.column_names and c != "category"]
    assert {"title", "description", "genres", "tags", "actors", "director", "release_date", "budget"} <= set(shared)
    assert items.select(shared).equals(other_items.select(shared))
    assert len(items) == 2512 + 8  # eight of the items shown have no catalogue entry


@pytest.mark.slow
@real
def test_a_raw_shop_export_imports_with_only_a_mapping(tmp_path: Path) -> None:
    path = ROOT / "docs/examples/online_retail.yaml"
    section = yaml.safe_load(path.read_text("utf-8"))["import"]
    summary = import_data(ImportConfig.model_validate({**section, "folder": DATA / "online_retail"}), tmp_path, NOW)
    (file,) = summary.sources
    assert file.read == 525_461 == file.accepted + sum(file.quarantined.values())
    assert file.quarantined["missing_user"] == 525_461 - 417_534
    assert file.quarantined["negative_value"] > 9000
    assert set(file.quarantined) == {"missing_user", "negative_value", "duplicate_event", "not_a_product"}
    items = pq.read_table(tmp_path / "items.parquet").to_pylist()
    assert {i["item_id"]: i["title"] for i in items}["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert {i["item_id"] for i in items}.isdisjoint({"POST", "m", "BANK CHARGES"})


@pytest.mark.slow
@real
def test_retail_and_order_only_folders_import_without_configuration(tmp_path: Path) -> None:
    retail = import_data(recognised(DATA / "online_retail"), tmp_path / "retail", NOW)
    assert dict(retail.sources[0].quarantined) == {"not_a_product": 13}
    assert set(retail.sources[1].quarantined) == {"duplicate_event", "not_a_product"}
    assert set(retail.sources[1].left_out) == {"event return_or_adjustment"}
    amazon = import_data(recognised(DATA / "amazon_scientific"), tmp_path / "amazon", NOW)
    assert amazon.events["purchase"] == 50_175
    at = pq.read_table(tmp_path / "amazon/events.parquet")["timestamp"].to_pylist()
    last = [t for t in at if t.date() == date(2020, 1, 1)]
    assert len(last) == amazon.users == 8317, "splitting off the last day holds out each user's last event"


# --- annotation files ---


def shop_with_truth(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"item_id": ["A", "B"], "title": ["a", "b"]}), folder / "items.parquet")
    at = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 2, pa.timestamp("us", "UTC"))
    shown = {"event": ["impression"] * 2, "user_id": ["u"] * 2, "item_id": ["A", "B"], "timestamp": at}
    pq.write_table(pa.table({**shown, "request_id": ["r"] * 2, "position": [0, 1]}), folder / "events.parquet")
    listed = {"request_id": ["r"] * 2, "item_id": ["A", "B"]}
    pq.write_table(pa.table({**listed, "utility": [0.5, 1.0]}), folder / "truth.parquet")
    chance = {**listed, "position": [0, 1], "propensity": [0.5, 0.5]}
    pq.write_table(pa.table(chance), folder / "propensities.parquet")
    return folder


def test_truth_and_propensities_are_imported_and_removed_by_the_next_import_without_them(tmp_path: Path) -> None:
    source = shop_with_truth(tmp_path / "source")
    summary = import_data(recognised(source), tmp_path / "data", NOW)
    assert "truth.parquet: 2 rows about shown lists were imported" in summary.notes
    found = load_dataset(tmp_path / "data")
    assert found.truth
    assert found.truth.of(["r", "other"]) == {("r", "A"): 0.5, ("r", "B"): 1.0}
    assert found.propensities
    assert found.propensities.of(["r"]) == {("r", "A"): (0, 0.5), ("r", "B"): (1, 0.5)}
    (source / "truth.parquet").unlink()
    (source / "propensities.parquet").unlink()
    import_data(recognised(source), tmp_path / "data", NOW)
    found = load_dataset(tmp_path / "data")
    assert (found.truth, found.propensities) == (None, None)


@pytest.mark.parametrize(
    ("name", "column", "values", "message"),
    [
        ("propensities", "propensity", [0.5, 0.0], r"row 1, column 'propensity': is 0.0, expected above 0"),
        ("propensities", "propensity", [float("nan"), 1.0], r"row 0, column 'propensity': is nan"),
        ("truth", "utility", [1.0, float("inf")], r"row 1, column 'utility': is inf, expected a finite number"),
        ("truth", "utility", ["high", "low"], r"truth\.parquet: .*must be numbers, and IDs strings"),
        ("truth", "item_id", ["A", None], r"row 1, column 'item_id': is null"),
    ],
)
def test_an_invalid_utility_or_propensity_is_rejected_with_row_and_column(
    tmp_path: Path, name: str, column: str, values: list[object], message: str
) -> None:
    source = shop_with_truth(tmp_path / "source")
    table = pq.read_table(source / f"{name}.parquet")
    number = table.column_names.index(column)
    pq.write_table(table.set_column(number, column, pa.array(values)), source / f"{name}.parquet")
    with pytest.raises(DataError, match=message):
        import_data(recognised(source), tmp_path / "data", NOW)
    assert not (tmp_path / "data").exists()
