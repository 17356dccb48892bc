"""Feature-group ablation: the ranker trained without each group, and with the groups added one after the other.

It shows which features can be removed. The two measurements differ. Without a group, others may compensate for it; and
a group that is added early may only contribute what a later one contributes better. A group without a gain in either
measurement is a candidate for removal.
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
    # Only for annotations: `tuning` imports the nightly run, which ablation does not need.
    from offline.studies.tuning import Fold


@dataclass(frozen=True)
class GroupImportance:
    """Contribution of one feature group to ndcg@10 on validation lists.

    features: number of features in the group. left_out: ndcg of the ranker trained on all other groups. Within-list
    features that are computed from the group are left out too, since they carry the same information. lost: full minus
    left_out. added: ndcg with this group and the groups before it. gained: added minus the ndcg without this group.
    The intervals are over lists, for the mean over seeds; they do not include the variance of training.
    """

    group: str
    features: int
    left_out: float
    lost: Difference
    added: float
    gained: Difference


@dataclass(frozen=True)
class Ablation:
    """Validation ndcg@10 with all features, and the importance of each feature group in the table."""

    full: float
    lists: int
    seeds: int
    groups: tuple[GroupImportance, ...]


def ablate(
    fold: Fold, features: Sequence[Feature], config: RankerConfig, seeds: int = 3, on_progress: OnProgress | None = None
) -> Ablation:
    """Train without each group, and with the groups added one by one. Each ndcg is a mean over `seeds` rankers.

    fold: rows to train on, and later ones to evaluate on. features: of its columns, in order. on_progress: called with
    the number of rankers trained and the total.
    """
    group_of, present, columns = np.array([f.group for f in features]), groups(features), [f.name for f in features]
    trained, total = 0, (2 * len(present)) * seeds

    def ndcg(kept: NDArray[np.bool_]) -> F64:
        nonlocal trained
        out = np.zeros(len(fold.held_out))
        for s in range(seeds):
            seeded = config.model_copy(update={"seed": config.seed + s})
            out += fold.ndcg(seeded, columns, np.flatnonzero(kept)) / seeds
            trained += 1
            if on_progress is not None:
                on_progress(trained, total)
        return out

    # The steps go from a random order to all features.
    chance = fold.ndcg_of(np.zeros(fold.held_out.rows))
    steps = [chance, *(ndcg(np.isin(group_of, present[: k + 1])) for k in range(len(present)))]
    full, user = steps[-1], fold.held_out.user
    out = []
    for k, group in enumerate(present):
        # Without the only group there are no features to train on.
        left_out = ndcg(~in_group(features, group)) if len(present) > 1 else chance
        out.append(
            GroupImportance(
                group,
                int((group_of == group).sum()),
                float(left_out.mean()),
                paired_difference(full, left_out, user),
                float(steps[k + 1].mean()),
                paired_difference(steps[k + 1], steps[k], user),
            )
        )
    return Ablation(float(full.mean()), len(full), seeds, tuple(out))
