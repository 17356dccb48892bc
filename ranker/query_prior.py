"""What a query is worth to a ranker that has learned nothing of queries: decided here and nowhere else.

A ranker learns what its log shows. Of a log without searches, or with a few, it would answer a query with the order it
would have had anyway. So below `LEARNED_FROM` searched lists the query's columns are kept from it, and what it then
answers is moved by how well each candidate matches, in deviations of the list's scores. A ranker that asks for one of
the columns is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MEANING, WORDS = "query_cosine", "query_match"
"""The columns that say how well a candidate matches: by meaning, and word by word."""
LEARNED_FROM = 200
"""Searched lists with a click from which the columns are learned."""
_BY_WORDS = 6.0
_BY_MEANING = 0.5
"""Deviations of the list's scores: for all words against none, and for a deviation of the cosine."""


def query_columns(names: Sequence[str]) -> list[int]:
    """The columns that a query alone fills."""
    return [k for k, name in enumerate(names) if name.startswith("query_")]


def hide_query(rows: F32, names: Sequence[str], searched: int) -> F32:
    """The rows to learn from: with the query's columns missing throughout where too few lists were searched for.

    rows: float32[n, features], returned as they are or as a copy. searched: lists with a query and a gain.
    """
    if searched >= LEARNED_FROM or not (columns := query_columns(names)):
        return rows
    out = rows.copy()
    out[:, columns] = np.nan
    return out


def query_bonus(rows: F32, names: Sequence[str], score: F64) -> F64:
    """float64[n]: what matching the query adds to each score of one list; 0 throughout where there was no query.

    rows: float32[n, features]. score: float64[n], of the ranker.
    """
    cosine, match = (rows[:, names.index(name)].astype(np.float64) for name in (MEANING, WORDS))
    spread = float(score.std()) or 1.0
    return spread * (_BY_WORDS * np.nan_to_num(match) + _BY_MEANING * _standardize(cosine))


def _standardize(values: F64) -> F64:
    """Zero mean and unit deviation; missing, and values that are all alike, at the mean."""
    known = np.isfinite(values)
    if not known.any() or not (deviation := values[known].std()) > 0:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / deviation, 0.0)
