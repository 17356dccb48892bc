"""Presets of shop systems, feeds and event trackers: what is read of each, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.offline.ingest.exports import import_export, lines

OWN_EVENTS = "event,user_id,item_id,timestamp\nview,u1,p1,2026-01-30T10:00:00Z\npurchase,u1,p2,2026-01-30T10:05:00Z\n"


WOO_PRODUCTS = {
    "wc-export.csv": "\ufeffID,Type,SKU,Name,Description,Sale price,Regular price,Categories,Tags,Parent,Brands,"
    "Attribute 1 name,Attribute 1 value(s)\n"
    '7,variable,TEE,Tee,<p>Soft</p>\\n<p>cotton</p>,,,"Wear > Tees, New",,,Dock,Size,"S, M"\n'
    "8,variation,TEE-S,Tee - S,,,21,,,TEE,,Size,S\n9,variation,TEE-M,Tee - M,,18.5,21,,,id:7,,Size,M\n"
    '10,simple,SOAP,Soap,,,6.5,"Bath\\, body",,,,,\n'
}


def test_woocommerce_variations_are_their_product_and_order_columns_stand_on_the_first_row(tmp_path: Path) -> None:
    orders = (
        "Order Number,Order Status,Order Date,Email (Billing),SKU,Item Name,Quantity (- Refund),Item Cost\n"
        "1,Completed,2026-01-30 09:05,a@example.com,TEE-S,Tee - S,1,21\n,,,,TEE-M,Tee - M,1,21\n,,,,SOAP,Soap,0,6.5\n"
        "2,Cancelled,2026-01-30 09:06,b@example.com,SOAP,Soap,1,6.5\n3,Failed,2026-01-30 09:07,,SOAP,Soap,1,6.5\n"
        "4,Processing,2026-01-30 09:08,,SOAP,Soap,1,6.5\n5,Completed,2026-01-30 09:09,c@example.com,OLD,Old cup,2,3\n"
    )
    got = import_export(tmp_path, {**WOO_PRODUCTS, "orders.csv": orders})
    # Order 4 has no e-mail of its own, and does not take the one of the order above.
    assert got.quarantined == {"missing_user": 1}
    assert got.events == [
        ("purchase", "a@example.com", "7", 1.0),
        ("purchase", "a@example.com", "7", 1.0),
        ("purchase", "c@example.com", "OLD", 2.0),
    ]
    assert got.left_out == {"event line sent back": 1, "event order cancelled": 1, "event order failed": 1}
    tee, soap = got.items["7"], got.items["10"]
    # The lowest price of the variations.
    assert (tee["price"], tee["category"], tee["categories"], tee["Size"]) == (
        18.5,
        "Wear > Tees",
        ["Wear > Tees", "New"],
        ["S", "M"],
    )
    assert (tee["description"], soap["category"], got.items["OLD"]["title"]) == ("Soft cotton", "Bath, body", "Old cup")


SHOPIFY_ORDER = "Name,Email,Financial Status,Created at,Cancelled at,Lineitem quantity,Lineitem name,Lineitem sku\n"
SHOPIFY_PRODUCTS = (
    "Handle,Title,Body (HTML),Vendor,Type,Tags,Variant SKU,Variant Price\n"
    "mug,Mug,,Kiln,Mugs,,MUG-B,14.50\nmug,,,,,,MUG-R,15.00\n"
)
BIG_LINE = "Product ID: 7, Product Qty: 1, Product SKU: {}, Product Name: Mug"
VARIANTS: Mapping[str, Mapping[str, str]] = {
    "shopify": {
        "products.csv": SHOPIFY_PRODUCTS,
        "orders.csv": SHOPIFY_ORDER + "#1,a@x.example,paid,2026-01-31 10:15:22 +0100,,1,Mug - Blue,MUG-B\n"
        "#1,,,2026-01-31 10:15:22 +0100,,1,Mug - Red,MUG-R\n"
        "#2,a@x.example,paid,2026-01-31 10:15:22 +0100,,1,Mug - Red,MUG-R\n",
    },
    "bigcommerce": {
        "products.csv": "Item Type,Product ID,Product Name,Product Code/SKU,Price,Category\nProduct,7,Mug,MUG,9,Mugs\n",
        "orders.csv": "Order ID,Customer ID,Customer Email,Order Date,Order Status,Product Details\n"
        f'1,5,a@x.example,2026-01-30,Shipped,"{BIG_LINE.format("MUG-B")}|{BIG_LINE.format("MUG-R")}"\n'
        f'2,5,a@x.example,2026-01-30,Shipped,"{BIG_LINE.format("MUG-R")}"\n',
    },
    "woocommerce": {
        **WOO_PRODUCTS,
        "orders.csv": "Order Number,Order Status,Order Date,Email (Billing),SKU,Item Name,Quantity,Item Cost\n"
        "1,Completed,2026-01-30 09:05,a@x.example,TEE-S,Tee - S,1,21\n,,,,TEE-M,Tee - M,1,21\n"
        "2,Completed,2026-01-30 09:05,a@x.example,TEE-M,Tee - M,1,21\n",
    },
    "magento2": {
        "catalog.csv": "sku,store_view_code,attribute_set_code,product_type,name,price,"
        "configurable_variations,visibility\n"
        'mug,,Default,configurable,Mug,,"sku=mug-b,color=blue|sku=mug-r,color=red",Catalog\n'
        "mug-b,,Default,simple,Mug Blue,9,,Not Visible Individually\n"
        "mug-r,,Default,simple,Mug Red,9,,Not Visible Individually\n",
        "sales_order.csv": "entity_id,state,status,customer_email,created_at\n"
        "1,complete,complete,a@x.example,2026-01-30 09:05:00\n2,complete,complete,a@x.example,2026-01-30 09:05:00\n",
        "sales_order_item.csv": "item_id,order_id,parent_item_id,product_type,sku,name,qty_ordered,price\n"
        "1,1,,configurable,mug-b,Mug,1,9\n2,1,1,simple,mug-b,Mug Blue,1,0\n3,1,,configurable,mug-r,Mug,1,9\n"
        "4,1,3,simple,mug-r,Mug Red,1,0\n5,2,,configurable,mug-r,Mug,1,9\n",
    },
    "olist": {
        "orders.csv": "order_id,customer_id,order_status,order_purchase_timestamp\n"
        "o1,c1,delivered,2026-01-30 09:05:00\no2,c2,delivered,2026-01-30 09:05:00\n",
        "customers.csv": "customer_id,customer_unique_id\nc1,a@x.example\nc2,a@x.example\n",
        "lines.csv": "order_id,order_item_id,product_id,seller_id,price\no1,1,mug,s,9\no1,2,mug,s,9\no2,1,mug,s,9\n",
    },
}


@pytest.mark.parametrize("preset", VARIANTS)
def test_lines_of_one_product_in_one_order_are_an_event_each(tmp_path: Path, preset: str) -> None:
    """Two variants of a product in order 1, and one in order 2 of the same shopper and time: 2 + 1 events."""
    got = import_export(tmp_path, VARIANTS[preset])
    assert (got.preset, got.quarantined) == (preset, {})
    assert [(event, user) for event, user, _, _ in got.events] == [("purchase", "a@x.example")] * 3
    assert len({item for _, _, item, _ in got.events}) == 1


def test_shopify_drafts_and_archived_products_are_not_for_sale_but_their_sales_count(tmp_path: Path) -> None:
    """Only the first row of a product has its status; older exports have none, and `Published` alone may hide one."""
    products = (
        "Handle,Title,Body (HTML),Vendor,Option1 Value,Variant SKU,Variant Price,Published,Status\n"
        "mug,Mug,,,S,M-S,9,true,active\nmug,,,,L,M-L,9,,\ncap,Cap,,,,CAP,5,true,archived\n"
        "hat,Hat,,,,HAT,5,TRUE,Draft\nbag,Bag,,,,BAG,5,false,active\npen,Pen,,,,PEN,1,,\n"
    )
    orders = SHOPIFY_ORDER + "#1,a@x.example,paid,2026-01-31 10:15:22 +0100,,1,Cap,CAP\n"
    got = import_export(tmp_path, {"products.csv": products, "orders.csv": orders})
    assert {i for i, item in got.items.items() if item["available"] is False} == {"cap", "hat", "bag"}
    assert [item for _, _, item, _ in got.events] == ["cap"]
    assert got.items["mug"].keys() & {"Status", "Published"} == set(), "they would tell the ranker what is sold"
    assert any("3 items are not available" in note for note in got.summary.notes)


def test_woocommerce_drafts_private_and_hidden_products_are_not_for_sale(tmp_path: Path) -> None:
    products = (
        "ID,Type,SKU,Name,Published,Visibility in catalog,Regular price,Categories\n"
        "1,simple,A,Mug,1,visible,9,Home\n2,simple,B,Cup,-1,visible,9,Home\n3,simple,C,Jug,0,visible,9,Home\n"
        "4,simple,D,Pot,1,hidden,9,Home\n5,simple,E,Can,1,search,9,Home\n"
    )
    orders = "Order ID,Status,Order Date,Billing Email,Product SKU\n1,Completed,2026-01-30 09:05,a@example.com,B\n"
    got = import_export(tmp_path, {"p.csv": products, "o.csv": orders})
    assert {i for i, item in got.items.items() if item["available"] is False} == {"2", "3", "4"}
    assert [item for _, _, item, _ in got.events] == ["2"]


@pytest.mark.parametrize("preset", ["shopify", "woocommerce"])
def test_a_line_that_is_exported_twice_is_one_event(tmp_path: Path, preset: str) -> None:
    """The last line of the file again, as in the overlap of two exports: equal in all cells."""
    orders = VARIANTS[preset]["orders.csv"]
    again = orders + orders.splitlines()[-1] + "\n"
    got = import_export(tmp_path, {**VARIANTS[preset], "orders.csv": again})
    assert (len(got.events), got.quarantined) == (3, {"duplicate_event": 1})


@pytest.mark.parametrize(
    "header",
    [
        "Handle,Title,Body (HTML),Vendor,Product Category,Type,Option1 Value,Option2 Value,Variant SKU,Variant Price",
        "URL handle,Title,Description,Vendor,Product category,Type,Option1 value,Option2 value,SKU,Price",
    ],
)
def test_shopify_lines_without_an_sku_lead_to_the_product_by_name(tmp_path: Path, header: str) -> None:
    """`Mug - M / Red` and `Bar` are full names. Two products are Twin, none is Tip, and OLD is no longer there."""
    products = (
        f"\ufeff{header}\n"
        "mug,Mug,<p>Big</p>,Kiln,Home > Mugs,Mugs,S,Blue,MUG-S,9\nmug,,,,,,M,Red,,9\n"
        "bar,Bar,,,,,Default Title,,,2\ntwin,Twin,,,,,Default Title,,,5\ntwin-2,Twin,,,,,Default Title,,,6\n"
    )
    named = ["Mug - S / Blue,MUG-S", "Mug - M / Red,", "Bar,", "Twin,", "Tip,", "Old,OLD"]
    orders = SHOPIFY_ORDER + "".join(
        f"#{n},a@x.example,paid,2026-01-31 10:15:22 +0100,,1,{line}\n" for n, line in enumerate(named)
    )
    got = import_export(tmp_path, {"products.csv": products, "orders.csv": orders})
    assert got.preset == "shopify"
    assert sorted(item for _, _, item, _ in got.events) == ["bar", "mug", "mug"]
    assert got.quarantined == {"missing_item": 2, "unknown_item": 1}
    mug = {k: got.items["mug"][k] for k in ("title", "description", "category", "price", "Type")}
    assert mug == {"title": "Mug", "description": "Big", "category": "Home > Mugs", "price": 9.0, "Type": "Mugs"}
    # The message names the column of the file and not of the table that it leads to.
    assert any("column Lineitem sku: the row does not identify an item" in line for line in got.summary.examples)


def test_woocommerce_headers_may_be_in_the_language_of_the_shop(tmp_path: Path) -> None:
    products = (
        "ID,Typ,Artikelnummer,Name,Regulärer Preis,Kategorien,Übergeordnetes Produkt\n"
        '10,simple,SEIFE,Seife,"6,50",Bad,\n'
    )
    orders = (
        "Order ID,Status,Order Date,Billing Email,Product SKU,Quantity\n"
        "1,Storniert,2026-01-30 09:05,a@example.com,SEIFE,1\n2,Abgeschlossen,2026-01-30 09:06,a@example.com,SEIFE,3\n"
    )
    got = import_export(tmp_path, {"produkte.csv": products, "orders.csv": orders})
    assert got.events == [("purchase", "a@example.com", "10", 3.0)]
    assert got.left_out == {"event order cancelled": 1}
    assert (got.items["10"]["price"], got.items["10"]["category"]) == (6.5, "Bad")


def test_woocommerce_quantities_left_after_refunds_are_taken_where_both_are_there(tmp_path: Path) -> None:
    """Three soaps, one of them sent back; `Quantity` differs only in case from the name that the preset gives."""
    orders = (
        "Order Number,Order Status,Order Date,Email (Billing),SKU,Quantity,Quantity (- Refund)\n"
        "1,Completed,2026-01-30 09:05,a@example.com,SOAP,3,2\n1,Completed,2026-01-30 09:05,a@example.com,TEE-S,1,0\n"
    )
    got = import_export(tmp_path, {**WOO_PRODUCTS, "orders.csv": orders})
    assert got.events == [("purchase", "a@example.com", "10", 2.0)]
    assert got.left_out == {"event line sent back": 1}
    assert not any("created from their events" in note for note in got.summary.notes), "none was"


def test_german_weights_have_a_decimal_comma_as_prices_do(tmp_path: Path) -> None:
    """A file without a price with a comma tells nothing of `36,38`, which are sizes there."""
    header = "ID,Typ,Artikelnummer,Name,Regulärer Preis,Kategorien,Gewicht (kg),Bilder\n"
    rows = '10,simple,S,Seife,"{}",Bad,"0,25",s.jpg\n11,simple,B,Becher,9,Bad,"1.000,5",b.jpg\n'
    orders = "Order ID,Status,Order Date,Billing Email,Product SKU\n1,Completed,2026-01-30 09:05,a@example.com,S\n"
    (tmp_path / "comma").mkdir()
    (tmp_path / "point").mkdir()
    comma = import_export(tmp_path / "comma", {"p.csv": header + rows.format("6,50"), "o.csv": orders}).items
    point = import_export(tmp_path / "point", {"p.csv": header + rows.format("6.50"), "o.csv": orders}).items
    assert [comma[i]["Gewicht (kg)"] for i in ("10", "11")] == [0.25, 1000.5]
    assert [point[i]["Gewicht (kg)"] for i in ("10", "11")] == ["0,25", "1.000,5"]
    assert "Bilder" not in comma["10"]


@pytest.mark.parametrize(
    ("name", "price", "categories"),
    [("Name *", "Price tax excluded", "Categories (x,y,z...)"), ("Name", "Price (tax excl.)", "Category")],
)
def test_prestashop_features_are_pairs_and_zero_dates_are_missing(
    tmp_path: Path, name: str, price: str, categories: str
) -> None:
    products = (
        f"Product ID;Active (0/1);{name};{categories};{price};Wholesale price;Manufacturer;Summary;Description;"
        f"Tags (x,y,z...);Product available date;Feature(Name:Value:Position)\n"
        'p1;1;"Mug; ""blue""";Home,Mugs;15.9;4;Kiln;<p>Big</p>;"<b>Blue</b> &amp; round";gift,blue;0000-00-00;'
        "Colour:blue:1,Made in:Graz:2\n"
        "p2;0;Tray;Home;;4;;;;;2026-03-01;\n"
    )
    got = import_export(tmp_path, {"products.csv": products, "events.csv": OWN_EVENTS})
    mug, tray = got.items["p1"], got.items["p2"]
    assert (mug["title"], mug["price"], mug["brand"], mug["description"]) == (
        'Mug; "blue"',
        15.9,
        "Kiln",
        "Big Blue & round",
    )
    assert (mug["category"], mug["Colour"], mug["Made in"], mug["tags"]) == (
        "Home > Mugs",
        "blue",
        "Graz",
        ["gift", "blue"],
    )
    assert (mug["available_from"], tray["available_from"], tray["price"]) == (
        None,
        datetime(2026, 3, 1, tzinfo=UTC),
        None,
    )
    assert "Wholesale price" not in mug
    assert len(got.events) == 2


