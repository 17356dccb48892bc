"""One at a time: a lock that the operating system gives back when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path


class Locked(RuntimeError):
    """Somebody else is at work here; the message says who, since when, and what to do."""

    status = 5


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock in a file while the block runs; the file stays, saying who held it last.

    A process that is killed holds nothing: there is no stale lock to remove. wait: until the other is done, for what
    takes moments. Raises Locked naming the holder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as e:
            file.seek(0)
            holder = file.read(300).strip() or "a process that has not said its name yet"
            raise Locked(
                f"{path.parent} is in use by {holder}: wait until that one is done, or stop it and start again; "
                "what it finished is kept"
            ) from e
        file.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n")
        file.flush()
        yield
