"""Candidates for a recommendation, by the same sources as a rebuilt list offline, at the price of a request.

What is offered to everybody is computed once for all requests of two seconds. Filters and text neighbours, which go
over the catalogue, are looked for in a thread, since what they read never changes; the rest is small enough for the
event loop, which alone reads item state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from features.arrays import I32, Bool
from features.context import NO_CONTEXT, Context
from features.history import History
from features.moment import Items
from features.retrieval import (
    SOURCES,
    GlobalCandidates,
    Retrieved,
    TextCandidates,
    global_candidates,
    merge,
    restrict,
    text_candidates,
)
from serving.rules import Plan

_SHELVES_S = 2.0
"""How old popularity and novelty may be: a pass over 100,000 items takes some milliseconds."""


class CandidateRetriever:
    """Retrieval over one release and its item state as it moves."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._shelves: tuple[int, GlobalCandidates] | None = None

    async def candidates(
        self, history: History, at: float, size: int, plan: Plan | None, context: Context = NO_CONTEXT
    ) -> Retrieved:
        """At most `size` candidates that the plan's filters and exclusions admit, as `features.retrieval.retrieve`.

        Shelves may be up to two seconds old.
        """
        items = self._items
        admitted, found = await asyncio.to_thread(_static_candidates, items, history, at, size, plan, context)
        offered = self._now(at, size)
        if admitted is not None:
            offered = restrict(items, offered, admitted, at, size)
        return merge(items, history, at, size, offered, found, admitted)

    def _now(self, at: float, size: int) -> GlobalCandidates:
        if self._shelves is None or self._shelves[0] < size or not 0 <= at - self._shelves[1].at <= _SHELVES_S:
            self._shelves = size, global_candidates(self._items, at, size)
        return self._shelves[1]


def _static_candidates(
    items: Items, history: History, at: float, size: int, plan: Plan | None, context: Context
) -> tuple[Bool | None, TextCandidates]:
    """What of a retrieval reads nothing that events change: which items are admitted, and what is near by text."""
    admitted = None
    if plan is not None and plan.takes_out:
        admitted = plan.admits(np.arange(len(items.catalogue), dtype=np.int32), history, at)
    return admitted, text_candidates(items, history, at, size, context, admitted)


def with_pinned(found: I32, items: Items, plan: Plan | None, history: History, at: float) -> I32:
    """The candidates, then the items that the plan pins, where the catalogue has and the plan admits them."""
    if plan is None or not plan.pins:
        return found
    pinned = items.catalogue.rows(pin.item_id for _, pin in plan.pins)
    pinned = pinned[pinned >= 0]
    pinned = pinned[plan.admits(pinned, history, at) & ~np.isin(pinned, found)]
    return np.concatenate([found, pinned])


def sources_of(found: Retrieved, item_ids: Sequence[str]) -> dict[str, list[str]]:
    """The names of the sources that offered each item, in their order."""
    names = {bits: [s for k, s in enumerate(SOURCES) if bits >> k & 1] for bits in set(found.offered.tolist())}
    return {item_ids[row]: names[bits] for row, bits in zip(found.item.tolist(), found.offered.tolist(), strict=True)}
