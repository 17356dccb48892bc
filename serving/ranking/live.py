"""The release a worker serves: its arrays and this worker's item state, both updated while requests are served.

Everything that touches item state runs in the event loop, one step at a time, so there are no locks. A request reads
`Follower.live` once and uses it throughout. The next release is loaded and warmed in a thread and becomes live with one
assignment, so no response mixes two releases.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np

from features.arrays import F32, F64, I32, I64
from features.context import NO_CONTEXT, Context
from features.history import EMPTY, NO_OUTSIDE, History, Outside
from features.log import Kind
from features.retention import unexpired
from features.retrieval import retrieve, search_space
from features.table import Feature, Items, features, rows
from ranker import query_prior
from ranker.booster import BoosterTrees
from ranker.calibration import Maps
from serving.config import ExperimentConfig, PlacementConfig
from serving.experiments import Key
from serving.merchandising import Compiled
from serving.ranking.arms.parts import NO_PARTS, ArmParts, compile_arms
from serving.ranking.explanation import Explainer, Nearest, ScoreParts, nearest_engaged
from serving.ranking.exploration import check_exploration, item_spread
from serving.ranking.objective import Objective, compile_objectives
from serving.ranking.overlay import NO_OVERLAY, Overlay
from serving.ranking.ranking import Ranking
from serving.ranking.retrieval import CandidateRetriever, ids_with_pinned
from serving.release import Release, ReleaseError, load_release
from serving.rules import (
    Attributes,
    Cap,
    Condition,
    Diversity,
    Plan,
    Ranked,
    Removed,
    RuledList,
    RuleError,
    Rules,
    VariantPlan,
    first_of_group,
)
from serving.store import START, Tail

log = logging.getLogger(__name__)

NO_RULES = Rules()


@dataclass
class Live:
    """A release with current item state.

    last, changes: the last entries applied of the event stream and of the stream of item changes.
    standing: the configuration's rules, compiled for this release. placed: the same followed by those of each
    placement. objectives: of the placements that have one. overlay: items written since the release. merchandising: the
    merchandising rules, compiled for this release; None if they are not used. arms: what arms of experiments change.
    item_spread: of the release's items, see `serving.ranking.exploration`.
    """

    release: Release
    items: Items
    features: tuple[Feature, ...]
    last: str
    standing: Plan | None = None
    placed: Mapping[str, Plan | None] = field(default_factory=dict)
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    overlay: Overlay = NO_OVERLAY
    changes: str = START
    merchandising: Compiled | None = None
    arms: ArmParts = NO_PARTS
    item_spread: float = 0.5

    @classmethod
    def of(cls, release: Release) -> Live:
        """The release as of its cut-off, with its own copy of the item state to update."""
        # Entry ids are arrival times in milliseconds. The extra hour allows for clocks that disagree.
        first = f"{max(0, int((release.manifest.cut_off - 3600) * 1000))}-0"
        items = replace(release.items, state=release.items.state.copy())
        if len(withdrawn := items.catalogue.withdrawn):
            born = items.catalogue.available_from.copy()
            born[withdrawn] = np.inf  # retrieval treats them as not yet on sale
            born.flags.writeable = False  # the same type to numba as the release's own array
            items = replace(items, catalogue=replace(items.catalogue, available_from=born))
        spread = item_spread(items, release.manifest.cut_off)
        return cls(release, items, features(release.items), first, item_spread=spread)

    @property
    def calibration(self) -> Maps:
        """The map from scores to the probability of each outcome that the release has one for."""
        return self.release.manifest.calibration or {}

    def compile_rules(
        self,
        rules: Rules,
        placements: Mapping[str, PlacementConfig],
        experiments: Mapping[str, ExperimentConfig] = MappingProxyType({}),
    ) -> None:
        """Compile the rules of the configuration and of its placements, and their objectives, and those of arms.

        Raises RuleError, but not for those of arms.
        """
        standing = self.standing = Plan.of(rules, self.attributes, "serving.rules")
        own = {
            name: Plan.of(placement.rules, self.attributes, f"placements.{name}.rules")
            for name, placement in placements.items()
        }
        self.objectives = compile_objectives(
            {name: placement.objective for name, placement in placements.items()},
            self.calibration,
            self.items.catalogue,
        )
        for name, placement in placements.items():
            check_exploration(placement.explore, self.calibration, f"placements.{name}.explore")
        if experiments:
            self.arms = compile_arms(experiments, self.attributes, self.calibration, self.items.catalogue)
        self.placed = {name: plan if standing is None else standing.then(plan) for name, plan in own.items()}

    def with_overlay(
        self,
        overlay: Overlay,
        rules: Rules = NO_RULES,
        placements: Mapping[str, PlacementConfig] = MappingProxyType({}),
        experiments: Mapping[str, ExperimentConfig] = MappingProxyType({}),
    ) -> Live:
        """A copy with the same release and item state, and these written items.

        rules, placements, experiments: of the configuration. Their rules are compiled for the items with the overlay.
        """
        live = replace(self, items=overlay.over(self.release.items, self.items.state), overlay=overlay)
        live.compile_rules(rules, placements, experiments)
        if self.merchandising is not None:
            live.merchandising = self.merchandising.again(live.attributes)
        # Compute lazily created values now, while no request waits for them.
        at = self.release.manifest.cut_off
        context = Context(seeds=np.arange(min(2, len(live.items.catalogue)), dtype=np.int32))
        live.rank(EMPTY, [*self.items.catalogue.item_ids[:2], *list(overlay.written)[:2]], at, 1, context)
        retrieve(live.items, EMPTY, at, 1, context._replace(query="a"))
        # The arrays of a release are read-only, which is another type to numba than those of an overlay.
        live.items.state.apply(np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0))
        return live

    def apply(self, tail: Tail) -> None:
        """Apply events of the stream. Events before the cut-off are skipped: the release's state includes them."""
        new = tail.at >= self.release.manifest.cut_off
        self.items.state.apply(self.items.catalogue.rows(tail.item_ids)[new], tail.kind[new], tail.at[new])
        self.last = tail.last

    def rank(
        self, history: History, item_ids: list[str] | None, at: float, limit: int | None, context: Context = NO_CONTEXT
    ) -> Ranking:
        """Rank candidates and return the best `limit`, each once.

        item_ids: the whole catalogue if None. context: its columns are in the order of `item_ids`; of an item that is
        given twice, the first values count.
        """
        # Candidates are sorted by id, so a stable sort by score orders equal scores by id.
        ids, index, item = self._unique_candidates(item_ids)
        if not len(item):
            return Ranking([], item, np.empty(0), np.empty((0, len(self.features)), np.float32), np.empty(0))
        unknown = int(np.count_nonzero(item < 0))
        if item_ids is not None and context.columns is not None and context.columns.shape[1] > 1:
            place = index if ids is item_ids else first_places(item_ids, ids)
            context = context._replace(columns=context.columns[:, place])
        table = rows(self.items, history, item, at, context)
        score = self.release.trees.score(table)
        bonus = np.zeros(len(score))
        if context.query and not self.release.knows_queries:
            bonus = query_prior.query_bonus(table, self.release.trees.names, score)
            score = score + bonus
        of_seeds = None
        if len(context.seeds) and not self.release.knows_seeds:
            of_seeds = query_prior.seed_bonus(table, self.release.trees.names, score)
            score = score + of_seeds
        best = np.argsort(-score, kind="stable")[:limit]
        return Ranking(
            [ids[i] for i in index[best].tolist()],
            item[best],
            score[best],
            table[best],
            bonus[best],
            unknown,
            None if of_seeds is None else of_seeds[best],
        )

    def _unique_candidates(self, item_ids: list[str] | None) -> tuple[Sequence[str], I64, I32]:
        """Candidates in id order, without duplicates and withdrawn items: (ids, index into ids, catalogue row)."""
        catalogue = self.items.catalogue
        if self.overlay.written or self.withdrawn:  # added rows are not in id order
            item_ids = sorted(set(catalogue.item_ids if item_ids is None else item_ids) - self.withdrawn)
            return item_ids, np.arange(len(item_ids)), catalogue.rows(item_ids)
        if item_ids is None:
            rows_in_order = np.arange(len(catalogue))
            return catalogue.item_ids, rows_in_order, rows_in_order.astype(np.int32)
        item = catalogue.rows(item_ids)
        if (item < 0).any():  # unknown items have no row to sort by
            item_ids = sorted(set(item_ids))
            return item_ids, np.arange(len(item_ids)), catalogue.rows(item_ids)
        item, index = np.unique(item, return_index=True)  # rows are in id order
        return item_ids, index, item

    @cached_property
    def withdrawn(self) -> frozenset[str]:
        """Ids of items that must not be in results, by the catalogue or by a write."""
        catalogue = self.items.catalogue
        rows_out = np.flatnonzero(np.isposinf(catalogue.available_from)).tolist()
        return frozenset(catalogue.item_ids[row] for row in rows_out)

    @cached_property
    def reads_attributes(self) -> bool:
        """True if attributes of users are features of this release."""
        return any(column.per == "user" for column in self.items.columns)

    @cached_property
    def attributes(self) -> Attributes:
        """The attributes that rules may use."""
        return Attributes(self.items)

    @cached_property
    def retriever(self) -> CandidateRetriever:
        """Candidate retrieval from this release."""
        return CandidateRetriever(self.items)

    def plan(
        self, rules: Rules | None, placement: str | None = None, arms: Sequence[Key] = (), *, at: float
    ) -> Plan | None:
        """The rules of a list, None if there are none.

        They are those of the configuration, of its placement, of merchandisers at this time (`at`, Unix seconds), of
        its arms and of the request. Raises RuleError.
        """
        requested = None if rules is None else Plan.of(rules, self.attributes, "rules")
        configured = self.standing if placement is None else self.placed[placement]
        if self.merchandising is not None:
            configured = self.merchandising.after(configured, placement, at)
        for own in (self.arms.plans[key] for key in arms if key in self.arms.plans):
            configured = own if configured is None else configured.then(own)
        return requested if configured is None else configured.then(requested)

    def recommend(
        self,
        history: History,
        at: float,
        limit: int,
        size: int,
        plan: Plan | None,
        context: Context = NO_CONTEXT,
        outside: Outside = NO_OUTSIDE,
        narrowed: Plan | None = None,
        shares: F64 | None = None,
        variants: VariantPlan | None = None,
        placement: str | None = None,
    ) -> Ranking:
        """The best `limit` items of the catalogue for a user, after the rules: the list of `/v1/recommend`.

        Without exploration, and all in this thread. size: number of candidates to retrieve. outside: the user's events
        with items outside the catalogue. narrowed: a plan with further filters; the best `size` items that it admits
        are candidates as well. shares: of the sources, as in `features.retrieval.merge`.
        variants: which variants of products may be in the list; None for all. placement: the name of the one whose
        objective applies.
        """
        found = self.retriever.candidates_now(history, at, size, plan, context, shares, variants).item
        if narrowed is not None:
            more = self.retriever.candidates_now(history, at, size, narrowed, context, shares, variants).item
            found = np.concatenate([found, more[~np.isin(more, found)]])
        plan = self.with_variants(plan, variants)
        ids = ids_with_pinned(found, self.items, plan, history, at)
        has_objective = placement in self.objectives
        whole = self.rank(history, ids, at, None if plan or variants or has_objective else limit, context)
        whole, _ = self.choose_variants(self.apply_objective(whole, placement), plan, variants, limit)
        return self.apply_rules(whole, plan, history, outside, at, limit)[0].first(limit)

    def with_variants(self, plan: Plan | None, variants: VariantPlan | None) -> Plan | None:
        """The rules, if there are any, with those of variants."""
        return plan if plan is None or variants is None else variants.with_rules(plan, self.attributes)

    def choose_variants(
        self, ranking: Ranking, plan: Plan | None, variants: VariantPlan | None, limit: int | None
    ) -> tuple[Ranking, list[Removed]]:
        """The best `limit` items with the variants that may be shown, and those removed; the same ranking with rules.

        plan: from `with_variants`, which chooses between variants after boosts and pins.
        """
        if variants is None or plan is not None:
            return ranking, []
        kept, removed = variants.apply(ranking.item_ids, ranking.item)
        return ranking.take(kept[:limit]), removed

    def apply_objective(self, ranking: Ranking, placement: str | None) -> Ranking:
        """The ranking of all candidates for the objective of a placement; unchanged without one."""
        objective = None if placement is None else self.objectives.get(placement)
        return ranking if objective is None else objective.apply(ranking)

    def apply_rules(
        self, ranking: Ranking, plan: Plan | None, history: History, outside: Outside, at: float, limit: int | None
    ) -> tuple[Ranking, RuledList | None]:
        """The ranking after the rules, and their effects; None without rules.

        outside: the user's events with items outside the catalogue. limit: maximum number of items, if there are rules.
        """
        if plan is None:
            return ranking, None
        ranked = Ranked(ranking.item_ids, ranking.item, ranking.score)
        ruled = plan.apply(ranked, self.items.vectors, history, at, limit, outside)
        return ranking.take(ruled.order)._replace(score=ruled.score), ruled

    @cached_property
    def explainer(self) -> Explainer:
        """Explainer of this release's scores."""
        return Explainer(self.features)

    def explain(self, ranking: Ranking, history: History, most: int, context: Context = NO_CONTEXT) -> list[ScoreParts]:
        """The parts of each item's score, with the `most` strongest reasons. context: the context of the request."""
        if not len(ranking.rows):
            return []
        return self.explainer.explain(ranking, self.release.trees.contributions(ranking.rows), history, most, context)

    def explain_without_history(
        self, ranking: Ranking, candidates: list[str] | None, at: float, most: int, context: Context = NO_CONTEXT
    ) -> list[ScoreParts]:
        """The parts of the scores that the items of a ranking have for a user without history.

        candidates: those that were ranked, since some features compare an item with them.
        """
        of_new = self.rank(EMPTY, candidates, at, None, context)
        row = {item_id: k for k, item_id in enumerate(of_new.item_ids)}
        same = of_new.take(np.array([row[item_id] for item_id in ranking.item_ids], np.int64))
        return self.explain(same, EMPTY, most, context)

    def nearest_engaged(self, ranking: Ranking, history: History) -> list[Nearest | None]:
        """For each item, the most similar other item of the user's history; None if there is none."""
        return nearest_engaged(self.items.vectors, ranking, history)

    def similar(self, row: int, limit: int, one_variant: bool = True) -> list[tuple[int, float]]:
        """The items with the most similar text as (row, cosine), best first, with equal cosines in id order.

        All items are compared, unless the catalogue has inverted lists: then only those of the nearest lists.
        one_variant: leave out other variants of this product, and all but the most similar variant of every other.
        """
        one = np.array([row], np.int32)
        others = search_space(self.items, self.items.vectors.pooled(one, np.ones(1)))
        cosine = self.items.vectors.cosines(others, one)[:, 0]
        kept = ~np.isnan(cosine) & (others != row)
        others, cosine = others[kept], cosine[kept]
        if one_variant and self.items.catalogue.group is not None:
            others, cosine = self._one_per_product(row, others, cosine)
        if len(others) > limit:
            near = cosine >= np.partition(cosine, len(cosine) - limit)[len(cosine) - limit]
            others, cosine = others[near], cosine[near]
        best = np.argsort(-cosine, kind="stable")[:limit]
        return list(zip(others[best].tolist(), cosine[best].tolist(), strict=True))

    def _one_per_product(self, row: int, others: I32, cosine: F32) -> tuple[I32, F32]:
        """The most similar variant of each other product, in the order of rows. Withdrawn items are left out."""
        catalogue = self.items.catalogue
        assert catalogue.group is not None
        alone = len(catalogue.group_names)
        out = (catalogue.group[others] == catalogue.group[row]) & (catalogue.group[row] != alone)
        if self.withdrawn:
            out |= np.isin(others, catalogue.rows(self.withdrawn))
        others, cosine = others[~out], cosine[~out]
        best = np.argsort(-cosine, kind="stable")
        chosen = np.sort(best[first_of_group(catalogue.group[others[best]], alone)])
        return others[chosen], cosine[chosen]

    def warm(self) -> None:
        """Rank and explain once, so that kernels are compiled and pages are loaded before the first request."""
        n = len(self.items.catalogue)
        item = np.arange(min(n, 100), dtype=np.int32)
        at = self.release.manifest.cut_off
        history = History(
            item, np.full(len(item), Kind.CLICK, np.int8), np.full(len(item), at - 1), item, np.full(len(item), at - 2)
        )
        search = Context(query=self.items.catalogue.titles[0] + " xyzzy" if n else "")
        for user, context in ((EMPTY, Context(seeds=item[:2])), (history, NO_CONTEXT), (history, search)):
            ranking = self.rank(user, list(self.items.catalogue.item_ids[:500]), at, None, context)
            self.explain(ranking, user, 1, context)
            self.nearest_engaged(ranking, user)
        self._warm_rules(ranking, history, at, search)
        unexpired(np.full(1, at), at, 1.0)
        Live.of(self.release).apply(Tail(START, ["warm"], np.zeros(1, np.int8), np.full(1, at)))

    def _warm_rules(self, ranking: Ranking, history: History, at: float, context: Context) -> None:
        """Apply every kind of rule once, and retrieve once, to compile their kernels."""
        anything = Condition(attribute="category", in_=["", *self.items.catalogue.category_names[:1]])
        rules = Rules(filter=Condition(not_=anything), cap=[Cap("category", 1)], diversity=Diversity(0.5))
        plan = Plan.of(rules, self.attributes, "rules")
        assert plan is not None
        plan.apply(Ranked(ranking.item_ids, ranking.item, ranking.score), self.items.vectors, history, at, 1)
        retrieve(self.items, history, at, 1, context._replace(seeds=ranking.item[:2]))


