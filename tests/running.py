"""Test helpers: the service as a separate process that can be killed and restarted, and servers that misbehave."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx
import redis

from features.history import ENGAGEMENTS
from serving.config import ServiceConfig
from serving.http.keys import KEYS_VARIABLE
from serving.store import START, BulkStore, Event
from serving.store.layout import AUDIT
from tests import NO_EVENT_LIMITS, ROOT
from tests.serving.test_service import until


class Process:
    """`serve` in a separate process. address: the same after a restart."""

    def __init__(self, redis_url: str, keys: str = "", **config: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._config = ServiceConfig(port=port, poll_s=0.1, **NO_EVENT_LIMITS | config).model_dump_json()
        self._redis_url, self._keys = redis_url, keys
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Start the process. wait: until it is ready."""
        code = (
            "from serving.app import serve; from serving.config import ServiceConfig\n"
            f"serve(ServiceConfig.model_validate_json({self._config!r}), {self._redis_url!r})"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({KEYS_VARIABLE: self._keys} if self._keys else {})
        self._process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        if wait:
            until(self.ready, 60)

    def ready(self) -> bool:
        """Whether the service is ready."""
        try:
            return httpx.get(f"{self.address}/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def delivered(url: str) -> list[Event]:
    """All events in the stream, in order of arrival."""
    delivered_events: list[Event] = []
    last = START
    with BulkStore(url) as store:
        while True:
            last, events = store.events(last)
            if not events:
                return delivered_events
            delivered_events += events


def stored(url: str) -> list[str]:
    """Ids of all events in the stream."""
    return [e.event_id for e in delivered(url)]


def emptied(url: str) -> None:
    """Delete everything in Redis except the live release pointer and the audit log."""
    with redis.Redis.from_url(url) as raw:
        for key in raw.scan_iter("sw:*"):
            if raw.type(key) == b"stream":
                raw.xtrim(key, maxlen=0, approximate=False)  # a deleted stream would be a loss to repair
            elif key not in (b"sw:release", b"sw:audit"):
                raw.delete(key)


def audit_lines(store: BulkStore) -> list[str]:
    """The lines of the audit log in Redis, oldest first."""
    return [line.decode() for line in store.run([["LRANGE", store.layout.key(AUDIT), 0, -1]])[0]]


def engagements(url: str, user_id: str) -> int:
    """Number of records in a user's list of engagements."""
    with redis.Redis.from_url(url) as raw:
        return len(raw.lrange(f"sw:{{{user_id}}}:e", 0, ENGAGEMENTS))


class ReceivedRequest(NamedTuple):
    """A request received by a scripted server. at: `time.monotonic`."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float


Response = tuple[int, dict[str, str], bytes, float, float]
"""(status, headers, body, seconds to wait before it, seconds to wait between bytes)."""


class Scripted:
    """A server with scripted responses, one per request (the last one repeats), which records the requests."""

    def __init__(self, answers: Sequence[Response]) -> None:
        self.requests: list[ReceivedRequest] = []
        self._answers = list(answers)

    def __enter__(self) -> Scripted:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {k.lower(): v for k, v in self.headers.items()}
                scripted.requests.append(ReceivedRequest(self.command, self.path, headers, body, time.monotonic()))
                status, more, content, wait, between = scripted._answers[
                    min(len(scripted.requests), len(scripted._answers)) - 1
                ]
                time.sleep(wait)
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    for name, value in more.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    for n in range(0, len(content), 1 if between else max(1, len(content))):
                        self.wfile.write(content[n : n + 1] if between else content)
                        time.sleep(between)

            do_GET = do_POST = do_PUT = do_DELETE = _answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Line:
    """A proxy that forwards every request but drops some responses: the first, and every `every`th after it."""

    def __init__(self, address: str, every: int) -> None:
        host, _, port = address.removeprefix("http://").partition(":")
        self._to, self._every = (host, int(port)), every
        self.lost = 0
        self._count = 0

    def __enter__(self) -> Line:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        passing = []
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                break
            passing.append(threading.Thread(target=self._pass, args=(caller,)))
            passing[-1].start()
        for thread in passing:
            thread.join()

    def _pass(self, caller: socket.socket) -> None:
        """Forward one request per connection, and its response unless it is to be dropped."""
        self._count += 1
        lose = self._count % self._every == 1
        with contextlib.suppress(OSError), caller, socket.create_connection(self._to, 30) as service:
            caller.settimeout(30)
            service.sendall(_whole_request(caller))
            answer = b""
            while not (answer := answer + service.recv(65536)).endswith(b"}"):
                pass
            if lose:
                self.lost += 1
            else:
                head, _, body = answer.partition(b"\r\n\r\n")
                caller.sendall(head + b"\r\nconnection: close\r\n\r\n" + body)


def _whole_request(caller: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += caller.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += caller.recv(65536)
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def process(redis_url: str, keys: str = "", **config: Any) -> Iterator[Process]:
    """Run the service in a process during the block, and wait until it is ready."""
    running = Process(redis_url, keys, **config)
    try:
        running.start()
        yield running
    finally:
        running.kill()
