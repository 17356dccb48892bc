"""The release a worker answers from: its arrays, this worker's item state, and how both move on while requests come.

Everything that touches item state runs in the event loop, one thing at a time, so nothing is locked. A request takes
`Follower.live` once and stays with it; the next release is loaded and warmed in a thread beside it and put in its place
by one assignment, so that no answer mixes two.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.context import NO_CONTEXT, Context
from features.history import EMPTY, History
from features.log import F32, F64, I32, I64, Kind
from features.retrieval import compared, retrieve
from features.table import Feature, Items, features, rows
from ranker import query_prior
from ranker.booster import BoosterTrees
from serving.conditions import Attributes, Condition, RuleError
from serving.config import ServiceConfig
from serving.item import decoded_fields
from serving.manifest import ReleaseError
from serving.metrics import Metrics
from serving.overlay import NOTHING, Overlay
from serving.recommendation import Offers
from serving.release import Release, load
from serving.rules import Cap, Diversity, Plan, Ranked, Rules
from serving.store import END, START, Pointer, Store, StoreAway, Tail
from serving.written import WrittenItems

log = logging.getLogger(__name__)

_ITEMS = 500
"""Items read from Redis in one go."""


class Parts(NamedTuple):
    """What a score is made of: base, what the weightiest features added, weightiest first, and all others together."""

    base: float
    weightiest: list[tuple[Feature, float]]
    others: float


class Ranking(NamedTuple):
    """Items best first, equal scores by id. item: int32[k]. score: float64[k]. rows: float32[k, features].

    sought: float64[k], what of the score is there for matching a query of which the ranker has learned nothing.
    """

    item_ids: list[str]
    item: I32
    score: F64
    rows: F32
    sought: F64

    def take(self, order: I64) -> Ranking:
        """The same items in another order."""
        return Ranking(
            [self.item_ids[k] for k in order.tolist()],
            self.item[order],
            self.score[order],
            self.rows[order],
            self.sought[order],
        )

    def first(self, limit: int | None) -> Ranking:
        """At most `limit` of them; all where it is None."""
        if limit is None or limit >= len(self.item_ids):
            return self
        return self.take(np.arange(limit))


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
    overlay: Overlay = NOTHING
    changes: str = START

    @classmethod
    def of(cls, release: Release) -> Live:
        """The release as of its cut-off, with item state of its own to move on."""
        # Entries are numbered by arrival, in milliseconds. An hour covers clocks that disagree.
        first = f"{max(0, int((release.manifest.cut_off - 3600) * 1000))}-0"
        items = replace(release.items, state=release.items.state.copy())
        return cls(release, items, features(release.items), first)

    def under(self, overlay: Overlay, rules: Rules | None = None) -> Live:
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
        sought = np.zeros(len(score))
        if context.query and not self.release.knows_queries:
            sought = query_prior.added(table, self.release.trees.names, score)
            score = score + sought
        best = np.argsort(-score, kind="stable")[:limit]
        return Ranking([ids[i] for i in place[best].tolist()], item[best], score[best], table[best], sought[best])

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
    def offers(self) -> Offers:
        """Retrieval over this release."""
        return Offers(self.items)

    def plan(self, rules: Rules | None) -> Plan | None:
        """The rules of a request after those that stand; None where there are none. Raises RuleError."""
        asked = None if rules is None else Plan.of(rules, self.attributes, "rules")
        return asked if self.standing is None else self.standing.then(asked)

    def contributions(self, ranking: Ranking, most: int, context: Context = NO_CONTEXT) -> list[Parts]:
        """For each item what its score is made of, the `most` weightiest features by name.

        context: of the request that was ranked. What a query adds is said in its words; where the ranker has learned
        nothing of queries it is a part of its own, `query`.
        """
        if not len(ranking.rows):
            return []
        share = self.release.trees.contributions(ranking.rows)
        order = np.argsort(-np.abs(share[:, :-1]), axis=1, kind="stable")
        out = []
        for row, columns, sought in zip(share, order, ranking.sought.tolist(), strict=True):
            said = [(self.features[f], float(row[f])) for f in columns[:most].tolist() if row[f] != 0]
            if sought:
                said = sorted([*said, (_SOUGHT, sought)], key=lambda part: -abs(part[1]))
            said = [(_of_query(feature, added, context.query), added) for feature, added in said]
            out.append(Parts(float(row[-1]), said, float(row[columns[most:]].sum())))
        return out

    def nearest_engaged(self, ranking: Ranking, history: History) -> list[tuple[int, float] | None]:
        """For each item, the other item of the user's list nearest by text as (row, cosine), None for none."""
        engaged = np.unique(history.item[history.item >= 0])
        if not len(engaged):
            return [None] * len(ranking.item)
        cosine = self.items.vectors.cosines(ranking.item, engaged)
        cosine[np.isnan(cosine) | (ranking.item[:, None] == engaged)] = -np.inf
        best = cosine.argmax(axis=1)
        near = zip(engaged[best].tolist(), cosine[np.arange(len(best)), best].tolist(), strict=True)
        return [(row, c) if c > -np.inf else None for row, c in near]

    def similar(self, row: int, limit: int) -> list[tuple[int, float]]:
        """Other items nearest by text, best first, as (row, cosine), equal cosines by id.

        Every item is compared, but where the catalogue has inverted lists: those of the nearest.
        """
        one = np.array([row], np.int32)
        others = compared(self.items, self.items.vectors.pooled(one, np.ones(1)))
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
            self.contributions(ranking, 1)
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
    release = load(path, custom=custom)
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


