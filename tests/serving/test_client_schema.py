"""The clients and the service speak of the same things: routes, fields and names are held to the OpenAPI schema."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any, get_args, get_type_hints

import pytest

import shelfwise_client
from serving.app import create_app
from serving.config import ServiceConfig
from serving.store import DUPLICATES_S
from shelfwise_client import ServiceError, answers, calls, forms, outbox

SCHEMA = create_app(ServiceConfig(), "redis://nowhere").openapi()
FORMS: dict[str, Any] = SCHEMA["components"]["schemas"]
NOT_OFFERED = {
    ("get", "/metrics"): "for Prometheus, which scrapes it itself",
    ("get", "/health/live"): "for whoever restarts the process; /health/ready says more",
}
SENT = {"EventIn": forms.Event, "ItemIn": forms.Item} | {
    name: getattr(forms, name) for name in ("Rules", "Condition", "Exclude", "Lift", "Cap", "Diversity", "Pin")
}
ANSWERED = [
    "RankAnswer",
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
    "ItemsAnswer",
    "ItemAnswer",
    "ServiceState",
]
MADE = {
    "rank": calls.rank("u", ["a"]),
    "recommend": calls.recommend("u"),
    "similar": calls.similar("a/b"),
    "item": calls.item("a"),
    "events": calls.events([]),
    "put_item": calls.put_item({"item_id": "a"}),
    "put_items": calls.put_items([]),
    "delete_item": calls.delete_item("a"),
    "delete_user": calls.delete_user("u"),
    "health": calls.health(),
}


def route_of(call: calls.Call[Any]) -> tuple[str, str]:
    """(method, path of the schema) of a call."""
    path, (stem, _, last) = call.path.partition("?")[0], call.path.partition("?")[0].rpartition("/")
    found = [p for p in SCHEMA["paths"] if p == path or (p.rpartition("/")[0] == stem and "{" in p and last)]
    assert len(found) == 1, f"{call.path} is no route of the service: {list(SCHEMA['paths'])}"
    return call.method.lower(), found[0]


def test_every_route_is_offered_or_listed_as_not() -> None:
    """Each path and method of the service has a call, or a reason why not; and no call has none."""
    routes = {(method, path) for path, methods in SCHEMA["paths"].items() for method in methods}
    assert {route_of(call) for call in MADE.values()} | set(NOT_OFFERED) == routes
    public = {n for n in dir(shelfwise_client.Shelfwise) if not n.startswith("_")}
    assert set(MADE) == public - {"send", "flush", "close", "counts"}


@pytest.mark.parametrize("name", MADE)
def test_an_answer_has_the_form_that_the_route_documents(name: str) -> None:
    """The type a call answers is the schema's, by name."""
    method, path = route_of(MADE[name])
    responses = SCHEMA["paths"][path][method]["responses"]
    for status in MADE[name].answered:
        if str(status) in responses and "application/json" in responses[str(status)].get("content", {}):
            form = responses[str(status)]["content"]["application/json"]["schema"]["$ref"]
            assert form.rpartition("/")[2] == MADE[name].answer.__name__


@pytest.mark.parametrize("name", SENT)
def test_what_is_sent_has_the_schemas_fields(name: str) -> None:
    """No field more, none less, and those that must be there are the same."""
    typed, schema = SENT[name], FORMS[name]
    assert set(typed.__annotations__) == set(schema["properties"]), f"forms.{typed.__name__} differs from the schema"
    assert typed.__required_keys__ == set(schema.get("required", ()))


@pytest.mark.parametrize("name", ANSWERED)
def test_what_is_answered_has_the_schemas_fields(name: str) -> None:
    """In the schema's order, and a field that may be missing has a value for that."""
    fields = dataclasses.fields(getattr(answers, name))
    assert [f.name for f in fields] == list(FORMS[name]["properties"]), f"answers.{name} differs from the schema"
    must = {f.name for f in fields if f.default is dataclasses.MISSING}
    assert must == set(FORMS[name].get("required", ()))
    assert FORMS[name]["type"] == "object"


@pytest.mark.parametrize(("name", "call"), [("RankRequest", calls.rank), ("RecommendRequest", calls.recommend)])
def test_a_ranking_takes_the_schemas_fields_as_arguments(name: str, call: Any) -> None:
    """And a deadline."""
    assert set(inspect.signature(call).parameters) - {"deadline_s"} == set(FORMS[name]["properties"])


def test_a_queued_event_takes_the_schemas_fields_as_arguments() -> None:
    assert list(inspect.signature(calls.event).parameters) == [
        "event",
        "user_id",
        "item_id",
        *[n for n in FORMS["EventIn"]["properties"] if n not in ("event", "user_id", "item_id")],
    ]


def test_an_error_keeps_what_a_problem_document_says() -> None:
    """Each field of it is an attribute, `type` as `code` and `instance` as `request_id`."""
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
    said = (error.code, error.title, error.status, error.detail, error.remedy, error.field, error.request_id)
    assert said == ("rate", "T", 429, "D", "R", "F", "abc")


def test_names_of_events_are_the_schemas() -> None:
    """Those an event may have, and those a rule may name."""
    ours = {name for part in get_args(forms.SentEventName) for name in (get_args(part) or (part,))}
    assert ours == set(FORMS["EventIn"]["properties"]["event"]["enum"])
    ruled = get_args(get_args(get_type_hints(forms.Exclude)["events"])[0])
    assert set(ruled) == set(FORMS["Exclude"]["properties"]["events"]["items"]["enum"])


def test_batches_are_within_what_the_service_takes_by_default() -> None:
    """1,000 events and 2,000,000 bytes a request."""
    config = ServiceConfig()
    assert shelfwise_client.Sending().batch <= config.max_events
    assert inspect.signature(outbox.Outbox).parameters["max_bytes"].default <= config.max_body_bytes


def test_events_are_given_up_before_the_service_forgets_their_ids() -> None:
    """With an hour to spare, so that the last attempt, too, is known again."""
    assert outbox.REMEMBERED_S <= DUPLICATES_S - 3600
