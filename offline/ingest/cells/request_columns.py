"""Columns of requests in imported impressions: values that a list was ranked with, such as a search engine's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from features.bounds import COLUMN_NAME, COLUMN_TEXT, COLUMNS
from features.log import Kind
from offline.config import Column, EventSource, Unpack
from offline.ingest.cells.reader import Reader
from offline.ingest.mapping import compile_source
from offline.ingest.reading import Library
from offline.ingest.reading.library import json_key, literal, quoted

PREFIX = "@"
"""Before the name of a request column among the values of a source, whose other names are those of events."""


def request_columns(library: Library, source: EventSource) -> dict[str, Column]:
    """The request columns of a source by prefixed name: those that it maps, then the most frequent members of `unpack`.

    At most `COLUMNS`. Members whose names have white space or are too long are left out.
    """
    found = {name: column for unpack in source.unpack for name, column in _unpacked(library, source, unpack)}
    found = {n: c for n, c in found.items() if n not in source.request and n not in source.exclude}
    columns = {**{n: c for n, c in source.request.items() if c is not None}, **found}
    return {PREFIX + name: column for name, column in list(columns.items())[:COLUMNS]}


def _unpacked(library: Library, source: EventSource, unpack: Unpack) -> list[tuple[str, Column]]:
    if compile_source(library, source, ()).scope.resolve(unpack.path) is None:
        return []
    mapped = compile_source(library, source, (), {"#members": Column(path=unpack.path)})
    value, kind = quoted("#members"), mapped.types["#members"]
    members = value if kind == "JSON" else f"as_json(CAST({value} AS VARCHAR))"
    if unpack.key:
        key = f"json_extract_string({members}, {literal('$[*].' + json_key(unpack.key))})"
    else:
        key = f"CASE WHEN json_type({members}) = 'OBJECT' THEN json_keys({members}) END"
    rows = library.rows(
        f"SELECT name, count(*) FROM (SELECT unnest({key}) AS name FROM ({mapped.query}))"
        f" WHERE regexp_matches(name, {literal(COLUMN_NAME)}) GROUP BY name ORDER BY 2 DESC, 1 LIMIT {COLUMNS}"
    )
    names = [str(row[0]) for row in rows]
    if unpack.key:
        return [(n, Column(path=f"{unpack.path}[{unpack.key}={n}].{unpack.value}")) for n in names]
    below = f".{unpack.value}" if unpack.value else ""
    return [(n, Column(path=f'{unpack.path}."{n}"{below}')) for n in names]


def add_request_columns(reader: Reader, names: Sequence[str]) -> Mapping[str, str]:
    """Take the columns of a source; returns their DuckDB types. Those without values, and lists, are left out."""
    types = reader.add_attributes(names)
    for name in (n for n, kind in types.items() if kind == "VARCHAR[]"):
        reader.said.append(f"{name.removeprefix(PREFIX)}: lists are not read; a column of a request has one value")
    return {name: kind for name, kind in types.items() if kind != "VARCHAR[]"}


def columns_sql(library: Library, checked: str, types: Mapping[str, str], said: list[str]) -> str:
    """Expression of the JSON text of an impression's columns; null without any. checked: table with their values.

    said: gets a sentence about them.
    """
    if not types:
        return "CAST(NULL AS VARCHAR)"
    flags = _flags(library, checked, [n for n, kind in types.items() if kind == "VARCHAR"])
    values = {n: _value(n, kind, n in flags) for n, kind in types.items()}
    members = ", ".join(f"{literal(n.removeprefix(PREFIX))}, {value}" for n, value in values.items())
    any_value = " OR ".join(f"{quoted(n)} IS NOT NULL" for n in types)
    shown = f"kind = {int(Kind.IMPRESSION)}"
    known = library.rows(f"SELECT count(*) FROM {quoted(checked)} WHERE {shown} AND ({any_value})")[0][0]
    listed = ", ".join(n.removeprefix(PREFIX) for n in types)
    said.append(f"columns of requests, of {known} impressions: {listed}")
    return f"CASE WHEN {shown} AND ({any_value}) THEN CAST(json_object({members}) AS VARCHAR) END"


def _flags(library: Library, checked: str, names: Sequence[str]) -> set[str]:
    """Columns whose texts are all `true` or `false`, as the booleans of JSON are read."""
    if not names:
        return set()
    cells = ", ".join(f"bool_and({quoted(n)} IN ('true', 'false'))" for n in names)
    row = library.rows(f"SELECT {cells} FROM {quoted(checked)}")[0]
    return {name for name, is_flag in zip(names, row, strict=True) if is_flag}


def _value(name: str, kind: str, is_flag: bool) -> str:
    if kind == "DOUBLE":
        return quoted(name)
    if is_flag:
        return f"{quoted(name)} = 'true'"
    return (
        f"CASE WHEN length(CAST({quoted(name)} AS VARCHAR)) <= {COLUMN_TEXT} THEN CAST({quoted(name)} AS VARCHAR) END"
    )
