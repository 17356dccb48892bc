"""Erasure of users in Redis: tombstones, and the times up to which a user's events are refused.

A tombstone stands for a user ID that was deleted. It is SHA-1 over a secret of 256 random bits and the BLAKE2b hash of
the ID: nobody without the secret can test IDs. SHA-1 is the only hash function of scripts in Redis. Its
collisions do not matter here, since both parts have a fixed length and the secret is not known.

    sw:erasure-secret                                the secret; `collect` also keeps it in the data set
    sw:erased-until, in a cluster one per shard      hash: the secret in field "", and Unix seconds by tombstone

`write.lua` reads the second one, so an event from before the erasure is refused whenever it arrives.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha1
from typing import Any

from serving.store.layout import ERASED_UNTIL, ERASURE_SECRET, Layout

KEPT_S = 366 * 86400.0
"""How long after an erasure late events are refused. Later ones are removed from the log by `collect`."""


def user_hash(user_id: str) -> str:
    """The hash of a user ID that a tombstone is made of (BLAKE2b, 16 bytes as hexadecimal digits)."""
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def tombstone(secret: str, of_user: str) -> str:
    """The tombstone of a user, as 40 hexadecimal digits. of_user: `user_hash`. Equal to `redis.sha1hex` in scripts."""
    return sha1((secret + of_user).encode()).hexdigest()


def new_secret() -> str:
    """A random secret, as 64 hexadecimal digits."""
    return secrets.token_hex(32)


def secret_commands(layout: Layout, secret: str) -> list[list[Any]]:
    """Commands whose last reply is the secret in use. secret: the one to use if there is none."""
    key = layout.key(ERASURE_SECRET)
    return [["SET", key, secret, "NX"], ["GET", key]]


def erase_commands(layout: Layout, user_id: str, secret: str, at: float) -> list[list[Any]]:
    """Commands that refuse a user's events up to `at` (Unix seconds) from now on, and delete all that is kept of them:
    lists, event IDs, attributes, marks of merges and the unit of experiments."""
    marks = layout.part(ERASED_UNTIL, layout.shard(user_id))
    until = ["HSET", marks, "", secret, tombstone(secret, user_hash(user_id)), repr(at)]
    kept = [*(layout.user(user_id, suffix) for suffix in "aesmx"), *layout.id_keys(user_id, at)]
    return [until, ["UNLINK", *kept]]


def mark_commands(layout: Layout, secret: str, until: Mapping[str, float]) -> Iterable[list[Any]]:
    """Commands that refuse the events of users up to a time. until: Unix seconds by tombstone.

    A tombstone does not tell the shard of its user, so that every part gets all of them.
    """
    for part in layout.parts(ERASED_UNTIL):
        for name, at in until.items():
            yield ["HSET", part, "", secret, name, repr(at)]
