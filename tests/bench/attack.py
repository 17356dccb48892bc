"""Requests and connections of an attacker, for `tests.bench.hostile`: with the public key of a page, and without a key.

Everything is bytes on a socket, because HTTP libraries refuse to send most of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import httptools

from features.bounds import ID_BYTES

VARIANTS = 8
"""Requests that are generated of each kind, and then sent in turn."""
EVENTS = 1000
CANDIDATES = 1000
_EXPLAINED = 100
PATIENCE_S = 15.0
"""Seconds after which a sender gives up on an answer."""
_KEPT = 4096
"""Bytes of a response's body that are kept, to see whether it is a problem document."""
_HEALTH = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_OPENAPI = _HEALTH.replace(b"/health/live", b"/openapi.json")
_USERS = 16
"""Users of the attacker's events: few, so that their lists are always full."""


class Hostile(NamedTuple):
    """A hostile request. sent: its bytes. answers: number of responses to wait for, if the service does not close."""

    kind: str
    sent: bytes
    answers: int = 1


class Answer(NamedTuple):
    """A response. body: its first bytes."""

    status: int
    body: bytes

    @property
    def is_unexplained(self) -> bool:
        """Whether it is an error of the server other than a refusal with its reason."""
        if self.status < 500:
            return False
        try:
            document = json.loads(self.body)
        except ValueError:
            return True
        return self.status != 503 or not document.get("detail")


@dataclass
class Outcome:
    """What became of an attack.

    sent: number of hostile requests.
    answers: number of responses to a kind by status; of its requests without any, by `closed`, `reset`, `silent` (none
    in time) or `unreadable`.
    connections: number of hostile connections opened by kind. closed: those that the service closed.
    unexplained: kind and response of the server's errors without a reason. seconds: duration of the requests.
    """

    sent: int = 0
    answers: dict[str, Counter[str]] = field(default_factory=dict)
    connections: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def take(self, kind: str, answer: Answer) -> None:
        """Count a response."""
        self.count(kind, str(answer.status))
        if answer.is_unexplained:
            self.unexplained.append(f"{kind}: {answer.status} {answer.body[:300]!r}")

    def count(self, kind: str, what: str) -> None:
        """Count a request that was not answered."""
        self.answers.setdefault(kind, Counter())[what] += 1

    @property
    def statuses(self) -> Counter[str]:
        """`answers` of all kinds together."""
        return sum(self.answers.values(), Counter())


