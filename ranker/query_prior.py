"""Query match bonus for rankers that were not trained on searches.

A ranker trained on few or no searches would ignore the query. If the log has fewer than `LEARNED_FROM` searched lists,
the query features are therefore hidden in training, and a bonus for matching the query is added to the scores. The
bonus is measured in standard deviations of the scores in the list. A ranker that uses a query feature gets no bonus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

MEANING, WORDS = "query_cosine", "query_match"
"""Features for how well a candidate matches the query: by embedding similarity, and by words."""
LEARNED_FROM = 200
"""Searched lists with a gain needed to train on the query features."""
_WORDS_WEIGHT = 6.0
_MEANING_WEIGHT = 0.5
"""Bonus in standard deviations of the list's scores: for matching all words rather than none, and per standard
deviation of the cosine."""


def query_columns(names: Sequence[str]) -> list[int]:
    """Column numbers of the query features, which are missing without a query."""
    return [k for k, name in enumerate(names) if name.startswith("query_")]


def hide_query(rows: F32, names: Sequence[str], searched: int) -> F32:
    """Training rows, with all query features missing if there are fewer than `LEARNED_FROM` searched lists.

    rows: float32[n, features], returned unchanged or as a modified copy. searched: number of lists with a query and a
    gain.
    """
    if searched >= LEARNED_FROM or not (columns := query_columns(names)):
        return rows
    out = rows.copy()
    out[:, columns] = np.nan
    return out


def query_bonus(rows: F32, names: Sequence[str], score: F64) -> F64:
    """Bonus for matching the query, float64[n], to add to the scores of one list. All 0 without a query.

    rows: float32[n, features]. score: float64[n], of the ranker.
    """
    cosine, match = (rows[:, names.index(name)].astype(np.float64) for name in (MEANING, WORDS))
    deviation = float(score.std()) or 1.0
    return deviation * (_WORDS_WEIGHT * np.nan_to_num(match) + _MEANING_WEIGHT * _standardize(cosine))


def _standardize(values: F64) -> F64:
    """Values scaled to zero mean and unit standard deviation. Missing values, and all values if equal, become 0."""
    known = np.isfinite(values)
    if not known.any() or not (deviation := values[known].std()) > 0:
        return np.zeros(len(values))
    return np.where(known, (values - values[known].mean()) / deviation, 0.0)
