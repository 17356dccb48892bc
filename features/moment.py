"""A moment: one user, the candidates of one list, one time; what every feature is computed from, each part once.

Nothing here depends on the order of the candidates, to the last bit: sums over the list run over sorted values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I8, I32, I64
from features.catalogue import Catalogue, Codes, Tags, means, totals
from features.context import NO_CONTEXT, Context
from features.decay import HALF_LIVES_S, ItemState
from features.history import History, Session, engagement_weights, session
from features.kernels.compiled import compiled
from features.kernels.slots import find, slots_of
from features.log import Kind
from features.neighbours import Neighbours
from features.popularity import PopularityRow, click_rates, popularity, shop_rate
from features.prior import standardize
from features.segments import Segments
from features.taste import taste_logit, taste_posterior_mean
from features.text.inverted_lists import InvertedLists
from features.text.vectors import Vectors, text_similarity
from features.text.vocabulary import Vocabulary

LONGEST = len(HALF_LIVES_S) - 1
ATTRIBUTION_S = 86400.0
"""A click this long after an impression of the item is still its click."""
RATES = (0.005, 0.98)
"""Rates beyond these are taken for these: one click on an item nobody clicks is no infinite residual."""
_NEWTON_STEPS = 12
_SETTLED = 1e-12
"""A step of Newton's, in log odds, after which there is no other."""
AFFINITY_STRENGTH = 5.0
"""Impressions of an attribute value at which what a user did with it counts for half."""


@dataclass(frozen=True)
class Items:
    """All that is known of items: what a release carries and what events change (`state`).

    vectors: of item texts. prior: float32[n + 1], the click rate that text and attributes predict, NaN where nothing
    was logged to learn it from. attribute_rates: float32[n + 1, a], the click rate of items that share a value of each
    attribute of `catalogue.by_attribute`, NaN likewise or for an item without; empty before anything is known.
    factors: float32[n + 1, d], see `features.taste`; empty where nothing was logged to learn them from. segments: of
    shoppers, by these factors.
    custom: features of the user's own. inverted: of the vectors, None where the catalogue is small enough to compare
    every item. words: of the catalogue, None where there is no query to be read. Row `-1` of everything is the unknown
    item.
    """

    catalogue: Catalogue
    vectors: Vectors
    prior: F32
    neighbours: Neighbours
    state: ItemState
    attribute_rates: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    factors: F32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    segments: Segments = field(default_factory=Segments.none)
    custom: tuple[Feature, ...] = ()
    inverted: InvertedLists | None = None
    words: Vocabulary | None = None

    @cached_property
    def numbers(self) -> F64:
        """float64[n + 1, k]: the numeric attributes at zero mean and unit deviation, missing at the mean."""
        return standardize(self.catalogue.numbers)

    @cached_property
    def category(self) -> Codes:
        """The category of each item."""
        return Codes(self.catalogue.category, len(self.catalogue.category_names))

    @cached_property
    def brand(self) -> Codes:
        """The brand of each item."""
        return Codes(self.catalogue.brand, len(self.catalogue.brand_names))

    def of_category(self, category: int) -> I32:
        """int32, ascending: the rows of all items in a category."""
        order, start = self._by_category
        return order[start[category] : start[category + 1]]

    @cached_property
    def _by_category(self) -> tuple[I32, I64]:
        category = self.catalogue.category[: len(self.catalogue)]
        order = np.argsort(category, kind="stable").astype(np.int32)
        return order, np.searchsorted(category[order], np.arange(len(self.catalogue.category_names) + 1))


class Reasons(NamedTuple):
    """What a contribution of a feature to a score is called when it is explained to a shopper or a shop owner.

    up, down: of a contribution that raises and that lowers the score. at_zero: of either where the feature's value is
    0, for counts that mean something else then; empty where they do not.
    """

    up: str
    down: str
    at_zero: str = ""

    def of(self, value: float, contribution: float) -> str:
        """The text for one row of a list."""
        if value == 0 and self.at_zero:
            return self.at_zero
        return self.up if contribution > 0 else self.down


