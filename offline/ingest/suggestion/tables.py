"""Raw tables of the files to suggest a mapping for, and what a sample of each column shows."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from offline.config import ImportConfig
from offline.ingest.mapping.paths import Scope, text
from offline.ingest.reading import (
    Library,
    Numbered,
    Peek,
    RawTable,
    find_files,
    find_numbered,
    make_lists,
    peek,
    table_name,
)
from offline.ingest.reading.library import literal, quoted
from offline.ingest.suggestion.vocabulary import Name, fold, understand
from offline.runtime import DataError

SAMPLE = 20_000
"""Rows of which cells are looked at. What depends on all rows, such as uniqueness, is queried."""
_PROBES = 300
_NUMBER = re.compile(
    r"[^\d\w]{0,3}\s*(?:[A-Z]{3}\s|kr\s?|Rs\.?\s?)?[+-]?\s*[\d.,'’\s]*\d[.,]?[–-]*\s*(?:[^\d\s,:/-]{1,5})?"
)
_DAY = r"(?:\d{4}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{2,4}|\d{4}年\d\d?月\d\d?日"
_DAY += r"|(?:[A-Za-z]{3},? )?\d\d? [A-Za-zäé]{3,9}\.? \d{4}"
_DAY += r"|[A-Za-z]{3,9}\.? \d\d?,? \d{4}|\d\d?-[A-Za-z]{3}-\d{2,4}|20\d\d[01]\d[0-3]\d)"
_MOMENT = re.compile(rf"{_DAY}(?:[T, ].*)?|[1-9]\d{{8}}|1\d{{9}}(?:\.\d+)?|1\d{{12}}|1\d{{15}}|1\d{{18}}")
_CLOCK = re.compile(r"\d\d?[:.時时]\d\d(?:[:.分]\d\d)?(?:分|秒)?(?: ?[AaPp][Mm])?")
_NESTED = re.compile(r'[^.]*\w(?:\[\])?"?(?:\."?\w[^.]*)+')
_LINK = re.compile(r"https?://\S+")
_SERIAL_DAY = re.compile(r"[3-6]\d{4}(?:[.,]\d+)?")
_HEX = re.compile(r"[0-9a-f]{32,128}|[0-9a-f-]{36}")
_TOPICS = {
    "bought": "purchases",
    "order": "orders",
    "kind": "events",
    "event": "events",
    "item": "products",
    "user": "users",
}
"""Names of tables whose files have no name in Latin letters, by a concept of the name."""


def _numbered_items(raw: RawTable) -> Iterator[Numbered]:
    """The list of items that numbered columns of a table are, if any: one of its fields is an item's ID."""
    every = list(find_numbered(list(raw.columns)))
    found = [x for x in every if any(_names_item(f"{x.name}[].{f}") for f in x.fields)]
    if not found:
        found = [x for x in every if not x.fields and _names_item(f"{x.name}[]")]
    yield from sorted(found, key=lambda x: -len(x.fields))[:1]


def _names_item(path: str) -> bool:
    name = Facts(path, 0, ()).name
    return not name.unknown and ("sku" in name.concepts or name.concepts in ({"item"}, {"item", "id"}))


def _cells(called: str, elements: Sequence[Any]) -> Mapping[str, list[str]]:
    """Cells that are not missing, by the path of their field."""
    out: dict[str, list[str]] = {}
    for element in elements:
        fields = element.items() if isinstance(element, dict) else [("", element)]
        for field_name, value in fields:
            key = f'"{field_name}"' if set(field_name) & set(".[]") else field_name
            if value is not None and '"' not in field_name:
                out.setdefault(f"{called}[].{key}" if field_name else f"{called}[]", []).append(str(value))
    return out


