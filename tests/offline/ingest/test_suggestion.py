"""`shelfwise import FILE --suggest`: a column mapping guessed from names and rows, which can be imported."""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.cli import app
from offline.ingest.detection import detect
from offline.ingest.importer import DataError, ImportConfig, ImportSummary, import_data, validate
from offline.ingest.suggestion import suggest
from offline.ingest.suggestion.vocabulary import understand
from tests import ROOT, SHARED, invoices

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RAW = SHARED / "data" / "online_retail" / "raw_2009_2010.csv.gz"


def parse(text: str) -> ImportConfig:
    """The suggestion, parsed as an import configuration."""
    return ImportConfig.model_validate(yaml.safe_load(text)["import"])


def table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def imported(source: Path) -> tuple[str, ImportSummary]:
    text = suggest(source)
    return text, validate(parse(text), NOW)


def test_an_invoice_file_is_fully_mapped_and_guesses_are_commented(tmp_path: Path) -> None:
    """Other column names, float IDs, no item file, no event kind, postage: all are handled, with comments."""
    invoices.write(tmp_path / "raw.csv.gz")
    text, summary = imported(tmp_path / "raw.csv.gz")
    section = yaml.safe_load(text)["import"]
    assert (section["folder"], section["tables"]) == (str(tmp_path), {"raw": {"files": "raw.csv.gz"}})
    assert section["events"] == [
        {
            "from": "raw",
            "items_from_events": True,
            "columns": {
                "event": {"value": "purchase"},
                "user_id": "Customer ID",
                "timestamp": "InvoiceDate",
                "session_id": "Invoice",
                "value": "Quantity",
                "item_id": "StockCode",
                "title": "Description",
                "price": "Price",
            },
        }
    ]
    assert set(section["not_products"].split("|")) == {"POST", "M"}
    assert "# the kind of every row, because of Quantity; or impression, view, click, cart, purchase, rating" in text
    assert "timezone: UTC  # moments have no offset: set your shop's time zone, such as Europe/London" in text
    assert "user_id: Customer ID  # empty in " in text
    assert summary.items == 60
    assert summary.users == 80
    assert set(summary.sources[0].quarantined) == {"missing_user", "negative_value", "duplicate_event", "not_a_product"}


@pytest.mark.slow
@pytest.mark.skipif(not RAW.is_file(), reason="the real data of ../shared/data is not here")
def test_a_real_export_is_mapped_as_in_the_example() -> None:
    """The suggested columns equal those of docs/examples/online_retail.yaml."""
    suggested = yaml.safe_load(suggest(RAW))["import"]["events"][0]
    example = yaml.safe_load((ROOT / "docs/examples/online_retail.yaml").read_text())["import"]["events"][0]
    assert suggested["columns"] == example["columns"]
    assert suggested["items_from_events"] == example["items_from_events"]


def test_known_event_names_are_mapped_and_unknown_ones_dropped_with_a_comment(tmp_path: Path) -> None:
    """`addtocart` is a cart and `transaction` a purchase; `quiz` is left to the user."""
    words = ["view", "addtocart", "transaction", "quiz"]
    rows = [
        {"timestamp": 1_433_221_332_117 + k, "visitor": k % 3, "event": words[k % 4], "itemid": k % 5, "basket": k}
        for k in range(40)
    ]
    text, summary = imported(table(tmp_path / "events.csv", rows))
    section = yaml.safe_load(text)["import"]
    assert section["events"][0]["columns"]["event"]["values"] == {
        "view": "view",
        "addtocart": "cart",
        "transaction": "purchase",
        "quiz": "drop",
    }
    assert "quiz: drop  # not known: use one of impression, view, click, cart, purchase, rating, or drop" in text
    assert section["unknown_items"] == "keep", "there is no item file"
    assert summary.events == {"impression": 0, "view": 10, "click": 0, "cart": 10, "purchase": 10, "rating": 0}
    assert summary.sources[0].left_out == {"event quiz": 10}


