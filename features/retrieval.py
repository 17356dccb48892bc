"""Retrieval: the candidates to rank, from several sources at a time; the same for a request and for a rebuilt list.

`retrieve` does all of it. A service computes two parts separately: user-independent candidates (`GlobalCandidates`),
once for many requests, and candidates by text (`TextCandidates`), outside its event loop. `merge` combines them.

Five sources are for the items that a request names (its seeds), for the session or for what is bought again. They have
turns if the request has seeds, or if a placement names them; without either, nothing of them is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I8, I32, Bool
from features.companions import buy_again_scores
from features.companions.sources import Anchors, Near, from_table, near_any, of_seeds, of_session, substitutes
from features.context import NO_CONTEXT, NO_SEEDS, Context
from features.history import History, engagement_weights
from features.log import Kind
from features.moment import Items
from features.text.inverted_lists import EXACT_UP_TO

_OF_USER = ("query", "query_words", "again", "co_occurrence", "linear", "text", "popular", "popular_in_category", "new")
_OF_SEEDS = ("similar", "bought_together", "goes_with", "next")
SOURCES = (*_OF_USER, *_OF_SEEDS, "buy_again")
"""Names of the sources, in the order in which they take equal turns."""
FALLBACKS = ("fallback_text", "fallback_popular")
"""Names of what takes the turns of a source of seeds for a seed that it has nothing for: items with similar text; for a
seed without, popular items of its category, or of the shop if it has no category."""
_FIRST_OF_SEEDS = len(_OF_USER)
_COMPARED_SEEDS = 10
"""Number of seeds, the first ones, whose text is compared with the catalogue: each takes a scan."""
_BY_TEXT = [SOURCES.index(name) for name in ("query", "query_words", "text")]
_TIE_BREAK = 1e-3
"""Weight of a cosine relative to a share of query words: it orders items that contain the same words."""
_POPULARITY_HALF_LIFE = 2
"""Index of the half-life of popularity in `features.decay.HALF_LIVES_S`: 7 days."""
_TOP_CATEGORIES = 3
"""Number of categories whose popular items are candidates: those with most of the user's engagement."""


class Retrieved(NamedTuple):
    """Retrieved candidates.

    item: int32[c], distinct catalogue rows. source: int8[c], the first source of the item, as an index of `SOURCES` and
    then `FALLBACKS`. source_bits: uint16[c], one bit per entry of these that has the item among its best `size`, lowest
    bit first.
    """

    item: I32
    source: I8
    source_bits: NDArray[np.uint16]


class TextCandidates(NamedTuple):
    """Candidates by text: int32 rows, best first, ties by row.

    query, words: by the meaning and by the words of the query, empty without a query. interest: nearest to the user's
    interest vector. anchors: what the sources of seeds start from: the seeds, otherwise the items of the session if the
    source `next` has a share, otherwise None. near: the rows nearest to the text of each of the first anchors.
    """

    query: I32
    words: I32
    interest: I32
    anchors: Anchors | None = None
    near: Sequence[Near] = ()


class GlobalCandidates(NamedTuple):
    """User-independent candidates at a time, before any rules are applied.

    at: Unix seconds. popularity: float64[n], decayed engagements. popular, new: int32 rows, best first, ties by row;
    items that are not yet available are left out.
    """

    at: float
    popularity: F64
    popular: I32
    new: I32


def global_candidates(items: Items, at: float, size: int) -> GlobalCandidates:
    """The `size` most popular and the `size` newest items at a time; scans the whole catalogue."""
    popularity = items.state.engaged(at, _POPULARITY_HALF_LIFE)
    born = items.catalogue.available_from[: len(popularity)]
    popular = _best(_all_rows(items), np.where(born > at, 0.0, popularity), size)
    return GlobalCandidates(at, popularity, popular, _best(_all_rows(items), np.where(born <= at, born, 0.0), size))


def restrict(items: Items, candidates: GlobalCandidates, admitted: Bool, at: float, size: int) -> GlobalCandidates:
    """The global candidates limited to admitted items (bool[n]), refilled up to `size`."""
    rows = np.flatnonzero(admitted).astype(np.int32)
    born = items.catalogue.available_from[rows]
    popular = np.where(born > at, 0.0, candidates.popularity[rows])
    return candidates._replace(
        popular=_best(rows, popular, size), new=_best(rows, np.where(born <= at, born, 0.0), size)
    )