class Feature(NamedTuple):
    """One column of a row: declared once, computed by the same function in training and in service.

    name: of the column. about: description for reports. unit: of the value. missing: when it is NaN, or "never".
    compute: float64 or float32, one value a candidate, or one value for all. Features declared next to each other may
    share one: it is called once, and gives a row for each of them. group: what `ablate` leaves out together; "own" for
    a feature of the user's own. reasons: how its contributions are explained; None where they are not listed as
    reasons. origin: of a feature of the user's own, where its code is.
    """

    name: str
    about: str
    unit: str
    missing: str
    compute: Callable[[Moment], F64 | F32 | float]
    group: str = "own"
    reasons: Reasons | None = None
    origin: str = ""


class Residuals(NamedTuple):
    """What a user did with what he was shown, less what he would have done by the items alone: the evidence of taste.

    item: int32[s] shown items of the catalogue. residual: float64[s], clicked (1 or 0) minus the chance that he would:
    the item's click rate moved, for all of them alike, by his eagerness. eagerness: log odds, 0 for one like the rest.
    chance: float64[s], that chance.
    Without that shift, somebody who clicks everything would seem to like every attribute.
    """

    item: I32
    residual: F64
    eagerness: float
    chance: F64


@compiled
def _clicked_after_shown(shown_item: I32, shown_at: F64, item: I32, at: F64, within_s: float) -> F64:
    """float64, like `shown_item`: 1 where the item was engaged with within that time of being shown, else 0."""
    slots = slots_of(item)
    # Of each engagement the one before with the same item, so that all of an item's are found from its newest.
    older, oldest = np.full(len(item), -1, np.int32), np.arange(len(item))
    for e in range(len(item)):
        newest = find(slots, item, item[e])
        if newest >= 0 and newest != e:
            older[oldest[newest]] = e
            oldest[newest] = e
    out = np.zeros(len(shown_item))
    for s in range(len(shown_item)):
        e = find(slots, item, shown_item[s])
        while e >= 0 and out[s] == 0.0:
            if 0.0 <= at[e] - shown_at[s] <= within_s:
                out[s] = 1.0
            e = older[e]
    return out


@compiled
def _repeats(
    candidates: I32, item: I32, kind: I8, at: F64, shown_item: I32, shown_at: F64, now: float, bought: int
) -> F64:
    """float64[5, c]: see `Moment.repeats`. Both lists are newest first, so the first match is the newest."""
    slots, shown_slots = slots_of(item), slots_of(shown_item)
    times, purchases, shown_times = np.zeros(len(item)), np.zeros(len(item)), np.zeros(len(shown_item))
    for e in range(len(item)):
        if item[e] >= 0:
            newest = find(slots, item, item[e])
            times[newest] += 1.0
            purchases[newest] += kind[e] == bought
    for e in range(len(shown_item)):
        if shown_item[e] >= 0:
            shown_times[find(shown_slots, shown_item, shown_item[e])] += 1.0
    out = np.full((5, len(candidates)), np.nan)
    for c in range(len(candidates)):
        if candidates[c] < 0:
            continue
        out[0, c] = out[1, c] = out[3, c] = 0.0
        e = find(slots, item, candidates[c])
        if e >= 0:
            out[0, c], out[1, c], out[2, c] = times[e], purchases[e], np.log1p(max(now - at[e], 0.0))
        e = find(shown_slots, shown_item, candidates[c])
        if e >= 0:
            out[3, c], out[4, c] = shown_times[e], np.log1p(max(now - shown_at[e], 0.0))
    return out


@compiled
def _tag_affinity(
    start: I64, tag: I32, n_tags: int, item: I32, weight: F64, shown_item: I32, residual: F64, candidates: I32
) -> F64:
    """float64[2, c]: the share and the residual of each candidate's tags, see `Moment.share` and `Moment.residual`."""
    total, _ = totals(start, tag, n_tags, item, weight)
    residual_sum, count = totals(start, tag, n_tags, shown_item, residual)
    return means(start, tag, _share_and_residual(total, weight.sum(), residual_sum, count, len(shown_item)), candidates)


