"""Day-by-day simulation of the shop: sessions, the lists that a mediocre shop shows, and the actions of shoppers.

The shop orders items by popularity, newness and the department of the page, without personalisation. Clicks of one day
change the popularity on the next, so popular items become more popular, as in real shops.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I8, I32, I64
from features.log import Kind
from offline.config import POSITION_BIAS
from offline.simulation.complements import Complements
from offline.simulation.day_log import DEVICES_IN_USE, DayLog, ListRequests
from offline.simulation.products import DAY_US, Products
from offline.simulation.searches import Searches, SearchIntents
from offline.simulation.shoppers import Mood, Response, Shoppers, response
from offline.simulation.vocabulary import DEPARTMENTS
from ranker.examination import power_law

_LISTS_PER_VISIT = 1.7
_EXTERNAL_VIEW_PROBABILITY = 0.2
_CONSIDERED_ITEMS = 40
"""Random items among which shoppers choose what they search for."""
_PAGE_POOL = 1000
"""Items that a page chooses from at a time. A shop with more items draws another sample each time."""
_CHUNK = 2048
"""Lists simulated at once. Limits memory to a few hundred megabytes for days of any size."""
_SECOND_US = 1_000_000
_DEVICE_SHARES = np.array([0.44, 0.32, 0.14, 0.07, 0.03])
_USUAL_DEVICE, _NO_DEVICE = 0.8, 0.04
"""Shares of sessions on the usual device of the shopper, and of sessions without a logged device."""
_HOURS = np.array([2, 1, 1, 1, 1, 2, 4, 7, 9, 10, 11, 12, 14, 12, 11, 11, 12, 14, 17, 20, 22, 18], np.float64)
"""Relative traffic by hour, UTC. No session starts after 22:00, so every session ends on its day."""


@dataclass
class Shop:
    """The simulated shop: its own counts so far, and the hidden state of the simulation.

    clicks: float64[items], decayed. owned: int64, sorted keys `user * items + item` of purchases. visits, lists: number
    so far.
    """

    stock: Products
    shoppers: Shoppers
    fashion: F64
    opening_us: int
    lists_per_user_day: float
    list_length: int
    rng: np.random.Generator
    explore: float = 0.0
    """Share of the lists shown in random order."""
    explore_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    device_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    position_bias: float = POSITION_BIAS
    search_share: float = 0.0
    """Share of the lists that are search results."""
    search_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    complement_share: float = 0.0
    """Share of the items put into the cart to which the shopper adds an item that goes with them."""
    complement_rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    searches: Searches = field(init=False)
    complements: Complements = field(init=False)
    usual_device: I8 = field(init=False)
    clicks: F64 = field(init=False)
    owned: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    visits: int = 0
    lists: int = 0

    def __post_init__(self) -> None:
        # Clicks before the log begins: a noisy function of appeal, with a skew like that of real sales.
        noise = self.rng.normal(0, 0.8, len(self.stock))
        self.usual_device = self._any_device(len(self.shoppers))
        self.searches = Searches(self.stock, self.search_rng)
        self.complements = Complements(self.stock, self.complement_rng)
        known = self.stock.available_us < self.opening_us
        self.clicks = np.where(known, 3 * np.exp(0.7 * self.stock.appeal + noise), 0)

    def day(self, day: int) -> DayLog:
        """Simulate a day: its events, in order. Updates the counts of the shop."""
        weight = self._weight(day)
        lists, views = self.coming(day)
        parts = [views]
        for lo in range(0, len(lists.user), _CHUNK):
            chunk = lists[lo : lo + _CHUNK]
            ranked = self._fill(chunk.page, weight)
            intents = self._search(day, chunk, weight, ranked)
            item, propensity = self._explore(ranked)
            parts.extend(self.shown(day, chunk, self.lists + lo, item, propensity, intents))
        log = DayLog.merged(parts)
        self.count(lists, log)
        return log

    def coming(self, day: int) -> tuple[ListRequests, DayLog]:
        """The requests for lists of a day, in time order, and the views from external sites before them."""
        weight = self._weight(day)
        visits = self._visits(self.opening_us + day * DAY_US)
        lists = self._lists(visits, weight)
        # Run at least once, so that a day without sessions has an empty log.
        views = [
            self._external_views(day, visits[lo : lo + _CHUNK], weight)
            for lo in range(0, max(1, len(visits.user)), _CHUNK)
        ]
        return lists, DayLog.merged(views)

    def offered(self, day: int, page: int) -> I32:
        """int32: items that a page may show on a day. New items are shown from the next day on."""
        available = np.isfinite(self._weight(day)) & ((self.stock.department == page) | (page < 0))
        return np.flatnonzero(available).astype(np.int32)

    def listed(self, day: int, page: I32) -> I32:
        """int32[lists, length]: lists of these pages in the order by the shop."""
        return self._fill(page, self._weight(day))

    def _weight(self, day: int) -> F64:
        """float64[items]: log of the sampling weight of each item; minus infinity for items that are not available."""
        age_days = (self.opening_us + day * DAY_US - self.stock.available_us) / DAY_US
        weight = np.log1p(self.clicks) + np.where(age_days < 5, 1.5, 0.0)
        return np.where(age_days < 0, -np.inf, weight)

    def _visits(self, begins_us: int) -> ListRequests:
        """Draw the sessions of a day, in time order."""
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
        """Draw the device of each session. Devices have a random stream of their own and do not affect other draws."""
        draw = self.device_rng.random(len(user))
        device = np.where(draw < _USUAL_DEVICE, self.usual_device[user], self._any_device(len(user)))
        return np.where(draw >= 1 - _NO_DEVICE, -1, device).astype(np.int8)

    def _any_device(self, n: int) -> I8:
        """Draw n devices, independent of the shopper."""
        return self.device_rng.choice(len(DEVICES_IN_USE), n, p=_DEVICE_SHARES).astype(np.int8)

    def _lists(self, visits: ListRequests, weight: F64) -> ListRequests:
        """Draw the requests of each session: minutes apart, on the department page of its mood or on the front page."""
        size = 1 + np.minimum(self.rng.poisson(_LISTS_PER_VISIT - 1, len(visits.user)), 5)
        visit = np.repeat(np.arange(len(size)), size)
        nth = np.arange(len(visit)) - np.repeat(np.cumsum(size) - size, size)
        # At least three minutes, enough to examine the list and click.
        gap = self.rng.integers(180_000, 420_000, len(visit)) * 1000 * (nth > 0)
        since = np.cumsum(gap)
        at_us = visits.at_us[visit] + since - since[np.cumsum(size) - size][visit]
        stocked = np.bincount(self.stock.department[np.isfinite(weight)], minlength=len(DEPARTMENTS))
        page = np.where(self.rng.random(len(visit)) < 0.6, visits.mood.department[visit], -1)
        # Replace departments with too few items for a list by the front page.
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
        """int32[lists, length]: a weighted sample of the items of each page, in the order by the shop."""
        out = np.empty((len(page), self.list_length), np.int32)
        for p in np.unique(page).tolist():
            available = np.flatnonzero(np.isfinite(weight) & ((self.stock.department == p) | (p < 0)))
            pool = _weighted_sample(self.rng, weight[available][None, :], max(_PAGE_POOL, self.list_length))[0]
            rows = np.flatnonzero(page == p)
            weights = np.broadcast_to(weight[available[pool]], (len(rows), len(pool)))
            out[rows] = available[pool][_weighted_sample(self.rng, weights, self.list_length)]
        return out

    def _search(self, day: int, lists: ListRequests, weight: F64, item: I32) -> SearchIntents | None:
        """Replace some lists, rows of `item`, by search results, in place.

        Each shopper searches for something similar to a product they like. Returns the intents; None without searches.
        """
        draw = self.search_rng.random(len(item)) if self.search_share else np.ones(len(item))
        searched = np.flatnonzero(draw < self.search_share)
        if not len(searched):
            return None
        available = np.flatnonzero(np.isfinite(weight))
        considered = available[self.search_rng.integers(0, len(available), (len(searched), _CONSIDERED_ITEMS))].astype(
            np.int32
        )
        requests, not_owned = lists[searched], np.zeros(considered.shape, np.bool_)
        would = response(
            self.shoppers, self.stock, requests.user, requests.mood, considered, self.fashion[day], not_owned
        )
        best = np.argmax(np.log(would.click) + self.search_rng.gumbel(size=considered.shape), axis=1)
        wishes = [self.searches.wish(like) for like in considered[np.arange(len(searched)), best].tolist()]
        pool = _weighted_sample(self.search_rng, weight[available][None, :], max(_PAGE_POOL, self.list_length))[0]
        intents = SearchIntents.empty(self.searches, len(item))
        for row, wish in zip(searched.tolist(), wishes, strict=True):
            item[row] = self.searches.results(intents.add(row, wish), weight, available[pool], self.list_length)
        return intents

    def _explore(self, item: I32) -> tuple[I32, F64]:
        """Shuffle some of the lists. Returns the items as shown and their propensities.

        Given the items of a list in the order by the shop, an item is at any position with probability explore /
        length, plus 1 - explore at its position in that order. This holds for shuffled and other lists.
        """
        if self.explore == 0:
            return item, np.full(item.shape, np.nan)
        count, length = item.shape
        original = np.broadcast_to(np.arange(length), item.shape)
        shuffled = self.explore_rng.random((count, 1)) < self.explore
        order = np.where(shuffled, np.argsort(self.explore_rng.random(item.shape), axis=1), original)
        propensity = self.explore / length + (1 - self.explore) * (order == original)
        return np.take_along_axis(item, order, axis=1), propensity

    def would(
        self, day: int, lists: ListRequests, item: I32, intents: SearchIntents | None = None, odds: F64 | float = 0.0
    ) -> Response:
        """Probabilities of actions on items (int32[lists, n]) if shoppers examine them. intents: of the lists.

        odds: added to the log odds of each click, for all lists or float64[lists, 1].
        """
        owned = np.isin(lists.user[:, None] * np.int64(len(self.stock)) + item, self.owned)
        odds = odds if intents is None else intents.odds(item) + odds
        return response(self.shoppers, self.stock, lists.user, lists.mood, item, self.fashion[day], owned, odds)

    def shown(
        self,
        day: int,
        lists: ListRequests,
        first: int,
        item: I32,
        propensity: F64,
        intents: SearchIntents | None = None,
        odds: F64 | float = 0.0,
    ) -> list[DayLog]:
        """Show lists: their impressions, and the actions of shoppers.

        first: number of the first list. item: int32[lists, length], in shown order. propensity: float64, like `item`.
        intents: of lists with a search. odds: as in `would`.
        """
        length = item.shape[1]
        would = self.would(day, lists, item, intents, odds)
        clicks = self.rng.random(item.shape) < would.click * power_law(length, self.position_bias)
        carts = clicks & (self.rng.random(item.shape) < would.cart)
        purchases = carts & (self.rng.random(item.shape) < would.purchase)
        # Shoppers read from the top, two seconds per position plus a random delay, all within three minutes.
        delay_ms = np.minimum(np.arange(length) * 2000, 120_000)
        click_us = lists.at_us[:, None] + (delay_ms + self.rng.integers(1500, 50_000, item.shape)) * 1000
        cart_us = click_us + self.rng.integers(5_000, 90_000, item.shape) * 1000
        buy_us = cart_us + self.rng.integers(30_000, 900_000, item.shape) * 1000
        impressions = np.ones(item.shape, np.bool_)
        shown_us = np.broadcast_to(lists.at_us[:, None], item.shape)
        utility = np.round(would.expected_gain, 6)
        query = np.full(len(item), -1, np.int32) if intents is None else intents.query
        actions = (
            (Kind.IMPRESSION, impressions, shown_us),
            (Kind.CLICK, clicks, click_us),
            (Kind.CART, carts, cart_us),
            (Kind.PURCHASE, purchases, buy_us),
        )
        listed = [
            self._events(kind, happened, at_us, lists, first, item, utility, propensity, query)
            for kind, happened, at_us in actions
        ]
        return [*listed, *(self._add_complements(day, lists, item, carts, cart_us) if self.complement_share else ())]

    def _add_complements(
        self, day: int, lists: ListRequests, item: I32, carts: NDArray[np.bool_], cart_us: I64
    ) -> list[DayLog]:
        """Complements that shoppers add to some of the items that they put into the cart, found without a list.

        They view it, put it into the cart, and buy it with the probability of any item in their cart.
        """
        row, position = np.nonzero(carts)
        wanted = self.complement_rng.random(len(row)) < self.complement_share
        row, position = row[wanted], position[wanted]
        asked = lists[row]
        chosen, found = self.complements.choose(
            item[row, position],
            np.isfinite(self._weight(day)),
            lambda rows, items: self.would(day, asked[rows], items).click,
        )
        buyers, n = asked[chosen], len(found)
        view_us = cart_us[row, position][chosen] + self.complement_rng.integers(5_000, 60_000, n) * 1000
        added_us = view_us + self.complement_rng.integers(5_000, 60_000, n) * 1000
        buy_us = added_us + self.complement_rng.integers(30_000, 900_000, n) * 1000
        bought = np.flatnonzero(
            self.complement_rng.random(n) < self.would(day, buyers, found[:, None]).purchase.reshape(n)
        )
        return [
            DayLog.without_list(Kind.VIEW, buyers, found, view_us),
            DayLog.without_list(Kind.CART, buyers, found, added_us),
            DayLog.without_list(
                Kind.PURCHASE, buyers[bought], found[bought], buy_us[bought], self.stock.price[found[bought]]
            ),
        ]

    def _events(
        self,
        kind: Kind,
        happened: NDArray[np.bool_],
        at_us: I64,
        lists: ListRequests,
        first: int,
        item: I32,
        utility: F64,
        propensity: F64,
        query: I32,
    ) -> DayLog:
        """The events of one kind. happened: bool, like `item`, where they occur."""
        row, position = np.nonzero(happened)
        items, shown = item[row, position], kind == Kind.IMPRESSION
        nan = np.full(len(row), np.nan)
        return DayLog(
            kind=np.full(len(row), kind, np.int8),
            user=lists.user[row],
            item=items,
            at_us=at_us[row, position],
            request=first + row,
            position=position.astype(np.int16),
            value=self.stock.price[items] if kind == Kind.PURCHASE else nan,
            visit=lists.visit[row],
            utility=utility[row, position] if shown else nan,
            propensity=propensity[row, position] if shown else nan,
            device=lists.device[row],
            query=query[row] if shown else np.full(len(row), -1, np.int32),
        )

    def _external_views(self, day: int, visits: ListRequests, weight: F64) -> DayLog:
        """Views of one item before some sessions, found on an external site and chosen by taste. They have no list."""
        visits = visits[np.flatnonzero(self.rng.random(len(visits.user)) < _EXTERNAL_VIEW_PROBABILITY)]
        n = len(visits.user)
        available = np.flatnonzero(np.isfinite(weight)).astype(np.int32)
        item = available[self.rng.integers(0, len(available), (n, _CONSIDERED_ITEMS))]
        not_owned = np.zeros(item.shape, np.bool_)
        would = response(self.shoppers, self.stock, visits.user, visits.mood, item, self.fashion[day], not_owned)
        best = np.argmax(np.log(would.click) + self.rng.gumbel(size=item.shape), axis=1)
        # Before the first list, which is at the start of the session, but on the same day.
        since_midnight = (visits.at_us - self.opening_us) % DAY_US
        before = np.minimum(self.rng.integers(5_000, 120_000, n) * 1000, since_midnight)
        return DayLog.without_list(Kind.VIEW, visits, item[np.arange(n), best], visits.at_us - before)

    def count(self, lists: ListRequests, log: DayLog) -> None:
        """Add a complete day to the counts of the shop."""
        self.visits = max(self.visits, int(lists.visit.max(initial=-1)) + 1)
        self.lists += len(lists.user)
        # Popularity is the number of clicks, decayed by a tenth per day.
        self.clicks *= 0.9
        self.clicks += np.bincount(log.item[log.kind == Kind.CLICK], minlength=len(self.clicks))
        bought = log.kind == Kind.PURCHASE
        keys = log.user[bought] * np.int64(len(self.stock)) + log.item[bought]
        self.owned = np.unique(np.concatenate([self.owned, keys]))


def _weighted_sample(rng: np.random.Generator, log_weight: F64, count: int) -> NDArray[np.intp]:
    """intp[rows, count]: columns sampled without replacement in proportion to their weight, in the order drawn.

    Uses the Gumbel top-k trick: sorting by `log_weight + gumbel` is equivalent to successive draws (Yellott, 1977).
    """
    score = log_weight + rng.gumbel(size=log_weight.shape)
    count = min(count, score.shape[1])
    top = np.argpartition(-score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(top, np.argsort(-np.take_along_axis(score, top, axis=1), axis=1), axis=1)
