"""The id of the request that is being answered: in the answer, its headers, problem documents and the log alike."""

from __future__ import annotations

import uuid
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def begin() -> str:
    """Give this task's request an id, 32 hexadecimal digits, ours and never the caller's: clicks are joined by it."""
    given = uuid.uuid4().hex
    _current.set(given)
    return given


def current() -> str:
    """The id that `begin` gave, or a new one outside of any request."""
    return _current.get() or uuid.uuid4().hex
