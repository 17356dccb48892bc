"""Scoring with LightGBM itself, for models that `Trees` does not support. Correct but several times slower.

LightGBM imports pandas, so it is imported only when a release contains such a model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ranker.model_text import ModelTextError, UncoveredModel
from ranker.trees import F64, Rows, Trees


class BoosterTrees:
    """The interface of `Trees` on top of `Booster.predict`, on one thread.

    why: the part of the model that `Trees` does not support.
    """

    def __init__(self, model_text: str, why: str) -> None:
        """Raises ModelTextError if LightGBM is not installed or cannot read the text either."""
        try:
            import lightgbm
        except ImportError as e:
            raise ModelTextError(
                f"{why}. Scoring this model needs LightGBM, which is not installed; run: pip install lightgbm"
            ) from e
        try:
            self._booster: Any = lightgbm.Booster(model_str=model_text)
        except lightgbm.basic.LightGBMError as e:
            raise ModelTextError(f"{why}. LightGBM cannot read this model either: {e}") from e
        if self._booster.num_model_per_iteration() != 1:
            raise ModelTextError(f"{why}. A ranker must have one output")
        self.why = why
        self._linear = "is_linear=1" in model_text
        self.names = tuple(self._booster.feature_name())

    @property
    def used_columns(self) -> frozenset[str]:
        """See `Trees.used_columns`."""
        return frozenset(name for name, n in zip(self.names, self._booster.feature_importance(), strict=True) if n > 0)

    def score(self, rows: Rows) -> F64:
        """See `Trees.score`."""
        return np.asarray(self._booster.predict(rows, raw_score=True, num_threads=1), np.float64)

    def contributions(self, rows: Rows) -> F64:
        """float64[n, features + 1]: SHAP values; the last column is the bias.

        LightGBM has no SHAP values for linear leaves. For such a model the features get 0 and the bias is the score.
        """
        if not self._linear:
            return np.asarray(self._booster.predict(rows, pred_contrib=True, num_threads=1), np.float64)
        return np.column_stack([np.zeros((len(rows), len(self.names))), self.score(rows)])


def scorer(model_text: str) -> Trees | BoosterTrees:
    """`Trees` if they support the model, otherwise `BoosterTrees`. Raises ModelTextError for a damaged text."""
    try:
        return Trees.parse(model_text)
    except UncoveredModel as e:
        return BoosterTrees(model_text, str(e))
