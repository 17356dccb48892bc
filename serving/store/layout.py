"""Names of keys: those of one server, and those of a cluster, which say what is kept on one node.

A cluster puts keys with the same text between braces into one slot, and a script may touch one slot alone. An event
goes into its user's lists and into the event stream in one script, so in a cluster both are in one of SHARDS shards,
the user's, and the stream is cut into as many:

    sw:{<tag>}:u:<user>:e, :s, :d:<period>    a user of this shard
    sw:{<tag>}:events, sw:{<tag>}:served      the shard's part of the streams
    sw:{items}:i:<item id>, sw:{items}:items, sw:{items}:item-changes    written items: few, and told of in order

What is read alone keeps its name, and vectors are spread by theirs. Readers take in all parts of a stream: what is made
of events does not depend on their order, and their own times say when they were.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

SHARDS = 64
"""As many nodes may share the users of a cluster. Another number is another place for most users: it stays."""

STREAM = "sw:events"
SERVED = "sw:served"
ERASED = "sw:erased"
POINTER = "sw:release"
SHADOW = "sw:shadow"
AUDIT = "sw:audit"
_ITEMS = "items"


class Layout:
    """Names of keys. shards: how many parts users and streams are cut into, 1 of one server."""

    def __init__(self, cluster: bool) -> None:
        self._tags = _tags() if cluster else ()
        self.shards = len(self._tags) or 1
        items = f"sw:{{{_ITEMS}}}:" if cluster else "sw:"
        self._item, self.items, self.changes = f"{items}i:", f"{items}items", f"{items}item-changes"

    @property
    def cluster(self) -> bool:
        """Whether keys are on many nodes."""
        return bool(self._tags)

    def shard(self, user_id: str) -> int:
        """Which part a user is in, and so are the user's events."""
        if not self._tags:
            return 0
        return int.from_bytes(blake2b(user_id.encode(), digest_size=8).digest(), "little") % SHARDS

    def user(self, user_id: str, suffix: str) -> str:
        """A key of a user."""
        if self._tags:
            return f"sw:{{{self._tags[self.shard(user_id)]}}}:u:{user_id}:{suffix}"
        # Braces mark what a cluster hashes; one in the id would end it early.
        return f"sw:{{{user_id.replace('%', '%25').replace('}', '%7D')}}}:{suffix}"

    def user_of(self, key: bytes) -> str:
        """The user of a key that `user` made with a suffix of one letter."""
        if self._tags:
            return key.decode().partition("}:u:")[2][:-2]
        return key.decode().partition("{")[2].rpartition("}")[0].replace("%7D", "}").replace("%25", "%")

    def users(self, suffix: str) -> str:
        """A pattern that such keys match."""
        return f"sw:{{*}}:u:*:{suffix}" if self._tags else f"sw:{{*}}:{suffix}"

    def part(self, stream: str, shard: int) -> str:
        """The key of a shard's part of STREAM or SERVED."""
        return stream.replace("sw:", f"sw:{{{self._tags[shard]}}}:", 1) if self._tags else stream

    def parts(self, stream: str) -> list[str]:
        """The keys of all parts, by shard."""
        return [self.part(stream, shard) for shard in range(self.shards)]

    def item(self, item_id: str) -> str:
        """The key of what was written of an item."""
        return self._item + item_id


@cache
def _tags() -> tuple[str, ...]:
    """For each shard the smallest number whose slot is in its share of all slots: who has as many slots has as many
    shards, which tags by chance would not give."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < SHARDS:
        found.setdefault(key_slot(b"%d" % number) * SHARDS // REDIS_CLUSTER_HASH_SLOTS, str(number))
        number += 1
    return tuple(found[shard] for shard in range(SHARDS))
