"""Opens the raw tables that a configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from offline.config import ImportConfig, TableConfig
from offline.ingest.mapping.paths import Value, text
from offline.ingest.reading import Library, Options, Peek, find_files, make_lists, peek
from offline.ingest.reading.library import quoted
from offline.runtime import DataError, OnProgress


def open_tables(library: Library, config: ImportConfig, directory: Path, on_progress: OnProgress | None = None) -> None:
    """Load all tables of a configuration into a library, and forbid it further access to files.

    directory: for converted copies. on_progress: called with the bytes read and in total. Raises DataError for a file
    that is missing or cannot be read.
    """
    wanted = named_tables(config)
    peeks = {name: _peeks(config.folder, name, table, directory) for name, table in wanted.items() if table.sql is None}
    total = sum(p.source.stat().st_size for found in peeks.values() for p in found)
    done = 0

    def on_file(found: Peek) -> None:
        nonlocal done
        done += found.source.stat().st_size
        if on_progress:
            on_progress(done, total)

    for name, found in peeks.items():
        library.load(name, found, on_file)
        if wanted[name].as_text:
            _to_text(library, name)
        library.rename(name, wanted[name].rename)
        library.ensure(name, wanted[name].ensure)
        make_lists(library, name, wanted[name].lists)
        if wanted[name].fill_down:
            library.fill_down(name, wanted[name].fill_down, wanted[name].key)
    for name, table in wanted.items():
        if table.sql is not None:
            library.derive(name, table.sql)
    library.lock()


def _to_text(library: Library, name: str) -> None:
    """Convert the columns of a table that have another type than text. Nested values stay."""
    table = library.tables[name]
    typed = {column: kind for column, kind in table.columns.items() if kind not in ("VARCHAR", "JSON")}
    if not typed:
        return
    cells = ", ".join(f"{text(Value(quoted(column), kind))} AS {quoted(column)}" for column, kind in typed.items())
    library.sql.execute(
        f"CREATE OR REPLACE TABLE {quoted(name)} AS SELECT * REPLACE ({cells}) FROM {quoted(name)} ORDER BY _seq"
    )
    table.columns |= dict.fromkeys(typed, "VARCHAR")


def named_tables(config: ImportConfig) -> Mapping[str, TableConfig]:
    """The tables of a configuration by name: those under `tables`, and files that sources name."""
    sources = (*config.items, *config.events, *config.users)
    names = dict.fromkeys(n for s in sources for n in (s.table, *(j.table for j in s.join)))
    return {**config.tables, **{n: TableConfig(files=n) for n in names if n not in config.tables}}


def options(table: TableConfig) -> Options:
    """Reading options of a table."""
    return Options(table.encoding, table.delimiter, table.quote, table.columns)


def _peeks(folder: Path, name: str, table: TableConfig, directory: Path) -> Sequence[Peek]:
    patterns = (table.files,) if isinstance(table.files, str) else table.files or ()
    files = list(dict.fromkeys(path for pattern in patterns for path in find_files(pattern, folder)))
    found = [p for path in files for p in peek(path, directory, options(table))]
    if table.part is not None:
        chosen = [p for p in found if p.part == table.part]
        if not chosen:
            parts = ", ".join(str(p.part) for p in found)
            raise DataError(f"table {name}: no part is called {table.part!r}. Parts of its files: {parts}.")
        return chosen
    several = [p for p in found if p.part is not None and set(p.columns) != set(found[0].columns)]
    if several:
        listed = ", ".join(f"{p.part} ({', '.join(list(p.columns)[:4])}, ...)" for p in found)
        raise DataError(f"table {name}: its file holds several tables. Set `part` to one of: {listed}.")
    return found
