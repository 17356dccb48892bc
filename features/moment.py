"""Moment: one user, the candidates of one list and one time, with the intermediate results that features share.

Each intermediate result is computed at most once. No result depends on the order of the candidates, not even in its
last bit: sums over the list run over sorted values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I8, I32, I64
from features.catalogue import Catalogue, Codes, Tags, means, totals
from features.columns import Column
from features.companions import Companions, buy_again_scores
from features.companions.comparison import compare
from features.context import NO_CONTEXT, Context
from features.decay import HALF_LIVES_S, ItemState
from features.history import History, Session, engagement_weights, session
from features.kernels.compiled import compiled
from features.kernels.slots import find, slots_of
from features.linear import Linear
from features.log import ATTRIBUTION_S, Kind
from features.neighbours import Neighbours
from features.popularity import PopularityRow, click_rates, popularity, shop_rate
from features.prior import standardize
from features.segments import Segments
from features.sequence import SequenceModel
from features.taste import taste_logit, taste_posterior_mean, taste_variance
from features.text.inverted_lists import InvertedLists
from features.text.vectors import Vectors, text_similarity
from features.text.vocabulary import Vocabulary

LONGEST = len(HALF_LIVES_S) - 1
RATES = (0.005, 0.98)
"""Click rates are clipped to this range, so that one click on an item nobody clicks is not an infinite residual."""
_NEWTON_STEPS = 12
_NEWTON_TOLERANCE = 1e-12
"""Newton's method stops after a step smaller than this, in log odds."""
AFFINITY_STRENGTH = 5.0
"""Impressions of an attribute value at which the residual of a user on it has half of its full weight."""


@dataclass(frozen=True)
class Items:
    """Everything known about items: the contents of a release, and the state that events change (`state`).

    vectors: of item texts. prior: float32[n + 1], click rate predicted from text and attributes, NaN if no
    lists were logged to fit it on. attribute_rates: float32[n + 1, a], click rate of the items that share a value of
    each attribute of `catalogue.by_attribute`, NaN as for `prior` and for an item without a value; empty before the
    first fit. factors: float32[n + 1, d], see `features.taste`; empty if no lists were logged to fit them on. segments:
    clusters of users, in the space of these factors. custom: custom features. columns: the columns of requests that
    are features.
    inverted: inverted lists of the vectors, None if the catalogue is small enough to compare every item. words:
    vocabulary of the catalogue, None if no query needs to be read. companions: tables of what goes with each item, None
    if neither features nor sources need them. linear: linear item-to-item model, None before anything is fitted.
    sequence: sequence model, None if there is none. attribution_s: time after an impression in which a click counts for
    it. Row `-1` of every array is the unknown item.
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
    columns: tuple[Column, ...] = ()
    inverted: InvertedLists | None = None
    words: Vocabulary | None = None
    attribution_s: float = ATTRIBUTION_S
    companions: Companions | None = None
    linear: Linear | None = None
    sequence: SequenceModel | None = None

    @cached_property
    def numbers(self) -> F64:
        """float64[n + 1, k]: numeric attributes at mean 0 and deviation 1, missing values at the mean."""
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
    """Texts that explain the contribution of a feature to a score, for a shopper or a shop owner.

    up, down: for a contribution that raises or lowers the score. at_zero: for either if the feature's value is 0, for
    counts that need another text then; empty if they do not.
    """

    up: str
    down: str
    at_zero: str = ""

    def of(self, value: float, contribution: float) -> str:
        """The text for a feature's value and contribution."""
        if value == 0 and self.at_zero:
            return self.at_zero
        return self.up if contribution > 0 else self.down


class Feature(NamedTuple):
    """One column of the feature table, declared once and computed by the same function in training and serving.

    name: of the column. about: description for reports. unit: of the value. missing: when it is NaN, or "never".
    compute: returns float64 or float32, one value per candidate or one for all. Features declared next to each other
    may share a function: it is called once and returns a row for each of them. group: features that `ablate` leaves out
    together; "own" for a custom feature. reasons: texts that explain its contributions; None if these are never listed.
    origin: for a custom feature, where its code is. of_history: its reasons are about the user's history, so that they
    explain nothing to a user without one.
    """

    name: str
    about: str
    unit: str
    missing: str
    compute: Callable[[Moment], F64 | F32 | float]
    group: str = "own"
    reasons: Reasons | None = None
    origin: str = ""
    of_history: bool = False


