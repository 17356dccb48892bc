"""What every request passes before a route sees it: key, allowance, body, admission, deadline; then it is counted.

One ASGI class around everything else, so that whatever answers a path (FastAPI or something quicker) is guarded alike.
A route says beside itself which scope it needs, as `security` in its documentation; the table here is read from that.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import Problem, request_id
from serving.config import ServiceConfig
from serving.http.admission import Gate
from serving.http.keys import SCOPES, Allowance, Key, Keys
from serving.http.request_log import log_request
from serving.records import Metrics

_BUFFERED_BYTES = 64_000_000
"""Bodies being read at the same time, by one worker."""
_GATES = {"rank": "rank", "events": "write", "items": "write", "admin": "write"}
"""Two queues, so that a flood of events does not keep rankings out; reading metrics waits in neither."""
_GONE = 499
"""What is counted where the caller went away before there was an answer."""


class Rule(NamedTuple):
    """How a route is guarded. scope: what a key must be good for; None where no key is asked for."""

    methods: frozenset[str]
    pattern: re.Pattern[str]
    route: str
    scope: str | None


_UNKNOWN = Rule(frozenset(), re.compile(""), "unknown", None)


def needs(scope: str | None) -> dict[str, Any]:
    """The part of a route's documentation that says which scope a key must have; None for a route open to all."""
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"no such scope: {scope}; there are {', '.join(SCOPES)}")
    return {"security": [] if scope is None else [{"key": [scope]}]}


def caller(request: Request) -> str | None:
    """Whose key a request brought, None where none was asked for."""
    return getattr(request.state, "caller", None)


def rules_of(routes: Iterable[BaseRoute]) -> list[Rule]:
    """How routes are guarded. Raises ValueError for one under /v1 that does not say which scope it needs.

    And for what is no plain route, a mounted application or an included router: what lies below it would be open.
    """
    rules = []
    for route in routes:
        if not isinstance(route, Route):
            raise ValueError(
                f"{route!r} is no plain route and cannot be guarded: declare its routes on the application"
            )
        security = (getattr(route, "openapi_extra", None) or {}).get("security")
        if security is None and route.path.startswith("/v1"):
            raise ValueError(f"{route.path} does not say which scope it needs: pass openapi_extra=needs(...)")
        scope = security[0]["key"][0] if security else None
        rules.append(Rule(frozenset(route.methods or ()), route.path_regex, route.path, scope))
    return rules


def problem_answer(error: Problem) -> Response:
    """A problem document, which names the request."""
    document = error.document | {"instance": f"urn:shelfwise:request:{request_id.current()}"}
    return Response(msgspec.json.encode(document), error.status, error.headers, media_type="application/problem+json")


class _Gone(Exception):
    """The caller went away."""


