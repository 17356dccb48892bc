"""What requests and answers look like, and how an event is accepted. The same structs decode, encode and document.

msgspec rather than pydantic on these routes: 311 against 551 us of CPU a request (500 ids in, 50 scores out).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from features.context import DEVICE_CHARACTERS, QUERY_CHARACTERS
from features.log import GA4, KINDS, Kind
from serving import ga4
from serving.config import ID_CHARACTERS
from serving.rules import Applied, Removed, Rules
from serving.store import Event

PLAIN = {"pattern": r"^[^\u0000-\u001f\u007f]*$"}
"""Documented, and checked by us: checked by msgspec, each id of a request would cost a search."""
Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=ID_CHARACTERS,
        description="Any text without control characters.",
        extra_json_schema=PLAIN,
    ),
]

Device = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=DEVICE_CHARACTERS,
        description="mobile, tablet, desktop, app, or any other text.",
        extra_json_schema=PLAIN,
    ),
]

Query = Annotated[
    str,
    Meta(
        max_length=QUERY_CHARACTERS,
        description="What the shopper typed to search; blank is nothing.",
        extra_json_schema=PLAIN,
    ),
]

KIND_OF = {name: Kind(KINDS.index(ours)) for name, ours in ({k: k for k in KINDS} | GA4).items()}
"""Our names of events, and those of Google Analytics 4 (`purchase` is both)."""

T = TypeVar("T")


class Problem(Exception):
    """An answer that is an error, as a problem document (RFC 9457).

    slug: kind of problem, the end of its `type`. detail: what is wrong. remedy: what to do. field: where, if anywhere.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        title: str,
        detail: str,
        remedy: str,
        field: str | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.headers = status, headers
        self.document = {
            "type": f"urn:shelfwise:problem:{slug}",
            "title": title,
            "status": status,
            "detail": detail,
            **({} if field is None else {"field": field}),
            "remedy": remedy,
            **more,
        }


class ProblemDocument(Struct):
    """An error (RFC 9457): what is wrong, where, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str
    field: str | None = None
    instance: str | None = None


class RankRequest(Struct, forbid_unknown_fields=True):
    """Candidates to put in order for a user.

    A candidate named twice is ranked once; one that the catalogue does not know is ranked too, by what is known of
    unknown items. Without `candidates` the whole catalogue is ranked, where it is small enough. device: as in events.
    query: what was searched for; candidates that match it come first, those that do not are ranked too.
    """

    user_id: Id | None = None
    candidates: list[Id] | None = None
    limit: Annotated[int, Meta(ge=1, le=5000, description="How many to answer, best first; all by default.")] | None = (
        None
    )
    explain: bool = False
    device: Device | None = None
    query: Query | None = None
    rules: Rules | None = None


class RecommendRequest(Struct, forbid_unknown_fields=True):
    """A list for a user out of the whole catalogue: retrieved, ranked, and the shop's rules applied.

    A filter and an exclusion hold before anything is retrieved, so they leave as many as there are. query: what was
    searched for; what matches it is retrieved besides the rest, and comes first.
    """

    user_id: Id | None = None
    limit: Annotated[int, Meta(ge=1, le=500, description="How many to answer, best first.")] = 10
    device: Device | None = None
    query: Query | None = None
    rules: Rules | None = None
    explain: bool = False


class Reason(Struct):
    """What one feature added to an item's score."""

    feature: str
    contribution: float
    about: str


class Because(Struct):
    """The item of the user's list whose text is nearest."""

    item_id: str
    title: str
    cosine: float


class RankedItem(Struct, omit_defaults=True):
    """One item of the answer. All but id, score and sources only where `explain` was asked and there are any.

    score: of the ranker, moved by boosts and buries; it is `base` and what `reasons`, `others` (all features not named
    in them, together) and `rules` added. sources: where a recommendation was retrieved from.
    """

    item_id: str
    score: float
    sources: list[str] = []
    base: float | None = None
    reasons: list[Reason] = []
    others: float | None = None
    rules: list[Applied] = []
    because_you_viewed: Because | None = None


class RankAnswer(Struct):
    """Items best first, equal scores by item id, but for what rules of diversity and place say otherwise.

    degraded: the user's history could not be read in time. removed: where `explain` was asked, what each rule took out.
    """

    request_id: str
    release: str
    degraded: bool
    items: list[RankedItem]
    took_ms: float
    removed: list[Removed] | UnsetType = UNSET


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


class SimilarItem(Struct):
    """An item and the cosine of its text with the one asked about."""

    item_id: str
    title: str
    cosine: float


class SimilarAnswer(Struct):
    """Items whose texts are nearest, best first."""

    item_id: str
    release: str
    items: list[SimilarItem]


class ErasureAnswer(Struct):
    """The user's lists are gone from this moment on; `shelfwise collect` takes the user out of the log.

    at: Unix seconds; what the user does after it is kept again.
    """

    at: float


class ServiceState(Struct):
    """Whether the service answers, and for /health/ready from which release, whether Redis is there, and if not, why.

    degraded: rankings answered without the user's history. slow: those scored by LightGBM. Of this worker alone.
    """

    status: str
    release: str | None = None
    reason: str | None = None
    redis: str | None = None
    degraded: int = 0
    slow: int = 0


