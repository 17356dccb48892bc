"""The operations behind the routes, without HTTP: rankings, similar items, and what is known of an item.

Ranking itself is in `live`, storage in `serving.store`. Writes are in `serving.writes`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET

from features.arrays import F64, I32
from features.columns import NOTHING, Column, Scalar, Sent, has_lists, pick, with_placement
from features.context import NO_SEEDS, Context
from features.history import EMPTY, NO_OUTSIDE, History
from ranker.booster import BoosterTrees
from serving.api import (
    DEFAULT_LIMIT,
    ItemAnswer,
    PageAnswer,
    PageRequest,
    Problem,
    RankAnswer,
    RankedItem,
    RankRequest,
    RecommendRequest,
    columns,
    decoding,
    page,
    rankings,
    request_id,
)
from serving.api import limits as bounds
from serving.config import ExplorationConfig, ServiceConfig
from serving.experiments import NO_ARMS, Arms, ExperimentTable, Key, unit_hash
from serving.ranking.arms.releases import ArmReleases
from serving.ranking.explanation import ScoreParts
from serving.ranking.exploration import belief_of, explore, explore_by_posterior
from serving.ranking.follower import Follower
from serving.ranking.lists.known import Known
from serving.ranking.lists.made import Made, Mixed, mixed
from serving.ranking.lists.treatment import Treatment, order_parts, ordered
from serving.ranking.live import Live, first_places
from serving.ranking.objective import objective_parts
from serving.ranking.page import Page, Pages
from serving.ranking.placements import Placement, PlacementTable
from serving.ranking.ranking import Ranking
from serving.ranking.retrieval import ids_with_pinned, sources_of
from serving.ranking.shadow import Shadow
from serving.records import Metrics, Served, ServedLog
from serving.rules import Plan, RuleError, Rules, VariantPlan
from serving.store import Store, StoreAway, WrittenItems, decode_fields
from serving.writes import Writes, redis_required

log = logging.getLogger(__name__)

_MEMORY_S = 5.0
"""Seconds between two checks of the memory of Redis."""


class Asked(NamedTuple):
    """A list of the catalogue that is to be made: by what, for whom, and with which rules and context."""

    treatment: Treatment
    known: Known
    plan: Plan | None
    context: Context


class Service:
    """The operations behind the routes.

    degraded: number of degraded rankings, see `RankAnswer`. slow: number of rankings scored by LightGBM,
    because the compiled scorer does not support the release's model. eviction: why Redis may evict keys; empty if it
    cannot.
    """

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        follower: Follower,
        clock: Callable[[], float],
        metrics: Metrics | None = None,
    ) -> None:
        self.config, self.store, self.follower, self.clock = config, store, follower, clock
        self.metrics = metrics or Metrics()
        self.written = WrittenItems(store)
        self.writes = Writes(config, store, self.written, clock, self.metrics, self._columns)
        self.served = ServedLog(store, self.metrics, config.log_served_most)
        self.shadow = Shadow(config, store, follower.of_shadow(), self.served, self.metrics)
        self.placements = PlacementTable(config.placements)
        self.experiments = ExperimentTable(config.experiments)
        self.arm_releases = ArmReleases(config, self.experiments, follower, clock)
        self._rng = np.random.default_rng()
        self.degraded = 0
        self.slow = 0
        self.eviction = ""

    async def exposition(self) -> bytes:
        """The metrics of all workers, with what Redis reports now, or reported last while it is unavailable."""
        with suppress(StoreAway):
            self.metrics.backlog(await self.store.backlog(time.time()))
            self.metrics.memory(await self.store.memory())
            self.metrics.users(await self.store.count_users(self.clock()), self.config.max_users)
        return await asyncio.to_thread(self.metrics.exposition)

    async def watch_memory(self) -> None:
        """Check every few seconds, until cancelled, whether Redis may evict keys; `state` reports it."""
        while True:
            with suppress(StoreAway):
                problem = (await self.store.memory()).problem
                if problem and problem != self.eviction:
                    log.error("%s", problem)
                self.eviction = problem
            await asyncio.sleep(_MEMORY_S)

    @property
    def ready(self) -> bool:
        """True if a release is loaded and Redis keeps what it is sent."""
        return self.follower.live is not None and not self.eviction

    def moment(self) -> float:
        """Now, rounded up to a whole microsecond: the log's resolution, and later than any event already accepted."""
        return math.ceil(self.clock() * 1e6) / 1e6

    def live(self) -> Live:
        """The live release; read it once per request. Raises Problem (503) if none is loaded."""
        if self.follower.live is None:
            raise Problem(
                503,
                "not-ready",
                "No release is loaded",
                self.follower.reason,
                "Retry shortly; /health/ready reports when a release is loaded.",
                headers={"Retry-After": "1"},
            )
        return self.follower.live

    def _columns(self) -> tuple[Column, ...]:
        """The columns that the live release declares; none without one."""
        live = self.follower.live
        return () if live is None else live.items.columns

    async def known_of(self, user_id: str | None, live: Live, at: float) -> Known:
        """The data known of a user, and why the response is degraded, if it is.

        Degraded responses are decided and counted only here.
        """
        history, outside, reason = EMPTY, NO_OUTSIDE, self.follower.degraded
        attributes: dict[str, Scalar] | None = None
        stored, of_users = None, user_id is not None and self.experiments.of_users
        if user_id is not None:
            needed = self._logs_attributes(live) or self.experiments.reads_attributes
            try:
                found = await self.store.read_user(user_id, needed, of_users)
                history, outside = found.history(live.items.catalogue, at, live.release.manifest.retention)
                attributes, stored = found.decoded_attributes(), found
            except StoreAway as e:
                log.debug("ranking without history: %s", type(e).__name__)  # the error's text may contain a user id
                reason = reason or "history-unavailable"
        self.degraded += reason is not None
        unit = None
        if of_users and user_id is not None:
            taken_over = None if stored is None else stored.unit
            unit = unit_hash(user_id) if taken_over is None else int.from_bytes(taken_over, "little")
        return Known(history, outside, attributes, reason, stored, unit)

    def _logs_attributes(self, live: Live) -> bool:
        """True if a release in use has attributes of users as features. live: that of the list."""
        others = self.shadow.reads_attributes or self.arm_releases.reads_attributes
        return live.reads_attributes or others

    def _treated(
        self, request: RankRequest | RecommendRequest, placement: Placement, live: Live, known: Known, at: float
    ) -> tuple[Arms, list[tuple[Treatment, Known]]]:
        """The arms of a request, and the ways to make its list, each with what is known of the user."""
        arms = NO_ARMS
        if self.experiments:
            attributes = NOTHING if request.user_id is None else known.attributes
            arms = self.experiments.arms_of(request, known.unit, attributes, at, self.arm_releases.usable)
        if len(arms.ways) > 1:  # the mix is random already, and its propensities would be those of neither list
            placement = placement.unexplored
        ways = []
        for keys in arms.ways:
            configs = [self.experiments.arm(key) for key in keys]
            treatment = Treatment.of(keys, configs, placement, live, self.arm_releases.live_of)
            ways.append((treatment, known if treatment.live is live else known.of_release(treatment.live, at)))
        return arms, ways

    async def rank(self, request: RankRequest, shows_history: bool = True) -> RankAnswer:
        """Rank candidates for a user. Raises Problem.

        shows_history: whether an explanation may show the user's history. If not, it has the reasons for a new user.
        """
        started, at, live = time.perf_counter(), self.moment(), self.live()
        placement = self.placements.of(request)
        bounds.check_size(request, len(live.items.catalogue), self.config)
        given = len(request.ids or live.items.catalogue)
        bounds.check_explained(request, placement.limit_of(request), given, self.config)
        known = await self.known_of(request.user_id, live, at)
        arms, ways = self._treated(request, placement, live, known, at)
        made = []
        for treatment, of_user in ways:
            ranks = treatment.live
            plan = plan_of(request.rules, ranks, placement.name, treatment.arms, at=at)
            variants = self._variants(request, placement, ranks, of_user, at)
            plan = ranks.with_variants(plan, variants)
            context = self._context(request, ranks, of_user, ("candidate", "request"))
            made.append(self._make(request, treatment, of_user, request.ids, at, plan, context, variants))
        return self._answer(request, arms, made, at, started, shows_history)

    async def recommend(
        self, request: RecommendRequest, shows_history: bool = True, live: Live | None = None
    ) -> RankAnswer:
        """Retrieve and rank items of the whole catalogue for a user, each with its sources. Raises Problem.

        shows_history: as in `rank`. live: a copy of the live release with other rules, for a preview.
        """
        started, at, ranks = time.perf_counter(), self.moment(), live or self.live()
        placement = self.placements.of(request)
        limit = placement.limit_of(request) or DEFAULT_LIMIT
        bounds.check_explained(request, limit, limit, self.config)
        known = await self.known_of(request.user_id, ranks, at)
        if live is None:
            arms, ways = self._treated(request, placement, ranks, known, at)
        else:  # a preview shows the rules, whichever arm its user is in
            arms, ways = NO_ARMS, [(Treatment.of((), (), placement, live, self.arm_releases.live_of), known)]
        asked = [
            Asked(treatment, of_user, *self._plan_and_context(request, treatment, of_user, at))
            for treatment, of_user in ways
        ]
        return await self._recommended(request, arms, asked, at, limit, shows_history, started)

    async def page(self, request: PageRequest, shows_history: bool = True) -> PageAnswer:
        """Recommend items for several placements at once, each item in one list. Raises Problem.

        shows_history: as in `rank`.
        """
        started, at, live = time.perf_counter(), self.moment(), self.live()
        asked = request.requests()
        placements, limits = list[Placement](), list[int]()
        for k, one in enumerate(asked):
            with page.within_list(k):
                placements.append(self.placements.of(one))
                limits.append(placements[-1].limit_of(one) or DEFAULT_LIMIT)
                bounds.check_page(request, sum(limits), self.config)
        known = await self.known_of(request.user_id, live, at)
        self.degraded += (len(asked) - 1) * (known.degraded is not None)
        treated = list[tuple[Arms, list[Asked]]]()
        for k, (one, placement) in enumerate(zip(asked, placements, strict=True)):
            with page.within_list(k):
                arms, ways = self._treated(one, placement, live, known, at)
                parts = [Asked(t, of_user, *self._plan_and_context(one, t, of_user, at)) for t, of_user in ways]
                treated.append((arms, parts))
        shared, lists = Pages(at), list[RankAnswer]()
        for one, limit, (arms, parts) in zip(asked, limits, treated, strict=True):
            began = time.perf_counter()
            with request_id.nested():
                answer = await self._recommended(one, arms, parts, at, limit, shows_history, began, shared)
            shared.add([item.item_id for item in answer.items])
            lists.append(answer)
            await asyncio.sleep(0)  # so that other requests have a turn between two lists
        return PageAnswer(live.release.id, known.degraded is not None, lists, _ms_since(started))

    def _plan_and_context(
        self, request: RecommendRequest, treatment: Treatment, known: Known, at: float
    ) -> tuple[Plan | None, Context]:
        """The rules and the context of a list. Raises Problem (422)."""
        live = treatment.live
        plan = plan_of(request.rules, live, treatment.placement.name, treatment.arms, at=at)
        return plan, self._context(request, live, known, ("request",))

    async def _recommended(
        self,
        request: RecommendRequest,
        arms: Arms,
        asked: Sequence[Asked],
        at: float,
        limit: int,
        shows_history: bool,
        started: float,
        shared: Pages | None = None,
    ) -> RankAnswer:
        """The answer of `recommend`. asked: the ways to make the list. shared: the page that it is part of."""
        made = list[Made]()
        for treatment, known, plan, context in asked:
            live, shares, history = treatment.live, treatment.placement.shares, known.history
            own = None if shared is None else shared.of(live, history)
            size = self.config.candidates_for(limit + (0 if own is None else len(own.taken)))
            variants = self._variants(request, treatment.placement, live, known, at, context.seeds)
            if own is None:
                found = await live.retriever.candidates(history, at, size, plan, context, shares, variants)
            else:
                found = await own.candidates(size, plan, context, shares, variants)
                variants = own.variants(variants)
            rules = live.with_variants(plan, variants)
            ids = ids_with_pinned(found.item, live.items, rules, history, at, context.seeds)
            one = self._make(request, treatment, known, ids, at, rules, context, variants, own)
            made.append(one._replace(found=found))
        return self._answer(request, arms, made, at, started, shows_history)

    def _make(
        self,
        request: RankRequest | RecommendRequest,
        treatment: Treatment,
        known: Known,
        candidates: list[str] | None,
        at: float,
        plan: Plan | None,
        context: Context,
        variants: VariantPlan | None,
        shared: Page | None = None,
    ) -> Made:
        """Rank candidates, apply the objective and the rules, and explore."""
        live, placement = treatment.live, treatment.placement
        history, limit = known.history, placement.limit_of(request)
        slow = isinstance(live.release.trees, BoosterTrees)
        self.slow += slow
        count = len(live.items.catalogue) if candidates is None else len(candidates)
        self.metrics.ranked(count, known.degraded is not None, slow, placement.name)
        logged = self.config.log_served and request.shown
        sampled = logged and self._rng.random() < self.config.log_rows_share
        shadowed = logged and self.shadow.wants(live)
        reorders = treatment.objective is not None or treatment.order is not None
        exploration = self._exploration(request, treatment) if plan is None and not reorders else None
        rank_all = sampled or shadowed or reorders or plan is not None or variants is not None
        rank_all = rank_all or exploration is not None
        began = time.perf_counter()
        if shared is None:
            whole = live.rank(history, candidates, at, None if rank_all else limit, context)
        else:
            whole = shared.rank(candidates, context)
        live_ms = _ms_since(began)
        self.metrics.unknown(whole.unknown)
        valued = whole if treatment.objective is None else treatment.objective.apply(whole)
        if treatment.order is not None:
            valued = ordered(whole, treatment.order, live, candidates, at)
        chosen, left_out = live.choose_variants(valued, plan, variants, None if exploration else limit)
        ranking, ruled = live.apply_rules(chosen, plan, history, known.outside, at, limit)
        propensity: F64 | None = None
        if exploration:
            ranking, propensity = self._explore_by_posterior(ranking, exploration, live, history, at, limit)
        elif ruled is None:
            ranking = ranking.first(limit)
            ranking, propensity = self._explore(ranking, placement) if request.shown else (ranking, None)
        removed = (left_out or None) if ruled is None else ruled.removed
        return Made(
            *(treatment, known, candidates, context, plan, whole, ranking, None if ruled is None else ruled.applied),
            *(removed, propensity, live_ms, sampled, shadowed),
        )

    def _answer(
        self,
        request: RankRequest | RecommendRequest,
        arms: Arms,
        made: Sequence[Made],
        at: float,
        started: float,
        shows_history: bool,
    ) -> RankAnswer:
        """The answer with a list, or with two that are mixed: logged if it is shown, and explained if requested."""
        first, mix = made[0], None
        if len(made) == 1:
            items, score = self._items(request, first, at, shows_history), first.ranking.score
        else:
            mix = self._mixed(request, made)
            of_part = [iter(self._items(request, part, at, shows_history)) for part in mix.parts]
            items = [next(of_part[k]) for k in mix.part]
            score = np.array([item.score for item in items])
            for item, team in zip(items, mix.teams, strict=True) if request.explain else ():
                item.team = team
        exposed = arms.names if request.shown and items else {}
        record = self._record(request, first, mix, at, score, exposed, started)
        if first.shadowed and mix is None:
            sent = _columns_of(request, first.whole.item_ids)
            self.shadow.put(record, first.whole, first.context, sent, first.known.attributes or NOTHING, first.live_ms)
        elif self.config.log_served and request.shown:
            self.served.put(record)
        degraded = first.known.degraded
        answer = RankAnswer(request_id.current(), record.release, degraded is not None, items, 0.0)
        if request.explain and shows_history and first.removed is not None:
            answer.removed = first.removed
        answer.degraded_reason = degraded or UNSET
        answer.placement = first.treatment.placement.name or UNSET
        answer.experiments = dict(arms.names if request.explain else exposed) or UNSET
        for experiment, arm in exposed.items():
            self.metrics.exposed(experiment, arm)
        answer.took_ms = _ms_since(started)
        return answer

    def _mixed(self, request: RankRequest | RecommendRequest, made: Sequence[Made]) -> Mixed:
        one, other = made
        arms = one.treatment.arms[-1][1], other.treatment.arms[-1][1]
        return mixed(one, other, arms, one.treatment.placement.limit_of(request), self._rng)

    def _items(
        self, request: RankRequest | RecommendRequest, made: Made, at: float, shows_history: bool
    ) -> list[RankedItem]:
        """The items of an answer, with their explanations if requested, and their sources if they were retrieved."""
        ranking, live, history = made.ranking, made.treatment.live, made.known.history
        if not request.explain:
            items = _ranked_items(ranking)
        elif shows_history:
            items = self._explain(made, live.explain(ranking, history, self.config.reasons, made.context))
            objective_parts(items, ranking)
            self._name_nearest(items, live, ranking, history)
        else:
            # A rule's removed items may have been excluded by the history, so they are left out.
            parts = live.explain_without_history(ranking, made.candidates, at, self.config.reasons, made.context)
            items = [_with_history_in_others(item) for item in self._explain(made, parts)]
        if made.found is not None:
            for item, sources in zip(items, sources_of(made.found, ranking.item), strict=True):
                item.sources = sources
        return items

    def _exploration(self, request: RankRequest | RecommendRequest, treatment: Treatment) -> ExplorationConfig | None:
        """Exploration of a list in the order of the ranker by the posterior; None for most lists, or without a mode."""
        config = treatment.placement.config.explore
        if config is None or not config.by_posterior or not request.shown or "click" not in treatment.live.calibration:
            return None
        return config if self._rng.random() < config.share else None

    def _explore_by_posterior(
        self, ranking: Ranking, config: ExplorationConfig, live: Live, history: History, at: float, limit: int | None
    ) -> tuple[Ranking, F64]:
        """The list as shown, from the ranking of all candidates, and the propensity of each position."""
        if not ranking.item_ids:
            return ranking, np.empty(0)
        belief = belief_of(
            live.items, live.item_spread, history, ranking.item, ranking.score, at, live.calibration["click"], config
        )
        explored = explore_by_posterior(belief, limit or len(ranking.item_ids), config, self._rng)
        return ranking.take(explored.order), explored.propensity

    def _explore(self, ranking: Ranking, placement: Placement) -> tuple[Ranking, F64 | None]:
        """The ranking as shown, and the propensity of each position; None if exploration by swaps is off."""
        own = placement.config.explore
        share = self.config.explore if own is None else own.share
        if not share or (own is not None and own.by_posterior):
            return ranking, None
        order, propensity = explore(len(ranking.item_ids), share, self._rng)
        return ranking.take(order), propensity

    def _record(
        self,
        request: RankRequest | RecommendRequest,
        made: Made,
        mix: Mixed | None,
        at: float,
        score: F64,
        exposed: Mapping[str, str],
        started: float,
    ) -> Served:
        """The log record of a list. made: the list, or the first of those that are mixed."""
        known, propensity = made.known, made.propensity if mix is None else None
        item_ids = made.ranking.item_ids if mix is None else mix.item_ids
        whole = made.whole if made.sampled and mix is None else None
        record = Served(
            request_id.current(),
            at,
            made.treatment.live.release.id,
            "rank" if isinstance(request, RankRequest) else "recommend",
            item_ids,
            score.tobytes(),
            request.user_id,
            request.device,
            known.degraded is not None,
            None if propensity is None else propensity.tobytes(),
            None if whole is None else whole.item_ids,
            None if whole is None else whole.rows.tobytes(),
            query=request.query or None,
            columns=_columns_text(request, item_ids),
            candidate_columns=None if whole is None else _columns_text(request, whole.item_ids),
            user_attributes=self._attributes_text(made),
            placement=request.placement,
            items=request.items,
        )
        if not exposed:
            return record
        return msgspec.structs.replace(
            record,
            experiments=dict(exposed),
            teams=[] if mix is None else mix.teams,
            session_id=request.session_id,
            took_ms=_ms_since(started),
        )

    def _attributes_text(self, made: Made) -> str | None:
        """The attributes of the user as JSON, for the log; None if no release needs them."""
        attributes = made.known.attributes
        if attributes is None or not self._logs_attributes(made.treatment.live):
            return None
        return msgspec.json.encode(attributes).decode()

    def _context(
        self, request: RankRequest | RecommendRequest, live: Live, known: Known, expected: tuple[str, ...]
    ) -> Context:
        """The context of a request, with the columns and attributes that the release declares. Raises Problem (422).

        expected: what a request of this kind has columns of; the others are not counted as missing.
        """
        context, declared = Context.parse(request.device, request.query), live.items.columns
        if request.items:
            context = context._replace(seeds=live.items.catalogue.rows(request.items))
            self.metrics.unknown_seeds(int(np.count_nonzero(context.seeds < 0)))
        if not (declared or request.columns):
            return context
        sent = with_placement(declared, request.columns, request.placement)
        missing = [c.name for c in declared if c.per in expected and c.name not in sent]
        self.metrics.columns(missing, len(request.columns.keys() - {c.name for c in declared if c.per != "user"}))
        return context._replace(columns=columns.encoded(declared, sent, known.attributes or NOTHING))

    def _variants(
        self,
        request: RankRequest | RecommendRequest,
        placement: Placement,
        live: Live,
        known: Known,
        at: float,
        seeds: I32 = NO_SEEDS,
    ) -> VariantPlan | None:
        """Which variants of products may be in the list of a request; None for all."""
        settings = placement.variants_of(request.variants, self.config.variants)
        keep: Literal["one", "all"] = "all" if isinstance(request, RankRequest) else "one"
        return VariantPlan.of(live.items.catalogue, settings, keep, known.history, at, seeds)

    def _explain(self, made: Made, parts: list[ScoreParts]) -> list[RankedItem]:
        items, applied = _ranked_items(made.ranking), made.applied
        if made.treatment.order is not None:
            parts = order_parts(made.ranking.score, applied, made.treatment.order)
        for item, of_score in zip(items, parts, strict=True):
            item.base, item.others = of_score.base, of_score.others
            item.reasons = [rankings.Reason(*reason) for reason in of_score.reasons]
        for item, rules in zip(items, applied or (), strict=applied is not None):
            item.rules = rules
        return items

    def _name_nearest(self, items: list[RankedItem], live: Live, ranking: Ranking, history: History) -> None:
        """Set `because` of each item that is similar to one of the user's history."""
        catalogue = live.items.catalogue
        for item, near in zip(items, live.nearest_engaged(ranking, history), strict=True):
            if near is not None and near.cosine >= self.config.because_cosine:
                item_id, title = catalogue.item_ids[near.row], catalogue.titles[near.row]
                item.because = rankings.Because(item_id, title, near.cosine, near.event)

    async def item(self, item_id: str) -> ItemAnswer:
        """The current state of an item. Raises Problem (404) if it is unknown."""
        live, item_id = self.live(), decoding.request_id("item_id", item_id)
        with redis_required("Written items cannot be read", "Retry after a second."):
            (stored,), _ = await self.written.fields([item_id])
        written = decode_fields(stored) if stored else None
        row = int(live.items.catalogue.rows([item_id])[0])
        in_release = int(live.release.items.catalogue.rows([item_id])[0]) >= 0
        if row < 0 and written is None:
            raise Problem(
                404,
                "no-such-item",
                "No such item",
                f"{item_id!r} is not in release {live.release.id}",
                "Use an item of the catalogue, or write it with PUT /v1/items.",
                "item_id",
            )
        fields = written.fields if written else {}
        title = fields.get("title") if row < 0 else live.items.catalogue.titles[row]
        price = fields.get("price") if row < 0 else _finite(live.items.catalogue.price[row])
        return ItemAnswer(
            item_id,
            in_release,
            row >= 0,
            fields.get("available", item_id not in live.withdrawn) is not False,
            row >= 0 and bool(live.items.vectors.scale[row] > 0),
            written.at if written else None,
            title,
            price,
        )

    async def similar(self, item_id: str, limit: int) -> rankings.SimilarAnswer:
        """Items with text similar to an item's. Raises Problem (404) if it is unknown or has no text."""
        live = self.live()
        catalogue = live.items.catalogue
        row = int(catalogue.rows([item_id])[0])
        if row < 0 or not live.items.vectors.scale[row] > 0:
            why = (
                f"{item_id!r} is not in release {live.release.id}" if row < 0 else f"{item_id!r} has no text to compare"
            )
            raise Problem(404, "no-such-item", "No such item", why, "Use an item of the catalogue.", "item_id")
        withdrawn = live.withdrawn
        one = self.config.variants.keep != "all"
        near = await asyncio.to_thread(live.similar, row, limit + len(withdrawn), one)
        near = [(r, c) for r, c in near if catalogue.item_ids[r] not in withdrawn][:limit]
        items = [rankings.SimilarItem(catalogue.item_ids[r], catalogue.titles[r], c) for r, c in near]
        return rankings.SimilarAnswer(item_id, live.release.id, items)

    def _repair(self) -> str:
        lost = self.follower.lost
        return f"{lost}: run `shelfwise collect --repair`" if lost else ""

    def _reasons(self) -> tuple[str, ...]:
        rules = self.follower.merchandising
        problems = (one.problem for one in (rules, self.follower.stops) if one is not None)
        return self.follower.reason or self._repair(), self.eviction, *problems

    def state(self) -> dict[str, Any]:
        """State of the service: whether it is ready, the live release, and the reason if it is not ready."""
        live = self.follower.live
        return {
            "status": "ready" if self.ready else "not ready",
            "release": live.release.id if live else None,
            "reason": "; ".join(filter(None, self._reasons())) or None,
            "redis": self.follower.redis,
            "degraded": self.degraded,
            "slow": self.slow,
            "shadow": self.shadow.state(),
        } | ({"experiments": self.arm_releases.states(self.clock())} if self.experiments else {})


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _ranked_items(ranking: Ranking) -> list[RankedItem]:
    items = [RankedItem(i, s) for i, s in zip(ranking.item_ids, ranking.score.tolist(), strict=True)]
    for k in np.flatnonzero(ranking.item < 0).tolist():
        items[k].known = False
    return items


