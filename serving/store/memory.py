"""Memory of Redis: how much of it is used, and whether a server may evict keys when it is full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COMMANDS = [["INFO", "stats"], ["INFO", "memory"]]
"""The commands of which `memory_of` reads the replies of each server."""


class EvictionError(RuntimeError):
    """Redis would evict users' lists when its memory is full. The message names the setting and the fix."""


class Memory(NamedTuple):
    """Memory of the servers.

    evicted_keys: keys lost for lack of memory since the servers were started. used: share of memory used by the fullest
    server, of `maxmemory`, or of the machine's memory if that is not set. problem: why keys may be evicted; empty if
    none can be.
    """

    evicted_keys: int
    used: float
    problem: str


def memory_of(servers: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Memory:
    """Memory of the servers, from the replies of each to `COMMANDS`. A value that is not reported counts as 0."""
    evicted, used, problem = 0, 0.0, ""
    for stats, memory in servers:
        evicted += int(stats.get("evicted_keys", 0))
        most, policy = int(memory.get("maxmemory", 0)), memory.get("maxmemory_policy", "noeviction")
        available = most or int(memory.get("total_system_memory", 0))
        used = max(used, int(memory.get("used_memory", 0)) / available if available else 0.0)
        if most and policy != "noeviction":
            problem = (
                f"Redis has maxmemory-policy {policy} and would delete users' lists when its memory is full: set "
                "maxmemory-policy to noeviction, in its configuration and with CONFIG SET"
            )
    return Memory(evicted, used, problem)
