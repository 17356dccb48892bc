"""What the ranker goes by: SHAP values of test rows, by feature and by family of features.

They are exact (Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees) and
LightGBM's own; the service explains a single answer by the cheaper paths of `ranker.trees`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.arrays import F32, F64
from features.moment import Feature
from ranker.booster import BoosterTrees

ROWS = 2000
"""Rows looked at: the mean of so many is good to a few percent, and LightGBM takes seconds for them."""
POINTS = 150
"""Rows of each feature whose values are kept one by one, to be drawn."""
DRAWN = 20
"""Features for which they are kept."""


def explain_model(model_text: str, rows: F32, features: Sequence[Feature], seed: int) -> dict[str, Any]:
    """What moved the scores of these rows: `rows`, `features` and `groups`, each strongest first.

    rows: float32[n, features]; at most `ROWS` of them are looked at, drawn by `seed`. features: of the columns, in
    order. Of a feature: `name`, `about`, `group`, `mean_abs`, the mean
    absolute SHAP value in points of score, and of the first `DRAWN` also `points`, up to `POINTS` pairs of SHAP value
    and the rank of the feature's value among the rows looked at, 0 to 1, None where it is missing. Of a group:
    `features`, how many, and `mean_abs` of their sum row by row.
    """
    rng = np.random.default_rng(seed)
    seen = rows if len(rows) <= ROWS else rows[np.sort(rng.choice(len(rows), ROWS, replace=False))]
    names = [f.name for f in features]
    shap = BoosterTrees(model_text, "SHAP values").contributions(seen)[:, :-1]
    of = np.array([f.group for f in features])
    size = np.abs(shap).mean(axis=0)
    strongest = np.argsort(-size, kind="stable").tolist()
    shown = np.sort(rng.choice(len(seen), min(POINTS, len(seen)), replace=False))
    groups = [
        {"group": g, "features": int((of == g).sum()), "mean_abs": float(np.abs(shap[:, of == g].sum(axis=1)).mean())}
        for g in dict.fromkeys(of.tolist())
    ]
    return {
        "rows": len(seen),
        "features": [
            {"name": names[k], "about": features[k].about, "group": str(of[k]), "mean_abs": float(size[k])}
            | ({"points": _points(shap[:, k], seen[:, k], shown)} if place < DRAWN else {})
            for place, k in enumerate(strongest)
        ],
        "groups": sorted(groups, key=lambda g: -float(str(g["mean_abs"]))),
    }


def _points(shap: F64, value: F32, shown: np.ndarray) -> list[list[float | None]]:
    known = np.sort(value[~np.isnan(value)])
    below, upto = (np.searchsorted(known, value[shown], side) for side in ("left", "right"))
    # Equal values share a rank, the middle one; a value all rows share is neither low nor high.
    rank = (below + upto) / max(2 * len(known), 1)
    missing = np.isnan(value[shown])
    return [
        [round(float(s), 5), None if none else round(float(r), 3)]
        for s, r, none in zip(shap[shown], rank, missing, strict=True)
    ]
