"""The guard in front of the routes: limits, queues, deadlines, metrics and logs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving.api.events import EventIn, Rejected
from serving.api.problem import Problem
from serving.app import create_app, limits
from serving.config import ServiceConfig
from serving.http.admission import Gate
from serving.http.guard import rules_of
from serving.http.request_log import JsonLines, log_request
from serving.records.metrics import Metrics
from serving.store import BulkStore, Pointer
from serving.store.breaker import Breaker
from tests import ROOT
from tests.running import process
from tests.serving.test_service import FAST, click, ready, refused, releases, served, until, url

__all__ = ["releases", "url"]


def test_after_several_failures_in_a_row_no_call_is_made_until_a_pause_is_over() -> None:
    now = [0.0]
    breaker = Breaker(3, 1.0, lambda: now[0])
    for _ in range(2):
        breaker.failed("away")
    assert breaker.allows()
    breaker.succeeded()
    for _ in range(3):
        assert breaker.allows(), "a success in between resets the count"
        breaker.failed("away")
    assert breaker.open
    assert [breaker.allows() for _ in range(3)] == [False] * 3
    now[0] = 1.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False], (
        "one call tests the connection, the others do not wait for it"
    )
    now[0] = 1.5
    breaker.failed("still away")
    now[0] = 2.4
    assert not breaker.allows(), "the pause starts at the failure"
    breaker.succeeded()
    assert breaker.allows()
    assert not breaker.open


def test_a_full_queue_refuses_requests_with_retry_after() -> None:
    gate = Gate(2, 2, 10.0)
    inside = [gate.enter(), gate.enter()]
    with pytest.raises(Problem, match="already has 2 requests in flight") as refusal:
        gate.enter()
    assert (refusal.value.status, refusal.value.headers) == (503, {"Retry-After": "1"})
    gate.leave(inside[0], 0.1)
    gate.enter()
    assert (gate.in_flight, gate.refused) == (2, 1)


def test_requests_that_would_wait_too_long_are_refused_unless_the_queue_is_short() -> None:
    """Each request takes 1 s of the worker, so the ninth would take about 9 s, which is more than 5 s."""
    gate = Gate(1000, 16, 5.0)
    for _ in range(100):
        gate.leave(gate.enter(), 1.0)
    for _ in range(8):
        gate.enter()
    with pytest.raises(Problem) as refusal:
        gate.enter()
    assert refusal.value.headers == {"Retry-After": "9"}
    for before in range(8):  # the k-th request of a queue takes k times as long as one alone
        gate.leave(before, 0.1 * (before + 1))
    old, new = 0.95**8 * (1 - 0.95**100), sum(0.05 * 0.95 ** (8 - k) * k for k in range(1, 9))
    assert gate.expected_s == pytest.approx((1.0 * old + 0.1 * new) / (old + new))


def test_one_slow_request_without_a_queue_does_not_cause_refusals() -> None:
    """A queue of 20 requests of 5 ms each; then one alone takes half a second, as while a release is loaded."""
    gate = Gate(1000, 16, 0.3)
    for _ in range(20):
        inside = [gate.enter() for _ in range(20)]
        for before in inside:
            gate.leave(before, 0.005 * (before + 1))
    gate.leave(gate.enter(), 0.5)
    for _ in range(20):
        gate.enter()
    assert gate.expected_s < 0.3


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=80), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_a_queue_always_knows_the_number_in_flight(steps: list[tuple[bool, float]], most: int) -> None:
    gate, inside = Gate(most, 16, 1.0), []
    for enter, took in steps:
        if enter:
            with contextlib.suppress(Problem):
                inside.append(gate.enter())
        elif inside:
            gate.leave(inside.pop(), took)
        assert gate.in_flight == len(inside) <= most
        assert gate.expected_s >= 0


@contextlib.contextmanager
def connected(client: httpx.Client, data: bytes) -> Iterator[socket.socket]:
    """A connection on which some data has been sent."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as connection:
        connection.sendall(data)
        yield connection