_SOUGHT = Feature("query", "what you searched for", "score", "no query", lambda m: np.nan)
"""Stands for `Ranking.sought` among the reasons."""


def _of_query(feature: Feature, added: float, query: str) -> Feature:
    """The feature, and one of the query's as people say it of an item."""
    if not query or not feature.name.startswith("query"):
        return feature
    return feature._replace(about=f'{"matches" if added > 0 else "does not match"} "{query}"')


class Follower:
    """Keeps `live` up to date: events of the stream within a poll, a new release when the pointer moves.

    Of the service there is one, and one more (`of_shadow`) for the release in shadow, which counts nothing.

    reason: why there is no release yet, or why the next one is not live; empty where all is well.
    redis: "ok", or how it is away.
    """

    def __init__(
        self,
        config: ServiceConfig,
        store: Store,
        release: Path | None,
        custom: tuple[Feature, ...] = (),
        metrics: Metrics | None = None,
        shadow: bool = False,
    ) -> None:
        """release: a directory to answer from until the pointer says otherwise, and while Redis is away."""
        self._custom, self._metrics, self._shadow = custom, metrics, shadow
        self.live: Live | None = None
        self.reason = "starting"
        self.redis = "not asked yet"
        self._config, self._store, self._first = config, store, release
        self._failed: tuple[Pointer, float] | None = None
        self._rested = 0.0
        self._written = WrittenItems(store)
        self._loading: asyncio.Task[None] | None = None

    def of_shadow(self) -> Follower:
        """One like it that follows the release in shadow."""
        return Follower(self._config, self._store, None, self._custom, shadow=True)

    async def run(self) -> None:
        """Follow until cancelled."""
        try:
            if self._first is not None:
                await self._load(Pointer("", str(self._first)))
            while True:
                caught_up = await self.step()
                await asyncio.sleep(0 if not caught_up else self._config.poll_s)
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Load nothing more."""
        if self._loading is not None:
            self._loading.cancel()
            with suppress(asyncio.CancelledError):
                await self._loading

    async def step(self) -> bool:
        """One look at pointer and stream; True where nothing is left to read."""
        live = self.live
        try:
            pointer, tail, away, shadow = await self._store.poll(live.last if live else END)
        except StoreAway as e:
            self._say_redis(str(e))
            if live is None and not self.reason.startswith("release"):
                self.reason = f"no release is loaded, and its pointer cannot be read: {e}"
            return True
        self._say_redis(away or "ok")
        if live is not None:
            live.apply(tail)
            if tail.item_ids and self._metrics:
                self._metrics.fresh(time.time() - tail.since)
            with suppress(StoreAway):  # the next look reads it
                await self._lay_over(live)
        named = shadow if self._shadow else pointer
        if named is not None or not away:
            self._consider(named)
        elif live is None and not self._shadow and not self.reason.startswith("release"):
            self.reason = f"no release is loaded, and its pointer cannot be read: {away}"
        return live is None or not tail.item_ids

    async def _written_since(self, live: Live) -> Live:
        """A release just loaded, with all that was written of items since it was made."""
        live = replace(live, changes=await self._written.end())
        return await self._with(live, await self._written.ids())

    async def _lay_over(self, live: Live) -> None:
        """Take in what was written of items since the last look."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rested:
            return
        last, ids = await self._written.changed(live.changes)
        if not ids:
            return
        began = loop.time()
        try:
            changed = replace(await self._with(live, ids), changes=last)
        except StoreAway:
            raise
        except Exception:  # whatever is wrong with what was written, the release goes on
            log.exception("%d written items cannot be taken in", len(ids))
            changed = replace(live, changes=last)
        # Of a large catalogue it takes some time: no more than a tenth of this worker's, however items come.
        self._rested = loop.time() + 9 * (loop.time() - began)
        if self.live is live:  # else another release by now, which read all
            self.live = changed

    async def _with(self, live: Live, item_ids: list[str]) -> Live:
        """A release with these items as Redis holds them now, besides those it had."""
        written, vectors = dict(live.overlay.written), dict(live.overlay.vectors)
        manifest = live.release.manifest
        for first in range(0, len(item_ids), _ITEMS):
            ids = item_ids[first : first + _ITEMS]
            held = await self._written.fields(ids)
            found = await self._written.vectors(manifest.encoder_fingerprint, ids, manifest.dimension)
            in_release = live.release.items.catalogue.rows(ids) >= 0
            for item_id, fields, vector, known in zip(ids, held, found, in_release.tolist(), strict=True):
                one = decoded_fields(fields)
                if fields and (not known or one.at > manifest.cut_off or not one.available):
                    written[item_id] = one
                    if np.isfinite(vector).all():
                        vectors[item_id] = vector
        if not written:
            return live
        near = {} if live.overlay is NOTHING else live.overlay.near
        return await asyncio.to_thread(live.under, Overlay(written, vectors, near), self._config.rules)

    def _say_redis(self, state: str) -> None:
        if state != self.redis and not self._shadow:
            (log.info if state == "ok" else log.warning)("redis: %s", state)
        self.redis = state
        if self._metrics:
            self._metrics.redis(state == "ok")

    def _consider(self, pointer: Pointer | None) -> None:
        """Begin to load the release that the pointer names, if it is not the live one and did not fail just now."""
        if pointer is None:
            if self._shadow:
                self.live, self.reason = None, ""
            elif self.live is None:
                self.reason = "no release is published yet: run `shelfwise nightly`, or promote one"
            return
        if self.live is not None and self.live.release.id == pointer.id:
            self.reason = ""
            return
        if self._loading is not None and not self._loading.done():
            return
        now = asyncio.get_running_loop().time()
        if self._failed is not None and self._failed[0] == pointer and now < self._failed[1] + self._config.reload_s:
            return
        self._loading = asyncio.create_task(self._load(pointer))

    async def _load(self, pointer: Pointer) -> None:
        """Load, warm, bring up to the end of the stream, and only then answer from it."""
        try:
            live = await asyncio.to_thread(
                prepare, Path(pointer.path), pointer.id or None, self._custom, self._config.rules
            )
        except Exception as e:  # whatever is wrong with the next release, the live one goes on
            self.reason = f"release {pointer.id or pointer.path} cannot be loaded: {e}"
            self._failed = (pointer, asyncio.get_running_loop().time())
            log.error("%s", self.reason, exc_info=None if isinstance(e, ReleaseError) else e)
            return
        with suppress(StoreAway):  # whatever is not read now, the next polls read
            live = await self._written_since(live)
            while (tail := (await self._store.poll(live.last)).tail).item_ids:
                live.apply(tail)
        self.live, self.reason, self._failed = live, "", None
        if self._metrics:
            self._metrics.release(live.release.id)
        log.info("%s release %s", "scoring in shadow by" if self._shadow else "answering from", live.release.id)
