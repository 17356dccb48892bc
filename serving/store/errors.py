"""Errors of the store, with a remedy if the address does not fit the kind of server."""

from __future__ import annotations

from redis.exceptions import AskError, ClusterCrossSlotError, ClusterDownError, ResponseError

_NO_CLUSTER = "cluster support disabled"


class StoreAway(RuntimeError):
    """Redis is unreachable, too slow, or returned an error; the message says which."""


class StoreCorrupt(StoreAway):
    """A Shelfwise key in Redis has a value that this version cannot read; the message says which key and why."""


def to_store_away(error: ResponseError) -> StoreAway:
    """Convert an error reply of Redis to a StoreAway, adding the remedy if the error concerns clusters."""
    if isinstance(error, AskError | ClusterCrossSlotError):  # a MovedError is an AskError, and names a host
        return StoreAway(
            f"Redis: {type(error).__name__}; this server is a node of a cluster: write redis+cluster://HOST:PORT in "
            "REDIS_URL"
        )
    if _NO_CLUSTER in str(error):
        remedy = "; this server is not a node of a cluster: write redis://HOST:PORT in REDIS_URL"
    elif isinstance(error, ClusterDownError):
        remedy = "; run `CLUSTER INFO` on any node for the state of the slots"
    else:
        remedy = ""
    return StoreAway(f"Redis: {type(error).__name__}: {error}{remedy}")
