"""Admission control: limits on requests in flight and in progress. Requests that would wait too long are refused early.

Admitted requests queue, and only a few are in progress at once. Otherwise every request would wait for all the others
between any two of its steps, and its read from Redis could miss the deadline just for lack of a turn.

A worker ranks one request at a time, so its admitted requests are its queue. By Little's law, requests that found n
others in the queue and took t seconds each used mean(t) / mean(n + 1) seconds of the worker. The expected wait is that
times the length of the queue. It is a ratio of means, not a mean of ratios, so that a request which was alone while
the worker was stalled has little weight.
"""

from __future__ import annotations

import asyncio
import math

from serving.api import Problem

_ALWAYS = 8
"""Requests admitted regardless of the expected wait: short queues do no harm, and the means need data."""
_SHARE = 0.05
"""Weight of the newest request in the moving means."""


class Gate:
    """One queue. in_flight: requests admitted and not yet answered. refused: number of requests refused.

    turn: semaphore to hold while a request is in progress; granted in order of arrival.
    """

    def __init__(self, most: int, at_once: int, wait_s: float) -> None:
        """most: maximum in flight. at_once: maximum in progress. wait_s: maximum expected wait, in seconds."""
        self.turn = asyncio.Semaphore(at_once)
        self._most, self._wait_s = most, wait_s
        self._took_s = self._line = 0.0
        self.in_flight = self.refused = 0

    @property
    def expected_s(self) -> float:
        """Expected time until the next request is answered, in seconds."""
        return self._took_s / self._line * (self.in_flight + 1) if self._line else 0.0

    def enter(self) -> int:
        """Admit a request. Returns the number of requests ahead of it, for `leave`. Raises Problem (503) if refused."""
        too_slow = self.in_flight >= _ALWAYS and self.expected_s > self._wait_s
        if too_slow or self.in_flight >= self._most:
            self.refused += 1
            wait = min(30, max(1, math.ceil(self.expected_s)))
            raise Problem(
                503,
                "busy",
                "Service busy",
                f"this worker already has {self.in_flight} requests in flight",
                f"Retry after {wait} s, and send fewer requests at once.",
                headers={"Retry-After": str(wait)},
            )
        self.in_flight += 1
        return self.in_flight - 1

    def leave(self, before: int, took_s: float) -> None:
        """Record that a request was answered. before: the value `enter` returned. took_s: seconds since then."""
        self.in_flight -= 1
        self._took_s += _SHARE * (took_s - self._took_s)
        self._line += _SHARE * (before + 1 - self._line)
