"""Candidate retrieval for a recommendation, from the same sources as rebuilt lists offline, fast enough for a request.

Candidates that do not depend on the user are shared by all requests of two seconds. Filters and text similarity scan
the catalogue in a thread, because they read only data that never changes. The rest is cheap enough for the event loop,
which is the only reader of item state.
"""

from __future__ import annotations

import asyncio

import numpy as np

from features.arrays import F64, I32, Bool
from features.context import NO_CONTEXT, NO_SEEDS, Context
from features.history import History
from features.kernels.strings import Strings
from features.moment import Items
from features.retrieval import (
    FALLBACKS,
    SOURCES,
    GlobalCandidates,
    Retrieved,
    TextCandidates,
    global_candidates,
    merge,
    restrict,
    text_candidates,
)
from serving.rules import Plan, VariantPlan

_GLOBAL_CANDIDATES_S = 2.0
"""Maximum age of the popular and new items: a pass over 100,000 items takes a few milliseconds."""


class CandidateRetriever:
    """Candidate retrieval from one release and its current item state."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._global: tuple[int, GlobalCandidates] | None = None

    async def candidates(
        self,
        history: History,
        at: float,
        size: int,
        plan: Plan | None,
        context: Context = NO_CONTEXT,
        shares: F64 | None = None,
        variants: VariantPlan | None = None,
    ) -> Retrieved:
        """At most `size` candidates allowed by the plan's filters and exclusions, as `features.retrieval.retrieve`.

        Popular and new items may be up to two seconds old. shares: of the sources, as in `features.retrieval.merge`.
        variants: decides which variants of products the sources offer.
        """
        items, found = self._items, size if variants is None else variants.candidates_for(size)
        static = await asyncio.to_thread(_static_candidates, items, history, at, found, plan, context, shares)
        return self._merged(history, at, size, *static, shares, context.seeds, variants)

    def candidates_now(
        self,
        history: History,
        at: float,
        size: int,
        plan: Plan | None,
        context: Context = NO_CONTEXT,
        shares: F64 | None = None,
        variants: VariantPlan | None = None,
    ) -> Retrieved:
        """`candidates`, all in this thread: for callers without an event loop."""
        found = size if variants is None else variants.candidates_for(size)
        static = _static_candidates(self._items, history, at, found, plan, context, shares)
        return self._merged(history, at, size, *static, shares, context.seeds, variants)

    def _merged(
        self,
        history: History,
        at: float,
        size: int,
        admitted: Bool | None,
        by_text: TextCandidates,
        shares: F64 | None,
        seeds: I32,
        variants: VariantPlan | None,
    ) -> Retrieved:
        found = size if variants is None else variants.candidates_for(size)
        shared = self._global_candidates(at, found)
        if admitted is not None:
            shared = restrict(self._items, shared, admitted, at, found)
        offered_by = None if variants is None else variants.offered
        return merge(self._items, history, at, size, shared, by_text, admitted, shares, seeds, offered_by)

    def _global_candidates(self, at: float, size: int) -> GlobalCandidates:
        if self._global is None or self._global[0] < size or not 0 <= at - self._global[1].at <= _GLOBAL_CANDIDATES_S:
            self._global = size, global_candidates(self._items, at, size)
        return self._global[1]


def _static_candidates(
    items: Items, history: History, at: float, size: int, plan: Plan | None, context: Context, shares: F64 | None
) -> tuple[Bool | None, TextCandidates]:
    """The parts of retrieval that do not read item state: (mask of admitted items, candidates by text)."""
    admitted = None
    if plan is not None and plan.removes_items:
        admitted = plan.admits(np.arange(len(items.catalogue), dtype=np.int32), history, at)
    return admitted, text_candidates(items, history, at, size, context, admitted, shares)


def ids_with_pinned(
    candidates: I32, items: Items, plan: Plan | None, history: History, at: float, seeds: I32 = NO_SEEDS
) -> list[str]:
    """The IDs of the candidates, then of the plan's pinned items that the catalogue has and the plan admits.

    seeds: as in `Context`; they are not pinned, because they are on the page already.
    """
    if plan is not None and plan.pins:
        pinned = items.catalogue.rows(pin.item_id for _, pin in plan.pins)
        pinned = pinned[pinned >= 0]
        pinned = pinned[plan.admits(pinned, history, at) & ~np.isin(pinned, candidates) & ~np.isin(pinned, seeds)]
        candidates = np.concatenate([candidates, pinned])
    ids = items.catalogue.item_ids
    return ids.at(candidates) if isinstance(ids, Strings) else [ids[row] for row in candidates.tolist()]


def sources_of(retrieved: Retrieved, rows: I32) -> list[list[str]]:
    """The names of the sources that retrieved each of these items, in the order of `SOURCES`, then of `FALLBACKS`;
    `pin` if none did."""
    bits_of = dict(zip(retrieved.item.tolist(), retrieved.source_bits.tolist(), strict=True))
    found, every = [bits_of.get(row, 0) for row in rows.tolist()], (*SOURCES, *FALLBACKS)
    return [[name for k, name in enumerate(every) if bits >> k & 1] or ["pin"] for bits in found]
