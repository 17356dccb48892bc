"""`compiled`: typed `njit` of numba, with settings that give the same bits for the same inputs on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function on first call and cache it on disk; no fast-math, so a sum has one order and one result."""
    return cast(F, numba.njit(cache=True, fastmath=False, nogil=True)(function))