class Guard:
    """ASGI middleware. keys: those that are good now; may be replaced while requests come."""

    def __init__(
        self, app: ASGIApp, routes: Sequence[BaseRoute], config: ServiceConfig, keys: Keys, metrics: Metrics
    ) -> None:
        self._app, self._config, self._metrics, self.keys = app, config, metrics, keys
        self._rules = rules_of(routes)
        self._exact = {(method, r.route): r for r in self._rules if "{" not in r.route for method in r.methods}
        self._gates = {
            name: Gate(config.max_in_flight, config.max_at_once, config.max_wait_s) for name in set(_GATES.values())
        }
        self._allowances: dict[str, Allowance] = {}
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or see to it that it is answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(self, scope, send)
        try:
            await request.answer(receive)
        except Problem as problem:
            self._metrics.refused(problem.document["type"].rpartition(":")[2])
            if not request.status:
                await problem_answer(problem)(scope, receive, request.send)
        except _Gone:
            request.status = _GONE
        except Exception:
            request.status = 500
            raise
        finally:
            request.count()

    def rule(self, method: str, path: str) -> Rule:
        """How a path is guarded: as the route that will answer it."""
        if (found := self._exact.get((method, path))) is not None:
            return found
        for rule in self._rules:
            if method in rule.methods and rule.pattern.match(path):
                return rule
        return _UNKNOWN

    def key(self, rule: Rule, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """The caller's key, None where none is asked for. Raises Problem (401, 403)."""
        if not self.keys or rule.scope is None:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        key = self.keys.of(given[0].decode("latin-1")) if len(given) == 1 else None
        if key is None:
            said = "the key is none of ours" if given else "no key was sent"
            raise Problem(
                401,
                "no-key",
                "A key is needed",
                said,
                "Send `Authorization: Bearer <key>`.",
                headers={"WWW-Authenticate": 'Bearer realm="shelfwise"', "Connection": "close"},
            )
        if rule.scope not in key.scopes:
            raise Problem(
                403,
                "scope",
                "The key is not good for this",
                f"key {key.name!r} has no scope {rule.scope!r}",
                f"Use a key with the scope {rule.scope!r}.",
                headers={"Connection": "close"},
            )
        return key

    def allow(self, key: Key | None) -> dict[str, str]:
        """Headers that say what is left of a key's allowance, after this request. Raises Problem (429)."""
        rate = self._config.key_rate if key is None or key.rate is None else key.rate
        if key is None or rate is None:
            return {}
        now = time.monotonic()
        allowance = self._allowances.get(key.name)
        if allowance is None or allowance.rate != rate:
            allowance = self._allowances[key.name] = Allowance(rate, now)
        wait = allowance.take(now)
        whole = int(allowance.most)
        headers = {
            "ratelimit-policy": f'"key";q={whole};w={max(1, round(whole / rate))}',
            "ratelimit": f'"key";r={allowance.left};t={int(wait) + 1}',
        }
        if wait:
            raise Problem(
                429,
                "rate",
                "Too many requests",
                f"key {key.name!r} is allowed {rate:g} requests a second",
                "Wait as long as Retry-After says; send several events in one request.",
                headers=headers | {"Retry-After": str(int(wait) + 1)},
            )
        return headers

    def gate(self, rule: Rule) -> Gate | None:
        """The queue a request waits in, None for one that waits in none."""
        return None if rule.scope not in _GATES else self._gates[_GATES[rule.scope]]

    async def body(self, receive: Receive) -> bytes:
        """The whole body, within its bounds of size and time. Raises Problem (408, 413, 503), _Gone."""
        most, parts, size = self._config.max_body_bytes, [], 0
        try:
            async with asyncio.timeout(self._config.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    size += len(part)
                    self._buffered += len(part)
                    if size > most:
                        raise _closing(
                            413,
                            "body-too-large",
                            "The body is too large",
                            f"more than {most} bytes",
                            "Send less in one request.",
                        )
                    if self._buffered > _BUFFERED_BYTES:
                        raise _closing(
                            503,
                            "busy",
                            "Too much to do",
                            "too many bodies are being read",
                            "Send it again after a second.",
                        )
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise _closing(
                408,
                "body-too-slow",
                "The body came too slowly",
                f"not whole after {self._config.body_s:g} s",
                "Send it again.",
            ) from None
        finally:
            self._buffered -= size


def _closing(status: int, slug: str, title: str, detail: str, remedy: str) -> Problem:
    """A problem after which the connection closes: the rest of the body is not waited for."""
    more = {"Retry-After": "1"} if status == 503 else {}
    return Problem(status, slug, title, detail, remedy, headers={"Connection": "close"} | more)


class _Request:
    """One request on its way through. status: of its answer, 0 before there is one."""

    def __init__(self, guard: Guard, scope: Scope, send: Send) -> None:
        self._guard, self._scope, self._send = guard, scope, send
        self._rule = guard.rule(scope["method"], scope["path"])
        self._key: Key | None = None
        self._headers: dict[str, str] = {}
        self._started = time.perf_counter()
        self.id = request_id.begin()
        self.status = 0

    async def answer(self, receive: Receive) -> None:
        """Check, then let the application answer. Raises Problem, _Gone."""
        guard, rule = self._guard, self._rule
        self._key = guard.key(rule, self._scope["headers"])
        if self._key is not None:
            self._scope.setdefault("state", {})["caller"] = self._key.name
        self._headers = guard.allow(self._key)
        gate = guard.gate(rule)
        if gate is None:
            await guard._app(self._scope, receive, self.send)
            return
        if self._scope["method"] != "GET":
            receive = _again(await guard.body(receive), receive)
        before, entered = gate.enter(), time.perf_counter()
        try:
            await self._in_time(gate, receive)
        finally:
            gate.leave(before, time.perf_counter() - entered)

    async def _in_time(self, gate: Gate, receive: Receive) -> None:
        seconds = self._guard._config.deadline_s
        try:
            async with asyncio.timeout(seconds) as limit, gate.turn:
                await self._guard._app(self._scope, receive, self.send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(
                503,
                "deadline",
                "It took too long",
                f"no answer after {seconds:g} s",
                "Send it again after a second; an event with an event_id counts once.",
                headers={"Retry-After": "1"},
            ) from None

    async def send(self, message: Message) -> None:
        """Pass an answer on, with the request's id and what is left of the allowance."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode()), *ours]
        await self._send(message)

    def count(self) -> None:
        """Count the request, and log it where that is asked for."""
        took, status = time.perf_counter() - self._started, self.status or _GONE
        self._guard._metrics.request(self._rule.route, status, took)
        log_request(self.id, self._rule.route, status, took, self._key.name if self._key else None)


def _again(body: bytes, receive: Receive) -> Receive:
    """A channel that brings a body already read, and then whatever comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def channel() -> Message:
        return left.pop() if left else await receive()

    return channel
