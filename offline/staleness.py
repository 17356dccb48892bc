"""What age costs: models made of logs that end some days earlier order tonight's test lists, as those would be served.

An aged model keeps its trees and its item vectors; item state and users' lists are up to date for all, as they are in
service. Its windows end as many days before the test begins as it is old, so it also learnt from a shorter log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.log import F64
from offline import evaluate, gate, lists
from offline.config import Config
from offline.nightly import Night
from offline.progress import OnProgress
from offline.quarantine import DataError
from ranker.metrics import intervals, paired_difference
from ranker.trees import Trees

DAY_S = 86400.0


def staleness(base: Night, days: Sequence[int], on_progress: OnProgress | None = None) -> list[dict[str, Any]]:
    """For age 0 and each of `days`: `days`, `lists` it learnt from, `ndcg@10` with `low` and `high`, and `lost` against
    age 0 with `lost_low` and `lost_high`, paired by list.

    base: a night that is evaluated. Makes, or finds, a run for each age. Raises DataError where the log is too short.
    """
    _, tested, _ = base.part("test")
    targets = base.targets(tested)
    out: list[dict[str, Any]] = []
    fresh: F64 | None = None
    for k, age in enumerate((0, *sorted(set(days)))):
        aged = base if not age else _aged(base, age)
        aged.run.do(aged.steps_to("ranker"))
        trees = Trees.parse(aged.run.file("ranker.txt").read_text("utf-8"))
        value = gate.ndcg(gate.replayed_score(trees, aged.vectors, base.replay, tested), tested, targets)
        fresh = value if fresh is None else fresh
        mean, low, high = (float(x[0]) for x in intervals(value[:, None], tested.user, level=evaluate.LEVEL))
        lost = paired_difference(fresh, value, tested.user, level=evaluate.LEVEL)
        out.append(
            {
                "days": age,
                "lists": aged.json("ranker.json")["lists"],
                evaluate.PRIMARY: mean,
                "low": low,
                "high": high,
                "lost": lost.difference,
                "lost_low": lost.low,
                "lost_high": lost.high,
            }
        )
        if on_progress:
            on_progress(k + 1, len(set(days)) + 1)
    return out


def _aged(base: Night, age: int) -> Night:
    """The night whose test begins `age` days before that of `base`: everything it learns from is that much older."""
    config: Config = base.config
    at = np.sort(lists.bare(base.asked()).at)
    before = int(np.searchsorted(at, base.windows.test - age * DAY_S))
    until = min(len(at) - 1, int(before / (1 - config.windows.test)))
    if before < 10:
        raise DataError(f"the log has {before} lists before a model of {age} days would begin: ask for fewer --days")
    return Night(config, None, since=base.since, until=float(at[until]))
