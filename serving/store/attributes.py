"""Attributes of users in Redis: what the shop knows of a user besides events, such as their country.

    sw:{<user>}:a       hash: JSON value by name; null for an attribute that was cleared
    sw:attributes       stream of writes, which `shelfwise collect` moves to the log; in a cluster one per shard

They are kept as long as the lists of the user: each write and each event of the user renews them. A cleared attribute
stays as null, so that a nightly run, which adds what the log has, does not bring it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from features.bounds import COLUMNS
from features.columns import Scalar
from serving.store.errors import StoreCorrupt
from serving.store.layout import USERS, WRITES, Layout
from serving.store.users import UserLimits, member, script_commands

TOO_MANY, REFUSED = -1, -2
"""Replies of the script instead of the number of attributes, see `attributes.lua`."""
_LUA = {name: Path(__file__).with_name(f"{name}.lua").read_text("utf-8") for name in ("lists", "attributes")}
_SCRIPT = _LUA["lists"] + _LUA["attributes"]


class AttributeWrite(msgspec.Struct, frozen=True):
    """One write of a user's attributes. at: Unix seconds. attributes: value by name; None clears one."""

    user_id: str
    at: float
    attributes: dict[str, bool | float | str | None]


_DECODE = msgspec.json.Decoder(AttributeWrite)
_VALUE = msgspec.json.Decoder(bool | float | str | None)


def decode_attribute_write(entry: bytes) -> AttributeWrite:
    """Decode an entry of the stream of writes. Raises the errors of msgspec if it is not a valid one."""
    return _DECODE.decode(entry)


def write_command(layout: Layout, write: AttributeWrite, limits: UserLimits) -> list[list[Any]]:
    """The command that writes attributes. Its reply is the number of attributes of the user, TOO_MANY or REFUSED."""
    return script_commands(_SCRIPT, [_call(layout, write, limits, msgspec.json.encode(write))], [0])


def seed_commands(layout: Layout, writes: Sequence[AttributeWrite], limits: UserLimits) -> list[list[Any]]:
    """Commands that add attributes of the log to those that users have. Existing ones are not changed."""
    calls = [_call(layout, write, limits, b"") for write in writes]
    return script_commands(_SCRIPT, calls, [layout.shard(write.user_id) for write in writes])


def read_command(layout: Layout, user_id: str) -> list[Any]:
    """The command that reads a user's attributes."""
    return ["HGETALL", layout.user(user_id, "a")]


def decode_attributes(layout: Layout, user_id: str, reply: Mapping[bytes, bytes]) -> dict[str, Scalar]:
    """Decode the reply to `read_command`, without cleared attributes. Raises StoreCorrupt."""
    try:
        found = {name.decode(): _VALUE.decode(value) for name, value in reply.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError) as e:
        key = layout.user(user_id, "a")
        raise StoreCorrupt(f"{key} has a value that is not an attribute ({e}): delete the key") from e
    return {name: value for name, value in found.items() if value is not None}


def _call(layout: Layout, write: AttributeWrite, limits: UserLimits, entry: bytes) -> list[Any]:
    user, shard = write.user_id, layout.shard(write.user_id)
    streams = [layout.part(USERS, shard), layout.part(WRITES, shard)]
    keys = [*(layout.user(user, suffix) for suffix in "aes"), *streams, layout.user(user, "m")]
    of_user = [member(user), limits.retention.of(user), limits.most_of(layout), write.at, COLUMNS, entry]
    pairs = [x for name, value in write.attributes.items() for x in (name, msgspec.json.encode(value))]
    return [len(keys), *keys, *of_user, *pairs]