def _with_history_in_others(item: RankedItem) -> RankedItem:
    """The item with the whole effect of the history on its score in `others`. Its parts are those for a new user."""
    explained = sum(reason.contribution for reason in item.reasons) + sum(rule.added or 0.0 for rule in item.rules)
    item.others = item.score - (item.base or 0.0) - explained
    return item


def _columns_of(request: RankRequest | RecommendRequest, item_ids: list[str]) -> Sent:
    """The columns of a request, in the order of these candidates."""
    sent = request.columns
    if not has_lists(sent):
        return sent
    assert isinstance(request, RankRequest)
    assert request.ids is not None
    return pick(sent, first_places(request.ids, item_ids).tolist())


def _columns_text(request: RankRequest | RecommendRequest, item_ids: list[str]) -> str | None:
    """The columns of a request for these candidates as JSON, for the log; None if none were sent."""
    return msgspec.json.encode(_columns_of(request, item_ids)).decode() if request.columns else None


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


def plan_of(
    rules: Rules | None, live: Live, placement: str | None = None, arms: Sequence[Key] = (), *, at: float
) -> Plan | None:
    """The rules of a list as in `Live.plan`. at: Unix seconds.

    Raises Problem (422) naming the rule and the reason.
    """
    try:
        return live.plan(rules, placement, arms, at=at)
    except RuleError as e:
        raise Problem(422, "invalid-rule", "Invalid rule", str(e), "See docs/rules.md for the grammar.", e.path) from e
