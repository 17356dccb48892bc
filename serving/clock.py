"""The service's clock: the system clock or, in simulations, a time read from a file.

Simulated time is one clock for the whole service: rankings, events and items. A timestamp on each request would not be
enough, because item state and users' lists may already contain later events. The simulation advances the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path


class ClockError(Exception):
    """The file of a simulated clock cannot be read or holds no valid time. The message says what to write."""


def make_clock(file: Path | None) -> Callable[[], float]:
    """A function that returns Unix seconds: the time in `file`, read at every call, or the system time without a file.

    The function raises ClockError if the file cannot be read or holds no valid time. To set the time, write another
    file and rename it over this one: a half-written number can still be parsed as a number.
    """
    if file is None:
        return time.time
    return lambda: _read_time(file)


def _read_time(file: Path) -> float:
    try:
        text = file.read_text("ascii", "replace")
    except OSError as e:
        raise ClockError(
            f"serving.clock_file names {str(file.absolute())!r}, which cannot be read: {e.strerror}. Write the time of "
            f"the simulation into it, in Unix seconds, as in `date +%s > {file}`; without a simulation, remove the key"
        ) from e
    try:
        at = float(text)
    except ValueError:
        at = math.nan
    if not 0 <= at < 1e11:
        raise ClockError(
            f"{file} holds {text[:40]!r}; expected Unix seconds, such as 1748736000.25 (serving.clock_file)"
        )
    return at
