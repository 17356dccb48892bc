"""A model that `Trees` does not cover, scored by LightGBM itself: slower, right, and said so.

LightGBM brings pandas with it, so it is imported only where a release holds such a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ranker.model_text import ModelTextError, UncoveredModel
from ranker.trees import F64, Rows, Trees


class BoosterTrees:
    """The same contract as `Trees`, by `Booster.predict` on one thread. why: what `Trees` does not cover in it."""

    def __init__(self, model_text: str, why: str) -> None:
        """Raises ModelTextError where LightGBM is not installed or cannot read the text either."""
        try:
            import lightgbm
        except ImportError as e:
            raise ModelTextError(
                f"{why}; LightGBM would score it, but is not installed here: pip install lightgbm"
            ) from e
        try:
            self._booster: Any = lightgbm.Booster(model_str=model_text)
        except lightgbm.basic.LightGBMError as e:
            raise ModelTextError(f"{why}, and LightGBM cannot read it either: {e}") from e
        if self._booster.num_model_per_iteration() != 1:
            raise ModelTextError(f"{why}; a ranker has one output")
        self.why = why
        self._linear = "is_linear=1" in model_text
        self.names = tuple(self._booster.feature_name())

    @property
    def asked(self) -> frozenset[str]:
        """As `Trees.asked`."""
        return frozenset(name for name, n in zip(self.names, self._booster.feature_importance(), strict=True) if n > 0)

    def score(self, rows: Rows) -> F64:
        """As `Trees.score`."""
        return np.asarray(self._booster.predict(rows, raw_score=True, num_threads=1), np.float64)

    def contributions(self, rows: Rows) -> F64:
        """float64[n, features + 1]: SHAP values, the last column the bias.

        For linear leaves, which LightGBM does not attribute, zeros and the whole score as bias.
        """
        if not self._linear:
            return np.asarray(self._booster.predict(rows, pred_contrib=True, num_threads=1), np.float64)
        return np.column_stack([np.zeros((len(rows), len(self.names))), self.score(rows)])


def scorer(model_text: str) -> Trees | BoosterTrees:
    """`Trees` where they cover the model, else LightGBM. Raises ModelTextError for a text that is damaged."""
    try:
        return Trees.parse(model_text)
    except UncoveredModel as e:
        return BoosterTrees(model_text, str(e))
