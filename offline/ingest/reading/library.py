"""Raw tables: files loaded into one temporary DuckDB database with bounded memory, which spills to disk.

CSV cells are text, empty cells null. Parquet columns keep their types. Scalars of JSON become numbers, booleans or
texts; every nested value, also of Parquet, is a JSON column. After loading, the database cannot access files.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import duckdb

from offline.ingest.reading.dialects import MOST_COLUMNS, Dialect, unclosed_quote
from offline.ingest.reading.json_shapes import MAX_LINE
from offline.ingest.reading.peeking import Peek
from offline.runtime import DataError

MEMORY = "2GB"
_LONG_CELL_LINES = 100
_SWALLOWED_ROWS = 20
"""Lines of one cell that look like rows of the table, from which on its quotes are taken for strays."""


def quoted(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL text."""
    return "'" + text.replace("'", "''") + "'"


def first_line(error: duckdb.Error) -> str:
    """DuckDB's error message, without the excerpt of the query that follows."""
    return str(error).splitlines()[0]


def table_name(path: Path | str) -> str:
    """Name of a file's table: without endings, and without the date or number of a shard."""
    name = Path(path).name
    while re.search(r"\.(csv|tsv|txt|dat|data|json|jsonl|ndjson|xml|yml|xlsx|parquet|gz|zip)$", name, re.IGNORECASE):
        name = name.rsplit(".", 1)[0]
    return re.sub(r"[-_. ]*\d[\d\-_. ]*$", "", name) or name


