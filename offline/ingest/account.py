"""Account of every row: read = accepted + quarantined + left out, for each table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from offline.ingest.quarantine import SCHEMA_COLUMNS
from offline.ingest.reading import Library, RawTable
from offline.ingest.reading.library import literal, quoted
from offline.ingest.summary import SourceSummary


@dataclass
class TableAccount:
    """Counts of one table. records: rows in the files. read: rows of all its sources, each element of a list."""

    table: RawTable
    read: int = 0
    accepted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)


class Account:
    """The accounts of all tables, and the quarantine: rows of the database's table `_refused`."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.tables: dict[str, TableAccount] = {}
        self._filtered: dict[str, list[str]] = {}
        self._whole: set[str] = set()

    def of(self, name: str) -> TableAccount:
        """The account of a table."""
        if name not in self.tables:
            table = self.library.tables[name]
            account = TableAccount(table, read=table.refused.total(), said=list(table.said))
            account.quarantined.update(table.refused)
            self.tables[name] = account
        return self.tables[name]

    def take(self, name: str, relation: str, filtered: bool) -> TableAccount:
        """Count the rows of a source's relation. filtered: whether its condition leaves rows of the table out."""
        account = self.of(name)
        account.read += self.library.rows(f"SELECT count(*) FROM {quoted(relation)}")[0][0]
        if filtered:
            used = f"_used_{name}_{len(self._filtered.setdefault(name, []))}"
            self.library.sql.execute(
                f"CREATE TEMP TABLE {quoted(used)} AS SELECT DISTINCT _seq >> 16 AS _seq FROM {quoted(relation)}"
            )
            self._filtered[name].append(used)
        else:
            self._whole.add(name)
        return account

    def close(self) -> None:
        """Count the rows that no source of their table took. Call it once all sources are read."""
        for name, used in self._filtered.items():
            if name in self._whole:
                continue
            union = " UNION ALL ".join(f"SELECT _seq FROM {quoted(u)}" for u in used)
            n = self.library.rows(f"SELECT count(*) FROM {quoted(name)} WHERE _seq NOT IN ({union})")[0][0]
            if n:
                account = self.of(name)
                account.read += n
                account.left_out["row excluded by `where`"] += n

    def refuse(self, account: TableAccount, rows: str) -> None:
        """Quarantine rows. rows: query of file, row, column, value, reason."""
        self.library.sql.execute(f"CREATE OR REPLACE TEMP TABLE _refusing AS {rows}")
        self.library.sql.execute(f"INSERT INTO _refused ({SCHEMA_COLUMNS}) SELECT * FROM _refusing")
        found = self.library.rows("SELECT reason, count(*) FROM _refusing GROUP BY reason")
        account.quarantined.update(dict(found))

    def summaries(self) -> Sequence[SourceSummary]:
        """The accounts, in the order in which the tables were first read. Asserts that no row was lost."""
        out = []
        for account in self.tables.values():
            total = account.accepted + account.quarantined.total() + account.left_out.total()
            assert account.read == total, f"{account.table.file}: rows were lost: {account}"
            records = account.table.rows + account.table.refused.total()
            said = list(dict.fromkeys(account.said))
            if records != account.read:
                said.append(f"{records} records gave {account.read} rows: each element of a list counts as one")
            out.append(
                SourceSummary(
                    account.table.file,
                    account.read,
                    records,
                    account.accepted,
                    dict(sorted(account.quarantined.items())),
                    dict(sorted(account.left_out.items())),
                    tuple(said),
                )
            )
        return out


def named(name: str | None) -> str:
    """A column's name as an SQL value."""
    return "CAST(NULL AS VARCHAR)" if name is None else literal(name)
