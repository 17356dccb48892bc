"""Exports of further systems, each with what is odd about it: `--suggest` maps them, and nothing is read wrongly."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from offline.ingest.importer import ImportConfig, import_data
from offline.ingest.suggestion import suggest

NOW = datetime(2026, 6, 1, tzinfo=UTC)
Row = dict[str, Any]


def imported(folder: Path, files: Mapping[str, str | bytes]) -> tuple[Mapping[str, Row], list[Row]]:
    """Items by ID, and events in the order of time, of an import with the mapping that `--suggest` prints."""
    source = folder / "export"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    config = ImportConfig.model_validate(yaml.safe_load(suggest(source))["import"])
    import_data(config, folder / "data", NOW)
    items, events = (pq.read_table(folder / "data" / f"{name}.parquet").to_pylist() for name in ("items", "events"))
    return {row["item_id"]: row for row in items}, events


def times(lines: int, form: str) -> list[str]:
    """Moments one day apart from 5 January 2026, 9:30."""
    return [datetime(2026, 1, 5 + n, 9, 30).strftime(form) for n in range(lines)]


def test_marketplace_orders_name_products_by_listing_and_hold_no_sku(tmp_path: Path) -> None:
    """Etsy: days with two digits of the year, characters as HTML entities."""
    rows = [
        f"{at},Mug &quot;{n % 3}&quot; of clay,buyer{n % 4},1,{5 + n % 3}.00,{300 + n},{900 + n % 3},"
        for n, at in enumerate(times(12, "%m/%d/%y"))
    ]
    header = "Sale Date,Item Name,Buyer,Quantity,Price,Transaction ID,Listing ID,SKU"
    items, events = imported(tmp_path, {"EtsySoldOrderItems.csv": "\n".join([header, *rows])})
    assert (sorted(items), items["900"]["title"]) == (["900", "901", "902"], 'Mug "0" of clay')
    assert events[0]["timestamp"] == datetime(2026, 1, 5, tzinfo=UTC)


def test_the_name_of_a_recipient_is_not_the_title_of_a_product(tmp_path: Path) -> None:
    """Wix: month by name, a clock of twelve hours in a column of its own."""
    rows = [
        f'{100 + n},"{at}",2:30:00 PM,a{n % 4}@x.example,Oak Lamp {n % 3},WX-{n % 3},1,7.0,Ann Bee,EUR'
        for n, at in enumerate(times(12, "%b %d, %Y"))
    ]
    header = "Order number,Date created,Time,Contact email,Item,SKU,Qty,Price,Recipient name,Currency"
    items, events = imported(tmp_path, {"Orders.csv": "\n".join([header, *rows])})
    assert items["WX-1"]["title"] == "Oak Lamp 1"
    assert events[0]["timestamp"] == datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def test_rows_of_variants_have_the_texts_of_their_product(tmp_path: Path) -> None:
    """Squarespace: a product's ID, title and description stand on the row of its first variant."""
    products = (
        "Product ID [Non Editable],Variant ID [Non Editable],Title,Description,SKU,Option Value 1,Price,Visible\n"
    )
    for n in range(4):
        products += (
            f"{n:024x},v{n},Mug {n},Nice mug {n},M{n}-S,S,5.00,{'No' if n == 3 else 'Yes'}\n,w{n},,,M{n}-L,L,6,\n"
        )
    orders = "Order ID,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,Lineitem sku\n"
    for n, at in enumerate(times(8, "%Y-%m-%d %H:%M:%S -0500")):
        orders += f"{n:05d},a{n % 3}@x.example,PAID,{at},1,Mug {n % 4},M{n % 4}-L\n"
    items, events = imported(tmp_path, {"products.csv": products, "orders.csv": orders})
    assert len(items) == 8
    large = items["M1-L"]
    assert (large["title"], large["description"], large["group_id"]) == ("Mug 1", "Nice mug 1", f"{1:024x}")
    assert [i for i, row in items.items() if row["available"] is False] == ["M3-S"]
    assert events[0]["timestamp"] == datetime(2026, 1, 5, 14, 30, tzinfo=UTC)


def test_japanese_with_little_kana_is_read_and_a_confirmed_cancellation_left_out(tmp_path: Path) -> None:
    """Rakuten in cp932: `①` and `～` are letters of Windows, and one order in four is `キャンセル確定`."""
    rows = [
        f"1-2026-{n},{at},{'キャンセル確定' if n % 4 == 0 else '処理済'},rk-{n % 3:04d},青色湯呑①～{n % 3},1,"
        f'"1,2{n:02d}円",a{n % 4}@x.example'
        for n, at in enumerate(times(12, "%Y/%m/%d %H:%M:%S"))
    ]
    header = "注文番号,注文日時,注文ステータス,商品管理番号,商品名,個数,単価,注文者メールアドレス"
    items, events = imported(tmp_path, {"注文データ.csv": "\n".join([header, *rows]).encode("cp932")})
    assert (len(events), events[0]["user_id"]) == (9, "a1@x.example")
    assert items["rk-0001"]["title"] == "青色湯呑①～1"
    assert items["rk-0001"]["price"] == 1207.0, "the median of 1201, 1207 and 1210 without the cancelled 1204"


