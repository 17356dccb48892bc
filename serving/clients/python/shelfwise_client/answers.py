"""What is answered, as frozen values. A test holds their fields to the service's OpenAPI schema.

A field that this version does not know is passed over, so a newer service may say more.
"""

from __future__ import annotations

import types
from dataclasses import dataclass, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_HINTS: dict[Any, dict[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Reason:
    """What one feature added to an item's score."""

    feature: str
    contribution: float
    text: str


@dataclass(frozen=True, slots=True)
class Because:
    """The most similar item of the user's history. event: the latest with it, as view or purchase."""

    item_id: str
    title: str
    cosine: float
    event: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What one rule did to an item: `added` to its score, or moved it from a place to where it stands."""

    rule: str
    added: float | None = None
    moved_from: int | None = None


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One item of a list. All but id and score only where asked for: `sources` of a recommendation, the others with
    `explain`."""

    item_id: str
    score: float
    sources: tuple[str, ...] = ()
    base: float | None = None
    reasons: tuple[Reason, ...] = ()
    others: float | None = None
    rules: tuple[Applied, ...] = ()
    because: Because | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """How many items one rule took out, and the first of them."""

    rule: str
    count: int
    item_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankAnswer:
    """Items best first. request_id: send it with what the shopper does in this list.

    degraded: the user's history could not be read in time, so the list is not personal.
    """

    request_id: str
    release: str
    degraded: bool
    items: tuple[RankedItem, ...]
    took_ms: float
    removed: tuple[Removed, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejected:
    """An event or item that was not taken: its place in the request, the field at fault, and why."""

    index: int
    field: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Derived:
    """The id given to an event that came without one."""

    index: int
    event_id: str


@dataclass(frozen=True, slots=True)
class EventsAnswer:
    """accepted: new and from now on known. duplicates: known before. Each rejected event stands alone."""

    accepted: int
    duplicates: int
    rejected: tuple[Rejected, ...]
    derived: tuple[Derived, ...]


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """An item and the cosine of its text with the one asked about."""

    item_id: str
    title: str
    cosine: float


@dataclass(frozen=True, slots=True)
class SimilarAnswer:
    """Items whose texts are nearest, best first."""

    item_id: str
    release: str
    items: tuple[SimilarItem, ...]


@dataclass(frozen=True, slots=True)
class ItemsAnswer:
    """accepted: items that were written. Each rejected one stands alone."""

    accepted: int
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """What is known of an item. live: it is ranked. vector: its text has been read. changed_at: Unix seconds."""

    item_id: str
    in_release: bool
    live: bool
    available: bool
    vector: bool
    changed_at: float | None = None
    title: str | None = None
    price: float | None = None


@dataclass(frozen=True, slots=True)
class ErasureAnswer:
    """at: Unix seconds; what the user does after it is kept again."""

    at: float


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Whether the service ranks, and from which release; if not, why. status: `ready` or `not ready`.

    degraded: rankings answered without the user's history, slow: scored by LightGBM, by this worker so far.
    """

    status: str
    release: str | None = None
    reason: str | None = None
    redis: str | None = None
    degraded: int = 0
    slow: int = 0

    @property
    def ready(self) -> bool:
        """Whether rankings are answered."""
        return self.status == "ready"


def decode(form: type[T], given: Any) -> T:
    """JSON as one of the forms above. Raises TypeError or ValueError where it is none, naming the field."""
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
    if origin in (types.UnionType, Union):
        return None if given is None else _value(where, next(a for a in arguments if a is not type(None)), given)
    if is_dataclass(kind):
        return decode(kind, given)  # type: ignore[arg-type]
    if kind is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if not isinstance(given, kind) or (kind is int and isinstance(given, bool)):
        raise TypeError(f"{where}: expected {kind.__name__}, got {type(given).__name__}")
    return given
