"""What is tried again, and after how long.

A call is tried again where that cannot do harm: it is a read, or its events carry ids that make them count once, or it
was surely not carried out (no connection, 429, 503 `busy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from shelfwise_client.errors import ServiceError, ShelfwiseError, UnreachableError

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how soon. attempts: in all, 1 for no second one. first_s, most_s: bounds of the pause in seconds.

    The pause is drawn between 0 and a bound that doubles with each attempt ("full jitter": callers who failed together
    do not come back together); where the service named a time (Retry-After), that is waited first.
    """

    attempts: int = 4
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.first_s <= self.most_s:
            raise ValueError(f"{self}: attempts is 1 or more, and first_s between 0 and most_s")

    def pause_s(self, attempt: int, retry_after_s: float | None, draw: float) -> float:
        """Seconds before the next attempt. attempt: how many there were. draw: uniform in 0 to 1."""
        bound = min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 60))
        return (retry_after_s or 0.0) + draw * bound


def may_pass(error: ShelfwiseError) -> bool:
    """Whether the same request may succeed later."""
    return isinstance(error, UnreachableError) or (isinstance(error, ServiceError) and error.status in _TRANSIENT)


def surely_not_done(error: ShelfwiseError) -> bool:
    """Whether the request that failed so was surely not carried out, nor any part of it."""
    if isinstance(error, UnreachableError):
        return not error.delivered
    return isinstance(error, ServiceError) and (
        error.status == 429 or (error.status == 503 and error.code in ("busy", "not-ready"))
    )


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, None where it says nothing that can be read."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
