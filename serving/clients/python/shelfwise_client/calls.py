"""The API calls: what each one sends, what it returns, and whether it may be retried. No I/O.

`Shelfwise` and `AsyncShelfwise` offer each call as a method with the same name and arguments. deadline_s: maximum
seconds for the whole call, including retries and pauses; None for the client's default.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

from shelfwise_client import answers
from shelfwise_client.forms import Candidate, Columns, Event, Item, PageList, Rules, SentEventName, Value, Variants

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One request. repeatable: whether it is idempotent. answered: status codes that carry a result, not an error."""

    method: str
    path: str
    answer: type[T]
    body: bytes | None = None
    repeatable: bool
    deadline_s: float | None = None
    answered: tuple[int, ...] = (200, 202)


def rank(
    user_id: str | None,
    candidates: Sequence[str | Candidate] | None = None,
    *,
    limit: int | None = None,
    explain: bool = False,
    device: str | None = None,
    query: str | None = None,
    rules: Rules | None = None,
    shown: bool = True,
    columns: Columns | None = None,
    placement: str | None = None,
    items: Sequence[str] | None = None,
    variants: Variants | None = None,
    session_id: str | None = None,
    deadline_s: float | None = None,
) -> Call[answers.RankAnswer]:
    """Rank candidates for a user; without candidates, the whole catalogue if it is small enough.

    shown: as in `recommend`. columns: values of the candidates or of the request, such as a search engine's score; a
    candidate may also be a dictionary with an `id` and its columns. placement: as in `recommend`. items: the items that
    the list is for, such as those in the cart; at most 50. variants: which of the variants of a product may be in the
    list, by default all. session_id: of the visit, for experiments that assign sessions to arms.
    """
    body = _body(
        user_id=user_id,
        candidates=None if candidates is None else list(candidates),
        limit=limit,
        explain=explain or None,
        device=device,
        query=query,
        rules=rules,
        shown=None if shown else False,
        columns=None if columns is None else dict(columns),
        placement=placement,
        items=None if items is None else list(items),
        variants=variants,
        session_id=session_id,
    )
    return _read("POST", "/v1/rank", answers.RankAnswer, deadline_s, body)


def recommend(
    user_id: str | None,
    *,
    limit: int | None = None,
    explain: bool = False,
    device: str | None = None,
    query: str | None = None,
    rules: Rules | None = None,
    shown: bool = True,
    columns: Columns | None = None,
    placement: str | None = None,
    items: Sequence[str] | None = None,
    variants: Variants | None = None,
    session_id: str | None = None,
    deadline_s: float | None = None,
) -> Call[answers.RankAnswer]:
    """Recommend items of the whole catalogue to a user.

    shown: False if the user may never see the list, as in an e-mail. It then counts as seen only once impressions with
    its request_id are sent. columns: as in `rank`, one value each. placement: the spot in the shop that the list is
    for, as configured. limit: by default that of the placement, otherwise 10. items: the items that the list is for,
    such as the one on the page or those in the cart, and which are not in it; at most 50. variants: which variants of
    a product may be in the list, by default the one with the best score. session_id: as in `rank`.
    """
    body = _body(
        user_id=user_id,
        limit=limit,
        explain=explain or None,
        device=device,
        query=query,
        rules=rules,
        shown=None if shown else False,
        columns=None if columns is None else dict(columns),
        placement=placement,
        items=None if items is None else list(items),
        variants=variants,
        session_id=session_id,
    )
    return _read("POST", "/v1/recommend", answers.RankAnswer, deadline_s, body)


def page(
    user_id: str | None,
    placements: Sequence[PageList],
    *,
    device: str | None = None,
    columns: Columns | None = None,
    explain: bool = False,
    shown: bool = True,
    session_id: str | None = None,
    deadline_s: float | None = None,
) -> Call[answers.PageAnswer]:
    """Recommend items for several placements at once, in the order of the page: an item is in the first list only.

    Each list has a request ID of its own, for the events of that list. explain, shown, columns, session_id: of all
    lists, as in `recommend`.
    """
    body = _body(
        user_id=user_id,
        placements=[dict(one) for one in placements],
        device=device,
        columns=None if columns is None else dict(columns),
        explain=explain or None,
        shown=None if shown else False,
        session_id=session_id,
    )
    return _read("POST", "/v1/page", answers.PageAnswer, deadline_s, body)


def similar(item_id: str, *, limit: int = 10, deadline_s: float | None = None) -> Call[answers.SimilarAnswer]:
    """List items with similar text. Raises ServiceError (404) if the item is unknown or has no text."""
    path = f"/v1/similar/{_path_segment('item_id', item_id)}?{urlencode({'limit': limit})}"
    return _read("GET", path, answers.SimilarAnswer, deadline_s)


