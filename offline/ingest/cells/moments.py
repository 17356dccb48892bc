"""Moments: Unix times, ISO 8601, days of any order, names of months, and serial days of spreadsheets.

The format of a column is found from all of its values. Expressions give microseconds since 1970 UTC as BIGINT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from offline.config import Column
from offline.ingest.reading import Library
from offline.ingest.reading.library import literal

_DAYS = (
    "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%a, %d %b %Y",
    "%a %b %d %Y", "%Y年%m月%d日", "%Y-%m-%d",
)  # fmt: skip
_CLOCKS = (
    "", " %H:%M:%S", " %H:%M", " %H:%M:%S.%f", ", %H:%M:%S", ", %H:%M", " %I:%M:%S %p", " %I:%M %p", "T%H:%M:%S",
    *(" %H:%M:%S %z", "T%H%M%SZ", "T%H%M%S", " %H时%M分%S秒", " %H时%M分", " %H時%M分"),
    *(" %Hh%M", " à %H:%M", " à %Hh%M", " %H:%M Uhr", ", %H:%M Uhr"),
)  # fmt: skip
_SAMPLE = 2000
_NUMERAL = r"^[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$"
_SECONDS = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?"
_PLAIN = rf"^{_SECONDS}$"
_ZONED = rf"^{_SECONDS}(Z| UTC|[+-][01]\d:[0-5]\d)$"
"""The two most common forms of ISO 8601, which DuckDB's casts read ten times faster than `_ISO`."""
_ISO = r"^(\d{4}-\d\d?-\d\d?)(?:[Tt ]+(\d\d?:\d\d(?::\d\d(?:[.,]\d+)?)?))?"
_ISO += r"\s*([Zz]|UTC|GMT|[+-][01]\d:?(?:[0-5]\d)?)?(?:\s+(?:[A-Z]{2,5}|[+-][01]\d(?:[0-5]\d)?))?$"


class Moments(NamedTuple):
    """An expression for a column's moments, and what was guessed, None if nothing was."""

    sql: str
    said: str | None = None


def _number_us(number: str, unit: str | None) -> str:
    """Microseconds from Unix time in a unit, or in the one of its size: 1e11 s is the year 5138, 1e11 ms 1973."""
    factor = {"s": "1e6", "ms": "1e3", "us": "1.0", "ns": "1e-3"}.get(unit or "")
    if factor is None:
        size = f"abs({number})"
        factor = (
            f"(CASE WHEN {size} < 1e11 THEN 1e6 WHEN {size} < 1e14 THEN 1e3 WHEN {size} < 1e17 THEN 1.0 ELSE 1e-3 END)"
        )
    us = f"round(({number}) * {factor})"
    return f"(CASE WHEN abs({us}) < 2.5e17 THEN {us}::BIGINT END)"


def _local_us(timestamp: str, zone: str) -> str:
    """Microseconds of a TIMESTAMP in a zone. An hour repeated in autumn is read as the second one."""
    return f"epoch_us({timestamp})" if zone == "UTC" else f"epoch_us(timezone({literal(zone)}, {timestamp}))"


def moments(library: Library, relation: str, column: str, kind: str, how: Column, zone: str) -> Moments:
    """Moments of a column of a relation. kind: its DuckDB type. how: given unit, format and zone."""
    zone = how.zone or zone
    if kind.startswith("TIMESTAMP WITH"):
        return Moments(f"epoch_us({column})")
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return Moments(_local_us(f"TRY_CAST({column} AS TIMESTAMP)", zone))
    if kind != "VARCHAR" and how.format is not None:
        column, kind = f"number_text({column})", "VARCHAR"
    if kind != "VARCHAR":
        return _of_numbers(library, relation, column, f"TRY_CAST({column} AS DOUBLE)", how)
    if how.format is not None:
        zoned = "%z" in how.format.lower()
        parsed = f"try_strptime({column}, {literal(how.format)})"
        return Moments(f"epoch_us({parsed})" if zoned else _local_us(f"CAST({parsed} AS TIMESTAMP)", zone))
    if fast := _cast(library, relation, column, zone):
        return Moments(fast)
    column = _with_point(library, relation, column)
    numerals, iso, others = library.rows(
        f"SELECT count(*) FILTER (regexp_matches({column}, '{_NUMERAL}')), count(*) FILTER (regexp_matches({column},"
        f" '{_ISO}')), count(*) FILTER (NOT regexp_matches({column}, '{_NUMERAL}') AND NOT regexp_matches({column},"
        f" '{_ISO}')) FROM {relation} WHERE {column} IS NOT NULL"
    )[0]
    cases, said, rest = [], [], "CAST(NULL AS BIGINT)"
    if numerals:
        found = _of_numbers(library, relation, column, f"TRY_CAST({column} AS DOUBLE)", how)
        cases.append(f"WHEN regexp_matches({column}, '{_NUMERAL}') THEN {found.sql}")
        said += [found.said] if found.said else []
    if iso:
        cases.append(_iso_case(column, zone))
    if others:
        found = _of_formats(library, relation, column, zone)
        rest = found.sql
        said += [found.said] if found.said else []
    return Moments(f"(CASE {' '.join(cases)} ELSE {rest} END)" if cases else rest, "; ".join(said) or None)


def _with_point(library: Library, relation: str, column: str) -> str:
    """The column with a decimal point, if all of its values are days of a spreadsheet with a decimal comma."""
    form = f"bool_and(regexp_matches({column}, '^[2-7]\\d{{4}}(,\\d+)?$'))"
    if library.rows(f"SELECT {form} FROM {relation} WHERE {column} IS NOT NULL")[0][0]:
        return f"replace({column}, ',', '.')"
    return column


