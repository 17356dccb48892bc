"""Replay: the log read in time order, each list's rows computed before anything at or after it is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.context import Context
from features.decay import ItemState
from features.history import Histories, History
from features.log import PART_ROWS, Events, Kind, Lists
from features.moment import LONGEST, Feature, Items, Moment
from features.neighbours import MAX_PER_USER, SESSION_WEIGHT, Neighbours
from features.prior import attribute_rates, click_rate_prior
from features.segments import fit_segments
from features.table import declare, rows
from features.taste import LEARNERS, Evidence, fit_factors
from features.text.implied_tags import AttributeValues, ItemWords
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary


class Snapshot(NamedTuple):
    """What was known when list `number` was shown: the arguments of `features.table.rows`."""

    number: int
    items: Items
    history: History
    candidates: I32
    at: float
    context: Context


@dataclass(frozen=True)
class Replay:
    """The log, ready to be read at any of its moments.

    refresh_at: float64[r], ascending: the moments at which neighbours, prior and taste factors are made anew, from what
    came before; rows never use one made of their own future, and before the first there is none. revised: the moment
    and the vectors (like `vectors`) of each later encoder, ascending, in use from the first of `refresh_at` at or after
    it; each must have been made of what came before its moment. custom: features of the user's own. session_weight: as
    in `Neighbours.build`. words: of each item's text, from which taste factors read what no tag says; None reads none.
    given: histories of the events; made of them, in memory, where there are none.
    """

    catalogue: Catalogue
    vectors: F32
    events: Events
    refresh_at: F64
    custom: tuple[Feature, ...] = ()
    session_weight: float = SESSION_WEIGHT
    revised: tuple[tuple[float, F32], ...] = ()
    words: ItemWords | None = None
    given: Histories | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """The columns of `rows`, in order."""
        return declare(self.catalogue, self.custom)

    @cached_property
    def histories(self) -> Histories:
        """Every user's lists at any moment."""
        return Histories.of(self.events) if self.given is None else self.given

    def recent(self, at: float) -> Events:
        """Every user's newest `IN_VISITS` engagements strictly before a moment: as much as neighbours are made of."""
        return self.events.take(self.histories.engagements.newest_of_all(at, MAX_PER_USER))

    def snapshots(self, lists: Lists) -> Iterator[Snapshot]:
        """One reading a list, in the lists' order, which must be by time.

        Item state is shared and moves on: use a reading before asking for the next.
        """
        if (np.diff(lists.at) < 0).any():
            raise ValueError("lists are not in time order: sort them by `at` before replaying")
        items, applied, refreshed = self._cold(any(lists.query)), 0, 0
        for g in range(len(lists)):
            at = float(lists.at[g])
            due = int(np.searchsorted(self.refresh_at, at, side="right"))
            if due > refreshed:
                # Of several that are due the last alone is read, and it is made of the log, not of the one before.
                moment = float(self.refresh_at[due - 1])
                applied = self._apply(items.state, applied, moment)
                items, refreshed = self.refreshed(items, moment), due
            applied = self._apply(items.state, applied, at)
            candidates = lists.item[lists.start[g] : lists.start[g + 1]]
            context = Context(int(lists.device[g]), lists.query[g])
            yield Snapshot(g, items, self.histories.read(int(lists.user[g]), at), candidates, at, context)

    def rows(self, lists: Lists, on_progress: Callable[[int, int], None] | None = None) -> F32:
        """float32[rows, features]: the feature rows of every candidate of every list, point-in-time."""
        out: F32 = np.empty((lists.rows, len(self.features)), np.float32)
        for r in self.snapshots(lists):
            bounds = slice(lists.start[r.number], lists.start[r.number + 1])
            out[bounds] = rows(r.items, r.history, r.candidates, r.at, r.context)
            if on_progress and (r.number + 1) % 64 == 0:
                on_progress(r.number + 1, len(lists))
        if on_progress:
            on_progress(len(lists), len(lists))
        return out

    def items_at(self, at: float) -> Items:
        """All that is known of items strictly before a moment, what is made anew fresh: what a release carries."""
        items = self._cold(searched=True)
        self._apply(items.state, 0, at)
        return self.refreshed(items, at)

    def refreshed(self, items: Items, at: float) -> Items:
        """The same items with vectors, neighbours, prior, factors and segments made from what came before a moment.

        Words as well, where the items have any.
        """
        revision = sum(since <= at for since, _ in self.revised)
        vectors = self._revision(revision)
        fresh = replace(
            items,
            vectors=Vectors.quantise(vectors),
            prior=click_rate_prior(self.catalogue, vectors, items.state, at),
            attribute_rates=attribute_rates(self.catalogue, items.state, at),
            neighbours=Neighbours.build(self.recent(at), len(self.catalogue), at, session_weight=self.session_weight),
            words=None if items.words is None else self._words(revision),
        )
        every = np.arange(len(self.catalogue) + 1, dtype=np.int32)
        clicks = items.state.of_items(every, at)[:, Kind.CLICK, LONGEST]
        evidence = self._evidence(fresh, at)
        made = fit_factors(self.catalogue, self._values, vectors, clicks, evidence)
        return replace(fresh, factors=made, segments=fit_segments(made, evidence))

    @cached_property
    def _values(self) -> AttributeValues:
        return AttributeValues.of(self.catalogue, self.words)

    def _evidence(self, items: Items, at: float) -> list[Evidence]:
        """What the shoppers most lately shown something did with it, as of a moment."""
        out = []
        for user in _most_recently_shown(self.events.before(at), LEARNERS):
            found = Moment(items, self.histories.read(user, at), np.empty(0, np.int32), at).residuals
            out.append(Evidence(found.item, found.residual, found.chance * (1.0 - found.chance)))
        return out

    def _cold(self, searched: bool) -> Items:
        """Items of which nothing happened. searched: with words, which take their time."""
        n = len(self.catalogue)
        return Items(
            self.catalogue,
            Vectors.quantise(self.vectors),
            np.full(n + 1, np.nan, np.float32),
            Neighbours.none(n),
            ItemState.empty(self.catalogue.category, len(self.catalogue.category_names)),
            custom=self.custom,
            words=self._words(0) if searched else None,
        )

    def _revision(self, revision: int) -> F32:
        """`vectors` (0), or those of `revised`, counted from 1."""
        return self.revised[revision - 1][1] if revision else self.vectors

    def _words(self, revision: int) -> Vocabulary:
        """The catalogue's words and what they say of a revision's vectors, each made once."""
        if revision not in self._meanings:
            self._meanings[revision] = self._vocabulary.meaning(self._revision(revision))
        return self._meanings[revision]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.spelt(self.catalogue)

    @cached_property
    def _meanings(self) -> dict[int, Vocabulary]:
        return {}

    def _apply(self, state: ItemState, applied: int, at: float) -> int:
        """Apply the events from row `applied` up to, not including, a moment; the row to go on from."""
        end = int(np.searchsorted(self.events.at, at, side="left"))
        for part in self.events.take(slice(applied, max(end, applied))).parts():
            state.apply(part.item, part.kind, part.at)
        return max(end, applied)


def _most_recently_shown(events: Events, most: int) -> list[int]:
    """The users who were most lately shown something, the last first; read from the end only as far as it takes."""
    seen: dict[int, None] = {}
    end = len(events)
    while end and len(seen) < most:
        begin = max(0, end - PART_ROWS)
        part = events.take(slice(begin, end))
        newest_first = part.user[part.kind == Kind.IMPRESSION][::-1]
        users, first = np.unique(newest_first, return_index=True)
        seen |= dict.fromkeys(u for u in users[np.argsort(first)].tolist() if u not in seen)
        end = begin
    return list(seen)[:most]