def received(connection: socket.socket) -> bytes:
    """All data received until the other side closes or resets the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def receive_live(connection: socket.socket) -> None:
    """Receive the response to a request for `/health/live`, whose head and body may arrive one after the other."""
    parts = b""
    while not parts.endswith(b'{"status":"live"}'):
        part = connection.recv(65536)
        assert part, f"the connection was closed after {parts!r}"
        parts += part


RANK = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"


def test_slow_clients_are_disconnected(url: str) -> None:
    """Clients that do not complete the head of a request, the first or a later one, or a body."""
    with served(url, FAST.model_copy(update={"head_s": 0.5, "body_s": 0.3})) as client:
        alive = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for head in (b"", b"POST /v1/rank HT", b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\n"):
            with connected(client, head) as connection:
                assert received(connection) == b""
        with connected(client, alive) as connection:
            receive_live(connection)
            connection.sendall(b"GET /health")
            assert received(connection) == b""
        with connected(client, RANK + b'{"limit"') as connection:
            answer = received(connection)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"detail":"the body was not complete after 0.3 s"' in answer


def test_a_request_head_that_does_not_end_is_refused(url: str) -> None:
    patient = FAST.model_copy(update={"head_s": 600})
    with served(url, patient) as client, connected(client, b"GET /health/live HTTP/1.1\r\nX: ") as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"a" * 10_000)
        assert b"HTTP/1.1 2" not in received(connection), "it is refused before the timeout"
        assert client.get("/health/live").status_code == 200


def test_connections_beyond_the_limit_are_refused_at_once(url: str) -> None:
    with served(url, FAST.model_copy(update={"max_connections": 3, "head_s": 5})) as client:
        assert client.get("/health/live").status_code == 200  # the first of three, kept open
        with connected(client, b""), connected(client, b""):
            time.sleep(0.1)
            with connected(client, b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n") as fourth:
                head, _, body = received(fourth).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert json.loads(body)["title"] == "Too many connections"
            assert client.get("/health/live").status_code == 200, "open connections are kept"
        until(lambda: httpx.get(f"{client.base_url}/health/live").status_code == 200)


@contextlib.contextmanager
def silent_redis() -> Iterator[str]:
    """The address of a Redis that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as silent:
        yield f"redis://127.0.0.1:{silent.getsockname()[1]}"


PATIENT = FAST.model_copy(update={"redis_failures": 100, "redis_timeout_s": 0.9, "max_in_flight": 2})


def statuses(client: httpx.Client, method: str, path: str, json: Any, times: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(lambda _: client.request(method, path, json=json), range(times)))


def test_requests_beyond_the_limit_are_refused_at_once_and_counted(releases: list[Path]) -> None:
    """Each ranking waits for Redis; two are in flight and the others are refused. Events have another queue."""
    with silent_redis() as away, served(away, PATIENT, releases[0]) as client:
        ready(client)
        answers = statuses(client, "POST", "/v1/rank", {"user_id": "u", "limit": 1}, 8)
        assert sorted(a.status_code for a in answers) == [200] * 2 + [503] * 6
        busy = [a for a in answers if a.status_code == 503]
        assert all(refused(a, 503)["type"] == "urn:shelfwise:problem:busy" for a in busy)
        assert all(1 <= int(a.headers["retry-after"]) <= 30 for a in busy)
        events = threading.Thread(target=statuses, args=(client, "POST", "/v1/events", click(), 2))
        events.start()
        time.sleep(0.3)
        assert client.post("/v1/rank", json={"limit": 1}).status_code == 200
        events.join()
        assert counted(client)["shelfwise_refused_total", "busy"] == 6


def test_no_request_takes_longer_than_its_deadline(releases: list[Path]) -> None:
    with silent_redis() as away, served(away, PATIENT.model_copy(update={"deadline_s": 0.3}), releases[0]) as client:
        ready(client)
        answer = client.post("/v1/rank", json={"user_id": "u", "limit": 1})
        assert refused(answer, 503)["detail"] == "no response after 0.3 s"
        assert answer.headers["retry-after"] == "1"
        assert client.post("/v1/rank", json={"limit": 1}).status_code == 200


