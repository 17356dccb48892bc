"""Conversion of Google Analytics 4 e-commerce events (the Measurement Protocol) to Shelfwise events.

A body holds several events, and each event several items; every item becomes one event. Fields that only analytics
needs are ignored, so unknown fields are not an error. GA4 files (the BigQuery export) are read by
`offline/ingest/presets/ga4.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from features.bounds import PLACEHOLDER_IDS, is_name

_ITEMS = 200
"""Maximum number of items in one event, as in GA4."""
_EVENTS = 25
"""Maximum number of events in one body, as in GA4."""


class Ga4Item(Struct):
    """One item of an event. index: its position in the list, in exports `item_list_index`. item_list_id: the placement
    of the list."""

    item_id: str
    index: int | None = None
    item_list_index: int | None = None
    item_list_id: str | None = None
    quantity: float | None = None


class Ga4Parameters(Struct):
    """Parameters of an event. request_id: a custom parameter with the request id of the ranking shown. search_term: the
    search query that the list answers, as in GA4's `view_search_results`."""

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
    """The shopper's device. category: mobile, tablet or desktop."""

    category: str | None = None


class Ga4Body(Struct):
    """A GA4 Measurement Protocol body. The shopper is user_id, or client_id if user_id is missing."""

    events: Annotated[list[Ga4Event], Meta(min_length=1, max_length=_EVENTS)]
    user_id: str | None = None
    client_id: str | None = None
    timestamp_micros: int | None = None
    device: Ga4Device | None = None


_BODY = msgspec.json.Decoder(Ga4Body, strict=False)
"""Reads numbers that are written as texts too, as BigQuery and many tag managers write 64-bit ones."""


def events_of(raw: bytes | msgspec.Raw, now: float) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Yield (path in the body, fields of an `EventIn`, placement) for each item of each event.

    An impression without a request_id gets one derived from shopper, time and list, so that all impressions of a list
    share it. The placement is the ID of the list, None if that is not a valid name. now: Unix seconds, for a body
    without a timestamp. Raises msgspec's errors if the body is not in GA4 form.
    """
    body = _BODY.decode(raw)
    user = body.user_id or body.client_id
    for n, event in enumerate(body.events):
        at = event.timestamp_micros or body.timestamp_micros
        impression = event.name == "view_item_list"
        for k, item in enumerate(event.params.items):
            list_id = item.item_list_id or event.params.item_list_id or ""
            request = event.params.request_id
            if request is None and impression:
                request = f"{user}:{at or int(now * 1e6)}:{list_id}"
            index = item.item_list_index if item.index is None else item.index
            session, order = event.params.session_id, event.params.transaction_id
            fields = {
                "event": event.name,
                "user_id": user,
                "item_id": item.item_id,
                "timestamp": at,
                "request_id": request,
                "position": (k if index is None else index) if impression else None,
                "session_id": None if session is None else str(session),
                "value": item.quantity,
                "device": body.device.category if body.device else None,
                "query": event.params.search_term,
                # The shop's order number as id: the order counts once, however often it is sent.
                "event_id": f"{order}:{item.item_id}" if order and event.name == "purchase" else None,
            }
            given = {name: v for name, v in fields.items() if v is not None}
            yield f"events[{n}].params.items[{k}]", given, _placement(list_id)


def _placement(list_id: str) -> str | None:
    """The placement of a list; None if its ID is missing or is not a valid name."""
    name = list_id.strip()
    return name if is_name(name) and name not in PLACEHOLDER_IDS else None
