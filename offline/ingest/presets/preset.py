"""A preset: the mapping of a common export, and the shape by which its files are recognised."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent


class Match(BaseModel):
    """Shape of a table's files; all conditions hold.

    form: csv or json. Parquet is either, because its columns are typed and may be nested.
    columns: required, after `rename`, for JSON also nested keys (`device.category`); `a|b` is either. cells: regular
    expression that every sample value of a column matches in full. empty: columns that are absent or have no value.
    line: regular expression that the first line matches in full. name: glob of file names, in lower case, which decides
    only between tables of equal shape.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["csv", "json", "any"] = "any"
    columns: tuple[str, ...] = ()
    cells: dict[str, str] = Field(default={})
    empty: tuple[str, ...] = ()
    line: str | None = None
    name: str | None = None


class PresetTable(BaseModel):
    """A table of a preset. Options for reading are those of `TableConfig`.

    optional: the files may lack it. If it has `ensure`, an `sql` may then still read it: it is a table without rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    match: Match | None = None
    optional: bool = False
    sql: str | None = None
    columns: tuple[str, ...] = ()
    delimiter: str | None = None
    quote: str | None = None
    encoding: str | None = None
    rename: dict[str, tuple[str, ...]] = Field(default={})
    ensure: tuple[str, ...] = ()
    lists: dict[str, str] = Field(default={})
    fill_down: tuple[str, ...] = ()
    key: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options for reading, as in the configuration."""
        return self.model_dump(exclude={"match", "optional", "sql"}, exclude_defaults=True)


class Preset(BaseModel):
    """A preset. mapping: keys of the `import` section but `folder` and `tables`.

    include: presets whose tables, and sources that read them, are added: such as `standard` for events in our own
    layout.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    include: tuple[str, ...] = ()
    tables: dict[str, PresetTable]
    mapping: dict[str, Any]

    @property
    def has_sql(self) -> bool:
        """True if any table, condition or column is SQL, which is written for texts."""
        return any(t.sql is not None for t in self.tables.values()) or has_sql(self.mapping)


def has_sql(mapping: Any) -> bool:
    """True if the sources of a mapping have an `sql` or `where`."""
    if isinstance(mapping, dict):
        return bool({"sql", "where"} & mapping.keys()) or any(map(has_sql, mapping.values()))
    return isinstance(mapping, list) and any(map(has_sql, mapping))


def load_preset(name: str) -> Preset:
    """A preset by name. Raises KeyError if there is none."""
    return {p.name: p for p in load_presets()}[name]


@cache
def load_presets() -> tuple[Preset, ...]:
    """All presets, sorted by name."""
    # The parser in C takes a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    read = {path.stem: yaml.load(path.read_text("utf-8"), loader) for path in sorted(FOLDER.glob("*.yaml"))}
    return tuple(_preset(name, read) for name in read)


def _preset(name: str, read: dict[str, dict[str, Any]]) -> Preset:
    content = dict(read[name])
    tables, title, include = content.pop("tables"), content.pop("title"), tuple(content.pop("include", ()))
    for other in include:
        theirs = read[other]
        added = {t: spec for t, spec in theirs["tables"].items() if t not in tables}
        tables = {**tables, **added}
        for kind in ("items", "events", "users"):
            content[kind] = [*content.get(kind, []), *(s for s in theirs.get(kind, []) if s["from"] in added)]
    return Preset(name=name, title=title, include=include, tables=tables, mapping=content)
