"""Simple rankers: orders by one feature or a fixed blend of a few, for shops in which trained trees win nothing.

A simple ranker is a model in LightGBM's text format, as a trained one is: a tree of steps per feature, whose values
rise with the feature. The service scores and explains it like any other, and replay gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F32, F64
from features.log import Lists
from offline.evaluation import PRIMARY
from ranker.metrics import score_lists, tie_break
from ranker.trees import Trees

STEPS = 512
"""Values of a feature that an order distinguishes, at most: quantiles of its distinct values."""
_NAN_GOES_LEFT = 10
"""LightGBM's `decision_type` of a split on a number, with missing values on the left, the lower side."""


class SimpleOrder(NamedTuple):
    """An order by a weighted sum of features, each divided by its standard deviation.

    about: what it orders by, in words. weights: feature -> weight, above 0. A missing value counts as the lowest one.
    """

    about: str
    weights: Mapping[str, float]


_ENGAGED = ("item_views_30d", "item_clicks_30d", "item_carts_30d", "item_purchases_30d")
_TIES = dict.fromkeys(_ENGAGED, 0.05)
"""Popularity beside a personal score: it orders the lists of users without a history."""


def _orders() -> tuple[SimpleOrder, ...]:
    single = {
        "clicks in the last 30 days": "item_clicks_30d",
        "clicks in the last 7 days": "item_clicks_7d",
        "purchases in the last 30 days": "item_purchases_30d",
        "purchases in the last 7 days": "item_purchases_7d",
        "click rate": "item_click_rate_30d",
        "click rate predicted from text and attributes": "item_prior",
    }
    neighbours, text, own = "co_occurrence", "text_pooled", "repeat_engagements"
    personal = {
        "co-occurrence": {neighbours: 1.0},
        "text similarity": {text: 1.0},
        "own history, then popularity": {own: 1.0},
        "own history and co-occurrence": {own: 1.0, neighbours: 1.0},
        **{f"co-occurrence and {w:g} times text similarity": {neighbours: 1.0, text: w} for w in (0.3, 0.7, 1.5)},
        "own history, co-occurrence and text similarity": {own: 1.0, neighbours: 1.0, text: 0.7},
    }
    return (
        SimpleOrder("popularity in the last 30 days", dict.fromkeys(_ENGAGED, 1.0)),
        *(SimpleOrder(about, {feature: 1.0}) for about, feature in single.items()),
        *(SimpleOrder(about, {**_TIES, **weights}) for about, weights in personal.items()),
    )


ORDERS = _orders()
"""The simple orders to choose from. Of equally good ones, the first is chosen."""


def choose_order(rows: F32, lists: Lists, names: Sequence[str]) -> tuple[SimpleOrder, str]:
    """The order with the best mean ndcg@10 on these lists, and its model text.

    rows: float32[rows, features], of the training and validation windows: nothing in an order is fitted to them but its
    choice and the scale of its features. names: of the features.
    """
    ties = tie_break(lists.item, lists.start)
    best: tuple[float, SimpleOrder, str] | None = None
    for order in ORDERS:
        text = model_text(order, rows, names)
        score = Trees.parse(text).score(rows)
        mean = float(np.nanmean(score_lists(PRIMARY, score, lists.gain, lists.start, ties, lists.missed)))
        if best is None or mean > best[0]:
            best = mean, order, text
    assert best is not None
    return best[1], best[2]


def model_text(order: SimpleOrder, rows: F32, names: Sequence[str]) -> str:
    """A simple ranker in LightGBM's text format.

    rows: float32[rows, features], whose values give the steps. A feature with one value at most adds nothing.
    """
    columns = {names.index(name): weight for name, weight in order.weights.items()}
    trees = [_tree(rows[:, k], k, weight) for k, weight in columns.items()]
    blocks = [f"Tree={number}\n{tree}\n\n\n" for number, tree in enumerate(t for t in trees if t)]
    if not blocks:
        blocks = [f"Tree=0\n{_constant()}\n\n\n"]
    head = [
        "tree",
        "version=v4",
        "num_class=1",
        "num_tree_per_iteration=1",
        "label_index=0",
        f"max_feature_idx={len(names) - 1}",
        "objective=lambdarank",
        f"feature_names={' '.join(names)}",
        f"feature_infos={' '.join(['[-1e+300:1e+300]'] * len(names))}",
        f"tree_sizes={' '.join(str(len(block.encode())) for block in blocks)}",
    ]
    return "\n".join(head) + "\n\n" + "".join(blocks) + "end of trees\n"


