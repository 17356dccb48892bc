"""A request and its answer over HTTP, apart from how it is waited for: both clients share this."""

from __future__ import annotations

import json
import re
import time
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from shelfwise_client.answers import decode
from shelfwise_client.calls import Call
from shelfwise_client.errors import DeadlineError, ServiceError, ShelfwiseError, UnreachableError
from shelfwise_client.retry import Retry, may_pass, retry_after_s, surely_not_done

T = TypeVar("T")

VERSION = "0.1.0"
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=2.0)
"""Idle connections are given up before the service does so, after 5 s (`idle_s`): no request meets a closing one."""
_KEY = re.compile(r"[!-~]+")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Service:
    """Where the service is, and with which key it is asked."""

    def __init__(self, url: str, key: str | None, deadline_s: float, retry: Retry) -> None:
        """Raises ValueError for what is no address of HTTP, no key, or no time."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"url is {url!r}: give the service's address, such as http://localhost:8000")
        if key is not None and not _KEY.fullmatch(key):
            raise ValueError("key is not a key as `shelfwise keys new` prints it: visible ASCII characters, no spaces")
        if not deadline_s > 0:
            raise ValueError(f"deadline_s is {deadline_s}: give seconds, more than 0")
        self.url, self.deadline_s, self.retry = url.rstrip("/"), deadline_s, retry
        self.headers = {"user-agent": f"shelfwise-client/{VERSION}", "accept": "application/json"}
        if key is not None:
            self.headers["authorization"] = f"Bearer {key}"

    def due(self, call: Call[Any]) -> float:
        """When a call that begins now has to end, by `time.monotonic`."""
        return time.monotonic() + (self.deadline_s if call.deadline_s is None else call.deadline_s)

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any], due: float) -> httpx.Request:
        """The request, each of whose steps has as long as is left of the deadline."""
        headers = {"content-type": "application/json"} if call.body is not None else {}
        return http.build_request(
            call.method,
            self.url + call.path,
            content=call.body,
            headers=headers,
            extensions={"timeout": _Remaining(due)},
        )

    def pause_s(self, call: Call[Any], error: ShelfwiseError, attempt: int, due: float, draw: float) -> float:
        """Seconds before the next attempt. Raises the error where there is none, or where it would come too late."""
        if attempt >= self.retry.attempts or not may_pass(error) or not (call.repeatable or surely_not_done(error)):
            raise error
        pause = self.retry.pause_s(attempt, error.retry_after_s if isinstance(error, ServiceError) else None, draw)
        if time.monotonic() + pause >= due:
            raise error
        return pause


class _Remaining(dict[str, float]):
    """Limits in seconds of the steps of a request (connect, write, read): each is what is left when it begins."""

    def __init__(self, due: float) -> None:
        self._due = due
        super().__init__(dict.fromkeys(("connect", "write", "read", "pool"), self.left()))

    def left(self) -> float:
        return max(0.001, self._due - time.monotonic())

    def get(self, key: str, default: Any = None) -> Any:
        return self.left() if key in self else default


def answered(call: Call[T], status: int, headers: httpx.Headers, body: bytes) -> T:
    """The answer. Raises ServiceError."""
    if status not in call.answered:
        raise ServiceError.of(status, headers, body, retry_after_s(headers.get("retry-after")))
    try:
        return decode(call.answer, json.loads(body))
    except (ValueError, TypeError) as e:
        what = f"{call.method} {call.path} answered what is no {call.answer.__name__} ({e}): is this Shelfwise?"
        raise ServiceError(status, "Not as expected", what, request_id=headers.get("x-request-id")) from e


def failed(call: Call[Any], error: httpx.RequestError | TimeoutError, due: float) -> UnreachableError:
    """What a failure below HTTP means for the caller."""
    delivered = not isinstance(error, _NOT_SENT)
    what = f"{call.method} {call.path}: {error or type(error).__name__}"
    if isinstance(error, httpx.TimeoutException | TimeoutError) and time.monotonic() >= due - 0.01:
        return DeadlineError(f"{what}: no whole answer within the deadline", delivered)
    return UnreachableError(what, delivered)
