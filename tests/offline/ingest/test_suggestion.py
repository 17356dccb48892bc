"""`shelfwise import FILE --suggest`: a column mapping guessed from names and rows, which can be imported."""

from __future__ import annotations

import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.cli import app
from offline.ingest.importer import DataError, ImportConfig, ImportSummary, validate
from offline.ingest.suggestion import suggest
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
    assert section["folder"] == str(tmp_path)
    assert section["events"] == [
        {
            "from": "raw.csv.gz",
            "items_from_events": True,
            "columns": {
                "event": {"value": "purchase"},
                "user_id": "Customer ID",
                "timestamp": {"path": "InvoiceDate", "zone": "UTC"},
                "session_id": "Invoice",
                "value": "Quantity",
                "item_id": "StockCode",
                "title": "Description",
                "price": "Price",
            },
        }
    ]
    assert set(section["not_products"].split("|")) == {"POST", "M"}
    assert "value: purchase  # kind of every row; or view, click, cart, impression" in text
    assert "zone: UTC  # moments have no offset: set your shop's time zone, such as Europe/London" in text
    assert "user_id: Customer ID  # empty in " in text
    assert summary.items == 60
    assert summary.users == 80
    assert set(summary.sources[0].quarantined) == {"missing_user", "negative_value", "duplicate_event", "not_a_product"}


@pytest.mark.skipif(not RAW.is_file(), reason="the real data of ../shared/data is not here")
def test_a_real_export_is_mapped_as_in_the_example() -> None:
    """The suggested columns equal those of docs/examples/online_retail.yaml."""
    suggested = yaml.safe_load(suggest(RAW))["import"]["events"][0]
    example = yaml.safe_load((ROOT / "docs/examples/online_retail.yaml").read_text())
    example = example["import"]["events"][0]
    timestamp = suggested["columns"].pop("timestamp")
    assert timestamp == {"path": example["columns"].pop("timestamp"), "zone": "UTC"}
    assert suggested == example


def test_known_event_names_are_mapped_and_unknown_ones_dropped_with_a_comment(tmp_path: Path) -> None:
    """`addtocart` is a cart and `transaction` a purchase; `compare` is left to the user."""
    words = ["view", "addtocart", "transaction", "compare"]
    rows = [
        {
            "timestamp": 1_433_221_332_117 + k,
            "visitorid": k % 3,
            "event": words[k % 4],
            "itemid": k % 5,
            "transactionid": k,
        }
        for k in range(40)
    ]
    text, summary = imported(table(tmp_path / "events.csv", rows))
    section = yaml.safe_load(text)["import"]
    assert section["events"][0]["columns"]["event"]["values"] == {
        "view": "view",
        "addtocart": "cart",
        "transaction": "purchase",
        "compare": "drop",
    }
    assert "compare: drop  # unknown: use one of impression, view, click, cart, purchase, rating, or drop" in text
    assert section["unknown_items"] == "keep", "there is no item file"
    assert summary.events == {"impression": 0, "view": 10, "click": 0, "cart": 10, "purchase": 10, "rating": 0}
    assert summary.sources[0].left_out == {"event compare": 10}


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


def test_a_failed_guess_raises_with_the_columns_found(tmp_path: Path) -> None:
    """Without an item, time or customer column, the message lists the columns and points to the documentation."""
    with pytest.raises(DataError, match=r"a.csv: no column looks like item_id. It has: x, y. Write the `import`"):
        suggest(table(tmp_path / "a.csv", [{"x": 1, "y": 2}]))
    with pytest.raises(DataError, match=r"b.csv: no column looks like timestamp. It has: user, item"):
        suggest(table(tmp_path / "b.csv", [{"user": 1, "item": 2}]))
    with pytest.raises(DataError, match=r"no customer ID column found.*Skipped: c.csv"):
        suggest(table(tmp_path / "c.csv", [{"sku": 1, "title": 2}]))
    with pytest.raises(DataError, match="there is no such file or folder"):
        suggest(tmp_path / "nowhere.csv")
    many = [{"user": 1, "item": 2, "time": 3, "type": f"kind {k}"} for k in range(31)]
    with pytest.raises(DataError, match="the column that looks like the event kind has 31 values, such as 'kind 0'"):
        suggest(table(tmp_path / "d.csv", many))


@given(
    names=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=12), max_size=5, unique=True
    ),
    cell=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
)
@settings(max_examples=20, deadline=None)
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
    assert parse(text).folder / parse(text).events[0].table == path


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
    assert parse(out).events[0].table == "raw.csv.gz"
    _, err = run_command("import", "raw.csv.gz")
    assert "`shelfwise import raw.csv.gz --suggest > shop.yaml` suggests a mapping" in " ".join(err.split())
    _, err = run_command("import", "--suggest")
    assert "--suggest needs a file or folder" in err
    (tmp_path / "shop.yaml").write_text(out)
    out, _ = run_command("import", "--config", "shop.yaml")
    assert "next: shelfwise nightly --config shop.yaml" in out
