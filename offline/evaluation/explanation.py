"""Feature importance: SHAP values of test rows, by feature and by feature group.

LightGBM computes the exact values (Lundberg et al. 2020, From local explanations to global understanding with
explainable AI for trees). The service explains a single answer with the cheaper paths of `ranker.trees`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.arrays import F32, F64
from features.moment import Feature
from ranker.booster import shap_values

ROWS = 2000
"""Sampled rows. Their mean is accurate to a few percent, and LightGBM takes seconds for them."""
POINTS = 150
"""Rows of each feature whose single values are kept for the plot."""
DRAWN = 20
"""Features whose points are kept."""


def explain_model(model_text: str, rows: F32, features: Sequence[Feature], seed: int) -> dict[str, Any]:
    """Importance of each feature for the scores of these rows: `rows`, `features` and `groups`, strongest first.

    rows: float32[n, features], of which at most `ROWS` are sampled with `seed`. features: the features of the columns,
    in order.

    Each feature has `name`, `about`, `group` and `mean_abs`, the mean absolute SHAP value in score units. The first
    `DRAWN` features also have `points`, up to `POINTS` pairs of a SHAP value and the rank of the feature's value among
    the sampled rows, from 0 to 1, or None where the value is missing. Each group has `group`, `features`, the number of
    its features, and `mean_abs` of their sum per row.
    """
    rng = np.random.default_rng(seed)
    sample = rows if len(rows) <= ROWS else rows[np.sort(rng.choice(len(rows), ROWS, replace=False))]
    names = [f.name for f in features]
    shap = shap_values(model_text, sample)[:, :-1]
    group_of = np.array([f.group for f in features])
    mean_abs = np.abs(shap).mean(axis=0)
    strongest = np.argsort(-mean_abs, kind="stable").tolist()
    shown = np.sort(rng.choice(len(sample), min(POINTS, len(sample)), replace=False))
    groups = [
        {
            "group": g,
            "features": int((group_of == g).sum()),
            "mean_abs": float(np.abs(shap[:, group_of == g].sum(axis=1)).mean()),
        }
        for g in dict.fromkeys(group_of.tolist())
    ]
    return {
        "rows": len(sample),
        "features": [
            {"name": names[k], "about": features[k].about, "group": str(group_of[k]), "mean_abs": float(mean_abs[k])}
            | ({"points": _points(shap[:, k], sample[:, k], shown)} if place < DRAWN else {})
            for place, k in enumerate(strongest)
        ],
        "groups": sorted(groups, key=lambda g: -float(str(g["mean_abs"]))),
    }


def _points(shap: F64, value: F32, shown: np.ndarray) -> list[list[float | None]]:
    """[SHAP value, rank of the feature's value] of the rows `shown`."""
    known = np.sort(value[~np.isnan(value)])
    below, up_to = (np.searchsorted(known, value[shown], side) for side in ("left", "right"))
    # Equal values share their middle rank, so that a constant feature is neither low nor high.
    rank = (below + up_to) / max(2 * len(known), 1)
    missing = np.isnan(value[shown])
    return [
        [round(float(s), 5), None if is_missing else round(float(r), 3)]
        for s, r, is_missing in zip(shap[shown], rank, missing, strict=True)
    ]
