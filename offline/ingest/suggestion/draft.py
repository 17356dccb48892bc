"""Assembles the draft: which tables hold events, items and users, and what is left out, as YAML with comments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from offline.config import ImportConfig
from offline.ingest.cells import create_macros
from offline.ingest.presets import Preset, bind, find_preset
from offline.ingest.reading import Library
from offline.ingest.reading.library import quoted
from offline.ingest.suggestion.currencies import draft_currency
from offline.ingest.suggestion.event_sources import EventTable, draft_events, find_event_table
from offline.ingest.suggestion.joins import Link, find_links
from offline.ingest.suggestion.notes import Noted, to_yaml, wrap
from offline.ingest.suggestion.order_headers import fill_headers, fill_products
from offline.ingest.suggestion.profile_sources import (
    ItemTable,
    draft_items,
    draft_users,
    find_item_table,
    find_user_key,
    unused,
    without_digit,
)
from offline.ingest.suggestion.roles import choose
from offline.ingest.suggestion.tables import Table, Tables
from offline.ingest.suggestion.vocabulary import is_not_a_product
from offline.runtime import DataError

_BY_HAND = "Write the `import` section by hand; docs/data.md describes every key."
_MOST_ODD = 30
_MISSING = ImportConfig.model_fields["missing"].default


def suggest(source: Path) -> str:
    """Draft of an `import` section, as YAML, for a file or for the files of a folder, with comments on guesses.

    It is the mapping of the preset that fits the files, if one does, with the items of other files if it has none.
    Files that cannot be read, and tables that hold neither events nor items nor users, are left out, and a comment says
    so. Raises DataError if no table holds events.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder.")
    with TemporaryDirectory(prefix="shelfwise-suggest-") as directory:
        copies = Path(directory) / "copies"
        copies.mkdir()
        library = Library(Path(directory))
        try:
            create_macros(library.sql, _MISSING)
            tables = Tables(source, library, copies)
            found = find_preset(tables.peeks)
            bound = bind(found, tables.folder) if found is not None else None
            # A preset that leaves files out and knows no items is not all of it.
            if found is not None and bound is not None and (bound.items or not found.others):
                return _of_preset(bound, found.preset)
            tables.load()
            draft = _Draft(tables, source)
            beside = draft.write_beside(bound, found.preset) if bound is not None and found is not None else None
            return beside or draft.write()
        finally:
            library.close()


def _of_preset(config: ImportConfig, preset: Preset) -> str:
    mapping = yaml.safe_dump({"import": dict(config.to_mapping())}, sort_keys=False, width=110, allow_unicode=True)
    return f"# The mapping of the preset {preset.name}: {preset.title}.\n{mapping}"


