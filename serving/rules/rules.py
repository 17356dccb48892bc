"""A shop's rules over a ranked list: what may be shown, what is lifted, where something stands, how alike it may be.

They come in the request and in the configuration, in one form, and are applied after scoring, always in this order:

1. `filter`, then `exclude`: items go out, whatever else is said of them.
2. `boost` and `bury`: scores move, in units of the list's standard deviation; the list is put in order again.
3. `cap`: pinned items first, then by score, each value of an attribute at most so often; what is beyond goes out.
4. `diversity`: the best are put in an order that is good and varied.
5. `pin`: items are put at their places. Then the list is cut to the limit.

What each did is kept: `Ruled.applied` for an item that stays, `Ruled.removed` for one that does not. Rules of the
configuration stand before those of the request; where both say something of the diversity, of a place or of a pinned
item, the request's word counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from features.arrays import F64, I32, I64, Bool
from features.history import History
from features.log import KINDS, Kind
from features.text.vectors import Vectors
from ranker.rerank import diverse, placed, within_cap
from serving.rules.conditions import Allowance, Attributes, Condition, Mask, Named, RuleError

EventName = Literal["impression", "view", "click", "cart", "purchase", "rating"]
_NAMED = 20
"""Items that are named of those which a rule removed; all are counted."""


class Exclude(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Items that the user did one of these things with, as far back as his lists go (100 engagements, 240 impressions).

    within_days: only what is no longer ago than this.
    """

    events: Annotated[list[EventName], Meta(min_length=1, max_length=len(KINDS))]
    within_days: Annotated[float, Meta(gt=0, le=3650)] | None = None


class Lift(Struct, forbid_unknown_fields=True, frozen=True):
    """Move the scores of items that meet a condition. by: standard deviations of the list's scores; 1 where they are
    all equal."""

    when: Condition
    by: Annotated[float, Meta(gt=0, le=100)] = 1.0


class Pin(Struct, forbid_unknown_fields=True, frozen=True):
    """Put one candidate at a place from 0; at the end where the list is shorter."""

    item_id: Annotated[str, Meta(min_length=1, max_length=256)]
    position: Annotated[int, Meta(ge=0, le=4999)]


class Cap(Struct, forbid_unknown_fields=True, frozen=True):
    """At most so many items with the same value of an attribute of text; items without any are not counted."""

    attribute: Annotated[str, Meta(max_length=1000)]
    most: Annotated[int, Meta(ge=1, le=5000)]


class Diversity(Struct, forbid_unknown_fields=True, frozen=True, rename={"score_share": "lambda"}):
    """Maximal marginal relevance over the best of the list: lambda * score - (1 - lambda) * likeness.

    lambda: 1 leaves the order alone, 0 looks at likeness only. pool: how many of the best take part. Scores are scaled
    to 0 to 1 over those; likeness is the largest cosine of texts with an item already chosen.
    """

    score_share: Annotated[float, Meta(ge=0, le=1)]
    pool: Annotated[int, Meta(ge=1, le=500)] = 100


