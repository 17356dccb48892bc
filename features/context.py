"""The context of a request: everything in it besides the user, the candidates and the time.

It is a struct, so that a new request property needs a new field and no new arguments.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from features.arrays import F32, I32

DEVICE_CHARACTERS = 64
"""Maximum length of a device name, in files and calls."""
QUERY_CHARACTERS = 200
"""Maximum length of a query, in files and calls."""


class Device(IntEnum):
    """Type of device that sent a request. The number is a feature value in trained models: never renumber."""

    MOBILE = 0
    TABLET = 1
    DESKTOP = 2
    APP = 3
    OTHER = 4


DEVICES = tuple(d.name.lower() for d in Device)
NO_DEVICE = -1
NO_SEEDS: I32 = np.empty(0, np.int32)
"""The seeds of a request without `items`."""


def device_code(device: str | None) -> int:
    """The `Device` code of a name, ignoring case; OTHER for a name not listed, `NO_DEVICE` for None or blank."""
    name = (device or "").strip().lower()
    if not name:
        return NO_DEVICE
    return DEVICES.index(name) if name in DEVICES else int(Device.OTHER)


class Context(NamedTuple):
    """Context of one request.

    device: a `Device`, `NO_DEVICE` if not given. query: the search text, empty if nothing was searched for. columns:
    float32[k, c], the values of the declared columns for each candidate, as `features.columns.table` returns them;
    c is 1 if all candidates have the same values. None if no column was sent. seeds: int32[s], catalogue rows of the
    items that the request names, such as the one on the page or those in the cart: each once, `-1` unknown.
    """

    device: int = NO_DEVICE
    query: str = ""
    columns: F32 | None = None
    seeds: I32 = NO_SEEDS

    @classmethod
    def parse(cls, device: str | None, query: str | None) -> Context:
        """Parse the device and query of a request or of its record; None means not given."""
        return cls(device_code(device), query or "")


NO_CONTEXT = Context()
"""Context of a request without a device or a query."""
