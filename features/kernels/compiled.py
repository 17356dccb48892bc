"""`compiled`: numba's `njit`, typed, with the settings under which the same inputs give the same bits everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The function compiled on first call and kept on disk; no fast-math, so a sum has one order and one result."""
    return cast(F, numba.njit(cache=True, fastmath=False, nogil=True)(function))
