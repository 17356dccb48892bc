"""Amounts in several currencies: converted to the one of the shop, or missing and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offline.ingest.cells import Currencies
from offline.ingest.detection import detect
from offline.ingest.importer import ImportConfig, import_data
from tests.offline.ingest.exports import NOW

RATES = {"USD": 0.5, "GBP": 1.25}


def run(folder: Path, cells: list[str], price: Any, **settings: Any) -> tuple[list[float | None], list[str]]:
    """Prices of items with these cells of the columns `price` and `money`, and the notes on the table."""
    rows = "".join(f"i{k},Mug,{cell}\n" for k, cell in enumerate(cells))
    (folder / "items.csv").write_text(f"item_id,title,price,money\n{rows}", "utf-8")
    (folder / "log.csv").write_text("event,user_id,item_id,timestamp\nview,u,i0,2026-01-01\n")
    items = {"from": "items.csv", "columns": {"price": price}, "exclude": ["money"]}
    config = {"folder": folder, "items": [items], "events": [{"from": "log.csv"}], **settings}
    summary = import_data(ImportConfig.model_validate(config), folder / "out", NOW)
    return pq.read_table(folder / "out" / "items.parquet")["price"].to_pylist(), list(summary.sources[0].notes)


def test_a_price_is_converted_by_the_currency_of_its_column(tmp_path: Path) -> None:
    """8 USD are 4 EUR, and 8 GBP 10. A missing currency is the shop's own. There is no rate for XYZ."""
    cells = ["8,USD", "8,gbp", "8,EUR", "8,", "8,XYZ", "8,USD"]
    prices, notes = run(tmp_path, cells, {"path": "price", "currency": "money"}, currency="EUR", rates=RATES)
    assert prices == [4.0, 10.0, 8.0, 8.0, None, 4.0]
    assert notes == [
        "price: 2 cells were converted from USD to EUR",
        "price: 1 cells are in 'XYZ', which has no rate, and count as missing",
        "price: 1 cells were converted from gbp to EUR",
        "price: 1 cells cannot be read and count as missing, such as '8'",
    ]


def test_without_a_column_the_sign_or_code_beside_the_number_counts(tmp_path: Path) -> None:
    """`$` is no sign of the euro, and of several currencies, so it needs a rate of its own: 8 times 0.25 is 2."""
    cells = ["8.00 USD,", "£8.00,", "8.00,", "8.00 €,", "GBP 8,", "$8,", "8 zł,", "from 8 USD,"]
    prices, _ = run(tmp_path, cells, "price", currency="EUR", rates={**RATES, "$": 0.25})
    assert prices == [4.0, 10.0, 8.0, 8.0, 10.0, 2.0, None, 4.0]


def test_a_sign_of_several_currencies_is_the_own_one_where_it_can_be(tmp_path: Path) -> None:
    prices, _ = run(tmp_path, ["$8,", "8 EUR,", "8 kr,"], "price", currency="CAD", rates={"EUR": 1.5})
    assert prices == [8.0, 12.0, None]


def test_without_a_currency_of_the_shop_several_ones_are_said_and_not_converted(tmp_path: Path) -> None:
    prices, notes = run(tmp_path, ["8 USD,", "7 EUR,", "6 USD,"], "price")
    assert prices == [8.0, 7.0, 6.0]
    assert notes == ["price: several currencies, which are not converted: USD (2), EUR (1). Set `currency`"]
    (tmp_path / "one").mkdir()
    assert run(tmp_path / "one", ["8 USD,", "6 USD,"], "price") == ([8.0, 6.0], [])


def test_a_word_without_a_number_is_no_currency(tmp_path: Path) -> None:
    prices, notes = run(tmp_path, ["8 USD,", "free,", "TBA,"], "price")
    assert prices == [8.0, None, None]
    assert notes == ["price: 2 cells cannot be read and count as missing, such as 'free'"]


def test_the_price_and_value_of_an_event_are_converted_where_a_currency_is_named(tmp_path: Path) -> None:
    """A purchase of 6 at 10 USD: 3 and 5 EUR. A value without a currency is a quantity, and stays 6."""
    (tmp_path / "log.csv").write_text(
        "event,user_id,item_id,timestamp,paid,each,money,n\npurchase,u,a,2026-01-01,6,10,USD,6\n"
    )
    for value, expected in (({"path": "paid", "currency": "money"}, 3.0), ("n", 6.0)):
        columns = {"value": value, "price": {"path": "each", "currency": "money"}}
        events = {"from": "log.csv", "items_from_events": True, "columns": columns}
        config = ImportConfig.model_validate(
            {"folder": tmp_path, "events": [events], "currency": "EUR", "rates": RATES}
        )
        import_data(config, tmp_path / "out", NOW)
        assert pq.read_table(tmp_path / "out/events.parquet")["value"].to_pylist() == [expected]
        assert pq.read_table(tmp_path / "out/items.parquet")["price"].to_pylist() == [5.0]


def test_the_currency_of_an_offer_is_converted_where_the_shop_has_one(tmp_path: Path) -> None:
    """A preset names the column of the currency; the configuration the shop's own."""
    offers = "".join(
        f'<offer id="{name}"><name>Mug</name><price>8</price><currencyId>{currency}</currencyId></offer>'
        for name, currency in (("a", "USD"), ("b", "EUR"))
    )
    (tmp_path / "feed.yml").write_text(
        f'<?xml version="1.0"?><yml_catalog date="2026-01-30"><shop><offers>{offers}</offers></shop></yml_catalog>'
    )
    (tmp_path / "log.csv").write_text("event,user_id,item_id,timestamp\nview,u,a,2026-01-01\n")
    config, _ = detect(tmp_path)
    for own, expected in ((None, [8.0, 8.0]), ("EUR", [4.0, 8.0])):
        rates = RATES if own else {}
        import_data(config.model_copy(update={"currency": own, "rates": rates}), tmp_path / "out", NOW)
        assert pq.read_table(tmp_path / "out" / "items.parquet")["price"].to_pylist() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": RATES},
        {"currency": "euro"},
        {"currency": "EUR", "rates": {"USD": 0}},
        {"currency": "EUR", "rates": {"USD": float("inf")}},
    ],
)
def test_rates_need_a_currency_of_the_shop_and_are_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ImportConfig.model_validate({"events": [{"from": "log.csv", "items_from_events": True}], **wrong})


@given(st.text(max_size=8), st.sampled_from(["EUR", "USD", "JPY"]))
def test_a_currency_has_the_rate_one_given_or_none(written: str, own: str) -> None:
    """Whatever a cell holds: never a rate that nobody gave."""
    rate = Currencies(own, {"GBP": 1.25, "¥": 0.006}).rate(written)
    assert rate in (None, 1.0, 1.25, 0.006)
    assert Currencies(own, {}).rate(f" {own.lower()} ") == 1.0
