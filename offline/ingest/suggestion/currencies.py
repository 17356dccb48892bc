"""Currencies of prices: the column that names them, and the one that is probably the shop's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from offline.ingest.cells import currency_code
from offline.ingest.suggestion.notes import Noted
from offline.ingest.suggestion.tables import Facts

_BESIDE = re.compile(r"^\s*([A-Z]{3})\b|\b([A-Z]{3})\s*$|([€£₹₽₩₺₴₫₪₱฿])")
_MOST_NAMED = 5


def draft_price(price: Any, currency: str | None) -> Any:
    """The `price` column of a draft, with the path of its currency if there is one."""
    return {"path": price, "currency": currency} if currency is not None and isinstance(price, str) else price


def draft_currency(columns: Iterable[Facts], prices: Iterable[Facts]) -> Any:
    """The `currency` key of a draft: the most frequent one; None if no file tells, or all prices are in one sign.

    columns: with the currencies of prices. prices: of which a code or sign beside the number counts.
    """
    columns = list(columns)
    counts = Counter(currency_code(cell) for facts in columns for cell in facts.cells)
    beside = Counter(code for facts in prices for cell in facts.cells if (code := _beside(cell)) is not None)
    if not columns and len(beside) > 1:
        counts = beside
    if not counts:
        return None
    (own, n), *others = counts.most_common()
    if not others:
        return Noted(own, "the currency of all prices")
    named = ", ".join(f"{code} {k / counts.total():.0%}" for code, k in [(own, n), *others][:_MOST_NAMED])
    note = (
        f"the most frequent of {named}. Add `rates`, such as {{{others[0][0]}: 0.92}}: a price without one is missing"
    )
    return Noted(own, note)


def _beside(cell: str) -> str | None:
    found = _BESIDE.search(cell)
    return currency_code(found[1] or found[2] or found[3]) if found else None
