"""Connections: time limits in every state, the reserve for health checks, and what is not supported."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import pytest

from serving.config import ServiceConfig
from serving.http import Keys, new_key
from tests.serving.test_guard import connected, counted, logged, receive_live, received, silent_redis
from tests.serving.test_service import FAST, refused, served, until, url

__all__ = ["url"]

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = FAST.model_copy(update={"head_s": 0.4, "body_s": 0.4, "idle_s": 0.4, "write_s": 0.4})
PATIENT = {"head_s": 60, "body_s": 60, "idle_s": 60, "write_s": 60}


def one_limit(**limit: float) -> ServiceConfig:
    """Settings with this limit, and 60 s for all others."""
    return FAST.model_copy(update=PATIENT | limit)


def test_a_connection_stays_open_longer_than_balancers_keep_theirs() -> None:
    """Most keep an idle one for 60 s; if the service closed it first, a request could arrive on a closed connection."""
    assert ServiceConfig().idle_s > 60


@pytest.mark.parametrize(
    ("name", "sent", "limit"),
    [
        ("nothing", b"", "head_s"),
        ("a part of a head", b"GET /health/li", "head_s"),
        ("line breaks before a request", b"\r\n\r\n", "head_s"),
        ("a part of a second head", LIVE + b"GET /hea", "head_s"),
        ("a response and then nothing", LIVE, "idle_s"),
        (
            "a body that no route reads",
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
            "body_s",
        ),
        ("chunks that do not end", LIVE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "body_s"),
        ("trailers that do not end", LIVE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n", "body_s"),
    ],
)
def test_each_state_of_a_connection_has_its_own_time_limit(url: str, name: str, sent: bytes, limit: str) -> None:
    """All other limits are a minute, so a connection that is closed was closed by this one."""
    with served(url, one_limit(**{limit: 0.3})) as client, connected(client, sent) as connection:
        assert received(connection).count(b'{"status":"live"}') == (LIVE[:20] in sent)


@pytest.mark.parametrize("after", [b"\r\n", b"G", b"1\r\na\r\n"])
def test_bytes_that_complete_no_request_do_not_extend_the_time(url: str, after: bytes) -> None:
    """A byte every 0.1 s for as long as the connection is open, after a response to a request that may have ended."""
    first = LIVE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n" if after[:1] == b"1" else LIVE
    with served(url, SHORT) as client, connected(client, first) as connection:
        receive_live(connection)
        connection.settimeout(0.1)
        for _ in range(100):
            try:
                connection.sendall(after)
                if not connection.recv(65536):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            raise AssertionError("the connection is still open after 10 s")


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (b"CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test\r\n\r\n", 405, "CONNECT is not supported"),
        (LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\x81\x00", 200, "live"),
        (LIVE[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + LIVE, 200, "live"),
        (
            b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
            b"Content-Length: 2\r\n\r\n{}",
            400,
            "Upgrade is not supported",
        ),
        (b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n{}", 400, "problem"),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "not an HTTP/1.1 request"),
    ],
)
def test_what_is_not_supported_is_answered_once_and_the_connection_closed(
    url: str, sent: bytes, status: int, says: str
) -> None:
    """CONNECT, Upgrade, a byte after a body, and TLS: at once, with all time limits at a minute."""
    with served(url, one_limit()) as client, connected(client, sent) as connection:
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert says.encode() in answer
    assert len(re.findall(rb"HTTP/1\.1 \d{3}", answer)) == 1
    assert b"connection: close" in answer.lower()


def test_clients_that_do_not_read_are_disconnected(url: str) -> None:
    """Of 17 responses nothing is read: they fill the buffers of both sides. A reset shows when sending once more."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served(url, one_limit(write_s=0.4)) as client, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((client.base_url.host, client.base_url.port))
        connection.sendall(ask * 17)
        end = time.monotonic() + 8
        while not is_reset(connection):
            assert time.monotonic() < end, "the connection is still open after 8 s"
            time.sleep(0.1)
        assert client.get("/health/live").status_code == 200


