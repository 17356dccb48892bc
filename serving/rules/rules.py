"""Business rules on a ranked list: filter, exclude, boost, bury, cap, diversity and pin.

The configuration and the request can both set rules, in the same form. Rules are applied after scoring, always in this
order:

1. `filter`, then `exclude`: remove items, regardless of all other rules.
2. `boost` and `bury`: change scores, in units of the list's standard deviation, and sort the list again.
3. `cap`: limit the number of items per attribute value; pinned items come first, then items by score.
4. `diversity`: rerank the top of the list for relevance and variety.
5. `pin`: move items to their positions. Then the list is cut to the limit.

The effects are reported in `RuledList.applied` for kept items and in `RuledList.removed` for removed ones. Rules of the
configuration precede those of the request. If both set the diversity, pin the same item or pin to the same position,
the request takes precedence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from features.arrays import F64, I32, I64, Bool
from features.bounds import ID_BYTES
from features.history import NO_OUTSIDE, History, Outside
from features.log import KINDS, Kind
from features.text.vectors import Vectors
from ranker.rerank import diverse, placed, within_cap
from serving.rules.conditions import (
    Attributes,
    Budget,
    Condition,
    Listed,
    Mask,
    RuleError,
    TextAttribute,
    check_rule_id,
    of_items,
)

_S = TypeVar("_S", bound=Struct)

EventName = Literal["impression", "view", "click", "cart", "purchase", "rating"]
LISTED = 20
"""Maximum number of removed items listed per rule; all are counted."""


class Exclude(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Items for which the user has one of these events in their lists (last 100 engagements, last 240 impressions).

    within_days: only events in the last N days.
    """

    events: Annotated[list[EventName], Meta(min_length=1, max_length=len(KINDS))]
    within_days: Annotated[float, Meta(gt=0, le=3650)] | None = None


class Lift(Struct, forbid_unknown_fields=True, frozen=True):
    """Change the scores of items that match a condition. by: in standard deviations of the list's scores, taken
    as 1 if all scores are equal."""

    when: Condition
    by: Annotated[float, Meta(gt=0, le=100)] = 1.0


class Pin(Struct, forbid_unknown_fields=True, frozen=True):
    """Put a candidate at a position, counted from 0; at the end if the list is shorter."""

    item_id: Annotated[str, Meta(min_length=1, max_length=ID_BYTES)]
    position: Annotated[int, Meta(ge=0, le=4999)]


class Cap(Struct, forbid_unknown_fields=True, frozen=True):
    """Allow at most `most` items per value of a text attribute; items without a value are not counted."""

    attribute: Annotated[str, Meta(max_length=1000)]
    most: Annotated[int, Meta(ge=1, le=5000)]


class Diversity(Struct, forbid_unknown_fields=True, frozen=True, rename={"score_share": "lambda"}):
    """Rerank the top of the list by maximal marginal relevance: lambda * score - (1 - lambda) * similarity.

    lambda: 1 keeps the order, 0 uses only similarity. pool: number of top items to rerank. Scores are scaled to [0, 1]
    over the pool. Similarity is the largest cosine between the text vectors of the item and of the items already
    chosen.
    """

    score_share: Annotated[float, Meta(ge=0, le=1)]
    pool: Annotated[int, Meta(ge=1, le=500)] = 100


