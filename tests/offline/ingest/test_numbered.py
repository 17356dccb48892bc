"""Lists from numbered columns: `line_1_sku`, `line_1_quantity`, `line_2_sku`, ... in one row of an order."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offline.ingest.importer import DataError, ImportConfig, import_data
from offline.ingest.reading.numbered import matching
from offline.ingest.suggestion import suggest
from tests.offline.ingest.exports import NOW
from tests.offline.ingest.test_suggestion import parse

Rows = list[dict[str, Any]]


def orders(lists: dict[str, str], **columns: Any) -> dict[str, Any]:
    """A mapping of `orders.csv`, whose orders hold a list `lines`."""
    common = {"event": {"value": "purchase"}, "user_id": "customer", "timestamp": "at", "event_id": "order"}
    source = {"from": "orders", "explode": "lines[]", "columns": {**common, **columns}}
    return {"tables": {"orders": {"files": "orders.csv", "lists": lists}}, "events": [source], "unknown_items": "keep"}


def run(folder: Path, rows: list[str], mapping: dict[str, Any]) -> tuple[Rows, dict[str, int]]:
    """Events and what was refused."""
    (folder / "orders.csv").write_text("\n".join(rows) + "\n")
    summary = import_data(ImportConfig.model_validate({"folder": folder, **mapping}), folder / "out", NOW)
    return pq.read_table(folder / "out" / "events.parquet").to_pylist(), dict(summary.sources[0].quarantined)


def found(events: Rows) -> set[tuple[str, str, float | None]]:
    return {(e["event_id"], e["item_id"], e["value"]) for e in events}


def test_each_numbered_group_of_columns_is_a_line_of_the_order(tmp_path: Path) -> None:
    """Order 1 has lines 1 and 10, in this order; line 2 is empty. Order 2 has no line, and is refused as one row."""
    rows = [
        "order,customer,at,line_10_sku,line_10_qty,line_1_sku,line_1_qty,line_2_sku,line_2_qty,line_note",
        "1,u,2026-01-01,b,3,a,2, ,,x",
        "2,v,2026-01-02,,,,,,,",
    ]
    lists = {"lines": "line_{number}_{field}"}
    events, refused = run(tmp_path, rows, orders(lists, item_id="lines[].sku", value="lines[].qty"))
    assert found(events) == {("1:0", "a", 2.0), ("1:1", "b", 3.0)}
    assert refused == {"missing_item": 1}


def test_the_number_may_come_last_and_two_lines_of_one_item_are_two_events(tmp_path: Path) -> None:
    rows = ["order,customer,at,SKU 1,Qty 1,SKU 2,Qty 2", "1,u,2026-01-01,a,1,a,1"]
    lists = {"lines": "{field} {number}"}
    events, refused = run(tmp_path, rows, orders(lists, item_id="lines[].SKU", value="lines[].Qty"))
    assert (found(events), refused) == ({("1:0", "a", 1.0), ("1:1", "a", 1.0)}, {})


def test_columns_of_a_number_alone_are_a_list_of_texts(tmp_path: Path) -> None:
    """As items of a basket, and as tags of an item: the third tag of the mug is missing."""
    (tmp_path / "items.csv").write_text("item_id,title,tag1,tag2,tag3\na,Mug,blue,big,\nb,Cup,,,\n")
    mapping = orders({"lines": "item{number}"}, item_id="lines[]")
    mapping["tables"]["things"] = {"files": "items.csv", "lists": {"tags": "tag{number}"}}
    events, _ = run(
        tmp_path, ["order,customer,at,item1,item2", "1,u,2026-01-01,a,b"], mapping | {"items": [{"from": "things"}]}
    )
    assert found(events) == {("1:0", "a", None), ("1:1", "b", None)}
    items = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [(i["item_id"], i["tags"], "tag1" in i) for i in items] == [
        ("a", ["blue", "big"], False),
        ("b", None, False),
    ]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("line_{field}", "needs {number} once"),
        ("{number}_{number}", "needs {number} once"),
        ("{field}{number}{field}", "{field} at most once"),
    ],
)
def test_a_template_without_one_number_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem.replace("{", r"\{").replace("}", r"\}")):
        ImportConfig.model_validate(orders({"lines": template}, item_id="lines[].sku"))


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        (
            {"lines": "row_{number}_{field}"},
            "no column fits 'row_{number}_{field}' of the list 'lines'. It has: order,",
        ),
        ({"Customer": "line_{number}_{field}"}, "the list 'Customer' has the name of a column"),
    ],
)
def test_a_list_without_columns_or_with_the_name_of_one_is_an_error(
    tmp_path: Path, lists: dict[str, str], problem: str
) -> None:
    rows = ["order,customer,at,line_1_sku", "1,u,2026-01-01,a"]
    with pytest.raises(DataError) as error:
        run(tmp_path, rows, orders(lists, item_id="lines[].sku"))
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("header", "template"),
    [
        ("line_item_{}_sku,line_item_{}_quantity", "line_item_{number}_{field}"),
        ("Item {} SKU,Item {} Qty", "Item {number} {field}"),
        ("product_id_{},quantity_{}", "{field}_{number}"),
        ("lineItems[{}].productId,lineItems[{}].quantity", "lineItems[{number}].{field}"),
        ("sku{},menge{}", "{field}{number}"),
    ],
)
def test_numbered_columns_of_items_are_suggested_as_a_list(tmp_path: Path, header: str, template: str) -> None:
    """Two orders of two lines and one line. The address has numbers too, but no item."""
    lines = ",".join(header.format(n, n) for n in (1, 2))
    rows = [
        f"order_id,customer_email,order_date,{lines},address_1,address_2",
        "1,a@x.example,2026-01-30 10:00,P7,2,P8,1,Street,Town",
        "2,b@x.example,2026-01-31 10:00,P7,3,,,Street,Town",
    ]
    (tmp_path / "orders.csv").write_text("\n".join(rows) + "\n")
    config = parse(suggest(tmp_path / "orders.csv"))
    assert list(config.tables["orders"].lists.values()) == [template]
    import_data(config, tmp_path / "out", NOW)
    events = pq.read_table(tmp_path / "out" / "events.parquet").to_pylist()
    bought = sorted((e["event_id"], e["user_id"], e["item_id"], e["value"]) for e in events if e["item_id"][0] == "P")
    assert bought == [
        ("1:0", "a@x.example", "P7", 2.0),
        ("1:1", "a@x.example", "P8", 1.0),
        ("2:0", "b@x.example", "P7", 3.0),
    ]


def test_numbered_columns_without_items_stay_columns(tmp_path: Path) -> None:
    """Levels of a category are a path, as before, and lines of an address nothing."""
    with (tmp_path / "log.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["user_id", "item_id", "timestamp", "quantity", "category1", "category2", "address1", "address2"]
        )
        writer.writerows([["u", "a", "2026-01-30", 1, "Home", "Mugs", "x", "y"]] * 2)
    config = parse(suggest(tmp_path / "log.csv"))
    assert config.tables["log"].lists == {}
    assert config.events[0].explode is None


NAMES = st.text("abcX", min_size=1, max_size=4)


@given(
    st.sets(st.tuples(st.integers(0, 999), NAMES), min_size=1, max_size=12),
    st.sampled_from(
        ["line_{number}_{field}", "{field}.{number}", "a{number}[{field}]", "{number}{field}", "{field}{number}"]
    ),
)
def test_columns_written_by_a_template_are_found_by_it_in_the_order_of_their_numbers(
    wanted: set[tuple[int, str]], template: str
) -> None:
    columns = [template.replace("{number}", str(n)).replace("{field}", name) for n, name in wanted]
    got = matching([*columns, "other", "line__x"], template)
    assert {(n, name) for n, fields in got.items() for name in fields} == wanted
    assert list(got) == sorted({n for n, _ in wanted})