class Rules(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What a shop wants of a list beyond the scores; applied in the order: filter, exclude, boost and bury, cap,
    diversity, pin."""

    filter: Condition | None = None
    exclude: Annotated[list[Exclude], Meta(max_length=8)] = []
    boost: Annotated[list[Lift], Meta(max_length=20)] = []
    bury: Annotated[list[Lift], Meta(max_length=20)] = []
    cap: Annotated[list[Cap], Meta(max_length=8)] = []
    diversity: Diversity | None = None
    pin: Annotated[list[Pin], Meta(max_length=50)] = []


def _standing(value: Any) -> Rules:
    try:
        return value if isinstance(value, Rules) else msgspec.convert(value, Rules)
    except msgspec.ValidationError as e:
        raise ValueError(str(e)) from e


StandingRules = Annotated[
    Rules,
    PlainValidator(_standing),
    PlainSerializer(msgspec.to_builtins),
    WithJsonSchema({"type": "object", "description": "As `rules` of a request; see docs/rules.md."}),
]
"""`Rules` as a field of the configuration."""


class Applied(Struct, omit_defaults=True):
    """What one rule did to an item: `added` to its score, or moved it from a place to where it stands."""

    rule: str
    added: float | None = None
    moved_from: int | None = None


class Removed(Struct):
    """How many items one rule took out, and the first of them. An item is counted for the first rule that does so."""

    rule: str
    count: int
    item_ids: list[str]


class Ruled(NamedTuple):
    """What became of a list: order, rows of it in their new order; score, float64 likewise; what the rules did."""

    order: I64
    score: F64
    applied: list[list[Applied]]
    removed: list[Removed]


class Ranked(NamedTuple):
    """A list to apply rules to, best first. item: int32[m] rows of the catalogue. score: float64[m]."""

    item_ids: list[str]
    item: I32
    score: F64


@dataclass(frozen=True)
class Plan:
    """Rules made ready for one catalogue; every part carries its path, for `explain`."""

    filters: tuple[tuple[str, Mask], ...] = ()
    excludes: tuple[tuple[str, Exclude], ...] = ()
    lifts: tuple[tuple[str, Mask, float], ...] = ()
    caps: tuple[tuple[str, Named, int], ...] = ()
    diversity: tuple[str, Diversity] | None = None
    pins: tuple[tuple[str, Pin], ...] = ()

    @classmethod
    def of(cls, rules: Rules, attributes: Attributes, path: str) -> Plan | None:
        """None where no rule is given. path: of the rules, to name them by. Raises RuleError."""
        if rules == Rules():
            return None
        _check_pins(rules.pin, path)
        left, met = Allowance(), f"{path}.filter"
        return cls(
            () if rules.filter is None else ((met, attributes.mask(rules.filter, met, left)),),
            tuple((f"{path}.exclude[{k}]", e) for k, e in enumerate(rules.exclude)),
            tuple(
                (f"{path}.{kind}[{k}]", attributes.mask(lift.when, f"{path}.{kind}[{k}].when", left), sign * lift.by)
                for kind, sign, lifts in (("boost", 1, rules.boost), ("bury", -1, rules.bury))
                for k, lift in enumerate(lifts)
            ),
            tuple(
                (f"{path}.cap[{k}]", attributes.named(c.attribute, f"{path}.cap[{k}].attribute"), c.most)
                for k, c in enumerate(rules.cap)
            ),
            None if rules.diversity is None else (f"{path}.diversity", rules.diversity),
            tuple((f"{path}.pin[{k}]", p) for k, p in enumerate(rules.pin)),
        )

    def then(self, asked: Plan | None) -> Plan:
        """These rules, those of the configuration, and after them those of a request."""
        if asked is None:
            return self
        ids, places = {p.item_id for _, p in asked.pins}, {p.position for _, p in asked.pins}
        pins = tuple((w, p) for w, p in self.pins if p.item_id not in ids and p.position not in places)
        return Plan(
            self.filters + asked.filters,
            self.excludes + asked.excludes,
            self.lifts + asked.lifts,
            self.caps + asked.caps,
            asked.diversity or self.diversity,
            pins + asked.pins,
        )

    def admits(self, item: I32, history: History, at: float) -> Bool:
        """bool, like `item`: what neither a filter nor an exclusion takes out."""
        out = np.ones(len(item), np.bool_)
        for _, mask in self._outs(history, at):
            out &= mask(item, at)
        return out

    def _outs(self, history: History, at: float) -> list[tuple[str, Mask]]:
        return [*self.filters, *((path, _not_met(e, history, at)) for path, e in self.excludes)]

    @property
    def takes_out(self) -> bool:
        """Whether there is a filter or an exclusion."""
        return bool(self.filters or self.excludes)

    def apply(self, ranked: Ranked, vectors: Vectors, history: History, at: float, limit: int | None) -> Ruled:
        """The list as the rules want it, at most `limit` long; every item of it is one of `ranked`."""
        made = _RuleRun.of(ranked)
        for path, mask in self._outs(history, at):
            made.remove(path, ~mask(ranked.item, at))
        for path, mask, by in self.lifts:
            made.lift(path, mask(ranked.item, at), by)
        pins = self._pinned(ranked, made.stays)
        for path, named, most in self.caps:
            # Pinned items first: a place promised is not lost to an item that merely scores well.
            rows = np.array([*pins, *(k for k in made.by_score() if k not in pins)], np.int64)
            out = np.zeros(len(ranked.item), np.bool_)
            tags = named.tags
            out[rows] = ~within_cap(tags.start, tags.tag, tags.n_tags, ranked.item[rows], most)
            made.remove(path, out)
        by_score = made.by_score()
        order = np.array([k for k in by_score if k not in pins], np.int64)
        limit = len(ranked.item) if limit is None else limit
        if self.diversity is not None:
            order = made.varied(order, vectors, *self.diversity, limit)
        for k, (path, _) in pins.items():
            made.applied[k].append(Applied(path, moved_from=by_score.index(k) if made.stays[k] else None))
        final = placed(order, {k: pin.position for k, (_, pin) in pins.items() if made.stays[k]})[:limit]
        return Ruled(final, made.score[final], [made.said_of(k) for k in final.tolist()], made.removed)

    def _pinned(self, ranked: Ranked, stays: Bool) -> dict[int, tuple[str, Pin]]:
        """The rows that are pinned and not out, in the order of their places."""
        row = {i: k for k, i in enumerate(ranked.item_ids)} if self.pins else {}
        pins = sorted(self.pins, key=lambda pin: pin[1].position)
        return {row[p.item_id]: (path, p) for path, p in pins if p.item_id in row and stays[row[p.item_id]]}


@dataclass
class _RuleRun:
    """A list while rules are applied to it, one row an item of `ranked`."""

    ranked: Ranked
    score: F64
    unit: float
    stays: Bool
    applied: list[list[Applied]]
    removed: list[Removed]
    lifted: list[tuple[str, Bool, float]]

    @classmethod
    def of(cls, ranked: Ranked) -> _RuleRun:
        m, unit = len(ranked.item), float(ranked.score.std()) if len(ranked.item) else 0.0
        return cls(
            ranked, ranked.score, unit if unit > 0 else 1.0, np.ones(m, np.bool_), [[] for _ in range(m)], [], []
        )

    def remove(self, path: str, out: Bool) -> None:
        gone = np.flatnonzero(self.stays & out)
        self.stays[gone] = False
        self.removed.append(Removed(path, len(gone), [self.ranked.item_ids[k] for k in gone[:_NAMED].tolist()]))

    def lift(self, path: str, meant: Bool, by: float) -> None:
        added = by * self.unit
        self.score = self.score + np.where(meant, added, 0.0)
        self.lifted.append((path, meant, added))

    def by_score(self) -> list[int]:
        """What stays, best first, equals by id: as it came where no score was moved."""
        rows: list[int] = np.flatnonzero(self.stays).tolist()
        if self.lifted:
            score = self.score.tolist()
            rows.sort(key=lambda k: (-score[k], self.ranked.item_ids[k]))
        return rows

    def said_of(self, k: int) -> list[Applied]:
        return [Applied(path, added=by) for path, meant, by in self.lifted if meant[k]] + self.applied[k]

    def varied(self, order: I64, vectors: Vectors, path: str, wanted: Diversity, limit: int) -> I64:
        pool, rest = order[: wanted.pool], order[wanted.pool :]
        cosine = vectors.cosines(self.ranked.item[pool], self.ranked.item[pool])
        new = diverse(self.score[pool], cosine, wanted.score_share, limit)
        for place, before in enumerate(new.tolist()):
            if place != before:
                self.applied[pool[before]].append(Applied(path, moved_from=before))
        return np.concatenate([pool[new], rest])


def _not_met(exclude: Exclude, history: History, at: float) -> Mask:
    """True for items that the user did none of these things with."""
    since = -np.inf if exclude.within_days is None else at - exclude.within_days * 86400.0
    kinds = [Kind(KINDS.index(name)) for name in exclude.events]
    met = history.item[np.isin(history.kind, kinds) & (history.at >= since)]
    if Kind.IMPRESSION in kinds:
        met = np.concatenate([met, history.shown_item[history.shown_at >= since]])
    met = met[met >= 0]
    return lambda rows, _: ~np.isin(rows, met)


def _check_pins(pins: list[Pin], path: str) -> None:
    ids: set[str] = set()
    places: set[int] = set()
    for k, pin in enumerate(pins):
        if pin.item_id in ids or pin.position in places:
            what = f"item {pin.item_id!r}" if pin.item_id in ids else f"position {pin.position}"
            raise RuleError(f"{path}.pin[{k}]", f"{what} is pinned twice; leave one of the two out")
        ids.add(pin.item_id)
        places.add(pin.position)
