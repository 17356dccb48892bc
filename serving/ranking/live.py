"""The release a worker answers from: its arrays, this worker's item state, and how both move on while requests come.

Everything that touches item state runs in the event loop, one thing at a time, so nothing is locked. A request takes
`Follower.live` once and stays with it; the next release is loaded and warmed in a thread beside it and put in its place
by one assignment, so that no answer mixes two.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from features.arrays import I32, I64
from features.context import NO_CONTEXT, Context
from features.history import EMPTY, History
from features.log import Kind
from features.retrieval import retrieve, search_space
from features.table import Feature, Items, features, rows
from ranker import query_prior
from ranker.booster import BoosterTrees
from serving.ranking.explanation import Explainer, Nearest, ScoreParts, nearest_engaged
from serving.ranking.overlay import NO_OVERLAY, Overlay
from serving.ranking.ranking import Ranking
from serving.ranking.retrieval import CandidateRetriever
from serving.release import Release, ReleaseError, load_release
from serving.rules import Attributes, Cap, Condition, Diversity, Plan, Ranked, RuleError, Rules
from serving.store import START, Tail

log = logging.getLogger(__name__)


@dataclass
class Live:
    """A release with the item state of this moment.

    last, changes: the entries of the event stream and of the stream of items' changes up to which it has come.
    standing: the configuration's rules, made ready for it. overlay: what was written of items since.
    """

    release: Release
    items: Items
    features: tuple[Feature, ...]
    last: str
    standing: Plan | None = None
    overlay: Overlay = NO_OVERLAY
    changes: str = START

    @classmethod
    def of(cls, release: Release) -> Live:
        """The release as of its cut-off, with item state of its own to move on."""
        # Entries are numbered by arrival, in milliseconds. An hour covers clocks that disagree.
        first = f"{max(0, int((release.manifest.cut_off - 3600) * 1000))}-0"
        items = replace(release.items, state=release.items.state.copy())
        return cls(release, items, features(release.items), first)

    def with_overlay(self, overlay: Overlay, rules: Rules | None = None) -> Live:
        """The same release and item state with what was written of items; this one stays as it is.

        rules: that stand for every list, made ready for the items as they are then.
        """
        live = replace(self, items=overlay.over(self.release.items, self.items.state), overlay=overlay)
        live.standing = Plan.of(rules or Rules(), live.attributes, "serving.rules")
        # What is made when it is first asked for is made now, while nobody waits.
        at = self.release.manifest.cut_off
        live.rank(EMPTY, [*self.items.catalogue.item_ids[:2], *list(overlay.written)[:2]], at, 1)
        retrieve(live.items, EMPTY, at, 1, Context(query="a"))
        return live

    def apply(self, tail: Tail) -> None:
        """Take in events of the stream; those before the cut-off are in the release's state already."""
        new = tail.at >= self.release.manifest.cut_off
        self.items.state.apply(self.items.catalogue.rows(tail.item_ids)[new], tail.kind[new], tail.at[new])
        self.last = tail.last

    def rank(
        self, history: History, item_ids: list[str] | None, at: float, limit: int | None, context: Context = NO_CONTEXT
    ) -> Ranking:
        """At most `limit` of the candidates in order, each once; the whole catalogue where `item_ids` is None."""
        # In the order of ids, a stable sort by score leaves equal scores in it.
        ids, place, item = self._each_once(item_ids)
        if not len(item):
            return Ranking([], item, np.empty(0), np.empty((0, len(self.features)), np.float32), np.empty(0))
        table = rows(self.items, history, item, at, context)
        score = self.release.trees.score(table)
        bonus = np.zeros(len(score))
        if context.query and not self.release.knows_queries:
            bonus = query_prior.query_bonus(table, self.release.trees.names, score)
            score = score + bonus
        best = np.argsort(-score, kind="stable")[:limit]
        return Ranking([ids[i] for i in place[best].tolist()], item[best], score[best], table[best], bonus[best])

    def _each_once(self, item_ids: list[str] | None) -> tuple[Sequence[str], I64, I32]:
        """Ids, and of each candidate once, in the order of ids: its place among them, and its row."""
        catalogue = self.items.catalogue
        if self.overlay.written:  # rows that were added are not in the order of ids, and some are in no answer
            item_ids = sorted(set(catalogue.item_ids if item_ids is None else item_ids) - self.overlay.withdrawn)
            return item_ids, np.arange(len(item_ids)), catalogue.rows(item_ids)
        if item_ids is None:
            every = np.arange(len(catalogue))
            return catalogue.item_ids, every, every.astype(np.int32)
        item = catalogue.rows(item_ids)
        if (item < 0).any():  # an unknown item has no row to stand by
            item_ids = sorted(set(item_ids))
            return item_ids, np.arange(len(item_ids)), catalogue.rows(item_ids)
        item, place = np.unique(item, return_index=True)  # rows are in the order of ids
        return item_ids, place, item

    @cached_property
    def attributes(self) -> Attributes:
        """The catalogue's attributes, as rules name them."""
        return Attributes(self.items)

    @cached_property
    def retriever(self) -> CandidateRetriever:
        """Retrieval over this release."""
        return CandidateRetriever(self.items)

    def plan(self, rules: Rules | None) -> Plan | None:
        """The rules of a request after those that stand; None where there are none. Raises RuleError."""
        asked = None if rules is None else Plan.of(rules, self.attributes, "rules")
        return asked if self.standing is None else self.standing.then(asked)

    @cached_property
    def explainer(self) -> Explainer:
        """Reasons for scores by this release."""
        return Explainer(self.features)

    def explain(self, ranking: Ranking, history: History, most: int, context: Context = NO_CONTEXT) -> list[ScoreParts]:
        """For each item what its score is made of, with the `most` strongest reasons. context: of the request."""
        if not len(ranking.rows):
            return []
        return self.explainer.explain(ranking, self.release.trees.contributions(ranking.rows), history, most, context)

    def nearest_engaged(self, ranking: Ranking, history: History) -> list[Nearest | None]:
        """For each item the most similar other item of the user's history."""
        return nearest_engaged(self.items.vectors, ranking, history)

    def similar(self, row: int, limit: int) -> list[tuple[int, float]]:
        """Other items nearest by text, best first, as (row, cosine), equal cosines by id.

        Every item is compared, but where the catalogue has inverted lists: those of the nearest.
        """
        one = np.array([row], np.int32)
        others = search_space(self.items, self.items.vectors.pooled(one, np.ones(1)))
        cosine = self.items.vectors.cosines(others, one)[:, 0]
        kept = ~np.isnan(cosine) & (others != row)
        others, cosine = others[kept], cosine[kept]
        if len(others) > limit:
            near = cosine >= np.partition(cosine, len(cosine) - limit)[len(cosine) - limit]
            others, cosine = others[near], cosine[near]
        best = np.argsort(-cosine, kind="stable")[:limit]
        return list(zip(others[best].tolist(), cosine[best].tolist(), strict=True))

    def warm(self) -> None:
        """Rank and explain once, so that everything compiled is compiled and pages are read before anyone waits."""
        n = len(self.items.catalogue)
        item = np.arange(min(n, 100), dtype=np.int32)
        at = self.release.manifest.cut_off
        seen = History(
            item, np.full(len(item), Kind.CLICK, np.int8), np.full(len(item), at - 1), item, np.full(len(item), at - 2)
        )
        asked = Context(query=self.items.catalogue.titles[0] + " xyzzy" if n else "")
        for history, context in ((EMPTY, NO_CONTEXT), (seen, NO_CONTEXT), (seen, asked)):
            ranking = self.rank(history, list(self.items.catalogue.item_ids[:500]), at, None, context)
            self.explain(ranking, history, 1, context)
            self.nearest_engaged(ranking, history)
        self._warm_rules(ranking, seen, at, asked)
        Live.of(self.release).apply(Tail(START, ["warm"], np.zeros(1, np.int8), np.full(1, at)))

    def _warm_rules(self, ranking: Ranking, history: History, at: float, asked: Context) -> None:
        """Every rule once, and retrieval, whose first passes compile."""
        anything = Condition(attribute="category", in_=["", *self.items.catalogue.category_names[:1]])
        rules = Rules(filter=Condition(not_=anything), cap=[Cap("category", 1)], diversity=Diversity(0.5))
        plan = Plan.of(rules, self.attributes, "rules")
        assert plan is not None
        plan.apply(Ranked(ranking.item_ids, ranking.item, ranking.score), self.items.vectors, history, at, 1)
        retrieve(self.items, history, at, 1, asked)


def prepare(path: Path, expected: str | None, custom: tuple[Feature, ...] = (), rules: Rules | None = None) -> Live:
    """A release loaded, verified and warmed. Raises ReleaseError, also where its id is not the one expected.

    rules: that stand for every list; a release whose catalogue cannot obey them is refused, rather than served without.

    custom: features of the user's own, as in `release.load`.
    """
    release = load_release(path, custom=custom)
    if expected is not None and release.id != expected:
        raise ReleaseError(f"{path} holds release {release.id}, the pointer says {expected}: promote it again")
    if isinstance(release.trees, BoosterTrees):
        log.warning("release %s is scored by LightGBM, several times slower: %s", release.id, release.trees.why)
    live = Live.of(release)
    try:
        live.standing = Plan.of(rules or Rules(), live.attributes, "serving.rules")
    except RuleError as e:
        raise ReleaseError(f"{path}: the configuration's {e.path}: {e}: mend the rule, or release what it names") from e
    live.warm()
    return live
