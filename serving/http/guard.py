"""Middleware in front of every route: host and origin, API key, rate limit, body limits, admission, deadline, metrics.

It is one ASGI class around everything else, so every path is guarded the same way, whatever answers it. Each route
declares the scope it needs as `security` in its OpenAPI documentation; the rules here are built from that.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.api import Problem, request_id
from serving.config import ServiceConfig
from serving.http.access import Access, lacks_scope
from serving.http.admission import Gate
from serving.http.keys import SCOPES, Allowance, Key, Keys
from serving.http.request_log import log_request
from serving.http.shopper_tokens import HEADER, ShopperTokens, token_problem
from serving.http.sites import Sites
from serving.records import Metrics

_BUFFERED_BYTES = 64_000_000
"""Maximum total size of the bodies one worker reads at the same time."""
_GATES = {"rank": "rank", "events": "write", "items": "write", "merge": "write", "admin": "write"}
_GATES |= {"merchandise:read": "rank", "merchandise": "write"}  # a preview makes two lists
"""Queue by scope. There are two, so that a flood of events does not block rankings; /metrics uses neither."""
_GONE = 499
"""Status recorded in metrics when the client disconnected before there was a response."""


_TOKEN_HEADER = HEADER.lower().encode()

_INTERNAL = re.compile(r"/metrics$|/(v1/)?(operator|merchandising)(/|$)")
"""Paths of the internal port, if there is one."""


class Rule(NamedTuple):
    """Guard rule of a route. scope: the scope a key needs, None if no key is needed.

    port: the port that serves the route if there is an internal port; None for both.
    """

    methods: frozenset[str]
    pattern: re.Pattern[str]
    route: str
    scope: str | None
    port: Literal["public", "internal"] | None = "public"


_UNKNOWN = Rule(frozenset(), re.compile(""), "unknown", None)


def _port_of(path: str) -> Literal["public", "internal"] | None:
    """The port of a path: health checks are on both, and what only operators need is on the internal port."""
    if path.startswith("/health/"):
        return None
    return "internal" if _INTERNAL.match(path) else "public"


def needs(scope: str | None) -> dict[str, Any]:
    """OpenAPI `security` of a route: the scope its key needs, or None for a public route."""
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; use one of {', '.join(SCOPES)}")
    return {"security": [] if scope is None else [{"key": [scope]}]}


def caller(request: Request) -> str | None:
    """Name of the key a request was sent with, None if no key was needed."""
    access: Access = request.state.access
    return access.key.name if access.key else None


def rules_of(routes: Iterable[BaseRoute]) -> list[Rule]:
    """Build the rules of the routes.

    Raises ValueError for a route under /v1 that declares no scope, and for a mounted application or included router,
    since the routes below it would be unguarded.
    """
    rules = []
    for route in routes:
        if not isinstance(route, Route):
            raise ValueError(
                f"{route!r} is not a plain route and cannot be guarded: declare its routes on the application"
            )
        security = (getattr(route, "openapi_extra", None) or {}).get("security")
        if security is None and route.path.startswith("/v1"):
            raise ValueError(f"{route.path} does not declare the scope it needs: pass openapi_extra=needs(...)")
        scope = security[0]["key"][0] if security else None
        rules.append(Rule(frozenset(route.methods or ()), route.path_regex, route.path, scope, _port_of(route.path)))
    return rules


def problem_answer(error: Problem) -> Response:
    """The response for a problem: its document, with the request id as `instance`."""
    document = error.document | {"instance": f"urn:shelfwise:request:{request_id.current()}"}
    return Response(msgspec.json.encode(document), error.status, error.headers, media_type="application/problem+json")


def _with_prefix(scope: Scope, root: str) -> Scope:
    """The request with its prefix in `root_path` and `path`, as ASGI asks, whether or not a proxy removed it."""
    path, raw = scope["path"], scope.get("raw_path", scope["path"].encode())
    if path != root and not path.startswith(f"{root}/"):
        path, raw = root + path, root.encode() + raw
    return {**scope, "root_path": root, "path": path, "raw_path": raw}


def _check_encoding(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raise Problem (415) for a compressed body."""
    for name, value in headers:
        coding = value.decode("latin-1").strip().lower()
        if name == b"content-encoding" and coding not in ("", "identity"):
            raise Problem(
                415,
                "content-encoding",
                "Compressed body",
                f"the body is sent with Content-Encoding {coding[:100]!r}, which is not supported",
                "Send the body uncompressed, and leave out Content-Encoding.",
                headers={"Accept-Encoding": "identity"},
            )


