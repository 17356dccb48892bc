"""What can be wrong with Redis, and what to do about a server and an address that do not belong together."""

from __future__ import annotations

from redis.exceptions import AskError, ClusterCrossSlotError, ClusterDownError, ResponseError

_NO_CLUSTER = "cluster support disabled"


class StoreAway(RuntimeError):
    """Redis did not answer in time, not at all, or with an error; the message says which."""


class StoreCorrupt(StoreAway):
    """Redis holds something under one of our keys that this version cannot read; the message says what and where."""


def refusal(error: ResponseError) -> StoreAway:
    """What stands for an error that Redis answered with, and the remedy where it is one of clusters."""
    if isinstance(error, AskError | ClusterCrossSlotError):  # a MovedError is an AskError
        remedy = "; this server is a node of a cluster: write redis+cluster://HOST:PORT in REDIS_URL"
    elif _NO_CLUSTER in str(error):
        remedy = "; this server is not a node of a cluster: write redis://HOST:PORT in REDIS_URL"
    elif isinstance(error, ClusterDownError):
        remedy = "; `CLUSTER INFO` on any node says which slots have no node"
    else:
        remedy = ""
    return StoreAway(f"Redis: {type(error).__name__}: {error}{remedy}")
