"""Whether Redis still has the data of before: a server can come back empty, or with an older copy of its data.

    sw:origin    hash: `id`, a random ID, `repairs` and `collections`, the number of completed runs of
                 `shelfwise collect` with and without `--repair`

The data set has the same origin. The last entry of a stream and the number of entries ever
added to it never decrease, whatever is deleted from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from serving.store.layout import ORIGIN, STREAM, Layout
from serving.store.stream import entry_number, positions_of


class Origin(NamedTuple):
    """The origin of the data in Redis, and of the data set that it is collected into. id: a random ID.

    repairs: number of times that a Redis which had lost data was accepted. collections: completed collections since.
    """

    id: str
    repairs: int
    collections: int


class Extent(NamedTuple):
    """What Redis has of a shop's events. origin: None before the first collection.

    ends, added: ID of the last entry ever added to each part of the event stream, and number of entries added; None for
    a part whose node does not answer.
    """

    origin: Origin | None
    ends: list[tuple[int, int] | None]
    added: list[int | None]


def extent_commands(layout: Layout) -> list[list[Any]]:
    """Commands that read the extent of a shop's events."""
    # The name has two words, because the key must be the second part of a command: see `store.cluster`.
    ends = [["XINFO STREAM", part] for part in layout.parts(STREAM)]
    return [["HMGET", layout.key(ORIGIN), *Origin._fields], *ends]


def decode_extent(replies: Sequence[Any]) -> Extent | None:
    """Decode the replies to `extent_commands`; None if the node of the origin does not answer."""
    origin, *parts = replies
    if isinstance(origin, Exception):
        return None
    ends: list[tuple[int, int] | None] = []
    added: list[int | None] = []
    for part in parts:
        missing = isinstance(part, Exception) and "no such key" in str(part)
        known = missing or not isinstance(part, Exception)
        ends.append(None if not known else (0, 0) if missing else entry_number(part["last-generated-id"].decode()))
        added.append(None if not known else 0 if missing else int(part.get("entries-added", 0)))
    return Extent(decode_origin(origin), ends, added)


def decode_origin(reply: Sequence[bytes | None]) -> Origin | None:
    """Decode the reply to the first of `extent_commands`; None before the first collection."""
    name, repairs, collections = reply
    if name is None or repairs is None or collections is None:
        return None
    return Origin(name.decode(), int(repairs), int(collections))


class Continuity:
    """Compares the data in Redis with that of before. problem: what was lost; empty if nothing was, or after a
    repair."""

    def __init__(self) -> None:
        self._before: Extent | None = None
        self.problem = ""

    def check(self, now: Extent) -> bool:
        """Compare with the last check. True if a part of the stream has entries missing that it had before."""
        before, self._before = self._before, now
        if before is None:
            return False
        lost, is_shorter = origin_loss(before.origin, now.origin), _is_shorter(before, now)
        if lost:
            self._before = now._replace(origin=before.origin)  # until it is repaired
        elif now.origin is not None and (before.origin is None or now.origin.repairs > before.origin.repairs):
            self.problem = ""
        elif is_shorter:
            lost = "Redis was replaced by an older copy or an empty one"
        self.problem = lost or self.problem
        return is_shorter


def origin_loss(before: Origin | None, now: Origin | None) -> str:
    """What Redis lost, as far as its origin shows; empty if nothing."""
    if before is None:
        return ""
    if now is None:
        return "Redis was replaced by an empty one"
    if now.repairs > before.repairs:
        return ""
    if now.id != before.id:
        return "Redis was replaced by another one"
    return "Redis was replaced by an older copy" if now < before else ""


def _is_shorter(before: Extent, now: Extent) -> bool:
    parts = zip(before.ends, now.ends, before.added, now.added, strict=True)
    return any(
        end < end_before or added < added_before
        for end_before, end, added_before, added in parts
        if end_before is not None and end is not None and added_before is not None and added is not None
    )


def rewound(layout: Layout, last: str, now: Extent) -> str:
    """The position `last`, moved back to the end of each part that ends before it."""
    positions = [
        position if end is None or entry_number(position) <= end else "{}-{}".format(*end)
        for position, end in zip(positions_of(layout, last), now.ends, strict=True)
    ]
    return ",".join(positions)
