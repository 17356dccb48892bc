"""A moment: one user, the candidates of one list, one time; what every feature is computed from, each part once.

Nothing here depends on the order of the candidates, to the last bit: sums over the list run over sorted values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from features.catalogue import Catalogue, Tags
from features.compiled import compiled
from features.context import NO_CONTEXT, Context
from features.decay import HALF_LIVES_S, ItemState
from features.history import History, Visit, visit
from features.interest import weights
from features.log import F32, F64, I8, I32, Kind
from features.neighbours import Neighbours
from features.prior import standardised
from features.vectors import Vectors

LONGEST = len(HALF_LIVES_S) - 1
RATE_STRENGTH = 10.0
"""Impressions that the prior counts for in a click rate; clicks that the shop's rate counts for in a purchase rate."""
ATTRIBUTION_S = 86400.0
"""A click this long after an impression of the item is still its click."""
_RATES = (0.005, 0.98)
"""Rates beyond these are taken for these: one click on an item nobody clicks is no infinite surprise."""
_NEWTON_STEPS = 12
AFFINITY_STRENGTH = 5.0
"""Impressions of an attribute value at which what a user did with it counts for half."""


@dataclass(frozen=True)
class Items:
    """All that is known of items: what a release carries and what events change (`state`).

    vectors: of item texts. prior: float32[n + 1], the click rate that text and attributes predict, NaN where nothing
    was logged to learn it from. attribute_rates: float32[n + 1, a], the click rate of items that share a value of each
    attribute of `catalogue.by_attribute`, NaN likewise or for an item without; empty before anything is known.
    custom: features of the user's own. Row `-1` of everything is the unknown item.
    """

    catalogue: Catalogue
    vectors: Vectors
    prior: F32
    neighbours: Neighbours
    state: ItemState
    attribute_rates: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    custom: tuple[Feature, ...] = ()

    @cached_property
    def numbers(self) -> F64:
        """float64[n + 1, k]: the numeric attributes at zero mean and unit deviation, missing at the mean."""
        return standardised(self.catalogue.numbers)

    @cached_property
    def category(self) -> Tags:
        """The category of each item."""
        return Tags.single(self.catalogue.category, len(self.catalogue.category_names))

    @cached_property
    def brand(self) -> Tags:
        """The brand of each item."""
        return Tags.single(self.catalogue.brand, len(self.catalogue.brand_names))


class Feature(NamedTuple):
    """One column of a row: declared once, computed by the same line in training and in service.

    about: what it says, for people. unit: of the value. missing: when it is NaN, or "never".
    compute: float64 or float32, one value a candidate, or one value for all.
    origin: of a feature of the user's own, where its code is.
    """

    name: str
    about: str
    unit: str
    missing: str
    compute: Callable[[Moment], F64 | F32 | float]
    origin: str = ""


class Residuals(NamedTuple):
    """What a user did with what he was shown, less what he would have done by the items alone: the evidence of taste.

    item: int32[s] shown items of the catalogue. surprise: float64[s], clicked (1 or 0) minus the chance that he would:
    the item's click rate moved, for all of them alike, by his eagerness. eagerness: log odds, 0 for one like the rest.
    Without that shift, somebody who clicks everything would seem to like every attribute.
    """

    item: I32
    surprise: F64
    eagerness: float


@compiled
def _clicked(shown_item: I32, shown_at: F64, item: I32, at: F64, within_s: float) -> F64:
    out = np.zeros(len(shown_item))
    for s in range(len(shown_item)):
        for e in range(len(item)):
            if item[e] == shown_item[s] and 0.0 <= at[e] - shown_at[s] <= within_s:
                out[s] = 1.0
                break
    return out


class Repeats(NamedTuple):
    """How often, and how lately, the user met each candidate. float64[c] each; NaN for an unknown item.

    engaged, bought, shown: times in the user's lists. engaged_s, shown_s: seconds since the newest, NaN for never.
    """

    engaged: F64
    bought: F64
    engaged_s: F64
    shown: F64
    shown_s: F64


@compiled
def _repeats(
    candidates: I32, item: I32, kind: I8, at: F64, shown_item: I32, shown_at: F64, now: float, bought: int
) -> F64:  # fmt: skip
    """float64[5, c], the fields of `Repeats`. Both lists are newest first, so the first match is the newest."""
    out = np.full((5, len(candidates)), np.nan)
    for c in range(len(candidates)):
        if candidates[c] < 0:
            continue
        out[0, c] = out[1, c] = out[3, c] = 0.0
        for e in range(len(item)):
            if item[e] == candidates[c]:
                if out[0, c] == 0.0:
                    out[2, c] = max(now - at[e], 0.0)
                out[0, c] += 1.0
                if kind[e] == bought:
                    out[1, c] += 1.0
        for e in range(len(shown_item)):
            if shown_item[e] == candidates[c]:
                if out[3, c] == 0.0:
                    out[4, c] = max(now - shown_at[e], 0.0)
                out[3, c] += 1.0
    return out


@compiled
def _expected(clicked: F64, rate: F64) -> tuple[float, F64]:
    """(eagerness, chance of a click on each): rates shifted in log odds until the chances add up to the clicks.

    With a unit normal prior on the shift; Newton's method, which converges from 0 as the equation is monotone.
    """
    odds = np.log(rate / (1.0 - rate))
    total = clicked.sum()
    shift = 0.0
    chance = rate.copy()
    for _ in range(_NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-(odds + shift)))
        slope = 1.0 + (chance * (1.0 - chance)).sum()
        shift += min(max((total - shift - chance.sum()) / slope, -2.0), 2.0)
    return shift, 1.0 / (1.0 + np.exp(-(odds + shift)))