def test_yml_offers_have_the_path_of_their_category_and_one_or_several_parameters(tmp_path: Path) -> None:
    feed = (
        '<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE yml_catalog SYSTEM "shops.dtd"><yml_catalog '
        'date="2026-01-30"><shop><name>S</name>'
        '<categories><category id="1">Home</category><category id="11" parentId="1">Mugs</category></categories><'
        "offers>"
        '<offer id="p1" group_id="7" available="true"><name>Mug</name><price>490.50</price><categoryId>11</categoryId><'
        "vendor>Kiln</vendor>"
        '<description><![CDATA[<p>Of <b>clay</b></p>]]></description><param name="Colour">blue</param><param '
        'name="Volume" unit="ml">300</param></offer>'
        '<offer id="p2" type="vendor.model"><typePrefix>Kettle</typePrefix><vendor>Vapeur</vendor><model>K2<'
        "/model><price>1200</price>"
        '<categoryId>1</categoryId><param name="Colour">white</param></offer></offers></shop></yml_catalog>'
    )
    got = import_export(tmp_path, {"market.yml": feed, "events.csv": OWN_EVENTS})
    mug, kettle = got.items["p1"], got.items["p2"]
    assert (mug["title"], mug["category"], mug["price"], mug["description"]) == ("Mug", "Home > Mugs", 490.5, "Of clay")
    assert (mug["Colour"], mug["Volume"], kettle["Colour"]) == ("blue", 300.0, "white")
    assert (kettle["title"], kettle["category"], kettle["brand"]) == ("Kettle Vapeur K2", "Home", "Vapeur")
    assert (mug["group_id"], kettle["group_id"]) == ("7", None)