class Rules(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Business rules for a list, applied in the order filter, exclude, boost and bury, cap, diversity, pin."""

    filter: Condition | None = None
    exclude: Annotated[list[Exclude], Meta(max_length=8)] = []
    boost: Annotated[list[Lift], Meta(max_length=20)] = []
    bury: Annotated[list[Lift], Meta(max_length=20)] = []
    cap: Annotated[list[Cap], Meta(max_length=8)] = []
    diversity: Diversity | None = None
    pin: Annotated[list[Pin], Meta(max_length=50)] = []


def to_struct(kind: type[_S], value: Any) -> _S:
    """A value of the configuration as a struct of this kind. Raises ValueError, as validators of pydantic do."""
    try:
        return value if isinstance(value, kind) else msgspec.convert(value, kind)
    except msgspec.ValidationError as e:
        raise ValueError(str(e)) from e


StandingRules = Annotated[
    Rules,
    PlainValidator(partial(to_struct, Rules)),
    PlainSerializer(msgspec.to_builtins),
    WithJsonSchema({"type": "object", "description": "The same as `rules` in a request; see docs/rules.md."}),
]
"""`Rules` as a field of the configuration."""


class Applied(Struct, omit_defaults=True):
    """Effect of a rule on an item: the score `added`, or the position it was `moved_from`."""

    rule: str
    added: float | None = None
    moved_from: int | None = None


class Removed(Struct):
    """Number of items removed by a rule, and the first of them. An item counts for the first rule that removes it."""

    rule: str
    count: int
    item_ids: list[str]


class RuledList(NamedTuple):
    """A list after the rules. order: indices into the input list. score: float64, in the same order. applied: the
    effects of rules, per item of `order`. removed: the removed items, per rule."""

    order: I64
    score: F64
    applied: list[list[Applied]]
    removed: list[Removed]


class Ranked(NamedTuple):
    """A list to apply rules to, best first. item: int32[m] catalogue rows, -1 outside it. score: float64[m]."""

    item_ids: list[str]
    item: I32
    score: F64

    def listed(self) -> Listed:
        """The items as conditions need them."""
        return Listed(self.item, {k: self.item_ids[k] for k in np.flatnonzero(self.item < 0).tolist()})


@dataclass(frozen=True)
class Plan:
    """Rules compiled for one catalogue; each has its path in the request or configuration, for `explain`."""

    filters: tuple[tuple[str, Mask], ...] = ()
    excludes: tuple[tuple[str, Exclude], ...] = ()
    lifts: tuple[tuple[str, Mask, float], ...] = ()
    caps: tuple[tuple[str, TextAttribute, int], ...] = ()
    diversity: tuple[str, Diversity] | None = None
    pins: tuple[tuple[str, Pin], ...] = ()

    @classmethod
    def of(cls, rules: Rules, attributes: Attributes, path: str) -> Plan | None:
        """Compile rules; None if there are none. path: prefix of the paths of the rules. Raises RuleError."""
        if rules == Rules():
            return None
        _check_pins(rules.pin, path)
        budget, filter_path = Budget(), f"{path}.filter"
        return cls(
            () if rules.filter is None else ((filter_path, attributes.mask(rules.filter, filter_path, budget)),),
            tuple((f"{path}.exclude[{k}]", e) for k, e in enumerate(rules.exclude)),
            tuple(
                (f"{path}.{kind}[{k}]", attributes.mask(lift.when, f"{path}.{kind}[{k}].when", budget), sign * lift.by)
                for kind, sign, lifts in (("boost", 1, rules.boost), ("bury", -1, rules.bury))
                for k, lift in enumerate(lifts)
            ),
            tuple(
                (f"{path}.cap[{k}]", attributes.text_attribute(c.attribute, f"{path}.cap[{k}].attribute"), c.most)
                for k, c in enumerate(rules.cap)
            ),
            None if rules.diversity is None else (f"{path}.diversity", rules.diversity),
            tuple((f"{path}.pin[{k}]", p) for k, p in enumerate(rules.pin)),
        )

    def then(self, requested: Plan | None) -> Plan:
        """These rules of the configuration, followed by those of a request."""
        if requested is None:
            return self
        ids, positions = {p.item_id for _, p in requested.pins}, {p.position for _, p in requested.pins}
        pins = tuple((w, p) for w, p in self.pins if p.item_id not in ids and p.position not in positions)
        return Plan(
            self.filters + requested.filters,
            self.excludes + requested.excludes,
            self.lifts + requested.lifts,
            self.caps + requested.caps,
            requested.diversity or self.diversity,
            pins + requested.pins,
        )

    def admits(self, item: I32, history: History, at: float) -> Bool:
        """Mask of the items that pass all filters and exclusions: bool, same shape as `item`, which has no -1."""
        out, listed = np.ones(len(item), np.bool_), Listed(item)
        for _, mask in self._removal_masks(history, NO_OUTSIDE, at):
            out &= mask(listed, at)
        return out

    def _removal_masks(self, history: History, outside: Outside, at: float) -> list[tuple[str, Mask]]:
        return [*self.filters, *((path, _not_engaged(e, history, outside, at)) for path, e in self.excludes)]

    @property
    def removes_items(self) -> bool:
        """True if there are filters or exclusions."""
        return bool(self.filters or self.excludes)

    def apply(
        self,
        ranked: Ranked,
        vectors: Vectors,
        history: History,
        at: float,
        limit: int | None,
        outside: Outside = NO_OUTSIDE,
    ) -> RuledList:
        """Apply the rules to a list; returns at most `limit` of its items. at: Unix seconds. outside: the user's events
        with items outside the catalogue, for exclusions."""
        run, listed = _RuleRun.of(ranked), ranked.listed()
        for path, mask in self._removal_masks(history, outside, at):
            run.remove(path, ~mask(listed, at))
        for path, mask, by in self.lifts:
            run.lift(path, mask(listed, at), by)
        pins = self._pinned(ranked, run.kept)
        for path, attribute, most in self.caps:
            # Pinned items first, so that a higher-scoring item cannot use up the cap and remove a pinned one.
            rows = np.array([*pins, *(k for k in run.by_score() if k not in pins)], np.int64)
            removed = np.zeros(len(ranked.item), np.bool_)
            tags = attribute.tags
            removed[rows] = ~within_cap(tags.start, tags.tag, tags.n_tags, ranked.item[rows], most)
            run.remove(path, removed)
        by_score = run.by_score()
        order = np.array([k for k in by_score if k not in pins], np.int64)
        limit = len(ranked.item) if limit is None else limit
        if self.diversity is not None:
            order = run.diversify(order, vectors, *self.diversity, limit)
        for k, (path, _) in pins.items():
            run.applied[k].append(Applied(path, moved_from=by_score.index(k) if run.kept[k] else None))
        final = placed(order, {k: pin.position for k, (_, pin) in pins.items() if run.kept[k]})[:limit]
        return RuledList(final, run.score[final], [run.applied_to(k) for k in final.tolist()], run.removed)

    def _pinned(self, ranked: Ranked, kept: Bool) -> dict[int, tuple[str, Pin]]:
        """The pins of kept items by row, in the order of positions."""
        row = {i: k for k, i in enumerate(ranked.item_ids)} if self.pins else {}
        pins = sorted(self.pins, key=lambda pin: pin[1].position)
        return {row[p.item_id]: (path, p) for path, p in pins if p.item_id in row and kept[row[p.item_id]]}


@dataclass
class _RuleRun:
    """State of a list while rules are applied to it; arrays have one row per item of `ranked`."""

    ranked: Ranked
    score: F64
    unit: float
    kept: Bool
    applied: list[list[Applied]]
    removed: list[Removed]
    lifted: list[tuple[str, Bool, float]]

    @classmethod
    def of(cls, ranked: Ranked) -> _RuleRun:
        m, unit = len(ranked.item), float(ranked.score.std()) if len(ranked.item) else 0.0
        return cls(
            ranked, ranked.score, unit if unit > 0 else 1.0, np.ones(m, np.bool_), [[] for _ in range(m)], [], []
        )

    def remove(self, path: str, mask: Bool) -> None:
        rows = np.flatnonzero(self.kept & mask)
        self.kept[rows] = False
        self.removed.append(Removed(path, len(rows), [self.ranked.item_ids[k] for k in rows[:LISTED].tolist()]))

    def lift(self, path: str, mask: Bool, by: float) -> None:
        added = by * self.unit
        self.score = self.score + np.where(mask, added, 0.0)
        self.lifted.append((path, mask, added))

    def by_score(self) -> list[int]:
        """The kept rows by score, ties by ID; in the original order if no score was changed."""
        rows: list[int] = np.flatnonzero(self.kept).tolist()
        if self.lifted:
            score = self.score.tolist()
            rows.sort(key=lambda k: (-score[k], self.ranked.item_ids[k]))
        return rows

    def applied_to(self, k: int) -> list[Applied]:
        return [Applied(path, added=by) for path, mask, by in self.lifted if mask[k]] + self.applied[k]

    def diversify(self, order: I64, vectors: Vectors, path: str, diversity: Diversity, limit: int) -> I64:
        pool, rest = order[: diversity.pool], order[diversity.pool :]
        cosine = vectors.cosines(self.ranked.item[pool], self.ranked.item[pool])
        new = diverse(self.score[pool], cosine, diversity.score_share, limit)
        for position, before in enumerate(new.tolist()):
            if position != before:
                self.applied[pool[before]].append(Applied(path, moved_from=before))
        return np.concatenate([pool[new], rest])


def _not_engaged(exclude: Exclude, history: History, outside: Outside, at: float) -> Mask:
    """Mask of the items for which the user has none of these events."""
    since = -np.inf if exclude.within_days is None else at - exclude.within_days * 86400.0
    kinds = [Kind(KINDS.index(name)) for name in exclude.events]
    engaged = history.item[np.isin(history.kind, kinds) & (history.at >= since)]
    if Kind.IMPRESSION in kinds:
        engaged = np.concatenate([engaged, history.shown_item[history.shown_at >= since]])
    chosen = np.flatnonzero(np.isin(outside.kind, kinds) & (outside.at >= since)).tolist()
    done = of_items(engaged[engaged >= 0], {outside.item_ids[k] for k in chosen})
    return lambda listed, at: ~done(listed, at)


def _check_pins(pins: list[Pin], path: str) -> None:
    ids: set[str] = set()
    positions: set[int] = set()
    for k, pin in enumerate(pins):
        check_rule_id(pin.item_id, f"{path}.pin[{k}].item_id")
        if pin.item_id in ids or pin.position in positions:
            twice = f"item {pin.item_id!r}" if pin.item_id in ids else f"position {pin.position}"
            raise RuleError(f"{path}.pin[{k}]", f"{twice} is pinned twice; remove one of the pins")
        ids.add(pin.item_id)
        positions.add(pin.position)
