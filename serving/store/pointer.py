"""Which release is live, and which is in shadow, as Redis holds it."""

from __future__ import annotations

import msgspec

from serving.store.errors import StoreCorrupt
from serving.store.layout import POINTER

AUDITED = 1000
"""Lines of the audit that Redis keeps; the file beside the releases keeps all."""


class Pointer(msgspec.Struct, frozen=True):
    """A release that is live or in shadow. path: its directory, as every worker sees it. pinned: no night may replace
    it."""

    id: str
    path: str
    pinned: bool = False


def decode_pointer(reply: bytes | None, key: str = POINTER) -> Pointer | None:
    """None where nothing is there. Raises StoreCorrupt."""
    if reply is None:
        return None
    try:
        return msgspec.json.decode(reply, type=Pointer)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"{key} does not hold the JSON of a release pointer ({e}): promote a release anew") from e