def _tree(values: F32, column: int, weight: float) -> str:
    """The fields of a balanced tree that rises with a feature; empty if the feature has one value at most."""
    known = np.sort(values[np.isfinite(values)].astype(np.float64))
    distinct = np.unique(known)
    scale = float(known.std()) if len(known) else 0.0
    if len(distinct) < 2 or not scale > 0:
        return ""
    # The last value of each step. A row with a larger value than all has the last step.
    ends = distinct[np.linspace(0, len(distinct) - 1, min(STEPS, len(distinct))).astype(np.int64)]
    first = np.searchsorted(known, np.concatenate(([-np.inf], ends[:-1])), "right")
    last = np.searchsorted(known, ends, "right")
    total = np.concatenate(([0.0], np.cumsum(known - known.mean())))
    count = (last - first) + np.bincount([0], [len(values) - len(known)], minlength=len(ends)).astype(np.int64)
    leaf = weight / scale * (total[last] - total[first]) / np.maximum(last - first, 1)
    return _balanced(column, ends[:-1], np.maximum.accumulate(leaf), count.astype(np.float64))


def _balanced(column: int, thresholds: F64, leaf: F64, count: F64) -> str:
    """The fields of a balanced tree over ascending thresholds, with one more leaf than thresholds.

    Node k splits between the leaves k and k + 1 after renumbering from the root.
    """
    order: list[int] = []
    children: list[tuple[int, int]] = []
    value: list[float] = []
    size: list[int] = []

    def grow(low: int, high: int) -> int:
        """The number of the node over the leaves from `low` to `high`, or `~leaf`."""
        if low == high:
            return ~low
        middle, node = (low + high) // 2, len(order)
        order.append(middle)
        children.append((0, 0))
        weight = count[low : high + 1]
        size.append(int(weight.sum()))
        value.append(float((leaf[low : high + 1] * weight).sum() / max(weight.sum(), 1)))
        children[node] = grow(low, middle), grow(middle + 1, high)
        return node

    grow(0, len(leaf) - 1)
    nodes = len(order)
    fields: dict[str, list[Any]] = {
        "num_leaves": [len(leaf)],
        "num_cat": [0],
        "split_feature": [column] * nodes,
        "split_gain": [0] * nodes,
        "threshold": [repr(float(thresholds[k])) for k in order],
        "decision_type": [_NAN_GOES_LEFT] * nodes,
        "left_child": [left for left, _ in children],
        "right_child": [right for _, right in children],
        "leaf_value": [repr(v) for v in leaf.tolist()],
        "leaf_weight": [repr(v) for v in count.tolist()],
        "leaf_count": [int(v) for v in count.tolist()],
        "internal_value": [repr(v) for v in value],
        "internal_weight": size,
        "internal_count": size,
        "is_linear": [0],
        "shrinkage": [1],
    }
    return "\n".join(f"{name}={' '.join(map(str, values))}" for name, values in fields.items())


def _constant() -> str:
    """The fields of a tree with a single leaf."""
    empty = "split_feature split_gain threshold decision_type left_child right_child"
    more = "leaf_weight leaf_count internal_value internal_weight internal_count"
    return "\n".join(
        [
            "num_leaves=1",
            "num_cat=0",
            *(f"{name}=" for name in empty.split()),
            "leaf_value=0",
            *(f"{name}=" for name in more.split()),
            "is_linear=0",
            "shrinkage=1",
        ]
    )
