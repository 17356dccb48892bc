"""`compiled`: a typed numba `njit` with settings that make results bit-identical on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The function, compiled on its first call and cached on disk. No fast-math, which would reorder float sums."""
    return cast(F, numba.njit(cache=True, fastmath=False, nogil=True)(function))
