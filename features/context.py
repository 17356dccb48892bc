"""The context of a request: what it brings besides a user, candidates and a moment.

A struct, so that what requests will bring next is a field more and no argument more of anything.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

DEVICE_CHARACTERS = 64
"""Longest name of a device that is taken, in files and calls."""
QUERY_CHARACTERS = 200
"""Longest query that is taken, in files and calls."""


class Device(IntEnum):
    """What a shopper looks at the shop with. The number is a feature's value in trained models: never renumber."""

    MOBILE = 0
    TABLET = 1
    DESKTOP = 2
    APP = 3
    OTHER = 4


DEVICES = tuple(d.name.lower() for d in Device)
NO_DEVICE = -1


def device_code(said: str | None) -> int:
    """The `Device` that a name means, in whatever case; OTHER for one not listed, `NO_DEVICE` for none or blanks."""
    name = (said or "").strip().lower()
    if not name:
        return NO_DEVICE
    return DEVICES.index(name) if name in DEVICES else int(Device.OTHER)


class Context(NamedTuple):
    """What one request says of itself.

    device: a `Device`, `NO_DEVICE` where it names none. query: what the shopper typed, empty where nothing was searched
    for.
    """

    device: int = NO_DEVICE
    query: str = ""

    @classmethod
    def said(cls, device: str | None, query: str | None) -> Context:
        """The context that a request, or a record of one, says in words; None is nothing said."""
        return cls(device_code(device), query or "")


NO_CONTEXT = Context()
"""Of a request that says nothing of itself."""