class Residuals(NamedTuple):
    """Observed minus expected clicks on the items shown to a user: the evidence of their taste.

    item: int32[s] shown items of the catalogue. residual: float64[s], clicked (1 or 0) minus `chance`. eagerness: the
    user's shift of all click rates, in log odds; 0 for an average user. chance: float64[s], probability of a click: the
    item's click rate, shifted by the eagerness.
    Without that shift, a user who clicks everything would seem to like every attribute.
    """

    item: I32
    residual: F64
    eagerness: float
    chance: F64


@compiled
def _clicked_after_shown(shown_item: I32, shown_at: F64, item: I32, at: F64, within_s: float) -> F64:
    """float64, like `shown_item`: 1 if the item was engaged with within `within_s` seconds of being shown, else 0."""
    slots = slots_of(item)
    # Link each engagement to the next older one with the same item, so that the newest leads to all of them.
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
    """float64[2, c]: share and residual of each candidate's tags; see `Moment.share` and `Moment.residual`."""
    total, _ = totals(start, tag, n_tags, item, weight)
    residual_sum, count = totals(start, tag, n_tags, shown_item, residual)
    return means(start, tag, _share_and_residual(total, weight.sum(), residual_sum, count, len(shown_item)), candidates)


@compiled
def _code_affinity(
    code: I32, missing: int, item: I32, weight: F64, shown_item: I32, residual: F64, candidates: I32
) -> F64:
    """`_tag_affinity` for an attribute with at most one value per item."""
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
        value_code = code[candidates[c]]
        out[0, c], out[1, c] = value[value_code, 0], value[value_code, 1]
    return out


@compiled
def _share_and_residual(total: F64, total_weight: float, residual_sum: F64, count: F64, shown: int) -> F64:
    """float64[values, 2]: share and residual of each attribute value; NaN without engagements or impressions."""
    out = np.full((len(total), 2), np.nan)
    for t in range(len(total)):
        if total_weight > 0:
            out[t, 0] = total[t] / total_weight
        if shown > 0:
            out[t, 1] = residual_sum[t] / (count[t] + AFFINITY_STRENGTH)
    return out


@compiled
def _numbers_and_slopes(deviation: F64, numbers: F64, item: I32, residual: F64, candidates: I32) -> F64:
    """float64[2k, c]: see `Moment.slopes`."""
    count = numbers.shape[1]
    out, slope = np.empty((2 * count, len(candidates))), np.full(count, np.nan)
    if len(item):
        for k in range(count):
            total = 0.0
            for j in range(len(item)):
                total += residual[j] * deviation[item[j], k]
            slope[k] = total / (len(item) + AFFINITY_STRENGTH)
    for c in range(len(candidates)):
        for k in range(count):
            value = numbers[candidates[c], k]
            out[2 * k, c] = value
            out[2 * k + 1, c] = np.nan if np.isnan(value) else slope[k] * deviation[candidates[c], k]
    return out


@compiled
def _usual_log_price(price: F64, item: I32, weight: F64) -> float:
    total = total_weight = 0.0
    for j in range(len(item)):
        if np.isfinite(price[item[j]]):
            total += np.log1p(max(price[item[j]], 0.0)) * weight[j]
            total_weight += weight[j]
    return total / total_weight if total_weight > 0.0 else np.nan


@compiled
def _expected_clicks(clicked: F64, rate: F64) -> tuple[float, F64]:
    """(eagerness, probability of a click on each item): rates shifted in log odds until they add up to the clicks.

    The shift has a unit normal prior. Newton's method converges from 0, because the equation is monotone. A NaN rate is
    replaced by the lower bound of `RATES`.
    """
    logit = np.empty(len(rate))
    for s in range(len(rate)):
        bounded = min(rate[s], RATES[1]) if rate[s] > RATES[0] else RATES[0]
        logit[s] = np.log(bounded / (1.0 - bounded))
    total = clicked.sum()
    shift = 0.0
    for _ in range(_NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-(logit + shift)))
        slope = 1.0 + (chance * (1.0 - chance)).sum()
        step = min(max((total - shift - chance.sum()) / slope, -2.0), 2.0)
        shift += step
        if abs(step) < _NEWTON_TOLERANCE:
            break
    return shift, 1.0 / (1.0 + np.exp(-(logit + shift)))