def test_a_request_past_its_deadline_frees_its_turn(releases: list[Path]) -> None:
    """One request is in progress at a time, and all exceed their deadline; then one that does not wait is answered."""
    config = PATIENT.model_copy(update={"deadline_s": 0.3, "max_in_flight": 8, "max_at_once": 1})
    with silent_redis() as away, served(away, config, releases[0]) as client:
        ready(client)
        answers = statuses(client, "POST", "/v1/rank", {"user_id": "u", "limit": 1}, 5)
        assert {refused(a, 503)["type"] for a in answers} == {"urn:shelfwise:problem:deadline"}
        assert client.post("/v1/rank", json={"limit": 1}).status_code == 200


def test_while_redis_is_unavailable_requests_do_not_wait_for_it(releases: list[Path]) -> None:
    """Three timeouts of 0.3 s open the breaker; then rankings and events do not call Redis, only the follower does."""
    config = FAST.model_copy(update={"redis_timeout_s": 0.3})
    with silent_redis() as away, served(away, config, releases[0]) as client:
        ready(client)
        until(lambda: client.post("/v1/rank", json={"user_id": "u", "limit": 1}).json()["took_ms"] < 250)
        answers = [client.post("/v1/rank", json={"user_id": "u", "limit": 1}).json() for _ in range(20)]
        assert all(a["degraded"] for a in answers)
        assert sum(a["took_ms"] >= 250 for a in answers) <= 10, "only one call per pause waits"
        refusals = [client.post("/v1/events", json=click()) for _ in range(5)]
        assert all(refused(a, 503)["detail"] == "Redis did not answer within 0.3 s" for a in refusals)
        assert counted(client)["shelfwise_redis_up", ""] == 0


def counted(client: httpx.Client) -> dict[tuple[str, str], float]:
    """Metric samples by (name, label values)."""
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (s.name, " ".join(s.labels.values())): s.value
        for family in text_string_to_metric_families(text.text)
        for s in family.samples
    }


def test_requests_events_and_state_are_in_the_metrics(url: str, releases: list[Path]) -> None:
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with served(url) as client:
        ready(client)
        client.post("/v1/rank", json={"candidates": ["a", "b", "c"]})
        client.post("/v1/rank", content=b"{")
        client.get("/v1/similar/red-01")
        client.get("/v1/similar/none")
        client.get("/nowhere/at/all")
        client.post("/v1/events", json=[click(event_id="1"), click(event_id="1"), click(""), click(bad=1), 7])
        until(lambda: counted(client)["shelfwise_freshness_seconds_count", ""] >= 1)
        samples = counted(client)
    assert samples["shelfwise_requests_total", "/v1/rank 200"] == 1
    assert samples["shelfwise_requests_total", "/v1/rank 400"] == 1
    assert samples["shelfwise_requests_total", "/v1/similar/{item_id:path} 200"] == 1
    assert samples["shelfwise_requests_total", "/v1/similar/{item_id:path} 404"] == 1
    assert samples["shelfwise_requests_total", "unknown 404"] == 1
    assert samples["shelfwise_request_seconds_count", "/v1/rank"] == 2
    assert (samples["shelfwise_candidates_sum", ""], samples["shelfwise_candidates_count", ""]) == (3, 1)
    assert [samples["shelfwise_events_total", o] for o in ("accepted", "duplicate")] == [1, 1]
    assert [samples["shelfwise_events_rejected_total", f] for f in ("item_id", "unknown", "none")] == [1, 1, 1]
    assert samples["shelfwise_freshness_seconds_bucket", "1.0"] == samples["shelfwise_freshness_seconds_count", ""]
    assert samples["shelfwise_release_info", releases[0].name] == 1
    assert samples["shelfwise_redis_up", ""] == 1
    assert samples["shelfwise_degraded_total", ""] == 0