class _Gone(Exception):
    """Raised when the client has disconnected."""


class Guard:
    """ASGI middleware. keys: the valid keys; may be replaced while requests are served. tokens: verifies the shopper
    tokens of requests with a public key."""

    def __init__(
        self,
        app: ASGIApp,
        routes: Sequence[BaseRoute],
        config: ServiceConfig,
        keys: Keys,
        tokens: ShopperTokens,
        metrics: Metrics,
    ) -> None:
        self._app, self._config, self._metrics, self.keys = app, config, metrics, keys
        self._tokens = tokens
        self._rules = rules_of(routes)
        self.sites = Sites(config, keys)
        self._exact = {(method, r.route): r for r in self._rules if "{" not in r.route for method in r.methods}
        self._gates = {
            name: Gate(config.max_in_flight, config.max_at_once, config.max_wait_s) for name in set(_GATES.values())
        }
        self._allowances: dict[str, Allowance] = {}
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request and pass it to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._config.root_path:
            scope = _with_prefix(scope, self._config.root_path)
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
        """The rule of the route that will answer a path."""
        if (exact := self._exact.get((method, path))) is not None:
            return exact
        for rule in self._rules:
            if method in rule.methods and rule.pattern.match(path):
                return rule
        return _UNKNOWN

    def check_port(self, rule: Rule, scope: Scope) -> None:
        """Raise Problem (404) for a route that is not served on the port of the request."""
        internal = self._config.internal_port
        if internal is None or rule.port is None:
            return
        port = (scope.get("server") or ("", None))[1]  # where the connection was accepted, whatever its headers say
        if (rule.port == "internal") != (port == internal):
            raise Problem(
                404,
                "port",
                "Not on this port",
                f"{scope['method']} {scope['path']} is not served on port {port}",
                "/metrics, /operator and /merchandising are on serving.internal_port, all others on serving.port.",
            )

    def key(self, rule: Rule, headers: Iterable[tuple[bytes, bytes]]) -> Key | None:
        """The caller's key, None if no key is needed. Raises Problem (401, 403)."""
        if not self.keys or rule.scope is None:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        key = self.keys.of(given[0].decode("latin-1")) if len(given) == 1 else None
        if key is None:
            detail = "the key is not valid" if given else "no key was sent"
            raise Problem(
                401,
                "no-key",
                "API key required",
                detail,
                "Send `Authorization: Bearer <key>`.",
                headers={"WWW-Authenticate": 'Bearer realm="shelfwise"', "Connection": "close"},
            )
        if rule.scope not in key.scopes:
            raise lacks_scope(key, rule.scope)
        return key

    def access(self, rule: Rule, key: Key | None, headers: Iterable[tuple[bytes, bytes]]) -> Access:
        """The access of a request. Raises Problem (401) for an invalid token, and for events that need one."""
        policy = self._tokens.policy
        if key is None or not key.public or policy == "off":
            return Access(key, policy)
        given = [value for name, value in headers if name == _TOKEN_HEADER]
        if not given:
            if policy == "required" and rule.scope == "events":
                raise token_problem("a public key needs a shopper token to send events, and none was sent")
            return Access(key, policy)
        if len(given) > 1:
            raise token_problem("more than one shopper token was sent")
        return Access(key, policy, self._tokens.shopper(given[0].decode("latin-1")))

    def allow(self, key: Key | None) -> dict[str, str]:
        """Count a request against a key's rate limit. Returns the rate limit headers. Raises Problem (429)."""
        rate = self._config.key_rate if key is None or key.rate is None else key.rate
        if key is None or rate is None:
            return {}
        now = time.monotonic()
        allowance = self._allowances.get(key.name)
        if allowance is None or allowance.rate != rate:
            allowance = self._allowances[key.name] = Allowance(rate, now)
        wait = allowance.take(now)
        quota = int(allowance.most)
        headers = {
            "ratelimit-policy": f'"key";q={quota};w={max(1, round(quota / rate))}',
            "ratelimit": f'"key";r={allowance.left};t={int(wait) + 1}',
        }
        if wait:
            raise Problem(
                429,
                "rate",
                "Too many requests",
                f"key {key.name!r} is limited to {rate:g} requests per second",
                "Wait for the time in Retry-After. Send several events in one request.",
                headers=headers | {"Retry-After": str(int(wait) + 1)},
            )
        return headers

    def gate(self, rule: Rule) -> Gate | None:
        """The queue a request waits in, None if it does not queue."""
        return None if rule.scope not in _GATES else self._gates[_GATES[rule.scope]]

    async def body(self, receive: Receive) -> bytes:
        """Read the whole body, within the limits on size and time. Raises Problem (408, 413, 503) and _Gone."""
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
                            "Body too large",
                            f"the body is larger than {most} bytes",
                            "Split it over several requests.",
                        )
                    if self._buffered > _BUFFERED_BYTES:
                        raise _closing(
                            503,
                            "busy",
                            "Service busy",
                            "this worker is already reading too many request bodies",
                            "Retry after a second.",
                        )
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise _closing(
                408,
                "body-too-slow",
                "Body too slow",
                f"the body was not complete after {self._config.body_s:g} s",
                "Send the request again.",
            ) from None
        finally:
            self._buffered -= size


