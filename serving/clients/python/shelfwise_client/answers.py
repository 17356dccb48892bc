"""Results of the calls, as frozen dataclasses. A test compares their fields with the service's OpenAPI schema.

Unknown fields are ignored, so a newer service may return more.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, field, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_HINTS: dict[Any, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Reason:
    """Contribution of a feature and related features to an item's score. text: the same in plain words."""

    feature: str
    contribution: float
    text: str


@dataclass(frozen=True, slots=True)
class Because:
    """The item of the user's history most similar to this one. event: the user's latest event with it, such as view or
    purchase."""

    item_id: str
    title: str
    cosine: float
    event: str


@dataclass(frozen=True, slots=True)
class Applied:
    """Effect of a rule on an item: `added` to its score, or `moved_from` the position it had before, from 0."""

    rule: str
    added: float | None = None
    moved_from: int | None = None


@dataclass(frozen=True, slots=True)
class ObjectivePart:
    """Effect of the placement's objective on an item.

    added: change of the score. relevance, value: the two parts of the sum that orders the list, with their weights.
    probability: of a click, a cart and a purchase if the item is shown. amount: the value of the item. expected: the
    expected amount. assumed: True if the item has no value, and the amount is the median of the catalogue. below_floor:
    True if too few shoppers would click the item for its value to count.
    """

    added: float
    relevance: float
    value: float
    probability: dict[str, float]
    amount: float
    expected: float
    assumed: bool = False
    below_floor: bool = False


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One item of a list. `sources` is set only for recommendations, and the fields after it only with `explain`.

    known: False if the item is not in the catalogue; its score is that of an item without any data. objective: only if
    the placement has one, and the key is not public. team: in an interleaved list, the arm that chose the item.
    """

    item_id: str
    score: float
    sources: tuple[str, ...] = ()
    base: float | None = None
    reasons: tuple[Reason, ...] = ()
    others: float | None = None
    rules: tuple[Applied, ...] = ()
    because: Because | None = None
    known: bool = True
    objective: ObjectivePart | None = None
    team: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Items removed by a rule: their number, and the ids of the first ones."""

    rule: str
    count: int
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """Items best first. request_id: send it with the shopper's events on this list.

    degraded: the list is worse than usual. degraded_reason: `history-unavailable` if the user's history could not be
    read in time, `release-from-disk` if Redis names no release, `redis-replaced` if Redis lost data; None otherwise.
    placement: that of the request. experiments: the arm of the list by experiment; `interleaved` for one that mixes
    both arms.
    """

    request_id: str
    release: str
    degraded: bool
    items: tuple[RankedItem, ...]
    took_ms: float
    removed: tuple[Removed, ...] = ()
    degraded_reason: str | None = None
    placement: str | None = None
    experiments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """The lists of a page, in the order of the request; each has a request ID of its own, for the events of that list.

    degraded: as in `RankAnswer`.
    """

    release: str
    degraded: bool
    lists: tuple[RankAnswer, ...]
    took_ms: float


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected event or item. index: its position in the request. field: the invalid field. message: the reason."""

    index: int
    field: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Derived:
    """The id derived for an event that was sent without one. index: the event's position in the request."""

    index: int
    event_id: str


@dataclass(frozen=True, slots=True)
class EventsAnswer:
    """accepted: number of new events stored. duplicates: number already stored. rejected: invalid events, and those of
    new users while the maximum number of users have lists (`user_id`); the others in the request are unaffected."""

    accepted: int
    duplicates: int
    rejected: tuple[Rejected, ...]
    derived: tuple[Derived, ...]


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """A similar item. cosine: similarity of its text to that of the requested item."""

    item_id: str
    title: str
    cosine: float


@dataclass(frozen=True, slots=True)
class SimilarAnswer:
    """Items with the most similar texts, best first."""

    item_id: str
    release: str
    items: tuple[SimilarItem, ...]


@dataclass(frozen=True, slots=True)
class ItemsAnswer:
    """accepted: number of items written. rejected: invalid items; the others in the request are unaffected."""

    accepted: int
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """Current state of an item. live: whether it can be ranked. available: whether it may appear in results. vector:
    whether its text has been encoded. changed_at: Unix seconds of the last write, None if it came with the release."""

    item_id: str
    in_release: bool
    live: bool
    available: bool
    vector: bool
    changed_at: float | None = None
    title: str | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class UserAnswer:
    """The attributes are written. at: Unix seconds of the write."""

    at: float


@dataclass(frozen=True, slots=True)
class MergeAnswer:
    """The users are merged. at: Unix seconds of the merge. moved: number of events that now belong to the user."""

    at: float
    moved: int


@dataclass(frozen=True, slots=True)
class ErasureAnswer:
    """The user has been erased. at: Unix seconds. Events after this time are stored again."""

    at: float


@dataclass(frozen=True, slots=True)
class ServiceState:
    """State of the service: status (`ready` or `not ready`), the live release, the reason if not ready, and Redis.

    degraded: number of rankings answered without the user's history. slow: number of rankings scored by LightGBM. Both
    count the answering worker only. experiments: whether each of them runs, or why not.
    """

    status: str
    release: str | None = None
    reason: str | None = None
    redis: str | None = None
    degraded: int = 0
    slow: int = 0
    experiments: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """True if the service can rank."""
        return self.status == "ready"


def decode(form: type[T], given: Any) -> T:
    """Convert decoded JSON to one of the classes above. Raises TypeError or ValueError naming the invalid field."""
    if not isinstance(given, dict):
        raise TypeError(f"{form.__name__}: expected an object, got {type(given).__name__}")
    hints = _hints_of(form).items()
    return form(**{name: _value(f"{form.__name__}.{name}", kind, given[name]) for name, kind in hints if name in given})


def _hints_of(form: Any) -> dict[str, Any]:
    if form not in _HINTS:
        _HINTS[form] = get_type_hints(form)
    return _HINTS[form]


def _value(where: str, kind: Any, given: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(given, list):
            raise TypeError(f"{where}: expected a list, got {type(given).__name__}")
        return tuple(_value(f"{where}[{n}]", arguments[0], one) for n, one in enumerate(given))
    if origin is dict:
        if not isinstance(given, dict):
            raise TypeError(f"{where}: expected an object, got {type(given).__name__}")
        return {name: _value(f"{where}.{name}", arguments[1], one) for name, one in given.items()}
    if origin in (types.UnionType, Union):
        return None if given is None else _value(where, next(a for a in arguments if a is not type(None)), given)
    if is_dataclass(kind):
        return decode(kind, given)  # type: ignore[arg-type]
    if kind is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if not isinstance(given, kind) or (kind is int and isinstance(given, bool)):
        raise TypeError(f"{where}: expected {kind.__name__}, got {type(given).__name__}")
    return given