def request(
    method: str, path: str, body: bytes = b"", key: str = "", content_type: str = "application/json", more: str = ""
) -> bytes:
    """The bytes of a request. more: further header lines, each with its line break."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}{more}"
    if body:
        head += f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def strange_id(rng: random.Random, unlike: int) -> str:
    """An ID of the maximum length that is accepted, unlike others with other numbers, in the last characters only."""
    alphabet = rng.choice(("a", "\u202e", "é", "\U0001f600", "字", '"', "\\", "<", "'"))
    number = f"{unlike:07d}"
    return alphabet * ((ID_BYTES - len(number)) // len(alphabet.encode())) + number


def worst_events(rng: random.Random) -> bytes:
    """As many events of one user as a request may have, at one moment and in random order, with short or longest IDs.

    Without IDs and times of their own, so that they are new each time they are sent.
    """
    user, kind = f"attacker-{rng.randrange(_USERS)}", rng.choice(("impression", "click"))
    name, ranks = "a" * rng.choice((0, ID_BYTES - 7)), rng.sample(range(EVENTS), EVENTS)
    return json.dumps([{"event": kind, "user_id": user, "item_id": f"{name}{r:07d}"} for r in ranks]).encode()


def most_candidates(rng: random.Random) -> bytes:
    """As many candidates as a request may have, with strange IDs, to be diversified and partly explained."""
    ids = [strange_id(rng, rng.randrange(10**7)) for _ in range(CANDIDATES)]
    rules = {"diversity": {"lambda": 0.5, "pool": 500}} if rng.random() < 0.5 else {}
    return json.dumps(
        {"user_id": ids[0], "candidates": ids, "explain": True, "limit": _EXPLAINED, "rules": rules}
    ).encode()


def known_candidates(rng: random.Random, items: int) -> bytes:
    """Candidates of the catalogue, as many as a request may have, of which as many as possible are explained."""
    ids = [f"sku-{i:08d}" for i in rng.sample(range(items), min(items, CANDIDATES))]
    user = f"attacker-{rng.randrange(_USERS)}"
    return json.dumps({"user_id": user, "candidates": ids, "explain": True, "limit": _EXPLAINED}).encode()


def cut_json(rng: random.Random) -> bytes:
    """A valid body that is cut off, or has a few random bytes."""
    body = bytearray(json.dumps({"user_id": "u", "candidates": [f"sku-{n:08d}" for n in range(50)]}).encode())
    if rng.random() < 0.5:
        return bytes(body[: rng.randrange(1, len(body) - 1)])
    for _ in range(5):
        body[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(body)


def nested(rng: random.Random) -> bytes:
    """Brackets nested 100,000 levels deep, at the top or within a field."""
    deep = rng.choice((b"[", b'{"a":')) * 100_000
    return rng.choice((b"%b", b'{"candidates":%b', b'{"rules":%b', b'[{"value":%b')) % deep


def huge_number(rng: random.Random) -> bytes:
    """A number with a huge value or a huge number of digits."""
    number = rng.choice(("9" * 100_000, "1e999999999", "-1e400", "0." + "0" * 100_000 + "1", "9223372036854775808"))
    event = '{"event":"click","user_id":"u","item_id":"i","%s":%s}'
    return rng.choice(
        (
            f'{{"limit":{number}}}',
            event % ("timestamp", number),
            event % ("position", number),
            event % ("value", number),
        )
    ).encode()


def not_a_number(rng: random.Random) -> bytes:
    """NaN or Infinity, which JSON has not."""
    name = rng.choice(("NaN", "Infinity", "-Infinity"))
    return f'{{"event":"click","user_id":"u","item_id":"i","value":{name}}}'.encode()


def traversal(rng: random.Random) -> str:
    """A path that leads out of a directory, if it is decoded or joined carelessly."""
    up = rng.choice(("../", "..%2f", "%2e%2e/", "..%5c", "%252e%252e%252f", "..%c0%af", "....//")) * rng.randrange(1, 9)
    root = rng.choice(("/", "/docs/", "/storefront/", "/operator/", "/v1/items/", "/v1/similar/", "//"))
    return root + up + rng.choice(("etc/passwd", "etc/passwd%00.css", "proc/self/environ", "keys.txt", "%ff%fe"))


def chunked(path: str, key: str, *chunks: bytes) -> bytes:
    """A request whose body has these chunks and no end."""
    head = request("POST", path, key=key, more="Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks)


Maker = Callable[[random.Random], bytes]


def kinds(key: str, items: int) -> dict[str, tuple[Maker, int]]:
    """(generator, number of answers to wait for) of every kind of hostile request.

    key: the public key of a page, with the scopes `rank` and `events`. items: number of items in the catalogue.
    """

    def posted(path: str, body: Maker, key: str = key) -> Maker:
        return lambda rng: request("POST", path, body(rng), key)

    def either(body: Maker) -> Maker:
        return lambda rng: request(
            "POST", rng.choice(("/v1/rank", "/v1/recommend", "/v1/events")), body(rng), rng.choice((key, key, ""))
        )

    def guessed(rng: random.Random) -> bytes:
        key = f"swk_{rng.choice(('shop', 'page', 'admin'))}_{rng.randbytes(22).hex()[:43]}"
        return request(*rng.choice((("GET", "/metrics"), ("POST", "/v1/rank"), ("DELETE", "/v1/users/u"))), key=key)

    def other_method(rng: random.Random) -> bytes:
        method = rng.choice(("DELETE", "PATCH", "PUT", "TRACE", "OPTIONS", "PROPFIND", "BREW", "G\x00T"))
        return request(method, rng.choice(("/v1/rank", "/v1/events", "/health/live", "/metrics", "*")), key=key)

    def other_type(rng: random.Random) -> bytes:
        coding, of = rng.choice((("utf-16", "application/json; charset=utf-16"), ("utf-8", "text/html")))
        of = rng.choice((of, "multipart/form-data; boundary=x", "application/x-ndjson", "a" * 1000))
        return request("POST", "/v1/events", '{"event":"click"}\n[]'.encode(coding), key, of)

    def compressed(rng: random.Random) -> bytes:
        body, coding = gzip.compress(bytes(10_000_000)), rng.choice(("gzip", "deflate", "br", "gzip, gzip"))
        return request("POST", "/v1/events", body, key, more=f"Content-Encoding: {coding}\r\n")

    def huge_body(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return request("POST", "/v1/events", b" " * 3_000_000, key)
        return chunked("/v1/rank", key, *[b" " * 65_536] * 46)

    def wrong_length(rng: random.Random) -> bytes:
        more = rng.choice(
            (
                "Content-Length: -1\r\n",
                "Content-Length: 99999999999999999999\r\n",
                "Content-Length: 5\r\nContent-Length: 6\r\n",
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked, identity\r\n",
            )
        )
        return request("POST", "/v1/rank", key=key, more=more) + b"0\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n"

    def many_headers(rng: random.Random) -> bytes:
        count, size = rng.choice(((600, 90), (20_000, 1), (3, 40_000), (1, 60_000)))
        more = "".join(f"X-{n}: {'a' * size}\r\n" for n in range(count))
        return request("GET", rng.choice(("/v1/similar/sku-00000000", "/docs")), key=key, more=more)

    def cut_chunk(rng: random.Random) -> bytes:
        whole = chunked("/v1/events", key, b'[{"event":', b'"click"', b" " * 1000)
        return whole[: rng.randrange(len(whole) - 1000, len(whole) - 1)]

    def retrieval(rng: random.Random) -> bytes:
        query = strange_id(rng, 0)[:200]
        body = json.dumps({"user_id": f"attacker-{rng.randrange(_USERS)}", "limit": 500, "query": query}).encode()
        return request("POST", "/v1/recommend", body, key)

    return {
        "malformed JSON": (either(cut_json), 1),
        "deep nesting": (either(nested), 1),
        "huge number": (either(huge_number), 1),
        "NaN": (either(not_a_number), 1),
        "body beyond the limit": (huge_body, 1),
        "1,000 events of one user": (posted("/v1/events", worst_events), 1),
        "1,000 candidates, strange IDs": (posted("/v1/rank", most_candidates), 1),
        "1,000 known candidates": (posted("/v1/rank", lambda rng: known_candidates(rng, items)), 1),
        "longest retrieval": (retrieval, 1),
        "guessed key": (guessed, 1),
        "no key": (posted("/v1/rank", lambda rng: known_candidates(rng, items), ""), 1),
        "wrong method": (other_method, 1),
        "wrong content type": (other_type, 1),
        "compressed body": (compressed, 1),
        "path traversal": (lambda rng: request("GET", traversal(rng), key=key), 1),
        "many headers": (many_headers, 1),
        "wrong length": (wrong_length, 1),
        "20 pipelined documents": (lambda rng: _OPENAPI * 20, 17),
        "150 pipelined checks": (lambda rng: _HEALTH * 150, 17),
        "chunked body cut off": (cut_chunk, 0),
        "random bytes": (lambda rng: rng.randbytes(rng.randrange(1, 2000)) + b"\r\n\r\n", 1),
    }


def made_up_attack(seed: int, count: int, key: str, items: int) -> Iterator[Hostile]:
    """`count` hostile requests: every kind as often, in random order."""
    rng, made = random.Random(seed), []
    for kind, (maker, answers) in kinds(key, items).items():
        made.append([Hostile(kind, maker(rng), answers) for _ in range(VARIANTS)])
    for n in range(0, count, len(made)):
        of_each = [rng.choice(variants) for variants in made]
        yield from rng.sample(of_each, min(len(of_each), count - n))


class _Responses:
    """Parses the responses of a connection. answers: those that are complete."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Parse more data. Raises httptools.HttpParserError if they are no responses."""
        self._parser.feed_data(data)

    def on_body(self, part: bytes) -> None:
        """Keep the beginning of a body."""
        if len(self._body) < _KEPT:
            self._body += part

    def on_message_complete(self) -> None:
        """Keep a response."""
        self.answers.append(Answer(self._parser.get_status_code(), bytes(self._body)))
        self._body.clear()


