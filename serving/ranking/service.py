"""The operations behind the routes, without HTTP: rankings, events, written items, similar items and erasure.

Ranking itself is in `live`, storage in `serving.store`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from features.arrays import F64, I32
from features.bounds import COLUMNS
from features.columns import NOTHING, Scalar, Sent, has_lists, pick, with_placement
from features.context import NO_SEEDS, Context
from features.history import EMPTY, NO_OUTSIDE, History, Outside
from ranker.booster import BoosterTrees
from serving.api import (
    DEFAULT_LIMIT,
    Accepted,
    DegradedReason,
    Derived,
    EventsAnswer,
    ItemAnswer,
    ItemsAnswer,
    MergeAnswer,
    PageAnswer,
    PageRequest,
    Problem,
    RankAnswer,
    RankedItem,
    RankRequest,
    RecommendRequest,
    Refusal,
    Rejected,
    UserAnswer,
    accept_item,
    columns,
    decoding,
    events,
    merges,
    page,
    rankings,
    request_id,
)
from serving.config import ServiceConfig
from serving.ranking.explanation import ScoreParts
from serving.ranking.exploration import explore
from serving.ranking.follower import Follower
from serving.ranking.live import Live, first_places
from serving.ranking.objective import objective_parts
from serving.ranking.page import Page
from serving.ranking.placements import Placement, PlacementTable
from serving.ranking.ranking import Ranking
from serving.ranking.retrieval import ids_with_pinned, sources_of
from serving.ranking.shadow import Shadow
from serving.records import EventLimits, Metrics, Served, ServedLog
from serving.rules import Plan, Removed, RuledList, RuleError, Rules, VariantPlan
from serving.store import (
    REFUSED,
    TOO_MANY,
    AttributeWrite,
    Event,
    ItemSize,
    Merge,
    Outcome,
    Store,
    StoreAway,
    WrittenItems,
    decode_fields,
)

log = logging.getLogger(__name__)

_EVENTS_PER_TURN = 100
"""Events validated before other requests have a turn: 1,000 events take more than 10 ms."""
_MEMORY_S = 5.0
"""Seconds between two checks of the memory of Redis."""


class Known(NamedTuple):
    """The data known of a user. outside: their events outside the catalogue.

    attributes: None if they were not read, because no release needs them or Redis is unavailable. degraded: why the
    response is degraded; None if it is not.
    """

    history: History
    outside: Outside
    attributes: dict[str, Scalar] | None
    degraded: DegradedReason | None


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
        self.served = ServedLog(store, self.metrics, config.log_served_most)
        self.shadow = Shadow(config, store, follower.of_shadow(), self.served, self.metrics)
        self.limits = EventLimits(config)
        self.placements = PlacementTable(config.placements)
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

    async def known_of(self, user_id: str | None, live: Live, at: float) -> Known:
        """The data known of a user, and why the response is degraded, if it is.

        Degraded responses are decided and counted only here.
        """
        history, outside, reason = EMPTY, NO_OUTSIDE, self.follower.degraded
        attributes: dict[str, Scalar] | None = None
        if user_id is not None:
            try:
                catalogue, retention = live.items.catalogue, live.release.manifest.retention
                if live.reads_attributes or self.shadow.reads_attributes:
                    history, outside, attributes = await self.store.read_known(user_id, catalogue, at, retention)
                else:
                    history, outside = await self.store.read_lists(user_id, catalogue, at, retention)
            except StoreAway as e:
                log.debug("ranking without history: %s", type(e).__name__)  # the error's text may contain a user id
                reason = reason or "history-unavailable"
        self.degraded += reason is not None
        return Known(history, outside, attributes, reason)

    async def rank(self, request: RankRequest, shows_history: bool = True) -> RankAnswer:
        """Rank candidates for a user. Raises Problem.

        shows_history: whether an explanation may show the user's history. If not, it has the reasons for a new user.
        """
        started, at, live = time.perf_counter(), self.moment(), self.live()
        placement = self.placements.of(request)
        self._check_size(request, live)
        self._check_explained(request, placement.limit_of(request), len(request.ids or live.items.catalogue))
        known = await self.known_of(request.user_id, live, at)
        plan = plan_of(request.rules, live, placement.name, at=at)
        variants = self._variants(request, placement, live, known, at)
        plan = live.with_variants(plan, variants)
        context = self._context(request, live, known, ("candidate", "request"))
        answer = self._answer(request, placement, live, known, request.ids, at, plan, context, shows_history, variants)
        answer.took_ms = _ms_since(started)
        return answer

    async def recommend(
        self, request: RecommendRequest, shows_history: bool = True, live: Live | None = None
    ) -> RankAnswer:
        """Retrieve and rank items of the whole catalogue for a user, each with its sources. Raises Problem.

        shows_history: as in `rank`. live: a copy of the live release with other rules, for a preview.
        """
        started, at, live = time.perf_counter(), self.moment(), live or self.live()
        placement = self.placements.of(request)
        limit = placement.limit_of(request) or DEFAULT_LIMIT
        self._check_explained(request, limit, limit)
        known = await self.known_of(request.user_id, live, at)
        plan = plan_of(request.rules, live, placement.name, at=at)
        context = self._context(request, live, known, ("request",))
        answer = await self._recommended(request, placement, live, known, at, limit, plan, context, shows_history)
        answer.took_ms = _ms_since(started)
        return answer

    async def page(self, request: PageRequest, shows_history: bool = True) -> PageAnswer:
        """Recommend items for several placements at once, each item in one list. Raises Problem.

        shows_history: as in `rank`.
        """
        started, at, live = time.perf_counter(), self.moment(), self.live()
        asked = request.requests()
        placements, limits, plans = list[Placement](), list[int](), list[Plan | None]()
        for k, one in enumerate(asked):
            with page.within_list(k):
                placements.append(self.placements.of(one))
                limits.append(placements[-1].limit_of(one) or DEFAULT_LIMIT)
                plans.append(plan_of(one.rules, live, placements[-1].name, at=at))
                self._check_page(request, sum(limits))
        known = await self.known_of(request.user_id, live, at)
        self.degraded += (len(asked) - 1) * (known.degraded is not None)
        contexts = list[Context]()
        for k, one in enumerate(asked):
            with page.within_list(k):
                contexts.append(self._context(one, live, known, ("request",)))
        shared, lists = Page(live, known.history, at), list[RankAnswer]()
        for one, placement, limit, plan, context in zip(asked, placements, limits, plans, contexts, strict=True):
            began = time.perf_counter()
            with request_id.nested():
                answer = await self._recommended(
                    one, placement, live, known, at, limit, plan, context, shows_history, shared
                )
            answer.took_ms = _ms_since(began)
            shared.add([item.item_id for item in answer.items])
            lists.append(answer)
            await asyncio.sleep(0)  # so that other requests have a turn between two lists
        return PageAnswer(live.release.id, known.degraded is not None, lists, _ms_since(started))

    async def _recommended(
        self,
        request: RecommendRequest,
        placement: Placement,
        live: Live,
        known: Known,
        at: float,
        limit: int,
        plan: Plan | None,
        context: Context,
        shows_history: bool,
        shared: Page | None = None,
    ) -> RankAnswer:
        """The answer of `recommend`, but for its time. shared: the page that the list is part of."""
        size = self.config.candidates_for(limit + (0 if shared is None else len(shared.taken)))
        variants = self._variants(request, placement, live, known, at, context.seeds)
        if shared is None:
            found = await live.retriever.candidates(known.history, at, size, plan, context, placement.shares, variants)
        else:
            found = await shared.candidates(size, plan, context, placement.shares, variants)
            variants = shared.variants(variants)
        plan = live.with_variants(plan, variants)
        ids = ids_with_pinned(found.item, live.items, plan, known.history, at, context.seeds)
        answer = self._answer(request, placement, live, known, ids, at, plan, context, shows_history, variants, shared)
        rows = live.items.catalogue.rows([item.item_id for item in answer.items])
        for item, sources in zip(answer.items, sources_of(found, rows), strict=True):
            item.sources = sources
        return answer

    def _answer(
        self,
        request: RankRequest | RecommendRequest,
        placement: Placement,
        live: Live,
        known: Known,
        candidates: list[str] | None,
        at: float,
        plan: Plan | None,
        context: Context,
        shows_history: bool,
        variants: VariantPlan | None,
        shared: Page | None = None,
    ) -> RankAnswer:
        """Rank candidates, apply the rules, explore, log the list if it is shown, and explain it if requested."""
        history, degraded, limit = known.history, known.degraded, placement.limit_of(request)
        slow = isinstance(live.release.trees, BoosterTrees)
        self.slow += slow
        count = len(live.items.catalogue) if candidates is None else len(candidates)
        self.metrics.ranked(count, degraded is not None, slow, placement.name)
        logged = self.config.log_served and request.shown
        sampled = logged and self._rng.random() < self.config.log_rows_share
        shadowed = logged and self.shadow.wants(live)
        has_objective = placement.name in live.objectives
        rank_all = sampled or shadowed or has_objective or plan is not None or variants is not None
        began = time.perf_counter()
        if shared is None:
            whole = live.rank(history, candidates, at, None if rank_all else limit, context)
        else:
            whole = shared.rank(candidates, context)
        live_ms = _ms_since(began)
        self.metrics.unknown(whole.unknown)
        valued = live.apply_objective(whole, placement.name)
        chosen, left_out = live.choose_variants(valued, plan, variants, limit)
        ranking, ruled = live.apply_rules(chosen, plan, history, known.outside, at, limit)
        propensity: F64 | None = None
        if ruled is None:
            ranking = ranking.first(limit)
            ranking, propensity = self._explore(ranking, placement) if request.shown else (ranking, None)
        record = self._record(request, live, at, known, ranking, propensity, whole if sampled else None)
        if shadowed:
            sent = _columns_of(request, whole.item_ids)
            self.shadow.put(record, whole, context, sent, known.attributes or NOTHING, live_ms)
        elif logged:
            self.served.put(record)
        removed: list[Removed] | UnsetType = UNSET
        if not request.explain:
            items = _ranked_items(ranking)
        elif shows_history:
            items = self._explain(ranking, live.explain(ranking, history, self.config.reasons, context), ruled)
            objective_parts(items, ranking)
            self._name_nearest(items, live, ranking, history)
            removed = (left_out or UNSET) if ruled is None else ruled.removed
        else:
            # A rule's removed items may have been excluded by the history, so they are left out.
            parts = live.explain_without_history(ranking, candidates, at, self.config.reasons, context)
            items = [_with_history_in_others(item) for item in self._explain(ranking, parts, ruled)]
        answer = RankAnswer(request_id.current(), live.release.id, degraded is not None, items, 0.0)
        answer.removed, answer.degraded_reason = removed, degraded or UNSET
        answer.placement = placement.name or UNSET
        return answer

    def _explore(self, ranking: Ranking, placement: Placement) -> tuple[Ranking, F64 | None]:
        """The ranking as shown, and the propensity of each position; None if exploration is off."""
        share = self.config.explore if placement.config.explore is None else placement.config.explore
        if not share:
            return ranking, None
        order, propensity = explore(len(ranking.item_ids), share, self._rng)
        return ranking.take(order), propensity

    def _record(
        self,
        request: RankRequest | RecommendRequest,
        live: Live,
        at: float,
        known: Known,
        shown: Ranking,
        propensity: F64 | None,
        whole: Ranking | None,
    ) -> Served:
        """The log record of a list. whole: the ranking of all candidates, if their feature rows are to be logged."""
        route = "rank" if isinstance(request, RankRequest) else "recommend"
        return Served(
            request_id.current(),
            at,
            live.release.id,
            route,
            shown.item_ids,
            shown.score.tobytes(),
            request.user_id,
            request.device,
            known.degraded is not None,
            None if propensity is None else propensity.tobytes(),
            None if whole is None else whole.item_ids,
            None if whole is None else whole.rows.tobytes(),
            query=request.query or None,
            columns=_columns_text(request, shown.item_ids),
            candidate_columns=None if whole is None else _columns_text(request, whole.item_ids),
            user_attributes=None if known.attributes is None else msgspec.json.encode(known.attributes).decode(),
            placement=request.placement,
            items=request.items,
        )

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

    def _check_size(self, request: RankRequest, live: Live) -> None:
        given = len(live.items.catalogue) if request.ids is None else len(request.ids)
        if given > self.config.max_candidates:
            whole = "the whole catalogue, " if request.ids is None else ""
            raise Problem(
                422,
                "too-many-candidates",
                "Too many candidates",
                f"{whole}{given} candidates in one request; the maximum is {self.config.max_candidates}",
                "Send fewer `candidates`.",
                "candidates",
            )

    def _check_explained(self, request: RankRequest | RecommendRequest, limit: int | None, given: int) -> None:
        # An explanation takes several times as long as a score, and other requests wait meanwhile.
        count = min(given, limit or given)
        if request.explain and count > self.config.max_explained:
            raise Problem(
                422,
                "too-many-explained",
                "Too many explained items",
                f"{count} items with explanations in one response; the maximum is {self.config.max_explained}",
                f"Send a `limit` of at most {self.config.max_explained}, or leave `explain` out.",
                "limit",
            )

    def _check_page(self, request: PageRequest, items: int) -> None:
        """Raise Problem (422) for more items than one request may have. items: of the lists so far."""
        most = self.config.max_explained if request.explain else self.config.max_candidates
        if items > most:
            explained = " with explanations" if request.explain else ""
            raise Problem(
                422,
                "page-too-long",
                "Page too long",
                f"the lists up to this one have {items} items{explained} together; the maximum is {most}",
                "Send a smaller `limit`, or several pages.",
                "limit",
            )

    def _explain(self, ranking: Ranking, parts: list[ScoreParts], ruled: RuledList | None) -> list[RankedItem]:
        items = _ranked_items(ranking)
        for item, of_score in zip(items, parts, strict=True):
            item.base, item.others = of_score.base, of_score.others
            item.reasons = [rankings.Reason(*reason) for reason in of_score.reasons]
        for item, applied in zip(items, ruled.applied if ruled is not None else (), strict=ruled is not None):
            item.rules = applied
        return items

    def _name_nearest(self, items: list[RankedItem], live: Live, ranking: Ranking, history: History) -> None:
        """Set `because` of each item that is similar to one of the user's history."""
        catalogue = live.items.catalogue
        for item, near in zip(items, live.nearest_engaged(ranking, history), strict=True):
            if near is not None and near.cosine >= self.config.because_cosine:
                item_id, title = catalogue.item_ids[near.row], catalogue.titles[near.row]
                item.because = rankings.Because(item_id, title, near.cosine, near.event)

    async def take(self, body: bytes, content_type: str = "", shopper: str | None = None) -> EventsAnswer:
        """Validate the events of a body one by one, and store the valid ones.

        Events of new users are refused while the maximum number of users have lists. shopper: the user whose events
        these must be; None for any. Raises Problem if no event is valid (422), if every valid one is over a limit of
        its shopper (429) or refused (503), or if Redis is unavailable (503).
        """
        now, most = self.clock(), self.config.max_events
        accepted: list[tuple[int, Accepted]] = []
        rejected: list[Rejected] = []
        wait_s = list[int]()
        for index, one in enumerate(decoding.split_body(body, most, content_type)):
            for event in events.accept(one, now, self.config.future_s):
                if not isinstance(event, Accepted):
                    rejected.append(Rejected(index, event.field, event.message))
                elif shopper is not None and event.event.user_id != shopper:
                    rejected.append(Rejected(index, "user_id", "is not the shopper of the token"))
                elif over := self.limits.exceeded(event.event, now):
                    rejected.append(Rejected(index, "user_id", f"the limit of {over[0]} is reached"))
                    wait_s.append(over[1])
                else:
                    accepted.append((index, event))
            decoding.check_count(len(accepted) + len(rejected), most, "events")
            if index % _EVENTS_PER_TURN == _EVENTS_PER_TURN - 1:
                await asyncio.sleep(0)
        outcomes = await self._write([a.event for _, a in accepted], now)
        count, of_event = Counter(outcomes), list(zip(accepted, outcomes, strict=True))
        late = "the user was erased after this time"
        rejected += [Rejected(index, "timestamp", late) for (index, _), o in of_event if o is Outcome.ERASED]
        rejected.sort(key=lambda r: r.index)
        self.metrics.rejected(rejected)
        new, duplicates, refused = count[Outcome.NEW], count[Outcome.DUPLICATE], count[Outcome.REFUSED]
        self.metrics.events(new, duplicates, refused, count[Outcome.ERASED], len(wait_s))
        full = f"the maximum of {self.config.max_users} users have lists; send this user's events again later"
        if (rejected or refused) and not new + duplicates:
            raise _too_many_users(full) if refused else _no_event(rejected, wait_s)
        rejected += [Rejected(index, "user_id", full) for (index, _), o in of_event if o is Outcome.REFUSED]
        rejected.sort(key=lambda r: r.index)
        stored = [(index, a) for (index, a), o in of_event if o in {Outcome.NEW, Outcome.DUPLICATE}]
        return EventsAnswer(new, duplicates, rejected, [Derived(i, a.event.event_id) for i, a in stored if a.derived])

    async def write_items(self, body: bytes, content_type: str = "") -> ItemsAnswer:
        """Validate the items of a body one by one, and store the valid ones, new or changed.

        An item that would become too large with what was written before is rejected. Raises Problem if no item is valid
        (422) or Redis is unavailable (503).
        """
        now = self.moment()
        valid: dict[str, dict[str, bytes]] = {}
        indices: dict[str, list[int]] = {}
        rejected: list[Rejected] = []
        parts = decoding.split_body(body, self.config.max_items, content_type, "items")
        for index, one in enumerate(parts):
            try:
                item_id, fields = accept_item(one, now)
            except Refusal as e:
                rejected.append(Rejected(index, e.field, e.message))
            else:
                valid[item_id] = valid.get(item_id, {}) | fields
                indices.setdefault(item_id, []).append(index)
        oversized = await self._write_items(valid, now)
        for item_id, size in oversized.items():
            message = f"item {item_id!r} would have {size}; no field of it was written"
            rejected += [Rejected(index, None, message) for index in indices[item_id]]
        if rejected and len(oversized) == len(valid):
            raise Problem(
                422,
                "no-item-taken",
                "No valid item",
                rejected[0].message,
                "See /docs for the fields and their types.",
                rejected[0].field,
                rejected=msgspec.to_builtins(rejected),
            )
        return ItemsAnswer(len(parts) - len(rejected), rejected)

    async def withdraw(self, item_id: str) -> ItemsAnswer:
        """Remove an item from all results. Idempotent. Raises Problem."""
        now = self.moment()
        fields = {"at": msgspec.json.encode(now), "available": b"false"}
        await self._write_items({decoding.request_id("item_id", item_id): fields}, now)
        return ItemsAnswer(1, [])

    async def _write_items(self, fields: dict[str, dict[str, bytes]], now: float) -> dict[str, ItemSize]:
        """Write items; returns the sizes of those that were not written because they would be too large."""
        with _redis_required("Items cannot be written", "Retry after a second."):
            refused = await self.written.write(fields, now, self.config.written_items)
        if refused.full:
            raise Problem(
                503,
                "too-many-written-items",
                "Too many written items",
                f"the limit of {self.config.written_items} items written since the release is reached",
                "Import the catalogue with `shelfwise import` and run `shelfwise nightly`, or raise `written_items`.",
                headers={"Retry-After": "30"},
            )
        return refused.oversized

    async def item(self, item_id: str) -> ItemAnswer:
        """The current state of an item. Raises Problem (404) if it is unknown."""
        live, item_id = self.live(), decoding.request_id("item_id", item_id)
        with _redis_required("Written items cannot be read", "Retry after a second."):
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

    async def _write(self, given: list[Event], now: float) -> list[Outcome]:
        """Write events that are within the limits of their shoppers, and count only those that are new."""
        remedy = "Retry after a second. With an event_id, an event that was already stored is counted once."
        stored: list[Outcome] = []
        try:
            with _redis_required("Events cannot be stored", remedy):
                stored = await self.store.write(given, now)
            return stored
        finally:
            outcomes = stored or [Outcome.DUPLICATE] * len(given)
            self.limits.take_back(e for e, o in zip(given, outcomes, strict=True) if o != Outcome.NEW)

    async def write_user(self, user_id: str, body: bytes) -> UserAnswer:
        """Write attributes of a user. Raises Problem (422, 503)."""
        user_id, live = decoding.request_id("user_id", user_id), self.follower.live
        write = AttributeWrite(
            user_id, self.moment(), columns.user_attributes(body, live.items.columns if live is not None else ())
        )
        with _redis_required("Attributes cannot be written", "Retry after a second."):
            count = await self.store.write_attributes(write)
        if count == REFUSED:
            raise _too_many_users(f"the maximum of {self.config.max_users} users have lists or attributes")
        if count == TOO_MANY:
            raise Problem(
                422,
                "too-many-attributes",
                "Too many attributes",
                f"the user would have more than {COLUMNS} attributes; none was written",
                "Write fewer attributes. Those that were cleared count until the user expires.",
                "attributes",
            )
        return UserAnswer(write.at)

    async def merge(self, user_id: str, body: bytes) -> MergeAnswer:
        """Move the history and the attributes of an anonymous user to a user. Idempotent. Raises Problem (400, 422,
        503)."""
        user, anonymous = merges.merge_users(user_id, body)
        merge = Merge(user, anonymous, self.moment())
        with _redis_required("The users cannot be merged", "Retry after a second. What was moved is moved once."):
            moved = await self.store.merge(merge)
        if moved == REFUSED:
            raise _too_many_users(f"the maximum of {self.config.max_users} users have lists; nothing was moved")
        return MergeAnswer(merge.at, moved)

    async def erase(self, user_id: str) -> events.ErasureAnswer:
        """Erase a user: at once from Redis, and from the log with the next `collect`. Idempotent. Raises Problem."""
        at = self.moment()
        with _redis_required("The user cannot be erased", "Retry after a second."):
            await self.store.erase(decoding.request_id("user_id", user_id), at)
        return events.ErasureAnswer(at)

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
        return self.follower.reason or self._repair(), self.eviction, "" if rules is None else rules.problem

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
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def _redis_required(title: str, remedy: str) -> Iterator[None]:
    """Raise Problem (503) if Redis is unavailable inside the block."""
    try:
        yield
    except StoreAway as e:
        raise Problem(503, "store-away", title, str(e), remedy, headers={"Retry-After": "1"}) from e