def retrieve(items: Items, history: History, at: float, size: int, context: Context = NO_CONTEXT) -> Retrieved:
    """At most `size` candidates for a user strictly before `at`: the best of each source in turn.

    Sources: meaning of the query, words of the query, items engaged with before, co-occurrence neighbours of the
    user's list, the best of the linear model for it, text neighbours of their interest vector, recently popular,
    recently popular in their categories, newest. If the context has seeds, also: substitutes, what is bought together
    with them, complements, what comes next in a session. Items that are not yet available are never returned, nor are
    seeds. Every source orders ties by row. Raises ValueError if `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; ask for at least 1 candidate")
    by_text = text_candidates(items, history, at, size, context)
    return merge(items, history, at, size, global_candidates(items, at, size), by_text, seeds=context.seeds)


def text_candidates(
    items: Items,
    history: History,
    at: float,
    size: int,
    context: Context,
    admitted: Bool | None = None,
    shares: F64 | None = None,
) -> TextCandidates:
    """At most `size` available items each by query and by interest, and near each seed. admitted: as in
    `nearest_by_text`. shares: as in `merge`; without a share, no text is compared."""
    found = _by_user(items, history, at, size, context, admitted, shares)
    anchors = _anchors(history, at, context.seeds, shares)
    if anchors is None:
        return found
    near = tuple(_near(items, row, at, size, admitted) for row in anchors.item[:_COMPARED_SEEDS].tolist())
    return found._replace(anchors=anchors, near=near)


def _by_user(
    items: Items, history: History, at: float, size: int, context: Context, admitted: Bool | None, shares: F64 | None
) -> TextCandidates:
    if shares is not None and not shares[_BY_TEXT].any():
        nothing = np.empty(0, np.int32)
        return TextCandidates(nothing, nothing, nothing)
    liked = nearest_by_text(items, interest_vector(items, history, at), at, size, admitted)
    if not context.query or items.words is None:
        return TextCandidates(liked[:0], liked[:0], liked)
    query = items.words.read(context.query)
    holding = items.words.holding(query, admitted)
    share = items.words.match(query, holding)
    share += _TIE_BREAK * np.nan_to_num(items.vectors.cosines_to(holding, query.direction))
    words = _best(holding, share, size, items.catalogue.available_from[holding] > at)
    return TextCandidates(nearest_by_text(items, query.direction, at, size, admitted), words, liked)


def _anchors(history: History, at: float, seeds: I32, shares: F64 | None) -> Anchors | None:
    """The items that the sources of seeds start from; None if no text has to be compared for them."""
    if len(seeds):
        wanted = shares is None or shares[_FIRST_OF_SEEDS : _FIRST_OF_SEEDS + len(_OF_SEEDS)].any()
        return of_seeds(seeds) if wanted else None
    if shares is not None and shares[SOURCES.index("next")]:
        return of_session(history, at)
    return None


def _near(items: Items, row: int, at: float, size: int, admitted: Bool | None) -> Near:
    """The rows with the most similar text to an item, ascending, and their cosines; none for an unknown item."""
    one = np.array([row], np.int32)
    rows = nearest_by_text(items, items.vectors.pooled(one, np.ones(1)), at, size + 1, admitted)
    rows = np.sort(rows[rows != row])
    return rows, items.vectors.cosines(rows, one)[:, 0].astype(np.float64)


def interest_vector(items: Items, history: History, at: float) -> F64:
    """float64[d]: the user's interest vector, not normalised; all 0 for a user without history."""
    item, weight = _weighted_engagements(history, at)
    return items.vectors.pooled(item, weight)


def nearest_by_text(items: Items, direction: F64, at: float, size: int, admitted: Bool | None = None) -> I32:
    """int32: the rows whose text is nearest to a direction, best first, ties by row; only cosines above 0.

    With inverted lists, only items of the nearest lists are compared, unless `admitted` leaves few. admitted: bool[n],
    items that may be returned; None for all.
    """
    rows = search_space(items, direction, admitted)
    cosine = items.vectors.cosines_to(rows, direction).astype(np.float64)
    return _best(rows, cosine, size, items.catalogue.available_from[rows] > at)


def search_space(items: Items, direction: F64, admitted: Bool | None = None) -> I32:
    """int32, ascending: the rows that a text search compares."""
    count = len(items.catalogue) if admitted is None else int(admitted.sum())
    if items.inverted is not None and count > EXACT_UP_TO:
        return items.inverted.near(direction, admitted)
    return _all_rows(items) if admitted is None else np.flatnonzero(admitted).astype(np.int32)


