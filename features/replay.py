"""Replay: reads the log in time order and computes each list's rows before applying any event at or after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32
from features.catalogue import Catalogue
from features.columns import Column
from features.companions import Companions
from features.context import Context
from features.decay import ItemState
from features.history import Histories, History
from features.linear import Linear
from features.log import ATTRIBUTION_S, CHUNK_ROWS, Events, Kind, Lists
from features.moment import LONGEST, Feature, Items, Moment
from features.neighbours import MAX_PER_USER, SESSION_WEIGHT, Neighbours
from features.prior import attribute_rates, click_rate_prior
from features.retention import DEFAULT_RETENTION, Retention
from features.segments import fit_segments
from features.sequence import SequenceModel
from features.table import declare, rows
from features.taste import MAX_USERS, Evidence, fit_factors
from features.text.implied_tags import AttributeValues, ItemWords
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary


class Snapshot(NamedTuple):
    """The arguments of `features.table.rows` for list `number`, at the time when it was shown."""

    number: int
    items: Items
    history: History
    candidates: I32
    at: float
    context: Context


@dataclass(frozen=True)
class Replay:
    """The log, ready to be read at any time.

    refresh_at: float64[r], ascending: times at which neighbours, prior and taste factors are refit to the events before
    them. Rows never use a fit to their own future, and no fit before the first time. encoder_vectors: the time and the
    vectors (like `vectors`) of each later encoder, ascending, used from the first of `refresh_at` at or after that
    time; an encoder must be trained only on events before its time. custom: custom features. columns: the declared
    columns of requests, whose values the lists have. session_weight: as in
    `Neighbours.build`. words: of each item's text, from which taste factors infer missing tags; None to infer none.
    given: histories of the events, with the same `retention`; None to build them in memory. attribution_s: as in
    `Items`. seeds: whether items have companions, which are refit like neighbours, and their features.
    word_vectors: those of the vocabulary's words by the encoder of `vectors` and by each of `encoder_vectors`, as in
    `Vocabulary.with_vectors`; empty for none. vocabulary: to be used at all times, with its word vectors; None to build
    it. sequence_models: the time and the sequence model of each training, ascending, used like `encoder_vectors`;
    before the first, no item has an embedding. Without any, rows have no features of the model.
    """

    catalogue: Catalogue
    vectors: F32
    events: Events
    refresh_at: F64
    custom: tuple[Feature, ...] = ()
    session_weight: float = SESSION_WEIGHT
    encoder_vectors: tuple[tuple[float, F32], ...] = ()
    words: ItemWords | None = None
    given: Histories | None = None
    attribution_s: float = ATTRIBUTION_S
    retention: Retention = DEFAULT_RETENTION
    columns: tuple[Column, ...] = ()
    seeds: bool = False
    word_vectors: Sequence[NDArray[np.floating]] = ()
    sequence_models: tuple[tuple[float, SequenceModel], ...] = ()
    vocabulary: Vocabulary | None = None

    @property
    def features(self) -> tuple[Feature, ...]:
        """The columns of `rows`, in order."""
        return declare(self.catalogue, self.custom, self.columns, self.seeds, bool(self.sequence_models))

    @cached_property
    def histories(self) -> Histories:
        """The two lists of every user at any time."""
        return Histories.of(self.events, self.retention) if self.given is None else self.given

    def recent(self, at: float) -> Events:
        """The newest `MAX_PER_USER` engagements of each user strictly before a time: the input of neighbours."""
        return self.events.take(self.histories.engagements.newest_of_all(at, MAX_PER_USER))

    def snapshots(self, lists: Lists) -> Iterator[Snapshot]:
        """Yield one snapshot per list, in the order of the lists, which must be by time.

        Item state is shared and changes with each step: use a snapshot before requesting the next. Raises ValueError if
        the lists are not in time order.
        """
        if (np.diff(lists.at) < 0).any():
            raise ValueError("lists are not in time order: sort them by `at` before replaying")
        items, applied, refreshed = self._cold(any(lists.query)), 0, 0
        for g in range(len(lists)):
            at = float(lists.at[g])
            due = int(np.searchsorted(self.refresh_at, at, side="right"))
            if due > refreshed:
                # If several refreshes are due, only the last is computed: it depends on the log and not on earlier
                # refreshes.
                refresh_time = float(self.refresh_at[due - 1])
                applied = self._apply(items.state, applied, refresh_time)
                items, refreshed = self.refit(items, refresh_time), due
            applied = self._apply(items.state, applied, at)
            candidates = lists.item[lists.start[g] : lists.start[g + 1]]
            context = Context(int(lists.device[g]), lists.query[g], lists.columns_of(g), lists.seeds_of(g))
            yield Snapshot(g, items, self.histories.read(int(lists.user[g]), at), candidates, at, context)

    def rows(self, lists: Lists, on_progress: Callable[[int, int], None] | None = None) -> F32:
        """float32[rows, features]: point-in-time features of every candidate of every list."""
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
        """Items at a time, with everything refit to the events strictly before it: the contents of a release."""
        items = self._cold(with_words=True)
        self._apply(items.state, 0, at)
        return self.refit(items, at)

    def refit(self, items: Items, at: float) -> Items:
        """The items with vectors, neighbours, linear model, prior, factors and segments refit to the events before a
        time; the vocabulary as well, if the items have one.
        """
        revision = self._revision_at(at)
        vectors, recent = self._revision(revision), self.recent(at)
        fresh = replace(
            items,
            vectors=Vectors.quantise(vectors),
            prior=click_rate_prior(self.catalogue, vectors, items.state, at),
            attribute_rates=attribute_rates(self.catalogue, items.state, at),
            neighbours=Neighbours.build(recent, len(self.catalogue), at, session_weight=self.session_weight),
            linear=Linear.build(recent, len(self.catalogue), at),
            words=None if items.words is None else self._words(revision),
            sequence=next((model for since, model in reversed(self.sequence_models) if since <= at), items.sequence),
        )
        if self.seeds:
            n = len(self.catalogue)
            companions = Companions.build(self.catalogue, fresh.vectors, recent, n, at)
            fresh = replace(fresh, companions=companions)
        every = np.arange(len(self.catalogue) + 1, dtype=np.int32)
        clicks = items.state.of_items(every, at)[:, Kind.CLICK, LONGEST]
        evidence = self._evidence(fresh, at)
        factors = fit_factors(self.catalogue, self._values, vectors, clicks, evidence)
        return replace(fresh, factors=factors, segments=fit_segments(factors, evidence))

    @cached_property
    def _values(self) -> AttributeValues:
        return AttributeValues.of(self.catalogue, self.words)

    def _evidence(self, items: Items, at: float) -> list[Evidence]:
        """Observed minus expected clicks of the most recently shown users, at a time."""
        out = []
        for user in _most_recently_shown(self.events.before(at), MAX_USERS):
            residuals = Moment(items, self.histories.read(user, at), np.empty(0, np.int32), at).residuals
            out.append(Evidence(residuals.item, residuals.residual, residuals.chance * (1.0 - residuals.chance)))
        return out

    def _cold(self, with_words: bool) -> Items:
        """Items before any event. with_words: whether to build the vocabulary, which takes time."""
        n = len(self.catalogue)
        return Items(
            self.catalogue,
            Vectors.quantise(self.vectors),
            np.full(n + 1, np.nan, np.float32),
            Neighbours.none(n),
            ItemState.empty(self.catalogue.category, len(self.catalogue.category_names)),
            custom=self.custom,
            columns=self.columns,
            words=self._words(0) if with_words else None,
            attribution_s=self.attribution_s,
            companions=Companions.none(n) if self.seeds else None,
            linear=Linear.none(n),
            sequence=SequenceModel.none(n, self.vectors.shape[1]) if self.sequence_models else None,
        )

    def _revision(self, revision: int) -> F32:
        """The vectors of an encoder revision: `vectors` for 0, otherwise those of `encoder_vectors`, counted from 1."""
        return self.encoder_vectors[revision - 1][1] if revision else self.vectors

    def vocabulary_at(self, at: float) -> Vocabulary:
        """The vocabulary at a time, with word vectors by the last encoder until then."""
        return self._words(self._revision_at(at))

    def _revision_at(self, at: float) -> int:
        return sum(since <= at for since, _ in self.encoder_vectors)

    def _words(self, revision: int) -> Vocabulary:
        """The vocabulary with word vectors of a revision; each is built once."""
        if self.vocabulary is not None:
            return self.vocabulary
        if revision not in self._vocabularies:
            own = self.word_vectors[revision] if len(self.word_vectors) else None
            self._vocabularies[revision] = self._vocabulary.with_vectors(self._revision(revision), own)
        return self._vocabularies[revision]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.without_vectors(self.catalogue)

    @cached_property
    def _vocabularies(self) -> dict[int, Vocabulary]:
        return {}

    def _apply(self, state: ItemState, applied: int, at: float) -> int:
        """Apply the events from row `applied` to the last before a time; returns the row to continue from."""
        end = int(np.searchsorted(self.events.at, at, side="left"))
        for part in self.events.take(slice(applied, max(end, applied))).parts():
            state.apply(part.item, part.kind, part.at)
        return max(end, applied)


def _most_recently_shown(events: Events, most: int) -> list[int]:
    """The users with the most recent impressions, newest first; reads the log from its end, only as far as needed."""
    seen: dict[int, None] = {}
    end = len(events)
    while end and len(seen) < most:
        begin = max(0, end - CHUNK_ROWS)
        part = events.take(slice(begin, end))
        newest_first = part.user[part.kind == Kind.IMPRESSION][::-1]
        users, first = np.unique(newest_first, return_index=True)
        seen |= dict.fromkeys(u for u in users[np.argsort(first)].tolist() if u not in seen)
        end = begin
    return list(seen)[:most]
