"""Compiles a source: its joins, exploded list, condition and columns become one SELECT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offline.config import Column, Source
from offline.ingest.mapping.paths import NO_VALUE, Scope, Value, text
from offline.ingest.reading import Library, RawTable
from offline.ingest.reading.library import literal, quoted
from offline.runtime import DataError

CURRENCY = "#currency "
"""Prefix of the target with the currency of another target."""


@dataclass(frozen=True)
class MappedSource:
    """A compiled source.

    query: SELECT of `_file`, `_row`, `_seq`, `_index` and the raw values under their target names. types: of the raw
    values. columns: their configuration. names: what messages call each value. plain: whether the query only reads
    columns, so that running it twice costs little. roots: columns of the own table that are mapped. scope: for further
    paths.
    """

    source: Source
    query: str
    types: Mapping[str, str]
    columns: Mapping[str, Column]
    names: Mapping[str, str]
    plain: bool
    roots: frozenset[str]
    scope: Scope
    said: Sequence[str] = field(default=())


def compile_source(
    library: Library,
    source: Source,
    canonical: Sequence[str],
    extra: Mapping[str, Column] | None = None,
    keep: Sequence[str] = (),
) -> MappedSource:
    """Compile a source. canonical: names that need no entry if the table has a column of that name.

    extra: further columns, such as unpacked attributes. keep: names of columns to take although they are not mapped.
    Raises DataError for a table, column or expression that does not exist.
    """
    own = library.tables[source.table]
    scope = Scope(
        {source.table: own.columns, **{j.table: _table(library, j.table).columns for j in source.join}},
        source.explode.path if source.explode else None,
    )
    wanted = {
        **{name: Column(path=name) for name in canonical if name in own.columns and name not in source.columns},
        **{name: column for name, column in source.columns.items() if column is not None},
        **(extra or {}),
        **{name: Column(path=name) for name in keep},
    }
    wanted |= {CURRENCY + name: Column(path=c.currency) for name, c in wanted.items() if c.currency is not None}
    values = {name: _value(library, scope, source, name, column) for name, column in wanted.items()}
    said: list[str] = []
    origin = quoted(source.table)
    alias = origin
    joins = "".join(_join(library, scope, source, j.table, j.keys, said) for j in source.join)
    if source.explode:
        # A join may need the list's elements, and the list may stand in a joined table.
        exploded, is_own = _exploded(scope, source)
        joins = exploded + joins if is_own else joins + exploded
    origin += joins
    where = f" WHERE coalesce(({source.where}), false)" if source.where else ""
    cells = "".join(f", {value.sql} AS {quoted(name)}" for name, value in values.items())
    seq = f"({alias}._seq << 16) + " + ("least(coalesce(_index, 0), 65535)" if source.explode else "0")
    index = "_list._index" if source.explode else "CAST(NULL AS BIGINT)"
    place = f"{alias}._file AS _file, {alias}._row AS _row, {seq} AS _seq, {index} AS _index"
    query = f"SELECT {place}{cells} FROM {origin}{where}"
    plain = (
        not source.join and not source.explode and not source.where and all("(" not in v.sql for v in values.values())
    )
    roots = frozenset(v.root[1] for v in values.values() if v.root and v.root[0] == source.table)
    return MappedSource(
        source,
        query,
        {name: v.type for name, v in values.items()},
        wanted,
        {name: _called(column, name, own) for name, column in wanted.items()},
        plain,
        roots,
        scope,
        said,
    )


def _called(column: Column, name: str, own: RawTable) -> str:
    """The name of a target in messages: of several paths, the first that is a column of the source's own table."""
    if column.path is not None or not column.first:
        return column.path or name
    return next((path for path in column.first if path in own.columns), column.first[0])


def _table(library: Library, name: str) -> RawTable:
    if name not in library.tables:
        raise DataError(f"there is no table {name!r}. Tables: {', '.join(library.tables)}.")
    return library.tables[name]


def _value(library: Library, scope: Scope, source: Source, name: str, column: Column) -> Value:
    if column.value is not None:
        return Value(literal(column.value), "VARCHAR")
    if column.sql is not None and not column.first:
        return _replaced(_expression(library, scope, source, column.sql), name, column)
    if column.path is not None:
        return _replaced(_path(library, scope, source, name, column.path), name, column)
    found = [value for path in column.first if (value := scope.resolve(path)) is not None]
    if column.sql is not None:
        found.append(_expression(library, scope, source, column.sql))
    if not found:
        return _path(library, scope, source, name, column.first[0])
    if all(v.type == "VARCHAR[]" for v in found) or len(found) == 1:
        value = Value(f"coalesce({', '.join(v.sql for v in found)})", found[0].type, found[0].root)
    else:
        value = Value(f"coalesce({', '.join(text(v) for v in found)})", "VARCHAR", found[0].root)
    return _replaced(value, name, column)


