"""The owner of a Redis: a random ID of the shop, in the directory of its releases and in every release pointer.

Shops that use one Redis with the same prefix by mistake are told apart by it. A release has no owner, so it may be
copied to another shop, from a test system to production for example, and promoted there.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from serving.release.json_lines import sync_text
from serving.release.manifest import ReleaseError
from serving.store import Pointer

FILE = "owner"


def read_owner(root: Path) -> str:
    """The ID of the shop with this directory of releases; empty if it has none yet."""
    file = root / FILE
    return file.read_text("utf-8").strip() if file.is_file() else ""


def ensure_owner(root: Path) -> str:
    """The same, created if there is none. The caller holds the lock of the directory."""
    if not (owner := read_owner(root)):
        owner = secrets.token_hex(8)
        sync_text(root / FILE, owner + "\n")
    return owner


def check_owner(pointer: Pointer | None, owner: str) -> None:
    """Raise ReleaseError if a pointer is of another shop than `owner`; empty for a shop that never had a release
    live."""
    if pointer is not None and pointer.owner and pointer.owner != owner:
        raise ReleaseError(
            f"release {pointer.id} in {pointer.path}, which is live in this Redis, belongs to another shop "
            f"({pointer.owner}; this one is {owner or 'new'}): set `redis.prefix` to give this shop keys of its own. "
            "If the other shop no longer uses this Redis, run `shelfwise releases promote ID --take-over`"
        )