def test_an_event_tracker_names_visitors_by_distinct_id(tmp_path: Path) -> None:
    """Mixpanel: everything but the name of an event is below `properties`, with times in seconds."""
    names = ["Product Viewed", "Product Added", "Order Completed", "Session Start"]
    lines = []
    for n in range(16):
        about = (
            {} if n % 4 == 3 else {"product_id": f"P{n % 3}", "product_name": f"Blue mug {n % 3}", "price": 5 + n % 3}
        )
        moment = 1767605400 + 3600 * n
        properties = {"time": moment, "distinct_id": f"d{n % 4}", "$insert_id": f"i{n}", **about}
        lines.append(json.dumps({"event": names[n % 4], "properties": properties}))
    items, events = imported(tmp_path, {"export.jsonl.gz": gzip.compress("\n".join(lines).encode())})
    assert [row["event"] for row in events] == ["view", "cart", "purchase"] * 4
    assert (events[0]["user_id"], items["P1"]["title"]) == ("d0", "Blue mug 1")


def test_the_device_of_a_visitor_stands_for_a_missing_user(tmp_path: Path) -> None:
    """Amplitude: gzipped parts in folders of a ZIP file; a device ID is a visitor, and no kind of device."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for part in range(2):
            lines = [
                json.dumps(
                    {
                        "event_type": ["view_item", "purchase"][n % 2],
                        "event_time": f"2026-01-{5 + part:02d} {9 + n}:30:00.000000",
                        "user_id": f"u{n % 3}" if n % 4 else None,
                        "device_id": f"D{n % 3}",
                        "event_properties": {"item_id": f"P{n % 3}", "item_name": f"Blue mug {n % 3}"},
                    }
                )
                for n in range(8)
            ]
            archive.writestr(f"12/12_2026-01-0{5 + part}#0.json.gz", gzip.compress("\n".join(lines).encode()))
    _, events = imported(tmp_path, {"export.zip": packed.getvalue()})
    assert [row["user_id"] for row in events[:5]] == ["D0", "u1", "u2", "u0", "D1"]
    assert {row["device"] for row in events} == {None}


def test_copied_tables_of_a_database_write_null_and_truth_values_in_their_own_way(tmp_path: Path) -> None:
    r"""PostgreSQL: `\N` is no shopper, and `f` is false."""
    nobody = r"\N"
    orders = "id\tcustomer_id\tcreated_at\tstatus\n" + "".join(
        f"{n}\t{nobody if n == 2 else 500 + n % 3}\t{at}\tcomplete\n"
        for n, at in enumerate(times(8, "%Y-%m-%d %H:%M:%S.123456+00"))
    )
    lines = "id\torder_id\tproduct_id\tquantity\n" + "".join(f"{n}\t{n}\t{100 + n % 3}\t1\n" for n in range(8))
    products = "id\tname\tprice\tactive\n" + "".join(
        f"{100 + n}\tBlue mug {n}\t{5 + n}.00\t{'f' if n == 1 else 't'}\n" for n in range(3)
    )
    files = {"orders.tsv": orders, "order_items.tsv": lines, "products.tsv": products}
    items, events = imported(tmp_path, files)
    assert len(events) == 7
    assert {row["user_id"] for row in events} == {"500", "501", "502"}
    assert [i for i, row in items.items() if row["available"] is False] == ["101"]


@pytest.mark.parametrize(
    ("form", "encoding", "names"),
    [
        (
            "%d/%m/%Y %Hh%M",
            "cp1252",
            ["N° commande", "Date", "Client", "Réf. article", "Désignation", "Qté", "P.U. TTC"],
        ),
        (
            "%d.%m.%Y %H:%M:%S",
            "cp1251",
            ["Номер", "Дата", "Контрагент", "Артикул", "Номенклатура", "Количество", "Цена"],
        ),
        (
            "%d.%m.%Y, %H:%M Uhr",
            "utf-8",
            ["Auftrag", "Datum", "Kundennr", "Artikelnr", "Bezeichnung", "Menge", "Preis"],
        ),
    ],
)
def test_quantities_have_the_decimal_comma_of_the_prices(
    tmp_path: Path, form: str, encoding: str, names: list[str]
) -> None:
    """`1,000` beside a price of `1 205,50` is one, not a thousand."""
    rows = [
        f"{n // 2};{at};K{n % 4};{n % 3:05d};{names[4]} {n % 3};1,000;1\u00a0205,50"
        for n, at in enumerate(times(12, form))
    ]
    items, events = imported(tmp_path, {"orders.csv": "\n".join([";".join(names), *rows]).encode(encoding)})
    assert {row["value"] for row in events} == {1.0}
    assert (items["00001"]["price"], items["00001"]["title"]) == (1205.5, f"{names[4]} 1")
    assert events[0]["timestamp"] == datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


def test_days_of_a_spreadsheet_may_have_a_decimal_comma(tmp_path: Path) -> None:
    """46027 is 5 January 2026, and .395833 of a day is 9:30."""
    rows = [f"{46027 + n},395833;K{n % 4};{n % 3:04d};Mug {n % 3};1;5,90" for n in range(12)]
    _, events = imported(
        tmp_path, {"orders.csv": "\n".join(["Datum;Kundennr;Artikelnr;Bezeichnung;Menge;Preis", *rows])}
    )
    assert abs((events[0]["timestamp"] - datetime(2026, 1, 5, 9, 30, tzinfo=UTC)).total_seconds()) < 0.1


def test_a_column_of_links_is_no_description(tmp_path: Path) -> None:
    """Square: day, time and a link to the receipt; amounts have a dollar sign."""
    rows = [
        f"{at},09:30:00,Home,Mug {n % 3},1.0,SQ{n % 3},${5 + n % 3}.00,T{n},https://x.example/{n},C{n % 4}"
        for n, at in enumerate(times(12, "%m/%d/%y"))
    ]
    header = "Date,Time,Category,Item,Qty,SKU,Gross Sales,Transaction ID,Details,Customer ID"
    items, _ = imported(tmp_path, {"items-2026.csv": "\n".join([header, *rows])})
    assert (items["SQ1"]["title"], items["SQ1"]["description"]) == ("Mug 1", None)
