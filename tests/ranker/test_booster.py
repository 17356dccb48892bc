"""Models that `Trees` does not support are scored by LightGBM; the service logs and counts this."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.table import names
from ranker.booster import BoosterTrees, scorer
from ranker.model_text import ModelTextError
from ranker.trees import Trees
from serving.store.embedded import connect_url
from tests.ranker.test_trees import (
    FEATURES,
    edge_case_rows,
    hostile_texts,
    model_text,
    predicted,
    random_linear_model,
    random_model,
    tree_text,
)
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import ready, served

EMPTY_NODES: dict[str, str] = dict.fromkeys(
    ("split_feature", "threshold", "decision_type", "left_child", "right_child", "internal_value"), ""
)


def forest(**settings: object) -> tuple[lightgbm.Booster, np.ndarray]:
    """A small model on planted features, trained with the given LightGBM settings, and some rows."""
    rng = np.random.default_rng(0)
    columns = [n.replace(" ", "_") for n in names(planted_items())]
    x = rng.normal(size=(200, len(columns)))
    data = lightgbm.Dataset(x, x[:, 0] + rng.normal(size=200), feature_name=columns)
    plain = {"objective": "regression", "num_leaves": 7, "verbose": -1, "num_threads": 1, "deterministic": True}
    return lightgbm.train(plain | settings, data, 5), x[:50]


LINEAR = {"linear_tree": True}
AVERAGED = {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}


def test_a_model_with_linear_leaves_gets_the_scores_of_lightgbm() -> None:
    """The scores are equal, and the contributions add up to the score."""
    booster, x = forest(**LINEAR)
    trees = scorer(booster.model_to_string())
    assert isinstance(trees, BoosterTrees)
    assert "is_linear=1" in trees.why
    expected = booster.predict(x, raw_score=True)
    np.testing.assert_array_equal(trees.score(x), expected)
    np.testing.assert_allclose(trees.contributions(x).sum(axis=1), expected, rtol=1e-9)
    split_on = {n for n, count in zip(booster.feature_name(), booster.feature_importance(), strict=True) if count}
    assert split_on <= trees.used_columns <= set(trees.names)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), leaves=st.lists(st.sampled_from([1, 2, 8, 33]), min_size=1, max_size=4))
def test_a_rewritten_text_has_the_scores_of_the_original(seed: int, leaves: list[int]) -> None:
    """LightGBM gives the same bits for both texts: with every kind of split, and with linear leaves of 0 to 3 terms."""
    text, rows = random_linear_model(seed, leaves), edge_case_rows(seed, 20, np.float32, random_model(seed, leaves))
    rows = np.where(np.isinf(rows), np.float32(7), rows)
    np.testing.assert_array_equal(scorer(text).score(rows), predicted(text, rows))


def test_infinite_values_of_linear_features_give_finite_scores() -> None:
    """Infinity counts as the largest float32: 0.1 + 2 * 3.4e38, and 0.1 + 2 * -3.4e38."""
    leaf = {"leaf_const": [0.1], "num_features": [1], "leaf_features": "0  ", "leaf_coeff": "2.0  "}
    text = model_text([tree_text(0, 1, is_linear=1, **EMPTY_NODES, leaf_value=[1.0], **leaf)])
    rows = np.zeros((2, FEATURES), np.float32)
    rows[:, 0] = np.inf, -np.inf
    largest = float(np.finfo(np.float32).max)
    assert scorer(text).score(rows).tolist() == [0.1 + 2 * largest, 0.1 - 2 * largest]


def test_an_averaged_forest_is_scored_by_trees() -> None:
    """LightGBM's raw score of an averaged forest is the sum over its trees, so nothing is different."""
    booster, x = forest(**AVERAGED)
    trees = scorer(booster.model_to_string())
    assert isinstance(trees, Trees)
    np.testing.assert_array_equal(trees.score(x), booster.predict(x, raw_score=True))


def test_a_supported_model_is_scored_by_trees() -> None:
    """LightGBM is only used for other models."""
    assert isinstance(scorer(planted_model(planted_items())), Trees)


def test_a_damaged_model_is_rejected_and_not_passed_to_lightgbm() -> None:
    """A text that was cut off is damaged, not unsupported."""
    with pytest.raises(ModelTextError, match="cut off"):
        scorer(planted_model(planted_items())[:500])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_hostile_text_is_refused_or_has_finite_scores(data: st.DataObject) -> None:
    """For trees with constant and with linear leaves, whatever numbers and lines were changed.

    LightGBM would abort the process for an index out of range, and never return for a cycle.
    """
    linear = data.draw(st.booleans())
    make = random_linear_model if linear else random_model
    text = data.draw(hostile_texts(make(data.draw(st.integers(0, 9)), [2, 9, 40])))
    rows = edge_case_rows(1, 8, np.float32, random_model(1, [9]))
    trees = None
    with contextlib.suppress(ModelTextError):
        trees = scorer(text)
    if trees is None:
        with pytest.raises(ModelTextError, match=r"^(tree \d+|header): [a-z_]+"):
            scorer(text)
    elif len(trees.names) == FEATURES:
        assert np.isfinite(trees.score(rows)).all()
        assert np.isfinite(trees.contributions(rows)).all()


@pytest.mark.parametrize(
    ("field", "value", "refusal"),
    [
        ("left_child", "900000", "tree 0: left_child points outside its 3 nodes and 4 leaves"),
        ("left_child", "0", "tree 0: left_child and right_child do not form one tree"),
        ("split_feature", "99999999", "tree 0: split_feature 99999999 is outside the model's 5 features"),
        ("leaf_value", "1e308", "tree 0: leaf_value contains 1e+308, expected numbers from -1e+30 to 1e+30"),
        ("leaf_const", "-1e31", "tree 0: leaf_const contains -1e+31, expected numbers from -1e+30 to 1e+30"),
        ("leaf_coeff", "nan", "tree 0: leaf_coeff contains nan, expected numbers"),
        ("num_features", "1000000", "tree 0: num_features 1000000 is outside 0 to 5"),
        ("leaf_features", "5", "tree 0: leaf_features 5 is outside the model's 5 features"),
        ("leaf_features", "-1", "tree 0: leaf_features -1 is outside the model's 5 features"),
        ("is_linear", "2", "tree 0: is_linear=2, expected 0 or 1"),
        ("num_cat", "7", "tree 0: cat_boundaries"),
    ],
)
def test_an_invalid_model_with_linear_leaves_is_refused_before_lightgbm_reads_it(
    field: str, value: str, refusal: str
) -> None:
    """LightGBM aborts the process for most of these, and the service with it."""
    text = random_linear_model(1, [4])
    changed = re.sub(rf"^{field}=\S+", f"{field}={value}", text, count=1, flags=re.M)
    assert changed != text
    with pytest.raises(ModelTextError, match=f"^{re.escape(refusal)}"):
        scorer(changed)


def test_the_service_warns_once_and_counts_each_ranking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A release with such a model works. The log gives the reason, and /health/ready the number of slow rankings."""
    release = publish(tmp_path / "releases", model_text=forest(**LINEAR)[0].model_to_string())
    with (
        caplog.at_level(logging.WARNING),
        connect_url(None, tmp_path / "redis") as url,
        served(url, release=release, clock=time.time) as client,
    ):
        ready(client)
        for _ in range(2):
            assert client.post("/v1/rank", json={"candidates": ["red-01"]}).status_code == 200
        assert client.get("/health/ready").json()["slow"] == 2
    assert sum("is scored by LightGBM" in r.getMessage() for r in caplog.records) == 1
