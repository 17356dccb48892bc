"""Experiments: what served lists and events of the data set say about arms.

`plan` says what an experiment could find, and how long it takes. `read` and `analyse` give the result so far: sample
ratio, always-valid intervals, guardrails and a verdict. `page` writes it as HTML, and `decide` says what to change.
Earnings share `Prices`, the revenue and margin of purchases, and `UserMerges`, the users after merges.
"""

from __future__ import annotations

from offline.experiments import page
from offline.experiments.analysis import Comparison, Report, analyse, harmed, to_json
from offline.experiments.design import Design, Observed, Window
from offline.experiments.lookups import UserMerges, id_hashes, read_merges
from offline.experiments.metrics import METRICS
from offline.experiments.money import Prices
from offline.experiments.planning import POWER, Plan, milestones, plan
from offline.experiments.reading import read, read_all
from offline.experiments.shipping import Shipment, decide
from offline.experiments.statistics import (
    ALPHA,
    Interval,
    Moments,
    SampleRatio,
    add_days,
    contrast,
    estimate,
    interval,
    sample_ratio,
    tuned_target,
)

__all__ = [
    "ALPHA",
    "METRICS",
    "POWER",
    "Comparison",
    "Design",
    "Interval",
    "Moments",
    "Observed",
    "Plan",
    "Prices",
    "Report",
    "SampleRatio",
    "Shipment",
    "UserMerges",
    "Window",
    "add_days",
    "analyse",
    "contrast",
    "decide",
    "estimate",
    "harmed",
    "id_hashes",
    "interval",
    "milestones",
    "page",
    "plan",
    "read",
    "read_all",
    "read_merges",
    "sample_ratio",
    "to_json",
    "tuned_target",
]
