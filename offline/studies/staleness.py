"""What age costs: models made of logs that end some days earlier order tonight's test lists, as those would be served.

An aged model keeps its trees and its item vectors; item state and users' lists are up to date for all, as they are in
service. Its windows end as many days before the test begins as it is old, so it also learnt from a shorter log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.arrays import F64
from offline.data import query_groups
from offline.evaluation import systems
from offline.nightly import Night, comparison
from offline.runtime import DataError, OnProgress
from ranker.metrics import intervals, paired_difference

DAY_S = 86400.0


def measure_staleness(base: Night, days: Sequence[int], on_progress: OnProgress | None = None) -> list[dict[str, Any]]:
    """Quality by age, for age 0 and each of `days`, on the same test lists.

    Each row: `days`, `lists` it learned from, `ndcg@10` with `low` and `high`, and `lost` against age 0 with `lost_low`
    and `lost_high`, paired by list. base: a night that is evaluated. Makes, or finds, a run for each age. Raises
    DataError where the log is too short.
    """
    tested = base.artefacts.window_rows("test").lists
    targets, ages = base.inputs.targets(tested), (0, *sorted(set(days)))
    out: list[dict[str, Any]] = []
    fresh: F64 | None = None
    for k, age in enumerate(ages):
        aged = (_aged_night(base, age) if age else base).run_to("ranker")
        score = comparison.score_with_vectors(aged.trees, aged.vectors, base.artefacts.replay, tested)
        value = comparison.ndcg(score, tested, targets)
        fresh = value if fresh is None else fresh
        mean, low, high = (float(x[0]) for x in intervals(value[:, None], tested.user, level=systems.LEVEL))
        lost = paired_difference(fresh, value, tested.user, level=systems.LEVEL)
        out.append(
            {
                "days": age,
                "lists": aged.json("ranker.json")["lists"],
                systems.PRIMARY: mean,
                "low": low,
                "high": high,
                "lost": lost.difference,
                "lost_low": lost.low,
                "lost_high": lost.high,
            }
        )
        if on_progress:
            on_progress(k + 1, len(ages))
    return out


def _aged_night(base: Night, age: int) -> Night:
    """The night whose test begins `age` days before that of `base`: everything it learns from is that much older."""
    inputs = base.inputs
    at = np.sort(query_groups.keys(inputs.lists()).at)
    before = int(np.searchsorted(at, base.artefacts.windows.test - age * DAY_S))
    until = min(len(at) - 1, int(before / (1 - inputs.config.windows.test)))
    if before < 10:
        raise DataError(f"the log has {before} lists before a model of {age} days would begin: ask for fewer --days")
    return Night(inputs.config, since=inputs.since, until=float(at[until]))
