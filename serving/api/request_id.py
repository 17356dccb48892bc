"""The id of the current request, used in its response, headers, problem documents and log lines."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[str | None] = ContextVar("request_id", default=None)


def begin() -> str:
    """Set and return a new id for the current task's request: 32 hexadecimal digits.

    It is never taken from the caller, because clicks are joined to lists by it.
    """
    given = uuid.uuid4().hex
    _current.set(given)
    return given


@contextmanager
def nested() -> Iterator[None]:
    """Give the block an id of its own, for one of several lists of a request."""
    token = _current.set(uuid.uuid4().hex)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> str:
    """The id set by `begin`, or a new one outside a request."""
    return _current.get() or uuid.uuid4().hex
