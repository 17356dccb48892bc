"""Items and users: one row per ID with typed attributes, from all sources that describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from features.catalogue import STANDARD_COLUMNS, TEXT_COLUMNS
from offline.config import Column, ImportConfig, ItemSource, Unpack, UserSource
from offline.data import CANONICAL, TAGS, UTC_US
from offline.ingest.account import Account, named
from offline.ingest.attribute_names import attribute_names
from offline.ingest.cells import Currencies, Reader
from offline.ingest.mapping import CURRENCY, MappedSource, compile_source
from offline.ingest.mapping.paths import Scope
from offline.ingest.reading import Library
from offline.ingest.reading.library import json_key, literal, quoted

MOST_UNPACKED = 200
_TYPES: Mapping[str, pa.DataType] = {
    "VARCHAR": pa.string(),
    "DOUBLE": pa.float64(),
    "VARCHAR[]": TAGS,
    "TIMESTAMP": UTC_US,
    "BOOLEAN": pa.bool_(),
}
ORIGINAL = b"shelfwise.original"
"""Field metadata of an attribute: the column's name in the file, where it differs."""


class Profiles:
    """Builds the table `shop.items` or `shop.users` of a library.

    key: `item_id` or `user_id`. types: of the attributes so far. originals: attribute to the file's column name.
    """

    def __init__(self, library: Library, account: Account, config: ImportConfig, key: str) -> None:
        self.library, self.account, self.config, self.key = library, account, config, key
        self.table = "items" if key == "item_id" else "users"
        self.canonical = STANDARD_COLUMNS if key == "item_id" else ("user_id",)
        self.types: dict[str, str] = {}
        self.originals: dict[str, str] = {}
        self.not_products: set[str] = set()
        self.merges = False
        self._parts: list[tuple[str, dict[str, str], str]] = []

    def read(self, number: int, source: ItemSource | UserSource) -> None:
        """Read one source. Raises DataError for a table or column that does not exist."""
        mapped = self._compile(source)
        if self.key not in mapped.types:
            raise self.library.tables[source.table].unmapped(self.key)
        money = Currencies.of(self.config)
        reader = Reader(self.library, mapped, f"_{self.table}_{number}", self.config.timezone, money)
        names = [n for n in mapped.types if n not in self.canonical and n not in ("#order", "#product")]
        names = [n for n in names if not n.startswith(CURRENCY)]
        reader.prepare(names)
        counts = self.account.take(source.table, reader.relation, source.where is not None)
        types = {**self._add_canonical(reader), **reader.add_attributes(names)}
        reader.add("#order", reader.moment("#order"))
        reader.add("#product", reader.flag("#product"))
        checked = f"_checked_{self.table}_{number}"
        self.library.sql.execute(f"CREATE TEMP TABLE {quoted(checked)} AS {reader.query(self._problem(reader))}")
        counts.said += [*reader.said, *reader.count_lost(checked)]
        called = named(mapped.names[self.key])
        self.account.refuse(
            counts,
            f"SELECT _file, _row, {called}, {quoted(self.key)}, _problem AS reason FROM {quoted(checked)}"
            " WHERE _problem IS NOT NULL ORDER BY _seq",
        )
        if isinstance(source, ItemSource) and source.product_column:
            found = self.library.rows(
                f"SELECT DISTINCT item_id FROM {quoted(checked)} WHERE _problem = 'not_a_product'"
            )
            self.not_products |= {row[0] for row in found if row[0]}
        reader.drop()
        self._keep(source, checked, types)

    def _compile(self, source: ItemSource | UserSource) -> MappedSource:
        own = self.library.tables[source.table].columns if source.table in self.library.tables else {}
        extra: dict[str, Column] = {}
        if source.order:
            extra["#order"] = Column(path=source.order)
        if isinstance(source, ItemSource) and source.product_column:
            extra["#product"] = Column(path=source.product_column)
        mapped = compile_source(self.library, source, self.canonical, extra)
        taken = {*mapped.roots, *(u.path for u in source.unpack), *self.canonical}
        if source.include is None:
            plain = [c for c in own if c not in taken and not source.excludes(c)]
        else:
            plain = list(source.include)
        patterned = _patterned(source, [c for c in own if c not in taken and not source.excludes(c)])
        plain = [c for c in plain if c not in {column.path for column in patterned.values()}]
        unpacked = {name: column for u in source.unpack for name, column in self._unpacked(source, mapped.scope, u)}
        unpacked = {**patterned, **unpacked}
        # A nested value may have canonical columns too; a mapped one goes first.
        extra |= {n: unpacked.pop(n) for n in self.canonical if n in unpacked and n not in mapped.columns}
        unpacked = {n: c for n, c in unpacked.items() if n not in self.canonical}
        mine = [n for n in mapped.columns if n not in self.canonical and not n.startswith("#")]
        renamed = attribute_names([*mine, *unpacked, *(c for c in plain if c not in mine and c not in unpacked)])
        self.originals |= {new: old for old, new in renamed.items() if new != old}
        columns = {renamed.get(n, n): c for n, c in source.columns.items()}
        extra |= {renamed[n]: column for n, column in unpacked.items() if n not in mine and not source.excludes(n)}
        extra |= {renamed[c]: Column(path=c) for c in plain if c in renamed and c not in mine and c not in unpacked}
        return compile_source(self.library, source.model_copy(update={"columns": columns}), self.canonical, extra)

    def _unpacked(self, source: ItemSource | UserSource, scope: Scope, unpack: Unpack) -> list[tuple[str, Column]]:
        """Attributes of a nested value by name: the most frequent ones, at most `MOST_UNPACKED`."""
        value = scope.resolve(unpack.path)
        if value is None:
            return []
        sql = value.sql if value.type == "JSON" else f"as_json(CAST({value.sql} AS VARCHAR))"
        where = f" WHERE {source.where}" if source.where else ""
        if unpack.key:
            key = f"json_extract_string({sql}, {literal('$[*].' + json_key(unpack.key))})"
        else:
            key = f"CASE WHEN json_type({sql}) = 'OBJECT' THEN json_keys({sql}) END"
        found = self.library.rows(
            f"SELECT name, count(*) FROM (SELECT unnest({key}) AS name FROM {quoted(source.table)}{where})"
            f" GROUP BY name ORDER BY 2 DESC, 1 LIMIT {MOST_UNPACKED + 1}"
        )
        names = [row[0] for row in found if row[0]]
        if len(names) > MOST_UNPACKED:
            said = f"{unpack.path}: only the {MOST_UNPACKED} most frequent of its fields are imported"
            self.account.of(source.table).said.append(said)
        if unpack.key:
            return [(n, Column(path=f"{unpack.path}[{unpack.key}={n}].{unpack.value}")) for n in names[:MOST_UNPACKED]]
        below = f".{unpack.value}" if unpack.value else ""
        return [(n, Column(path=f'{unpack.path}."{n}"{below}')) for n in names[:MOST_UNPACKED]]

    def _add_canonical(self, reader: Reader) -> dict[str, str]:
        """Take the canonical columns; returns their DuckDB types."""
        reader.add(self.key, reader.id(self.key))
        types = {self.key: "VARCHAR"}
        if self.key == "user_id":
            return types
        for name in filter(reader.has, TEXT_COLUMNS):
            reader.add_prose(name)
            types[name] = "VARCHAR"
        if reader.has("price"):
            reader.add_number("price", least=0)
            types["price"] = "DOUBLE"
        if reader.has("available_from"):
            reader.add_date("available_from")
            types["available_from"] = "TIMESTAMP"
        if reader.has("available"):
            reader.add("available", reader.flag("available"), "available IS NOT NULL")
            types["available"] = "BOOLEAN"
        if reader.has("image_url"):
            reader.add_url("image_url")
            types["image_url"] = "VARCHAR"
        if reader.has("group_id"):
            reader.add("group_id", reader.id("group_id"), f"{reader.id_problem('group_id')} IS NULL")
            types["group_id"] = "VARCHAR"
        return types

    def _problem(self, reader: Reader) -> str:
        key = quoted(self.key)
        missing = "missing_item" if self.key == "item_id" else "missing_user"
        problem = reader.id_problem(self.key)
        cases = f"WHEN {key} IS NULL THEN '{missing}' WHEN {problem} IS NOT NULL THEN {problem}"
        if reader.has("#product"):
            cases += " WHEN \"#product\" = false THEN 'not_a_product'"
        if self.key == "item_id" and self.config.not_products:
            cases += f" WHEN regexp_full_match({key}, {literal(self.config.not_products)}) THEN 'not_a_product'"
        return f"CASE {cases} END"

    def _keep(self, source: ItemSource | UserSource, checked: str, types: dict[str, str]) -> None:
        """Reduce a source to one row per ID, and take it among the parts."""
        key, part = quoted(self.key), f"_part_{self.table}_{len(self._parts)}"
        values = [quoted(n) for n in types if n != self.key]
        if source.merge is None:
            query = (
                f"SELECT _seq, _file, _row, {', '.join([key, *values])} FROM {quoted(checked)} WHERE _problem IS NULL"
            )
        else:
            self.merges = True
            best = "arg_max" if source.merge == "last" else "arg_min"
            rank = 'row_number() OVER (ORDER BY "#order" NULLS FIRST, _seq) AS _rank'
            merged = "".join(f", {best}({v}, _rank) AS {v}" for v in values)
            query = (
                f"SELECT min(_seq) AS _seq, arg_min(_file, _seq) AS _file, min(_row) AS _row, {key}{merged}"
                f" FROM (SELECT *, {rank} FROM {quoted(checked)} WHERE _problem IS NULL) GROUP BY {key}"
            )
            accepted = self.library.rows(f"SELECT count(*) FROM {quoted(checked)} WHERE _problem IS NULL")[0][0]
            self.account.of(source.table).accepted += accepted
        self.library.sql.execute(f"CREATE TEMP TABLE {quoted(part)} AS {query}")
        if source.merge is not None:
            rows = self.library.rows(f"SELECT count(*) FROM {quoted(part)}")[0][0]
            if accepted > rows:
                which = f"the {source.merge} value of each field is kept"
                self.account.of(source.table).said.append(
                    f"{accepted - rows} rows are about an item or user again: {which}"
                )
        self.library.sql.execute(f"DROP TABLE {quoted(checked)}")
        for name, kind in types.items():
            self.types[name] = _common(self.types.get(name), kind)
        self._parts.append((part, types, "" if source.merge else source.table))

    def finish(self) -> int:
        """Combine the sources to the table `shop.items` or `shop.users`, earlier ones first. Returns its rows."""
        key = quoted(self.key)
        selects = []
        for number, (part, types, _) in enumerate(self._parts):
            cells = [_cast(n, types.get(n), kind) for n, kind in self.types.items()]
            selects.append(f"SELECT {number} AS _part, _seq, _file, _row, {', '.join(cells)} FROM {quoted(part)}")
        if not selects:
            self.library.sql.execute(f"CREATE TABLE shop.{self.table} AS SELECT '' AS {key} LIMIT 0")
            self.types[self.key] = "VARCHAR"
            return 0
        self.library.sql.execute(f"CREATE TEMP TABLE _all AS {' UNION ALL '.join(selects)}")
        self._refuse_repeated()
        values = "".join(f", arg_min({quoted(n)}, (_part, _seq)) AS {quoted(n)}" for n in self.types if n != self.key)
        rows = f"SELECT {key}{values} FROM _all GROUP BY {key}"
        if len(selects) == 1:
            rows = f"SELECT {', '.join(map(quoted, self.types))} FROM _all"
        self.library.sql.execute(f"CREATE TABLE shop.{self.table} AS {rows}")
        for name in ("_all", *(part for part, _, _ in self._parts)):
            self.library.sql.execute(f"DROP TABLE {quoted(name)}")
        return int(self.library.rows(f"SELECT count(*) FROM shop.{self.table}")[0][0])

    def _refuse_repeated(self) -> None:
        """Quarantine the later rows of an ID in sources without `merge`, and count the accepted ones."""
        key = quoted(self.key)
        repeated = f"SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY _part, _seq) > 1 AS _again FROM _all"
        self.library.sql.execute(f"CREATE OR REPLACE TEMP TABLE _all AS {repeated}")
        for number, (_, _, table) in enumerate(self._parts):
            if not table:
                continue
            account = self.account.of(table)
            reason = f"duplicate_{self.key.removesuffix('_id')}"
            again = f"FROM _all WHERE _part = {number} AND _again"
            self.account.refuse(
                account, f"SELECT _file, _row, {literal(self.key)}, {key}, '{reason}' AS reason {again} ORDER BY _seq"
            )
            self.library.sql.execute(f"DELETE {again}")
            account.accepted += self.library.rows(f"SELECT count(*) FROM _all WHERE _part = {number}")[0][0]

    def arrow(self) -> pa.Table:
        """The table as Arrow: for items the columns of `items.parquet`, then attributes by name, sorted by ID."""
        extra = sorted(n for n in self.types if n not in CANONICAL and n != self.key)
        first = list(CANONICAL) if self.key == "item_id" else [self.key]
        lead = [quoted(n) if n in self.types else f"NULL AS {quoted(n)}" for n in first]
        query = f"SELECT {', '.join([*lead, *map(quoted, extra)])} FROM shop.{self.table} ORDER BY {quoted(self.key)}"
        table = self.library.sql.sql(query).to_arrow_table()
        fields = [
            pa.field(n, CANONICAL[n] if n in CANONICAL else _TYPES[self.types[n]], metadata=self._metadata(n))
            for n in table.column_names
        ]
        columns = []
        for field in fields:
            column = table[field.name]
            if pa.types.is_timestamp(field.type):
                column = column.cast(pa.timestamp("us"))
            columns.append(column.cast(field.type).combine_chunks())
        if "title" in table.column_names and self.key == "item_id":
            place = [f.name for f in fields].index("title")
            columns[place] = columns[place].fill_null("")
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _metadata(self, name: str) -> dict[bytes, bytes] | None:
        return {ORIGINAL: self.originals[name].encode()} if name in self.originals else None