def _closing(status: int, slug: str, title: str, detail: str, remedy: str) -> Problem:
    """A problem that closes the connection instead of waiting for the rest of the body."""
    more = {"Retry-After": "1"} if status == 503 else {}
    return Problem(status, slug, title, detail, remedy, headers={"Connection": "close"} | more)


class _Request:
    """One request in progress. status: status code of its response, 0 before there is one."""

    def __init__(self, guard: Guard, scope: Scope, send: Send) -> None:
        self._guard, self._scope, self._send = guard, scope, send
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        self._rule = guard.rule(scope["method"], path)
        self._without_body = scope["method"] == "HEAD"
        if self._without_body and self._rule is _UNKNOWN:  # FastAPI's routes answer only GET
            self._rule = guard.rule("GET", path)
            if self._rule is not _UNKNOWN:
                self._scope = {**scope, "method": "GET"}
        self._key: Key | None = None
        self._headers: dict[str, str] = {}
        self._started = time.perf_counter()
        self.id = request_id.begin()
        self.status = 0

    async def answer(self, receive: Receive) -> None:
        """Check the request, then pass it to the application. Raises Problem and _Gone."""
        guard, rule = self._guard, self._rule
        guard.sites.check(self._scope["method"], self._scope["headers"])
        guard.check_port(rule, self._scope)
        self._key = guard.key(rule, self._scope["headers"])
        self._headers = guard.allow(self._key)
        self._scope.setdefault("state", {})["access"] = guard.access(rule, self._key, self._scope["headers"])
        gate = guard.gate(rule)
        if gate is None:
            await self._within_deadline(nullcontext(), receive)
            return
        if self._scope["method"] != "GET":
            receive = _replay_body(await guard.body(receive), receive)
            _check_encoding(self._scope["headers"])  # after the body, so that the connection can be used again
        before, entered = gate.enter(), time.perf_counter()
        try:
            await self._within_deadline(gate.turn, receive)
        finally:
            gate.leave(before, time.perf_counter() - entered)

    async def _within_deadline(self, turn: AbstractAsyncContextManager[None], receive: Receive) -> None:
        seconds = self._guard._config.deadline_s
        try:
            async with asyncio.timeout(seconds) as limit, turn:
                await self._guard._app(self._scope, receive, self.send)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Problem(
                503,
                "deadline",
                "Deadline exceeded",
                f"no response after {seconds:g} s",
                "Retry after a second. An event with an event_id is counted once.",
                headers={"Retry-After": "1"},
            ) from None

    async def send(self, message: Message) -> None:
        """Send a message of the response, adding the request id and the rate limit headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode()), *added]
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)

    def count(self) -> None:
        """Record the request in the metrics, and log it if requests are logged."""
        took, status = time.perf_counter() - self._started, self.status or _GONE
        self._guard._metrics.request(self._rule.route, status, took)
        log_request(self.id, self._rule.route, status, took, self._key.name if self._key else None)


def _replay_body(body: bytes, receive: Receive) -> Receive:
    """An ASGI receive channel that returns a body already read, then whatever `receive` returns."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def channel() -> Message:
        return left.pop() if left else await receive()

    return channel