def _cast(library: Library, relation: str, column: str, zone: str) -> str | None:
    """A cast, for a column whose values are all `_PLAIN` or all `_ZONED`."""
    for pattern in (_PLAIN, _ZONED):
        filled = f"FROM {relation} WHERE {column} IS NOT NULL"
        # The first rows show most columns of another form, without a look at all of them.
        some = f"SELECT bool_and(regexp_matches(v, '{pattern}')) FROM (SELECT {column} AS v {filled} LIMIT {_SAMPLE})"
        if (
            library.rows(some)[0][0]
            and library.rows(f"SELECT bool_and(regexp_matches({column}, '{pattern}')) {filled}")[0][0]
        ):
            if pattern == _PLAIN:
                return _local_us(f"TRY_CAST({column} AS TIMESTAMP)", zone)
            return f"epoch_us(TRY_CAST(replace({column}, ' UTC', 'Z') AS TIMESTAMPTZ))"
    return None


def _iso_case(column: str, zone: str) -> str:
    parts = [f"regexp_extract({column}, '{_ISO}', {i})" for i in (1, 2, 3)]
    local = f"TRY_CAST({parts[0]} || ' ' || replace(coalesce(nullif({parts[1]}, ''), '00:00'), ',', '.') AS TIMESTAMP)"
    offset = f"upper({parts[2]})"
    minutes = (
        f"(CASE WHEN {offset} IN ('Z', 'UTC', 'GMT') THEN 0 ELSE (CASE WHEN {offset}[1] = '-' THEN -1 ELSE 1 END) *"
        f" ({offset}[2:3]::BIGINT * 60 + coalesce(TRY_CAST(replace({offset}, ':', '')[4:5] AS BIGINT), 0)) END)"
    )
    return (
        f"WHEN regexp_matches({column}, '{_ISO}') THEN (CASE WHEN {parts[2]} <> '' THEN epoch_us({local}) - {minutes} *"
        f" 60000000 ELSE {_local_us(local, zone)} END)"
    )


def _of_numbers(library: Library, relation: str, column: str, number: str, how: Column) -> Moments:
    low, high = library.rows(f"SELECT min(n), max(n) FROM (SELECT {number} AS n FROM {relation}) WHERE isfinite(n)")[0]
    if how.unit is None and low is not None:
        if low >= 19000101 and high <= 21001231:
            days = f"epoch_us(try_strptime(CAST({number} AS BIGINT)::VARCHAR, '%Y%m%d'))"
            return Moments(days, "numbers of 8 digits are read as year, month and day")
        if low >= 20000 and high < 80000:
            return Moments(
                f"CAST(round(({number} - 25569) * 86400000) AS BIGINT) * 1000",
                "numbers are read as days of a spreadsheet since 1900",
            )
    return Moments(_number_us(number, how.unit))


def _of_formats(library: Library, relation: str, column: str, zone: str) -> Moments:
    """The format that reads most values; where day and month first do equally well, day first, and said."""
    odd = f"NOT regexp_matches({column}, '{_NUMERAL}') AND NOT regexp_matches({column}, '{_ISO}')"
    distinct = f"(SELECT DISTINCT {column} AS v FROM {relation} WHERE {column} IS NOT NULL AND {odd} LIMIT {_SAMPLE})"
    forms = list(dict.fromkeys(day + clock for day in _DAYS for clock in _CLOCKS))
    counts = library.rows(f"SELECT {', '.join(map(_readable, forms))} FROM {distinct}")[0]
    most = max(counts)
    if not most:
        return Moments("CAST(NULL AS BIGINT)")
    likely = [form for form, n in zip(forms, counts, strict=True) if n]
    whole = f"(SELECT {column} AS v FROM {relation} WHERE {column} IS NOT NULL AND {odd})"
    found = library.rows(f"SELECT {', '.join(map(_readable, likely))} FROM {whole}")[0]
    chosen = _without_conflicts(dict(zip(likely, found, strict=True)))
    said = f"moments are read as {' or '.join(chosen)} (guessed)"
    equal = [f for f, n in zip(likely, found, strict=True) if f not in chosen and n == found[likely.index(chosen[0])]]
    if equal:
        said += f"; {equal[0]} fits as well: set `format` if the month is first"
    parsed = ", ".join(
        f"epoch_us(try_strptime({column}, {literal(f)}))"
        if "%z" in f
        else _local_us(f"CAST(try_strptime({column}, {literal(f)}) AS TIMESTAMP)", "UTC" if f.endswith("Z") else zone)
        for f in chosen
    )
    return Moments(f"coalesce({parsed})", said)


def _readable(form: str) -> str:
    """Number of values `v` of a format, in a year that is likely: `26` is also a year of `%Y`."""
    return f"count(*) FILTER (year(CAST(try_strptime(v, {literal(form)}) AS TIMESTAMP)) BETWEEN 1700 AND 2200)"


def _without_conflicts(counts: dict[str, int]) -> Sequence[str]:
    """Formats by the number of cells they read, without those that swap day and month of a better one."""
    out: list[str] = []
    # Sorting is stable, and day first comes before month first in `_DAYS`.
    for form in sorted(counts, key=lambda f: -counts[f]):
        swapped = form.replace("%d", "\0").replace("%m", "%d").replace("\0", "%m")
        if swapped == form or swapped not in out:
            out.append(form)
    return out[:4]
