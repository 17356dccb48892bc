"""Numbers: with currency signs and codes, and with the decimal separator of their column."""

from __future__ import annotations

from offline.ingest.reading import Library

_UNIT = r"(?:\p{L}{0,4}\.?\s*\p{Sc}?|\p{Sc}\s*\p{L}{0,4})"
_NUMBER = rf"^\s*([+-]?)\s*{_UNIT}\s*([+-]?[\d.,''’\s\x{{a0}}\x{{202f}}]*\d[.,]?)\s*{_UNIT}$"
_COMMA = r"^[+-]?(\d{1,3}(\.\d{3})+,\d+|\d*,(\d{1,2}|\d{4,})|\d{1,3}(\.\d{3}){2,})$"
_POINT = r"^[+-]?(\d{1,3}(,\d{3})+\.\d+|\d*\.(\d{1,2}|\d{4,})|\d{1,3}(,\d{3}){2,})$"


def _digits(sql: str) -> str:
    """The sign, digits and separators of a text, without currency, spaces and apostrophes."""
    number = f"regexp_extract({sql}, '{_NUMBER}', 1) || regexp_extract({sql}, '{_NUMBER}', 2)"
    return f"regexp_replace({number}, '[''’\\s\\x{{a0}}\\x{{202f}}]', '', 'g')"


def decimal_separator(library: Library, relation: str, column: str) -> str | None:
    """`,` if more cells of a text column can only be read with a decimal comma than with a point, else `.`.

    None if no cell tells: `1,000` is one or a thousand.
    """
    digits = _digits(column)
    comma, point = library.rows(
        f"SELECT count(*) FILTER (regexp_matches(d, '{_COMMA}')), count(*) FILTER (regexp_matches(d, '{_POINT}'))"
        f" FROM (SELECT {digits} AS d FROM {relation} WHERE {column} IS NOT NULL)"
    )[0]
    return "," if comma > point else "." if point else None


def number_sql(sql: str, decimal: str) -> str:
    """Expression for a text as DOUBLE; null if it is not a number."""
    digits = _digits(sql)
    if decimal == ",":
        return f"TRY_CAST(replace(replace({digits}, '.', ''), ',', '.') AS DOUBLE)"
    return f"coalesce(TRY_CAST({sql} AS DOUBLE), TRY_CAST(replace({digits}, ',', '') AS DOUBLE))"
