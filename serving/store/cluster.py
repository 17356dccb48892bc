"""An asyncio client of a Redis Cluster: each command goes to the node that has its key's slot.

Each node is called through a `Server`, with its own timeout and circuit breaker, so a node failure affects only the
users on that node. redis-py's cluster client is not used here: when one node fails, its pipelines close the connections
to all nodes and wait for longer than a request may take. Offline, where this does not matter, `BulkStore` uses it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError

from serving.store.address import Address, Node
from serving.store.breaker import Breaker
from serving.store.errors import StoreAway, to_store_away
from serving.store.server import Server, server_client

_MAX_REDIRECTS = 3
"""Maximum number of rounds of sending commands and following redirects."""
_PAUSE_S = 0.5
"""Minimum seconds between two background refreshes of the slot map."""
_SLOT_COMMANDS = [["CLUSTER", "SLOTS"], ["CLUSTER", "INFO"]]


class Cluster:
    """Like `Server`, for a cluster. Reads the slot map from the nodes and refreshes it when a node fails."""

    def __init__(self, address: Address, timeout_s: float, breaker: Callable[[], Breaker]) -> None:
        """breaker: returns a new breaker for each node."""
        self._address, self._timeout_s, self._breaker = address, timeout_s, breaker
        self._servers: dict[Node, Server] = {}
        self._owner: list[Node | None] = []
        self._refresh_task: asyncio.Task[None] | None = None
        self._last_refresh = -_PAUSE_S

    async def close(self) -> None:
        """Close the connections."""
        if self._refresh_task is not None:
            self._refresh_task.cancel()
            with suppress(asyncio.CancelledError, StoreAway):
                await self._refresh_task
        for server in self._servers.values():
            await server.close()

    async def servers(self) -> list[Server]:
        """The servers of all nodes that have slots. Raises StoreAway."""
        if not self._owner:
            await self._refresh(False)
        return [self._server(node) for node in dict.fromkeys(self._owner) if node is not None]

    async def ask(self, commands: Sequence[Sequence[Any]], probe: bool = False) -> list[Any]:
        """Same as `Server.ask`, in one round trip per node, in order on each node.

        The reply to a command whose node is unreachable is a StoreAway. Raises StoreAway if no node returns the slot
        map.
        """
        if not self._owner:
            await self._refresh(probe)
        replies: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        for _ in range(_MAX_REDIRECTS):
            await self._send(todo, commands, replies, probe)
            todo = [n for n in todo if isinstance(replies[n], AskError)]
            if not todo:
                break
            for n in todo:
                await self._redirect(n, commands[n], replies)
            todo = [n for n in todo if isinstance(replies[n], MovedError)]
        for n in todo:
            replies[n] = StoreAway(f"Redis: slot {replies[n].slot_id} is moving between nodes: retry later")
        if any(isinstance(r, StoreAway | ClusterDownError) for r in replies):
            self._schedule_refresh()
        return replies

    async def _send(
        self, numbers: Sequence[int], commands: Sequence[Sequence[Any]], replies: list[Any], probe: bool
    ) -> None:
        """Send the commands of these numbers and store their replies in `replies`."""
        by_node: dict[Node | None, list[int]] = {}
        for n in numbers:
            by_node.setdefault(self._owner[_slot(commands[n])], []).append(n)
        calls = [self._ask_node(node, [commands[n] for n in members], probe) for node, members in by_node.items()]
        # Most requests concern one user and therefore one node.
        results = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        for members, result in zip(by_node.values(), results, strict=True):
            for n, reply in zip(members, result, strict=True):
                replies[n] = reply

    async def _ask_node(self, node: Node | None, commands: Sequence[Sequence[Any]], probe: bool) -> list[Any]:
        if node is None:
            return [StoreAway("Redis: no node has this slot: see `CLUSTER INFO` on any node")] * len(commands)
        try:
            return await self._server(node).ask(commands, probe)
        except StoreAway as e:
            return [StoreAway(f"a node of the cluster: {e}")] * len(commands)

    async def _redirect(self, n: int, command: Sequence[Any], replies: list[Any]) -> None:
        """Follow a redirect: MOVED updates the slot map, ASK sends the command to the other node this once."""
        redirect = replies[n]
        node = (redirect.host or self._host_of(command), redirect.port)
        if isinstance(redirect, MovedError):
            self._owner[redirect.slot_id] = node
            self._schedule_refresh()
        else:
            replies[n] = (await self._ask_node(node, [["ASKING"], command], True))[-1]

    def _host_of(self, command: Sequence[Any]) -> str:
        """The host of the node that was asked, which a redirect omits if the node does not know its own name."""
        node = self._owner[_slot(command)]
        return node[0] if node is not None else self._address.nodes[0][0]

    def _server(self, node: Node) -> Server:
        if (server := self._servers.get(node)) is None:
            server = self._servers[node] = Server(
                server_client(self._address.at(node)), self._timeout_s, self._breaker()
            )
        return server

    def _schedule_refresh(self) -> None:
        """Start refreshing the slot map in the background, at most every `_PAUSE_S`."""
        now = asyncio.get_running_loop().time()
        if now >= self._last_refresh + _PAUSE_S and (self._refresh_task is None or self._refresh_task.done()):
            self._last_refresh = now
            self._refresh_task = asyncio.create_task(self._refresh_in_background())

    async def _refresh_in_background(self) -> None:
        with suppress(StoreAway):
            await self._refresh(True)

    async def _refresh(self, probe: bool) -> None:
        """Read the slot map from every known node and use the one with the highest epoch."""
        nodes = list(dict.fromkeys((*self._servers, *self._address.nodes)))
        answers = await asyncio.gather(
            *(self._server(node).ask(_SLOT_COMMANDS, probe) for node in nodes), return_exceptions=True
        )
        best: tuple[int, Node, Any] | None = None
        reason: BaseException | None = None
        for node, reply in zip(nodes, answers, strict=True):
            if isinstance(reply, BaseException) or isinstance(reply[0], ResponseError):
                reason = reply if isinstance(reply, BaseException) else to_store_away(reply[0])
            elif best is None or _epoch(reply[1]) > best[0]:
                best = _epoch(reply[1]), node, reply[0]
        if best is None:
            raise StoreAway(str(reason)) from reason
        owner: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in best[2]:
            # A node that does not know its own name has the host at which it was asked.
            node = (primary[0].decode() if primary[0] else best[1][0], int(primary[1]))
            owner[first : last + 1] = [node] * (last + 1 - first)
        self._owner = owner
        for unused in set(self._servers) - set(owner) - set(self._address.nodes):
            await self._servers.pop(unused).close()


def _epoch(info: bytes) -> int:
    match = re.search(rb"cluster_current_epoch:(\d+)", info)
    return int(match[1]) if match else -1


def _slot(command: Sequence[Any]) -> int:
    """The slot of a command's first key, which for a script follows the script and the number of keys."""
    key = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key_slot(key.encode())
