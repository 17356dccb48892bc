"""Retention of a user's lists: a setting that replay and the service share, recorded in every release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.arrays import F64
from features.kernels.compiled import compiled

DAY_S = 86400.0


@dataclass(frozen=True)
class Retention:
    """Each of a user's two lists expires this many seconds after its last event.

    user_s: for most users. anonymous_s: for users whose ID begins with one of the prefixes in `anonymous`.
    """

    user_s: float = 180 * DAY_S
    anonymous_s: float = 30 * DAY_S
    anonymous: tuple[str, ...] = ("anon-",)

    def of(self, user_id: str) -> float:
        """Seconds for which the lists of this user are kept after their last event."""
        return self.anonymous_s if user_id.startswith(self.anonymous) else self.user_s

    def of_all(self, user_ids: Sequence[str]) -> F64:
        """float64[users]: `of` each user."""
        return np.fromiter(map(self.of, user_ids), np.float64, len(user_ids))


DEFAULT_RETENTION = Retention()


@compiled
def unexpired(newest_first: F64, at: float, kept_s: float) -> int:
    """Number of events of a list that a user still has at a time: those after the newest gap of more than `kept_s`.

    newest_first: float64, Unix seconds, all before `at`. The time from the newest event to `at` is a gap as well. In
    Redis, the list was deleted during such a gap.
    """
    for n in range(len(newest_first)):
        if at - newest_first[n] > kept_s:
            return n
        at = newest_first[n]
    return len(newest_first)