def item(item_id: str, *, deadline_s: float | None = None) -> Call[answers.ItemAnswer]:
    """Get the current state of an item. Raises ServiceError (404) if it is unknown."""
    return _read("GET", f"/v1/items/{_path_segment('item_id', item_id)}", answers.ItemAnswer, deadline_s)


def health(*, deadline_s: float | None = None) -> Call[answers.ServiceState]:
    """Check whether the service is ready. If it is not, the result gives the reason; this is not an error."""
    return Call(
        method="GET",
        path="/health/ready",
        answer=answers.ServiceState,
        repeatable=True,
        deadline_s=deadline_s,
        answered=(200, 503),
    )


def events(events: Sequence[Event], *, deadline_s: float | None = None) -> Call[answers.EventsAnswer]:
    """Send events now, so that the next ranking uses them; `send` queues them instead.

    Events without an event_id get one, so that retries are counted once. Raises ServiceError, with `rejected`, if none
    of them is valid.
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
    """Write one item, new or existing."""
    return put_items([item], deadline_s=deadline_s)


def put_items(items: Sequence[Item], *, deadline_s: float | None = None) -> Call[answers.ItemsAnswer]:
    """Write items. Not retried once the service may have received it: a retry could undo another client's write."""
    return _write("PUT", "/v1/items", answers.ItemsAnswer, deadline_s, _json(list(items)))


def delete_item(item_id: str, *, deadline_s: float | None = None) -> Call[answers.ItemsAnswer]:
    """Remove an item from all results. Not retried once the service may have received it."""
    return _write("DELETE", f"/v1/items/{_path_segment('item_id', item_id)}", answers.ItemsAnswer, deadline_s)


def put_user(
    user_id: str, attributes: Mapping[str, Value | None], *, deadline_s: float | None = None
) -> Call[answers.UserAnswer]:
    """Write attributes of a user; None clears one, and others stay unchanged. Not retried once the service may have
    received it: a retry could undo another client's write."""
    path = f"/v1/users/{_path_segment('user_id', user_id)}"
    return _write("PUT", path, answers.UserAnswer, deadline_s, _json({"attributes": dict(attributes)}))


def merge_user(user_id: str, from_id: str, *, deadline_s: float | None = None) -> Call[answers.MergeAnswer]:
    """Move what an anonymous shopper did to a user, at login. from_id: the anonymous user ID. Needs a key with scope
    `merge`."""
    return Call(
        method="POST",
        path=f"/v1/users/{_path_segment('user_id', user_id)}/merge",
        answer=answers.MergeAnswer,
        body=_json({"from": from_id}),
        repeatable=True,
        deadline_s=deadline_s,
    )


def delete_user(user_id: str, *, deadline_s: float | None = None) -> Call[answers.ErasureAnswer]:
    """Erase a user. Not retried once the service may have received it: a retry would erase newer events as well."""
    return _write("DELETE", f"/v1/users/{_path_segment('user_id', user_id)}", answers.ErasureAnswer, deadline_s)


def batch(bodies: Sequence[bytes], deadline_s: float) -> Call[answers.EventsAnswer]:
    """Send queued events, already encoded as JSON."""
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
    columns: Mapping[str, Value | None] | None = None,
    placement: str | None = None,
) -> Event:
    """Build an event to queue. `send` returns its event_id, generated if omitted. timestamp: defaults to now.

    request_id, position: the ranking the shopper saw, and the position in it, from 0. They join clicks to lists.
    columns: of an impression, what its list was ranked with; not needed for lists that the service ranked. placement:
    the spot in the shop where the list was shown; not needed if the request for the list named it.
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
        "columns": None if columns is None else dict(columns),
        "placement": placement,
    }
    return identified(given)


def identified(event: Event) -> Event:
    """The event with an id, generated if missing, and without fields that are None."""
    given: dict[str, Any] = {name: value for name, value in event.items() if value is not None}
    given.setdefault("event_id", uuid.uuid4().hex)
    return given  # type: ignore[return-value]


def encoded(event: Event) -> bytes:
    """The event as JSON. Raises ValueError for NaN and TypeError for values that JSON does not support."""
    return _json(event)


def _read(method: str, path: str, answer: type[T], deadline_s: float | None, body: bytes | None = None) -> Call[T]:
    return Call(method=method, path=path, answer=answer, body=body, repeatable=True, deadline_s=deadline_s)


def _write(method: str, path: str, answer: type[T], deadline_s: float | None, body: bytes | None = None) -> Call[T]:
    return Call(method=method, path=path, answer=answer, body=body, repeatable=False, deadline_s=deadline_s)


def _body(**given: Any) -> bytes:
    return _json({name: value for name, value in given.items() if value is not None})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def _path_segment(name: str, given: str) -> str:
    if given in ("", ".", ".."):
        raise ValueError(f"{name} {given!r} cannot be used in a path: pass the id of an item or a user")
    return quote(given, safe="")
