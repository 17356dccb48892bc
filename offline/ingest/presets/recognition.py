"""Recognises the preset of some files by their shape, and binds its mapping to them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline.config import ANNOTATION_FILES, ImportConfig
from offline.ingest.mapping.paths import Scope
from offline.ingest.presets.preset import Match, Preset, PresetTable, load_presets
from offline.ingest.reading import Peek, renamed_columns
from offline.ingest.reading.library import quoted
from offline.runtime import DataError


@dataclass(frozen=True)
class Recognised:
    """A preset whose required tables were all found. tables: files by table. others: files that it does not read."""

    preset: Preset
    tables: Mapping[str, Sequence[Peek]]
    others: Sequence[Peek]
    specificity: int


def find_preset(peeks: Sequence[Peek], name: str | None = None) -> Recognised | None:
    """The most specific preset that fits the files, None if none does. name: the only one to try.

    Raises DataError if two are equally specific, or if there is no preset of that name.
    """
    presets = [p for p in load_presets() if name in (None, p.name)]
    if not presets:
        known = ", ".join(p.name for p in load_presets())
        raise DataError(f"there is no preset {name!r}. Presets: {known}.")
    found = [r for p in presets if (r := _recognise(p, peeks)) is not None]
    best = max((r.specificity for r in found), default=0)
    equal = [r for r in found if r.specificity == best]
    if len(equal) > 1:
        names = " and ".join(r.preset.name for r in equal)
        raise DataError(f"the files fit the presets {names} equally well. Choose one with --preset.")
    return equal[0] if equal else None


def _recognise(preset: Preset, peeks: Sequence[Peek]) -> Recognised | None:
    found: dict[str, list[Peek]] = {}
    total = 0
    rest = list(peeks)
    by_weight = sorted(preset.tables.items(), key=lambda t: -_weight(t[1].match))
    for name, table in by_weight:
        if table.match is None:
            continue
        mine = [p for p in rest if _fits(p, table.match, table)]
        if mine:
            found[name] = mine
            rest = [p for p in rest if p not in mine]
            total += _weight(table.match)
        elif not table.optional:
            return None
    has_events = any(s["from"] in _with_rows(preset, found) for s in preset.mapping.get("events", ()))
    return Recognised(preset, found, rest, total) if has_events else None


def _with_rows(preset: Preset, found: Collection[str]) -> set[str]:
    """Tables that were found, and `sql` tables that read any of them."""
    out = set(found)
    for name, table in preset.tables.items():
        if table.sql is not None and any(re.search(rf"\b{other}\b", table.sql) for other in out):
            out.add(name)
    return out


def _weight(match: Match | None) -> int:
    if match is None:
        return 0
    return (
        len(match.columns)
        + len(match.empty)
        + 2 * len(match.cells)
        + (3 if match.line else 0)
        + (1 if match.name else 0)
    )


def _fits(peek: Peek, match: Match, table: PresetTable) -> bool:
    if match.form not in ("any", peek.form) and peek.form != "parquet":
        return False
    if match.name and not fnmatch.fnmatch(peek.name.lower(), match.name):
        return False
    if match.line and not re.fullmatch(match.line, peek.line):
        return False
    renamed = renamed_columns(peek.columns, table.rename)
    known = {*peek.columns, *renamed}
    if not all(known.intersection(either.split("|")) for either in match.columns):
        return False
    if any(peek.cells.get(column) for column in match.empty):
        return False
    for either, pattern in match.cells.items():
        cells = [cell for column in either.split("|") for cell in peek.cells.get(renamed.get(column, column), ())]
        if not cells or not all(re.fullmatch(pattern, cell) for cell in cells):
            return False
    return not table.columns or peek.dialect is None or len(table.columns) == len(peek.dialect.names)


def bind(recognised: Recognised, folder: Path) -> ImportConfig:
    """The mapping of a preset for the files that were found, without what refers to absent tables and columns."""
    preset, found = recognised.preset, recognised.tables
    tables: dict[str, dict[str, Any]] = {}
    columns: dict[str, Mapping[str, str] | None] = {}
    for name, peeks in found.items():
        spec = preset.tables[name]
        files = list(dict.fromkeys(p.source.relative_to(folder).as_posix() for p in peeks))
        parts = {p.part for p in peeks}
        part = {"part": next(iter(parts))} if len(parts) == 1 and parts != {None} else {}
        typed = {"as_text": True} if preset.has_sql and any(p.form == "parquet" for p in peeks) else {}
        tables[name] = {"files": files[0] if len(files) == 1 else files, **spec.options, **part, **typed}
        own = spec.columns or _after_rename(peeks, spec)
        # Keys of JSON that no sample has may follow later.
        columns[name] = None if peeks[0].form == "json" else dict.fromkeys(own, "VARCHAR")
        if spec.fill_down and columns[name] is not None:
            tables[name]["fill_down"] = [c for c in spec.fill_down if c in own]
    for name, spec in preset.tables.items():
        if name not in found and spec.match is not None and spec.ensure:
            tables[name] = {"sql": f"SELECT {', '.join(f'NULL::VARCHAR AS {quoted(c)}' for c in spec.ensure)} LIMIT 0"}
    for name, spec in preset.tables.items():
        if spec.sql is not None:
            tables[name] = {"sql": spec.sql}
            columns[name] = None
    mapping = dict(preset.mapping)
    for kind in ("items", "events", "users"):
        mapping[kind] = [_bound(s, columns) for s in mapping.get(kind, []) if s["from"] in _with_rows(preset, found)]
    annotations = [name for name in ANNOTATION_FILES if (folder / name).is_file()] if preset.name == "standard" else []
    return ImportConfig.model_validate({"folder": folder, "tables": tables, "annotations": annotations, **mapping})


def _after_rename(peeks: Sequence[Peek], spec: PresetTable) -> list[str]:
    """Columns of a table's files, under their new names, and those that are added."""
    columns = list(dict.fromkeys(c for p in peeks for c in p.columns))
    new = {old: new for new, old in renamed_columns(columns, spec.rename).items()}
    return list(dict.fromkeys([*(new.get(c, c) for c in columns), *spec.ensure]))