class Moment:
    """One user, the candidates of one list and one time, with the intermediate results that features share.

    candidates: int32[c] catalogue rows, `-1` unknown. at: Unix seconds. context: device and query of the request.
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
        """float64[c, kinds, half-lives]: decayed event counts of each candidate."""
        return self.items.state.of_items(self.candidates, self.at)

    @cached_property
    def popularity(self) -> F64:
        """float64[24, c]: user-independent features of each candidate; see `popularity`."""
        items = self.items
        price, available_from = items.catalogue.price, items.catalogue.available_from
        return popularity(items.state, items.prior, price, available_from, self.candidates, self.at)

    def shop_rate(self, kind: Kind, per: Kind) -> float:
        """Shop-wide events of kind `kind` per event of kind `per` at the longest half-life; NaN without the latter."""
        return shop_rate(self.items.state.value, int(kind), int(per))

    @property
    def click_rate(self) -> F64:
        """float64[c]: clicks per impression of each candidate at the longest half-life, shrunk; see `popularity`."""
        out: F64 = self.popularity[PopularityRow.CLICK_RATE + LONGEST]
        return out

    @property
    def log_price(self) -> F64:
        """float64[c]: log(1 + price) of each candidate; NaN if it has no price."""
        out: F64 = self.popularity[PopularityRow.PRICE]
        return out

    @cached_property
    def numbers(self) -> F64:
        """float64[c, k]: the numeric attributes of each candidate, as in the catalogue."""
        return self.items.catalogue.numbers.take(self.candidates, axis=0)

    @cached_property
    def slopes(self) -> F64:
        """float64[2k, c]: for each numeric attribute, its value and the user's slope times the value's deviation.

        The slope is the mean of residual times deviation, shrunk. NaN if the candidate lacks the attribute.
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
    def linear(self) -> F64:
        """float64[2, c]: scores of the linear model from the recent list and from all of it; see `Linear.scores`."""
        if self.items.linear is None:
            return np.zeros((2, len(self.candidates)))
        return self.items.linear.scores(self.candidates, self.engaged.item, self.engaged.at)

    @cached_property
    def text_similarity(self) -> F32:
        """float32[6, c]: text similarity of each candidate to the user's list and taste; NaN if either has no text.

        Rows: cosine with the pooled list; largest and mean of the 3 largest cosines with its items; cosine with the
        newest item; cosine with `taste`; the latter times the weight of evidence.
        """
        return text_similarity(self.interest, self.directions[1], len(self.residuals.item))

    @cached_property
    def sequence_cosine(self) -> F32:
        """float32[c]: cosine of each candidate with what the sequence model expects next.

        NaN for a user without history, and for an item without an embedding.
        """
        model, e = self.items.sequence, self.engaged
        assert model is not None, "only declared for items with a sequence model"
        return model.items.cosines_to(self.candidates, model.user_vector(e.item, e.kind, e.at, self.at))

    @cached_property
    def query_scores(self) -> F64:
        """float64[2, c]: cosine of each candidate's text with the query, and share of the query's words in it.

        Both are NaN without a query or if it has no words; the cosine is also NaN if none of its words is known.
        """
        if not self.context.query or self.items.words is None:
            return np.full((2, len(self.candidates)), np.nan)
        query = self.items.words.read(self.context.query)
        cosine = self.items.vectors.cosines_to(self.candidates, query.direction)
        return np.stack([cosine, self.items.words.match(query, self.candidates)])

    @cached_property
    def request_columns(self) -> F32:
        """float32[k, c]: the values of `items.columns` for each candidate; NaN if not sent."""
        sent, shape = self.context.columns, (len(self.items.columns), len(self.candidates))
        return np.full(shape, np.nan, np.float32) if sent is None else np.broadcast_to(sent, shape)

    @cached_property
    def seeds(self) -> I32:
        """int32[s]: the known seeds of the request."""
        seeds = self.context.seeds
        return seeds[seeds >= 0]

    @cached_property
    def of_seeds(self) -> F64:
        """float64[ROWS, c]: each candidate compared with the seeds; see `features.companions.comparison.compare`."""
        items = self.items
        assert items.companions is not None, "only declared for items with companions"
        return compare(items.companions, items.neighbours, items.vectors, items.catalogue, self.candidates, self.seeds)

    @cached_property
    def buy_again(self) -> F64:
        """float64[c]: how due the user is to buy each candidate again; NaN for one that they never bought."""
        assert self.items.companions is not None, "only declared for items with companions"
        bought, due = buy_again_scores(self.engaged, self.at, self.items.companions.repurchase_s)
        out = np.full(len(self.candidates), np.nan)
        if len(bought):
            place = np.minimum(np.searchsorted(bought, self.candidates), len(bought) - 1)
            out = np.where(bought[place] == self.candidates, due[place], out)
        return out

    @cached_property
    def co_occurrence(self) -> F64:
        """float64[2, c]: sum and maximum over the user's list; see `Neighbours.scores`."""
        return self.items.neighbours.scores(self.candidates, self.engaged.item, self.weight)

    @cached_property
    def repeats(self) -> F64:
        """float64[5, c]: how often and how recently the user met each candidate; NaN for an unknown item.

        Engagements, purchases, log(1 + seconds) since the newest engagement; impressions, log(1 + seconds) since the
        newest impression. A time is NaN if there was none.
        """
        e = self.engaged
        return _repeats(
            self.candidates, e.item, e.kind, e.at, self.shown_item, self.shown_at, self.at, int(Kind.PURCHASE)
        )

    @cached_property
    def session(self) -> Session:
        """The current session."""
        return session(self.engaged.at, self.shown_at, self.at)

    @cached_property
    def residuals(self) -> Residuals:
        """Observed minus expected clicks on the items shown to the user; empty if no lists were logged."""
        known = self.shown_item >= 0
        item, at = self.shown_item[known], self.shown_at[known]
        clicked = _clicked_after_shown(item, at, self.engaged.item, self.engaged.at, self.items.attribution_s)
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
        """float64[d]: posterior mean of the user's taste; None if they were shown nothing or there are no factors."""
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

    @property
    def taste_variance(self) -> F64:
        """float64[c]: variance of the log odds that the user's taste adds; 0 without factors, and for an unknown
        item."""
        evidence, factor = self.residuals, self.items.factors
        if not factor.size:
            return np.zeros(len(self.candidates))
        curvature = evidence.chance * (1.0 - evidence.chance)
        elsewhere = len(np.setdiff1d(self.engaged.item, evidence.item))
        return taste_variance(
            factor, self.candidates, evidence.item, curvature, float(evidence.chance.sum()), elsewhere
        )

    @cached_property
    def taste_logits(self) -> F32:
        """float32[2, c]: log odds of a click that the user's taste adds, and their sum with those of the click rate.

        The first row is NaN without a taste posterior or for an unknown item. The second row then has the log odds of
        the click rate alone.
        """
        return taste_logit(self.items.factors, self.candidates, self.taste_posterior, self.click_rate, RATES)

    @cached_property
    def usual_log_price(self) -> float:
        """Weighted mean of log(1 + price) over the user's list; NaN if no price in it is known."""
        return _usual_log_price(self.items.catalogue.price, self.engaged.item, self.weight)

    def share(self, tags: Tags | Codes) -> F64:
        """float64[c], 0 to 1: share of the user's engagement that went to items with the candidate's tags."""
        out: F64 = self.affinity(tags)[0]
        return out

    def residual(self, tags: Tags | Codes) -> F64:
        """float64[c], -1 to 1: mean of observed minus expected clicks of the user on the candidate's tags, shrunk."""
        out: F64 = self.affinity(tags)[1]
        return out

    def affinity(self, tags: Tags | Codes) -> F64:
        """float64[2, c]: `share` and `residual`."""
        # Cached by identity: comparing arrays would cost what the cache saves, and `items` keeps them alive.
        affinity = self._affinities.get(id(tags))
        if affinity is None:
            item, weight, candidates = self.engaged.item, self.weight, self.candidates
            shown_item, residual = self.residuals.item, self.residuals.residual
            affinity = self._affinities[id(tags)] = (
                _code_affinity(tags.code, tags.missing, item, weight, shown_item, residual, candidates)
                if isinstance(tags, Codes)
                else _tag_affinity(tags.start, tags.tag, tags.n_tags, item, weight, shown_item, residual, candidates)
            )
        return affinity