def is_reset(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection with data unread."""
    try:
        connection.sendall(b"\r\n")
    except ConnectionError:
        return True
    return False


def test_a_client_that_reads_slowly_gets_the_whole_response(url: str) -> None:
    """Requests for 17 responses, together more than the service buffers, are sent before the first is read."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with served(url, one_limit(idle_s=0.5)) as client, connected(client, ask * 17) as connection:
        time.sleep(0.2)
        answers = received(connection)
    assert answers.count(b"HTTP/1.1 200") == 17
    body = answers.rpartition(b"\r\n\r\n")[2]
    assert json.loads(body)["openapi"].startswith("3.")
    assert answers.count(body) == 17


def test_pipelined_requests_are_answered_in_order(url: str) -> None:
    missing = LIVE.replace(b"/health/live", b"/nowhere")
    with served(url, one_limit(idle_s=0.3)) as client, connected(client, (LIVE + missing) * 3) as connection:
        assert re.findall(rb"HTTP/1.1 (\d+)", received(connection)) == [b"200", b"404"] * 3


def test_a_worker_keeps_a_bounded_number_of_pipelined_requests(url: str) -> None:
    """One request in progress and 16 that wait are answered; the last one announces that the connection is closed."""
    with served(url, one_limit()) as client, connected(client, LIVE * 150) as connection:
        answers = received(connection)
    assert answers.count(b'{"status":"live"}') == 17
    assert answers.count(b"connection: close") == 1


def test_health_checks_are_answered_when_all_connections_are_in_use(url: str) -> None:
    """Two connections are allowed. 40 more are open and silent, and 16 are kept for health checks."""
    with served(url, one_limit().model_copy(update={"max_connections": 2})) as client, contextlib.ExitStack() as others:
        client.close()
        for _ in range(42):
            others.enter_context(connected(client, b""))
        address = str(client.base_url)
        for path in ("/health/live", "/health/ready"):
            for _ in range(20):
                answer = httpx.get(address + path)
                assert answer.status_code == (200 if path.endswith("live") else 503)
                assert b"connection limit" not in answer.content
                assert answer.headers["connection"] == "close"
        refusal = httpx.get(address + "/openapi.json")
        assert refusal.status_code == 503
        assert refusal.json()["title"] == "Too many connections"


def test_connections_kept_for_health_checks_are_free_again(url: str) -> None:
    with served(url, one_limit().model_copy(update={"max_connections": 1})) as client:
        client.close()
        with connected(client, b""):
            for _ in range(50):
                assert httpx.get(f"{client.base_url}/health/live").status_code == 200
        until(lambda: httpx.get(f"{client.base_url}/openapi.json").status_code == 200)


@contextlib.contextmanager
def leaving(client: httpx.Client, data: bytes, reset: bool) -> Iterator[None]:
    """A client that sends some data and then leaves, by closing or by resetting the connection."""
    with connected(client, data) as connection:
        yield
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_is_no_error(url: str, reset: bool) -> None:
    """In the middle of a head or a body, and while one request or the first of three waits for Redis."""
    body = b'{"user_id":"u","item_id":"i","event":"click"}'
    event = b"POST /v1/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    slow = FAST.model_copy(update={"redis_timeout_s": 0.3, "redis_failures": 100})
    with silent_redis() as away, served(away, slow) as client, logged("serving", "uvicorn", "uvicorn.error") as out:
        for data in (event[:20], event[:-5], event, event * 3, LIVE[:-2] + b"Content-Length: 3\r\n\r\n"):
            with leaving(client, data, reset):
                time.sleep(0.05)
        name = "shelfwise_requests_total"
        until(lambda: counted(client).get((name, "/v1/events 503"), 0) == 2, 10)
        samples = counted(client)
    assert {key[1]: n for key, n in samples.items() if key[0] == name and "events" in key[1]} == {
        "/v1/events 499": 1,
        "/v1/events 503": 2,
    }
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert not [line for line in lines if line["level"] in ("ERROR", "CRITICAL") or "exception" in line]


def test_a_head_that_arrives_with_earlier_requests_is_not_too_large(url: str) -> None:
    """14 requests of 6 kB each and a part of the next head in one send; then the rest of it."""
    large = LIVE[:-2] + b"X: " + b"a" * 5973 + b"\r\n\r\n"
    with served(url, one_limit(idle_s=0.5)) as client, connected(client, large * 14 + LIVE[:20]) as connection:
        time.sleep(0.2)
        connection.sendall(LIVE[20:])
        assert received(connection).count(b'{"status":"live"}') == 15


def test_head_is_answered_like_get_without_a_body(url: str) -> None:
    """Also on a connection that is used again, where a body would be read as the next response."""
    with served(url) as client:
        for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (get.status_code, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
            if path != "/metrics":  # whose counts change
                assert head.headers["content-length"] == str(len(get.content))
        assert client.head("/v1/rank").status_code == 405
        assert counted(client)["shelfwise_requests_total", "/health/live 200"] == 2


def test_head_needs_the_same_key_as_get(url: str) -> None:
    with served(url, good=Keys(lines=new_key("shop", ["rank"])[1])) as client:
        assert client.head("/metrics").status_code == 401
        assert client.head("/health/live").status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "GZIP, br"])
