"""The pointers in Redis to the live release and to the release in shadow."""

from __future__ import annotations

import msgspec

from serving.store.errors import StoreCorrupt

AUDITED = 1000
"""Number of audit lines kept in Redis; `audit.jsonl` in the directory of the releases keeps all."""


class Pointer(msgspec.Struct, frozen=True):
    """A release that is live or in shadow. path: its directory, the same on every worker. pinned: not replaced by
    nightly runs. owner: the shop that it belongs to; empty if it was written by a version without owners."""

    id: str
    path: str
    pinned: bool = False
    owner: str = ""


def decode_pointer(reply: bytes | None, key: str) -> Pointer | None:
    """Decode a pointer; None if the key is not set. Raises StoreCorrupt if it is not valid."""
    if reply is None:
        return None
    try:
        return msgspec.json.decode(reply, type=Pointer)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"{key} is not valid JSON of a release pointer ({e}): promote a release again") from e
