"""Requests and responses of the API under /v1/merchandising."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from features.bounds import ATTRIBUTE_NAME, has_control
from serving.api import Problem, RecommendRequest, decoding, rankings
from serving.merchandising import LATEST, NOTE, Change, MerchandisingRule
from serving.pages.storefront.shop import Product, Shopper
from serving.rules import AboutAttribute, Applied, Removed, Rules

Version = Annotated[int, Meta(ge=0, le=2**53)]
Note = Annotated[str, Meta(max_length=NOTE, extra_json_schema=decoding.PLAIN)]
When = Annotated[float, Meta(ge=0, le=LATEST)] | Annotated[str, Meta(max_length=40)]


class MerchandisingRuleIn(Struct, forbid_unknown_fields=True):
    """A rule to write. It replaces the one with its ID, if there is one.

    version: of the document that was read; if it is not the current one any more, someone else has changed it
    meanwhile, and nothing is written (409). rules: at least one, as in a request; see docs/rules.md. placement: null
    for all lists. start, end: Unix seconds or ISO 8601 (UTC without an offset); the rule applies from the start until
    just before the end. note: the reason.
    """

    version: Version
    rules: Rules
    placement: Annotated[str, Meta(min_length=1, max_length=ATTRIBUTE_NAME)] | None = None
    start: When | None = None
    end: When | None = None
    note: Note = ""


class MerchandisingUndo(Struct, forbid_unknown_fields=True):
    """A version to restore, as a new version. version: as in `MerchandisingRuleIn`. to: the version whose rules are
    restored."""

    version: Version
    to: Version
    note: Note = ""


class MerchandisingDraft(Struct, forbid_unknown_fields=True):
    """A rule that is not written. id: of the rule that it replaces; empty for a new one. placement: null for all
    lists."""

    rules: Rules
    id: Annotated[str, Meta(max_length=64)] = ""
    placement: Annotated[str, Meta(min_length=1, max_length=ATTRIBUTE_NAME)] | None = None


class MerchandisingPreviewIn(Struct, forbid_unknown_fields=True):
    """A list to preview. request: as for /v1/recommend; the list is never logged, explored or counted as shown.

    draft: a rule to try. It applies at once, whatever its start and end. without: ID of a rule to leave out.
    """

    request: RecommendRequest
    draft: MerchandisingDraft | None = None
    without: Annotated[str, Meta(max_length=64)] | None = None


class MerchandisingRuleState(Struct):
    """A rule, and whether it applies now. state: `set aside` if the live release cannot serve it, and problem then says
    why."""

    rule: MerchandisingRule
    state: Literal["active", "scheduled", "expired", "set aside"]
    problem: str = ""


class MerchandisingState(Struct):
    """All rules, in the order in which they apply. at: the service's clock, Unix seconds. problem: what is wrong with
    them; empty if nothing is."""

    version: int
    at: float
    rules: list[MerchandisingRuleState]
    problem: str = ""


class MerchandisingHistory(Struct):
    """Changes of the rules, newest first. The rules of every version from that before the last of them can be
    restored."""

    changes: list[Change]


class PreviewedItem(Struct, omit_defaults=True):
    """An item of a previewed list. was: its position in the list without the draft, counted from 0; null if it was not
    in it. rules: the rules that changed its score or position."""

    item_id: str
    title: str
    score: float
    category: str | None = None
    price: float | None = None
    was: int | None = None
    rules: list[Applied] = []


class PreviewedList(Struct):
    """A previewed list. removed: the items that each rule removed."""

    items: list[PreviewedItem]
    removed: list[Removed]


class MerchandisingPreview(Struct):
    """The list under the present rules, and with the draft, null without one. gone: the products that are only in the
    list of now. version: of the rules."""

    version: int
    release: str
    degraded: bool
    now: PreviewedList
    draft: PreviewedList | None
    gone: list[Product]


class PlacementOption(Struct):
    """A placement that can be chosen. requires: as in the configuration."""

    name: str
    requires: list[str]


class MerchandisingOptions(Struct):
    """The choices in a rule and for a preview. shoppers: some known ones; empty for a key that may only read."""

    placements: list[PlacementOption]
    attributes: list[AboutAttribute]
    shoppers: list[Shopper]
    may_write: bool


class MerchandisingItems(Struct):
    """Items whose titles contain the words, in the order of their IDs."""

    items: list[Product]


MERCHANDISING_FORMS = (
    MerchandisingRuleIn,
    MerchandisingUndo,
    MerchandisingPreviewIn,
    MerchandisingState,
    MerchandisingHistory,
    MerchandisingPreview,
    MerchandisingOptions,
    MerchandisingItems,
)
"""The structs of request and response bodies, for the OpenAPI document."""

_RULE = msgspec.json.Decoder(MerchandisingRuleIn)
_UNDO = msgspec.json.Decoder(MerchandisingUndo)
_PREVIEW = msgspec.json.Decoder(MerchandisingPreviewIn)
_REQUEST = msgspec.json.Decoder(dict[str, msgspec.Raw])


def rule_in(body: bytes) -> MerchandisingRuleIn:
    """Decode and validate a rule to write. Its `start` and `end` are numbers afterwards. Raises Problem."""
    asked = decoding.decode(_RULE, body)
    check_plain("note", asked.note)
    if asked.rules == Rules():
        raise invalid("rules", "there is no rule in it", "Send at least one of filter, exclude, boost, bury, cap, pin.")
    asked.start, asked.end = _seconds(asked.start, "start"), _seconds(asked.end, "end")
    if asked.start is not None and asked.end is not None and asked.end <= asked.start:
        raise invalid("end", "the end is not after the start", "Send a later `end`, or none.")
    return asked


def undo_in(body: bytes) -> MerchandisingUndo:
    """Decode and validate a version to restore. Raises Problem."""
    asked = decoding.decode(_UNDO, body)
    check_plain("note", asked.note)
    return asked


def preview_in(body: bytes) -> MerchandisingPreviewIn:
    """Decode and validate a preview. Raises Problem."""
    asked = decoding.decode(_PREVIEW, body)
    try:
        asked.request = rankings.recommend_request(bytes(_REQUEST.decode(body)["request"]))
    except Problem as e:
        if "field" in e.document:
            e.document["field"] = f"request.{e.document['field']}"
        raise
    return asked


def check_plain(field: str, text: str) -> None:
    """Raise Problem (422) for a text with a control character."""
    if has_control(text):
        raise invalid(field, "it contains a control character", "Remove line breaks and other control characters.")


def invalid(field: str, detail: str, remedy: str, **more: Any) -> Problem:
    """A problem (422): a field is invalid."""
    return Problem(422, "invalid-field", "Invalid field", detail, remedy, field, **more)


def _seconds(when: float | str | None, field: str) -> float | None:
    """A moment in Unix seconds."""
    if when is None or not isinstance(when, str):
        return when
    try:
        moment = datetime.fromisoformat(when)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds <= LATEST:
        raise invalid(
            field,
            f"{when!r} is not a date from 1970 to 9999",
            "Send ISO 8601, such as 2026-12-24T18:00:00Z, or Unix seconds.",
        )
    return seconds
