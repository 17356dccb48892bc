"""Many Redis that share the keys: each command goes to the node that has its key's slot, and nodes fail one by one.

Nodes are asked through `Server`, each with a deadline and a breaker of its own, so that a node that is away costs the
users it has and nobody else. redis-py's own cluster client is not used here: where one node fails, its pipelines close
the connections to all and wait for longer than a request may take. Offline, where that is no matter, it is.
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
from serving.store.errors import StoreAway, refusal
from serving.store.server import Server

_HOPS = 3
"""Times that a command is sent on to where its slot has gone."""
_PAUSE_S = 0.5
"""Between two looks at who has which slots."""
_ASKED = [["CLUSTER", "SLOTS"], ["CLUSTER", "INFO"]]


class Cluster:
    """Like `Server`, over the nodes of a cluster; who has which slots is asked of them, and again when one fails."""

    def __init__(self, address: Address, timeout_s: float, breaker: Callable[[], Breaker]) -> None:
        """breaker: one for each node."""
        self._address, self._timeout_s, self._breaker = address, timeout_s, breaker
        self._servers: dict[Node, Server] = {}
        self._owner: list[Node | None] = []
        self._looking: asyncio.Task[None] | None = None
        self._looked = -_PAUSE_S

    async def close(self) -> None:
        """Give back the connections."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError, StoreAway):
                await self._looking
        for server in self._servers.values():
            await server.close()

    async def servers(self) -> list[Server]:
        """Of every node that has slots. Raises StoreAway."""
        if not self._owner:
            await self._look(False)
        return [self._server(node) for node in dict.fromkeys(self._owner) if node is not None]

    async def ask(self, commands: Sequence[Sequence[Any]], look: bool = False) -> list[Any]:
        """As `Server.ask`, in one round trip to each node, in order on each; a StoreAway stands for the reply of a node
        that is away. Raises StoreAway where no node says who has which slots."""
        if not self._owner:
            await self._look(look)
        replies: list[Any] = [None] * len(commands)
        todo = list(range(len(commands)))
        for _ in range(_HOPS):
            await self._send(todo, commands, replies, look)
            todo = [n for n in todo if isinstance(replies[n], AskError)]
            if not todo:
                break
            for n in todo:
                await self._follow(n, commands[n], replies)
            todo = [n for n in todo if isinstance(replies[n], MovedError)]
        for n in todo:
            replies[n] = StoreAway(f"Redis: slot {replies[n].slot_id} goes from node to node: the same again later")
        if any(isinstance(r, StoreAway | ClusterDownError) for r in replies):
            self._look_soon()
        return replies

    async def _send(
        self, numbers: Sequence[int], commands: Sequence[Sequence[Any]], replies: list[Any], look: bool
    ) -> None:
        """Fill in the replies to these of the commands."""
        at: dict[Node | None, list[int]] = {}
        for n in numbers:
            at.setdefault(self._owner[_slot(commands[n])], []).append(n)
        parts = [self._of_node(node, [commands[n] for n in held], look) for node, held in at.items()]
        # Most requests are of one user and so of one node.
        found = [await parts[0]] if len(parts) == 1 else await asyncio.gather(*parts)
        for held, part in zip(at.values(), found, strict=True):
            for n, reply in zip(held, part, strict=True):
                replies[n] = reply

    async def _of_node(self, node: Node | None, commands: Sequence[Sequence[Any]], look: bool) -> list[Any]:
        if node is None:
            return [StoreAway("Redis: no node has this slot: `CLUSTER INFO` on any node says more")] * len(commands)
        try:
            return await self._server(node).ask(commands, look)
        except StoreAway as e:
            return [StoreAway(f"{node[0]}:{node[1]}: {e}")] * len(commands)

    async def _follow(self, n: int, command: Sequence[Any], replies: list[Any]) -> None:
        """A slot that moved has a new node from now on; one that is on its way is asked for there this time."""
        told = replies[n]
        node = (told.host or self._host_of(command), told.port)
        if isinstance(told, MovedError):
            self._owner[told.slot_id] = node
            self._look_soon()
        else:
            replies[n] = (await self._of_node(node, [["ASKING"], command], True))[-1]

    def _host_of(self, command: Sequence[Any]) -> str:
        """Of the node that was asked: nodes that know no name of theirs leave it out."""
        node = self._owner[_slot(command)]
        return node[0] if node is not None else self._address.nodes[0][0]

    def _server(self, node: Node) -> Server:
        if (server := self._servers.get(node)) is None:
            server = self._servers[node] = Server(self._address.at(node), self._timeout_s, self._breaker())
        return server

    def _look_soon(self) -> None:
        """Ask again who has which slots, beside what is going on, and not too often."""
        now = asyncio.get_running_loop().time()
        if now >= self._looked + _PAUSE_S and (self._looking is None or self._looking.done()):
            self._looked = now
            self._looking = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        with suppress(StoreAway):
            await self._look(True)

    async def _look(self, look: bool) -> None:
        """Ask every node that is known who has which slots, and believe the one of the newest epoch."""
        nodes = list(dict.fromkeys((*self._servers, *self._address.nodes)))
        found = await asyncio.gather(*(self._server(node).ask(_ASKED, look) for node in nodes), return_exceptions=True)
        best: tuple[int, Node, Any] | None = None
        reason: BaseException | None = None
        for node, reply in zip(nodes, found, strict=True):
            if isinstance(reply, BaseException) or isinstance(reply[0], ResponseError):
                reason = reply if isinstance(reply, BaseException) else refusal(reply[0])
            elif best is None or _epoch(reply[1]) > best[0]:
                best = _epoch(reply[1]), node, reply[0]
        if best is None:
            raise StoreAway(str(reason)) from reason
        owner: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, primary, *_ in best[2]:
            # A node that knows no name of its own is where it was asked.
            node = (primary[0].decode() if primary[0] else best[1][0], int(primary[1]))
            owner[first : last + 1] = [node] * (last + 1 - first)
        self._owner = owner
        for left in set(self._servers) - set(owner) - set(self._address.nodes):
            await self._servers.pop(left).close()


def _epoch(info: bytes) -> int:
    said = re.search(rb"cluster_current_epoch:(\d+)", info)
    return int(said[1]) if said else -1


def _slot(command: Sequence[Any]) -> int:
    """Of a command's first key: after a script and the number of keys, else at once."""
    key = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key_slot(key.encode())
