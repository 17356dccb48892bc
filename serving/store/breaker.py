"""Circuit breaker: after several consecutive failures, Redis is not called for a while, so that no request waits."""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Opens after `failures` consecutive failures; while open, one call per `pause_s` is let through as a probe.

    The follower polls all the time and does not need `allows`; its success also closes the breaker.
    """

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause_s, self._clock = failures, pause_s, clock
        self._failures, self._until = 0, 0.0
        self.reason = ""

    @property
    def open(self) -> bool:
        """True if calls are refused without being tried."""
        return self._failures >= self._most

    def allows(self) -> bool:
        """True if the next call should be tried."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._until:
            return False
        self._until = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """Record an answered call. An error reply also counts: it shows that the server is reachable."""
        self._failures = 0

    def failed(self, reason: str) -> bool:
        """Record a call that was not answered; True if the call before it was answered.

        reason: shown for the calls refused from now on.
        """
        self._failures += 1
        self._until = self._clock() + self._pause_s
        self.reason = reason
        return self._failures == 1
