"""Models that `Trees` does not support are scored by LightGBM; the service logs and counts this."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from features.table import names
from ranker.booster import BoosterTrees, scorer
from ranker.model_text import ModelTextError
from ranker.trees import Trees
from serving.store.embedded import connect_url
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import ready, served


def forest(**settings: object) -> tuple[lightgbm.Booster, np.ndarray]:
    """A small model on planted features, trained with the given LightGBM settings, and some rows."""
    rng = np.random.default_rng(0)
    columns = [n.replace(" ", "_") for n in names(planted_items())]
    x = rng.normal(size=(200, len(columns)))
    data = lightgbm.Dataset(x, x[:, 0] + rng.normal(size=200), feature_name=columns)
    plain = {"objective": "regression", "num_leaves": 7, "verbose": -1, "num_threads": 1, "deterministic": True}
    return lightgbm.train(plain | settings, data, 5), x[:50]


RANDOM_FOREST = {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}


@pytest.mark.parametrize(
    ("settings", "why"), [(RANDOM_FOREST, "average_output"), ({"linear_tree": True}, "is_linear=1")]
)
def test_an_unsupported_model_gets_the_scores_of_lightgbm(settings: dict[str, object], why: str) -> None:
    """The scores are equal, and the contributions add up to the score."""
    booster, x = forest(**settings)
    trees = scorer(booster.model_to_string())
    assert isinstance(trees, BoosterTrees)
    assert why in trees.why
    expected = booster.predict(x, raw_score=True)
    np.testing.assert_array_equal(trees.score(x), expected)
    np.testing.assert_allclose(trees.contributions(x).sum(axis=1), expected, rtol=1e-9)


def test_a_supported_model_is_scored_by_trees() -> None:
    """LightGBM is only used for other models."""
    assert isinstance(scorer(planted_model(planted_items())), Trees)


def test_a_damaged_model_is_rejected_and_not_passed_to_lightgbm() -> None:
    """A text that was cut off is damaged, not unsupported."""
    with pytest.raises(ModelTextError, match="cut off"):
        scorer(planted_model(planted_items())[:500])


def test_the_service_warns_once_and_counts_each_ranking(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A release with such a model works. The log gives the reason, and /health/ready the number of slow rankings."""
    release = publish(tmp_path / "releases", model_text=forest(**RANDOM_FOREST)[0].model_to_string())
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
