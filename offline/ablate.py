"""What each group of features is worth: the ranker trained without it, and with it added to those before it.

So that what does not help can be removed. The two questions differ: without a group, others may stand in for it; added
early, it may only do what a later one does better. A group that is worth nothing either way is a candidate to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from features.log import F64
from features.table import FEATURES
from offline.progress import OnProgress
from ranker.metrics import Difference, paired_difference
from ranker.train import RankerConfig

if TYPE_CHECKING:
    # The night groups features as well, and tune knows the night.
    from offline.tune import Fold

WITHIN_LIST = ("_rank", "_over_mean")
"""Endings of what sets another feature against the list; its group is `within-list`."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "popularity": (
        "item_impressions_",
        "item_clicks_",
        "item_purchases_",
        "item_click_rate_",
        "item_views_",
        "item_carts_",
        "item_purchase_rate",
        "item_prior",
        "item_trend",
        "category_click_rate",
        "item_age",
    ),
    "price": ("item_price", "price_to_habit"),
    "co-occurrence": ("co_occurrence",),
    "interest text": ("text_",),
    "query": ("query_",),
    "affinity": ("category_share", "category_surprise", "brand_", "tag_", "taste_"),
    "repeats": ("repeat_", "shown_"),
    "user": ("user_", "hour", "weekday", "device"),
    "attributes": (),
    "own": (),
    "within-list": WITHIN_LIST,
}
"""Groups in the order they are added, by how the names of the shop-independent features begin. Those of the catalogue's
attributes, and the user's own, are told by their place in the table: they may have any name."""


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


def group_of(name: str) -> str:
    """The group of a feature of `features.table.FEATURES`. Raises KeyError for one that is in none or in two."""
    if name.endswith(WITHIN_LIST):
        return "within-list"
    found = [group for group, prefixes in GROUPS.items() if name.startswith(prefixes) and group != "within-list"]
    if len(found) != 1:
        raise KeyError(f"{name}: its name begins as those of {found or 'no group'}; mend offline.ablate.GROUPS")
    return found[0]


def grouped(columns: Sequence[str], own: Sequence[str] = ()) -> list[str]:
    """The group of each column of a table of features, whose first are `FEATURES` and whose last are the user's own."""
    fixed = [f.name for f in FEATURES]
    if list(columns[: len(fixed)]) != fixed:
        raise ValueError("the columns do not begin with features.table.FEATURES: they are of another version")
    of_catalogue = len(columns) - len(fixed) - len(own)
    return [*map(group_of, fixed), *["attributes"] * of_catalogue, *["own"] * len(own)]


def ablate(
    fold: Fold,
    columns: Sequence[str],
    config: RankerConfig,
    seeds: int = 3,
    own: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> Ablation:
    """Train without each group, and with the groups one after the other; each `seeds` times, the ndcg averaged.

    fold: rows to train on and later ones to judge by. columns: names of the features, as in the table. own: those of
    the user's own, its last. on_progress: called with rankers trained and to train.
    """
    of = np.array(grouped(columns, own))
    present = [group for group in GROUPS if (of == group).any()]
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
        left = ndcg(~without(columns, of, group)) if len(present) > 1 else chance
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


def without(columns: Sequence[str], of: NDArray[np.str_], group: str) -> NDArray[np.bool_]:
    """bool[columns]: those of a group, and what is set within the list from them."""
    its = {name for name, g in zip(columns, of, strict=True) if g == group}
    derived = [name + ending for name in its for ending in WITHIN_LIST]
    out: NDArray[np.bool_] = (of == group) | ((of == "within-list") & np.isin(columns, derived))
    return out
