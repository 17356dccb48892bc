"""Events as storefronts send them, and how one is accepted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from features.log import GA4, KINDS, Kind
from serving.api import ga4
from serving.api.decoding import Device, Id, Query, Refusal, _short, _where, check_no_control
from serving.store import Event

KIND_OF = {name: Kind(KINDS.index(ours)) for name, ours in ({k: k for k in KINDS} | GA4).items()}
"""Our names of events, and those of Google Analytics 4 (`purchase` is both)."""


class EventIn(Struct, forbid_unknown_fields=True):
    """Something a shopper did with an item; a body of GA4's Measurement Protocol may stand in its place.

    event: impression, view, click, cart, purchase or rating; or view_item_list, select_item, view_item, add_to_cart.
    event_id: makes a retry harmless. Without it, it is derived from all other fields; without a timestamp either, a
    retry counts again. timestamp: Unix seconds, milliseconds or microseconds, or ISO 8601 (UTC where it names no
    zone); now where missing, and where it is a little ahead of the service's clock.
    request_id, position: the shown list it belongs to, and the place in it from 0. device: what the shopper looks at
    the shop with. query: what was searched for, where the list answers it.
    """

    event: Annotated[str, Meta(extra_json_schema={"enum": list(KIND_OF)})]
    user_id: Id
    item_id: Id
    event_id: Id | None = None
    timestamp: float | str | None = None
    request_id: Id | None = None
    position: Annotated[int, Meta(ge=0, le=32767)] | None = None
    value: float | None = None
    session_id: Id | None = None
    device: Device | None = None
    query: Query | None = None


class Rejected(Struct):
    """An event that was not taken: its place in the request, the field at fault, and why."""

    index: int
    field: str | None
    message: str


class Derived(Struct):
    """The id given to an event that came without one."""

    index: int
    event_id: str


class EventsAnswer(Struct):
    """accepted: new and from now on known. duplicates: known before. Each rejected event stands alone."""

    accepted: int
    duplicates: int
    rejected: list[Rejected]
    derived: list[Derived]


class ErasureAnswer(Struct):
    """The user's lists are gone from this moment on; `shelfwise collect` takes the user out of the log.

    at: Unix seconds; what the user does after it is kept again.
    """

    at: float


class Accepted(NamedTuple):
    """An event to be stored, and whether its id was derived."""

    event: Event
    derived: bool


class Refused(NamedTuple):
    """An event that is not taken: the field at fault, and why."""

    field: str | None
    message: str


_EVENT = msgspec.json.Decoder(EventIn)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


_SCALES = ((1e9, 1e10, 1e6), (1e12, 1e13, 1e3), (1e15, 1e16, 1.0))
"""From, below, microseconds in one: seconds, milliseconds and microseconds between 2001 and 2286."""


def accept(raw: msgspec.Raw, now: float, future_s: float) -> list[Accepted | Refused]:
    """What becomes of one part of a body: one event of ours, or those of a body of GA4's. now: Unix seconds."""
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
        for place, fields in ga4.events_of(raw, now):
            try:
                out.append(_accepted(msgspec.convert(fields, EventIn), now, future_s))
            except Refusal as e:
                out.append(Refused(f"{place}.{e.field}", e.message))
            except msgspec.ValidationError as e:
                field, message = _where(e)
                out.append(Refused(f"{place}.{field}", message))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        out = [Refused(*_where(e))]
    return out


def _accepted(given: EventIn, now: float, future_s: float) -> Accepted:
    """The event to store. Raises Refusal naming the field and the reason."""
    if given.event not in KIND_OF:
        raise Refusal("event", f"{_short(given.event)} is none of {', '.join(KIND_OF)}")
    for name in ("user_id", "item_id", "event_id", "request_id", "session_id", "device", "query"):
        check_no_control(name, getattr(given, name) or "")
    known, said = int(now * 1e6), None if given.timestamp is None else microseconds(given.timestamp)
    if said is not None and said > known + future_s * 1e6:
        ahead = (said - known) / 1e6
        raise Refusal("timestamp", f"{ahead:.0f} s ahead of the service's clock, at most {future_s:g} s are allowed")
    # What a clock a little ahead stamps has happened by now; left in the future, the next ranking would not know it.
    at = (known if said is None else min(said, known)) / 1e6
    event_id = given.event_id or _derived_id(given, known if said is None else said)
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
    ]
    return "derived-" + blake2b(msgspec.json.encode(content), digest_size=12).hexdigest()


def microseconds(timestamp: float | str, field: str = "timestamp") -> int:
    """Whole microseconds since 1970, UTC. Raises Refusal."""
    if isinstance(timestamp, str):
        try:
            when = datetime.fromisoformat(timestamp)
        except ValueError:
            raise Refusal(field, f"{_short(timestamp)} is not ISO 8601, as 2025-01-31T12:00:00Z") from None
        return ((when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    for low, high, scale in _SCALES:
        if low <= timestamp < high:
            return round(timestamp * scale)
    raise Refusal(field, f"{timestamp:g} is neither Unix seconds, milliseconds nor microseconds between 2001 and 2286")
