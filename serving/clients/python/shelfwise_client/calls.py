"""The calls there are: what each sends, what it answers, and whether it may be sent twice. No I/O.

`Shelfwise` and `AsyncShelfwise` offer each under its name here, with the same arguments. deadline_s: seconds in which a
call ends, attempts and pauses and all; the client's own where it is None.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from shelfwise_client import answers
from shelfwise_client.forms import Event, Item, Rules, SentEventName

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request. repeatable: twice is once. answered: statuses that bring an answer and no error."""

    method: str
    path: str
    answer: type[T]
    body: bytes | None = None
    repeatable: bool
    deadline_s: float | None = None
    answered: tuple[int, ...] = (200, 202)


def rank(
    user_id: str | None,
    candidates: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    explain: bool = False,
    device: str | None = None,
    query: str | None = None,
    rules: Rules | None = None,
    deadline_s: float | None = None,
) -> Call[answers.RankAnswer]:
    """Candidates in order for a user; without candidates the whole catalogue, where it is small enough."""
    given = None if candidates is None else list(candidates)
    body = _said(
        user_id=user_id, candidates=given, limit=limit, explain=explain, device=device, query=query, rules=rules
    )
    return _read("POST", "/v1/rank", answers.RankAnswer, deadline_s, body)


def recommend(
    user_id: str | None,
    *,
    limit: int = 10,
    explain: bool = False,
    device: str | None = None,
    query: str | None = None,
    rules: Rules | None = None,
    deadline_s: float | None = None,
) -> Call[answers.RankAnswer]:
    """A list for a user out of the whole catalogue."""
    body = _said(user_id=user_id, limit=limit, explain=explain, device=device, query=query, rules=rules)
    return _read("POST", "/v1/recommend", answers.RankAnswer, deadline_s, body)


def similar(item_id: str, *, limit: int = 10, deadline_s: float | None = None) -> Call[answers.SimilarAnswer]:
    """Items alike by text. Raises ServiceError (404) for an item that has none."""
    path = f"/v1/similar/{_part('item_id', item_id)}?{urlencode({'limit': limit})}"
    return _read("GET", path, answers.SimilarAnswer, deadline_s)


def item(item_id: str, *, deadline_s: float | None = None) -> Call[answers.ItemAnswer]:
    """What is known of an item. Raises ServiceError (404) where that is nothing."""
    return _read("GET", f"/v1/items/{_part('item_id', item_id)}", answers.ItemAnswer, deadline_s)


def health(*, deadline_s: float | None = None) -> Call[answers.ServiceState]:
    """Whether the service ranks, and if not, why: an answer either way."""
    return Call(
        method="GET",
        path="/health/ready",
        answer=answers.ServiceState,
        repeatable=True,
        deadline_s=deadline_s,
        answered=(200, 503),
    )


def events(events: Sequence[Event], *, deadline_s: float | None = None) -> Call[answers.EventsAnswer]:
    """Events at once, known to the very next ranking; `send` queues them instead.

    Each gets an event_id where it has none, so that being sent twice counts once. Raises ServiceError, with its
    `rejected`, where none of them was good.
    """
    return Call(
        method="POST",
        path="/v1/events",
        answer=answers.EventsAnswer,
        body=_json([identified(e) for e in events]),
        repeatable=True,
        deadline_s=deadline_s,
    )


def put_item(item: Item, *, deadline_s: float | None = None) -> Call[answers.ItemsAnswer]:
    """Write an item, new or known."""
    return put_items([item], deadline_s=deadline_s)


def put_items(items: Sequence[Item], *, deadline_s: float | None = None) -> Call[answers.ItemsAnswer]:
    """Write items. Not tried again once it may have been done: it could undo what another wrote in between."""
    return _write("PUT", "/v1/items", answers.ItemsAnswer, deadline_s, _json(list(items)))


def delete_item(item_id: str, *, deadline_s: float | None = None) -> Call[answers.ItemsAnswer]:
    """Take an item out of every answer. Not tried again once it may have been done."""
    return _write("DELETE", f"/v1/items/{_part('item_id', item_id)}", answers.ItemsAnswer, deadline_s)


def delete_user(user_id: str, *, deadline_s: float | None = None) -> Call[answers.ErasureAnswer]:
    """Erase a user. Not tried again once it may have been done: what the user did in between would go, too."""
    return _write("DELETE", f"/v1/users/{_part('user_id', user_id)}", answers.ErasureAnswer, deadline_s)


def batch(bodies: Sequence[bytes], deadline_s: float) -> Call[answers.EventsAnswer]:
    """Events of the queue, each as JSON already."""
    return Call(
        method="POST",
        path="/v1/events",
        answer=answers.EventsAnswer,
        body=b"[" + b",".join(bodies) + b"]",
        repeatable=True,
        deadline_s=deadline_s,
    )


def event(
    event: SentEventName,
    user_id: str,
    item_id: str,
    *,
    event_id: str | None = None,
    timestamp: float | str | None = None,
    request_id: str | None = None,
    position: int | None = None,
    value: float | None = None,
    session_id: str | None = None,
    device: str | None = None,
    query: str | None = None,
) -> Event:
    """An event as it is queued: with an id, which `send` answers, and the moment, now where none is given.

    request_id, position: of the ranking that the shopper saw, and the place in it from 0; clicks are joined by them.
    """
    given: Event = {
        "event": event,
        "user_id": user_id,
        "item_id": item_id,
        "event_id": event_id,
        "timestamp": round(time.time(), 6) if timestamp is None else timestamp,
        "request_id": request_id,
        "position": position,
        "value": value,
        "session_id": session_id,
        "device": device,
        "query": query,
    }
    return identified(given)


def identified(event: Event) -> Event:
    """The event with an id; what is None is left out."""
    given: dict[str, Any] = {name: value for name, value in event.items() if value is not None}
    given.setdefault("event_id", uuid.uuid4().hex)
    return given  # type: ignore[return-value]


def encoded(event: Event) -> bytes:
    """The event as JSON. Raises ValueError for NaN, TypeError for what JSON does not know."""
    return _json(event)


def _read(method: str, path: str, answer: type[T], deadline_s: float | None, body: bytes | None = None) -> Call[T]:
    return Call(method=method, path=path, answer=answer, body=body, repeatable=True, deadline_s=deadline_s)


def _write(method: str, path: str, answer: type[T], deadline_s: float | None, body: bytes | None = None) -> Call[T]:
    return Call(method=method, path=path, answer=answer, body=body, repeatable=False, deadline_s=deadline_s)


def _said(**given: Any) -> bytes:
    return _json({name: value for name, value in given.items() if value is not None and value is not False})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _part(name: str, given: str) -> str:
    if given in ("", ".", ".."):
        raise ValueError(f"{name} is {given!r}, which cannot stand in a path: give the id of an item or a user")
    return quote(given, safe="")
