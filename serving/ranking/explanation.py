"""Explanation of a score: what it is made of, in the words of `features.table`, and the item of the history it is near.

Each family of features (the same reasons: one rate over several half-lives, say) gives at most one reason a row, by the
sign of its sum, so that no row states a thing and its opposite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from features.arrays import F32, F64, I64, Bool
from features.context import NO_CONTEXT, Context
from features.history import History
from features.log import KINDS
from features.table import Feature, personal
from features.text.vectors import Vectors
from serving.ranking.ranking import Ranking


class Reason(NamedTuple):
    """Part of a score. feature: the strongest of its family. contribution: of the whole family. text: for people."""

    feature: str
    contribution: float
    text: str


class ScoreParts(NamedTuple):
    """A score taken apart: base + contributions of the reasons + others. reasons: strongest first."""

    base: float
    reasons: list[Reason]
    others: float


class Nearest(NamedTuple):
    """The item of a user's history most similar to another. row: of the catalogue. event: how the user met it last."""

    row: int
    cosine: float
    event: str


class Explainer:
    """Reasons for the scores of one release's features."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = tuple(features)
        families: dict[object, int] = {}
        # All of a query is one family: two texts about the same search would be one reason too many.
        keys = ["query" if f.group == "query" else f.reasons for f in features]
        self._family = np.array(
            [-1 if key is None else families.setdefault(key, len(families)) for key in keys], np.int64
        )
        self._families = len(families)
        self._personal = personal(features)

    def explain(
        self, ranking: Ranking, contributions: F64, history: History, most: int, context: Context = NO_CONTEXT
    ) -> list[ScoreParts]:
        """The parts of each score of a ranking, with at most `most` reasons.

        contributions: float64[k, features + 1], SHAP values and the base, of `ranking.rows`. A feature whose value is
        missing is no reason, nor is one about the user for somebody without history; both count among `others`.
        """
        is_guest = not (len(history.item) or len(history.shown_item))
        listed = (self._family >= 0) & ~(self._personal & is_guest)
        return [
            self._parts(row, share, float(bonus), listed, most, context)
            for row, share, bonus in zip(ranking.rows, contributions, ranking.query_bonus, strict=True)
        ]

    def _parts(self, row: F32, share: F64, bonus: float, listed: Bool, most: int, context: Context) -> ScoreParts:
        used = np.flatnonzero(listed & ~np.isnan(row) & (share[:-1] != 0))
        total = np.bincount(self._family[used], share[used], minlength=self._families)
        reasons = [
            self._reason(f, float(row[f]), float(total[self._family[f]]), context)
            for f in self._strongest(used, share)
            if total[self._family[f]] != 0
        ]
        if bonus:
            reasons.append(Reason("query", bonus, _matches(bonus, context.query)))
        reasons = sorted(reasons, key=lambda r: -abs(r.contribution))[:most]
        said = sum(r.contribution for r in reasons)
        return ScoreParts(float(share[-1]), reasons, float(share[:-1].sum()) + bonus - said)

    def _strongest(self, used: I64, share: F64) -> list[int]:
        """Of each family, the feature that contributes most."""
        strongest: dict[int, int] = {}
        for f in used[np.argsort(-np.abs(share[used]), kind="stable")].tolist():
            strongest.setdefault(int(self._family[f]), f)
        return list(strongest.values())

    def _reason(self, f: int, value: float, contribution: float, context: Context) -> Reason:
        feature = self._features[f]
        if feature.group == "query":
            return Reason(feature.name, contribution, _matches(contribution, context.query))
        assert feature.reasons is not None
        return Reason(feature.name, contribution, feature.reasons.of(value, contribution))


def _matches(contribution: float, query: str) -> str:
    return f'{"matches" if contribution > 0 else "does not match"} "{query}"'


def nearest_engaged(vectors: Vectors, ranking: Ranking, history: History) -> list[Nearest | None]:
    """For each item of a ranking the most similar other item of the user's history; None where there is none."""
    known = history.item >= 0
    # The first of equals is the newest engagement, as histories are newest first.
    engaged, first = np.unique(history.item[known], return_index=True)
    if not len(engaged):
        return [None] * len(ranking.item)
    kind = history.kind[known][first]
    cosine = vectors.cosines(ranking.item, engaged)
    cosine[np.isnan(cosine) | (ranking.item[:, None] == engaged)] = -np.inf
    best = cosine.argmax(axis=1)
    found = zip(best.tolist(), cosine[np.arange(len(best)), best].tolist(), strict=True)
    return [Nearest(int(engaged[k]), c, KINDS[kind[k]]) if c > -np.inf else None for k, c in found]
