"""Previews: the list of a request under the present rules, and with a draft."""

from __future__ import annotations

import asyncio
import copy

from msgspec import UNSET

from serving.api import RankAnswer
from serving.merchandising import Document, MerchandisingRule, compile_document, with_rule, without_rule
from serving.pages.merchandising.desk import Desk, check_rules
from serving.pages.merchandising.forms import (
    MerchandisingDraft,
    MerchandisingPreview,
    MerchandisingPreviewIn,
    PreviewedItem,
    PreviewedList,
)
from serving.pages.storefront.shop import Product, products
from serving.ranking import Live, Service

DRAFT = "draft"
"""ID of a draft that replaces no rule, in the paths of rules."""


async def preview(service: Service, desk: Desk, asked: MerchandisingPreviewIn) -> MerchandisingPreview:
    """Make the lists of a preview, one after the other, by the code that answers /v1/recommend. Raises Problem."""
    live, document = service.live(), (await desk.read()).document
    if asked.draft is not None:
        check_rules(asked.draft.rules, live, "draft.rules")
        desk.check_placement(asked.draft.placement)
    asked.request.shown, asked.request.explain = False, True
    longest = service.config.max_explained
    if asked.request.limit is UNSET and (service.placements.of(asked.request).limit_of(asked.request) or 0) > longest:
        asked.request.limit = longest  # of a placement with longer lists, the page shows the beginning
    now = await _answer(service, live, document, asked)
    if asked.draft is None and asked.without is None:
        return MerchandisingPreview(document.version, now.release, now.degraded, _listed(live, now), None, [])
    changed = await _answer(service, live, _drafted(document, asked), asked)
    before, after = ([item.item_id for item in answer.items] for answer in (now, changed))
    gone = products(live, [item_id for item_id in before if item_id not in set(after)])
    return MerchandisingPreview(
        document.version, now.release, now.degraded, _listed(live, now), _listed(live, changed, before), gone
    )


def _drafted(document: Document, asked: MerchandisingPreviewIn) -> Document:
    """The document with the draft, which has no start and no end, and without the rule that is left out."""
    if asked.without is not None:
        document = without_rule(document, asked.without)
    return document if asked.draft is None else with_rule(document, _rule(document, asked.draft))


def _rule(document: Document, draft: MerchandisingDraft) -> MerchandisingRule:
    replaced = document.rule(draft.id)
    created = document.version + 1 if replaced is None else replaced.created
    return MerchandisingRule(draft.id or DRAFT, draft.rules, draft.placement, created=created)


async def _answer(service: Service, live: Live, document: Document, asked: MerchandisingPreviewIn) -> RankAnswer:
    ruled = copy.copy(live)  # it shares the items and everything that has been computed for them
    ruled.merchandising = await asyncio.to_thread(
        compile_document, document, live.attributes, frozenset(service.config.placements)
    )
    return await service.recommend(asked.request, live=ruled)


def _listed(live: Live, answer: RankAnswer, before: list[str] | None = None) -> PreviewedList:
    """A list with titles and prices. before: the list to compare it with."""
    place = {item_id: k for k, item_id in enumerate(before or [])}
    known = {p.item_id: p for p in products(live, [item.item_id for item in answer.items])}
    items = []
    for item in answer.items:
        product = known.get(item.item_id) or Product(item.item_id, item.item_id, None, None, None)
        was = place.get(item.item_id)
        items.append(
            PreviewedItem(item.item_id, product.title, item.score, product.category, product.price, was, item.rules)
        )
    return PreviewedList(items, [] if answer.removed is UNSET else answer.removed)