def merge(
    items: Items,
    history: History,
    at: float,
    size: int,
    offered: GlobalCandidates,
    by_text: TextCandidates,
    admitted: Bool | None = None,
    shares: F64 | None = None,
    seeds: I32 = NO_SEEDS,
    offered_by: Callable[[I32], I32] | None = None,
) -> Retrieved:
    """Merge the best of all sources in turn, each item once. admitted: bool[n], applied to every source, or None.

    shares: float64, the share of turns of each of `SOURCES`, 0 for one that is not used. None: those of the user are
    equal, and so are those of seeds if there are any. seeds: as in `Context`; never candidates. offered_by: from the
    rows of a source, best first, to those that it offers, in the order of its turns; None if it offers all of them in
    this order.
    """
    item, weight = _weighted_engagements(history, at)
    engaged, amount = _sum_by_row(item, weight)
    near_items, near_weight = items.neighbours.item[item], items.neighbours.weight[item].astype(np.float64)
    valid = near_items >= 0
    neighbours = _sum_by_row(near_items[valid], (weight[:, None] * near_weight)[valid])
    category = _items_of_top_categories(items, item, weight)
    lists = [
        by_text.query,
        by_text.words,
        _best(engaged, amount, len(engaged)),
        _best(*neighbours, len(neighbours[0])),
        _by_linear(items, history),
        by_text.interest,
        offered.popular,
        _best(category, offered.popularity[category], len(category)),
        offered.new,
    ]
    turns = np.ones(len(lists)) if shares is None else shares[:_FIRST_OF_SEEDS]
    if by_text.anchors is not None or (shares is not None and shares[_FIRST_OF_SEEDS:].any()):
        asked = _DEFAULT_OF_SEEDS if shares is None else shares[_FIRST_OF_SEEDS:]
        more, of_more = _of_seeds_and_fallbacks(items, history, at, offered, by_text, seeds, asked)
        lists, turns = lists + more, np.concatenate([turns, of_more])
    if len(seeds):
        admitted = np.ones(len(items.catalogue), np.bool_) if admitted is None else admitted.copy()
        admitted[seeds[seeds >= 0]] = False
    ranked = []
    for number, rows in enumerate(lists):
        if not turns[number]:
            rows = rows[:0]
        rows = rows if admitted is None else rows[admitted[rows]]
        rows = _only_available(items, rows, at)
        ranked.append((rows if offered_by is None else offered_by(rows))[:size])
    return _interleave(ranked, size, turns)


_DEFAULT_OF_SEEDS = np.append(np.ones(len(_OF_SEEDS)), 0.0)
"""Shares of the sources of seeds, and of `buy_again`, in a request with seeds that has no shares."""


def _of_seeds_and_fallbacks(
    items: Items,
    history: History,
    at: float,
    offered: GlobalCandidates,
    by_text: TextCandidates,
    seeds: I32,
    asked: F64,
) -> tuple[list[I32], F64]:
    """Rows of each source of seeds, of `buy_again` and of each fallback, best first; and their shares, float64.

    A source gives up the part of its share that is due to anchors that it has nothing for. It goes to what is near
    their text, or if they have no text that is known, to what is popular. asked: shares of these sources.
    """
    none = np.empty(0, np.int32)
    anchors = by_text.anchors or Anchors(none, np.empty(0))
    companions, count = items.companions, len(anchors.item)
    tables = (None,) * 3 if companions is None else (companions.together, companions.goes_with, companions.following)
    lists, turns, lacking = [], np.zeros(len(_OF_SEEDS)), np.zeros(count)
    for number, share in enumerate(asked[: len(_OF_SEEDS)].tolist()):
        is_next = number == len(_OF_SEEDS) - 1
        if not share or not count or not (len(seeds) or is_next):
            lists.append(none)
            continue
        found = (
            from_table(tables[number - 1], anchors)
            if number
            else substitutes(items.neighbours, items.vectors, anchors, by_text.near)
        )
        lists.append(_best(found.row, found.score, len(found.row)))
        turns[number] = share * found.has.mean()
        lacking += share / count * ~found.has
    lists.append(_buy_again(items, history, at) if asked[-1] else none)
    has_text = np.array([len(rows) > 0 for rows, _ in by_text.near] + [False] * (count - len(by_text.near)), bool)
    row, cosine = near_any(by_text.near, has_text & (lacking > 0))
    without = anchors.item[~has_text & (lacking > 0)]
    lists += [_best(row, cosine, len(row)), _popular_like(items, without, offered) if len(without) else none]
    return lists, np.concatenate([turns, asked[-1:], [lacking[has_text].sum(), lacking[~has_text].sum()]])


