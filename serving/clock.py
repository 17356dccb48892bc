"""The clock of the service: the machine's own, or, where time is simulated, what a file says.

A moment that each request named for itself would be no moment at all: item state and users' lists hold what came later.
So simulated time is one clock for the whole service, rankings, events and items alike, and whoever simulates moves it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path


class ClockError(Exception):
    """The file of a simulated clock does not tell the time; the message says what it holds, and what it should."""


def clock_of(file: Path | None) -> Callable[[], float]:
    """A function that gives Unix seconds: what the file says when it is called, or the time it is where there is none.

    The function raises OSError where the file cannot be read, and ClockError where it holds no moment. Replace the file
    whole (write another, rename it): half a number is a number too.
    """
    if file is None:
        return time.time
    return lambda: _told(file)


def _told(file: Path) -> float:
    text = file.read_text("ascii", "replace")
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not 0 <= at < 1e11:
        raise ClockError(f"{file} holds {text[:40]!r}; expected Unix seconds, as 1748736000.25 (serving.clock_file)")
    return at
