"""What each group of features is worth: the ranker trained without it, and with it added to those before it.

So that what does not help can be removed. The two questions differ: without a group, others may stand in for it; added
early, it may only do what a later one does better. A group that is worth nothing either way is a candidate to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64
from features.table import Feature, groups, in_group
from offline.runtime import OnProgress
from ranker.metrics import Difference, paired_difference
from ranker.train import RankerConfig

if TYPE_CHECKING:
    # The night groups features as well, and tune knows the night.
    from offline.studies.tuning import Fold


@dataclass(frozen=True)
class Worth:
    """What one group is worth, in ndcg@10 on validation lists.

    features: how many it has. left_out: ndcg of the ranker trained on all others; what is set within the list from one
    of the group is left out with it, or the group would be there by another name. lost: full minus left_out. added:
    ndcg with this group and those before it. gained: added minus what it was before. Intervals are of the lists, for
    the mean over seeds: how much chance in training adds is not in them.
    """

    group: str
    features: int
    left_out: float
    lost: Difference
    added: float
    gained: Difference


@dataclass(frozen=True)
class Ablation:
    """The ndcg@10 of all features on validation, and the worth of each group that this table has features of."""

    full: float
    lists: int
    seeds: int
    groups: tuple[Worth, ...]


def ablate(
    fold: Fold, features: Sequence[Feature], config: RankerConfig, seeds: int = 3, on_progress: OnProgress | None = None
) -> Ablation:
    """Train without each group, and with the groups one after the other; each `seeds` times, the ndcg averaged.

    fold: rows to train on and later ones to judge by. features: of its columns, in order. on_progress: called with
    rankers trained and to train.
    """
    of, present, columns = np.array([f.group for f in features]), groups(features), [f.name for f in features]
    trained, total = 0, (2 * len(present)) * seeds

    def ndcg(kept: NDArray[np.bool_]) -> F64:
        nonlocal trained
        out = np.zeros(len(fold.judged))
        for s in range(seeds):
            seeded = config.model_copy(update={"seed": config.seed + s})
            out += fold.ndcg(seeded, columns, np.flatnonzero(kept)) / seeds
            trained += 1
            if on_progress is not None:
                on_progress(trained, total)
        return out

    # Before anything is known there is chance. The last step of the row is the full table.
    chance = fold.judge(np.zeros(fold.judged.rows))
    steps = [chance, *(ndcg(np.isin(of, present[: k + 1])) for k in range(len(present)))]
    full, user = steps[-1], fold.judged.user
    out = []
    for k, group in enumerate(present):
        # Alone it has nothing to be left out of.
        left = ndcg(~in_group(features, group)) if len(present) > 1 else chance
        out.append(
            Worth(
                group,
                int((of == group).sum()),
                float(left.mean()),
                paired_difference(full, left, user),
                float(steps[k + 1].mean()),
                paired_difference(steps[k + 1], steps[k], user),
            )
        )
    return Ablation(float(full.mean()), len(full), seeds, tuple(out))
