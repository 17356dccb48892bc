"""The clients match the service's OpenAPI schema: routes, fields and names."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from typing import Any, get_args, get_type_hints

import pytest

import shelfwise_client
from serving.app import create_app
from serving.config import ServiceConfig
from serving.store import DUPLICATES_S
from shelfwise_client import ServiceError, answers, calls, forms, outbox

SCHEMA = create_app(ServiceConfig(), "redis://nowhere").openapi()
FORMS: dict[str, Any] = SCHEMA["components"]["schemas"]
NOT_SUPPORTED = {
    ("get", "/metrics"): "for Prometheus",
    ("get", "/health/live"): "for the process manager; /health/ready has more information",
}
SENT = {"EventIn": forms.Event, "ItemIn": forms.Item} | {
    name: getattr(forms, name)
    for name in ("Rules", "Condition", "Exclude", "Lift", "Cap", "Diversity", "Pin", "Variants", "PageList")
}
RESULTS = [
    "RankAnswer",
    "PageAnswer",
    "RankedItem",
    "Reason",
    "Applied",
    "Because",
    "Removed",
    "EventsAnswer",
    "Rejected",
    "Derived",
    "SimilarAnswer",
    "SimilarItem",
    "ErasureAnswer",
    "UserAnswer",
    "MergeAnswer",
    "ItemsAnswer",
    "ItemAnswer",
    "ServiceState",
]
CALLS: dict[str, calls.Call[Any]] = {
    "rank": calls.rank("u", ["a"]),
    "recommend": calls.recommend("u"),
    "page": calls.page("u", [{"placement": "home"}]),
    "similar": calls.similar("a/b"),
    "item": calls.item("a"),
    "events": calls.events([]),
    "put_item": calls.put_item({"item_id": "a"}),
    "put_items": calls.put_items([]),
    "delete_item": calls.delete_item("a"),
    "put_user": calls.put_user("u", {}),
    "merge_user": calls.merge_user("u/v", "anon"),
    "delete_user": calls.delete_user("u"),
    "health": calls.health(),
}


def route_of(call: calls.Call[Any]) -> tuple[str, str]:
    """(method, path in the schema) of a call."""
    path = call.path.partition("?")[0]
    matches = [p for p in SCHEMA["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", p), path)]
    assert len(matches) == 1, f"{call.path} is not a route of the service: {list(SCHEMA['paths'])}"
    return call.method.lower(), matches[0]


def test_every_route_is_supported_or_listed_with_a_reason() -> None:
    """Each path and method of the service has a call or a reason for having none, and each call has a route."""
    routes = {(method, path) for path, methods in SCHEMA["paths"].items() for method in methods}
    assert {route_of(call) for call in CALLS.values()} | set(NOT_SUPPORTED) == routes
    public = {n for n in dir(shelfwise_client.Shelfwise) if not n.startswith("_")}
    assert set(CALLS) == public - {"send", "flush", "close", "counts"}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_returns_the_type_that_its_route_documents(name: str) -> None:
    """The result type of a call has the name of the schema."""
    method, path = route_of(CALLS[name])
    responses = SCHEMA["paths"][path][method]["responses"]
    for status in CALLS[name].answered:
        if str(status) in responses and "application/json" in responses[str(status)].get("content", {}):
            form = responses[str(status)]["content"]["application/json"]["schema"]["$ref"]
            assert form.rpartition("/")[2] == CALLS[name].answer.__name__


@pytest.mark.parametrize("name", SENT)
def test_types_of_requests_have_the_fields_of_the_schema(name: str) -> None:
    """The same fields, of which the same are required."""
    typed, schema = SENT[name], FORMS[name]
    assert set(typed.__annotations__) == set(schema["properties"]), f"forms.{typed.__name__} differs from the schema"
    assert typed.__required_keys__ == set(schema.get("required", ()))


@pytest.mark.parametrize("name", RESULTS)
def test_types_of_results_have_the_fields_of_the_schema(name: str) -> None:
    """In the order of the schema, and optional fields have a default."""
    fields = dataclasses.fields(getattr(answers, name))
    assert [f.name for f in fields] == list(FORMS[name]["properties"]), f"answers.{name} differs from the schema"
    required = {f.name for f in fields if f.default is dataclasses.MISSING is f.default_factory}
    assert required == set(FORMS[name].get("required", ()))
    assert FORMS[name]["type"] == "object"


@pytest.mark.parametrize(
    ("name", "call"), [("RankRequest", calls.rank), ("RecommendRequest", calls.recommend), ("PageRequest", calls.page)]
)
def test_ranking_calls_take_the_fields_of_the_schema_as_arguments(name: str, call: Any) -> None:
    """And also a deadline."""
    assert set(inspect.signature(call).parameters) - {"deadline_s"} == set(FORMS[name]["properties"])


def test_send_takes_the_fields_of_the_schema_as_arguments() -> None:
    assert list(inspect.signature(calls.event).parameters) == [
        "event",
        "user_id",
        "item_id",
        *[n for n in FORMS["EventIn"]["properties"] if n not in ("event", "user_id", "item_id")],
    ]


def test_an_error_has_the_fields_of_the_problem_document() -> None:
    """Each field is an attribute; `type` becomes `code`, and `instance` becomes `request_id`."""
    document = {
        "type": "urn:shelfwise:problem:rate",
        "title": "T",
        "status": 429,
        "detail": "D",
        "remedy": "R",
        "field": "F",
        "instance": "urn:shelfwise:request:abc",
    }
    assert set(document) == set(FORMS["ProblemDocument"]["properties"])
    error = ServiceError.of(429, {"x-request-id": "abc"}, json.dumps(document).encode(), 2.0)
    attributes = (error.code, error.title, error.status, error.detail, error.remedy, error.field, error.request_id)
    assert attributes == ("rate", "T", 429, "D", "R", "F", "abc")


def test_event_names_are_those_of_the_schema() -> None:
    """The names that events may have, and the names that rules may use."""
    sent = {name for part in get_args(forms.SentEventName) for name in (get_args(part) or (part,))}
    assert sent == set(FORMS["EventIn"]["properties"]["event"]["enum"])
    ruled = get_args(get_args(get_type_hints(forms.Exclude)["events"])[0])
    assert set(ruled) == set(FORMS["Exclude"]["properties"]["events"]["items"]["enum"])


def test_batches_are_within_the_services_default_limits() -> None:
    """1,000 events and 2,000,000 bytes per request."""
    config = ServiceConfig()
    assert shelfwise_client.Sending().batch <= config.max_events
    assert inspect.signature(outbox.Outbox).parameters["max_bytes"].default <= config.max_body_bytes


def test_events_expire_before_the_service_forgets_their_ids() -> None:
    """At least an hour earlier, so that the last attempt is also recognised."""
    assert outbox.REMEMBERED_S <= DUPLICATES_S - 3600
