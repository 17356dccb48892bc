"""Simple rankers: trees of steps that order as a feature, or a blend of features, does."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.training.simple_ranker import ORDERS, STEPS, SimpleOrder, choose_order, model_text
from ranker.trees import Trees
from tests.worlds import make_lists

NAMES = list(dict.fromkeys(name for order in ORDERS for name in order.weights))
FIRST, SECOND = NAMES[:2]


def rows_of(**columns: list[float] | np.ndarray) -> np.ndarray:
    """float32[n, features] with these columns, and 0 elsewhere."""
    n = len(next(iter(columns.values())))
    out = np.zeros((n, len(NAMES)), np.float32)
    for name, values in columns.items():
        out[:, NAMES.index(name)] = values
    return out


@settings(deadline=None)
@given(st.lists(st.integers(-1000, 1000).map(lambda k: k / 8) | st.just(float("nan")), min_size=2, max_size=60))
def test_an_order_by_one_feature_is_the_order_of_its_values_with_missing_ones_last(values: list[float]) -> None:
    """Up to `STEPS` distinct values are told apart; a missing value is as low as the lowest."""
    rows = rows_of(**{FIRST: values})
    score = Trees.parse(model_text(SimpleOrder("", {FIRST: 2.0}), rows, NAMES)).score(rows)
    lowest = np.nanmin(values) if not np.isnan(values).all() else 0.0
    filled = np.where(np.isnan(values), lowest, values)
    if len(np.unique(filled)) > 1:
        np.testing.assert_array_equal(
            np.unique(filled, return_inverse=True)[1], np.unique(score, return_inverse=True)[1]
        )


def test_a_blend_adds_features_in_units_of_their_standard_deviation() -> None:
    """-1 and 1 have deviation 1, 0 and 8 have deviation 4 and mean 4: 1 * x / 1 + .5 * (y - 4) / 4."""
    rows = rows_of(**{FIRST: [-1.0, -1.0, 1.0, 1.0], SECOND: [0.0, 8.0, 0.0, 8.0]})
    score = Trees.parse(model_text(SimpleOrder("", {FIRST: 1.0, SECOND: 0.5}), rows, NAMES)).score(rows)
    np.testing.assert_allclose(score, [-1.5, -0.5, 0.5, 1.5])


def test_more_values_than_steps_are_ordered_by_their_quantiles() -> None:
    values = np.random.default_rng(0).lognormal(size=5 * STEPS)
    rows = rows_of(**{FIRST: values})
    score = Trees.parse(model_text(SimpleOrder("", {FIRST: 1.0}), rows, NAMES)).score(rows)
    assert (np.diff(score[np.argsort(values)]) >= 0).all()
    assert len(np.unique(score)) == STEPS


def test_lightgbm_reads_the_text_and_returns_the_same_scores() -> None:
    """Also for values beyond those that the steps were made of, and for a blend of constant features."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(300, len(NAMES))).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    for order, of in ((ORDERS[0], rows), (ORDERS[-1], rows), (ORDERS[0], np.zeros_like(rows))):
        text = model_text(order, of, NAMES)
        expected = lgb.Booster(model_str=text).predict(3 * rows, raw_score=True)
        np.testing.assert_array_equal(Trees.parse(text).score(3 * rows), expected)


def test_the_order_that_ranks_these_lists_best_is_chosen() -> None:
    """40 lists of two items: the chosen one has more clicks in 7 days, and everything else is noise."""
    random = np.random.default_rng(2)
    lists = make_lists([float(k) for k in range(40)], [0] * 40, [[1, 2]] * 40)
    lists.gain[:] = np.tile([1, 0], 40)
    rows = random.normal(size=(80, len(NAMES))).astype(np.float32)
    rows[:, NAMES.index("item_clicks_7d")] = lists.gain + random.uniform(0, 0.5, 80)
    order, text = choose_order(rows, lists, NAMES)
    assert order.about == "clicks in the last 7 days"
    assert Trees.parse(text).used_columns == {"item_clicks_7d"}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.about)
def test_every_order_is_of_features_that_every_shop_has(order: SimpleOrder) -> None:
    from features.table import FEATURES

    assert set(order.weights) <= {f.name for f in FEATURES}
    assert min(order.weights.values()) > 0
