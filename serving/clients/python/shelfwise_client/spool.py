"""Spool: queued events on disk, so that a killed process loses none. A folder has one SQLite file per running process.

A file is locked while its process lives. The next process that opens the folder takes over the files of processes that
have ended. Once `add` returns, the operating system has the event: it survives the process, but not a power failure.
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
    """One process's events. Not thread-safe: its owner must synchronise access."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError or sqlite3.Error if the folder cannot be used."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{uuid.uuid4().hex}.events"
        with _folder_lock(folder):
            self._db = _open_locked(self._path)
            self._db.execute(_TABLE)
            for other in sorted(folder.glob("*.events")):
                if other != self._path:
                    self._adopt(other)

    def _adopt(self, other: Path) -> None:
        """Take over the events of a process that has ended. A file of a running process is left alone."""
        try:
            orphan = _open_locked(other)
        except sqlite3.OperationalError as e:
            if "locked" in str(e):
                return
            raise
        orphan.execute(_TABLE)
        rows = orphan.execute("SELECT body, tried_at FROM events ORDER BY row").fetchall()
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO events (body, tried_at) VALUES (?, ?)", rows)
        self._db.execute("COMMIT")
        # If killed before the file is deleted, both files hold the same events with the same ids: counted once.
        orphan.close()
        _unlink(other)

    def rows(self) -> Iterator[tuple[int, bytes, float | None]]:
        """(row, event as JSON, Unix seconds of the first attempt or None), oldest first."""
        yield from self._db.execute("SELECT row, body, tried_at FROM events ORDER BY row").fetchall()

    def add(self, body: bytes) -> int:
        """Store an event and return its row."""
        row = self._db.execute("INSERT INTO events (body) VALUES (?)", (body,)).lastrowid
        assert row is not None
        return row

    def mark(self, rows: Sequence[int], at: float | None) -> None:
        """Record when events were first tried, as Unix seconds; None for not yet."""
        self._many("UPDATE events SET tried_at = ? WHERE row = ?", [(at, row) for row in rows])

    def remove(self, rows: Sequence[int]) -> None:
        """Delete events."""
        self._many("DELETE FROM events WHERE row = ?", [(row,) for row in rows])

    def _many(self, statement: str, values: Sequence[tuple[float | None, ...]]) -> None:
        """Change rows. A disk error is logged only: at worst, an event is sent again with its id, and counted once."""
        try:
            self._db.execute("BEGIN")
            self._db.executemany(statement, values)
            self._db.execute("COMMIT")
        except sqlite3.Error as e:
            log.error("cannot write %s: %s", self._path, e)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def close(self, empty: bool) -> None:
        """Unlock the file. empty: whether to delete it, as no events are left."""
        self._db.close()
        if empty:
            _unlink(self._path)

    def abandon(self) -> None:
        """Leave the file to the parent process, in a forked child."""
        _ABANDONED.append(self._db)


def _open_locked(path: Path) -> sqlite3.Connection:
    """Open and lock a file. Raises sqlite3.OperationalError ("locked") if another process holds the lock."""
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
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lock the folder while opening files, so that no process takes over a file that another has just created."""
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