@dataclass(frozen=True)
class Facts:
    """A column, and what its sample shows.

    path: how the mapping names it. rows: of the sample. cells: those that are not missing.
    """

    path: str
    rows: int
    cells: Sequence[str]

    @cached_property
    def name(self) -> Name:
        """Meaning of the column's name. Of a nested value, the last key; with the key above if that says little.

        The elements of a list are taken for items, whatever the list is called: `basket[].id`.
        """
        # The points of `Art.-Nr.` separate no keys.
        steps = self.path.split(".") if _NESTED.fullmatch(self.path) else [self.path]
        last = understand(steps[-1].replace("[]", ""))
        if len(steps) > 1 and last.concepts <= {"id", "name", "kind", "position"}:
            above = {"item"} if steps[-2].endswith("[]") else understand(steps[-2]).concepts
            return Name(last.concepts | above, last.unknown, last.level)
        return last

    @cached_property
    def distinct(self) -> Sequence[str]:
        """Some distinct cells, in the order of the file."""
        return list(dict.fromkeys(self.cells))

    @property
    def filled(self) -> float:
        """Share of cells that are not missing."""
        return len(self.cells) / self.rows if self.rows else 0.0

    @property
    def is_constant(self) -> bool:
        """True if at least three rows all have the same cell."""
        return self.rows > 2 and len(self.cells) == self.rows and len(self.distinct) == 1

    def share(self, pattern: re.Pattern[str]) -> float:
        """Share of some distinct cells that match in full."""
        probes = self.distinct[:_PROBES]
        return sum(bool(pattern.fullmatch(c)) for c in probes) / len(probes) if probes else 0.0

    @cached_property
    def numbers(self) -> float:
        """Share of cells that are numbers, with or without a currency."""
        return self.share(_NUMBER)

    @cached_property
    def moments(self) -> float:
        """Share of cells that are days or moments."""
        return self.share(_MOMENT)

    @cached_property
    def clocks(self) -> float:
        """Share of cells that are times of a day."""
        return self.share(_CLOCK)

    @cached_property
    def hashes(self) -> float:
        """Share of cells that are hashes or UUIDs."""
        return self.share(_HEX)

    @cached_property
    def links(self) -> float:
        """Share of cells that are web addresses."""
        return self.share(_LINK)

    @cached_property
    def serial_days(self) -> float:
        """Share of cells that could be days of a spreadsheet since 1900, of the years 1982 to 2091."""
        return self.share(_SERIAL_DAY)

    @cached_property
    def length(self) -> float:
        """Median number of characters."""
        return statistics.median(map(len, self.distinct[:_PROBES])) if self.cells else 0.0

    @cached_property
    def spaced(self) -> float:
        """Share of some distinct cells with several words."""
        return self.share(re.compile(r"\S+\s+\S.*", re.DOTALL))


