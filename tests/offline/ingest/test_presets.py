"""Presets: exports are recognised by their shape, and imported with their traps. Files and people are made up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from offline.ingest.detection import detect
from offline.ingest.importer import DataError, ImportConfig, ImportSummary, import_data
from offline.ingest.presets import load_presets
from offline.ingest.suggestion import suggest

NOW = datetime(2026, 6, 1, tzinfo=UTC)
Rows = list[dict[str, Any]]

SHOPIFY = {
    "orders.csv": """Name,Email,Financial Status,Created at,Cancelled at,Lineitem quantity,Lineitem name,Lineitem sku
#1,ann@example.com,paid,2026-01-31 10:15:22 +0100,,2,Mug - Blue,MUG-B
#1,,,2026-01-31 10:15:22 +0100,,1,Tip,
#2,bob@example.com,refunded,2026-02-01 10:00:00 +0100,,1,Mug - Red,MUG-R
#2,,,2026-02-01 10:00:00 +0100,,1,Mug - Blue,MUG-B
""",
    "products.csv": """Handle,Title,Body (HTML),Vendor,Type,Tags,Variant SKU,Variant Price
mug,Mug,"<p>Stone &amp; glaze.</p>",Kiln,Mugs,"gift, stone",MUG-B,14.50
mug,,,,,,MUG-R,15.00
""",
}


def imported(folder: Path, files: Mapping[str, str], preset: str | None = None) -> tuple[Rows, Rows, ImportSummary]:
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    config, _ = detect(folder, preset)
    summary = import_data(config, folder / "out", NOW)
    items, events = (pq.read_table(folder / "out" / f"{name}.parquet").to_pylist() for name in ("items", "events"))
    return items, events, summary


def test_shopify_orders_lead_from_variants_to_products_and_refunded_ones_are_left_out(tmp_path: Path) -> None:
    (item,), (event,), summary = imported(tmp_path, SHOPIFY)
    assert (item["item_id"], item["title"], item["description"], item["price"]) == (
        "mug",
        "Mug",
        "Stone & glaze.",
        14.5,
    )
    assert (item["brand"], item["Tags"], item["Type"]) == ("Kiln", ["gift", "stone"], "Mugs")
    assert (event["user_id"], event["item_id"], event["value"]) == ("ann@example.com", "mug", 2.0)
    assert event["timestamp"] == datetime(2026, 1, 31, 9, 15, 22, tzinfo=UTC)
    orders = next(s for s in summary.sources if s.file == "orders.csv")
    # 4 lines: the mug; the tip, which leads to no product; and two of a refunded order.
    assert (orders.read, orders.accepted, dict(orders.quarantined)) == (4, 1, {"missing_item": 1})
    assert dict(orders.left_out) == {"row excluded by `where`": 2}


def test_segment_calls_have_products_flat_or_in_a_list_and_positions_from_1(tmp_path: Path) -> None:
    common = {"anonymousId": "a1", "type": "track", "timestamp": "2026-01-30T09:00:00.000Z"}
    listed = [{"product_id": "P1", "position": 1, "name": "Mug"}, {"product_id": "P2", "position": 2, "name": "Jug"}]
    calls = [
        {**common, "messageId": "m1", "event": "Product List Viewed", "properties": {"products": listed}},
        {**common, "messageId": "m2", "event": "Product Added", "userId": "u1", "properties": {"product_id": "P1"}},
        {**common, "messageId": "m2", "event": "Product Added", "userId": "u1", "properties": {"product_id": "P1"}},
        {**common, "messageId": "m3", "type": "identify", "userId": "u1", "traits": {"plan": "gold", "email": "x"}},
        {**common, "messageId": "m4", "event": "Product Viewed", "properties": {"name": "Mug"}},
        {**common, "messageId": "m5", "event": "Products Searched", "properties": {"query": "mug"}},
    ]
    items, events, summary = imported(tmp_path, {"calls.jsonl": "\n".join(json.dumps(call) for call in calls)})
    assert [(i["item_id"], i["title"]) for i in items] == [("P1", "Mug"), ("P2", "Jug")]
    found = [(e["event"], e["user_id"], e["item_id"], e["position"], e["event_id"]) for e in events]
    assert found == [
        ("cart", "u1", "P1", None, "m2"),
        ("impression", "a1", "P1", 0, "m1:0"),
        ("impression", "a1", "P2", 1, "m1:1"),
    ]
    # A retry has the same messageId. A view has to say of what, a search does not.
    assert dict(summary.sources[0].quarantined) == {"duplicate_event": 1, "missing_item": 1}
    assert dict(summary.sources[0].left_out) == {"row excluded by `where`": 1}
    assert pq.read_table(tmp_path / "out/users.parquet").to_pylist() == [{"user_id": "u1", "plan": "gold"}]


def test_a_feed_of_one_namespace_or_none_gives_items_without_the_prices_of_shipping(tmp_path: Path) -> None:
    feed = """<?xml version="1.0"?><rss xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>