@compiled
def _code_affinity(
    code: I32, missing: int, item: I32, weight: F64, shown_item: I32, residual: F64, candidates: I32
) -> F64:
    """The same for an attribute with at most one value an item."""
    total, residual_sum, count = np.zeros(missing + 1), np.zeros(missing + 1), np.zeros(missing + 1)
    for j in range(len(item)):
        total[code[item[j]]] += weight[j]
    for j in range(len(shown_item)):
        residual_sum[code[shown_item[j]]] += residual[j]
        count[code[shown_item[j]]] += 1.0
    value = _share_and_residual(total, weight.sum(), residual_sum, count, len(shown_item))
    value[missing] = np.nan
    out = np.empty((2, len(candidates)))
    for c in range(len(candidates)):
        of = code[candidates[c]]
        out[0, c], out[1, c] = value[of, 0], value[of, 1]
    return out


@compiled
def _share_and_residual(total: F64, of: float, residual_sum: F64, count: F64, shown: int) -> F64:
    """float64[values, 2]: share and residual of each value of an attribute; NaN where there is no list to tell."""
    out = np.full((len(total), 2), np.nan)
    for t in range(len(total)):
        if of > 0:
            out[t, 0] = total[t] / of
        if shown > 0:
            out[t, 1] = residual_sum[t] / (count[t] + AFFINITY_STRENGTH)
    return out


@compiled
def _numbers_and_slopes(deviation: F64, numbers: F64, item: I32, residual: F64, candidates: I32) -> F64:
    """float64[2k, c]: see `Moment.slopes`."""
    count = numbers.shape[1]
    out, pull = np.empty((2 * count, len(candidates))), np.full(count, np.nan)
    if len(item):
        for k in range(count):
            total = 0.0
            for j in range(len(item)):
                total += residual[j] * deviation[item[j], k]
            pull[k] = total / (len(item) + AFFINITY_STRENGTH)
    for c in range(len(candidates)):
        for k in range(count):
            value = numbers[candidates[c], k]
            out[2 * k, c] = value
            out[2 * k + 1, c] = np.nan if np.isnan(value) else pull[k] * deviation[candidates[c], k]
    return out


@compiled
def _usual_log_price(price: F64, item: I32, weight: F64) -> float:
    total = of = 0.0
    for j in range(len(item)):
        if np.isfinite(price[item[j]]):
            total += np.log1p(max(price[item[j]], 0.0)) * weight[j]
            of += weight[j]
    return total / of if of > 0.0 else np.nan


@compiled
def _expected_clicks(clicked: F64, rate: F64) -> tuple[float, F64]:
    """(eagerness, chance of a click on each): rates shifted in log odds until the chances add up to the clicks.

    With a unit normal prior on the shift; Newton's method, which converges from 0 as the equation is monotone.
    A rate that is NaN is taken for the least of `RATES`.
    """
    odds = np.empty(len(rate))
    for s in range(len(rate)):
        bounded = min(rate[s], RATES[1]) if rate[s] > RATES[0] else RATES[0]
        odds[s] = np.log(bounded / (1.0 - bounded))
    total = clicked.sum()
    shift = 0.0
    for _ in range(_NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-(odds + shift)))
        slope = 1.0 + (chance * (1.0 - chance)).sum()
        step = min(max((total - shift - chance.sum()) / slope, -2.0), 2.0)
        shift += step
        if abs(step) < _SETTLED:
            break
    return shift, 1.0 / (1.0 + np.exp(-(odds + shift)))


