"""Events on disk, so that a killed process loses none: a folder with one SQLite file for each process at work.

A file is locked for as long as its process lives. Whoever opens the folder next takes over the files of those that are
gone. A write is in the operating system's hands when `add` returns: it outlives the process, though not a power cut.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

log = logging.getLogger("shelfwise_client")

_TABLE = "CREATE TABLE IF NOT EXISTS events (row INTEGER PRIMARY KEY, body BLOB NOT NULL, tried_at REAL)"
_LOCK_S = 30.0
_ABANDONED: list[sqlite3.Connection] = []
"""Connections that a forked child must neither use nor close."""


class Spool:
    """One process' events. Its owner sees to it that one thread at a time uses it."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or sqlite3.Error where the folder cannot be used."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{uuid.uuid4().hex}.events"
        with _alone(folder):
            self._db = _opened(self._path)
            self._db.execute(_TABLE)
            for other in sorted(folder.glob("*.events")):
                if other != self._path:
                    self._adopt(other)

    def _adopt(self, other: Path) -> None:
        """Take over what a process left that is gone; leave alone one that lives."""
        try:
            theirs = _opened(other)
        except sqlite3.OperationalError as e:
            if "locked" in str(e):
                return
            raise
        theirs.execute(_TABLE)
        rows = theirs.execute("SELECT body, tried_at FROM events ORDER BY row").fetchall()
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO events (body, tried_at) VALUES (?, ?)", rows)
        self._db.execute("COMMIT")
        # Killed between these two, both files hold the same events, with the same ids: counted once.
        theirs.close()
        _unlink(other)

    def rows(self) -> Iterator[tuple[int, bytes, float | None]]:
        """(row, event as JSON, Unix seconds of the first attempt or None), oldest first."""
        yield from self._db.execute("SELECT row, body, tried_at FROM events ORDER BY row").fetchall()

    def add(self, body: bytes) -> int:
        """Keep an event; its row."""
        row = self._db.execute("INSERT INTO events (body) VALUES (?)", (body,)).lastrowid
        assert row is not None
        return row

    def mark(self, rows: Sequence[int], at: float | None) -> None:
        """Note when events were first tried; None: not yet."""
        self._many("UPDATE events SET tried_at = ? WHERE row = ?", [(at, row) for row in rows])

    def remove(self, rows: Sequence[int]) -> None:
        """Forget events."""
        self._many("DELETE FROM events WHERE row = ?", [(row,) for row in rows])

    def _many(self, statement: str, values: Sequence[tuple[float | None, ...]]) -> None:
        """Change rows; where the disk fails, an event may be sent once more, with its id, and counts once."""
        try:
            self._db.execute("BEGIN")
            self._db.executemany(statement, values)
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            log.error("%s cannot be written: %s", self._path, e)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def close(self, empty: bool) -> None:
        """Unlock the file, and delete it where nothing waits."""
        self._db.close()
        if empty:
            _unlink(self._path)

    def abandon(self) -> None:
        """In a forked child: leave the parent's file alone."""
        _ABANDONED.append(self._db)


def _opened(path: Path) -> sqlite3.Connection:
    """The file, locked. Raises sqlite3.OperationalError ("locked") where another process has it."""
    db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN EXCLUSIVE")
        db.execute("COMMIT")
    except sqlite3.Error:
        db.close()
        raise
    return db


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time opens files, so that none takes over what another has just made."""
    db = sqlite3.connect(folder / "lock", timeout=_LOCK_S, isolation_level=None)
    try:
        db.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        db.close()


def _unlink(path: Path) -> None:
    for name in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))):
        with contextlib.suppress(FileNotFoundError):
            name.unlink()