def test_a_compressed_body_is_refused_by_name(url: str, coding: str) -> None:
    """The client may go on with the same connection, and an uncompressed body may say so."""
    body = gzip.compress(b'{"limit":1}')
    with served(url) as client:
        for path in ("/v1/rank", "/v1/recommend", "/v1/events"):
            answer = client.post(path, content=body, headers={"Content-Encoding": coding})
            document = refused(answer, 415)
            assert f"Content-Encoding {coding.lower()!r}" in document["detail"]
            assert document["remedy"] == "Send the body uncompressed, and leave out Content-Encoding."
            assert answer.headers["accept-encoding"] == "identity"
            assert "connection" not in answer.headers
        assert client.post("/v1/rank", content=b"{", headers={"Content-Encoding": "identity"}).status_code == 400


@pytest.mark.parametrize("prefix", ["", "/tools/shelfwise"])
def test_the_service_works_under_a_path_prefix(url: str, prefix: str) -> None:
    """Whether the proxy removes the prefix (\"\") or not, links, redirects and the API reference contain it."""
    config = FAST.model_copy(update={"root_path": "/tools/shelfwise", "storefront": True})
    with served(url, config) as client:
        redirect = client.get(f"{prefix}/docs/")
        assert (redirect.status_code, redirect.headers["location"]) == (307, f"{client.base_url}/tools/shelfwise/docs")
        page = client.get(f"{prefix}/docs")
        assert page.status_code == 200
        for link in re.findall(r'(?:href|src)="([^"#]+)"', page.text):
            assert client.get(prefix + "/" + link).status_code == 200, link
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/tools/shelfwise"}]
        assert client.get(f"{prefix}/health/live").status_code == 200
        assert client.get(f"{prefix}/storefront/style.css").status_code == 200
        assert client.post(f"{prefix}/v1/rank", content=b"{").status_code == 400
        assert client.get(f"{prefix}/other/docs").status_code == 404
        assert counted(client)["shelfwise_requests_total", "/health/live 200"] == 1


@pytest.mark.parametrize("path", ["/metrics", "/v1/similar/x"])
def test_a_prefix_does_not_lead_past_the_guard(url: str, path: str) -> None:
    """A path with the prefix once, twice or not at all is answered only with a key, or not found."""
    config = FAST.model_copy(update={"root_path": "/p"})
    with served(url, config, good=Keys(lines=new_key("shop", ["admin"])[1])) as client:
        assert client.get(path).status_code == client.get(f"/p{path}").status_code == 401
        for other in (f"/p/p{path}", f"/px{path}", f"/p%2F{path}", f"//p{path}", f"/%70{path}"):
            assert client.get(other).status_code in (401, 404)


@pytest.mark.parametrize("path", ["shelf", "/shelf/", "//shelf", "/a b", "/a?b"])
def test_an_invalid_prefix_is_refused_by_name(path: str) -> None:
    with pytest.raises(ValueError, match="root_path"):
        ServiceConfig(root_path=path)