class Moment:
    """One user, the candidates of one list, one time, and what follows from them.

    candidates: int32[c] rows of the catalogue, `-1` unknown. at: Unix seconds. context: what the request says of
    itself.
    columns: float32[c] by name, the features computed so far, for those that compare a candidate with its list.
    """

    def __init__(
        self, items: Items, history: History, candidates: I32, at: float, context: Context = NO_CONTEXT
    ) -> None:
        self.items = items
        self.candidates = candidates
        self.at = at
        self.context = context
        self.columns: Mapping[str, F32] = {}
        self._affinities: dict[int, F64] = {}
        known = history.item >= 0
        self.engaged = (
            history
            if known.all()
            else history._replace(item=history.item[known], kind=history.kind[known], at=history.at[known])
        )
        self.shown_item, self.shown_at = history.shown_item, history.shown_at
        self.weight = engagement_weights(self.engaged.kind, np.maximum(at - self.engaged.at, 0.0)).astype(np.float64)

    @cached_property
    def counts(self) -> F64:
        """float64[c, kinds, half-lives]: decayed events of each candidate."""
        return self.items.state.of_items(self.candidates, self.at)

    @cached_property
    def popularity(self) -> F64:
        """float64[24, c]: what is the same of each candidate whoever asks; see `popularity`."""
        items = self.items
        price, available_from = items.catalogue.price, items.catalogue.available_from
        return popularity(items.state, items.prior, price, available_from, self.candidates, self.at)

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
        return shop_rate(self.items.state.value, int(kind), int(per))

    @property
    def click_rate(self) -> F64:
        """float64[c]: clicks per impression of each candidate at the longest half-life, shrunk; see `popularity`."""
        out: F64 = self.popularity[PopularityRow.CLICK_RATE + LONGEST]
        return out

    @property
    def log_price(self) -> F64:
        """float64[c]: log(1 + price) of each candidate; NaN where it has none."""
        out: F64 = self.popularity[PopularityRow.PRICE]
        return out

    @cached_property
    def numbers(self) -> F64:
        """float64[c, k]: the numeric attributes of each candidate, as in the catalogue."""
        return self.items.catalogue.numbers.take(self.candidates, axis=0)

    @cached_property
    def slopes(self) -> F64:
        """float64[2k, c]: each numeric attribute of each candidate, then the user's leaning in it times its deviation.

        The leaning is the mean of residual times deviation, shrunk. NaN where the candidate lacks the attribute.
        """
        item, residual = self.residuals[:2]
        return _numbers_and_slopes(self.items.numbers, self.items.catalogue.numbers, item, residual, self.candidates)

    @cached_property
    def interest(self) -> F32:
        """float32[m + 2, c]: `cosines` by listed item, then the cosines with the pooled list and with `taste`."""
        return self.items.vectors.interest(self.candidates, self.engaged.item, self.directions)

    @property
    def cosines(self) -> F32:
        """float32[c, m]: cosine of each candidate with each item of the user's list, newest first; NaN without text."""
        return self.interest[:-2].T

    @cached_property
    def text_similarity(self) -> F32:
        """float32[6, c]: cosines with the pooled list, the largest and the mean of the 3 largest with its items, with
        the newest, and with `taste`; then that times the weight of evidence. NaN without any.
        """
        return text_similarity(self.interest, self.directions[1], len(self.residuals.item))

    @cached_property
    def query_scores(self) -> F64:
        """float64[2, c]: cosine of each candidate's text with the query, and the share of the query's words it holds.

        NaN without a query, or where it has no word in it; the cosine also where none of its words is known.
        """
        if not self.context.query or self.items.words is None:
            return np.full((2, len(self.candidates)), np.nan)
        query = self.items.words.read(self.context.query)
        cosine = self.items.vectors.toward(self.candidates, query.direction)
        return np.stack([cosine, self.items.words.match(query, self.candidates)])

    @cached_property
    def co_occurrence(self) -> F64:
        """float64[2, c]: sum and maximum over the user's list; see `Neighbours.scores`."""
        return self.items.neighbours.scores(self.candidates, self.engaged.item, self.weight)

    @cached_property
    def repeats(self) -> F64:
        """float64[5, c]: how often, and how lately, the user met each candidate; NaN for an unknown item.

        Engagements, purchases, log(1 + seconds) since the newest engagement; impressions, and the same of them. NaN
        for never.
        """
        e = self.engaged
        return _repeats(
            self.candidates, e.item, e.kind, e.at, self.shown_item, self.shown_at, self.at, int(Kind.PURCHASE)
        )

    @cached_property
    def session(self) -> Session:
        """The visit under way."""
        return session(self.engaged.at, self.shown_at, self.at)

    @cached_property
    def residuals(self) -> Residuals:
        """The evidence of what the user was shown, clicked or not; empty where no lists were logged."""
        known = self.shown_item >= 0
        item, at = self.shown_item[known], self.shown_at[known]
        clicked = _clicked_after_shown(item, at, self.engaged.item, self.engaged.at, ATTRIBUTION_S)
        state = self.items.state
        rate = click_rates(state.value, state.latest, self.items.prior, len(state.category) - 1, item, self.at)
        eagerness, expected = _expected_clicks(clicked, rate)
        return Residuals(item, clicked - expected, eagerness, expected)

    @cached_property
    def directions(self) -> F64:
        """float64[2, d]: the weighted sum of the vectors of the user's list, and `taste`."""
        evidence = self.residuals
        return self.items.vectors.pooled_pair(self.engaged.item, self.weight, evidence.item, evidence.residual)

    @property
    def taste(self) -> F64:
        """float64[d]: item vectors weighted by residual: toward unexpected clicks, away from unexpected skips."""
        out: F64 = self.directions[1]
        return out

    @cached_property
    def taste_posterior(self) -> F64 | None:
        """float64[d]: the user's taste over taste factors; None where he was shown nothing, or there are no factors."""
        evidence, factor = self.residuals, self.items.factors
        if not (len(evidence.item) and factor.size):
            return None
        curvature = evidence.chance * (1.0 - evidence.chance)
        elsewhere = np.setdiff1d(self.engaged.item, evidence.item)
        return taste_posterior_mean(
            factor,
            *self.items.segments,
            evidence.item,
            evidence.residual,
            curvature,
            float(evidence.chance.sum()),
            elsewhere,
        )

    @cached_property
    def taste_logits(self) -> F32:
        """Taste in log odds of a click, float32[2, c]: what `taste_posterior` adds, and the sum with the item's rate.

        The first row is NaN where there is no taste posterior or the item is unknown; the second then adds nothing.
        """
        return taste_logit(self.items.factors, self.candidates, self.taste_posterior, self.click_rate, RATES)

    @cached_property
    def usual_log_price(self) -> float:
        """The weighted mean of log(1 + price) over the user's list; NaN where no price in it is known."""
        return _usual_log_price(self.items.catalogue.price, self.engaged.item, self.weight)

    def share(self, tags: Tags | Codes) -> F64:
        """float64[c], 0 to 1: the part of the user's engagement that went to items with the candidate's tags."""
        out: F64 = self.affinity(tags)[0]
        return out

    def residual(self, tags: Tags | Codes) -> F64:
        """float64[c], -1 to 1: how much more than others the user clicked what has the candidate's tags."""
        out: F64 = self.affinity(tags)[1]
        return out

    def affinity(self, tags: Tags | Codes) -> F64:
        """float64[2, c]: `share` and `residual`."""
        # By identity: comparing would cost what this saves, and `items` keeps them alive.
        found = self._affinities.get(id(tags))
        if found is None:
            item, weight, candidates = self.engaged.item, self.weight, self.candidates
            shown_item, residual = self.residuals.item, self.residuals.residual
            found = self._affinities[id(tags)] = (
                _code_affinity(tags.code, tags.missing, item, weight, shown_item, residual, candidates)
                if isinstance(tags, Codes)
                else _tag_affinity(tags.start, tags.tag, tags.n_tags, item, weight, shown_item, residual, candidates)
            )
        return found