def test_after_a_swap_the_metrics_name_only_the_new_release() -> None:
    metrics = Metrics()
    metrics.release("one")
    metrics.release("two")
    lines = metrics.exposition().decode().splitlines()
    assert 'shelfwise_release_info{release="one"} 0.0' in lines
    assert 'shelfwise_release_info{release="two"} 1.0' in lines


@given(st.lists(st.text(max_size=20) | st.none(), max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_number_of_labels_is_bounded_for_any_input(fields: list[str | None]) -> None:
    metrics = Metrics()
    metrics.rejected([Rejected(n, field, "why") for n, field in enumerate(fields)])
    families = text_string_to_metric_families(metrics.exposition().decode())
    labels = {s.labels["field"] for f in families for s in f.samples if f.name == "shelfwise_events_rejected"}
    assert labels <= {*EventIn.__struct_fields__, "unknown", "none"}


@contextlib.contextmanager
def logged(*names: str) -> Iterator[io.StringIO]:
    """Log output of these loggers at every level, as JSON lines."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield out
    finally:
        for name, level in before.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)


def test_nothing_about_shoppers_is_logged(url: str, releases: list[Path]) -> None:
    """Not even at debug level, or when a shopper's stored history is invalid."""
    with (
        logged("serving", "uvicorn") as out,
        redis.Redis.from_url(url) as raw,
        served(url, FAST, releases[0]) as client,
    ):
        ready(client)
        raw.lpush("sw:{ann-77}:e", b"?")
        client.post("/v1/rank", json={"user_id": "ann-77", "candidates": ["hat-88"]})
        client.post("/v1/rank", json={"user_id": "ann\n-77", "candidates": ["hat-88"]})
        client.post("/v1/events", json=[click("hat-88", "ann-77"), click("hat-88", "ann-77", ann_77=1)])
        client.get("/v1/similar/hat-88")
        client.get("/v1/users/ann-77")
        raw.delete("sw:{ann-77}:e")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert "ann" not in out.getvalue()
    assert "hat" not in out.getvalue()
    assert "127.0.0.1" not in out.getvalue()
    requests = [line for line in lines if line["logger"] == "serving.requests" and line["route"] == "/v1/rank"]
    assert [line["status"] for line in requests] == [200, 422]
    assert all(len(line["request_id"]) == 32 and line["ms"] > 0 for line in requests)


def test_each_log_record_is_one_line_of_json() -> None:
    with logged("serving.requests") as out:
        log_request("r", "/v1/rank", 200, 0.0123, "shop")
        logging.getLogger("serving.requests").warning("two\nlines and a %s", '"quote"')
        try:
            raise ValueError("why\nnot")
        except ValueError:
            logging.getLogger("serving.requests").exception("it failed")
    first, second, third = (json.loads(line) for line in out.getvalue().splitlines())
    assert {k: first[k] for k in ("request_id", "route", "status", "ms", "key")} == {
        "request_id": "r",
        "route": "/v1/rank",
        "status": 200,
        "ms": 12.3,
        "key": "shop",
    }
    assert second["message"] == 'two\nlines and a "quote"'
    assert "ValueError: why" in third["exception"]


@pytest.mark.parametrize(("key", "value"), [("max_in_flight", 0), ("deadline_s", 0), ("log", "xml"), ("key_rate", 0)])
def test_an_invalid_setting_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        ServiceConfig.model_validate({key: value})


def test_the_guide_has_the_actual_settings_defaults_and_metrics() -> None:
    """docs/serving.md: its table of limits has settings that exist, with their defaults, and it lists all metrics."""
    guide = (ROOT / "docs/serving.md").read_text("utf-8")
    fields = ServiceConfig.model_fields
    bounds = guide.split("## Limits")[1].split("## ")[0]
    for names, defaults in re.findall(r"^\| (`.*?`) \| ([\d., ]+?) \|", bounds, re.MULTILINE):
        for name, default in zip(re.findall(r"`(\w+)`", names), default_values(defaults), strict=True):
            assert fields[name].default == default, name
    exposed = Metrics().exposition().decode()
    families = {f.name for f in text_string_to_metric_families(exposed)}
    named = {name.removesuffix("_total") for name in re.findall(r"`(shelfwise_\w+?)(?:\{.*?\})?`", guide)}
    assert named == {name for name in families if not name.endswith("_created")}


def default_values(cell: str) -> list[float]:
    """The numbers in a table cell: `2,000,000` is one, `128, 1.0` are two."""
    return [float(number.replace(",", "")) for number in cell.split(", ")]


@contextlib.contextmanager
def on_two_ports(url: str, config: ServiceConfig) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Clients of the public and the internal port of one service, which runs in a thread."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    public, internal = (s.getsockname()[1] for s in sockets)
    app = create_app(config.model_copy(update={"port": public, "internal_port": internal}), url)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **limits(config)))
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{public}") as one,
            httpx.Client(base_url=f"http://127.0.0.1:{internal}") as two,
        ):
            until(lambda: server.started)
            yield one, two
    finally:
        server.should_exit = True
        thread.join()
        for s in sockets:
            s.close()


