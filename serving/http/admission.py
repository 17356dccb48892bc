"""How many requests are taken in, and worked on at once: what would wait too long is refused, before everything waits.

Those taken in stand in line, and few are worked on at once: else each would wait for all the others between any two of
its steps, and its read from Redis would pass the deadline for want of a turn.

A worker ranks one request at a time, so what it has taken in is its queue. Under Little's law requests that found n
others in it and took t seconds each used mean(t) / mean(n + 1) seconds of the worker; times the queue that is the wait
to expect. A ratio of means and not a mean of ratios: one that was alone while the worker stood still says little.
"""

from __future__ import annotations

import asyncio
import math

from serving.api import Problem

_ALWAYS = 8
"""Taken in whatever the expected wait: short queues do no harm, and the mean needs something to learn from."""
_SHARE = 0.05
"""Weight of the newest request in the moving means."""


class Gate:
    """One queue. in_flight: requests taken in and not yet answered. refused: how many were turned away.

    turn: to be held while a request is worked on; turns come in the order in which they were asked for.
    """

    def __init__(self, most: int, at_once: int, wait_s: float) -> None:
        """most: in flight. at_once: of them, worked on. wait_s: expected wait past which requests are refused."""
        self.turn = asyncio.Semaphore(at_once)
        self._most, self._wait_s = most, wait_s
        self._took_s = self._line = 0.0
        self.in_flight = self.refused = 0

    @property
    def expected_s(self) -> float:
        """How long the next request would take, in seconds."""
        return self._took_s / self._line * (self.in_flight + 1) if self._line else 0.0

    def enter(self) -> int:
        """Take a request in; returns how many were before it, for `leave`. Raises Problem (503) where it must wait."""
        long = self.in_flight >= _ALWAYS and self.expected_s > self._wait_s
        if long or self.in_flight >= self._most:
            self.refused += 1
            wait = min(30, max(1, math.ceil(self.expected_s)))
            raise Problem(
                503,
                "busy",
                "Too much to do",
                f"{self.in_flight} requests are being answered by this worker",
                f"Send it again after {wait} s, and fewer at once.",
                headers={"Retry-After": str(wait)},
            )
        self.in_flight += 1
        return self.in_flight - 1

    def leave(self, before: int, took_s: float) -> None:
        """A request is answered. before: what `enter` returned. took_s: from there to here."""
        self.in_flight -= 1
        self._took_s += _SHARE * (took_s - self._took_s)
        self._line += _SHARE * (before + 1 - self._line)
