"""Explanations of scores: feature contributions in the words of `features.table`, and similar items of the history.

Features that share their reason texts form a family: a rate over several half-lives, its rank in the list. Each family
gives at most one reason per item, with the sign of its total contribution, so that an explanation neither repeats nor
contradicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I64, Bool
from features.context import NO_CONTEXT, Context
from features.history import History
from features.log import KINDS
from features.table import WITHIN_LIST, Feature
from features.text.vectors import Vectors
from serving.ranking.ranking import Ranking


class Reason(NamedTuple):
    """One reason for a score.

    feature: the strongest feature of its family. contribution: of the whole family. text: the reason in plain words.
    """

    feature: str
    contribution: float
    text: str


class ScoreParts(NamedTuple):
    """Additive parts of a score: base + contributions of the reasons + others. reasons: largest magnitude first."""

    base: float
    reasons: list[Reason]
    others: float


class Nearest(NamedTuple):
    """The most similar item of a user's history. row: its catalogue row. event: the user's latest event with it."""

    row: int
    cosine: float
    event: str


class Explainer:
    """Explains the scores of a model with these features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        families: dict[object, int] = {}
        # All query features form one family: two reasons about the same search would be redundant.
        keys = ["query" if f.group == "query" else f.reasons for f in features]
        self._family = np.array(
            [-1 if key is None else families.setdefault(key, len(families)) for key in keys], np.int64
        )
        self._n_families = len(families)
        self._of_history = np.array([f.of_history for f in features], np.bool_)

    def explain(
        self, ranking: Ranking, contributions: F64, history: History, most: int, context: Context = NO_CONTEXT
    ) -> list[ScoreParts]:
        """The parts of each score of a ranking, with at most `most` reasons each.

        contributions: float64[k, features + 1], SHAP values of `ranking.rows` and the base. Features with a missing
        value are never reasons, nor are user features for a user without history; both count towards `others`.
        """
        is_guest = not (len(history.item) or len(history.shown_item))
        eligible = (self._family >= 0) & ~(self._of_history & is_guest)
        of_seeds = np.zeros(len(ranking.rows)) if ranking.seed_bonus is None else ranking.seed_bonus
        return [
            self._parts(row, share, (float(of_query), float(of_seed)), eligible, most, context)
            for row, share, of_query, of_seed in zip(
                ranking.rows, contributions, ranking.query_bonus, of_seeds, strict=True
            )
        ]

    def _parts(
        self, row: F32, share: F64, bonus: tuple[float, float], eligible: Bool, most: int, context: Context
    ) -> ScoreParts:
        """bonus: for the query, and for the items of the request."""
        used = np.flatnonzero(eligible & ~np.isnan(row) & (share[:-1] != 0))
        family_sum = np.bincount(self._family[used], share[used], minlength=self._n_families)
        reasons = [
            self._reason(f, float(row[f]), float(family_sum[self._family[f]]), context)
            for f in self._strongest(used, share)
            if family_sum[self._family[f]] != 0
        ]
        if bonus[0]:
            reasons.append(Reason("query", bonus[0], _matches(bonus[0], context.query)))
        if bonus[1]:
            reasons.append(Reason("items", bonus[1], "goes with this" if bonus[1] > 0 else "does not go with this"))
        reasons = sorted(reasons, key=lambda r: -abs(r.contribution))[:most]
        explained = sum(r.contribution for r in reasons)
        return ScoreParts(float(share[-1]), reasons, float(share[:-1].sum()) + sum(bonus) - explained)

    def _strongest(self, used: I64, share: F64) -> list[int]:
        """The feature with the largest contribution of each family."""
        strongest: dict[int, int] = {}
        for f in used[np.argsort(-np.abs(share[used]), kind="stable")].tolist():
            strongest.setdefault(int(self._family[f]), f)
        return list(strongest.values())

    def _reason(self, f: int, value: float, contribution: float, context: Context) -> Reason:
        feature = self._features[f]
        if feature.group == "query":
            return Reason(feature.name, contribution, _matches(contribution, context.query))
        assert feature.reasons is not None
        if feature.group == WITHIN_LIST:  # the value is a rank or a difference: 0 has no meaning of its own
            text = f"{feature.reasons.of(np.nan, contribution)}, compared with this list"
        else:
            text = feature.reasons.of(value, contribution)
        return Reason(feature.name, contribution, text)


def _matches(contribution: float, query: str) -> str:
    return f'{"matches" if contribution > 0 else "does not match"} "{query}"'


def nearest_engaged(vectors: Vectors, ranking: Ranking, history: History) -> list[Nearest | None]:
    """For each item of a ranking, the most similar other item of the user's history; None if there is none."""
    known = history.item >= 0
    # Histories are newest first, so the first occurrence of an item is the latest engagement with it.
    engaged, first = np.unique(history.item[known], return_index=True)
    if not len(engaged):
        return [None] * len(ranking.item)
    kind = history.kind[known][first]
    cosine = vectors.cosines(ranking.item, engaged)
    cosine[np.isnan(cosine) | (ranking.item[:, None] == engaged)] = -np.inf
    best = cosine.argmax(axis=1)
    nearest = zip(best.tolist(), cosine[np.arange(len(best)), best].tolist(), strict=True)
    return [Nearest(int(engaged[k]), c, KINDS[kind[k]]) if c > -np.inf else None for k, c in nearest]
