"""Offline evaluation of the ranker and of simple baselines.

`systems` compares rankings of the same lists, with paired intervals. `slices` splits the test by user, item and column.
`runs` reads rankings of other systems.
`outcomes` checks probabilities, and `objectives` what a list would earn.
`off_policy` estimates the gain of rankings that were not shown. `explanation` measures feature importance. `report`
writes the results as a page.
"""

from __future__ import annotations

from offline.evaluation import explanation, facts, objectives, off_policy, outcomes, report, runs, slices, systems
from offline.evaluation.baselines import BASELINES, DEPTH, Baselines, order_of
from offline.evaluation.outcomes import ScoredLists, served_scores
from offline.evaluation.shadow import SHADOW_METRIC, compare_shadow, to_json
from offline.evaluation.skew import compare_rows
from offline.evaluation.slices import check_columns
from offline.evaluation.systems import PRIMARY

__all__ = [
    "BASELINES",
    "DEPTH",
    "PRIMARY",
    "SHADOW_METRIC",
    "Baselines",
    "ScoredLists",
    "check_columns",
    "compare_rows",
    "compare_shadow",
    "explanation",
    "facts",
    "objectives",
    "off_policy",
    "order_of",
    "outcomes",
    "report",
    "runs",
    "served_scores",
    "slices",
    "systems",
    "to_json",
]
