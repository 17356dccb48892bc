"""Data of the storefront page apart from rankings: products, known shoppers, popular items and a title search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
from msgspec import Struct

from features.history import EMPTY
from features.retrieval import recent_popularity
from features.text.tokens import fold, is_pair, tokenize
from serving.api import RankAnswer, RankedItem, RankRequest, request_id
from serving.ranking import Live, Service, plan_of
from serving.rules import Ranked
from serving.store import StoreAway

_SHOPPERS = 8
"""Maximum number of known shoppers listed."""
_WORDS = 24
"""Maximum number of words used of a title search. Of a script without spaces, each character is one."""


class Product(Struct):
    """Product details; null if missing from the catalogue. image_url: null also if its origin is not configured."""

    item_id: str
    title: str
    category: str | None
    brand: str | None
    price: float | None
    image_url: str | None = None


class Shopper(Struct):
    """A known shopper. engagements: number of stored engagements. likes: the most frequent categories among them."""

    user_id: str
    engagements: int
    likes: list[str]


class Shop(Struct):
    """Data the page loads once. price: (lowest, highest), null if no item has a price. writes: whether items can be
    written. currency: of prices, such as EUR; null if it is not configured. placements: names of those configured."""

    release: str
    categories: list[str]
    price: tuple[float, float] | None
    shoppers: list[Shopper]
    writes: bool
    currency: str | None
    placements: list[str]


async def shop(service: Service, writes: bool) -> Shop:
    """Data of the shop, without shoppers if Redis is unavailable. Raises Problem (503) if no release is loaded."""
    live = service.live()
    price = live.items.catalogue.price
    known = price[np.isfinite(price)]
    return Shop(
        live.release.id,
        sorted(live.items.catalogue.category_names),
        (float(known.min()), float(known.max())) if len(known) else None,
        await _shoppers(service, live),
        writes,
        service.config.currency,
        list(service.config.placements),
    )


async def _shoppers(service: Service, live: Live) -> list[Shopper]:
    """A sample of the users stored in Redis, those with the most engagements first."""
    at, retention, shoppers = service.clock(), live.release.manifest.retention, []
    try:
        for user_id in await service.store.some_users(_SHOPPERS):
            history = await service.store.read(user_id, live.items.catalogue, at, retention)
            shoppers.append(Shopper(user_id, len(history.item), _likes(live, history.item)))
    except StoreAway:  # the page works with a new shopper, and shows that the service is degraded
        return []
    return sorted(shoppers, key=lambda s: (-s.engagements, s.user_id))


def _likes(live: Live, item: np.ndarray[tuple[int], np.dtype[np.int32]]) -> list[str]:
    catalogue = live.items.catalogue
    codes = Counter(catalogue.category[item[item >= 0]].tolist())
    names = catalogue.category_names
    return [names[code] for code, _ in codes.most_common(3) if code < len(names)][:2]


def products(live: Live, item_ids: list[str], image_urls: Callable[[int], str | None] | None = None) -> list[Product]:
    """The products with these ids, in the same order. Ids that are not in the catalogue are left out."""
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
                    image_urls(row) if image_urls else None,
                )
            )
    return out


def search(live: Live, words: str, most: int) -> list[str]:
    """Ids of items whose title contains every word, in id order, at most `most`. For blank text, all items match.

    A word may be part of a longer one. Of a script without spaces, the title contains every character, in any order.
    """
    terms = [word for word in dict.fromkeys(tokenize(words)) if not is_pair(word)][:_WORDS]
    if words.strip() and not terms:
        return []
    matches, c, withdrawn = [], live.items.catalogue, live.withdrawn
    for row in range(len(c)):
        title = fold(c.titles[row])
        if all(term in title for term in terms) and c.item_ids[row] not in withdrawn:
            matches.append(c.item_ids[row])
            if len(matches) == most:
                break
    return matches


def popular(service: Service, request: RankRequest) -> RankAnswer:
    """Rank the candidates, or the whole catalogue, by recent popularity under the same rules.

    The score is the decayed sum of engagements. No user data is read, so the result is never degraded. Raises Problem.
    """
    at, live = service.clock(), service.live()
    c, plan = live.items.catalogue, plan_of(request.rules, live, at=at)
    rows = np.arange(len(c), dtype=np.int32) if request.ids is None else c.rows(dict.fromkeys(request.ids))
    withdrawn = c.rows(live.withdrawn)
    rows = np.setdiff1d(rows[rows >= 0], withdrawn)
    rows = rows[~(c.available_from[rows] > at)]
    if plan is not None:
        rows = rows[plan.admits(rows, EMPTY, at)]
    score = recent_popularity(live.items, rows, at)
    # Rules work item by item, so they are applied only to the best items, more than a page can show.
    best = np.argsort(-score, kind="stable")[: service.config.max_candidates]
    ids, rows, score = [c.item_ids[row] for row in rows[best].tolist()], rows[best], score[best]
    if plan is not None:
        ruled = plan.apply(Ranked(ids, rows, score), live.items.vectors, EMPTY, at, request.limit)
        ids, score = [ids[k] for k in ruled.order.tolist()], ruled.score
    items = [RankedItem(i, s) for i, s in zip(ids, score.tolist(), strict=True)][: request.limit]
    return RankAnswer(request_id.current(), live.release.id, False, items, 0.0)