def _buy_again(items: Items, history: History, at: float) -> I32:
    """The items that the user has bought, the most due first."""
    typical = None if items.companions is None else items.companions.repurchase_s
    if typical is None:
        typical = np.full(len(items.catalogue) + 1, np.nan, np.float32)
    row, due = buy_again_scores(history, at, typical)
    return _best(row, due, len(row))


def _popular_like(items: Items, rows: I32, offered: GlobalCandidates) -> I32:
    """The popular items of the categories of `rows`, best first; those of the shop if none has a category."""
    code, missing = items.category
    categories = [c for c in np.unique(code[rows]).tolist() if c != missing]
    if not categories:
        return offered.popular
    same = np.sort(np.concatenate([items.of_category(c) for c in categories]))
    return _best(same, offered.popularity[same], len(same))


def _interleave(ranked: list[I32], size: int, shares: F64) -> Retrieved:
    """Interleave ranked lists, each row once, at its first place.

    The n-th of a list, from 0, has its turn at (n + 1/2) / share; equal turns are in the order of the lists. With equal
    shares: the best of each, then the second of each, and so on. shares: float64, one for each list; lists without a
    share are empty.
    """
    row = np.concatenate(ranked)
    source = np.repeat(np.arange(len(ranked), dtype=np.int8), [len(r) for r in ranked])
    position = np.concatenate(
        [(np.arange(len(r)) + 0.5) / (share or 1.0) for r, share in zip(ranked, shares.tolist(), strict=True)]
    )
    order = np.lexsort((source, position))
    distinct, first, index = np.unique(row[order], return_index=True, return_inverse=True)
    source_bits = np.zeros(len(distinct), np.uint16)
    np.bitwise_or.at(source_bits, index, np.left_shift(np.uint16(1), source[order].astype(np.uint16)))
    best = np.argsort(first, kind="stable")[:size]
    return Retrieved(distinct[best].astype(np.int32), source[order][first[best]], source_bits[best])


def _by_linear(items: Items, history: History) -> I32:
    """Rows of the linear model with a score above 0 for the user's list, best first."""
    known = history.item >= 0
    if items.linear is None or not known.any():
        return np.empty(0, np.int32)
    row, score = items.linear.best(history.item[known], history.at[known])
    return _best(row, score, len(row))


def _weighted_engagements(history: History, at: float) -> tuple[I32, F64]:
    known = history.item >= 0
    age_s = np.maximum(at - history.at[known], 0.0)
    return history.item[known], engagement_weights(history.kind[known], age_s).astype(np.float64)


def _sum_by_row(rows: I32, amount: F64) -> tuple[I32, F64]:
    """Distinct rows, ascending, and the sum of amounts of each."""
    distinct, index = np.unique(rows, return_inverse=True)
    total: F64 = np.bincount(index, amount, minlength=len(distinct)).astype(np.float64)
    return distinct, total


def _items_of_top_categories(items: Items, item: I32, weight: F64) -> I32:
    """Rows, ascending, of all items in the categories with most of the user's engagement."""
    code, missing = items.category
    total = np.bincount(code[item], weight, minlength=missing + 1)[:missing]
    rows = [items.of_category(c) for c in np.argsort(-total, kind="stable")[:_TOP_CATEGORIES].tolist() if total[c] > 0]
    return np.sort(np.concatenate(rows)) if rows else np.empty(0, np.int32)


def _all_rows(items: Items) -> I32:
    return np.arange(len(items.catalogue), dtype=np.int32)


def _only_available(items: Items, rows: I32, at: float) -> I32:
    return rows[~(items.catalogue.available_from[rows] > at)]


def _best(rows: I32, score: F64, size: int, exclude: Bool | None = None) -> I32:
    """Rows with a score above 0, best first, ties by row; at most `size`. rows: ascending. exclude: a mask of rows."""
    selected = np.flatnonzero(score > 0 if exclude is None else (score > 0) & ~exclude)
    rows, score = rows[selected], score[selected]
    if len(rows) > size:
        cut = np.partition(score, len(rows) - size)[len(rows) - size]
        rows, score = rows[score >= cut], score[score >= cut]
    order = np.argsort(-score, kind="stable")
    return rows[order][:size].astype(np.int32)


def recent_popularity(items: Items, candidates: I32, at: float) -> F64:
    """float64, like `candidates`: decayed engagements, the recency-weighted popularity used by baselines."""
    out: F64 = items.state.of_items(candidates, at)[:, Kind.VIEW :, _POPULARITY_HALF_LIFE].sum(axis=1)
    return out