def test_metrics_and_the_operator_page_are_only_on_the_internal_port(url: str) -> None:
    """Every route is on one of the two ports, and health checks are on both. A Host header does not change the port."""
    config = FAST.model_copy(update={"operator": True, "merchandising": True})
    with on_two_ports(url, config) as (public, internal):
        paths = {r.route for r in rules_of(create_app(config, url).routes)}
        pages = ("/operator", "/v1/operator", "/merchandising", "/v1/merchandising")
        only_internal = {p for p in paths if p == "/metrics" or p.startswith(pages)}
        assert {"/metrics", "/operator", "/operator/operator.js", "/v1/operator/promote"} <= only_internal
        assert {"/merchandising", "/v1/merchandising", "/v1/merchandising/rules/{rule_id}"} <= only_internal
        forged = {"Host": f"127.0.0.1:{internal.base_url.port}", "X-Forwarded-Port": str(internal.base_url.port)}
        for path in only_internal:
            post = path.endswith(("promote", "rollback", "preview", "undo"))
            method = "POST" if post else "PUT" if "{" in path else "GET"
            document = refused(public.request(method, path, headers=forged), 404)
            assert document["type"] == "urn:shelfwise:problem:port"
            found = internal.request(method, path)
            assert found.status_code != 404 or found.json()["type"] != "urn:shelfwise:problem:port", path
        for method, path in (("POST", "/v1/rank"), ("DELETE", "/v1/users/u"), ("GET", "/docs"), ("GET", "/nowhere")):
            assert refused(internal.request(method, path), 404)["type"] == "urn:shelfwise:problem:port"
        assert public.post("/v1/rank", content=b"{").status_code != 404
        for client in (public, internal):
            assert client.get("/health/live").status_code == 200


def test_the_two_ports_must_differ() -> None:
    with pytest.raises(ValueError, match="internal_port is 8000, and so is port: use another one"):
        ServiceConfig(internal_port=8000)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/live").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_several_workers_serve_both_ports(url: str, releases: list[Path]) -> None:
    """Any worker answers on either port, with the metrics of both: 2 workers that serve the release.

    They stop if the process that started them is killed.
    """
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with socket.create_server(("127.0.0.1", 0)) as free:
        internal = free.getsockname()[1]
    with process(url, workers=2, internal_port=internal) as running:
        with httpx.Client(base_url=f"http://127.0.0.1:{internal}") as client:
            until(lambda: counted(client)["shelfwise_release_info", releases[0].name] == 2)
        assert httpx.get(f"{running.address}/metrics").status_code == 404
        assert httpx.post(f"{running.address}/v1/rank", json={}).status_code == 200
    until(lambda: not answers(running.address), 20)
