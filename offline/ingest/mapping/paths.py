"""Paths into raw tables, compiled to SQL expressions.

Lineitem sku                           a column, whatever its name device.category                        a field of a
nested value items[].item_id                        a field of each element: a list categories[0]
one element event_params[key=ga_session_id].value  the element whose field has a value value.*
the first field that is not null orders.created_at                      a column of a joined table _index
place of the element in the exploded list, from 0
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from offline.ingest.reading.library import json_key, literal, quoted

_STEP = re.compile(
    r"\.?(?:\[(?P<at>\d*)\]|\[(?P<field>[^\[\]=]+)=(?P<equals>[^\[\]]*)\]|(?P<key>\"[^\"]+\"|[^.\[\]]+))"
)
_NOTHING = "CAST(NULL AS VARCHAR)"


class Value(NamedTuple):
    """An SQL expression and its DuckDB type. `root` is the table and column that it reads, None for none."""

    sql: str
    type: str
    root: tuple[str, str] | None = None


NO_VALUE = Value(_NOTHING, "VARCHAR")


@dataclass(frozen=True)
class Scope:
    """Names that a path may use: columns of the tables by alias, its own table first; and the exploded list."""

    tables: Mapping[str, Mapping[str, str]]
    exploded: str | None = None

    def resolve(self, path: str) -> Value | None:
        """The value of a path; None if no table has the column. A nested field that a row lacks is null."""
        if self.exploded is not None:
            if path == "_index":
                return Value("_index", "BIGINT")
            if path == "_each" or path == self.exploded:
                return Value("_each", "JSON")
            for prefix in (self.exploded, "_each"):
                if path.startswith((prefix + ".", prefix + "[")):
                    return _descend(Value("_each", "JSON"), path[len(prefix) :])
        for alias, columns in self._candidates(path):
            prefix = alias + "."
            rest = path.removeprefix(prefix) if path.startswith(prefix) and path not in columns else path
            if (found := _column(alias, columns, rest)) is not None:
                return found
        return None

    def _candidates(self, path: str) -> Sequence[tuple[str, Mapping[str, str]]]:
        named = [(a, c) for a, c in self.tables.items() if path.startswith(a + ".")]
        return [*named, *((a, c) for a, c in self.tables.items() if (a, c) not in named)]

    @property
    def own(self) -> tuple[str, Mapping[str, str]]:
        """Alias and columns of the source's own table."""
        return next(iter(self.tables.items()))


def _column(alias: str, columns: Mapping[str, str], path: str) -> Value | None:
    def value(name: str) -> Value:
        return Value(f"{quoted(alias)}.{quoted(name)}", columns[name], (alias, name))

    if path in columns:
        return value(path)
    # The longest column that the path begins with: names may have dots.
    for end in sorted((m.start() for m in re.finditer(r"[.\[]", path)), reverse=True):
        if path[:end] in columns:
            return _descend(value(path[:end]), path[end:])
    return None


def _descend(value: Value, rest: str) -> Value:
    """The value at a path below a nested value."""
    sql = value.sql if value.type == "JSON" else f"as_json(CAST({value.sql} AS VARCHAR))"
    pending, is_list, at = "", False, 0
    while at < len(rest):
        step = _STEP.match(rest, at)
        if step is None:
            raise ValueError(f"{rest!r} is not a path")
        at = step.end()
        if step["field"] is not None:
            sql, pending = _json(sql, pending), ""
            each = f"json_extract_string(x, '$.' || {literal(json_key(step['field']))}) = {literal(step['equals'])}"
            sql = f"list_filter(TRY_CAST({sql} AS JSON[]), lambda x: {each})[1]"
        elif step["key"] == "*":
            members = f"json_extract({sql}, {literal('$' + pending + '.*')})"
            sql = f"list_filter({members}, lambda x: json_type(x) <> 'NULL')[1]"
            pending = ""
        elif step["key"] is not None:
            pending += "." + json_key(step["key"].strip('"'))
        elif step["at"]:
            pending += f"[{step['at']}]"
        else:
            pending, is_list = pending + "[*]", True
    if is_list:
        return Value(f"nullif(json_extract_string({sql}, {literal('$' + pending)}), [])", "VARCHAR[]", value.root)
    return Value(_json(sql, pending), "JSON", value.root)


def _json(sql: str, pending: str) -> str:
    return f"json_extract({sql}, {literal('$' + pending)})" if pending else sql


def text(value: Value) -> str:
    """The value as trimmed text; null for missing. Elements of a list are joined by a bar."""
    if value.type == "JSON":
        return f"tidy(json_extract_string({value.sql}, '$'))"
    if value.type == "VARCHAR[]":
        return f"tidy(array_to_string({value.sql}, '|'))"
    if value.type in ("DOUBLE", "FLOAT") or value.type.startswith("DECIMAL"):
        return f"number_text({value.sql})"
    return f"tidy({value.sql})" if value.type == "VARCHAR" else f"tidy(CAST({value.sql} AS VARCHAR))"
