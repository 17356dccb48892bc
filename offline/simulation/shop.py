"""The simulated shop itself, day by day: who comes, what a mediocre shop puts before them, and what they do with it.

The shop's own order knows popularity, newness and the page's department, never the person. What it counts of one day
decides what it shows the next, so the popular grow more popular, as in life.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I8, I16, I32, I64
from features.log import KINDS, Kind
from offline.config import POSITION_BIAS
from offline.simulation.products import DAY_US, Products
from offline.simulation.searches import Searches, SearchIntents
from offline.simulation.shoppers import Mood, Response, Shoppers, response
from offline.simulation.vocabulary import DEPARTMENTS
from ranker.examination import power_law

_LISTS_PER_VISIT = 1.7
_VISITS_WITH_SEARCH = 0.2
_LOOKED_OVER = 40
"""Items among which somebody who looks for something has his."""
_PAGE_POOL = 1000
"""Items a page chooses from at one time: a big shop puts out a part of its stock, then another part."""
_CHUNK = 2048
"""Lists drawn at once: bounds memory to some hundred megabytes whatever the size of the day."""
_SECOND_US = 1_000_000
DEVICES_IN_USE = ("mobile", "desktop", "app", "tablet", "smart tv")
_DEVICE_SHARES = np.array([0.44, 0.32, 0.14, 0.07, 0.03])
_USUAL_DEVICE, _NO_DEVICE = 0.8, 0.04
"""Visits on the shopper's usual device, the others on any; and visits of which none was logged."""
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 14, 12, 11, 11, 12, 14, 17, 20, 22, 18], np.float64)
"""Relative traffic by hour, UTC. Nobody comes after 22:00, so every visit ends within its day."""


@dataclass(frozen=True)
class DayLog:
    """One day's events, sorted by (time, event name, item): utility and propensity are NaN except for impressions.

    propensity: the chance that the item came to stand at its position; NaN throughout where the shop does not explore.
    device: which of `DEVICES_IN_USE`, `-1` for none. query: of an impression, which of the texts of `Searches`, `-1`
    for none.
    """

    kind: I8
    user: I32
    item: I32
    at_us: I64
    request: I64
    position: I16
    value: F64
    visit: I64
    utility: F64
    propensity: F64
    device: I8
    query: I32

    @classmethod
    def merged(cls, parts: list[DayLog]) -> DayLog:
        columns = [np.concatenate([getattr(p, name) for p in parts]) for name in (f.name for f in fields(cls))]
        kind, _, item, at_us, request, *_ = columns
        by_name = np.argsort(np.argsort(KINDS))[kind]
        order = np.lexsort((request, item, by_name, at_us))
        return cls(*(c[order] for c in columns))


@dataclass(frozen=True)
class ListRequests:
    """Lists asked for: who, when, in which visit, on which page (a department, `-1` the front page), in what mood.

    device: as in `DayLog`. A visit stands here as its first list, on the front page.
    """

    user: I32
    at_us: I64
    visit: I64
    page: I32
    mood: Mood
    device: I8

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> ListRequests:
        mood = Mood(self.mood.department[rows], self.mood.use[rows])
        return ListRequests(
            self.user[rows], self.at_us[rows], self.visit[rows], self.page[rows], mood, self.device[rows]
        )


