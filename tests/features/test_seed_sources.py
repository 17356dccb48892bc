"""Sources of the items that a request names: what each finds, who fills in for it, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import F64, I32
from features.companions import Companions
from features.context import Context
from features.decay import ItemState
from features.history import EMPTY, History
from features.log import Kind
from features.moment import Items
from features.neighbours import Neighbours
from features.retrieval import FALLBACKS, SOURCES, Retrieved, global_candidates, merge, retrieve, text_candidates
from features.text.vectors import Vectors
from tests.worlds import DAY, START, make_catalogue, make_vectors

N, AT = 12, START + DAY
EVERY = (*SOURCES, *FALLBACKS)
Rows = Mapping[int, Sequence[tuple[int, float]]]
"""By item, the items that a table lists for it, with their weights."""


def table(rows: Rows, k: int = 3) -> Neighbours:
    item, weight = np.full((N + 1, k), -1, np.int32), np.zeros((N + 1, k), np.float32)
    for row, listed in rows.items():
        for place, (other, amount) in enumerate(listed):
            item[row, place], weight[row, place] = other, amount
    return Neighbours(item, weight)


NONE = table({})


def companions(
    together: Rows | None = None, goes_with: Rows | None = None, following: Rows | None = None, typical: float = np.nan
) -> Companions:
    bought, complements, after = (table(rows or {}) for rows in (together, goes_with, following))
    return Companions(bought, complements, after, np.full(N + 1, typical, np.float32))


def make_items(of: Companions | None, neighbours: Neighbours = NONE) -> Items:
    """Twelve items, item k of category k % 3; item 2 has no text. Items 0 to 11 have ever more purchases."""
    catalogue = replace(make_catalogue(N), available_from=np.append(np.full(N, START - DAY), np.nan))
    state = ItemState.empty(catalogue.category, 3)
    bought = np.repeat(np.arange(N, dtype=np.int32), np.arange(N))
    state.apply(bought, np.full(len(bought), Kind.PURCHASE, np.int8), np.full(len(bought), START))
    prior = np.full(N + 1, np.nan, np.float32)
    return Items(catalogue, Vectors.quantise(make_vectors(N)), prior, neighbours, state, companions=of)


def shares(**of: float) -> F64:
    return np.array([of.get(name, 0.0) for name in SOURCES])


def found(
    items: Items, seeds: Sequence[int], of: F64 | None, history: History = EMPTY, size: int = 100, at: float = AT
) -> Retrieved:
    context = Context(seeds=np.array(seeds, np.int32))
    by_text = text_candidates(items, history, at, size, context, None, of)
    return merge(items, history, at, size, global_candidates(items, at, size), by_text, None, of, context.seeds)


def named(got: Retrieved) -> list[tuple[int, str]]:
    """(item, first source) of each candidate."""
    return [(row, EVERY[source]) for row, source in zip(got.item.tolist(), got.source.tolist(), strict=True)]


def history(*events: tuple[int, Kind, float]) -> History:
    """A history from (item, kind, seconds before AT), newest first."""
    item = np.array([e[0] for e in events], np.int32)
    kind = np.array([e[1] for e in events], np.int8)
    nothing = np.empty(0, np.int32)
    return History(item, kind, AT - np.array([e[2] for e in events], np.float64), nothing, np.empty(0))


TABLES = ("together", "goes_with", "following")


@pytest.mark.parametrize("name", TABLES)
def test_a_source_has_what_its_table_lists_for_the_seeds_best_first_without_the_seeds(name: str) -> None:
    """Of 0 and 4: item 5 has .2 + .3, item 7 has .4; item 4 itself is a seed."""
    listed: Rows = {0: [(4, 0.9), (7, 0.4), (5, 0.2)], 4: [(5, 0.3)]}
    of = {other: listed if name == other else None for other in TABLES}
    items = make_items(companions(of["together"], of["goes_with"], of["following"]))
    source = {"together": "bought_together", "following": "next"}.get(name, name)
    assert named(found(items, [0, 4], shares(**{source: 1}))) == [(5, source), (7, source)]


def test_similar_items_are_alike_by_text_and_by_co_occurrence() -> None:
    """The score is the cosine of the texts plus the co-occurrence: 1 leads item 9 past all that are alike by text."""
    items = make_items(None, table({3: [(9, 1.0)]}))
    got = found(items, [3], shares(similar=1))
    seed = np.array([3], np.int32)
    cosine = items.vectors.cosines(np.arange(N, dtype=np.int32), seed)[:, 0]
    score = np.maximum(np.nan_to_num(cosine), 0) + np.where(np.arange(N) == 9, 1.0, 0.0)
    expected = [row for row in np.argsort(-score, kind="stable").tolist() if row != 3 and score[row] > 0]
    assert got.item.tolist() == expected
    assert expected[0] == 9
    assert {name for _, name in named(got)} == {"similar"}


def test_text_fills_in_for_a_seed_that_a_source_has_nothing_for() -> None:
    """A release without the tables is one that has nothing for any item. The best by text comes first."""
    seed = np.array([3], np.int32)
    for of in (companions({4: [(5, 1.0)]}), None):
        items = make_items(of)
        got = found(items, [3], shares(bought_together=1))
        cosine = items.vectors.cosines(got.item, seed)[:, 0]
        assert len(got.item) > 1
        assert {name for _, name in named(got)} == {"fallback_text"}
        assert (np.diff(cosine) <= 0).all()


def test_popular_items_of_its_category_fill_in_for_a_seed_without_text() -> None:
    """Item 2 is of category 2, as 5, 8 and 11; an unknown seed has no category, and popular items of the shop do."""
    items = make_items(companions())
    assert named(found(items, [2], shares(goes_with=1))) == [(row, "fallback_popular") for row in (11, 8, 5)]
    of_shop = found(items, [-1], shares(goes_with=1))
    assert named(of_shop) == [(row, "fallback_popular") for row in range(11, 0, -1)], "nobody bought item 0"


def test_a_source_gives_up_the_turns_of_the_seeds_that_it_has_nothing_for() -> None:
    """Of four seeds it has nothing for one, so of a share of 4, text has 1: turns at 1/6, 1/2, 1/2, 5/6 and so on."""
    listed = {0: [(8, 0.9), (9, 0.8)], 1: [(10, 0.7)], 4: [(11, 0.6)]}
    got = found(make_items(companions(listed)), [0, 1, 4, 3], shares(bought_together=4))
    of_table = [(8, "bought_together"), (9, "bought_together")]
    assert named(got)[:2] == of_table
    assert [source for _, source in named(got)][2] == "fallback_text"
    assert {row for row, source in named(got) if source == "bought_together"} == {8, 9, 10, 11}


def test_next_starts_from_the_session_if_there_are_no_seeds() -> None:
    """The newest item counts most: 1 * .5 for item 7, 0.8 * .6 = .48 for item 8. A session ends after half an hour."""
    items = make_items(companions(following={0: [(7, 0.5)], 1: [(8, 0.6)], 3: [(9, 1.0)]}))
    now = history((0, Kind.CLICK, 10), (1, Kind.VIEW, 20), (0, Kind.VIEW, 30), (3, Kind.CLICK, 7000))
    assert named(found(items, [], shares(next=1), now)) == [(7, "next"), (8, "next")]
    assert named(found(items, [1], shares(next=1), now)) == [(8, "next")], "seeds count instead"
    assert not len(found(items, [], shares(next=1), now, at=AT + 7200).item)


def test_other_sources_of_seeds_have_nothing_without_seeds() -> None:
    items = make_items(companions({0: [(7, 0.5)]}, {0: [(7, 0.5)]}))
    now = history((0, Kind.CLICK, 10))
    assert not len(found(items, [], shares(similar=1, bought_together=1, goes_with=1), now).item)


def test_buy_again_has_the_purchases_of_the_user_the_most_due_first() -> None:
    """With a typical time of 10 days: of equally frequent ones, the one bought last longest ago is not first."""
    items = make_items(companions(typical=10 * DAY))
    bought = history((3, Kind.PURCHASE, DAY), (4, Kind.CLICK, DAY), (5, Kind.PURCHASE, 2 * DAY))
    got = named(found(items, [], shares(buy_again=1), bought))
    assert {row for row, _ in got} == {3, 5}
    assert {name for _, name in got} == {"buy_again"}


def test_without_shares_the_sources_of_seeds_take_equal_turns_with_the_others() -> None:
    """The sources are popular (1), in the order of `SOURCES`, new, then those of seeds; each has its first turn."""
    items = make_items(companions({0: [(7, 0.5)]}, {0: [(8, 0.5)]}, {0: [(9, 0.5)]}))
    got = named(found(items, [0], None, size=6))
    assert [name for _, name in got] == ["popular", "new", "similar", "bought_together", "goes_with", "next"]


def same(a: Retrieved, b: Retrieved) -> bool:
    fields = ("item", "source", "source_bits")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in fields)


@given(st.lists(st.tuples(st.integers(0, N - 1), st.sampled_from([Kind.CLICK, Kind.PURCHASE])), max_size=8))
@settings(deadline=None)
def test_without_seeds_companions_change_no_candidate(events: list[tuple[int, Kind]]) -> None:
    of = companions({0: [(7, 0.5)]}, {1: [(8, 0.5)]}, {2: [(9, 0.5)]}, typical=DAY)
    past = history(*((item, kind, 10.0 * k) for k, (item, kind) in enumerate(events)))
    of_user = shares(**dict.fromkeys(SOURCES[:9], 2.0))
    plain = retrieve(make_items(None), past, AT, 9)
    assert same(retrieve(make_items(of), past, AT, 9), plain)
    assert same(found(make_items(of), [], of_user, past, 9), plain)


@given(
    st.lists(st.integers(-1, N - 1), max_size=4, unique=True),
    st.dictionaries(st.sampled_from(SOURCES), st.floats(0.1, 10), max_size=6),
    st.integers(1, 12),
    st.booleans(),
)
@settings(deadline=None)
def test_candidates_are_distinct_and_never_seeds(
    seeds: list[int], of: dict[str, float], size: int, with_tables: bool
) -> None:
    """Whatever the shares; and every candidate has the bit of its first source."""
    full: Rows = {row: [((row + d) % N, 1 / d) for d in (1, 2, 5)] for row in range(0, N, 2)}
    items = make_items(companions(full, full, full, DAY) if with_tables else None, table(full))
    past = history((0, Kind.CLICK, 5), (3, Kind.PURCHASE, 50))
    got = found(items, seeds, shares(**of) if of else None, past, size)
    rows: I32 = got.item
    assert len(set(rows.tolist())) == len(rows) <= size
    assert not set(rows.tolist()) & set(seeds)
    assert ((got.source_bits >> got.source.astype(np.uint16)) & 1 == 1).all()
    allowed = {SOURCES.index(name) for name in of} | {len(SOURCES), len(SOURCES) + 1} if of else set(range(len(EVERY)))
    assert set(got.source.tolist()) <= allowed
