"""Whether Redis is worth asking: after some failures in a row it is left alone for a while, so that nobody waits."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Open after `failures` calls in a row that failed; then one call every `pause_s` is let through, to look.

    Whoever looks anyway (the follower polls all the time) need not ask `allows`, and its success closes the breaker.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failures, self._until = 0, 0.0
        self.reason = ""

    @property
    def open(self) -> bool:
        """True while calls are refused without being tried."""
        return self._failures >= self._most

    def allows(self) -> bool:
        """True where the next call should be tried."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """To be called after a call that was answered, be it with an error: what answers is there."""
        self._failures = 0

    def failed(self, reason: str) -> None:
        """To be called after a call that was not answered."""
        self._failures += 1
        self._until = self._clock() + self._pause_s
        self.reason = reason