@dataclass
class Shop:
    """The shop from day to day: what it has counted so far, and what the simulation knows of it."""

    stock: Products
    shoppers: Shoppers
    fashion: F64
    opening_us: int
    lists_per_user_day: float
    list_length: int
    rng: np.random.Generator
    explore: float = 0.0
    """Share of the lists that are put in a random order."""
    explore_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    device_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    position_bias: float = POSITION_BIAS
    search_share: float = 0.0
    """Share of the lists that answer words which the shopper typed."""
    search_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    searches: Searches = field(init=False)
    usual_device: I8 = field(init=False)
    clicks: F64 = field(init=False)
    owned: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    visits: int = 0
    lists: int = 0

    def __post_init__(self) -> None:
        # The shop has counted clicks before the log begins: a rough picture of appeal, skewed as sales are.
        noise = self.rng.normal(0, 0.8, len(self.stock))
        self.usual_device = self._any_device(len(self.shoppers))
        self.searches = Searches(self.stock, self.search_rng)
        known = self.stock.available_us < self.opening_us
        self.clicks = np.where(known, 3 * np.exp(0.7 * self.stock.appeal + noise), 0)

    def day(self, day: int) -> DayLog:
        """Everything that happens on one day, in order; the shop's counts go on."""
        weight = self._weight(day)
        lists, searches = self.coming(day)
        parts = [searches]
        for lo in range(0, len(lists.user), _CHUNK):
            chunk = lists[lo : lo + _CHUNK]
            filled = self._fill(chunk.page, weight)
            sought = self._search(day, chunk, weight, filled)
            item, propensity = self._explored(filled)
            parts.extend(self.shown(day, chunk, self.lists + lo, item, propensity, sought))
        log = DayLog.merged(parts)
        self.count(lists, log)
        return log

    def coming(self, day: int) -> tuple[ListRequests, DayLog]:
        """Who comes on a day: the lists they ask for, in time order, and what they looked for before they came."""
        weight = self._weight(day)
        visits = self._visits(self.opening_us + day * DAY_US)
        lists = self._lists(visits, weight)
        # The first range has one turn even on a day without visits, so that there is always a log.
        searches = [
            self._from_elsewhere(day, visits[lo : lo + _CHUNK], weight)
            for lo in range(0, max(1, len(visits.user)), _CHUNK)
        ]
        return lists, DayLog.merged(searches)

    def offered(self, day: int, page: int) -> I32:
        """int32: the items that a page may show on a day. What arrives today is put out tomorrow."""
        there = np.isfinite(self._weight(day)) & ((self.stock.department == page) | (page < 0))
        return np.flatnonzero(there).astype(np.int32)

    def _weight(self, day: int) -> F64:
        """float64[items]: how readily the shop shows each item, in log; minus infinity for what is not there yet."""
        age_days = (self.opening_us + day * DAY_US - self.stock.available_us) / DAY_US
        weight = np.log1p(self.clicks) + np.where(age_days < 5, 1.5, 0.0)
        return np.where(age_days < 0, -np.inf, weight)

    def _visits(self, begins_us: int) -> ListRequests:
        """Who comes today, when, and in what mood; in time order."""
        rate = self.shoppers.visits / self.shoppers.visits.mean() * self.lists_per_user_day / _LISTS_PER_VISIT
        user = np.repeat(np.arange(len(self.shoppers), dtype=np.int32), self.rng.poisson(rate))
        hour = self.rng.choice(len(_HOURS), len(user), p=_HOURS / _HOURS.sum())
        start = begins_us + hour * 3600 * _SECOND_US + self.rng.integers(0, 3_600_000, len(user)) * 1000
        order = np.argsort(start, kind="stable")
        user = user[order]
        number = self.visits + np.arange(len(user))
        front = np.full(len(user), -1, np.int32)
        device = self._devices(user)
        return ListRequests(user, start[order], number, front, Mood.draw(self.rng, self.shoppers, user), device)

    def _devices(self, user: I32) -> I8:
        """What each visit is made with. It moves nobody's choice: drawn apart, so that all else stays as it was."""
        draw = self.device_rng.random(len(user))
        device = np.where(draw < _USUAL_DEVICE, self.usual_device[user], self._any_device(len(user)))
        return np.where(draw >= 1 - _NO_DEVICE, -1, device).astype(np.int8)

    def _any_device(self, n: int) -> I8:
        return self.device_rng.choice(len(DEVICES_IN_USE), n, p=_DEVICE_SHARES).astype(np.int8)

    def _lists(self, visits: ListRequests, weight: F64) -> ListRequests:
        """The lists each visit asks for: some minutes apart, on the page of its mood or on the front page."""
        size = 1 + np.minimum(self.rng.poisson(_LISTS_PER_VISIT - 1, len(visits.user)), 5)
        visit = np.repeat(np.arange(len(size)), size)
        nth = np.arange(len(visit)) - np.repeat(np.cumsum(size) - size, size)
        # At least three minutes: enough to have looked and clicked.
        gap = self.rng.integers(180_000, 420_000, len(visit)) * 1000 * (nth > 0)
        since = np.cumsum(gap)
        at_us = visits.at_us[visit] + since - since[np.cumsum(size) - size][visit]
        stocked = np.bincount(self.stock.department[np.isfinite(weight)], minlength=len(DEPARTMENTS))
        page = np.where(self.rng.random(len(visit)) < 0.6, visits.mood.department[visit], -1)
        # A department too small to fill a list sends its visitors to the front page.
        page = np.where((page >= 0) & (stocked[page] >= self.list_length), page, -1)
        order = np.argsort(at_us, kind="stable")
        lists = ListRequests(
            visits.user[visit],
            at_us,
            visits.visit[visit],
            page.astype(np.int32),
            visits[visit].mood,
            visits.device[visit],
        )
        return lists[order]

    def _fill(self, page: I32, weight: F64) -> I32:
        """int32[lists, length]: each page's noisy best sellers, best first by the shop's reckoning."""
        out = np.empty((len(page), self.list_length), np.int32)
        for p in np.unique(page).tolist():
            there = np.flatnonzero(np.isfinite(weight) & ((self.stock.department == p) | (p < 0)))
            pool = _weighted_sample(self.rng, weight[there][None, :], max(_PAGE_POOL, self.list_length))[0]
            rows = np.flatnonzero(page == p)
            weights = np.broadcast_to(weight[there[pool]], (len(rows), len(pool)))
            out[rows] = there[pool][_weighted_sample(self.rng, weights, self.list_length)]
        return out

    def _search(self, day: int, lists: ListRequests, weight: F64, item: I32) -> SearchIntents | None:
        """Fills some of the lists (rows of `item`) with what words find, typed by people who have something in mind:
        something like a product to their taste. What they seek; None where nobody does."""
        draw = self.search_rng.random(len(item)) if self.search_share else np.ones(len(item))
        asked = np.flatnonzero(draw < self.search_share)
        if not len(asked):
            return None
        there = np.flatnonzero(np.isfinite(weight))
        some = there[self.search_rng.integers(0, len(there), (len(asked), _LOOKED_OVER))].astype(np.int32)
        who, never = lists[asked], np.zeros(some.shape, np.bool_)
        would = response(self.shoppers, self.stock, who.user, who.mood, some, self.fashion[day], never)
        best = np.argmax(np.log(would.click) + self.search_rng.gumbel(size=some.shape), axis=1)
        wishes = [self.searches.wish(like) for like in some[np.arange(len(asked)), best].tolist()]
        pool = _weighted_sample(self.search_rng, weight[there][None, :], max(_PAGE_POOL, self.list_length))[0]
        sought = SearchIntents.nothing(self.searches, len(item))
        for row, wish in zip(asked.tolist(), wishes, strict=True):
            item[row] = self.searches.found(sought.by(row, wish), weight, there[pool], self.list_length)
        return sought

    def _explored(self, item: I32) -> tuple[I32, F64]:
        """Lists as they are put before people, some in a random order, and the propensity of each place.

        Given the items of a list and the shop's own order of them, an item stands at a place with probability explore /
        length, and at its own with 1 - explore more, whether this list was shuffled or not.
        """
        if self.explore == 0:
            return item, np.full(item.shape, np.nan)
        count, length = item.shape
        own = np.broadcast_to(np.arange(length), item.shape)
        shuffled = self.explore_rng.random((count, 1)) < self.explore
        order = np.where(shuffled, np.argsort(self.explore_rng.random(item.shape), axis=1), own)
        propensity = self.explore / length + (1 - self.explore) * (order == own)
        return np.take_along_axis(item, order, axis=1), propensity

    def would(self, day: int, lists: ListRequests, item: I32, sought: SearchIntents | None = None) -> Response:
        """What shoppers would do with items (int32[lists, n]) if they looked at them. sought: by a search."""
        owned = np.isin(lists.user[:, None] * np.int64(len(self.stock)) + item, self.owned)
        odds = 0.0 if sought is None else sought.odds(item)
        return response(self.shoppers, self.stock, lists.user, lists.mood, item, self.fashion[day], owned, odds)

    def shown(
        self, day: int, lists: ListRequests, first: int, item: I32, propensity: F64, sought: SearchIntents | None = None
    ) -> list[DayLog]:
        """Impressions of these items (int32[lists, length], in their places), and what shoppers do with what they see.

        first: number of the first list. propensity: float64, like `item`. sought: what some of the lists answer.
        """
        length = item.shape[1]
        would = self.would(day, lists, item, sought)
        clicks = self.rng.random(item.shape) < would.click * power_law(length, self.position_bias)
        carts = clicks & (self.rng.random(item.shape) < would.cart)
        purchases = carts & (self.rng.random(item.shape) < would.purchase)
        # Down the list in order: two seconds a place and some hesitation, all within three minutes of the list.
        place = np.minimum(np.arange(length) * 2000, 120_000)
        click_us = lists.at_us[:, None] + (place + self.rng.integers(1500, 50_000, item.shape)) * 1000
        cart_us = click_us + self.rng.integers(5_000, 90_000, item.shape) * 1000
        buy_us = cart_us + self.rng.integers(30_000, 900_000, item.shape) * 1000
        every = np.ones(item.shape, np.bool_)
        shown_us = np.broadcast_to(lists.at_us[:, None], item.shape)
        utility = np.round(would.expected_gain, 6)
        query = np.full(len(item), -1, np.int32) if sought is None else sought.query
        acts = (
            (Kind.IMPRESSION, every, shown_us),
            (Kind.CLICK, clicks, click_us),
            (Kind.CART, carts, cart_us),
            (Kind.PURCHASE, purchases, buy_us),
        )
        return [
            self._acts(kind, rows, at_us, lists, first, item, utility, propensity, query) for kind, rows, at_us in acts
        ]

    def _acts(
        self,
        kind: Kind,
        did: NDArray[np.bool_],
        at_us: I64,
        lists: ListRequests,
        first: int,
        item: I32,
        utility: F64,
        propensity: F64,
        query: I32,
    ) -> DayLog:
        row, position = np.nonzero(did)
        items, shown = item[row, position], kind == Kind.IMPRESSION
        nothing = np.full(len(row), np.nan)
        return DayLog(
            kind=np.full(len(row), kind, np.int8),
            user=lists.user[row],
            item=items,
            at_us=at_us[row, position],
            request=first + row,
            position=position.astype(np.int16),
            value=self.stock.price[items] if kind == Kind.PURCHASE else nothing,
            visit=lists.visit[row],
            utility=utility[row, position] if shown else nothing,
            propensity=propensity[row, position] if shown else nothing,
            device=lists.device[row],
            query=query[row] if shown else np.full(len(row), -1, np.int32),
        )

    def _from_elsewhere(self, day: int, visits: ListRequests, weight: F64) -> DayLog:
        """Some visits begin with a view of what the shopper looked for elsewhere: by taste, no list, no position."""
        visits = visits[np.flatnonzero(self.rng.random(len(visits.user)) < _VISITS_WITH_SEARCH)]
        n = len(visits.user)
        there = np.flatnonzero(np.isfinite(weight)).astype(np.int32)
        item = there[self.rng.integers(0, len(there), (n, _LOOKED_OVER))]
        never = np.zeros(item.shape, np.bool_)
        would = response(self.shoppers, self.stock, visits.user, visits.mood, item, self.fashion[day], never)
        best = np.argmax(np.log(would.click) + self.rng.gumbel(size=item.shape), axis=1)
        # Before the first list, which comes with the visit's start, but on the same day.
        since_midnight = (visits.at_us - self.opening_us) % DAY_US
        before = np.minimum(self.rng.integers(5_000, 120_000, n) * 1000, since_midnight)
        nothing = np.full(n, np.nan)
        return DayLog(
            kind=np.full(n, Kind.VIEW, np.int8),
            user=visits.user,
            item=item[np.arange(n), best],
            at_us=visits.at_us - before,
            request=np.full(n, -1),
            position=np.full(n, -1, np.int16),
            value=nothing,
            visit=visits.visit,
            utility=nothing,
            propensity=nothing,
            device=visits.device,
            query=np.full(n, -1, np.int32),
        )

    def count(self, lists: ListRequests, log: DayLog) -> None:
        """Take a whole day into the shop's counts."""
        self.visits = max(self.visits, int(lists.visit.max(initial=-1)) + 1)
        self.lists += len(lists.user)
        # Popularity is what the shop remembers of clicks, fading by a tenth a day.
        self.clicks *= 0.9
        self.clicks += np.bincount(log.item[log.kind == Kind.CLICK], minlength=len(self.clicks))
        bought = log.kind == Kind.PURCHASE
        keys = log.user[bought] * np.int64(len(self.stock)) + log.item[bought]
        self.owned = np.unique(np.concatenate([self.owned, keys]))


def _weighted_sample(rng: np.random.Generator, log_weight: F64, count: int) -> NDArray[np.intp]:
    """intp[rows, count]: columns drawn without replacement in proportion to weight, in the order drawn.

    The Gumbel top-k trick: the order of `log_weight + gumbel` is that of successive draws (Yellott, 1977).
    """
    score = log_weight + rng.gumbel(size=log_weight.shape)
    count = min(count, score.shape[1])
    top = np.argpartition(-score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(score, top, axis=1), axis=1), axis=1)
