"""Typed dictionaries of what is sent: events, items and rules, as in the service's OpenAPI schema.

A test compares their fields with that schema. The service validates the values, and its errors name the field.
(This file does not use `from __future__ import annotations`, so that `Required` is visible at run time.)
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NotRequired, Required, TypedDict

EventName = Literal["impression", "view", "click", "cart", "purchase", "rating"]
"""Event names that rules may use."""
SentEventName = EventName | Literal["view_item_list", "select_item", "view_item", "add_to_cart"]
"""Event names that may be sent: Shelfwise's or those of Google Analytics 4."""


Value = str | float | bool
Candidate = dict[str, Value | None]
"""A candidate with columns: `id`, and a value per column."""
Columns = Mapping[str, Value | Sequence[Value | None] | None]
"""Columns of a request by name: one value for all candidates, or one per candidate. None is missing."""


class Event(TypedDict, total=False):
    """One interaction of a shopper with an item.

    event_id: makes retries idempotent; the client generates one if it is missing. timestamp: Unix seconds, milliseconds
    or microseconds, or ISO 8601. request_id, position: the list that was shown, and the position in it, from 0.
    columns: of an impression, what its list was ranked with; not needed for lists that the service ranked. placement:
    the spot in the shop where the list was shown; not needed if the request for the list named it.
    """

    event: Required[SentEventName]
    user_id: Required[str]
    item_id: Required[str]
    event_id: str | None
    timestamp: float | str | None
    request_id: str | None
    position: int | None
    value: float | None
    session_id: str | None
    device: str | None
    query: str | None
    columns: dict[str, Value | None] | None
    placement: str | None


class Item(TypedDict, total=False):
    """A new item, or changes to an existing one. Omitted fields stay unchanged; None clears a field.

    group_id: the product of which the item is a variant; the same for all of its sizes and colours.
    """

    item_id: Required[str]
    title: str | None
    description: str | None
    category: str | None
    brand: str | None
    price: float | None
    available_from: float | str | None
    available: bool
    attributes: dict[str, bool | float | str | list[str] | None]
    group_id: str | None


Condition = TypedDict(
    "Condition",
    {
        "all": "list[Condition] | None",
        "any": "list[Condition] | None",
        "not": "Condition | None",
        "attribute": str | None,
        "eq": Value | None,
        "in": list[Value] | None,
        "has": str | None,
        "lt": Value | None,
        "lte": Value | None,
        "gt": Value | None,
        "gte": Value | None,
        "missing": bool | None,
    },
    total=False,
)
"""A condition on items: `all` or `any` of several conditions, `not` a condition, or a comparison of an `attribute`."""


class Exclude(TypedDict):
    """Exclude items with one of these events of the user, within some days or in the whole stored history."""

    events: list[EventName]
    within_days: NotRequired[float | None]


class Lift(TypedDict):
    """Raise or lower the scores of items that meet a condition, by standard deviations of the list's scores.

    by: defaults to 1.
    """

    when: Condition
    by: NotRequired[float]


class Cap(TypedDict):
    """Limit the number of items with the same value of an attribute."""

    attribute: str
    most: int


Diversity = TypedDict("Diversity", {"lambda": Required[float], "pool": int}, total=False)
"""Maximal marginal relevance. lambda: 1 keeps the order by score, 0 uses only dissimilarity."""


class Pin(TypedDict):
    """Put a candidate at a position, from 0."""

    item_id: str
    position: int


class Rules(TypedDict, total=False):
    """The shop's rules for a list, applied after scoring. See docs/rules.md."""

    filter: Condition | None
    exclude: list[Exclude]
    boost: list[Lift]
    bury: list[Lift]
    cap: list[Cap]
    diversity: Diversity | None
    pin: list[Pin]


class Variants(TypedDict, total=False):
    """Which variants of a product may be in a list: `keep` one or all. See docs/variants.md.

    after_purchase_days: days for which the other variants of a product that the shopper bought are left out.
    """

    keep: Literal["one", "all"] | None
    after_purchase_days: float | None


class PageList(TypedDict, total=False):
    """A list of a page: a placement, and what a request for it alone could have.

    columns: in addition to those of the page.
    """

    placement: Required[str]
    limit: int
    query: str | None
    rules: Rules | None
    columns: Columns
    variants: Variants | None