class Moment:
    """One user, the candidates of one list, one time, and what follows from them.

    candidates: int32[c] rows of the catalogue, `-1` unknown. at: Unix seconds. context: what the request says of
    itself.
    columns: the features computed so far, by name, for those that compare a candidate with its list.
    """

    def __init__(
        self, items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT
    ) -> None:
        self.items = items
        self.candidates = candidates
        self.at = at
        self.context = context
        self.columns: dict[str, F32] = {}
        known = history.item >= 0
        self.engaged = history if known.all() else history._replace(
            item=history.item[known], kind=history.kind[known], at=history.at[known]
        )  # fmt: skip
        self.shown_item, self.shown_at = history.shown_item, history.shown_at
        self.weight = weights(self.engaged.kind, np.maximum(at - self.engaged.at, 0.0)).astype(np.float64)

    @cached_property
    def counts(self) -> F64:
        """float64[c, kinds, half-lives]: decayed events of each candidate."""
        return self.items.state.of_items(self.candidates, self.at)

    @cached_property
    def category_counts(self) -> F64:
        """float64[c, kinds, half-lives]: decayed events of each candidate's category."""
        return self.items.state.of_categories(self.candidates, self.at)

    @cached_property
    def shop_counts(self) -> F64:
        """float64[kinds, half-lives]: decayed events of the shop."""
        return self.items.state.of_shop(self.at)

    def shop_rate(self, kind: Kind, per: Kind) -> float:
        """Events of one kind for each of another, shop-wide at the longest half-life; NaN before any."""
        base = self.shop_counts[per, LONGEST]
        return float(self.shop_counts[kind, LONGEST] / base) if base > 0 else np.nan

    def click_rate(self, item: I32, counts: F64, half_life: int) -> F64:
        """float64, like `item`: clicks per impression, shrunk toward what text and attributes predict.

        `(clicks + s * prior) / (impressions + s)` with s = `RATE_STRENGTH`; NaN before anything was shown.
        """
        prior = self.items.prior[item].astype(np.float64)
        prior = np.where(np.isnan(prior), self.shop_rate(Kind.CLICK, Kind.IMPRESSION), prior)
        clicks, shown = counts[:, Kind.CLICK, half_life], counts[:, Kind.IMPRESSION, half_life]
        out: F64 = (clicks + RATE_STRENGTH * prior) / (shown + RATE_STRENGTH)
        return out

    @cached_property
    def cosines(self) -> F32:
        """float32[c, m]: cosine of each candidate with each item of the user's list, newest first; NaN without text."""
        return self.items.vectors.cosines(self.candidates, self.engaged.item)

    @cached_property
    def sorted_cosines(self) -> F32:
        """float32[c, m]: the cosines descending, missing ones as -1."""
        return -np.sort(-np.nan_to_num(self.cosines, nan=-1.0), axis=1)

    @cached_property
    def co_occurrence(self) -> tuple[F64, F64]:
        """float64[c] sum and maximum over the user's list; see `Neighbours.scores`."""
        return self.items.neighbours.scores(self.candidates, self.engaged.item, self.weight)

    @cached_property
    def repeats(self) -> Repeats:
        """What the user's lists say of each candidate itself."""
        e = self.engaged
        return Repeats(*_repeats(
            self.candidates, e.item, e.kind, e.at, self.shown_item, self.shown_at, self.at, int(Kind.PURCHASE)
        ))  # fmt: skip

    @cached_property
    def visit(self) -> Visit:
        """The visit under way."""
        return visit(self.engaged.at, self.shown_at, self.at)

    @cached_property
    def residuals(self) -> Residuals:
        """The evidence of what the user was shown, clicked or not; empty where no lists were logged."""
        known = self.shown_item >= 0
        item, at = self.shown_item[known], self.shown_at[known]
        clicked = _clicked(item, at, self.engaged.item, self.engaged.at, ATTRIBUTION_S)
        rate = self.click_rate(item, self.items.state.of_items(item, self.at), LONGEST)
        eagerness, expected = _expected(clicked, np.clip(np.nan_to_num(rate), *_RATES))
        return Residuals(item, clicked - expected, eagerness)

    @cached_property
    def taste(self) -> F64:
        """float64[d]: item vectors weighted by surprise: toward unexpected clicks, away from unexpected skips."""
        return self.items.vectors.pooled(self.residuals.item, self.residuals.surprise)

    def share(self, tags: Tags) -> F64 | float:
        """float64[c], 0 to 1: the part of the user's engagement that went to items with the candidate's tags."""
        if not self.weight.sum() > 0:
            return np.nan
        total, _ = tags.totals(self.engaged.item, self.weight)
        return tags.mean(total / self.weight.sum(), self.candidates)

    def surprise(self, tags: Tags) -> F64 | float:
        """float64[c], -1 to 1: how much more than others the user clicked what has the candidate's tags."""
        if not len(self.residuals.item):
            return np.nan
        total, count = tags.totals(self.residuals.item, self.residuals.surprise)
        return tags.mean(total / (count + AFFINITY_STRENGTH), self.candidates)
