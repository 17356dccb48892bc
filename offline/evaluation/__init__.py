"""Evaluation: how good an order is, for whom, and why.

`systems` compares orders on the same lists with paired intervals; `slices` says for whom; `off_policy` estimates what
an order would have been worth; `explanation` what the ranker goes by; `report` writes it all as a page.
"""

from __future__ import annotations

from offline.evaluation import explanation, facts, off_policy, report, slices, systems
from offline.evaluation.baselines import BASELINES, DEPTH, Baselines, order_of
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
    "check_columns",
    "compare_rows",
    "compare_shadow",
    "explanation",
    "facts",
    "off_policy",
    "order_of",
    "report",
    "slices",
    "systems",
    "to_json",
]
