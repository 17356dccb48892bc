"""What is sent: an event, an item, rules. Dictionaries as the OpenAPI schema has them, known to type checkers.

A test holds their fields to that schema. Values are checked by the service, which says what is wrong and where.
(Annotations are no strings in this file, so that `Required` is seen at run time.)
"""

from typing import Literal, NotRequired, Required, TypedDict

EventName = Literal["impression", "view", "click", "cart", "purchase", "rating"]
"""What rules may name."""
SentEventName = EventName | Literal["view_item_list", "select_item", "view_item", "add_to_cart"]
"""What an event may be called: ours, or as Google Analytics 4 calls it."""


class Event(TypedDict, total=False):
    """Something a shopper did with an item.

    event_id: makes sending it again harmless; the client gives one where there is none. timestamp: Unix seconds,
    milliseconds or microseconds, or ISO 8601. request_id, position: the shown list, and the place in it from 0.
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


class Item(TypedDict, total=False):
    """An item, new or known. What is left out stays as it is; None takes a value away."""

    item_id: Required[str]
    title: str | None
    description: str | None
    category: str | None
    brand: str | None
    price: float | None
    available_from: float | str | None
    available: bool
    attributes: dict[str, bool | float | str | list[str] | None]


Value = str | float | bool

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
"""What an item is to be: `all` or `any` of several conditions, `not` one, or an `attribute` compared."""


class Exclude(TypedDict):
    """Items that the user did one of these things with, within some days or as far back as his lists go."""

    events: list[EventName]
    within_days: NotRequired[float | None]


class Lift(TypedDict):
    """Move the scores of items that meet a condition, by standard deviations of the list's scores (1 by default)."""

    when: Condition
    by: NotRequired[float]


class Cap(TypedDict):
    """At most so many items with the same value of an attribute."""

    attribute: str
    most: int


Diversity = TypedDict("Diversity", {"lambda": Required[float], "pool": int}, total=False)
"""Maximal marginal relevance. lambda: 1 leaves the order alone, 0 looks at likeness only."""


class Pin(TypedDict):
    """Put one candidate at a place from 0."""

    item_id: str
    position: int


class Rules(TypedDict, total=False):
    """What a shop wants of a list beyond the scores: docs/rules.md."""

    filter: Condition | None
    exclude: list[Exclude]
    boost: list[Lift]
    bury: list[Lift]
    cap: list[Cap]
    diversity: Diversity | None
    pin: list[Pin]