class _Draft:
    """The draft of a mapping. Which of several keys of a table of items is meant, the item IDs of the events show."""

    def __init__(self, tables: Tables, source: Path) -> None:
        self.tables, self.source = tables, source
        for table in tables.tables.values():
            fill_headers(tables, table)
            fill_products(tables, table)
        self.links: list[Link] = find_links(tables)
        self.left_out: list[str] = list(tables.said)
        self.events: list[EventTable] = []
        self.lacking: dict[str, str] = {}
        every = list(tables.tables.values())
        catalogues = {t.name for t in every if find_item_table(tables, t, ()) is not None}
        for table in (t for t in every if t.name not in catalogues):
            found = find_event_table(tables, table, self.links)
            if isinstance(found, str):
                self.lacking[table.name] = found
            else:
                self.events.append(found)
        taken = {e.table.name for e in self.events}
        self.items: list[ItemTable] = []
        self.users: list[tuple[Table, str]] = []
        for table in (t for t in every if t.name not in taken):
            if (item := find_item_table(tables, table, self.events)) is not None:
                self.items.append(item)
            elif (key := find_user_key(tables, table, self.links)) is not None:
                self.users.append((table, key))

    def write(self) -> str:
        """The draft as YAML. Raises DataError if there are no events."""
        if not self.events:
            raise DataError(self._no_events())
        described = bool(self.items)
        section: dict[str, Any] = {"folder": str(self.tables.folder), "timezone": self._zone()}
        if not described and not any(set(e.roles) & {"title", "price"} for e in self.events):
            section["unknown_items"] = Noted("keep", "no table describes the items, so they have only their IDs")
        if (currency := self._currency(described)) is not None:
            section["currency"] = currency
        if pattern := self._not_products():
            section["not_products"] = pattern
        items, derived = [], dict[str, Any]()
        for found in self.items:
            source, more = draft_items(self.tables, found, self.links)
            items.append(source)
            derived |= more
        users = [draft_users(table, key) for table, key in self.users]
        events = [draft_events(self.tables, found, described) for found in self.events]
        used = _mentioned([items, users, events, derived], set(self.tables.tables))
        by_sql = {n for s in (*items, *users, *events) if _has_sql(s) for n in _mentioned([s], set(self.tables.tables))}
        section["tables"] = {
            **{n: _table(t, n in by_sql) for n, t in self.tables.tables.items() if n in used},
            **derived,
        }
        section |= {
            name: sources for name, sources in (("items", items), ("events", events), ("users", users)) if sources
        }
        self.left_out += [
            f"{t.label}: {self.lacking.get(t.name, 'not needed')}"
            for n, t in self.tables.tables.items()
            if n not in used
        ]
        lines = [
            "# Column mapping, canonical columns on the left. Guessed from names and values: review it first.",
            *self._comments(),
            "import:",
            *to_yaml(section, 2),
        ]
        return "\n".join(lines) + "\n"

    def write_beside(self, bound: ImportConfig, preset: Preset) -> str | None:
        """The mapping of a preset for its files, with the items of the tables that it does not read.

        None if none of them holds items, or one has the name of a table of the preset.
        """
        section = dict(bound.to_mapping())
        listed = [t.files for t in bound.tables.values() if t.files is not None]
        its_files = {file for files in listed for file in ([files] if isinstance(files, str) else files)}
        others = [i for i in self.items if not its_files & set(i.table.files)]
        if not others or {i.table.name for i in others} & set(bound.tables):
            return None
        items, derived = [], dict[str, Any]()
        for found in others:
            source, more = draft_items(self.tables, found, self.links)
            items.append(source)
            derived |= more
        used = _mentioned([items, derived], set(self.tables.tables)) - set(bound.tables)
        by_sql = {n for s in items if _has_sql(s) for n in _mentioned([s], used)}
        tables = {n: _table(t, n in by_sql) for n, t in self.tables.tables.items() if n in used}
        section["tables"] = {**section["tables"], **tables, **derived}
        section["items"] = items
        first = f"# The mapping of the preset {preset.name}: {preset.title}."
        review = "# The items are guessed from names and values of the other files: review them first."
        return "\n".join([first, review, "import:", *to_yaml(section, 2)]) + "\n"

    def _comments(self) -> Iterator[str]:
        for text in self.left_out:
            yield from _comment(f"left out: {text}")
        for found in self.events:
            used = {place.own for place in found.roles.values() if place.table == found.table.name}
            used |= {link.path for link in found.reach.links}
            if rest := unused(found.table.columns, used):
                yield from _comment(f"columns of {found.table.label} that are not mapped: {', '.join(rest)}")

    def _zone(self) -> Any:
        cells = [
            c
            for e in self.events
            for c in self.tables.tables[e.roles["timestamp"].table].columns[e.roles["timestamp"].own].distinct[:50]
        ]
        if all(
            c.replace(".", "").isdigit() or c.endswith(("Z", "UTC", "GMT")) or c[-6:-5] in ("+", "-") for c in cells
        ):
            return "UTC"
        return Noted("UTC", "moments have no offset: set your shop's time zone, such as Europe/London")

    def _currency(self, described: bool) -> Any:
        """The shop's own currency. described: whether items, and not events, have the prices."""
        priced = [choose(i.table, ("price", "currency")) for i in self.items]
        facts = [{r: i.table.columns[p] for r, p in roles.items()} for i, roles in zip(self.items, priced, strict=True)]
        if not described:
            places = [{r: e.roles[r] for r in ("price", "currency") if r in e.roles} for e in self.events]
            facts = [{r: self.tables.tables[p.table].columns[p.own] for r, p in place.items()} for place in places]
        facts = [f for f in facts if "price" in f]
        return draft_currency((f["currency"] for f in facts if "currency" in f), (f["price"] for f in facts))

    def _not_products(self) -> Any:
        """IDs such as POST. If nearly all IDs have a digit, those without one too, since they are rarely products."""
        found: dict[str, str] = {}
        for event in self.events:
            place = event.roles["item_id"]
            if "[]" in place.path or self.items:
                continue
            ids = self.tables.distinct(place.table, place.own, 100_000)
            odd = [i for i in ids if not any(c.isdigit() for c in i)]
            odd = odd[:_MOST_ODD] if len(odd) <= 0.05 * len(ids) else [i for i in odd if is_not_a_product(i)]
            found |= {i: self._title(event, i) for i in odd}
        if not found:
            return None
        listed = ", ".join(f"{i} ({title[:40]})" if title else i for i, title in found.items())
        return Noted(
            without_digit(list(found)), f"postage, fees, tests? Remove actual products from the pattern: {listed}"
        )

    def _title(self, event: EventTable, item: str) -> str:
        title, place = event.roles.get("title") or event.roles.get("description"), event.roles["item_id"]
        if title is None or title.table != place.table or "[]" in title.path:
            return ""
        cell, key = (self.tables.value(p.table, p.own) for p in (title, place))
        query = f"SELECT {cell} FROM {quoted(place.table)} WHERE {key} = ? LIMIT 1"
        row = self.tables.library.sql.execute(query, [item]).fetchone()
        return str(row[0] or "") if row else ""

    def _no_events(self) -> str:
        reasons = [
            f"{t.label}: {self.lacking.get(n, 'holds no events')} ({', '.join(list(t.columns)[:12])})"
            for n, t in self.tables.tables.items()
        ]
        return f"{self.source}: no table holds events. {'; '.join([*reasons, *self.tables.said])}. {_BY_HAND}"