def _patterned(source: ItemSource | UserSource, columns: Sequence[str]) -> dict[str, Column]:
    """Attributes by name of the columns that fit a pattern of the source."""
    out: dict[str, Column] = {}
    for column in columns:
        found = ((p, m) for p in source.patterns if (m := re.fullmatch(p.columns, column)) is not None)
        if (first := next(found, None)) is not None and first[1][1]:
            out.setdefault(first[1][1], Column(path=column, type=first[0].type, split=first[0].split))
    return out


def _common(one: str | None, other: str) -> str:
    """Type of a column whose parts have two types: a list if one is, else text."""
    if one is None or one == other:
        return other
    return "VARCHAR[]" if "VARCHAR[]" in (one, other) else "VARCHAR"


def _cast(name: str, have: str | None, want: str) -> str:
    if have is None:
        return f"CAST(NULL AS {want}) AS {quoted(name)}"
    if have == want:
        return quoted(name)
    cell = f"number_text({quoted(name)})" if have == "DOUBLE" else f"CAST({quoted(name)} AS VARCHAR)"
    cell = f"CASE WHEN {quoted(name)} IS NOT NULL THEN [{cell}] END" if want == "VARCHAR[]" else cell
    return f"{cell} AS {quoted(name)}"


def read_profiles(
    library: Library, account: Account, config: ImportConfig, key: str, sources: Sequence[ItemSource | UserSource]
) -> Profiles:
    """Read all sources of items or users, without combining them."""
    profiles = Profiles(library, account, config, key)
    for number, source in enumerate(sources):
        profiles.read(number, source)
    return profiles
