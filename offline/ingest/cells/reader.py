"""Reads the raw values of one mapped source: one expression for each canonical column or attribute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import duckdb

from features.bounds import ITEM_MOMENTS, MAX_NUMBER, TEXT_CHARACTERS, URL_CHARACTERS
from offline.config import Column
from offline.ingest.cells.currencies import Currencies, rates_sql, written_currency
from offline.ingest.cells.moments import moments
from offline.ingest.cells.numbers import decimal_separator, number_sql
from offline.ingest.mapping import CURRENCY, MappedSource
from offline.ingest.mapping.paths import Value, text
from offline.ingest.reading import Library
from offline.ingest.reading.library import first_line, quoted
from offline.runtime import DataError

_NUMERIC = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "REAL")
# Words for a missing number. In a column of texts they may be words: NA is also Namibia.
_NO_NUMBER = "'n/a', 'na', '#n/a', '-', '--', '?', 'unknown'"
_MOST_CURRENCIES = 1000
_AMOUNTS = ("price", "value")
_DECIMAL_COMMA = r"^([+-]?(\d{1,3}(\.\d{3})+|0|[1-9]\d*)(,\d+)?|[nN]/?[aA]|#[nN]/[aA]|--?|\?)$"
_DATES = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?$"


def is_number(kind: str) -> bool:
    """True if a DuckDB type is numeric."""
    return any(part in kind for part in _NUMERIC) and not kind.endswith("[]")


class Reader:
    """Reads the raw values of a source in three layers of SQL.

    `prepare` puts the raw values into a temporary table: typed numbers, moments and lists as they are, all else as
    trimmed text that is null if missing. The methods named after kinds of values return expressions over that table,
    which `add` takes as columns. `query` computes each column once, replaces invalid optional cells by null and counts
    them.

    relation: name of the temporary table. types: of its columns. said: guesses, and cells that were not read.
    """

    def __init__(
        self, library: Library, mapped: MappedSource, relation: str, zone: str, currencies: Currencies | None = None
    ) -> None:
        self.library, self.mapped, self.relation, self.zone = library, mapped, relation, zone
        self.currencies = currencies
        self.types: dict[str, str] = {}
        self.said: list[str] = list(mapped.said)
        self._columns: dict[str, str] = {}
        self._valid: dict[str, str] = {}
        self._has_commas = False

    def prepare(self, attributes: Sequence[str] = ()) -> None:
        """Create the temporary table. attributes: values that may be lists."""
        cells = []
        nested = self._nested_values([n for n in attributes if self.mapped.types[n] == "JSON"])
        for name, kind in self.mapped.types.items():
            typed = is_number(kind) or kind == "BOOLEAN" or kind.startswith(("TIMESTAMP", "DATE"))
            if typed or name in nested or (name in attributes and kind == "VARCHAR[]"):
                cells.append(quoted(name))
                self.types[name] = kind
            else:
                cells.append(f"{text(Value(quoted(name), kind))} AS {quoted(name)}")
                self.types[name] = "VARCHAR"
        create = (
            f"CREATE OR REPLACE TEMP TABLE {self._from} AS SELECT {', '.join(['_file, _row, _seq, _index', *cells])}"
            f" FROM ({self.mapped.query})"
        )
        try:
            self.library.sql.execute(create)
        except duckdb.Error as error:
            source = self.mapped.source
            conditions = f" (where: {source.where})" if source.where else ""
            raise DataError(
                f"table {source.table}: its mapping cannot be evaluated{conditions}: {first_line(error)}."
                " Check `where` and `sql` of this source."
            ) from None

    def _nested_values(self, names: list[str]) -> set[str]:
        """Those of some JSON values that have an object or a list in any row."""
        if not names:
            return set()
        kinds = ", ".join(f"bool_or(json_type({quoted(n)}) IN ('OBJECT', 'ARRAY'))" for n in names)
        row = self.library.rows(f"SELECT {kinds} FROM ({self.mapped.query})")[0]
        return {name for name, is_nested in zip(names, row, strict=True) if is_nested}

    def drop(self) -> None:
        """Drop the temporary table."""
        self.library.sql.execute(f"DROP TABLE {self._from}")

    def has(self, name: str) -> bool:
        """True if the source has a value for a target."""
        return name in self.types

    def column(self, name: str) -> Column:
        """The configuration of a target."""
        return self.mapped.columns[name]

    @property
    def _from(self) -> str:
        return quoted(self.relation)

    # Columns.

    def add(self, name: str, sql: str, valid: str | None = None) -> None:
        """Take a column. valid: condition on the column's name; other cells are missing and counted."""
        self._columns[name] = sql
        if valid is not None and self.has(name):
            self._valid[name] = valid

    def query(self, problem: str) -> str:
        """SELECT of `_file`, `_row`, `_seq`, the columns, `_problem` and `_lost`, a bit for each optional column.

        problem: expression over the columns, and over `has NAME`, whether the cell has any value.
        """
        columns = "".join(f", {sql} AS {quoted(name)}" for name, sql in self._columns.items())
        filled = "".join(f", {self._filled(name)} AS {quoted(f'has {name}')}" for name in self.types)
        inner = f"SELECT _file, _row, _seq, _index{columns}{filled} FROM {self._from}"
        valid = self._valid
        kept = {n: f"CASE WHEN {valid[n]} THEN {quoted(n)} END" if n in valid else quoted(n) for n in self._columns}
        bits = [
            f"(({quoted(f'has {n}')} AND coalesce(NOT ({valid[n]}), true))::BIGINT << {i})"
            for i, n in enumerate(list(valid)[:62])
        ]
        out = "".join(f", {sql} AS {quoted(name)}" for name, sql in kept.items())
        lost = " | ".join(bits) or "0::BIGINT"
        return f"SELECT _file, _row, _seq{out}, {problem} AS _problem, {lost} AS _lost FROM ({inner})"

    def count_lost(self, checked: str) -> Iterator[str]:
        """Sentences about cells that could not be read, each with the first of them. checked: table made by `query`."""
        names = list(self._valid)[:62]
        bits = self.library.rows(f"SELECT bit_or(_lost) FROM {quoted(checked)}")[0][0] or 0
        for i, name in enumerate(names):
            if bits >> i & 1:
                raw = self.text(name).replace(quoted(name), f"r.{quoted(name)}")
                n, first = self.library.rows(
                    f"SELECT count(*), arg_min({raw}, r._seq) FROM {quoted(checked)} AS c"
                    f" JOIN {self._from} AS r ON r._seq = c._seq WHERE c._lost >> {i} & 1 = 1"
                )[0]
                called = self.mapped.names[name]
                yield f"{called}: {n} cells cannot be read and count as missing, such as {str(first)[:80]!r}"

    # Expressions.

    def _filled(self, name: str) -> str:
        kind, raw = self.types[name], quoted(name)
        # The text of a moment or a fraction takes longer than all else that is done with it.
        if kind in ("DOUBLE", "FLOAT"):
            return f"coalesce(NOT isnan({raw}), false)"
        return f"{raw if kind.startswith(('TIMESTAMP', 'DATE')) else self.text(name)} IS NOT NULL"

    def text(self, name: str) -> str:
        """Trimmed text."""
        if not self.has(name):
            return "CAST(NULL AS VARCHAR)"
        return quoted(name) if self.types[name] == "VARCHAR" else text(Value(quoted(name), self.types[name]))

    def id(self, name: str) -> str:
        """An ID in canonical form. If all values of the column are written as floats, they are read as integers."""
        if not self.has(name):
            return "CAST(NULL AS VARCHAR)"
        sql = f"id_text({self.text(name)})"
        if self.types[name] == "VARCHAR" and self._all_match(name, r"^(-?\d+\.0+|\d(\.\d+)?e\+\d+)$"):
            self.said.append(f"{self.mapped.names[name]}: IDs were written as decimals; 13085.0 is read as 13085")
            sql = f"join_key({sql})"
        return sql

    def id_problem(self, name: str) -> str:
        """Reason why an added column is not a valid ID; null if it is, or is missing."""
        kind, sql = self.mapped.types.get(name, ""), quoted(name)
        if kind in ("BOOLEAN", "VARCHAR[]") or kind.startswith(("TIMESTAMP", "DATE")):
            return f"CASE WHEN {sql} IS NOT NULL THEN 'wrong_type' END"
        if kind == "JSON":
            nested = f"{sql}[1] IN ('{{', '[') AND {sql} <> '[object Object]'"
            return f"CASE WHEN {nested} THEN 'wrong_type' ELSE id_problem({sql}) END"
        return f"id_problem({sql})"

    def number(self, name: str) -> str:
        """DOUBLE; null if it is missing or not a number."""
        if not self.has(name):
            return "CAST(NULL AS DOUBLE)"
        raw = quoted(name)
        if self.types[name] != "VARCHAR":
            return f"TRY_CAST({raw} AS DOUBLE)"
        decimal: str | None = self.column(name).decimal
        if decimal is None and self._all_numbers(name):
            return f"TRY_CAST({raw} AS DOUBLE)"
        if decimal is None:
            decimal = decimal_separator(self.library, self._from, raw) or self._decimal_elsewhere(name)
            if decimal == ",":
                self._has_commas = True
                self.said.append(f"{self.mapped.names[name]}: read with a decimal comma (guessed)")
        return number_sql(raw, decimal)

    def _decimal_elsewhere(self, name: str) -> str:
        """The decimal separator of the source's other amounts, for a column that does not tell; `.` if none does."""
        others = [n for n in _AMOUNTS if n != name and self.has(n) and self.types[n] == "VARCHAR"]
        given = [self.column(n).decimal or decimal_separator(self.library, self._from, quoted(n)) for n in others]
        return next((separator for separator in given if separator is not None), ".")

    def add_number(self, name: str, *, least: float = -MAX_NUMBER) -> None:
        """Take a column of numbers between a bound and `MAX_NUMBER`; others are missing.

        A price, and a number whose column has a currency, is converted to the currency of the shop.
        """
        number = self.number(name)
        self.add(
            name,
            f"{number}{self._times_rate(name, number)}",
            f"{quoted(name)} BETWEEN {least:.0f} AND {MAX_NUMBER:.0f}",
        )

    def _times_rate(self, name: str, number: str) -> str:
        """Multiplication by the rate of each cell's currency; nothing if no cell is converted. number: of the cell."""
        given = CURRENCY + name
        if not self.has(name) or not (name == "price" or self.has(given)):
            return ""
        is_text = self.types[name] == "VARCHAR"
        if not self.has(given) and (not is_text or self._all_numbers(name)):
            return ""
        beside = written_currency(quoted(name)) if is_text else "CAST(NULL AS VARCHAR)"
        currency = f"coalesce({self.text(given)}, {beside})" if self.has(given) else beside
        counts = self.library.rows(
            f"SELECT {currency} AS c, count(*) FROM {self._from} WHERE {number} IS NOT NULL AND c IS NOT NULL"
            f" GROUP BY c ORDER BY 2 DESC, c LIMIT {_MOST_CURRENCIES}"
        )
        called = self.mapped.names[name]
        if self.currencies is None:
            if len(counts) > 1:
                found = ", ".join(f"{word} ({n})" for word, n in counts[:5])
                self.said.append(f"{called}: several currencies, which are not converted: {found}. Set `currency`")
            return ""
        rates = {word: self.currencies.rate(word) for word, _ in counts}
        for word, n in counts:
            if rates[word] is None:
                self.said.append(f"{called}: {n} cells are in {word!r}, which has no rate, and count as missing")
            elif rates[word] != 1:
                self.said.append(f"{called}: {n} cells were converted from {word} to {self.currencies.own}")
        return f" * {rates_sql(currency, rates)}" if any(rate != 1 for rate in rates.values()) else ""

    def moment(self, name: str) -> str:
        """Microseconds since 1970 UTC; null if missing or not a moment."""
        if not self.has(name):
            return "CAST(NULL AS BIGINT)"
        found = moments(self.library, self._from, quoted(name), self.types[name], self.column(name), self.zone)
        if found.said:
            self.said.append(f"{self.mapped.names[name]}: {found.said}")
        return found.sql

    def add_date(self, name: str) -> None:
        """Take a column of moments as TIMESTAMP within `ITEM_MOMENTS`; others are missing."""
        low, high = (f"make_timestamp({bound * 10**6})" for bound in ITEM_MOMENTS)
        self.add(name, f"make_timestamp({self.moment(name)})", f"{quoted(name)} BETWEEN {low} AND {high}")

    def add_prose(self, name: str) -> None:
        """Take a column of text on one line without HTML; missing if it has more than `TEXT_CHARACTERS` characters."""
        sql = self.text(name)
        if self.has(name):
            sql = f"one_line({sql})" if self.column(name).html is False else f"one_line(plain_text({sql}))"
        self.add(name, sql, f"length({quoted(name)}) <= {TEXT_CHARACTERS}")

    def add_url(self, name: str) -> None:
        """Take a column of web addresses: the first of each cell; missing if it has none, or an overlong one.

        An address that leaves its scheme open, as in `//cdn.shop.test/mug.jpg`, is read as https.
        """
        first = f"regexp_replace({self.text(name)}, '[,;|]\\s*(https?:)?//.*$', '')"
        address = f"regexp_extract({first}, '(https?:)?//[^\\s\"''<>|]+')"
        sql = f"nullif(regexp_replace({address}, '^//', 'https://'), '')"
        self.add(name, sql, f"length({quoted(name)}) <= {URL_CHARACTERS}")

    def flag(self, name: str) -> str:
        """BOOLEAN from true or false, 1 or 0, yes or no."""
        return f"flag({self.text(name)})"

    def add_attributes(self, names: Sequence[str]) -> dict[str, str]:
        """Take attributes as typed columns; returns their DuckDB types.

        Attributes without any value, or with only nested objects, are left out.
        """
        profile = self._profile([n for n in names if self.types[n] == "VARCHAR" and self.column(n).split is None])
        empty = self._empty([n for n in names if self.types[n] not in ("VARCHAR", "JSON")])
        found = {name: self._add_attribute(name, profile.get(name)) for name in names if name not in empty}
        return {name: kind for name, kind in found.items() if kind is not None}

    def _add_attribute(self, name: str, profile: tuple[int, int, int, int] | None) -> str | None:
        kind, how = self.types[name], self.column(name)
        if how.type == "ignore":
            return None
        if kind in ("JSON", "VARCHAR[]"):
            return self._add_list(name, kind)
        if how.split is not None or how.type == "tags":
            separator = (how.split or "|").replace("'", "''")
            parts = f"list_transform(string_split(plain_text({self.text(name)}), '{separator}'), lambda x: tidy(x))"
            self.add(name, f"nullif(list_filter({parts}, lambda x: x IS NOT NULL), [])")
            return "VARCHAR[]"
        filled, numbers, zeros, dates = profile or (1, 0, 0, 0)
        if not filled:
            # Nothing but words such as `n/a`.
            return None
        guess = how.type is None and kind == "VARCHAR"
        if kind.startswith(("TIMESTAMP", "DATE")) or how.type == "date" or (guess and dates == filled):
            self.add_date(name)
            return "TIMESTAMP"
        is_written = guess and ((numbers == filled and not zeros) or self._has_only_decimal_commas(name))
        if is_number(kind) or kind == "BOOLEAN" or how.type == "number" or is_written:
            self.add_number(name)
            return "DOUBLE"
        self.add_prose(name)
        return "VARCHAR"

    def _has_only_decimal_commas(self, name: str) -> bool:
        """True if an attribute is a number with a decimal comma, as its configuration or the table's price says.

        Elsewhere, `36,38` may be two sizes.
        """
        commas = self.column(name).decimal == "," or self._has_commas
        return commas and self._all_match(name, _DECIMAL_COMMA) and not self._all_numbers(name)

    def _add_list(self, name: str, kind: str) -> str | None:
        raw = quoted(name)
        if kind == "VARCHAR[]":
            self.add(name, _texts(raw))
            return kind
        kinds = {row[0] for row in self.library.rows(f"SELECT DISTINCT json_type({raw}) FROM {self._from}")} - {
            None,
            "NULL",
        }
        listed, in_lists = self._element_kinds(raw) if "ARRAY" in kinds else (False, False)
        if "OBJECT" in kinds or in_lists:
            self.said.append(f"{name}: nested objects are left out; `unpack` makes attributes of their fields")
        if not kinds - {"OBJECT"} or (kinds <= {"OBJECT", "ARRAY"} and in_lists and not listed):
            return None
        if kinds == {"ARRAY"} and self._all_single_numbers(raw):
            self.add(name, f"TRY_CAST(json_extract_string({raw}, '$[0]') AS DOUBLE)")
            return "DOUBLE"
        one = f"CASE WHEN json_type({raw}) IN ('OBJECT', 'NULL') THEN [] ELSE [json_extract_string({raw}, '$')] END"
        self.add(
            name, _texts(f"CASE WHEN json_type({raw}) = 'ARRAY' THEN json_extract_string({raw}, '$[*]') ELSE {one} END")
        )
        return "VARCHAR[]"

    # Findings from the whole column.

    def _element_kinds(self, raw: str) -> tuple[bool, bool]:
        """True if the lists of a JSON column have elements that are texts or numbers, and any that are objects."""
        kinds = f"list_transform(json_extract({raw}, '$[*]'), lambda x: json_type(x))"
        plain = "len(list_filter(kinds, lambda x: x NOT IN ('OBJECT', 'ARRAY', 'NULL'))) > 0"
        found = self.library.rows(
            f"SELECT coalesce(bool_or({plain}), false), coalesce(bool_or(list_contains(kinds, 'OBJECT')), false)"
            f" FROM (SELECT {kinds} AS kinds FROM {self._from} WHERE json_type({raw}) = 'ARRAY')"
        )[0]
        return bool(found[0]), bool(found[1])

    def _all_single_numbers(self, raw: str) -> bool:
        """True if all lists of a JSON column are empty or hold one number."""
        number = f"json_type({raw}, '$[0]') IN ('UBIGINT', 'BIGINT', 'DOUBLE')"
        found = self.library.rows(
            f"SELECT bool_and(json_array_length({raw}) = 0 OR (json_array_length({raw}) = 1 AND {number})),"
            f" max(json_array_length({raw})) FROM {self._from} WHERE {raw} IS NOT NULL"
        )[0]
        return bool(found[0] and found[1])

    def _profile(self, names: list[str]) -> dict[str, tuple[int, int, int, int]]:
        if not names:
            return {}
        counts = ", ".join(
            f"count({c}) - count(*) FILTER (lower({c}) IN ({_NO_NUMBER})), count(*) FILTER (isfinite(TRY_CAST({c} AS"
            f" DOUBLE))), count(*) FILTER (regexp_matches({c},"
            f" '^[+-]?0\\d|_|^0[xX]')), count(*) FILTER (regexp_matches({c}, '{_DATES}'))"
            for c in map(quoted, names)
        )
        row = self.library.rows(f"SELECT {counts} FROM {self._from}")[0]
        return {name: (row[4 * i], row[4 * i + 1], row[4 * i + 2], row[4 * i + 3]) for i, name in enumerate(names)}

    def _empty(self, names: list[str]) -> set[str]:
        """Columns without any value."""
        if not names:
            return set()
        counts = self.library.rows(f"SELECT {', '.join(f'count({quoted(n)})' for n in names)} FROM {self._from}")[0]
        return {name for name, count in zip(names, counts, strict=True) if not count}

    def _all_match(self, name: str, pattern: str) -> bool:
        raw = quoted(name)
        found = self.library.rows(
            f"SELECT bool_and(regexp_matches({raw}, '{pattern}')) FROM {self._from} WHERE {raw} IS NOT NULL"
        )
        return bool(found[0][0])

    def _all_numbers(self, name: str) -> bool:
        raw = quoted(name)
        filled, numbers = self.library.rows(f"SELECT count({raw}), count(TRY_CAST({raw} AS DOUBLE)) FROM {self._from}")[
            0
        ]
        return bool(filled == numbers)


def _texts(sql: str) -> str:
    """A list of texts without missing and nested elements; null if none is left."""
    tidied = f"list_transform({sql}, lambda x: one_line(plain_text(tidy(x))))"
    return f"nullif(list_filter({tidied}, lambda x: x IS NOT NULL AND x[1] <> '{{'), [])"
