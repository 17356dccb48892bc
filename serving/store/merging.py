"""Merges in Redis: what an anonymous user did becomes the history of the user who has logged in.

    sw:{<user>}:m    list of marks: where events of this user belong that arrive after a merge
    sw:{<user>}:x    the unit of the user in experiments, if it is that of an anonymous user: the hash of that ID
    sw:merges        stream of merges, which `shelfwise collect` moves to the log; in a cluster one per shard

A merge at a time `at` moves all that the user `from_id` has before it. Both lists are merged newest first, an event ID
once, and cut to their maximum; attributes that the other user lacks are added. Events of `from_id` from `at` on begin a
new history, which a later merge moves. Events from before `at` that arrive later are written to the lists of the
other user (`write.lua`), for `MARK_S`; therefore it makes no difference to the lists in which order events arrive.

A user who has nothing yet, a new one, takes over the unit of the first anonymous user that is merged into them, so
that experiments show them what they have seen before. A returning user keeps their own.

One script does it. In a cluster, users of different shards take three, each atomic and idempotent: `take` reads and
sets the mark, `join` adds to the one user, `clear` deletes from the other. If the service dies in between, nothing is
lost, and repeating the call completes it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from features.bounds import COLUMNS
from features.history import ENGAGEMENTS, SHOWN
from serving.store.erasure import user_hash
from serving.store.layout import DUPLICATES_S, ERASED_UNTIL, MERGES, USERS, WRITES, Layout
from serving.store.users import UserLimits, member, script_commands

MARK_S = 2 * DUPLICATES_S
"""Seconds for which late events of a merged user are recognised, as long as their IDs are."""
_LUA = {name: Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("lists", "merge")}
_SCRIPT = _LUA["lists"] + _LUA["merge"]


class Merge(msgspec.Struct, frozen=True):
    """One merge. user_id: the user who has the history afterwards. at: Unix seconds."""

    user_id: str
    from_id: str
    at: float


_DECODE = msgspec.json.Decoder(Merge)


def decode_merge(entry: bytes) -> Merge:
    """Decode an entry of the stream of merges. Raises the errors of msgspec if it is not a valid one."""
    return _DECODE.decode(entry)


def merge_command(layout: Layout, merge: Merge, limits: UserLimits) -> list[list[Any]]:
    """The command that merges two users of one shard. Its reply is the number of events moved, or REFUSED."""
    return _commands(layout, merge, limits, "all")


def take_command(layout: Layout, merge: Merge, limits: UserLimits) -> list[list[Any]]:
    """The command that reads what is to be moved and sets the mark."""
    return _commands(layout, merge, limits, "take")


def join_command(layout: Layout, merge: Merge, limits: UserLimits, taken: Sequence[list[bytes]]) -> list[list[Any]]:
    """The command that adds what was taken. Its reply is that of `merge_command`. taken: reply to `take_command`."""
    engaged, shown, attributes = taken
    return _commands(layout, merge, limits, "join", [len(engaged), len(shown), *engaged, *shown, *attributes])


def clear_command(layout: Layout, merge: Merge, limits: UserLimits) -> list[list[Any]]:
    """The command that deletes what was moved."""
    return _commands(layout, merge, limits, "clear")


def unmark_command(layout: Layout, merge: Merge) -> list[Any]:
    """The command that takes the mark back, because the other user was refused."""
    return ["LREM", layout.user(merge.from_id, "m"), 1, struct.pack("<d", merge.at) + merge.user_id.encode()]


def unit_commands(layout: Layout, merge: Merge) -> list[list[Any]]:
    """Commands that read what decides about the unit of a user before a merge: see `inherited_unit`."""
    into, source = merge.user_id, merge.from_id
    of_source = ["EXISTS", *(layout.user(source, suffix) for suffix in "esa")]
    return [["EXISTS", *(layout.user(into, suffix) for suffix in "esax")], of_source, ["GET", layout.user(source, "x")]]


def inherited_unit(replies: Sequence[Any], own: bytes) -> bytes | None:
    """The unit that the user takes over, None if they keep their own. replies: to `unit_commands`. own: the unit of the
    ID of the anonymous user, which they may have taken over in turn."""
    known, has_lists, unit = replies
    return None if known or not (has_lists or unit) else unit or own


def _commands(layout: Layout, merge: Merge, limits: UserLimits, step: str, more: Sequence[Any] = ()) -> list[list[Any]]:
    source, into = merge.from_id, merge.user_id
    of_from = [*(layout.user(source, suffix) for suffix in "esam"), *_parts(layout, source, USERS, WRITES)]
    of_into = [
        *(layout.user(into, suffix) for suffix in "esa"),
        *_parts(layout, into, USERS, WRITES, ERASED_UNTIL, MERGES),
    ]
    keys = {"all": of_from + of_into, "join": of_into}.get(step, of_from)
    kept = limits.retention.of
    arguments: list[Any] = [
        *(step, ENGAGEMENTS, SHOWN, repr(merge.at), COLUMNS, MARK_S),
        *(member(source), msgspec.json.encode(source), kept(source)),
        *(member(into), msgspec.json.encode(into), kept(into), into),
        *(user_hash(into), limits.most_of(layout), msgspec.json.encode(merge)),
    ]
    return script_commands(_SCRIPT, [[len(keys), *keys, *arguments, *more]], [0])


def _parts(layout: Layout, user_id: str, *names: str) -> list[str]:
    return [layout.part(name, layout.shard(user_id)) for name in names]