class Refusal(Exception):
    """Why one event is not taken: the field at fault, and a message."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class Accepted(NamedTuple):
    """An event to be stored, and whether its id was derived."""

    event: Event
    derived: bool


class Refused(NamedTuple):
    """An event that is not taken: the field at fault, and why."""

    field: str | None
    message: str


_AT_FIELD = re.compile(r" - at `\$\.?(.*)`$")
_NAMED_FIELD = re.compile(r"(?:missing required|unknown) field `(.*?)`")
_ENDS = re.compile(rb"[\r\n]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RANK = msgspec.json.Decoder(RankRequest)
_RECOMMEND = msgspec.json.Decoder(RecommendRequest)
_EVENT = msgspec.json.Decoder(EventIn)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCALES = ((1e9, 1e10, 1e6), (1e12, 1e13, 1e3), (1e15, 1e16, 1.0))
"""From, below, microseconds in one: seconds, milliseconds and microseconds between 2001 and 2286."""


def rank_request(body: bytes) -> RankRequest:
    """The request in a body. Raises Problem naming the field, the reason and the remedy."""
    request = decoded(_RANK, body)
    _no_control(
        body,
        user_id=[request.user_id or ""],
        device=[request.device or ""],
        query=[request.query or ""],
        candidates=request.candidates or [],
    )
    return request


def recommend_request(body: bytes) -> RecommendRequest:
    """The request in a body. Raises Problem naming the field, the reason and the remedy."""
    request = decoded(_RECOMMEND, body)
    _no_control(body, user_id=[request.user_id or ""], device=[request.device or ""], query=[request.query or ""])
    return request


def _no_control(body: bytes, **texts: list[str]) -> None:
    # In JSON a control character stands behind a backslash, but for the last, DEL: two looks tell nearly all.
    if b"\\" not in body and b"\x7f" not in body:
        return
    for field, ids in texts.items():
        # Once over all of them: a search for each would cost more than the decoding.
        if _CONTROL.search("".join(ids)):
            at = next(n for n, i in enumerate(ids) if _CONTROL.search(i))
            where = f"{field}[{at}]" if field == "candidates" else field
            raise _invalid(where, f"{ids[at]!r} contains a control character")


def no_control(name: str, text: str) -> None:
    """Raises Refusal where a text contains a control character."""
    if _CONTROL.search(text):
        raise Refusal(name, f"{_short(text)} contains a control character")


def refused_because(error: Exception) -> Refusal:
    """What a decoder's error means for the caller."""
    return Refusal(*_where(error))


def checked_id(name: str, given: str) -> str:
    """An id from a path. Raises Problem where it cannot be one."""
    if not 1 <= len(given) <= ID_CHARACTERS:
        raise _invalid(name, f"Expected 1 to {ID_CHARACTERS} characters, got {len(given)}")
    if _CONTROL.search(given):
        raise _invalid(name, f"{_short(given)} contains a control character")
    return given


def several(body: bytes, most: int, content_type: str = "", what: str = "events") -> list[msgspec.Raw]:
    """The parts of a body that is one object, an array, or JSON lines, each still to be decoded. Raises Problem.

    Lines where the content type says so, or where the first line is an object by itself and others follow. An array or
    an object is JSON as a whole or refused as a whole; of lines each stands alone.
    """
    text = body.strip(b" \t\r\n")
    if text.startswith(b"["):
        parts = decoded(_LIST, body)
    elif any(said in content_type for said in ("ndjson", "jsonl", "json-lines", "jsonlines")) or _is_lines(text):
        parts = [msgspec.Raw(line) for line in _ENDS.split(text, most + 1) if line.strip()]
    else:
        parts = [msgspec.Raw(body)] if decoded(msgspec.json.Decoder(msgspec.Raw), body) else []
    bounded(len(parts), most, what)
    return parts


def bounded(count: int, most: int, what: str) -> None:
    """Raises Problem (413) where a request holds more of something than is taken."""
    if count > most:
        raise Problem(
            413,
            f"too-many-{what}",
            f"Too many {what}",
            f"{count} {what} in one request, at most {most} are taken",
            "Send them in several requests.",
        )


def _is_lines(text: bytes) -> bool:
    first, more, _ = text.partition(b"\n")
    if not more or not first.startswith(b"{"):
        return False
    try:
        msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


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
        no_control(name, getattr(given, name) or "")
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


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body in its form. Raises Problem (400, 422) naming the field."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as e:
        field, message = _where(e)
        raise _invalid(field, message) from e
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Problem(
            400,
            "not-json",
            "Not JSON",
            _where(e)[1],
            "Send JSON in UTF-8; NaN and Infinity are not JSON: leave such a value out.",
        ) from e


def _invalid(field: str | None, message: str) -> Problem:
    remedy = "See /docs for the fields and their types."
    return Problem(422, "invalid-field", "A field is not as it must be", message, remedy, field)


def _where(error: Exception) -> tuple[str | None, str]:
    """The field that a decoder's message is about, if any, and the message without it."""
    message = str(error)
    if isinstance(error, RecursionError):
        message = "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        message = "not UTF-8"
    named, at = _NAMED_FIELD.search(message), _AT_FIELD.search(message)
    path = at.group(1) if at else ""
    field = ".".join(filter(None, [path, named.group(1) if named else ""]))
    return field or None, _AT_FIELD.sub("", message)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