async def send(port: int, hostile: Hostile, outcome: Outcome) -> None:
    """Send a hostile request on a connection of its own, read its responses and count them.

    After a request without answers, the connection is reset.
    """
    responses, ended = _Responses(), "silent"
    try:
        async with asyncio.timeout(PATIENCE_S), connection(port) as (reader, writer):
            writing = asyncio.create_task(_write(writer, hostile.sent))
            if not hostile.answers:
                await writing
                writer.transport.abort()
            while len(responses.answers) < hostile.answers:
                data = await reader.read(65_536)
                if not data:
                    break
                responses.feed(data)
            ended = "closed"
            writing.cancel()
    except TimeoutError:
        pass
    except OSError:
        ended = "reset"
    except httptools.HttpParserError as e:
        outcome.unexplained.append(f"{hostile.kind}: a response cannot be parsed: {e}")
        ended = "unreadable"
    for answer in responses.answers:
        outcome.take(hostile.kind, answer)
    if not responses.answers:
        outcome.count(hostile.kind, ended)


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the service may answer and close before it has read everything
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def connection(
    port: int, received_bytes: int = 0
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the service. received_bytes: size of its receive buffer in the kernel; 0 for the default."""
    raw = socket.socket()
    raw.setblocking(False)
    if received_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received_bytes)
    try:
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    except BaseException:
        raw.close()
        raise
    reader, writer = await asyncio.open_connection(sock=raw)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _drip(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes, then: bytes, every_s: float
) -> None:
    """Send `first`, then `then` again and again, until the service closes."""
    writer.write(first)
    ended = asyncio.create_task(_read_all(reader))
    try:
        while then and not ended.done():
            await asyncio.wait({ended}, timeout=every_s)
            await _write(writer, then)
        await ended
    finally:
        ended.cancel()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(65_536):
            pass


async def _never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for more than all buffers hold, and read nothing until the service resets the connection."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await _write(writer, _OPENAPI * 100)
    while not writer.transport.is_closing():
        await asyncio.sleep(0.5)
        writer.write(b"\r\n")  # a reset shows when sending only


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


def _dripping(first: bytes, then: bytes = b"", every_s: float = 1.0) -> Behaviour:
    return lambda reader, writer: _drip(reader, writer, first, then, every_s)


async def _half_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_HEALTH)
    writer.write_eof()
    await _read_all(reader)


def behaviours(key: str) -> dict[str, Behaviour]:
    """What hostile connections do until the service closes them."""
    body = request("POST", "/v1/rank", b"{" + b" " * 10_000, key)
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n"
    return {
        "silent": _dripping(b""),
        "slow head": _dripping(b"GET /health/live HTTP/1.1\r\nX-Slow: ", b"a"),
        "line breaks": _dripping(b"", b"\r\n"),
        "slow body": _dripping(body[:-10_000], b" "),
        "slow chunks": _dripping(chunked("/v1/events", key, b"["), b"1\r\n \r\n"),
        "never reads": _never_read,
        "idle after an answer": _dripping(_HEALTH),
        "half-closed": _half_closed,
        "CONNECT": _dripping(b"CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        "WebSocket": _dripping(_HEALTH[:-2] + upgrade % b"websocket", b"\x81\x00"),
        "HTTP/2": _dripping(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "TLS": _dripping(b"\x16\x03\x01\x02\x00\x01\x00"),
        "bytes after a body": _dripping(request("POST", "/v1/rank", b"{}", key) + b"}" * 1000, b"}"),
    }


async def hold(port: int, kind: str, behaviour: Behaviour, outcome: Outcome, again_s: float) -> None:
    """Keep one hostile connection open, and open another some seconds after the service closes it, until cancelled."""
    while True:
        with contextlib.suppress(OSError):
            async with connection(port, 4096 if kind == "never reads" else 0) as (reader, writer):
                outcome.connections[kind] += 1
                with contextlib.suppress(OSError):
                    await behaviour(reader, writer)
                outcome.closed[kind] += 1
        await asyncio.sleep(again_s)


async def attack(
    port: int,
    key: str,
    items: int,
    requests: int,
    connections: int,
    again_s: float,
    per_second: float,
    senders: int,
    seed: int,
) -> Outcome:
    """Hold the hostile connections while all hostile requests are sent.

    again_s: seconds until another connection takes the place of one that was closed. per_second: requests per second at
    most; 0 for as many as are answered. senders: requests sent at the same time.
    """
    outcome = Outcome()
    # Made before the attack begins: requests that are due meanwhile would all be sent at once.
    plan = enumerate(list(made_up_attack(seed, requests, key, items)))
    held = [
        asyncio.create_task(hold(port, kind, behaviour, outcome, again_s))
        for kind, behaviour in itertools.islice(itertools.cycle(behaviours(key).items()), connections)
    ]
    start = time.perf_counter()

    async def sender() -> None:
        for n, hostile in plan:
            if per_second:
                await asyncio.sleep(max(0.0, start + n / per_second - time.perf_counter()))
            await send(port, hostile, outcome)
            outcome.sent += 1

    await asyncio.gather(*(sender() for _ in range(senders)))
    outcome.seconds = time.perf_counter() - start
    for task in held:
        task.cancel()
    for result in await asyncio.gather(*held, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
    return outcome
