"""Which release is live, as Redis holds it."""

from __future__ import annotations

import msgspec

from serving.store.errors import StoreCorrupt
from serving.store.layout import POINTER

AUDITED = 1000
"""Lines of the audit that Redis keeps; the file beside the releases keeps all."""


class Pointer(msgspec.Struct, frozen=True):
    """Which release is live. path: its directory, as every worker sees it. pinned: no night may replace it."""

    id: str
    path: str
    pinned: bool = False


def decode_pointer(reply: bytes | None) -> Pointer | None:
    """None where nothing is there. Raises StoreCorrupt."""
    if reply is None:
        return None
    try:
        return msgspec.json.decode(reply, type=Pointer)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(
            f"{POINTER} does not hold the JSON of a release pointer ({e}): promote a release anew"
        ) from e