def test_vespa_operations_are_applied_in_order_to_the_documents_that_events_name(tmp_path: Path) -> None:
    feed = lines(
        {
            "put": "id:s:thing::p1",
            "fields": {"title": "Mug", "price": 9, "categories": ["Home"], "tags": {"gift": 2}, "v": {"values": [0.1]}},
        },
        {"put": "id:s:thing:g=eu:p2", "fields": {"title": "Old", "price": 5}},
        {"remove": "id:s:thing:g=eu:p2"},
        {"put": "id:s:thing:g=eu:p2", "fields": {"title": "New"}},
        {"update": "id:s:thing::p1", "fields": {"price": {"assign": 7.5}, "categories": {"add": ["Mugs"]}}},
        {"id": "id:s:thing::p3", "fields": {"title": "Kept", "pos": {"lat": 48, "lng": 16}}},
        {"put": "id:s:thing::p4", "fields": {"title": "Gone"}},
        {"remove": "id:s:thing::p4"},
        *({"put": f"id:s:review::r{i}", "fields": {"text": "x"}} for i in range(4)),
    )
    got = import_export(tmp_path, {"feed.jsonl": feed, "events.csv": OWN_EVENTS})
    assert sorted(got.items) == ["p1", "p2", "p3"]
    assert got.left_out == {"row excluded by `where`": 4}
    mug = got.items["p1"]
    assert (mug["price"], mug["categories"], mug["tags"]) == (7.5, ["Home", "Mugs"], ["gift"])
    assert (got.items["p2"]["title"], got.items["p2"]["price"]) == ("New", None)
    assert not {"v", "pos"} & mug.keys()


