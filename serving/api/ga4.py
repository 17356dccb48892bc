"""Google Analytics 4's e-commerce events as a storefront sends them (the Measurement Protocol), as events of ours.

One body holds several events and each several items; every item is one event here. What analytics alone needs is left
aside, so fields that are not named here are no error. Files of GA4 (BigQuery's export) are read by
`offline.ingest.readers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

_ITEMS = 200
"""Most items that Google takes in one event."""
_EVENTS = 25
"""Most events that Google takes in one body."""


class Ga4Item(Struct):
    """One item of an event. index: its place in the list."""

    item_id: str
    index: int | None = None
    item_list_id: str | None = None
    quantity: float | None = None


class Ga4Parameters(Struct):
    """What is known of an event. request_id: ours, of the ranking that was shown, as a custom parameter; search_term:
    what that list answers, as Google's `view_search_results` has it."""

    items: Annotated[list[Ga4Item], Meta(min_length=1, max_length=_ITEMS)]
    session_id: str | int | None = None
    item_list_id: str | None = None
    request_id: str | None = None
    transaction_id: str | None = None
    search_term: str | None = None


class Ga4Event(Struct):
    """view_item_list, select_item, view_item, add_to_cart or purchase, with its items."""

    name: str
    params: Ga4Parameters
    timestamp_micros: int | None = None


class Ga4Device(Struct):
    """category: mobile, tablet, desktop."""

    category: str | None = None


class Ga4Body(Struct):
    """Events in the shape of GA4's Measurement Protocol; user_id, or else client_id, is the shopper."""

    events: Annotated[list[Ga4Event], Meta(min_length=1, max_length=_EVENTS)]
    user_id: str | None = None
    client_id: str | None = None
    timestamp_micros: int | None = None
    device: Ga4Device | None = None


_BODY = msgspec.json.Decoder(Ga4Body)


def events_of(raw: bytes | msgspec.Raw, now: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, the fields of an `EventIn`) for each item of each event.

    An impression that names no request gets one from shopper, time and list, so that a list is one list. now: Unix
    seconds, for a body without time. Raises what msgspec raises where the body is not of this shape.
    """
    body = _BODY.decode(raw)
    user = body.user_id or body.client_id
    for n, event in enumerate(body.events):
        at = event.timestamp_micros or body.timestamp_micros
        impression = event.name == "view_item_list"
        for k, item in enumerate(event.params.items):
            listed = item.item_list_id or event.params.item_list_id or ""
            request = event.params.request_id
            if request is None and impression:
                request = f"{user}:{at or int(now * 1e6)}:{listed}"
            session, order = event.params.session_id, event.params.transaction_id
            given = {
                "event": event.name,
                "user_id": user,
                "item_id": item.item_id,
                "timestamp": at,
                "request_id": request,
                "position": (k if item.index is None else item.index) if impression else None,
                "session_id": None if session is None else str(session),
                "value": item.quantity,
                "device": body.device.category if body.device else None,
                "query": event.params.search_term,
                # A shop's own number of an order makes the order count once, however often it is sent.
                "event_id": f"{order}:{item.item_id}" if order and event.name == "purchase" else None,
            }
            yield f"events[{n}].params.items[{k}]", {name: v for name, v in given.items() if v is not None}