def _table(table: Table, by_sql: bool) -> dict[str, Any]:
    """A table of the configuration. by_sql: whether SQL reads it, which drafts write for texts."""
    files = table.files[0] if len(table.files) == 1 else list(table.files)
    part = {"part": table.part} if table.part is not None else {}
    typed = by_sql and set(table.raw.columns.values()) - {"VARCHAR", "JSON"}
    return {
        "files": files,
        **part,
        **({"as_text": True} if typed else {}),
        **({"lists": dict(table.lists)} if table.lists else {}),
        **({"fill_down": table.fill_down, "key": table.key} if table.fill_down else {}),
    }


def _has_sql(value: Any) -> bool:
    """True if a source, with its notes, has an `sql` or `where`."""
    if isinstance(value, Noted):
        return _has_sql(value.value)
    if isinstance(value, dict):
        return bool({"sql", "where"} & value.keys()) or any(map(_has_sql, value.values()))
    return isinstance(value, list) and any(map(_has_sql, value))


def _comment(text: str) -> Sequence[str]:
    first, *rest = wrap(text)
    return [f"# - {first}", *(f"#   {line}" for line in rest)]


def _mentioned(value: Any, names: set[str]) -> set[str]:
    """Names of tables that sources read or join, or that a query over them reads."""
    if isinstance(value, Noted):
        return _mentioned(value.value, names)
    if isinstance(value, dict):
        own = (
            {value[key] for key in ("from", "table") if value.get(key) in names}
            if "from" in value or "table" in value
            else set()
        )
        if "sql" in value:
            own |= {n for n in names if f'"{n}"' in str(value["sql"])}
        return own.union(*(_mentioned(v, names) for v in value.values()))
    if isinstance(value, list):
        return set().union(*(_mentioned(v, names) for v in value))
    return set()
