"""Retries: which errors are retried, and after how long.

A call is retried only if that is safe: it is a read, or its events carry ids so that they are counted once, or it was
certainly not carried out (no connection, 429, 503 `busy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from shelfwise_client.errors import ServiceError, ShelfwiseError, UnreachableError

_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Number of attempts and pauses between them. attempts: in total, 1 for no retry. first_s, most_s: in seconds.

    A pause is drawn uniformly between 0 and a bound, which starts at first_s and doubles with each attempt up to most_s
    (full jitter, so that clients that failed together do not retry together). It is added to the service's Retry-After.
    """

    attempts: int = 4
    first_s: float = 0.1
    most_s: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or not 0 < self.first_s <= self.most_s:
            raise ValueError(f"{self}: attempts must be at least 1, and first_s between 0 and most_s")

    def pause_s(self, attempt: int, retry_after_s: float | None, draw: float) -> float:
        """Seconds to wait before the next attempt. attempt: number of attempts so far. draw: uniform in [0, 1]."""
        bound = min(self.most_s, self.first_s * 2.0 ** min(attempt - 1, 60))
        return (retry_after_s or 0.0) + draw * bound


def may_pass(error: ShelfwiseError) -> bool:
    """True if the same request may succeed later."""
    return isinstance(error, UnreachableError) or (isinstance(error, ServiceError) and error.status in _TRANSIENT)


def surely_not_done(error: ShelfwiseError) -> bool:
    """True if a request that failed with this error was certainly not carried out, not even in part."""
    if isinstance(error, UnreachableError):
        return not error.delivered
    return isinstance(error, ServiceError) and (
        error.status == 429 or (error.status == 503 and error.code in ("busy", "not-ready"))
    )


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait according to a `Retry-After` header; None if it is missing or cannot be parsed."""
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
