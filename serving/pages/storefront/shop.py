"""What the storefront page shows beside a ranking: products, known shoppers, the order by popularity, titles found."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from msgspec import Struct

from features.history import EMPTY
from features.retrieval import recent_popularity
from serving.api import RankAnswer, RankedItem, RankRequest, request_id
from serving.ranking import Live, Service, plan_of
from serving.rules import Ranked
from serving.store import StoreAway

_SHOPPERS = 8
_WORDS = 8


class Product(Struct):
    """How a product looks; null where the catalogue lacks something."""

    item_id: str
    title: str
    category: str | None
    brand: str | None
    price: float | None


class Shopper(Struct):
    """A shopper the log knows. engagements: in his list. likes: the categories that hold most of them, most first."""

    user_id: str
    engagements: int
    likes: list[str]


class Shop(Struct):
    """What a page asks once. price: lowest and highest, null where nothing has one. writes: items can be written."""

    release: str
    categories: list[str]
    price: tuple[float, float] | None
    shoppers: list[Shopper]
    writes: bool


async def shop(service: Service, writes: bool) -> Shop:
    """The shop as a whole. Raises Problem where no release is loaded. No shoppers where Redis is away."""
    live = service.live()
    price = live.items.catalogue.price
    known = price[np.isfinite(price)]
    return Shop(
        live.release.id,
        sorted(live.items.catalogue.category_names),
        (float(known.min()), float(known.max())) if len(known) else None,
        await _shoppers(service, live),
        writes,
    )


async def _shoppers(service: Service, live: Live) -> list[Shopper]:
    """Some whose list is in Redis, most engaged first: neither all nor the same ones for ever."""
    at, found = service.clock(), []
    try:
        for user_id in await service.store.some_users(_SHOPPERS):
            history = await service.store.read(user_id, live.items.catalogue, at)
            found.append(Shopper(user_id, len(history.item), _likes(live, history.item)))
    except StoreAway:  # the page goes on with a new shopper, and says itself that the service is degraded
        return []
    return sorted(found, key=lambda s: (-s.engagements, s.user_id))


def _likes(live: Live, item: np.ndarray[tuple[int], np.dtype[np.int32]]) -> list[str]:
    catalogue = live.items.catalogue
    codes = Counter(catalogue.category[item[item >= 0]].tolist())
    names = catalogue.category_names
    return [names[code] for code, _ in codes.most_common(3) if code < len(names)][:2]


def products(live: Live, item_ids: list[str]) -> list[Product]:
    """The products of these ids that the catalogue knows, in their order."""
    c = live.items.catalogue
    out = []
    for item_id, row in zip(item_ids, c.rows(item_ids).tolist(), strict=True):
        if row >= 0:
            category, brand, price = int(c.category[row]), int(c.brand[row]), float(c.price[row])
            out.append(
                Product(
                    item_id,
                    c.titles[row],
                    c.category_names[category] if category < len(c.category_names) else None,
                    c.brand_names[brand] if brand < len(c.brand_names) else None,
                    price if math.isfinite(price) else None,
                )
            )
    return out


def search(live: Live, words: str, most: int) -> list[str]:
    """Ids of items whose title holds every word, in the order of ids, at most so many; all where no word is given."""
    wanted, found, c, gone = words.casefold().split()[:_WORDS], [], live.items.catalogue, live.overlay.withdrawn
    for row in range(len(c)):
        title = c.titles[row].casefold()
        if all(word in title for word in wanted) and c.item_ids[row] not in gone:
            found.append(c.item_ids[row])
            if len(found) == most:
                break
    return found


def popular(service: Service, request: RankRequest) -> RankAnswer:
    """Candidates, or the whole catalogue, by engagements of late under the same rules; score: the engagements.

    Nothing of the user is read, so nothing is degraded. Raises Problem.
    """
    at, live = service.clock(), service.live()
    c, plan = live.items.catalogue, plan_of(request.rules, live)
    rows = (
        np.arange(len(c), dtype=np.int32) if request.candidates is None else c.rows(dict.fromkeys(request.candidates))
    )
    gone = c.rows(live.overlay.withdrawn)
    rows = np.setdiff1d(rows[rows >= 0], gone)
    rows = rows[~(c.available_from[rows] > at)]
    if plan is not None:
        rows = rows[plan.admits(rows, EMPTY, at)]
    score = recent_popularity(live.items, rows, at)
    # Of more than a page could show, rules move the best alone: they go item by item.
    best = np.argsort(-score, kind="stable")[: service.config.max_candidates]
    ids, rows, score = [c.item_ids[row] for row in rows[best].tolist()], rows[best], score[best]
    if plan is not None:
        ruled = plan.apply(Ranked(ids, rows, score), live.items.vectors, EMPTY, at, request.limit)
        ids, score = [ids[k] for k in ruled.order.tolist()], ruled.score
    items = [RankedItem(i, s) for i, s in zip(ids, score.tolist(), strict=True)][: request.limit]
    return RankAnswer(request_id.current(), live.release.id, False, items, 0.0)
