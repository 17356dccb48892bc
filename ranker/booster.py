"""Scoring with LightGBM itself, for models with linear leaves. Correct but several times slower.

LightGBM imports pandas, so it is imported only when a release contains such a model. LightGBM does not validate a
model: an index out of range or a cycle aborts or blocks the process. `read` therefore validates the text first, and
LightGBM gets `Model.plain_text`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from ranker.model_text import Model, ModelTextError, read
from ranker.trees import F64, Rows, Trees, checked

_LARGEST = float(np.finfo(np.float32).max)


class BoosterTrees:
    """The interface of `Trees` on top of `Booster.predict`, on one thread.

    why: the part of the model that `Trees` does not support.
    """

    def __init__(self, model: Model) -> None:
        """Raises ModelTextError if LightGBM is not installed or cannot read the text either."""
        self.why, self.names = model.uncovered, model.names
        self._model = model
        lightgbm = _lightgbm(self.why)
        try:
            self._booster: Any = lightgbm.Booster(model_str=model.plain_text())
        except lightgbm.basic.LightGBMError as e:
            raise ModelTextError(f"{self.why}. LightGBM cannot read this model either: {e}") from e

    @property
    def used_columns(self) -> frozenset[str]:
        """The features that any tree splits on or that any linear leaf multiplies."""
        columns = set(np.unique(self._model.forest.feature).tolist()) | self._model.linear_columns
        return frozenset(self.names[k] for k in columns)

    def score(self, rows: Rows) -> F64:
        """See `Trees.score`. Infinities, and values beyond the range of float32, count as the ends of that range: a
        multiple of infinity is not a score."""
        limited = np.clip(checked(rows, len(self.names)), -_LARGEST, _LARGEST)
        return np.asarray(self._booster.predict(limited, raw_score=True, num_threads=1), np.float64)

    def contributions(self, rows: Rows) -> F64:
        """float64[n, features + 1]: 0 for the features, and the score as the bias: paths do not explain linear
        leaves."""
        return np.column_stack([np.zeros((len(rows), len(self.names))), self.score(rows)])


def scorer(model_text: str) -> Trees | BoosterTrees:
    """`Trees` if they support the model, otherwise `BoosterTrees`. Raises ModelTextError for a damaged text."""
    model = read(model_text)
    return BoosterTrees(model) if model.uncovered else Trees.of(model.names, model.forest)


def shap_values(model_text: str, rows: Rows) -> F64:
    """float64[n, features + 1]: LightGBM's SHAP values; the last column is the bias.

    model_text: a model trained here. LightGBM reads its node statistics, which are not validated. Raises ModelTextError
    for a damaged text and for linear leaves, which have no SHAP values.
    """
    if read(model_text).linear is not None:
        raise ModelTextError("is_linear=1: LightGBM has no SHAP values for linear leaves; train with linear_tree=false")
    booster = _lightgbm("SHAP values").Booster(model_str=model_text)
    return np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1), np.float64)


def _lightgbm(why: str) -> ModuleType:
    try:
        import lightgbm
    except ImportError as e:
        raise ModelTextError(f"{why}. This needs LightGBM, which is not installed; run: pip install lightgbm") from e
    module: ModuleType = lightgbm
    return module
