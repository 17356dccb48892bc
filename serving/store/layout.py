"""Names of Redis keys, for a single server and for a cluster, where a name determines the node.

Every name starts with the prefix of the shop, `sw` by default, so that several shops can share a Redis.

A cluster puts all keys with the same hash tag (the text between braces) into one slot, and a script may only use keys
of one slot. One script writes an event both to its user's lists and to the event stream. Therefore users are divided
into SHARDS shards in a cluster, and the streams are divided into as many parts:

    sw:{<tag>}:u:<user>:a, :e, :m, :s, :x, :d:<period>                a user of this shard
    sw:{<tag>}:events, :served, :attributes, :merges               the shard's part of the streams
    sw:{<tag>}:users                          the users of this shard who have lists
    sw:{<tag>}:erased-until                   the shard's part of the times of erasures
    sw:{items}:i:<item id>, sw:{items}:items, sw:{items}:item-changes    written items, all on one node

Keys that are used on their own have the same name in both, which also spreads vectors over the nodes. Readers of a
stream read all parts. The order between parts does not matter: each event has its own time, and no result depends on
the order in which events are read.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import blake2b

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

SHARDS = 64
"""Maximum number of nodes that can share the users. Never change it: most users would be looked up elsewhere."""

PREFIX = "sw"
STREAM = "events"
SERVED = "served"
WRITES = "attributes"
"""The stream of writes of users' attributes."""
MERGES = "merges"
"""The stream of merges of users."""
ERASED = "erased"
ERASED_UNTIL = "erased-until"
ERASURE_SECRET = "erasure-secret"
USERS = "users"
"""Sorted set of the users who have lists, by the time at which their lists are deleted."""
POINTER = "release"
SHADOW = "shadow"
AUDIT = "audit"
NIGHTS = "nights"
MERCHANDISING = "merchandising"
"""The document of merchandising rules with its changes, one hash: see `serving.merchandising.stored`."""
EXPERIMENTS = "experiments"
"""The stopped experiments, one hash: see `serving.experiments.stops`."""
ORIGIN = "origin"
GROUP = "embed"
"""Consumer group of the embedding workers in the stream of item changes."""
_ITEMS = "items"
_SUFFIX = re.compile(r":(a|e|m|s|x|d:\d+)$")

DUPLICATES_S = 48 * 3600
"""Length in seconds of a period of event IDs; they are kept for one to two periods."""


class Layout:
    """Names of keys. shards: number of parts that users and streams are divided into; 1 for a single server."""

    def __init__(self, cluster: bool, prefix: str = PREFIX) -> None:
        self._prefix = prefix
        self._tags = _tags() if cluster else ()
        self.shards = len(self._tags) or 1
        items = f"{prefix}:{{{_ITEMS}}}:" if cluster else f"{prefix}:"
        self._item, self.items, self.changes = f"{items}i:", f"{items}items", f"{items}item-changes"

    @property
    def cluster(self) -> bool:
        """True if the names are for a cluster."""
        return bool(self._tags)

    def key(self, name: str) -> str:
        """The key of a value that exists once per shop, such as POINTER."""
        return f"{self._prefix}:{name}"

    def vector(self, fingerprint: str, item_id: str) -> str:
        """The key of an item's vector from the encoder with this fingerprint."""
        return f"{self._prefix}:v:{fingerprint}:{item_id}"

    def shard(self, user_id: str) -> int:
        """The shard of a user and of the user's events."""
        if not self._tags:
            return 0
        return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "little") % SHARDS

    def user(self, user_id: str, suffix: str) -> str:
        """The key of a user with this suffix."""
        if self._tags:
            return f"{self._prefix}:{{{self._tags[self.shard(user_id)]}}}:u:{user_id}:{suffix}"
        # Braces enclose the hash tag; a closing brace in the ID would end it early.
        return f"{self._prefix}:{{{user_id.replace('%', '%25').replace('}', '%7D')}}}:{suffix}"

    def id_keys(self, user_id: str, now: float) -> list[str]:
        """All keys that may have IDs of a user's events, by the clock of any worker. now: Unix seconds."""
        period = int(now // DUPLICATES_S)
        # Kept for two periods after the last event of their own, they may be two periods old.
        return [self.user(user_id, f"d:{p}") for p in range(period - 2, period + 2)]

    def user_of(self, key: bytes) -> str:
        """The user of a key; inverse of `user`."""
        if self._tags:
            name = key.decode().partition("}:u:")[2]
            return _SUFFIX.sub("", name)
        return key.decode().partition("{")[2].rpartition("}")[0].replace("%7D", "}").replace("%25", "%")

    def users(self, suffix: str) -> str:
        """A glob pattern for the keys of all users with this suffix."""
        return f"{self._prefix}:{{*}}:u:*:{suffix}" if self._tags else f"{self._prefix}:{{*}}:{suffix}"

    def part(self, stream: str, shard: int) -> str:
        """The key of a shard's part of STREAM, SERVED, WRITES, MERGES, USERS or ERASED_UNTIL."""
        return f"{self._prefix}:{{{self._tags[shard]}}}:{stream}" if self._tags else self.key(stream)

    def parts(self, stream: str) -> list[str]:
        """The keys of all parts of STREAM, SERVED, USERS or ERASED_UNTIL, in the order of shards."""
        return [self.part(stream, shard) for shard in range(self.shards)]

    def item(self, item_id: str) -> str:
        """The key of the written fields of an item."""
        return self._item + item_id


@cache
def _tags() -> tuple[str, ...]:
    """The hash tag of each shard: the smallest number whose slot is in the shard's 1/SHARDS of all slots.

    Nodes with equal numbers of slots then have equal numbers of shards, unlike with arbitrary tags.
    """
    tags: dict[int, str] = {}
    number = 0
    while len(tags) < SHARDS:
        tags.setdefault(key_slot(b"%d" % number) * SHARDS // REDIS_CLUSTER_HASH_SLOTS, str(number))
        number += 1
    return tuple(tags[shard] for shard in range(SHARDS))
