"""Bonuses for rankers that were not trained on what a request asks for: its query, or the items it is for (its seeds).

A ranker trained on few or no searches would ignore the query. If the log has fewer than `LEARNED_FROM` searched lists,
the query features are therefore hidden in training, and a bonus for matching the query is added to the scores. The
bonus is measured in standard deviations of the scores in the list. A ranker that uses a query feature gets no bonus.
The same holds for seeds, their features and what goes with them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

MEANING, WORDS = "query_cosine", "query_match"
"""Features for how well a candidate matches the query: by embedding similarity, and by words."""
LEARNED_FROM = 200
"""Searched lists with a gain needed to train on the query features."""
_WORDS_WEIGHT = 6.0
_MEANING_WEIGHT = 0.5
"""Bonus in standard deviations of the list's scores: for matching all words rather than none, and per standard
deviation of the cosine."""
SEED_TEXT = "seed_text_max"
SEED_TABLES = ("seed_together_max", "seed_goes_with_max", "seed_following_max", "seed_co_occurrence")
"""Features of how much a candidate goes with the seeds: by text, and by baskets, sessions and users."""
_TABLE_WEIGHT = 12.0
_SEED_TEXT_WEIGHT = 0.5
"""Bonus in standard deviations of the list's scores: for having the largest weight of the list in every table that has
any, and per standard deviation of the cosine. Chosen on validation, see docs/decisions.md."""


def query_columns(names: Sequence[str]) -> list[int]:
    """Column numbers of the query features, which are missing without a query."""
    return [k for k, name in enumerate(names) if name.startswith("query_")]


def knows_queries(names: Sequence[str], used: Collection[str]) -> bool:
    """True if a ranker uses any query feature. names: of its features. used: of those that its trees split on."""
    return any(names[k] in used for k in query_columns(names))


def hide_query(rows: F32, names: Sequence[str], searched: int) -> F32:
    """Training rows, with all query features missing if there are fewer than `LEARNED_FROM` searched lists.

    rows: float32[n, features], returned unchanged or as a modified copy. searched: number of lists with a query and a
    gain.
    """
    return _hide(rows, query_columns(names), searched)


def query_bonus(rows: F32, names: Sequence[str], score: F64) -> F64:
    """Bonus for matching the query, float64[n], to add to the scores of one list. All 0 without a query.

    rows: float32[n, features]. score: float64[n], of the ranker.
    """
    cosine, match = (rows[:, names.index(name)].astype(np.float64) for name in (MEANING, WORDS))
    deviation = float(score.std()) or 1.0
    return deviation * (_WORDS_WEIGHT * np.nan_to_num(match) + _MEANING_WEIGHT * _standardize(cosine))


def seed_columns(names: Sequence[str]) -> list[int]:
    """Column numbers of the features of seeds, which are missing without any."""
    return [k for k, name in enumerate(names) if name.startswith("seed_")]


def knows_seeds(names: Sequence[str], used: Collection[str]) -> bool:
    """True if a ranker uses any feature of seeds, or has none of these."""
    columns = seed_columns(names)
    return not columns or any(names[k] in used for k in columns)


def hide_seeds(rows: F32, names: Sequence[str], lists: int) -> F32:
    """Training rows, with all features of seeds missing if there are fewer than `LEARNED_FROM` lists with seeds.

    rows: float32[n, features], returned unchanged or as a modified copy. lists: number of lists with seeds and a gain.
    """
    return _hide(rows, seed_columns(names), lists)


def seed_bonus(rows: F32, names: Sequence[str], score: F64) -> F64:
    """Bonus for going with the seeds, float64[n], to add to the scores of one list. All 0 without seeds.

    rows: float32[n, features]. score: float64[n], of the ranker.
    """
    if not len(score):
        return np.zeros(0)
    deviation = float(score.std()) or 1.0
    shares = []
    for name in SEED_TABLES:
        weight = np.nan_to_num(rows[:, names.index(name)].astype(np.float64))
        if (largest := weight.max()) > 0:
            shares.append(weight / largest)
    tables = np.mean(shares, axis=0) if shares else np.zeros(len(rows))
    text = _standardize(rows[:, names.index(SEED_TEXT)].astype(np.float64))
    bonus: F64 = deviation * (_TABLE_WEIGHT * tables + _SEED_TEXT_WEIGHT * text)
    return bonus


def with_bonuses(
    names: Sequence[str], used: Collection[str], rows: F32, score: F64, start: I64, searched: Bool, seeded: Bool
) -> F64:
    """float64[n]: scores of many lists with the bonuses that the service would add; the same array if none has any.

    names, used: as in `knows_queries`. score: float64[n], of the ranker. start: int64[lists + 1], rows of each list.
    searched, seeded: bool[lists], whether the request of the list has a query, and items.
    """
    if not (searched | seeded).any():
        return score
    searched = searched & (not knows_queries(names, used))
    seeded = seeded & (not knows_seeds(names, used))
    out = score if not (searched | seeded).any() else score.copy()
    for g in np.flatnonzero(searched | seeded).tolist():
        one = slice(start[g], start[g + 1])
        if searched[g]:
            out[one] += query_bonus(rows[one], names, out[one])
        if seeded[g]:
            out[one] += seed_bonus(rows[one], names, out[one])
    return out


def _hide(rows: F32, columns: list[int], lists: int) -> F32:
    """The rows with these columns missing if fewer than `LEARNED_FROM` lists have values there; else the same rows."""
    if lists >= LEARNED_FROM or not columns:
        return rows
    out = rows.copy()
    out[:, columns] = np.nan
    return out


def _standardize(values: F64) -> F64:
    """Values scaled to zero mean and unit standard deviation. Missing values, and all values if equal, become 0."""
    known = np.isfinite(values)
    if not known.any() or not (deviation := values[known].std()) > 0:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / deviation, 0.0)
