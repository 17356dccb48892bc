"""SHAP values: exact, by feature and by feature group, with missing values marked."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest

from features.moment import Feature
from features.table import FEATURES
from offline.evaluation.explanation import DRAWN, POINTS, ROWS, explain_model
from ranker.booster import shap_values
from ranker.train import RankerConfig, train

OWN = Feature("my_own", "the shop's own", "points", "never", lambda m: np.zeros(len(m.candidates)))
COLUMNS = [*FEATURES, OWN]
NAMES = [f.name for f in COLUMNS]
PRICE, OTHER = NAMES.index("item_price"), NAMES.index("price_to_habit")


@pytest.fixture(scope="module")
def shop() -> tuple[str, np.ndarray]:
    """A model and its rows: 300 lists of 10, cheap items are clicked, and a fifth of the prices are missing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, len(COLUMNS))).astype(np.float32)
    gain = (rows[:, PRICE] < -0.8).astype(np.int8)
    rows[rng.random(3000) < 0.2, PRICE] = np.nan
    start = np.arange(0, 3001, 10)
    config = RankerConfig(trees=20, leaves=4, position_debias=False)
    model = train(rows, gain, start, rows, gain, start, NAMES, config)
    return model.model_text, rows


@pytest.fixture(scope="module")
def explanation(shop: tuple[str, np.ndarray]) -> dict[str, Any]:
    return explain_model(*shop, COLUMNS, seed=1)


def test_features_are_sorted_by_mean_absolute_value(explanation: dict[str, Any], shop: tuple[str, np.ndarray]) -> None:
    assert explanation["features"][0]["name"] == "item_price"
    assert len(explanation["features"]) == len(COLUMNS)
    sizes = [f["mean_abs"] for f in explanation["features"]]
    assert sizes == sorted(sizes, reverse=True)
    assert explanation["rows"] == ROWS < len(shop[1])


def test_the_values_equal_lightgbms_and_add_up_to_the_score(shop: tuple[str, np.ndarray]) -> None:
    """Few rows are all used, so the mean is that of Booster.predict(pred_contrib=True)."""
    text, rows = shop
    few = rows[:50]
    found = explain_model(text, few, COLUMNS, seed=1)
    booster = lightgbm.Booster(model_str=text)
    shap = np.asarray(booster.predict(few, pred_contrib=True))
    mean_abs = next(f["mean_abs"] for f in found["features"] if f["name"] == "item_price")
    assert mean_abs == pytest.approx(np.abs(shap[:, PRICE]).mean())
    assert shap.sum(axis=1) == pytest.approx(booster.predict(few, raw_score=True))
    assert shap == pytest.approx(shap_values(text, few))


def test_the_values_of_a_group_are_added_up_per_row_before_averaging(shop: tuple[str, np.ndarray]) -> None:
    """Group `price` is item_price and price_to_habit: the mean of |a + b|, not of |a| + |b|."""
    text, rows = shop
    found = explain_model(text, rows[:50], COLUMNS, seed=1)
    shap = shap_values(text, rows[:50])
    price = next(g for g in found["groups"] if g["group"] == "price")
    expected = np.abs(shap[:, PRICE] + shap[:, OTHER]).mean()
    assert price == {"group": "price", "features": 2, "mean_abs": pytest.approx(expected)}
    assert sum(g["features"] for g in found["groups"]) == len(COLUMNS)
    assert "own" in {g["group"] for g in found["groups"]}


def test_points_have_the_rank_of_the_value_and_none_for_a_missing_one(explanation: dict[str, Any]) -> None:
    drawn = [f for f in explanation["features"] if "points" in f]
    assert (len(drawn), len(drawn[0]["points"])) == (DRAWN, POINTS)
    points = drawn[0]["points"]
    missing = sum(rank is None for _, rank in points)
    assert 0.1 < missing / POINTS < 0.3
    known = [(shap, rank) for shap, rank in points if rank is not None]
    assert all(0 <= rank <= 1 for _, rank in known)
    # Low prices raise the score, high prices lower it.
    assert min(s for s, r in known if r < 0.15) > max(s for s, r in known if r > 0.5)


def test_the_same_seed_gives_the_same_explanation(shop: tuple[str, np.ndarray], explanation: dict[str, Any]) -> None:
    assert explain_model(*shop, COLUMNS, seed=1) == explanation


def test_a_column_without_values_has_no_ranks(shop: tuple[str, np.ndarray]) -> None:
    text, rows = shop
    blank = rows[:30].copy()
    blank[:, PRICE] = np.nan
    found = explain_model(text, blank, COLUMNS, seed=1)
    price = next(f for f in found["features"] if f["name"] == "item_price")
    assert {rank for _, rank in price.get("points", [])} <= {None}