@pytest.mark.parametrize(
    ("group", "shared", "picture", "link", "found"),
    [
        ("parent_sku", 3, "main_picture", "//cdn.shop.test/{}.jpg", ["parent_sku", "main_picture"]),
        ("item_group_id", 3, "image_link", "https://cdn.shop.test/{}?w=600", ["item_group_id", "image_link"]),
        ("group_id", 60, "Bild", "{}.jpg", [None, None]),  # one group of all items is none, and a file name no address
        ("parent_sku", 1, "link", "https://shop.test/{}", [None, None]),  # every item has a parent of its own
    ],
)
def test_variants_and_pictures_of_a_catalogue_are_mapped(
    tmp_path: Path, group: str, shared: int, picture: str, link: str, found: list[str | None]
) -> None:
    items = [
        {
            "sku": f"S{k:02d}",
            "name": f"Shirt {k}",
            "price": 9 + k,
            group: f"G{k // shared:02d}",
            picture: link.format(k),
        }
        for k in range(60)
    ]
    orders = [
        {"customer_id": k % 9, "order_date": f"2025-01-{1 + k % 28:02d} 10:00:00", "sku": f"S{k % 60:02d}"}
        for k in range(90)
    ]
    table(tmp_path / "products.csv", items)
    table(tmp_path / "orders.csv", orders)
    text, summary = imported(tmp_path)
    columns = yaml.safe_load(text)["import"]["items"][0]["columns"]
    assert [columns.get("group_id"), columns.get("image_url")] == found
    assert summary.items == 60


def test_a_folder_of_products_and_orders_with_semicolons_and_latin_1(tmp_path: Path) -> None:
    """Delimiter, encoding and day-first dates are found on import; titles come from the products."""
    products = [{"SKU": f"A{k}", "Name": f"Stühlchen {k}", "Brand": "Möbel", "Price": k + 0.5} for k in range(4)]
    orders = [
        {
            "Order ID": k,
            "SKU": f"A{k % 4}",
            "Name": "ignored",
            "Customer": f"c{k % 3}",
            "Order Date": f"{k + 10}.06.2024 09:30",
        }
        for k in range(9)
    ]
    table(tmp_path / "products.csv", products, ";", "cp1252")
    table(tmp_path / "orders.csv", orders, ";")
    text, summary = imported(tmp_path)
    section = yaml.safe_load(text)["import"]
    assert section["items"][0]["columns"] == {"item_id": "SKU", "title": "Name", "brand": "Brand", "price": "Price"}
    assert "title" not in section["events"][0]["columns"]
    assert (summary.items, summary.events["purchase"], summary.sources[1].quarantined) == (4, 9, {})


