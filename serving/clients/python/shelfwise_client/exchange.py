"""HTTP requests and responses, independent of how they are awaited. Shared by both clients."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from shelfwise_client.answers import decode
from shelfwise_client.calls import Call
from shelfwise_client.errors import DeadlineError, ServiceError, ShelfwiseError, UnreachableError
from shelfwise_client.retry import Retry, may_pass, retry_after_s, surely_not_done

T = TypeVar("T")
ShopperToken = str | Callable[[], str | None] | None
"""A shopper token, or a function that returns the current one. Only needed with a public API key."""

VERSION = "0.1.0"
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)
"""Idle connections are closed before the service (75 s) or a proxy (60 s) does it, so no request uses a closing one."""
_KEY = re.compile(r"[!-~]+")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Service:
    """The service's address and API key, and the settings for calls to it."""

    def __init__(
        self, url: str, key: str | None, deadline_s: float, retry: Retry, shopper_token: ShopperToken = None
    ) -> None:
        """Raises ValueError for an invalid URL, key or deadline."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url {url!r} is not valid: use the service's address, such as http://localhost:8000")
        if key is not None and not _KEY.fullmatch(key):
            raise ValueError("key is not valid: use a key as `shelfwise keys new` prints it (visible ASCII, no spaces)")
        if not deadline_s > 0:
            raise ValueError(f"deadline_s is {deadline_s}: it must be greater than 0")
        self.url, self.deadline_s, self.retry = url.rstrip("/"), deadline_s, retry
        self.headers = {"user-agent": f"shelfwise-client/{VERSION}", "accept": "application/json"}
        if key is not None:
            self.headers["authorization"] = f"Bearer {key}"
        self._token = shopper_token

    def due(self, call: Call[Any]) -> float:
        """Deadline of a call that starts now, as a `time.monotonic` value."""
        return time.monotonic() + (self.deadline_s if call.deadline_s is None else call.deadline_s)

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], due: float) -> httpx.Request:
        """Build the request. The timeout of each step is the time left until the deadline."""
        headers = {"content-type": "application/json"} if call.body is not None else {}
        if token := self._token() if callable(self._token) else self._token:
            headers["x-shopper-token"] = token
        return http.build_request(
            call.method,
            self.url + call.path,
            content=call.body,
            headers=headers,
            extensions={"timeout": _Remaining(due)},
        )

    def pause_s(self, call: Call[Any], error: ShelfwiseError, attempt: int, due: float, draw: float) -> float:
        """Seconds to wait before the next attempt. Raises the error if it is not retryable or too late to retry.

        attempt: number of attempts so far. due: deadline, as a `time.monotonic` value. draw: uniform in [0, 1].
        """
        if attempt >= self.retry.attempts or not may_pass(error) or not (call.repeatable or surely_not_done(error)):
            raise error
        pause = self.retry.pause_s(attempt, error.retry_after_s if isinstance(error, ServiceError) else None, draw)
        if time.monotonic() + pause >= due:
            raise error
        return pause


class _Remaining(dict[str, float]):
    """Timeouts of a request's steps (connect, write, read): the seconds left to the deadline when each step starts."""

    def __init__(self, due: float) -> None:
        self._due = due
        super().__init__(dict.fromkeys(("connect", "write", "read", "pool"), self.left()))

    def left(self) -> float:
        """Seconds left until the deadline, at least 0.001."""
        return max(0.001, self._due - time.monotonic())

    def get(self, key: str, default: Any = None) -> Any:
        """The timeout of a step at this moment."""
        return self.left() if key in self else default


def answered(call: Call[T], status: int, headers: httpx.Headers, body: bytes) -> T:
    """Decode the result of a call from its response. Raises ServiceError."""
    if status not in call.answered:
        raise ServiceError.of(status, headers, body, retry_after_s(headers.get("retry-after")))
    try:
        return decode(call.answer, json.loads(body))
    except (ValueError, TypeError) as e:
        detail = f"{call.method} {call.path} did not return a {call.answer.__name__} ({e}). Is url a Shelfwise service?"
        raise ServiceError(status, "Unexpected response", detail, request_id=headers.get("x-request-id")) from e


def failed(call: Call[Any], error: httpx.RequestError | TimeoutError, due: float) -> UnreachableError:
    """The client's error for a failure of httpx."""
    delivered = not isinstance(error, _NOT_SENT)
    message = f"{call.method} {call.path}: {error or type(error).__name__}"
    if isinstance(error, httpx.TimeoutException | TimeoutError) and time.monotonic() >= due - 0.01:
        return DeadlineError(f"{message}: no complete response within the deadline", delivered)
    return UnreachableError(message, delivered)