def _ranked_items(ranking: Ranking) -> list[RankedItem]:
    items = [RankedItem(i, s) for i, s in zip(ranking.item_ids, ranking.score.tolist(), strict=True)]
    for k in np.flatnonzero(ranking.item < 0).tolist():
        items[k].known = False
    return items


def _no_event(rejected: list[Rejected], wait_s: list[int]) -> Problem:
    """A problem (422, or 429 if every event is over a limit): no event was valid. wait_s: as in `_over_limit`."""
    if len(wait_s) == len(rejected):
        return _over_limit(rejected, wait_s)
    return Problem(
        422,
        "no-event-taken",
        "No valid event",
        rejected[0].message,
        "See /docs for the fields and their types.",
        rejected[0].field,
        rejected=msgspec.to_builtins(rejected),
    )


def _too_many_users(detail: str) -> Problem:
    """A problem (503): every valid event was refused, because the maximum number of users have lists."""
    return Problem(
        503,
        "too-many-users",
        "Too many users",
        detail,
        "Raise `max_users` if the memory of Redis allows it, or let lists expire sooner (`user_ttl_days`).",
        headers={"Retry-After": "30"},
    )


def _over_limit(rejected: list[Rejected], wait_s: list[int]) -> Problem:
    """A problem (429): every event is over a limit. wait_s: seconds until the limit of each is lifted."""
    return Problem(
        429,
        "shopper-rate",
        "Too many events of a shopper",
        rejected[0].message,
        "Check that `user_id` is one person. If it is, raise the `shopper_..._per_...` settings of the service.",
        "user_id",
        headers={"Retry-After": str(min(wait_s))},
        # A client gives these events up, so that one shopper does not hold up the queue of a back end.
        rejected=msgspec.to_builtins(rejected),
    )


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


def plan_of(rules: Rules | None, live: Live, placement: str | None = None, *, at: float) -> Plan | None:
    """The rules of a list as in `Live.plan`. at: Unix seconds.

    Raises Problem (422) naming the rule and the reason.
    """
    try:
        return live.plan(rules, placement, at=at)
    except RuleError as e:
        raise Problem(422, "invalid-rule", "Invalid rule", str(e), "See docs/rules.md for the grammar.", e.path) from e
