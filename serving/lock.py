"""File lock for one process at a time; the operating system releases it when its holder exits, even if killed."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path


class Locked(RuntimeError):
    """Another process holds the lock; the message says which one, since when, and what to do."""

    status = 5


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the file's lock while the block runs. The file is kept and names the last holder.

    A killed process releases the lock, so no stale lock has to be removed. wait: block until the lock is free, for
    short operations; otherwise raises Locked, naming the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as e:
            file.seek(0)
            holder = file.read(300).strip() or "a process that has not written its name yet"
            raise Locked(
                f"{path.parent} is in use by {holder}: wait until it has finished, or stop it and start again; "
                "completed work is kept"
            ) from e
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        file.flush()
        yield
