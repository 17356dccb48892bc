"""The stop switch: which experiments are stopped, in Redis.

    sw:experiments    hash: JSON {"by": ..., "at": ...} by experiment; in field "" the number of changes

The number of changes stays when the last experiment is resumed, so that an emptied Redis can be told from one in which
nothing is stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from serving.store import EXPERIMENTS, BulkStore, Layout, StoreCorrupt

MOST_STOPPED = 200
"""Maximum number of experiments that are stopped."""


class Stop(msgspec.Struct, frozen=True):
    """Why an experiment does not run. by: who stopped it. at: when, Unix seconds."""

    by: str
    at: float


class Stops(NamedTuple):
    """The stopped experiments by name. changes: number of stops and resumptions so far; 0 if Redis has none."""

    changes: int
    stopped: Mapping[str, Stop]


class StopError(ValueError):
    """An experiment cannot be stopped; the message says why."""


NO_STOPS = Stops(0, {})
_DECODE = msgspec.json.Decoder(Stop)


def stop(store: BulkStore, name: str, by: str, at: float | None = None) -> None:
    """Stop an experiment: within seconds, all workers serve it no more. Idempotent: the first stop is kept.

    by: who stops it. at: Unix seconds, by default now. Raises StopError if the name is not valid or too many are
    stopped, and the exceptions of redis-py.
    """
    if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) is None:
        raise StopError(f"{name[:80]!r} is not the name of an experiment: see `experiments` in the configuration")
    before = stopped(store)
    if name in before:
        return
    if len(before) >= MOST_STOPPED:
        raise StopError(f"{MOST_STOPPED} experiments are stopped already: resume those that no longer exist")
    key, entry = store.layout.key(EXPERIMENTS), msgspec.json.encode(Stop(by, time.time() if at is None else at))
    store.run([["HINCRBY", key, "", 1], ["HSETNX", key, name, entry]])


def resume(store: BulkStore, name: str) -> bool:
    """Let a stopped experiment run again. Returns False if it was not stopped. Raises the exceptions of redis-py."""
    key = store.layout.key(EXPERIMENTS)
    removed = bool(store.run([["HDEL", key, name]])[0]) if name else False
    if removed:
        store.run([["HINCRBY", key, "", 1]])
    return removed


def stopped(store: BulkStore) -> dict[str, Stop]:
    """The stopped experiments by name. Raises the exceptions of redis-py, and StoreCorrupt."""
    return dict(decode_stops(store.layout, store.run([stops_command(store.layout)])[0]).stopped)


def stops_command(layout: Layout) -> list[Any]:
    """The command that reads all stops."""
    return ["HGETALL", layout.key(EXPERIMENTS)]


def decode_stops(layout: Layout, reply: Mapping[bytes, bytes]) -> Stops:
    """Decode the reply to `stops_command`. Raises StoreCorrupt."""
    try:
        named = {name.decode(): entry for name, entry in reply.items()}
        changes = int(named.pop("", b"0"))
        return Stops(max(changes, bool(named)), {name: _DECODE.decode(entry) for name, entry in named.items()})
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as e:
        key = layout.key(EXPERIMENTS)
        raise StoreCorrupt(f"{key} is not valid ({e}): restore a backup of it, or delete it and stop again") from e