def test_ubi_queries_show_their_hits_and_actions_without_a_product_are_left_out(tmp_path: Path) -> None:
    def query(number: int, hits: list[str]) -> dict[str, Any]:
        at = {"timestamp": f"2026-01-30T09:0{number}:00.120Z", "client_id": "c", "user_query": "mug"}
        return {**at, "query_id": f"q{number}", "object_id_field": "sku", "query_response_hit_ids": hits}

    def action(name: str, item: str | None) -> dict[str, Any]:
        what = {"object": {"object_id": item}, "position": {"ordinal": 2}} if item else {"session_id": "s"}
        return {
            "action_name": name,
            "query_id": "q1",
            "client_id": "c",
            "timestamp": "2026-01-30T09:02:00Z",
            "event_attributes": what,
        }

    got = import_export(
        tmp_path,
        {
            "queries.jsonl": lines(query(1, ["A", "B"]), query(5, [])),
            "events.jsonl": lines(action("on_search", None), action("click", "B"), action("add_to_cart", "B")),
            "bulk.ndjson": lines(
                {"index": {"_id": "1"}},
                {"sku": "A", "title": "Mug", "price": 3},
                {"index": {"_id": "2"}},
                {"sku": "B", "title": "Cup", "price": 4},
            ),
        },
    )
    assert [e[:3] for e in got.events] == [
        ("impression", "c", "A"),
        ("impression", "c", "B"),
        ("cart", "c", "B"),
        ("click", "c", "B"),
    ]
    assert [(r["position"], r["request_id"], r["query"]) for r in got.rows[:2]] == [(0, "q1", "mug"), (1, "q1", "mug")]
    assert got.rows[3]["request_id"] == "q1"
    assert got.left_out == {"event action without a product": 1, "row excluded by `where`": 1}
    assert {i: row["title"] for i, row in got.items.items()} == {"A": "Mug", "B": "Cup"}


