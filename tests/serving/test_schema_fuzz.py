"""Requests generated from the OpenAPI schema, and arbitrary bodies, are answered as documented."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, openapi
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from features.bounds import IdError, clean_id
from serving.http.keys import SCOPES, Keys, new_key
from tests.serving.test_service import EVERY, FAST, click, ready, refused, releases, served, url

__all__ = ["releases", "url"]
KEY, LINE = new_key("fuzz", SCOPES)
QUIETLY = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def client(url: str, releases: list[Path]) -> Iterator[httpx.Client]:
    config = FAST.model_copy(update={"merchandising": True})
    with served(url, config, releases[0], good=Keys(lines=LINE)) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        ready(client)
        yield client


def are_ids(values: Sequence[Any]) -> bool:
    """Whether all texts among the values are accepted as IDs."""
    try:
        return all(clean_id(v) for v in values if isinstance(v, str))
    except IdError:
        return False


def check_operation(client: httpx.Client, operation: Any, mode: GenerationMode) -> None:
    """Send generated requests to an operation. Raises if a response does not match the schema."""

    @QUIETLY
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        # The schema cannot express everything: events and items are rejected individually, for example for their
        # timestamp; 461.0 is an integer in JSON schema but not here; IDs are limited in bytes, and placeholders are
        # refused; the attributes and values in rules depend on the catalogue; placements have to be configured; a user
        # is not merged into itself; at most 100 items are explained; and a list in columns has a value for each
        # candidate.
        body = case.body if isinstance(case.body, dict) else {}
        candidates, columns, guest = body.get("candidates"), body.get("columns"), body.get("from")
        in_path = [unquote(value) for value in (case.path_parameters or {}).values()]
        ids = [body.get("user_id"), guest, *(candidates if isinstance(candidates, list) else []), *in_path]
        not_in_schema = (
            isinstance(body.get("limit"), float)
            or body.get("rules") is not None
            or body.get("placement") is not None
            or body.get("placements") is not None
            or bool(body.get("explain"))
            or not are_ids(ids)
            or (isinstance(guest, str) and clean_id(guest) in map(clean_id, in_path))
            or (isinstance(columns, dict) and any(isinstance(value, list) for value in columns.values()))
            or any(isinstance(value, dict) for value in ids)
        )
        # A change of merchandising rules needs their current version, and previews are requests with rules.
        not_in_schema = not_in_schema or operation.path.startswith("/v1/merchandising/")
        excluded = [positive_data_acceptance] if not_in_schema else []
        # Of a search of merchandisers' items and a history, only unknown parameters are generated, which are ignored.
        ignores = operation.method.lower() == "get" and operation.path.startswith("/v1/merchandising/")
        if operation.path in ("/v1/events", "/v1/items") or ignores:
            excluded = [positive_data_acceptance, negative_data_rejection]
        headers = {"Authorization": f"Bearer {KEY}"}
        case.call_and_validate(base_url=str(client.base_url), headers=headers, excluded_checks=excluded)

    ask()


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_that_match_the_schema_are_accepted_and_others_refused(
    client: httpx.Client, mode: GenerationMode
) -> None:
    """Status codes, content types and bodies are as documented; invalid requests and keys are refused."""
    schema = openapi.from_url(f"{client.base_url}/openapi.json")
    operations = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operations.append(result.ok())
    assert {o.path for o in operations} >= {"/v1/rank", "/v1/events", "/v1/similar/{item_id}", "/metrics"}
    for operation in operations:
        if mode is GenerationMode.POSITIVE or len(operation.body) or len(operation.query):
            check_operation(client, operation, mode)


def resident_bytes() -> int:
    """Resident memory of this process, in which the service runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


SHAPES: list[Any] = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"[[]]",
    b"{" * 5000,
    b"[" * 50_000,
    b'"' + b"a" * 100_000,
    b"\xff\xfe",
    b"\x00" * 1000,
    b'{"limit":' + b"9" * 5000 + b"}",
    b'{"limit":1e999}',
    b'{"user_id":"\\ud800"}',
    b'{"candidates":["\\u0000"]}',
    b'{"user_id":"a","user_id":"b"}',
    b" " * 100_000 + b"{}",
    json.dumps({"candidates": ["\U0010ffff" * 256] * 1000}),
    json.dumps({"candidates": EVERY * 50}),
    json.dumps([click()] * 1001),
    json.dumps([click(event_id="e" * 256)] * 9),
    json.dumps({"x" * 10_000: 1}),
    b'{"timestamp":"' + b"9" * 10_000 + b'"}',
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(EVERY),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
fields = ("user_id", "candidates", "limit", "explain", "device", "event", "item_id", "timestamp", "event_id", "value")
bodies = (
    st.binary(max_size=2000)
    | st.sampled_from(SHAPES)
    | st.fixed_dictionaries({}, optional=dict.fromkeys(fields, values)).map(json.dumps)
    | st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(fields, values)), max_size=5).map(
        lambda several: json.dumps([click() | more for more in several])
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(["/v1/rank", "/v1/events"]), body=bodies)
def test_any_body_is_answered_with_a_result_or_a_problem(client: httpx.Client, route: str, body: bytes | str) -> None:
    answer = client.post(route, content=body)
    if answer.status_code >= 300:
        refused(answer, answer.status_code)
        assert answer.status_code in (400, 413, 422)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/similar/%00",
        "/v1/similar/%FF%FE",
        "/v1/similar/" + "a" * 20_000,
        "/v1/similar/..%2f..%2fetc",
        "/v1/similar/%0a",
        "/v1/similar/?limit=1e9",
        "/v1/similar/red-01?limit=1&limit=2",
        "/v1//rank",
        "/%",
        "/v1/rank/",
    ],
)
def test_an_unusual_path_is_answered_with_a_problem(client: httpx.Client, path: str) -> None:
    for method in ("GET", "POST", "DELETE", "PUT", "HEAD", "TRACE"):
        answer = client.request(method, path)
        assert answer.status_code < 500
        if answer.status_code >= 400 and method != "HEAD":
            refused(answer, answer.status_code)


@pytest.mark.slow
def test_memory_does_not_grow_with_invalid_requests(client: httpx.Client) -> None:
    """After a thousand invalid bodies, another thousand leave less than 4 kB each."""

    def send_all() -> None:
        for n in range(1000):
            client.post(("/v1/rank", "/v1/events")[n % 2], content=SHAPES[n // 2 % len(SHAPES)])
        gc.collect()

    send_all()
    before = resident_bytes()
    send_all()
    assert resident_bytes() - before < 1000 * 4096