def _replaced(value: Value, name: str, column: Column) -> Value:
    """The value after `values`, which `event` interprets itself."""
    if not column.values or name == "event":
        return value
    cases = " ".join(f"WHEN {literal(old)} THEN {literal(new)}" for old, new in column.values.items())
    return Value(f"CASE {text(value)} {cases} ELSE {text(value)} END", "VARCHAR", value.root)


def _path(library: Library, scope: Scope, source: Source, name: str, path: str) -> Value:
    try:
        value = scope.resolve(path)
    except ValueError as error:
        raise DataError(
            f"table {source.table}, column {name}: {error}. docs/data.md shows how to write paths."
        ) from None
    if value is not None:
        return value
    table = library.tables[source.table]
    if table.form == "json":
        # No record of this file has the key, although others of its kind may.
        return NO_VALUE
    raise table.unmapped(name, path)


def _expression(library: Library, scope: Scope, source: Source, sql: str) -> Value:
    origin = ", ".join(quoted(alias) for alias in scope.tables)
    each = ", (SELECT CAST(NULL AS JSON) AS _each, CAST(0 AS BIGINT) AS _index)" if source.explode else ""
    try:
        kind = library.rows(f"DESCRIBE SELECT ({sql}) AS value FROM {origin}{each}")[0][1]
    except Exception as error:
        raise DataError(f"table {source.table}: `sql: {sql}` cannot be run: {error}") from None
    return Value(f"({sql})", kind)


def _join(library: Library, scope: Scope, source: Source, name: str, pairs: Mapping[str, str], said: list[str]) -> str:
    """LEFT JOIN with the first row of each key, so that a join never adds or loses rows."""
    table = library.tables[name]
    if lacking := [theirs for theirs in pairs.values() if theirs not in table.columns]:
        raise table.error(f"no column {lacking[0]!r} to join")
    keys = [f"join_key({text(Value(quoted(theirs), table.columns[theirs]))})" for theirs in pairs.values()]
    names = [f"_key_{i}" for i in range(len(keys))]
    listed = ", ".join(f"{key} AS {n}" for key, n in zip(keys, names, strict=True))
    ours = [f"join_key({text(_path(library, scope, source, theirs, path))})" for path, theirs in pairs.items()]
    equal = " AND ".join(f"{quoted(name)}.{n} = {path}" for n, path in zip(names, ours, strict=True))
    rows = f"SELECT *, {listed} FROM {quoted(name)}"
    unique = f"SELECT * FROM ({rows}) QUALIFY row_number() OVER (PARTITION BY {', '.join(names)} ORDER BY _seq) = 1"
    return f" LEFT JOIN ({unique}) AS {quoted(name)} ON {equal}"


def _exploded(scope: Scope, source: Source) -> tuple[str, bool]:
    """Lateral join with the elements of the list, and whether the list is in the source's own table."""
    assert source.explode is not None
    path = source.explode.path
    value = Scope(scope.tables).resolve(path.removesuffix("[]"))
    if value is None:
        elements = "CAST(NULL AS JSON[])"
    elif source.explode.split:
        parts = f"string_split({text(value)}, {literal(source.explode.split)})"
        elements = f"list_transform(list_filter({parts}, lambda x: trim(x) <> ''), lambda x: to_json(trim(x)))"
    else:
        json = value.sql if value.type == "JSON" else f"as_json(CAST({value.sql} AS VARCHAR))"
        elements = f"TRY_CAST({json} AS JSON[])"
    filled = f"CASE WHEN len({elements}) > 0 THEN {elements} ELSE [CAST(NULL AS JSON)] END"
    index = f"CASE WHEN len({elements}) > 0 THEN range(len({elements})) ELSE [CAST(NULL AS BIGINT)] END"
    is_own = value is None or value.root is None or value.root[0] == source.table
    return f" CROSS JOIN LATERAL (SELECT unnest({filled}) AS _each, unnest({index}) AS _index) AS _list", is_own