def renamed_columns(columns: Sequence[str], variants: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """New name to column, in the order of renaming, for each new name of which the columns have a variant.

    A column that has the new name keeps it. One that differs from it in case only makes way for the variant that comes
    first: `Quantity` becomes `Quantity (2)` if `quantity` is the new name of `Quantity (- Refund)`.
    """
    out: dict[str, str] = {}
    for new, names in variants.items():
        free = [c for c in columns if c not in out.values()]
        found = next((c for name in names if (c := _find(free, name)) is not None), None)
        if found is None or new in columns:
            continue
        if same := next((c for c in free if c != found and c.lower() == new.lower()), None):
            out[_free_name(f"{same} (2)", [*columns, *out])] = same
        out[new] = found
    return out


def _free_name(name: str, taken: Iterable[str]) -> str:
    lower = {t.lower() for t in taken}
    while name.lower() in lower:
        name += "_"
    return name


def _find(columns: Sequence[str], name: str) -> str | None:
    """The column of a name: an equal one, else one with equal letters and digits, else one that fits its `*`."""
    if name in columns:
        return name
    plain = _letters(name)
    if alike := [c for c in columns if plain and _letters(c) == plain]:
        return alike[0]
    if "*" not in name:
        return None
    pattern = ".*".join(re.escape(part) for part in name.split("*"))
    return next((c for c in columns if re.fullmatch(pattern, c, re.IGNORECASE)), None)


@cache
def _letters(name: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isalnum())


@dataclass
class RawTable:
    """A loaded table.

    file: how messages call it. columns: name to DuckDB type. form: csv, json, parquet or sql. rows: number of records.
    refused: records that could not be parsed, by reason. said: what was guessed.
    """

    name: str
    file: str
    columns: dict[str, str]
    form: str = "csv"
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    def error(self, problem: str, remedy: str = "") -> DataError:
        """An error about the columns of this table, which lists them."""
        return DataError(f"{self.file}: {problem}. It has: {', '.join(self.columns)}.{remedy and ' '}{remedy}")

    def unmapped(self, name: str, path: str | None = None) -> DataError:
        """An error: the table lacks the column of a target. path: the column, if it has another name."""
        what = f"no column {name!r}" if path in (None, name) else f"no column {path!r} for {name}"
        return self.error(what, f"Map one of them in the configuration: columns: {{{name}: <column>}}.")


class Library:
    """The database of an import. refusals: table `_refused` (file, row, column, value, reason)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sql = duckdb.connect()
        for setting in (
            f"memory_limit = '{MEMORY}'",
            f"temp_directory = {literal(str(directory))}",
            "TimeZone = 'UTC'",
        ):
            self.sql.execute(f"SET {setting}")
        self.sql.execute("SET enable_progress_bar = false")
        # Accepted rows, apart from the raw tables, which may have any name.
        self.sql.execute("CREATE SCHEMA shop")
        self.sql.execute(
            'CREATE TABLE _refused (file VARCHAR, "row" BIGINT, "column" VARCHAR, value VARCHAR, reason VARCHAR)'
        )
        self.tables: dict[str, RawTable] = {}

    def close(self) -> None:
        """Close the database. Its directory belongs to the caller."""
        self.sql.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Result of a query."""
        return self.sql.execute(query).fetchall()

    def lock(self) -> None:
        """Forbid any further access to files and any extension."""
        self.sql.execute("SET enable_external_access = false")
        self.sql.execute("SET lock_configuration = true")

    def load(self, name: str, peeks: Sequence[Peek], on_file: Callable[[Peek], None] | None = None) -> RawTable:
        """Load the files of one table. Columns that a file lacks are null. Raises DataError if one cannot be read."""
        parts, last = [], 0
        table = RawTable(name, _common_name(peeks), {}, peeks[0].form)
        for number, peek in enumerate(peeks):
            part = quoted(f"_part_{number}")
            _LOADERS[peek.form](self, peek, part, table)
            parts.append(f"SELECT * REPLACE (_seq + {last} AS _seq) FROM {part}")
            last += self.rows(f"SELECT coalesce(max(_seq), 0) FROM {part}")[0][0]
            table.said += [f"{peek.name}: {text}" for text in peek.said]
            if on_file:
                on_file(peek)
        if len(parts) == 1:
            self.sql.execute(f"ALTER TABLE _part_0 RENAME TO {quoted(name)}")
            return self.add(table)
        self.sql.execute(f"CREATE TABLE {quoted(name)} AS {' UNION ALL BY NAME '.join(parts)}")
        for number in range(len(peeks)):
            self.sql.execute(f"DROP TABLE {quoted(f'_part_{number}')}")
        return self.add(table)

    def derive(self, name: str, query: str) -> RawTable:
        """A table from an SQL query over the other tables. Raises DataError with DuckDB's message if it is wrong."""
        try:
            self.sql.execute(f"CREATE TABLE {quoted(name)} AS {query}")
        except duckdb.Error as error:
            raise DataError(f"table {name}: its `sql` cannot be run: {error}") from None
        table = RawTable(name, name, {}, "sql")
        have = self._describe(name)
        if not {"_file", "_row", "_seq"} <= set(have):
            others = ", ".join(quoted(c) for c in have if c not in ("_file", "_row", "_seq"))
            self.sql.execute(
                f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT {others}, {literal(name)} AS _file,"
                f" row_number() OVER () AS _row, row_number() OVER () AS _seq FROM {quoted(name)}"
            )
            return self.add(table)
        if self.rows(f"SELECT count(DISTINCT _seq) < count(*) FROM {quoted(name)}")[0][0]:
            # Several rows of one record, such as the elements of a list.
            self.sql.execute(
                f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * REPLACE (row_number() OVER (ORDER BY _seq) AS"
                f" _seq) FROM {quoted(name)}"
            )
        if len(files := self.rows(f"SELECT DISTINCT _file FROM {quoted(name)} LIMIT 2")) == 1:
            table.file = files[0][0] or name
        return self.add(table)

    def ensure(self, name: str, columns: Sequence[str]) -> None:
        """Add columns without values that a table lacks, in any case of letters."""
        table = self.tables[name]
        have = {column.lower() for column in table.columns}
        for column in columns:
            if column.lower() not in have:
                self.sql.execute(f"ALTER TABLE {quoted(name)} ADD COLUMN {quoted(column)} VARCHAR")
                table.columns[column] = "VARCHAR"

    def rename(self, name: str, variants: Mapping[str, Sequence[str]]) -> None:
        """Rename columns: new name to the names that they may have."""
        table = self.tables[name]
        for new, old in renamed_columns(list(table.columns), variants).items():
            self.sql.execute(f"ALTER TABLE {quoted(name)} RENAME COLUMN {quoted(old)} TO {quoted(new)}")
            table.columns = {new if c == old else c: kind for c, kind in table.columns.items()}

    def fill_down(self, name: str, columns: Sequence[str], key: str | None) -> None:
        """Fill empty cells with the last value above, within the rows of one key if there is one.

        A key that is among the columns is filled first.
        """
        if key is not None and key in columns:
            self.fill_down(name, [key], None)
            columns = [c for c in columns if c != key]
        if not columns:
            return
        self._require(name, [*columns, *([key] if key else [])])
        part = f"PARTITION BY {quoted(key)} " if key else ""
        filled = ", ".join(
            f"last_value({quoted(c)} IGNORE NULLS) OVER ({part}ORDER BY _seq) AS {quoted(c)}" for c in columns
        )
        self.sql.execute(
            f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * REPLACE ({filled}) FROM {quoted(name)} ORDER BY _seq"
        )

    def add(self, table: RawTable) -> RawTable:
        """Take a table of the database into the library: its columns and number of rows."""
        types = self._describe(table.name)
        table.columns = {c: t for c, t in types.items() if c not in ("_file", "_row", "_seq")}
        if len(table.columns) > MOST_COLUMNS:
            raise DataError(f"{table.file}: has {len(table.columns)} columns; the maximum is {MOST_COLUMNS}.")
        table.rows = self.rows(f"SELECT count(*) FROM {quoted(table.name)}")[0][0]
        self.tables[table.name] = table
        return table

    def _describe(self, name: str) -> dict[str, str]:
        return {row[0]: row[1] for row in self.rows(f"DESCRIBE {quoted(name)}")}

    def _require(self, name: str, columns: Sequence[str]) -> None:
        table = self.tables[name]
        if lacking := [c for c in columns if c not in table.columns]:
            raise table.error(f"no column {lacking[0]!r}")

    def refuse(self, file: str, row: int, column: str | None, value: str, reason: str) -> None:
        """Record a row that could not be parsed."""
        self.sql.execute("INSERT INTO _refused VALUES (?, ?, ?, ?, ?)", [file, row, column, value[:1000], reason])


def _common_name(peeks: Sequence[Peek]) -> str:
    names = list(dict.fromkeys(p.name if len(peeks) == 1 else p.source.name for p in peeks))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


# --- formats ---------------------------------------------------------------------------------------------------


def _load_csv(library: Library, peek: Peek, part: str, table: RawTable) -> None:
    dialect = peek.dialect
    assert dialect is not None
    if open_quote := unclosed_quote(peek.path, dialect):
        row, text = open_quote
        raise DataError(
            f"{peek.name}, row {row}: a quote is opened and never closed, so all rows after it would be one cell:"
            f" {text}. Close the quote, or set `quote: ''` for this table if quotes are part of the text."
        )
    q = literal(dialect.quote)
    columns = ", ".join(f"{literal(n)}: 'VARCHAR'" for n in dialect.names)
    read = (
        f"read_csv({literal(str(peek.path))}, auto_detect=false, header={str(dialect.header).lower()},"
        f" skip={dialect.skip}, delim={literal(dialect.delimiter)}, quote={q}, escape={q}, strict_mode=false,"
        f" columns={{{columns}}}, store_rejects=true, rejects_table='_rejects', rejects_scan='_scans', nullstr='',"
        f" max_line_size={MAX_LINE}, parallel=false)"
    )
    first = dialect.skip + (2 if dialect.header else 1)
    try:
        library.sql.execute(
            f"CREATE TABLE {part} AS SELECT *, {literal(peek.name)} AS _file,"
            f" row_number() OVER () + {first - 1} AS _row, row_number() OVER () AS _seq FROM {read}"
        )
    except duckdb.Error as error:
        raise DataError(f"{peek.name}: cannot be read as CSV ({first_line(error)}).") from None
    _take_rejects(library, peek, part, table)
    _check_long_cells(library, peek, part, dialect, table)


_REJECTS: Mapping[str, str] = {
    "TOO MANY COLUMNS": "wrong_number_of_columns",
    "MISSING COLUMNS": "wrong_number_of_columns",
    "LINE SIZE OVER MAXIMUM": "line_too_long",
}


def _take_rejects(library: Library, peek: Peek, part: str, table: RawTable) -> None:
    found = library.rows(
        "SELECT line, any_value(csv_line), any_value(error_type) FROM _rejects GROUP BY line ORDER BY 1"
    )
    library.sql.execute("DROP TABLE _rejects")
    library.sql.execute("DROP TABLE _scans")
    refused = [(line, text, kind) for line, text, kind in found if (text or "").strip()]
    for line, text, kind in refused:
        reason = _REJECTS.get(kind, "wrong_number_of_columns")
        library.refuse(peek.name, line, None, text.strip(), reason)
        table.refused[reason] += 1
    if refused:
        lines = ", ".join(f"({line})" for line, _, _ in refused)
        library.sql.execute(f"CREATE TEMP TABLE _gaps AS SELECT * FROM (VALUES {lines}) AS g(line)")
        # The rows after a rejected record have a higher number than their order among the rows that were read.
        shifts = (
            "SELECT line - number + 1 AS from_row, number AS shift,"
            " coalesce(lead(line) OVER (ORDER BY line) - number, 9223372036854775807) AS to_row"
            " FROM (SELECT line, row_number() OVER (ORDER BY line) AS number FROM _gaps)"
        )
        library.sql.execute(
            f"UPDATE {part} SET _row = _row + shift FROM ({shifts}) AS g WHERE _row >= from_row AND _row < to_row"
        )
        library.sql.execute("DROP TABLE _gaps")


def _check_long_cells(library: Library, peek: Peek, part: str, dialect: Dialect, table: RawTable) -> None:
    """Look for rows that an even number of stray quotes has made part of one cell.

    Raises DataError for a cell of which `_SWALLOWED_ROWS` lines have as many delimiters as a row, unless the quote is
    configured; a row of one or two columns has too few to tell. Notes a cell of more than `_LONG_CELL_LINES` lines.
    """
    if not dialect.quote:
        return
    # The length rules most cells out, and is read without the cell.
    cells = " UNION ALL ".join(
        f"SELECT _row, {literal(n)} AS name, {quoted(n)} AS cell FROM {part} WHERE strlen({quoted(n)}) >"
        f" {2 * _SWALLOWED_ROWS} AND contains({quoted(n)}, chr(10))"
        for n in dialect.names
    )
    delimiter = literal(dialect.delimiter)
    if len(dialect.names) > 2:
        delimiters = f"(length(line) - length(replace(line, {delimiter}, ''))) / length({delimiter})"
        like_rows = f"len(list_filter(lines, lambda line: {delimiters} = {len(dialect.names) - 1}))"
    else:
        like_rows = "0"
    found = library.rows(
        f"SELECT _row, name, len(lines), {like_rows} AS rows FROM (SELECT _row, name, string_split(cell, chr(10)) AS"
        f" lines FROM ({cells})) WHERE rows >= {_SWALLOWED_ROWS} OR len(lines) > {_LONG_CELL_LINES}"
        " ORDER BY rows DESC, len(lines) DESC, _row LIMIT 1"
    )
    for row, name, lines, rows in found:
        where = f"{peek.name}, row {row}, column {name}: one cell spans {lines} lines"
        if rows >= _SWALLOWED_ROWS and not dialect.given:
            raise DataError(
                f"{where}, of which {rows} look like rows of the table, so its quotes are probably stray ones. Remove"
                " them, or set `quote` for this table: '' if quotes are part of the text, or"
                f" {dialect.quote!r} if the cell is right."
            )
        table.said.append(f"{where}; check that its quote is closed")


def _load_parquet(library: Library, peek: Peek, part: str, table: RawTable) -> None:
    read = f"read_parquet({literal(str(peek.path))}, file_row_number=true)"
    try:
        types = {row[0]: row[1] for row in library.rows(f"DESCRIBE SELECT * FROM {read}")}
        names = [n for n in types if n != "file_row_number"]
        nested = [n for n in names if re.search(r"\[\]|^(STRUCT|MAP|UNION)|\]$", types[n])]
        cells = ", ".join(f"to_json({quoted(n)}) AS {quoted(n)}" if n in nested else quoted(n) for n in names)
        library.sql.execute(
            f"CREATE TABLE {part} AS SELECT {cells}, {literal(peek.name)} AS _file, file_row_number + 1 AS _row,"
            f" _row AS _seq FROM {read}"
        )
    except duckdb.Error as error:
        raise DataError(
            f"{peek.name}: cannot be read as Parquet ({first_line(error)}). Export the file again."
        ) from None


def _load_json(library: Library, peek: Peek, part: str, table: RawTable) -> None:
    path = literal(str(peek.path))
    if peek.shape == "array":
        try:
            library.sql.execute(
                "CREATE TABLE _json AS SELECT json, row_number() OVER () AS _row, json::VARCHAR AS line"
                f" FROM read_json_objects({path}, format='array', maximum_object_size={MAX_LINE})"
            )
        except duckdb.Error as error:
            raise DataError(f"{peek.name}: is not a valid JSON array ({first_line(error)}).") from None
    else:
        library.sql.execute(
            f"CREATE TABLE _text AS SELECT line, row_number() OVER () AS _row FROM read_csv({path}, auto_detect=false,"
            f" header=false, delim=chr(1), quote='', escape='', columns={{'line': 'VARCHAR'}}, strict_mode=false,"
            f" max_line_size={MAX_LINE}, store_rejects=true, rejects_table='_rejects', rejects_scan='_scans',"
            " parallel=false)"
        )
        _take_rejects(library, peek, "_text", table)
        library.sql.execute(
            "CREATE TABLE _json AS SELECT CASE WHEN json_valid(line) THEN line::JSON END AS json, _row, line FROM _text"
            " WHERE line IS NOT NULL AND trim(line) <> ''"
        )
        library.sql.execute("DROP TABLE _text")
    bad = "CASE WHEN json IS NULL THEN 'bad_json' WHEN json_type(json) <> 'OBJECT' THEN 'not_an_object' END"
    library.sql.execute(
        f"INSERT INTO _refused SELECT {literal(peek.name)}, _row, NULL, line[:1000], {bad} FROM _json"
        f" WHERE {bad} IS NOT NULL"
    )
    table.refused.update(dict(library.rows(f"SELECT {bad}, count(*) FROM _json WHERE {bad} IS NOT NULL GROUP BY 1")))
    columns = _json_columns(library, peek.name)
    library.sql.execute(
        f"CREATE TABLE {part} AS SELECT {columns} {literal(peek.name)} AS _file, _row, _row AS _seq"
        " FROM _json WHERE json IS NOT NULL AND json_type(json) = 'OBJECT' ORDER BY _row"
    )
    library.sql.execute("DROP TABLE _json")


def _json_columns(library: Library, name: str) -> str:
    """Select list of the top-level keys. A key with only numbers or only booleans has that type, nested values JSON.

    Raises DataError for more than `MOST_COLUMNS` keys, in one record or in all.
    """
    objects = "json IS NOT NULL AND json_type(json) = 'OBJECT'"
    most = library.rows(f"SELECT coalesce(max(len(json_keys(json))), 0) FROM _json WHERE {objects}")[0][0]
    if most > MOST_COLUMNS:
        raise DataError(f"{name}: a record has {most} keys; the maximum is {MOST_COLUMNS}. Nest them in one key.")
    found = library.rows(
        "WITH objects AS (SELECT json FROM _json WHERE json IS NOT NULL AND json_type(json) = 'OBJECT'),"
        " keys AS (SELECT json, unnest(json_keys(json)) AS key FROM objects)"
        " SELECT key, list(DISTINCT json_type(json, '$.' || to_json(key))) FROM keys GROUP BY key ORDER BY key"
    )
    if len(found) > MOST_COLUMNS:
        raise DataError(
            f"{name}: has {len(found)} different keys; the maximum is {MOST_COLUMNS}. Nest them in one key."
        )
    out = ""
    for key, types in found:
        kinds = frozenset(types) - {"NULL"}
        at = f"'$.' || {literal(json_key(key))}"
        if kinds & {"OBJECT", "ARRAY"}:
            cell = f"nullif(json_extract(json, {at}), 'null'::JSON)"
        elif kinds <= {"UBIGINT", "BIGINT", "DOUBLE"} and kinds:
            kind = "DOUBLE" if "DOUBLE" in kinds else "HUGEINT"
            cell = f"TRY_CAST(json_extract_string(json, {at}) AS {kind})"
        else:
            cell = f"json_extract_string(json, {at})"
            cell = f"({cell})::BOOLEAN" if kinds == {"BOOLEAN"} else cell
        out += f"{cell} AS {quoted(key)}, "
    return out


def json_key(key: str) -> str:
    """A key as a step of a JSON path."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


_LOADERS: Mapping[str, Callable[[Library, Peek, str, RawTable], None]] = {
    "csv": _load_csv,
    "json": _load_json,
    "parquet": _load_parquet,
}