@pytest.mark.parametrize("version", ["1", "1_0_2"])
def test_snowplow_actions_are_nested_and_an_event_id_told_twice_is_one_event(tmp_path: Path, version: str) -> None:
    vendor = "com_snowplowanalytics_snowplow_ecommerce"

    def event(number: int, action: str | None, *products: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {
            "event_id": f"e{number}",
            "domain_userid": "d",
            "user_id": None,
            "collector_tstamp": f"2026-01-30T09:0{number}:01Z",
        }
        out |= {"derived_tstamp": f"2026-01-30T09:0{number}:00.3Z", "dvce_type": "Computer"}
        out |= {f"unstruct_event_{vendor}_snowplow_ecommerce_action_{version}": {"type": action}} if action else {}
        return out | ({f"contexts_{vendor}_product_{version}": list(products)} if products else {})

    a, b = (
        {"id": "A", "name": "Mug", "category": "Home/Mugs", "price": 9.5, "list_price": 12},
        {"id": "B", "name": "Cup"},
    )
    got = import_export(
        tmp_path,
        {
            "enriched.jsonl": lines(
                event(0, None),
                event(1, "list_view", {**a, "position": 1}, {**b, "position": 2}),
                event(2, "list_click", b),
                event(3, "transaction", {**a, "quantity": 2}, {**b, "quantity": 1}),
                event(3, "transaction", {**a, "quantity": 2}, {**b, "quantity": 1}),
                event(4, "refund", a),
                event(5, "checkout_step"),
            )
        },
    )
    assert got.events == [
        ("impression", "d", "A", None),
        ("impression", "d", "B", None),
        ("click", "d", "B", None),
        ("purchase", "d", "A", 2.0),
        ("purchase", "d", "B", 1.0),
    ]
    assert [(r["position"], r["device"]) for r in got.rows[:2]] == [(0, "desktop"), (1, "desktop")]
    # The click is on the list of the minute before.
    assert got.rows[2]["request_id"] == "e1"
    assert got.quarantined == {"duplicate_event": 2}
    assert got.left_out == {"event no e-commerce action": 1, "event refund": 1, "event checkout_step": 1}
    assert (got.items["A"]["category"], got.items["A"]["price"]) == ("Home > Mugs", 9.5)


def test_an_order_of_bigcommerce_without_products_is_counted(tmp_path: Path) -> None:
    """Order 2 has an empty cell of products: its row is refused, and not lost."""
    products = "Item,ID,Name,Price\nProduct,7,Mug,9\n"
    orders = (
        "Order ID,Customer Email,Order Date,Order Status,Product Details\n"
        f'1,a@x.example,2026-01-30,Shipped,"{BIG_LINE.format("MUG")}"\n2,a@x.example,2026-01-30,Shipped,\n'
    )
    got = import_export(tmp_path, {"products.csv": products, "orders.csv": orders})
    assert (got.preset, len(got.events), got.quarantined) == ("bigcommerce", 1, {"missing_item": 1})
    assert got.summary.sources[-1].read == 2


def test_lists_of_trackers_without_positions_have_the_order_of_their_products(tmp_path: Path) -> None:
    """Segment's names may be in any case. A click 4 minutes later is on the list, one after 31 minutes on none."""

    def call(number: int, minute: int, event: str, properties: dict[str, Any] | None) -> dict[str, Any]:
        out = {"messageId": f"m{number}", "type": "track", "anonymousId": "a", "userId": None, "event": event}
        return out | {"timestamp": f"2026-01-30T09:{minute:02}:00.000Z", "properties": properties}

    (tmp_path / "segment").mkdir()
    shown = {"products": [{"product_id": 7, "name": "Mug:\nbig"}, {"product_id": "8", "price": "3.50"}]}
    segment = import_export(
        tmp_path / "segment",
        {
            "calls.jsonl": lines(
                call(1, 0, "product list viewed", shown),
                call(2, 4, "Product clicked", {"product_id": "8"}),
                call(3, 31, "Product Clicked", {"product_id": "7"}),
                call(4, 32, "Signed Up", None),
            )
        },
    )
    assert [(r["event"], r["item_id"], r["position"], r["request_id"]) for r in segment.rows] == [
        ("impression", "7", 0, "m1"),
        ("impression", "8", 1, "m1"),
        ("click", "8", None, "m1"),
        ("click", "7", None, None),
    ]
    assert (segment.items["7"]["title"], segment.quarantined) == ("Mug: big", {})
    vendor = "com_snowplowanalytics_snowplow_ecommerce"
    action, products = f"unstruct_event_{vendor}_snowplow_ecommerce_action_1", f"contexts_{vendor}_product_1"
    (tmp_path / "snowplow").mkdir()
    row = {"event_id": "e1", "domain_userid": "d", "collector_tstamp": "2026-01-30T09:00:00Z"}
    listed = lines(row | {action: {"type": "list_view"}, products: [{"id": "b"}, {"id": "a"}]})
    snowplow = import_export(tmp_path / "snowplow", {"enriched.jsonl": listed})
    assert [(r["item_id"], r["position"]) for r in sorted(snowplow.rows, key=lambda r: r["position"])] == [
        ("b", 0),
        ("a", 1),
    ]


def test_measurement_protocol_bodies_hold_events_that_hold_items(tmp_path: Path) -> None:
    mug, cup = (
        {"item_id": "A", "item_name": "Mug", "item_category": "Home", "item_category2": "Mugs"},
        {"item_id": "B", "price": "4.50"},
    )
    shown = {"name": "view_item_list", "params": {"session_id": "s", "search_term": "mug", "items": [mug, cup]}}
    bought = {"name": "purchase", "params": {"transaction_id": "T", "items": [{**mug, "quantity": 2}]}}
    got = import_export(
        tmp_path,
        {
            "bodies.jsonl": lines(
                {
                    "client_id": "1.2",
                    "timestamp_micros": "1769763600000000",
                    "user_properties": {"tier": {"value": "gold"}},
                    "events": [shown, {"name": "page_view", "params": {}}],
                },
                {"client_id": "1.2", "timestamp_micros": 1769763660000000, "events": [bought]},
                # A page that is loaded again tells the transaction again.
                {"client_id": "1.2", "timestamp_micros": 1769763720000000, "events": [bought]},
            )
        },
    )
    assert got.events == [
        ("impression", "1.2", "A", None),
        ("impression", "1.2", "B", None),
        ("purchase", "1.2", "A", 2.0),
    ]
    assert [(r["position"], r["query"], r["session_id"]) for r in got.rows[:2]] == [(0, "mug", "s"), (1, "mug", "s")]
    assert got.left_out == {"event without items": 1}
    assert got.quarantined == {"duplicate_event": 1}
    assert (got.items["A"]["category"], got.items["B"]["price"], got.users["1.2"]["tier"]) == (
        "Home > Mugs",
        4.5,
        "gold",
    )
