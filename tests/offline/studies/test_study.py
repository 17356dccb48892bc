"""A change tried on a night's rows: the same figures as the night's own, paired by list, and no peeking."""

from __future__ import annotations

import numpy as np
import pytest

from offline.config.configuration import load
from offline.config.simulation import SimulateConfig
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from offline.studies.study import Study

QUICK = "encoder: {mode: frozen, max_tokens: 16}\nranker: {trees: 8, min_data_in_leaf: 10}\n"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A night of a small simulated shop, up to its evaluation."""
    directory = tmp_path_factory.mktemp("study")
    (directory / "quick.yaml").write_text(QUICK, "utf-8")
    config = load(directory / "quick.yaml", workspace=directory / "workspace")
    simulate(SimulateConfig(items=60, users=60, days=8, seed=3, end="2024-06-01T00:00:00Z"), config.data)
    made = Night(config, None)
    made.run_to("evaluate")
    return made


@pytest.fixture(scope="module")
def study(night: Night) -> Study:
    return Study(night)


def test_without_a_change_the_test_figure_is_the_nights_own(night: Night, study: Study) -> None:
    """Trained again by the same settings, on the same rows: the mean that the report shows."""
    shown = night.artefacts.json("evaluation.json")["systems"]["ranker"]["all"]
    found = study.ndcg("test")
    assert len(found) == shown["lists"] == len(study.lists("test"))
    assert found.mean() == pytest.approx(shown["ndcg@10"], abs=1e-12)


def test_a_group_left_out_takes_what_is_set_against_the_list_with_it(study: Study) -> None:
    """Without the price there is no `item_price`, and no `item_price_rank` by which it would still be there."""
    kept = [study.columns[k] for k in study._kept(["price"])]
    assert [c for c in study.columns if c not in kept] == [
        "item_price",
        "price_to_habit",
        "item_price_rank",
        "item_price_over_mean",
    ]
    assert study._kept([]).tolist() == list(range(len(study.columns)))


def test_changes_are_compared_on_the_same_lists_by_whole_users(study: Study) -> None:
    """No change is no difference; one tree without most features is another ranker, on as many lists."""
    base = study.ndcg()
    assert study.difference(base, study.ndcg()).difference == 0
    poor = study.ndcg(ranker=study.ranker.model_copy(update={"trees": 1}), without=["affinity", "popularity"])
    d = study.difference(poor, base)
    assert (d.lists, d.clusters) == (len(base), len(np.unique(study.users())))
    assert d.difference == pytest.approx((poor - base).mean())
    assert d.low <= d.difference <= d.high


def test_a_model_without_features_scores_test_lists_too(study: Study) -> None:
    """On test the trees count among the features that are left."""
    assert study.ndcg("test", without=["popularity"]).shape == study.ndcg("test").shape


def test_an_unknown_group_is_named_with_those_there_are(study: Study) -> None:
    with pytest.raises(KeyError, match=r"'tast' is no group of these rows; known: popularity, price"):
        study.ndcg(without=["tast"])


def test_trying_things_leaves_the_night_as_it_was(night: Night, study: Study) -> None:
    """No file of the run is written by a try."""
    before = {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*")}
    study.ndcg("test")
    assert {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*")} == before