<item><g:id>A</g:id><title><![CDATA[Jug <2 l>]]></title><link>l</link><description>&lt;b&gt;Blue&lt;/b&gt;</description>
<g:price>9.90 EUR</g:price><g:shipping><g:price>4.90 EUR</g:price></g:shipping></item>
<item><g:title>No ID</g:title><link>l</link><description>d</description></item></channel></rss>"""
    events = "event,user_id,item_id,timestamp\nview,u,A,2026-01-30T10:00:00Z\n"
    (item,), _, summary = imported(tmp_path, {"feed.xml": feed, "log.csv": events})
    assert (item["title"], item["description"], item["price"]) == ("Jug <2 l>", "Blue", 9.9)
    assert summary.sources[0].quarantined == {"missing_item": 1}


def test_ratings_without_a_header_are_recognised_by_their_first_line(tmp_path: Path) -> None:
    files = {"r.dat": "1::10::5::978300760\n2::10::3::978300761\n", "m.dat": "10::Colon: A Film (1995)::Drama|Comedy\n"}
    (item,), events, _ = imported(tmp_path, files)
    assert (item["title"], item["genres"]) == ("Colon: A Film (1995)", ["Drama", "Comedy"])
    assert [(e["event"], e["user_id"], e["value"]) for e in events] == [("rating", "1", 5.0), ("rating", "2", 3.0)]


def test_a_mapped_field_of_metarank_is_not_unpacked_again(tmp_path: Path) -> None:
    fields = [
        {"name": "title", "value": "Heat"},
        {"name": "release_date", "value": 8.2e8},
        {"name": "size", "value": 2},
    ]
    lines = [
        {"event": "item", "item": "a", "timestamp": "1769763600000", "fields": fields},
        {"event": "interaction", "type": "click", "user": "u", "item": "a", "timestamp": "1769763600000"},
    ]
    (item,), _, _ = imported(tmp_path, {"log.jsonl": "\n".join(json.dumps(line) for line in lines)})
    # 820,000,000 s are 9,490 days and 17:46:40, and 1970-01-01 plus 9,490 days is 1995-12-26.
    assert item["release_date"] == datetime(1995, 12, 26, 17, 46, 40, tzinfo=UTC)
    assert (item["title"], item["size"]) == ("Heat", 2.0)
    assert not [name for name in item if "(2)" in name]


def test_detection_names_the_preset_and_the_files_left_out(tmp_path: Path) -> None:
    for name, text in {**SHOPIFY, "notes.csv": "a,b\n1,2\n"}.items():
        (tmp_path / name).write_text(text)
    _, said = detect(tmp_path)
    assert said == [
        "preset shopify: Shopify orders and products, as the admin exports them",
        "left out: notes.csv (not part of the preset)",
    ]
    with pytest.raises(DataError, match="the preset instacart does not fit"):
        detect(tmp_path, "instacart")
    with pytest.raises(DataError, match=r"there is no preset 'shopfy'\. Presets: .*ga4, .*, shopify"):
        detect(tmp_path, "shopfy")


def test_items_in_a_file_that_the_preset_does_not_know_are_said_and_mapped_by_the_suggestion(tmp_path: Path) -> None:
    """Events in our own layout, and the shop's own table of products."""
    (tmp_path / "events.csv").write_text("event,user_id,item_id,timestamp\nview,u,1,2026-01-30T10:00:00Z\n")
    (tmp_path / "produkte.csv").write_text("artikelnummer,name,preis\n1,Mug,3\n2,Cup,4\n")
    _, said = detect(tmp_path)
    assert said[1:] == [
        "left out: produkte.csv (not part of the preset)",
        "no table describes the items, so they will have only their IDs. If produkte.csv does, map it:"
        f" `shelfwise import {tmp_path} --suggest > shop.yaml`, then `shelfwise import --config shop.yaml`",
    ]
    config = ImportConfig.model_validate(yaml.safe_load(suggest(tmp_path))["import"])
    import_data(config, tmp_path / "out", NOW)
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [(i["item_id"], i["title"], i["price"]) for i in items] == [("1", "Mug", 3.0), ("2", "Cup", 4.0)]


def test_without_a_file_of_items_nothing_is_said_of_them_where_nothing_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("event,user_id,item_id,timestamp\nview,u,1,2026-01-30T10:00:00Z\n")
    assert detect(tmp_path)[1] == ["preset standard: Shelfwise's own layout"]


@pytest.mark.parametrize("name", [p.name for p in load_presets()])
def test_a_preset_has_a_title_a_shape_for_each_table_and_sources_of_its_tables(name: str) -> None:
    preset = next(p for p in load_presets() if p.name == name)
    assert preset.title
    assert all(t.match or t.sql for t in preset.tables.values())
    sources = [s for kind in ("items", "events", "users") for s in preset.mapping.get(kind, [])]
    used = {t for s in sources for t in (s["from"], *(j["table"] for j in s.get("join", [])))}
    assert used <= set(preset.tables)
