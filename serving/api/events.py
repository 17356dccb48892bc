"""Events as storefronts send them, and their validation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from features.bounds import ATTRIBUTE_NAME, EVENT_MOMENTS, MAX_NUMBER, MAX_POSITION, is_name, is_within
from features.log import GA4, KINDS, Kind
from serving.api import ga4
from serving.api.columns import NAME_RULE, NAME_SCHEMA, EventColumns, check_event_columns
from serving.api.decoding import Device, Id, Query, Refusal, _short, _where, check_no_control, part_id
from serving.store import Event

KIND_OF = {name: Kind(KINDS.index(kind)) for name, kind in ({k: k for k in KINDS} | GA4).items()}
"""Event kind by name: Shelfwise's names and those of Google Analytics 4 (`purchase` is in both)."""

_Placement = Annotated[str, Meta(min_length=1, max_length=ATTRIBUTE_NAME, extra_json_schema=NAME_SCHEMA)]


class EventIn(Struct, forbid_unknown_fields=True):
    """One interaction of a shopper with an item. A GA4 Measurement Protocol body is accepted in its place.

    event: impression, view, click, cart, purchase or rating; or view_item_list, select_item, view_item, add_to_cart.
    event_id: makes retries idempotent. If omitted, it is derived from all other fields; if timestamp is omitted as
    well, a retry is counted again. timestamp: Unix seconds, milliseconds or microseconds, or ISO 8601 (UTC if it has no
    time zone). Defaults to now, as does a timestamp slightly ahead of the service's clock.
    request_id, position: the list that was shown, and the item's position in it, from 0. device: the shopper's device.
    query: the search query that the list answers. columns: of an impression, what its list was ranked with, such as a
    search engine's score; see `RankRequest`. Not needed for lists that this service ranked. placement: the spot in the
    shop where the list was shown, by any name; not needed either if the request for the list named it.
    """

    event: Annotated[str, Meta(extra_json_schema={"enum": list(KIND_OF)})]
    user_id: Id
    item_id: Id
    event_id: Id | None = None
    timestamp: float | str | None = None
    request_id: Id | None = None
    position: Annotated[int, Meta(ge=0, le=MAX_POSITION)] | None = None
    value: Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)] | None = None
    session_id: Id | None = None
    device: Device | None = None
    query: Query | None = None
    columns: EventColumns | None = None
    placement: _Placement | None = None


class Rejected(Struct):
    """A rejected event or item. index: its position in the request. field: the invalid field. message: the reason."""

    index: int
    field: str | None
    message: str


class Derived(Struct):
    """The id derived for an event that was sent without one. index: the event's position in the request."""

    index: int
    event_id: str


class EventsAnswer(Struct):
    """accepted: number of new events stored. duplicates: number already stored. rejected: invalid events, and those of
    new users while the maximum number of users have lists (`user_id`); the others in the request are unaffected."""

    accepted: int
    duplicates: int
    rejected: list[Rejected]
    derived: list[Derived]


class ErasureAnswer(Struct):
    """The user's history has been deleted; the next `shelfwise collect` also removes the user from the log.

    at: Unix seconds. Events after this time are stored again.
    """

    at: float


class Accepted(NamedTuple):
    """A valid event to store. derived: whether its id was derived from its fields."""

    event: Event
    derived: bool


class Refused(NamedTuple):
    """An invalid event. field: the invalid field, None for the event as a whole. message: the reason."""

    field: str | None
    message: str


_EVENT = msgspec.json.Decoder(EventIn)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_SCALES = ((1e9, 1e10, 1e6), (1e12, 1e13, 1e3), (1e15, 1e16, 1.0))
"""(low, high, microseconds per unit) for timestamps in seconds, milliseconds and microseconds, from 2001 to 2286."""