def _bound(source: Mapping[str, Any], columns: Mapping[str, Mapping[str, str] | None]) -> dict[str, Any]:
    """A source without joins of absent tables, and without paths to absent columns."""
    out = dict(source)
    joins = [j for j in source.get("join", ()) if j["table"] in columns]
    if "join" in source:
        out["join"] = joins
    aliases = [source["from"], *(j["table"] for j in joins)]
    known = {a: columns[a] for a in aliases}
    explode = source.get("explode")
    exploded = explode["path"] if isinstance(explode, dict) else explode
    lenient = any(c is None for c in known.values())
    scope = Scope({a: c or {} for a, c in known.items()}, exploded)

    def there(path: str) -> bool:
        gone = [j["table"] for j in source.get("join", ()) if j["table"] not in columns]
        if any(path.startswith(f"{table}.") for table in gone):
            return False
        return lenient or scope.resolve(path) is not None

    kept: dict[str, Any] = {}
    for name, value in source.get("columns", {}).items():
        if isinstance(value, str):
            if there(value):
                kept[name] = value
        elif isinstance(value, dict) and "path" in value:
            if there(value["path"]):
                kept[name] = {k: v for k, v in value.items() if k != "currency" or there(v)}
        elif isinstance(value, dict) and "first" in value:
            if paths := [p for p in value["first"] if there(p)]:
                kept[name] = {**value, "first": paths}
            elif "sql" in value:
                kept[name] = {k: v for k, v in value.items() if k != "first"}
        else:
            kept[name] = value
    out["columns"] = kept
    for key in ("product_column", "order_column", "order"):
        if key in source and not there(source[key]):
            del out[key]
    if "include" in source:
        out["include"] = [c for c in source["include"] if there(c)]
    return out
