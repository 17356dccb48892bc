"""Revenue and margin of purchases, and where they are unknown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.runtime import DataError
from tests.offline.earnings.logs import Log, settings_of

MARGINS = [4.0, 5.0, None, 1.0]


def bought(*purchases: tuple[str, float | None]) -> Log:
    """A list with all items, and purchases of (item, value)."""
    log = Log().show(0, "q1", "u", ["a", "b", "free", "unpriced", "other"])
    for item, value in purchases:
        log.event(5, "purchase", "u", item, value=value)
    return log


def total(tables: dict[str, Any]) -> dict[str, Any]:
    return dict(tables["all"][0]["total"])


@pytest.mark.parametrize(
    ("value", "revenue", "margin"),
    [
        # Amounts: 9 for one a, and 54 for three b, whose price is 20; each b costs 20 - 5.
        ("amount", 9.0 + 54.0, (9.0 - 6.0) + (54.0 - 3 * 15.0)),
        # Quantities: 9 a at 10 and 54 b at 20.
        ("quantity", 9 * 10.0 + 54 * 20.0, 9 * 4.0 + 54 * 5.0),
        ("ignored", 10.0 + 20.0, 4.0 + 5.0),
    ],
)
def test_revenue_and_margin_follow_the_meaning_of_the_value(
    tmp_path: Path, value: str, revenue: float, margin: float
) -> None:
    settings = settings_of(value=value, margin="margin")
    found = total(bought(("a", 9.0), ("b", 54.0)).earnings(tmp_path, settings, margin=MARGINS))
    assert (found["revenue"], found["margin"]) == (revenue, margin)


def test_a_cost_gives_the_same_margin(tmp_path: Path) -> None:
    """54 for three b that cost 15 each."""
    settings = settings_of(cost="cost")
    found = total(bought(("b", 54.0)).earnings(tmp_path, settings, cost=[6.0, 15.0, None, None]))
    assert found["margin"] == 54.0 - 3 * 15.0


def test_without_a_value_a_purchase_brings_the_price(tmp_path: Path) -> None:
    assert total(bought(("a", None)).earnings(tmp_path))["revenue"] == 10.0


def test_a_free_item_brings_nothing_and_its_revenue_is_known(tmp_path: Path) -> None:
    found = total(bought(("free", None), ("a", 0.0)).earnings(tmp_path))
    assert (found["revenue"], found["without_revenue"]) == (0.0, 0)


def test_a_missing_price_is_counted_and_not_zero(tmp_path: Path) -> None:
    """Of three purchases, one has no price and one is not in the catalogue: the revenue is of the third alone."""
    found = total(bought(("unpriced", None), ("other", None), ("a", None)).earnings(tmp_path))
    assert (found["purchases"], found["without_revenue"], found["revenue"]) == (3, 2, 10.0)


def test_revenue_is_unknown_if_it_is_for_every_purchase(tmp_path: Path) -> None:
    found = total(bought(("unpriced", None)).earnings(tmp_path))
    assert (found["purchases"], found["without_revenue"], found["revenue"]) == (1, 1, None)


def test_an_unknown_margin_does_not_hide_the_revenue(tmp_path: Path) -> None:
    found = total(bought(("free", 3.0), ("a", 10.0)).earnings(tmp_path, settings_of(margin="margin"), margin=MARGINS))
    assert (found["revenue"], found["margin"], found["without_margin"]) == (13.0, 4.0, 1)


def test_a_returned_amount_takes_back_the_margin(tmp_path: Path) -> None:
    """Two b for 40, of which one goes back for 20: one piece at its margin of 5 is left."""
    log = bought(("b", 40.0)).event(9, "purchase", "u", "b", value=-20.0)
    found = total(log.earnings(tmp_path, settings_of(margin="margin"), margin=MARGINS))
    assert (found["revenue"], found["margin"]) == (20.0, 5.0)


def test_the_currency_is_that_of_the_shop(tmp_path: Path) -> None:
    """Amounts in others were converted by the import, or are missing."""
    assert bought().earnings(tmp_path, settings_of()._replace(currency="EUR"))["currency"] == "EUR"


def test_an_attribute_that_is_missing_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"earnings.margin: 'profit' is not a numeric attribute .* price, margin"):
        bought().earnings(tmp_path, settings_of(margin="profit"), margin=MARGINS)


def test_without_margin_or_cost_there_is_no_margin(tmp_path: Path) -> None:
    assert not {"margin", "without_margin"} & set(total(bought(("a", 1.0)).earnings(tmp_path)))