@dataclass
class Table:
    """A raw table.

    files: relative to the folder. part: sheet, element or member. lists: made of numbered columns, name to template.
    left_out: path to reason. fill_down: columns filled only in the first row of an order, whose column is `key`.
    """

    name: str
    files: Sequence[str]
    part: str | None
    raw: RawTable
    columns: Mapping[str, Facts]
    topic: Name
    lists: Mapping[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    fill_down: list[str] = field(default_factory=list)
    key: str | None = None

    @property
    def label(self) -> str:
        """Its name in comments."""
        return self.files[0] if len(self.files) == 1 else f"{self.files[0]} and {len(self.files) - 1} more"


class Tables:
    """All tables of a file or folder, loaded into a library. said: files that were left out, and why."""

    def __init__(self, source: Path, library: Library, directory: Path) -> None:
        self.folder = source if source.is_dir() else source.parent
        self.library = library
        self.said: list[str] = []
        self.peeks = self._peek(source, directory)
        self.tables: dict[str, Table] = {}

    def _peek(self, source: Path, directory: Path) -> list[Peek]:
        out = []
        for path in find_files(source):
            try:
                out += peek(path, directory)
            except DataError as error:
                self.said.append(str(error))
        return out

    def load(self) -> None:
        """Load the files: those of one kind of name and the same columns become one table."""

        def key(found: Peek) -> tuple[str, tuple[str, ...]]:
            sheet = found.part is not None and found.source.suffix.lower() == ".xlsx"
            name = found.source.name if sheet else table_name(found.name)
            return name, tuple(sorted(found.columns)) if found.form != "json" else ()

        for (called, _), group in groupby(sorted(self.peeks, key=key), key):
            found = list(group)
            name = self._free_name(called)
            try:
                raw = self.library.load(name, found)
            except DataError as error:
                self.said.append(str(error))
                continue
            if not raw.rows:
                self.said.append(f"{raw.file}: has no rows")
                continue
            files = list(dict.fromkeys(p.source.relative_to(self.folder).as_posix() for p in found))
            parts = {p.part for p in found}
            part = found[0].part if len(parts) == 1 else None
            own = frozenset(raw.columns)
            lists = {x.name: x.template for x in _numbered_items(raw)}
            make_lists(self.library, name, lists)
            columns = {**self._facts(name, raw, found, own), **self._list_facts(name, raw, lists)}
            self.tables[name] = Table(name, files, part, raw, columns, understand(table_name(called)), lists)

    def _free_name(self, called: str) -> str:
        """A name that the configuration accepts: the file's in Latin letters, else one for what it is about."""
        plain = re.sub(r"[^a-z0-9]+", "_", fold(table_name(called))).strip("_")
        if not re.match(r"[a-z]", plain):
            about = understand(table_name(called)).concepts
            topic = next((name for concept, name in _TOPICS.items() if concept in about), "table")
            plain = f"{topic}_{plain}" if plain else topic
        name, number = plain, 2
        while name in self.tables:
            name, number = f"{plain}_{number}", number + 1
        return name

    def _facts(self, name: str, raw: RawTable, found: Sequence[Peek], own: frozenset[str]) -> Mapping[str, Facts]:
        """Facts of the columns and of nested values. own: columns of the files, which are not nested."""
        scope = Scope({name: raw.columns})
        values = {c: text(v) for c in raw.columns if (v := scope.resolve(c)) is not None and v.type != "JSON"}
        out: dict[str, Facts] = {}
        if values:
            cells = ", ".join(values.values())
            rows = self.library.rows(f"SELECT {cells} FROM {quoted(name)} ORDER BY _seq LIMIT {SAMPLE}")
            out = {c: Facts(c, len(rows), [r[i] for r in rows if r[i] is not None]) for i, c in enumerate(values)}
        nested: dict[str, list[str]] = {}
        for peeked in found:
            for path, texts in peeked.cells.items():
                if path not in own:
                    nested.setdefault(path, []).extend(texts)
        rows_of = max(map(len, nested.values()), default=0)
        missing = set(ImportConfig.model_fields["missing"].default)
        out |= {p: Facts(p, rows_of, [t for t in texts if t not in missing]) for p, texts in nested.items() if texts}
        return out

    def _list_facts(self, name: str, raw: RawTable, lists: Iterable[str]) -> Mapping[str, Facts]:
        """Facts of the fields of lists of numbered columns."""
        out = {}
        for called in lists:
            some = f"(SELECT unnest(CAST({quoted(called)} AS JSON[])) AS x FROM {quoted(name)} LIMIT {SAMPLE})"
            elements = [row[0] for row in self.library.rows(f"SELECT x FROM {some}")]
            for path, cells in _cells(called, [json.loads(x) for x in elements]).items():
                out[path] = Facts(path, len(elements), cells)
        return out

    def value(self, table: str, path: str) -> str:
        """SQL for the text of a path, as IDs are compared."""
        found = Scope({table: self.tables[table].raw.columns}).resolve(path)
        assert found is not None
        return f"join_key({text(found)})"

    def column_sql(self, table: str, path: str) -> str:
        """SQL of a path as a person would write it. A column of the file may have points in its name: `Best.-Nr.`."""
        if path in self.tables[table].raw.columns:
            return f"{quoted(table)}.{quoted(path)}"
        column, *keys = path.split(".")
        return f"{quoted(table)}.{quoted(column)}" + (f" ->> {literal('$.' + '.'.join(keys))}" if keys else "")

    def is_unique(self, table: str, path: str) -> bool:
        """True if no value of a column occurs twice."""
        value = self.value(table, path)
        filled, distinct = self.library.rows(
            f"SELECT count(k), count(DISTINCT k) FROM (SELECT {value} AS k FROM {quoted(table)})"
        )[0]
        return bool(filled) and filled == distinct

    def are_unique(self, table: str, paths: Sequence[str]) -> bool:
        """True if no two rows have the same values in all columns, of the rows that have them all."""
        keys = ", ".join(f"{self.value(table, path)} AS k{i}" for i, path in enumerate(paths))
        names = [f"k{i}" for i in range(len(paths))]
        filled, distinct = self.library.rows(
            f"SELECT count(*), count(DISTINCT ({', '.join(names)})) FROM (SELECT {keys} FROM {quoted(table)})"
            f" WHERE {' AND '.join(f'{n} IS NOT NULL' for n in names)}"
        )[0]
        return bool(filled) and filled == distinct

    def distinct(self, table: str, path: str, most: int) -> list[str]:
        """Distinct values of a column, the most frequent first, at most `most` and one more."""
        found = Scope({table: self.tables[table].raw.columns}).resolve(path)
        assert found is not None
        value = text(found)
        rows = self.library.rows(
            f"SELECT {value} AS v FROM {quoted(table)} WHERE v IS NOT NULL GROUP BY v"
            f" ORDER BY count(*) DESC, v LIMIT {most + 1}"
        )
        return [row[0] for row in rows]

    def included(self, table: str, path: str, other: str, key: str) -> float:
        """Share of the distinct values of a column that another table's key has."""
        mine = f"(SELECT DISTINCT {self.value(table, path)} AS k FROM {quoted(table)})"
        theirs = f"(SELECT DISTINCT {self.value(other, key)} AS k FROM {quoted(other)})"
        filled, met = self.library.rows(
            f"SELECT count(m.k), count(t.k) FROM {mine} AS m LEFT JOIN {theirs} AS t ON m.k = t.k WHERE m.k IS NOT NULL"
        )[0]
        return met / filled if filled else 0.0