def test_json_lines_and_metarank_files_are_supported(tmp_path: Path) -> None:
    """JSON lines are mapped by their keys. Metarank events have a preset."""
    line = {"customer": "u1", "sku": "a", "ts": 1_700_000_000, "action": "click"}
    (tmp_path / "clicks.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "sku": "b"}) + "\n")
    assert yaml.safe_load(suggest(tmp_path / "clicks.jsonl"))["import"]["events"][0]["columns"] == {
        "user_id": "customer",
        "timestamp": "ts",
        "event": "action",
        "item_id": "sku",
    }
    (tmp_path / "m.jsonl").write_text('{"event": "item", "id": "1", "timestamp": "1700000000000", "item": "a"}\n')
    text = suggest(tmp_path / "m.jsonl")
    assert text.startswith("# The mapping of the preset metarank: Metarank events.\n")
    assert parse(text).events[0].table == "events"


def test_without_events_each_file_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    """The message lists the columns and points to the documentation."""
    table(tmp_path / "a.csv", [{"x": 1, "y": 2}])
    table(tmp_path / "b.csv", [{"user": 1, "item": 2}])
    with pytest.raises(DataError) as error:
        suggest(tmp_path)
    assert "a.csv: has no column of item IDs (x, y)" in str(error.value)
    assert "b.csv: has no column of times, also not in a table that it leads to (user, item)" in str(error.value)
    assert "Write the `import` section by hand; docs/data.md describes every key." in str(error.value)
    with pytest.raises(DataError, match="there is no such file or folder"):
        suggest(tmp_path / "nowhere.csv")


def test_a_file_that_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    """A broken Parquet file, an empty file and a note do not stop the suggestion for the others."""
    (tmp_path / "broken.parquet").write_text("nothing")
    (tmp_path / "empty.csv").touch()
    (tmp_path / "readme.txt").write_text("Hello\nthis is a note\n")
    table(tmp_path / "log.csv", [{"user": 1, "sku": "a", "when": "2026-01-01T00:00:00Z", "type": "view"}])
    text, summary = imported(tmp_path)
    for what in ("broken.parquet: cannot be read", "empty.csv: is empty", "readme.txt: has no column of item IDs"):
        assert f"# - left out: {what}" in text
    assert summary.events["view"] == 1


def test_a_preset_of_events_is_joined_by_the_items_of_other_files(tmp_path: Path) -> None:
    """GA4's events stay as the preset maps them; the feed has descriptions, which GA4 has not, and prices for two."""
    (tmp_path / "export").mkdir()
    at = 1_769_767_200_000_000
    events = [
        {"event_name": name, "event_timestamp": str(at + n), "user_pseudo_id": "p1", "items": items}
        for n, (name, items) in enumerate(
            [
                ("page_view", []),
                ("view_item", [{"item_id": "a", "item_name": "Thing a", "price": "12.5"}]),
                ("purchase", [{"item_id": "old", "item_name": "Thing old", "price": "3"}]),
            ]
        )
    ]
    (tmp_path / "export" / "events_20260130.json").write_text("".join(json.dumps(e) + "\n" for e in events))
    (tmp_path / "export" / "feed.txt").write_text(
        "id\ttitle\tdescription\tprice\tbrand\n"
        "a\tMug\tA <b>big</b> mug\t13.50 EUR\tKiln\nb\tPot\tFor tea\t20 EUR\tKiln\n"
    )
    text = suggest(tmp_path / "export")
    assert text.startswith("# The mapping of the preset ga4: GA4 e-commerce events")
    config = parse(text)
    assert [source.table for source in (*config.items, *config.events)] == ["feed", "events"]
    import_data(config, tmp_path / "data", NOW)
    items = pq.read_table(tmp_path / "data/items.parquet").select(["item_id", "title", "description", "price"])
    assert items.to_pylist() == [
        {"item_id": "a", "title": "Mug", "description": "A big mug", "price": 13.5},
        {"item_id": "b", "title": "Pot", "description": "For tea", "price": 20.0},
        {"item_id": "old", "title": "Thing old", "description": None, "price": 3.0},
    ]
    said = detect(tmp_path / "export")[1]
    assert "left out: feed.txt (not part of the preset)" in said
    assert "so they will have only what the events tell of them. If feed.txt does, map it" in said[-1]


SHOPS = {
    "fr": (
        "cp1252",
        "Référence;Désignation;Famille;Prix unitaire TTC\nR1;Théière;Maison;1 299,00 €\nR2;Torchon;Maison;8,00 €\n",
        "N° commande;Code client;Référence;Date de commande;Quantité;État\nC1;17;R1;30/01/2026 09:05;2;Expédiée\n"
        "C2;18;R2;31/01/2026 18:40;1;Annulée\n",
        {"purchase": 1},
        1,
    ),
    "pl": (
        "cp1250",
        "Kod towaru;Nazwa;Kategoria;Cena brutto\nT1;Kubek łąkowy;Dom;14,50 zł\nT2;Żółty czajnik;Dom;49,90 zł\n",
        "Nr zamówienia;Klient;Kod towaru;Data zamówienia;Ilość;Status\n1;17;T1;30.01.2026 09:05;2;Wysłane\n"
        "2;18;T2;31.01.2026 09:05;1;Anulowane\n3;18;T1;01.02.2026 09:05;1;Zwrot\n",
        {"purchase": 1},
        2,
    ),
    "ru": (
        "cp1251",
        "Артикул;Название;Категория;Цена\nА1;Кружка;Дом;1 450,00 руб.\nА2;Чайник;Дом;4 990,00 руб.\n",
        "Клиент;Артикул;Действие;Время\n1;А1;просмотр;2026-01-30 09:00:00\n1;А1;в корзину;2026-01-30 09:01:00\n"
        "1;А1;покупка;2026-01-30 09:05:00\n2;А2;возврат;2026-02-01 10:00:00\n",
        {"view": 1, "cart": 1, "purchase": 1},
        1,
    ),
    "ko": (
        "euc_kr",
        '상품코드,상품명,카테고리,가격\nP1,머그컵,주방,"14,500원"\nP2,주전자,주방,"49,900원"\n',
        "회원번호,상품코드,행동유형,일시\nU1,P1,조회,2026-01-30 09:00:00\nU1,P1,구매,2026-01-30 09:10:00\n",
        {"view": 1, "purchase": 1},
        0,
    ),
}
"""Encoding, catalogue, log, events by kind, and rows that are cancelled or no event, of a shop of each language."""


@pytest.mark.parametrize("language", SHOPS)
def test_columns_kinds_and_statuses_are_understood_in_many_languages(tmp_path: Path, language: str) -> None:
    """The draft is imported unchanged: every item has its title and price, and a cancelled order is no purchase."""
    encoding, items, log, kinds, left_out = SHOPS[language]
    (tmp_path / "a.csv").write_bytes(items.encode(encoding))
    (tmp_path / "b.csv").write_bytes(log.encode(encoding))
    text, summary = imported(tmp_path)
    columns = yaml.safe_load(text)["import"]["items"][0]["columns"]
    assert {"item_id", "title", "category", "price"} <= set(columns)
    assert {k: n for k, n in summary.events.items() if n} == kinds
    assert sum(sum(s.left_out.values()) for s in summary.sources) == left_out
    assert (summary.items, [n for s in summary.sources for n in s.notes if "cannot be read" in n]) == (2, [])


def test_tables_are_joined_by_keys_whose_values_meet(tmp_path: Path) -> None:
    """Lines lead to orders although `7.0` is written for `7`; items lead to brands and a tree of categories."""
    (tmp_path / "products.csv").write_text("id,name,brand_id,category_id\n1,Mug,5.0,3\n2,Pot,,1\n")
    (tmp_path / "brands.csv").write_text("id,name\n5,Kiln\n6,Lin\n")
    (tmp_path / "categories.csv").write_text("id,name,parent_id\n1,Home,\n3,Cups,1.0\n")
    (tmp_path / "orders.csv").write_text(
        "id,customer_id,created_at,status\n7,20,2026-01-01 10:00,paid\n8,21,2026-01-02,void\n"
    )
    (tmp_path / "order_lines.csv").write_text("id,order_id,product_id,units\n1,7.0,1,2\n2,7.0,2,1\n3,8.0,1,1\n")
    text, summary = imported(tmp_path)
    section = yaml.safe_load(text)["import"]
    assert section["events"][0]["join"] == [{"table": "orders", "keys": {"order_id": "id"}}]
    assert section["items"][0]["columns"]["brand"] == "brands.name"
    assert section["items"][0]["columns"]["category"] == "categories_paths.path"
    assert (summary.items, summary.users, summary.events["purchase"]) == (2, 1, 2)


ORDER_LINES = "order_id,customer,sku,order_date,unit_price,{}\n"
LINE_ROWS = (("7", "u", "a"), ("7", "u", "b"), ("8", "v", "a"))
"""Order, shopper and item of three lines."""


@pytest.mark.parametrize(
    ("column", "cells", "event_id", "ids"),
    [
        ("line_no", "121", {"sql": '"lines"."order_id" || \':\' || "lines"."line_no"'}, ["7:1", "7:2", "8:1"]),
        ("position", "121", {"sql": '"lines"."order_id" || \':\' || "lines"."position"'}, ["7:1", "7:2", "8:1"]),
        ("line_id", "456", "line_id", ["4", "5", "6"]),
        ("id", "456", "id", ["4", "5", "6"]),
        ("qty", "121", {"sql": '"lines"."order_id" || \':\' || "lines"."sku"'}, ["7:a", "7:b", "8:a"]),
    ],
)
def test_lines_of_orders_are_named_by_an_id_a_number_or_their_item(
    tmp_path: Path, column: str, cells: str, event_id: Any, ids: list[str]
) -> None:
    """A line that a second export has again, with another price, is the same purchase."""
    text = ORDER_LINES.format(column)
    for (order, user, item), cell in zip(LINE_ROWS, cells, strict=True):
        text += f"{order},{user},{item},2026-01-30 10:00,3.50,{cell}\n"
    (tmp_path / "lines.csv").write_text(text)
    config = parse(suggest(tmp_path))
    columns = yaml.safe_load(suggest(tmp_path))["import"]["events"][0]["columns"]
    assert columns["event_id"] == event_id
    assert "position" not in columns, "the place of a line in its order is none in a shown list"
    (tmp_path / "lines.csv").write_text(text + text.splitlines()[1].replace("3.50", "3.60") + "\n")
    summary = import_data(config, tmp_path / "data", NOW)
    assert sorted(pq.read_table(tmp_path / "data/events.parquet")["event_id"].to_pylist()) == ids
    assert summary.sources[0].quarantined == {"duplicate_event": 1}


def test_lines_that_nothing_tells_apart_have_no_event_id(tmp_path: Path) -> None:
    """Order 7 has the item twice, with two quantities."""
    lines = "7,u,a,2026-01-30 10:00,3.50,1\n7,u,a,2026-01-30 10:00,3.50,2\n,v,b,2026-01-30 10:00,3.50,1\n"
    (tmp_path / "lines.csv").write_text(ORDER_LINES.format("qty") + lines)
    text, summary = imported(tmp_path)
    assert "event_id" not in yaml.safe_load(text)["import"]["events"][0]["columns"]
    assert summary.events["purchase"] == 3


@pytest.mark.parametrize(("again", "filled"), [("1", ["email", "date"]), ("", ["order", "email", "date"])])
def test_columns_of_the_first_row_of_an_order_are_filled_down(tmp_path: Path, again: str, filled: list[str]) -> None:
    """The second row of order 1 has no e-mail of its own; order 2 has none at all, and is rejected."""
    (tmp_path / "orders.csv").write_text(
        f"order,email,date,sku,qty\n1,a@x.example,2026-01-30 10:00,A,1\n{again},,,B,1\n{again},,,C,1\n"
        "2,,2026-01-31 10:00,A,2\n3,c@x.example,2026-02-01 10:00,A,2\n"
    )
    text, summary = imported(tmp_path)
    table = yaml.safe_load(text)["import"]["tables"]["orders"]
    assert table == {"files": "orders.csv", "fill_down": filled, "key": "order"}
    assert "user_id: email  # empty in 20.0% of the rows, which are rejected" in text
    assert (summary.events["purchase"], summary.users) == (4, 2)
    assert summary.sources[0].quarantined == {"missing_user": 1}


def test_a_missing_shopper_is_not_that_of_another_order(tmp_path: Path) -> None:
    """Each order has one row here, so nothing is filled down."""
    (tmp_path / "orders.csv").write_text(
        "order,email,date,sku\n1,a@x.example,2026-01-30,A\n2,,2026-01-31,B\n,,2026-01-31,C\n"
    )
    text, summary = imported(tmp_path)
    assert "fill_down" not in text
    assert summary.sources[0].quarantined == {"missing_user": 2}


def test_columns_with_points_in_their_names_can_be_read_by_the_sql_of_a_draft(tmp_path: Path) -> None:
    """The ID, the moment of two columns and the condition on a status name them in quotes."""
    (tmp_path / "bestellungen.csv").write_text(
        "Best.-Nr.;Kunden-Nr.;Art.-Nr.;Best.-Datum;Uhrzeit;Best.-Status\n1;20;a;30.01.2026;10:05;Versendet\n"
        "1;20;b;30.01.2026;10:05;Storniert\n"
    )
    (tmp_path / "artikel.csv").write_text("Art.-Nr.;Bezeichnung;Gew. (kg)\na;Topf;1,5\nb;Tasse;0,25\n")
    text, summary = imported(tmp_path)
    items = yaml.safe_load(text)["import"]["items"][0]["columns"]
    assert items["Gew. (kg)"] == {"path": "Gew. (kg)", "type": "number", "decimal": ","}
    columns = yaml.safe_load(text)["import"]["events"][0]["columns"]
    assert columns["event_id"] == {"sql": '"bestellungen"."Best.-Nr." || \':\' || "bestellungen"."Art.-Nr."'}
    assert columns["timestamp"] == {
        "sql": '"bestellungen"."Best.-Datum" || \' \' || coalesce("bestellungen"."Uhrzeit", \'0:00\')'
    }
    assert (summary.events["purchase"], summary.first) == (1, "2026-01-30T10:05:00+00:00")


def test_a_column_of_currencies_is_that_of_its_prices_and_the_most_frequent_the_shops_own(tmp_path: Path) -> None:
    """Two of three products are in EUR. With a dollar at 0.5, the mug costs 8 USD * 0.5 = 4."""
    products = "sku,name,price,currency\na,Pot,10.50,EUR\nb,Cup,3,eur\nc,Mug,8,USD\n"
    (tmp_path / "products.csv").write_text(products)
    (tmp_path / "orders.csv").write_text("order_id,customer,sku,order_date\n1,u,a,2026-01-30\n2,u,c,2026-01-31\n")
    text, summary = imported(tmp_path)
    section = yaml.safe_load(text)["import"]
    assert (section["currency"], section["items"][0]["columns"]["price"]) == (
        "EUR",
        {"path": "price", "currency": "currency"},
    )
    flat = " ".join(text.replace("#", " ").split())
    assert "the most frequent of EUR 67%, USD 33%. Add `rates`, such as {USD: 0.92}" in flat
    assert "price: 1 cells are in 'USD', which has no rate, and count as missing" in summary.sources[0].notes
    config = ImportConfig.model_validate({**section, "rates": {"USD": 0.5}})
    import_data(config, tmp_path / "data", NOW)
    items = pq.read_table(tmp_path / "data/items.parquet")
    assert items["price"].to_pylist() == [10.5, 3.0, 4.0]
    assert "currency" not in items.column_names


def test_the_currency_of_an_order_is_that_of_the_prices_of_its_lines(tmp_path: Path) -> None:
    """The column is in the table of orders; the lines create the items. One currency needs no rates."""
    (tmp_path / "orders.csv").write_text(
        "order_id,customer_id,created_at,currency\n7,20,2026-01-01 10:00,CHF\n8,21,2026-01-02 10:00,CHF\n"
    )
    (tmp_path / "order_lines.csv").write_text("order_id,sku,name,unit_price\n7,a,Pot,2.5\n7,b,Cup,4\n8,a,Pot,2.5\n")
    text, summary = imported(tmp_path)
    section = yaml.safe_load(text)["import"]
    assert section["events"][0]["columns"]["price"] == {"path": "unit_price", "currency": "orders.currency"}
    assert "currency: CHF  # the currency of all prices" in text
    assert (summary.items, summary.events["purchase"]) == (2, 3)


def test_codes_beside_prices_are_currencies_if_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(
        "customer,sku,order_date,price\nu,a,2026-01-30,2.50 GBP\nu,b,2026-01-31,£3\nu,c,2026-01-31,4.00 USD\n"
    )
    text, _ = imported(tmp_path)
    assert "currency: GBP" in text
    (tmp_path / "log.csv").write_text("customer,sku,order_date,price\nu,a,2026-01-30,2.50 GBP\nu,b,2026-01-31,£3\n")
    assert "currency" not in imported(tmp_path)[0]


def test_of_twins_the_readable_first_and_single_one_is_mapped(tmp_path: Path) -> None:
    """The shopper not its hash, the moment of the order not of its change, the price of a piece not the total."""
    row: dict[str, Any] = {
        "customer_hash": "h1",
        "customer_ref": "C1",
        "sku": "S1",
        "sku_hash": "x1",
        "updated_at": "2026-02-01T00:00:00Z",
    }
    row |= {"created_at": "2026-01-30T00:00:00Z", "line_total": 29, "list_price": 19.5, "unit_price": 14.5, "qty": 2}
    text, _ = imported(table(tmp_path / "lines.csv", [{**row, "note": "", "batch": "b"}] * 3))
    columns = yaml.safe_load(text)["import"]["events"][0]["columns"]
    assert {k: columns[k] for k in ("user_id", "item_id", "timestamp", "price", "value")} == {
        "user_id": "customer_ref",
        "item_id": "sku",
        "timestamp": "created_at",
        "price": "unit_price",
        "value": "qty",
    }
    assert "note (empty), batch (always 'b')" in text.replace("\n#  ", "")


@pytest.mark.parametrize(
    ("name", "same"), [("ลูกค้า", "customer"), ("สินค้า", "product"), ("会員", "customer"), ("고객", "customer")]
)
def test_column_names_keep_the_marks_of_their_words(name: str, same: str) -> None:
    """The Thai words for customer and product have vowel signs and tones that are no letters."""
    assert understand(name) == understand(same)
    assert understand(name).concepts


@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12), max_size=5, unique=True
    ),
    cell=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)
