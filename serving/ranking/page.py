"""The shared parts of the lists of a page: candidates and scores of equal requests, and items that were shown already.

A page is one read of the user and one moment. Lists with the same candidates and context are scored once; each then
leaves out what earlier lists show, after scoring, so that a list has the same scores as if it were alone.
"""

from __future__ import annotations

import numpy as np

from features.arrays import F64, I32
from features.context import Context
from features.history import History
from features.retrieval import Retrieved
from serving.ranking.live import Live
from serving.ranking.ranking import Ranking
from serving.rules import Plan, VariantPlan, only_without


class Page:
    """The lists of a page so far, for one user, release and moment. taken: int32, rows of the items that they have."""

    def __init__(self, live: Live, history: History, at: float) -> None:
        self._live, self._history, self._at = live, history, at
        self.taken: I32 = np.empty(0, np.int32)
        self._found: dict[object, Retrieved] = {}
        self._ranked: dict[object, Ranking] = {}
        self._plans: list[Plan | None] = []

    def variants(self, variants: VariantPlan | None) -> VariantPlan | None:
        """The plan of the next list, which also leaves out what the page has; the same plan for the first list."""
        if not len(self.taken):
            return variants
        return (
            only_without(self.taken, self._live.items.catalogue) if variants is None else variants.without(self.taken)
        )

    async def candidates(
        self, size: int, plan: Plan | None, context: Context, shares: F64 | None, variants: VariantPlan | None
    ) -> Retrieved:
        """The candidates of a list, as `CandidateRetriever.candidates` finds them; those of an equal list if there was
        one."""
        filtered = plan is not None and plan.removes_items
        key = (
            size,
            id(plan) if filtered else None,
            context.query,
            context.seeds.tobytes(),
            None if shares is None else shares.tobytes(),
            None if variants is None else variants.offer,
        )
        if key not in self._found:
            self._plans.append(plan)  # kept, so that no other plan gets its identity
            self._found[key] = await self._live.retriever.candidates(
                self._history, self._at, size, plan, context, shares, variants
            )
        return self._found[key]

    def rank(self, item_ids: list[str] | None, context: Context) -> Ranking:
        """All candidates of a list, ranked as by `Live.rank`; scored once for equal candidates and context."""
        columns = None if context.columns is None else context.columns.tobytes()
        seeds = context.seeds.tobytes()
        key = (None if item_ids is None else tuple(item_ids), context.device, context.query, columns, seeds)
        if key not in self._ranked:
            self._ranked[key] = self._live.rank(self._history, item_ids, self._at, None, context)
        return self._ranked[key]

    def add(self, shown: list[str]) -> None:
        """Take the items of a list."""
        rows = self._live.items.catalogue.rows(shown)
        self.taken = np.concatenate([self.taken, rows[rows >= 0]])


class Pages:
    """A page whose lists may be ranked by several releases, in experiments. An item is in one of the lists."""

    def __init__(self, at: float) -> None:
        """at: Unix seconds."""
        self._at = at
        self._by_release: dict[str, Page] = {}
        self._shown: list[str] = []

    def of(self, live: Live, history: History) -> Page:
        """The page as one release sees it. history: of the user, in the rows of its catalogue."""
        page = self._by_release.get(live.release.id)
        if page is None:
            page = self._by_release[live.release.id] = Page(live, history, self._at)
            page.add(self._shown)
        return page

    def add(self, shown: list[str]) -> None:
        """Take the items of a list."""
        self._shown += shown
        for page in self._by_release.values():
            page.add(shown)
