"""Currencies: the one that an amount is in, and its price in the currency of the shop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from offline.config import ImportConfig
from offline.ingest.reading.library import literal

_CODES: Mapping[str, str] = {
    **{"€": "EUR", "£": "GBP", "₹": "INR", "₽": "RUB", "₩": "KRW", "₺": "TRY", "₴": "UAH", "₫": "VND", "₪": "ILS"},
    **{"₱": "PHP", "฿": "THB", "ZŁ": "PLN", "KČ": "CZK", "FT": "HUF", "EURO": "EUR", "RMB": "CNY"},
}
"""Signs and words of one currency only, in upper case."""
_SHARED: Mapping[str, frozenset[str]] = {
    "$": frozenset({"USD", "CAD", "AUD", "NZD", "SGD", "HKD", "MXN", "ARS", "CLP", "COP", "TWD", "BRL"}),
    "¥": frozenset({"JPY", "CNY"}),
    "￥": frozenset({"JPY", "CNY"}),
    "KR": frozenset({"SEK", "NOK", "DKK", "ISK"}),
}
"""Signs of several currencies: the shop's own if it is one of them, else that which a rate is given for."""


_WRITTEN = (r"(\p{Sc})", r"\b([A-Z]{3})\b", r"(\p{L}{2,4})")
"""Patterns of a sign, a code, and a word such as kr or zl, the first of which that a cell has counts."""


class Currencies(NamedTuple):
    """The currency of the shop, and the price in it of one unit of others, by code or sign."""

    own: str
    rates: Mapping[str, float]

    @classmethod
    def of(cls, config: ImportConfig) -> Currencies | None:
        """The currencies of a configuration; None if amounts are not converted."""
        return None if config.currency is None else cls(config.currency, config.rates)

    def rate(self, written: str) -> float | None:
        """Price of one unit of a currency, as a file writes it; None if it is not known."""
        word, code = written.strip().upper(), currency_code(written)
        if code == self.own or self.own in _SHARED.get(word, ()):
            return 1.0
        rates = {key.upper(): rate for key, rate in self.rates.items()}
        return rates.get(word, rates.get(code, next((r for k, r in rates.items() if _CODES.get(k) == code), None)))


def currency_code(written: str) -> str:
    """The code of a currency, as a file writes it: of a sign or word of one currency only, else the text itself."""
    word = written.strip().upper()
    return _CODES.get(word, word)


def written_currency(text: str) -> str:
    """Expression for the sign or, without one, the code beside a number; null if there is neither."""
    found = [f"nullif(regexp_extract({text}, '{pattern}', 1), '')" for pattern in _WRITTEN]
    return f"coalesce({', '.join(found)})"


def rates_sql(currency: str, rates: Mapping[str, float | None]) -> str:
    """Expression for the rate of a currency, 1 if it is missing, null if it has no rate."""
    cases = "".join(f" WHEN {literal(word)} THEN {rate!r}" for word, rate in rates.items() if rate is not None)
    known = f"CASE {currency}{cases} END" if cases else "CAST(NULL AS DOUBLE)"
    return f"CASE WHEN {currency} IS NULL THEN 1.0 ELSE {known} END"