@settings(max_examples=8, deadline=None)
def test_a_suggestion_is_always_a_valid_configuration(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], cell: str
) -> None:
    """Whatever the names and cells of other columns: quotes, colons, hashes, emoji."""
    names = [n for n in names if n.strip()]
    rows = [
        {"Customer": cell or "u", "SKU": cell or "i", "When?": cell, "date": "2024-01-01", **dict.fromkeys(names, cell)}
    ] * 2
    path = table(tmp_path_factory.mktemp("any") / "o: 'rders' #1.csv", rows)
    try:
        text = suggest(path)
    except DataError:
        return  # a file that cannot be read as CSV
    config = parse(text)
    assert config.folder / str(config.tables[config.events[0].table].files) == path


def test_the_command_prints_yaml_that_can_be_saved_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard output is only the YAML. The error of an import without a mapping names the command."""
    monkeypatch.chdir(tmp_path)
    invoices.write(tmp_path / "raw.csv.gz", baskets=30)

    def run_command(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["shelfwise", *arguments])
        with pytest.raises(SystemExit):
            app.main()
        return capfd.readouterr()

    out, _ = run_command("import", "raw.csv.gz", "--suggest")
    assert parse(out).events[0].table == "raw"
    _, err = run_command("import", "raw.csv.gz")
    assert "`shelfwise import raw.csv.gz --suggest > shop.yaml` suggests a mapping" in " ".join(err.split())
    _, err = run_command("import", "--suggest")
    assert "--suggest needs a file or folder" in err
    (tmp_path / "shop.yaml").write_text(out)
    out, _ = run_command("import", "--config", "shop.yaml")
    assert "next: shelfwise nightly --config shop.yaml" in out


@pytest.mark.parametrize(
    ("column", "cells", "withdrawn"),
    [
        ("状态", ["在售", "下架", "在售", "在售"], {"A2"}),
        ("Status", ["lieferbar", "Auslauf", "", "inaktiv"], {"A2", "A4"}),
        ("is_active", ["1", "0", "1", "1"], {"A2"}),
        ("hidden", ["no", "yes", "no", "no"], {"A2"}),
        ("status", ["new", "used", "new", "new"], set()),
    ],
)
def test_products_that_are_not_sold_are_not_available(
    tmp_path: Path, column: str, cells: list[str], withdrawn: set[str]
) -> None:
    """By a status of several words, or by a flag; a status that says something else is an attribute."""
    items = [
        {"sku": f"A{n}", "name": f"Mug {n} blue", "price": f"{n}.50", column: cell} for n, cell in enumerate(cells, 1)
    ]
    table(tmp_path / "products.csv", items)
    sales = [{"customer": f"u{n}", "sku": f"A{n}", "ordered_at": f"2026-01-0{n} 10:00"} for n in range(1, 5)]
    table(tmp_path / "orders.csv", sales)
    config = parse(suggest(tmp_path)).model_copy(update={"folder": tmp_path})
    summary = import_data(config, tmp_path / "data", NOW)
    assert summary.events["purchase"] == 4
    rows = pq.read_table(tmp_path / "data" / "items.parquet").to_pylist()
    assert {row["item_id"] for row in rows if row.get("available") is False} == withdrawn
    assert (column in rows[0]) == (not withdrawn)
