"""Cost of model age: models trained on logs that end some days earlier rank the test lists of tonight's run.

An aged model is evaluated as it would be served: its trees and item vectors are old, while item state and user
histories are up to date. All its windows end as many days earlier as its age, so it also learned from a shorter log.
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
    """Quality on the same test lists for model age 0 and each age in `days`.

    Each result has `days`, the number of `lists` the model learned from, `ndcg@10` with the interval `low` to `high`,
    and `lost`, the loss compared with age 0, paired by list, with `lost_low` to `lost_high`. base: an evaluated nightly
    run. Makes a run for each age, or reuses it if it exists. Raises DataError if the log is too short.
    """
    tested = base.artefacts.window_rows("test").lists
    targets, ages = base.inputs.targets(tested), (0, *sorted(set(days)))
    out: list[dict[str, Any]] = []
    fresh: F64 | None = None
    for k, age in enumerate(ages):
        aged = (_aged_night(base, age) if age else base).run_to("ranker")
        words = aged.replay.vocabulary_at(aged.windows.test)
        model = aged.sequence_models[-1] if aged.sequence_models else None
        score = comparison.score_with_vectors(aged.trees, aged.vectors, base.artefacts.replay, tested, words, model)
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
    """A nightly run whose test window starts `age` days before that of `base`, so all its training data is older."""
    inputs = base.inputs
    at = np.sort(query_groups.keys(inputs.lists()).at)
    before = int(np.searchsorted(at, base.artefacts.windows.test - age * DAY_S))
    until = min(len(at) - 1, int(before / (1 - inputs.config.windows.test)))
    if before < 10:
        raise DataError(f"the log has only {before} lists to train a model {age} days old: use smaller ages in --days")
    return Night(inputs.config, since=inputs.since, until=float(at[until]))