def accept(raw: msgspec.Raw, now: float, future_s: float) -> list[Accepted | Refused]:
    """Validate one part of a body: a single event, or every event of a GA4 body.

    now: Unix seconds. future_s: how far ahead of `now` a timestamp may be, in seconds.
    """
    try:
        return [_accepted(_EVENT.decode(raw), now, future_s)]
    except Refusal as e:
        return [Refused(e.field, e.message)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        if isinstance(e, msgspec.ValidationError) and b'"events"' in bytes(raw):
            return _of_ga4(raw, now, future_s)
        return [Refused(*_where(e))]


def _of_ga4(raw: msgspec.Raw, now: float, future_s: float) -> list[Accepted | Refused]:
    out: list[Accepted | Refused] = []
    try:
        for place, fields, placement in ga4.events_of(raw, now):
            try:
                accepted = _accepted(msgspec.convert(fields, EventIn), now, future_s)
                # Not a field of `EventIn`, so that the derived ID of an event does not depend on it.
                out.append(accepted._replace(event=msgspec.structs.replace(accepted.event, placement=placement)))
            except Refusal as e:
                out.append(Refused(f"{place}.{e.field}", e.message))
            except msgspec.ValidationError as e:
                field, message = _where(e)
                out.append(Refused(f"{place}.{field}", message))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        out = [Refused(*_where(e))]
    return out


def _accepted(given: EventIn, now: float, future_s: float) -> Accepted:
    """The validated event. Raises Refusal naming the field and the reason."""
    if given.event not in KIND_OF:
        raise Refusal("event", f"{_short(given.event)} is not one of {', '.join(KIND_OF)}")
    for name in ("user_id", "item_id", "event_id", "request_id", "session_id"):
        if (sent := getattr(given, name)) is not None:
            setattr(given, name, part_id(name, sent))
    for name in ("device", "query"):
        check_no_control(name, getattr(given, name) or "")
    if given.columns:
        if KIND_OF[given.event] != Kind.IMPRESSION:
            raise Refusal("columns", "only an impression has columns: any other event is an outcome of its list")
        check_event_columns(given.columns)
    if given.placement is not None and not is_name(given.placement):
        raise Refusal("placement", NAME_RULE)
    if given.value is not None and given.value < 0 and given.event != "rating":
        raise Refusal("value", f"{given.value:g} is negative; only ratings may be")
    now_us, sent_us = int(now * 1e6), None if given.timestamp is None else _event_time(given.timestamp)
    if sent_us is not None and sent_us > now_us + future_s * 1e6:
        ahead = (sent_us - now_us) / 1e6
        raise Refusal("timestamp", f"{ahead:.0f} s ahead of the service's clock; the maximum is {future_s:g} s")
    # An event stamped by a clock slightly ahead has already happened. Left in the future, the next ranking misses it.
    at = (now_us if sent_us is None else min(sent_us, now_us)) / 1e6
    event_id = given.event_id or _derived_id(given, now_us if sent_us is None else sent_us)
    event = Event(
        event_id,
        int(KIND_OF[given.event]),
        given.user_id,
        given.item_id,
        at,
        given.request_id,
        given.position,
        given.value,
        given.session_id,
        given.device,
        given.query or None,
        msgspec.json.encode(given.columns).decode() if given.columns else None,
        given.placement,
    )
    return Accepted(event, given.event_id is None)


def _derived_id(given: EventIn, microseconds: int) -> str:
    content = [
        int(KIND_OF[given.event]),
        given.user_id,
        given.item_id,
        microseconds,
        given.request_id,
        given.position,
        given.value,
        given.session_id,
        *filter(None, [given.device]),
        *(["query", given.query] if given.query else []),
        *(["columns", given.columns] if given.columns else []),
        *(["placement", given.placement] if given.placement else []),
    ]
    return "derived-" + blake2b(msgspec.json.encode(content), digest_size=12).hexdigest()


def _event_time(timestamp: float | str) -> int:
    out = microseconds(timestamp)
    if not is_within(out / 1e6, EVENT_MOMENTS):
        raise Refusal("timestamp", f"{_short(str(timestamp))} is not between 1970-01-01 and 2100-01-01")
    return out


def microseconds(timestamp: float | str, field: str = "timestamp") -> int:
    """A timestamp as whole microseconds since 1970, UTC. Raises Refusal naming `field`."""
    if isinstance(timestamp, str):
        try:
            when = datetime.fromisoformat(timestamp)
        except ValueError:
            raise Refusal(field, f"{_short(timestamp)} is not ISO 8601, such as 2025-01-31T12:00:00Z") from None
        return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    for low, high, scale in _SCALES:
        if low <= timestamp < high:
            return round(timestamp * scale)
    raise Refusal(field, f"{timestamp:g} is not Unix seconds, milliseconds or microseconds between 2001 and 2286")