def first_places(item_ids: list[str], ids: Sequence[str]) -> I64:
    """int64, like `ids`: the first place of each ID in `item_ids`."""
    place = dict(zip(reversed(item_ids), range(len(item_ids) - 1, -1, -1), strict=True))
    return np.array([place[i] for i in ids], np.int64)


def prepare(
    path: Path,
    expected: str | None,
    custom: tuple[Feature, ...] = (),
    rules: Rules = NO_RULES,
    placements: Mapping[str, PlacementConfig] = MappingProxyType({}),
    experiments: Mapping[str, ExperimentConfig] = MappingProxyType({}),
) -> Live:
    """Load, verify and warm a release. Raises ReleaseError if it is not usable or its id is not `expected`.

    rules, placements: of the configuration. A release whose catalogue lacks what their rules need is refused.
    experiments: those whose arms it cannot serve are set aside.
    custom: custom features, as in `serving.release.load_release`.
    """
    release = load_release(path, custom=custom)
    if expected is not None and release.id != expected:
        raise ReleaseError(
            f"{path} holds release {release.id}, but the pointer names {expected}: promote {expected} again"
        )
    if isinstance(release.trees, BoosterTrees):
        log.warning("release %s is scored by LightGBM (several times slower): %s", release.id, release.trees.why)
    live = Live.of(release)
    try:
        live.compile_rules(rules, placements, experiments)
    except RuleError as e:
        raise ReleaseError(f"{path}: the configuration's {e.path}: {e}: fix the rule or the release") from e
    live.warm()
    return live
