"""What the routes do, apart from HTTP: rankings, events, items alike. Ranking itself is in `live`, bytes in `store`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET

from features.arrays import F64
from features.context import Context
from features.history import EMPTY, History
from ranker.booster import BoosterTrees
from serving.api import (
    Accepted,
    Derived,
    EventsAnswer,
    ItemAnswer,
    ItemsAnswer,
    Problem,
    RankAnswer,
    RankedItem,
    RankRequest,
    RecommendRequest,
    Refusal,
    Rejected,
    accept_item,
    decoding,
    events,
    rankings,
    request_id,
)
from serving.config import ServiceConfig
from serving.ranking.exploration import explore
from serving.ranking.follower import Follower
from serving.ranking.live import Live
from serving.ranking.ranking import Ranking
from serving.ranking.retrieval import sources_of, with_pinned
from serving.ranking.shadow import Shadow
from serving.records import Metrics, Served, ServedLog
from serving.rules import Plan, Ranked, Ruled, RuleError, Rules
from serving.store import Store, StoreAway, WrittenItems, decoded_fields

log = logging.getLogger(__name__)


class Service:
    """What the routes do, apart from HTTP.

    degraded: rankings answered so far without the user's history. slow: rankings scored by LightGBM, for a release
    whose model our own scorer does not cover.
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
        self._rng = np.random.default_rng()
        self.degraded = 0
        self.slow = 0

    def moment(self) -> float:
        """Now, at the next whole microsecond: what the log can hold, and after any event that was accepted before."""
        return math.ceil(self.clock() * 1e6) / 1e6

    def live(self) -> Live:
        """The release of this request, to be taken once. Raises Problem where none is loaded."""
        if self.follower.live is None:
            raise Problem(
                503,
                "not-ready",
                "No release is loaded",
                self.follower.reason,
                "Try again shortly; /health/ready says when it is.",
                headers={"Retry-After": "1"},
            )
        return self.follower.live

    async def known_of(self, user_id: str | None, live: Live, at: float) -> tuple[History, bool]:
        """A user's history, and whether the answer is degraded for want of it: decided and counted here alone."""
        if user_id is None:
            return EMPTY, False
        try:
            return await self.store.read(user_id, live.items.catalogue, at), False
        except StoreAway as e:
            self.degraded += 1
            log.debug("ranking without history: %s", type(e).__name__)  # its text may name the user
            return EMPTY, True

    async def rank(self, request: RankRequest) -> RankAnswer:
        """Candidates in order for a user. Raises Problem."""
        started, at, live = time.perf_counter(), self.moment(), self.live()
        self._bound(request, live)
        history, degraded = await self.known_of(request.user_id, live, at)
        plan = plan_of(request.rules, live)
        answer = self._answer(request, live, history, degraded, request.candidates, at, plan)
        answer.took_ms = _ms_since(started)
        return answer

    async def recommend(self, request: RecommendRequest) -> RankAnswer:
        """Items for a user out of the whole catalogue, in order, each with its sources. Raises Problem."""
        started, at, live = time.perf_counter(), self.moment(), self.live()
        history, degraded = await self.known_of(request.user_id, live, at)
        plan, catalogue = plan_of(request.rules, live), live.items.catalogue
        size = min(max(self.config.retrieved, 2 * request.limit), self.config.max_candidates)
        context = Context.said(request.device, request.query)
        found = await live.retriever.candidates(history, at, size, plan, context)
        candidates = with_pinned(found.item, live.items, plan, history, at)
        ids = [catalogue.item_ids[row] for row in candidates.tolist()]
        answer = self._answer(request, live, history, degraded, ids, at, plan)
        sources = sources_of(found, catalogue.item_ids)
        for item in answer.items:
            item.sources = sources.get(item.item_id, ["pin"])
        answer.took_ms = _ms_since(started)
        return answer

    def _answer(
        self,
        request: RankRequest | RecommendRequest,
        live: Live,
        history: History,
        degraded: bool,
        candidates: list[str] | None,
        at: float,
        plan: Plan | None,
    ) -> RankAnswer:
        """Candidates ranked, the rules applied, and explained where that is asked."""
        slow = isinstance(live.release.trees, BoosterTrees)
        self.slow += slow
        self.metrics.ranked(len(live.items.catalogue) if candidates is None else len(candidates), degraded, slow)
        context = Context.said(request.device, request.query)
        sampled = self.config.log_served and self._rng.random() < self.config.log_rows_share
        shadowed = self.shadow.wants(live)
        every = sampled or shadowed or plan is not None
        began = time.perf_counter()
        whole = live.rank(history, candidates, at, None if every else request.limit, context)
        live_ms = _ms_since(began)
        ranking, ruled = _ruled(live, whole, plan, history, at, request.limit)
        ranking, propensity = self._explored(ranking.first(request.limit)) if ruled is None else (ranking, None)
        record = self._record(request, live, at, degraded, ranking, propensity, whole if sampled else None)
        if shadowed:
            self.shadow.put(record, whole, context, live_ms)
        elif self.config.log_served:
            self.served.put(record)
        items = self._explained(live, ranking, history, ruled, context) if request.explain else _plain(ranking)
        removed = ruled.removed if ruled is not None and request.explain else UNSET
        return RankAnswer(request_id.current(), live.release.id, degraded, items, 0.0, removed)

    def _explored(self, ranking: Ranking) -> tuple[Ranking, F64 | None]:
        """The ranking as it is shown, and the chance of each place where exploration is on."""
        if not self.config.explore:
            return ranking, None
        order, propensity = explore(len(ranking.item_ids), self.config.explore, self._rng)
        return ranking.take(order), propensity

    def _record(
        self,
        request: RankRequest | RecommendRequest,
        live: Live,
        at: float,
        degraded: bool,
        shown: Ranking,
        propensity: F64 | None,
        whole: Ranking | None,
    ) -> Served:
        """What is shown, for the log; whole: all candidates and their rows, of a list that is sampled."""
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
            degraded,
            None if propensity is None else propensity.tobytes(),
            None if whole is None else whole.item_ids,
            None if whole is None else whole.rows.tobytes(),
            query=request.query or None,
        )

    def _bound(self, request: RankRequest, live: Live) -> None:
        given = len(live.items.catalogue) if request.candidates is None else len(request.candidates)
        if given > self.config.max_candidates:
            whole = "the whole catalogue, " if request.candidates is None else ""
            raise Problem(
                422,
                "too-many-candidates",
                "Too many candidates",
                f"{whole}{given} candidates, at most {self.config.max_candidates} are ranked in one request",
                "Name fewer `candidates`.",
                "candidates",
            )

    def _explained(
        self, live: Live, ranking: Ranking, history: History, ruled: Ruled | None, context: Context
    ) -> list[RankedItem]:
        items = _plain(ranking)
        catalogue = live.items.catalogue
        for item, parts in zip(items, live.explain(ranking, history, self.config.reasons, context), strict=True):
            item.base, item.others = parts.base, parts.others
            item.reasons = [rankings.Reason(*reason) for reason in parts.reasons]
        for item, applied in zip(items, ruled.applied if ruled is not None else (), strict=ruled is not None):
            item.rules = applied
        for item, near in zip(items, live.nearest_engaged(ranking, history), strict=True):
            if near is not None and near.cosine >= self.config.because_cosine:
                item_id, title = catalogue.item_ids[near.row], catalogue.titles[near.row]
                item.because = rankings.Because(item_id, title, near.cosine, near.event)
        return items

    async def take(self, body: bytes, content_type: str = "") -> EventsAnswer:
        """Events of a body into users' lists, each by itself. Raises Problem where none is good or Redis is away."""
        now, most = self.clock(), self.config.max_events
        accepted: list[tuple[int, Accepted]] = []
        rejected: list[Rejected] = []
        for index, one in enumerate(decoding.split_body(body, most, content_type)):
            for found in events.accept(one, now, self.config.future_s):
                if isinstance(found, Accepted):
                    accepted.append((index, found))
                else:
                    rejected.append(Rejected(index, found.field, found.message))
            decoding.check_count(len(accepted) + len(rejected), most, "events")
        self.metrics.rejected(rejected)
        if rejected and not accepted:
            raise Problem(
                422,
                "no-event-taken",
                "No event was taken",
                rejected[0].message,
                "See /docs for the fields and their types.",
                rejected[0].field,
                rejected=msgspec.to_builtins(rejected),
            )
        new = await self._write([a for _, a in accepted], now)
        self.metrics.events(sum(new), len(new) - sum(new))
        derived = [Derived(index, a.event.event_id) for index, a in accepted if a.derived]
        return EventsAnswer(sum(new), len(new) - sum(new), rejected, derived)

    async def write_items(self, body: bytes, content_type: str = "") -> ItemsAnswer:
        """Items of a body, new or changed, each by itself. Raises Problem where none is good or Redis is away."""
        now = self.moment()
        good: dict[str, dict[str, bytes]] = {}
        rejected: list[Rejected] = []
        parts = decoding.split_body(body, self.config.max_items, content_type, "items")
        for index, one in enumerate(parts):
            try:
                item_id, fields = accept_item(one, now)
            except Refusal as e:
                rejected.append(Rejected(index, e.field, e.message))
            else:
                good[item_id] = good.get(item_id, {}) | fields
        if rejected and not good:
            raise Problem(
                422,
                "no-item-taken",
                "No item was taken",
                rejected[0].message,
                "See /docs for the fields and their types.",
                rejected[0].field,
                rejected=msgspec.to_builtins(rejected),
            )
        await self._write_items(good, now)
        return ItemsAnswer(len(parts) - len(rejected), rejected)

    async def withdraw(self, item_id: str) -> ItemsAnswer:
        """Take an item out of every answer; twice is once. Raises Problem."""
        now = self.moment()
        given = {"at": msgspec.json.encode(now), "available": b"false"}
        await self._write_items({decoding.check_id("item_id", item_id): given}, now)
        return ItemsAnswer(1, [])

    async def _write_items(self, fields: dict[str, dict[str, bytes]], now: float) -> None:
        with _away("Items cannot be written now", "Send the same items again after a second."):
            room = await self.written.write(fields, now, self.config.written_items)
        if not room:
            raise Problem(
                503,
                "too-many-written-items",
                "No room for more items",
                f"{self.config.written_items} items written since the release are kept at a time",
                "Bring the catalogue in with `shelfwise import` and run the night, or raise `written_items`.",
                headers={"Retry-After": "30"},
            )

    async def item(self, item_id: str) -> ItemAnswer:
        """What is known of an item. Raises Problem where that is nothing."""
        live, item_id = self.live(), decoding.check_id("item_id", item_id)
        with _away("What was written cannot be read now", "Send the same request again after a second."):
            (held,) = await self.written.fields([item_id])
        written = decoded_fields(held) if held else None
        row = int(live.items.catalogue.rows([item_id])[0])
        in_release = int(live.release.items.catalogue.rows([item_id])[0]) >= 0
        if row < 0 and written is None:
            raise Problem(
                404,
                "no-such-item",
                "No such item",
                f"{item_id!r} is not in release {live.release.id}",
                "Ask for an item of the catalogue, or write it with PUT /v1/items.",
                "item_id",
            )
        fields = written.fields if written else {}
        title = fields.get("title") if row < 0 else live.items.catalogue.titles[row]
        price = fields.get("price") if row < 0 else _finite(live.items.catalogue.price[row])
        return ItemAnswer(
            item_id,
            in_release,
            row >= 0,
            written is None or written.available,
            row >= 0 and bool(live.items.vectors.scale[row] > 0),
            written.at if written else None,
            title,
            price,
        )

    async def _write(self, accepted: list[Accepted], now: float) -> list[bool]:
        again = "Send the same events again after a second; with an event_id, one that was stored counts once."
        with _away("Events cannot be stored now", again):
            return await self.store.write([a.event for a in accepted], now)

    async def erase(self, user_id: str) -> events.ErasureAnswer:
        """Forget a user, now here and with the next `collect` in the log; twice is once. Raises Problem."""
        at = self.moment()
        with _away("The user cannot be erased now", "Send the same request again after a second."):
            await self.store.erase(decoding.check_id("user_id", user_id), at)
        return events.ErasureAnswer(at)

    async def similar(self, item_id: str, limit: int) -> rankings.SimilarAnswer:
        """Items nearest to one by text. Raises Problem where it is unknown or has no text."""
        live = self.live()
        catalogue = live.items.catalogue
        row = int(catalogue.rows([item_id])[0])
        if row < 0 or not live.items.vectors.scale[row] > 0:
            why = (
                f"{item_id!r} is not in release {live.release.id}" if row < 0 else f"{item_id!r} has no text to compare"
            )
            raise Problem(404, "no-such-item", "No such item", why, "Ask for an item of the catalogue.", "item_id")
        gone = live.overlay.withdrawn
        near = await asyncio.to_thread(live.similar, row, limit + len(gone))
        near = [(r, c) for r, c in near if catalogue.item_ids[r] not in gone][:limit]
        items = [rankings.SimilarItem(catalogue.item_ids[r], catalogue.titles[r], c) for r, c in near]
        return rankings.SimilarAnswer(item_id, live.release.id, items)

    def state(self) -> dict[str, Any]:
        """What an operator asks first: whether rankings are answered, from which release, and if not, why."""
        live = self.follower.live
        return {
            "status": "ready" if live else "not ready",
            "release": live.release.id if live else None,
            "reason": self.follower.reason or None,
            "redis": self.follower.redis,
            "degraded": self.degraded,
            "slow": self.slow,
            "shadow": self.shadow.state(),
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def _away(title: str, remedy: str) -> Iterator[None]:
    """Raises Problem (503) where what is inside cannot reach Redis."""
    try:
        yield
    except StoreAway as e:
        raise Problem(503, "store-away", title, str(e), remedy, headers={"Retry-After": "1"}) from e


def _plain(ranking: Ranking) -> list[RankedItem]:
    return [RankedItem(i, s) for i, s in zip(ranking.item_ids, ranking.score.tolist(), strict=True)]


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1e3, 3)


def plan_of(rules: Rules | None, live: Live) -> Plan | None:
    """The rules of a request and those that stand. Raises Problem naming the rule, what is wrong and what there is."""
    try:
        return live.plan(rules)
    except RuleError as e:
        raise Problem(
            422, "invalid-rule", "A rule is not as it must be", str(e), "See docs/rules.md for the grammar.", e.path
        ) from e


def _ruled(
    live: Live, ranking: Ranking, plan: Plan | None, history: History, at: float, limit: int | None
) -> tuple[Ranking, Ruled | None]:
    """The ranking as the rules want it, and what they did; itself where there are none."""
    if plan is None:
        return ranking, None
    ranked = Ranked(ranking.item_ids, ranking.item, ranking.score)
    ruled = plan.apply(ranked, live.items.vectors, history, at, limit)
    return ranking.take(ruled.order)._replace(score=ruled.score), ruled
