"""Statistics of experiments, as functions of arrays: sums over units, estimates, intervals, and the sample ratio.

Nothing here knows of files, users or metrics.
"""

from __future__ import annotations

from offline.experiments.statistics.accumulation import add_days
from offline.experiments.statistics.intervals import (
    ALPHA,
    Interval,
    best_ratio,
    interval,
    multiplier,
    sequential_p,
    tuned_target,
)
from offline.experiments.statistics.moments import UNIT, Contrast, Estimate, Moments, contrast, estimate
from offline.experiments.statistics.sample_ratio import LEVEL, SampleRatio, log_bayes_factor, sample_ratio

__all__ = [
    "ALPHA",
    "LEVEL",
    "UNIT",
    "Contrast",
    "Estimate",
    "Interval",
    "Moments",
    "SampleRatio",
    "add_days",
    "best_ratio",
    "contrast",
    "estimate",
    "interval",
    "log_bayes_factor",
    "multiplier",
    "sample_ratio",
    "sequential_p",
    "tuned_target",
]
