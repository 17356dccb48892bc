"""Study: changes are measured on the rows of a nightly run, paired by list, without modifying the run."""

from __future__ import annotations

import numpy as np
import pytest

from offline.config.configuration import load
from offline.config.simulation import SimulateConfig
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from offline.studies.study import Study

QUICK = "encoder: {mode: frozen, max_tokens: 16}\nranker: {trees: 8, min_data_in_leaf: 10}\ngate: {certainty: 0}\n"


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A nightly run of a small simulated shop, up to its evaluation."""
    directory = tmp_path_factory.mktemp("study")
    (directory / "quick.yaml").write_text(QUICK, "utf-8")
    config = load(directory / "quick.yaml", workspace=directory / "workspace")
    simulate(SimulateConfig(items=60, users=60, days=8, seed=3, end="2024-06-01T00:00:00Z"), config.data)
    night = Night(config, None)
    night.run_to("evaluate")
    return night


@pytest.fixture(scope="module")
def study(night: Night) -> Study:
    return Study(night)


def test_without_a_change_the_test_figure_equals_the_nightly_runs(night: Night, study: Study) -> None:
    """Training with the same settings on the same rows gives the mean in the report."""
    reported = night.artefacts.json("evaluation.json")["systems"]["ranker"]["all"]
    ndcg = study.ndcg("test")
    assert len(ndcg) == reported["lists"] == len(study.lists("test"))
    assert ndcg.mean() == pytest.approx(reported["ndcg@10"], abs=1e-12)


def test_leaving_out_a_group_leaves_out_its_within_list_features(study: Study) -> None:
    """Without the price group there is no `item_price`, and no `item_price_rank`, which is computed from it."""
    kept = [study.columns[k] for k in study._columns_without(["price"])]
    assert [c for c in study.columns if c not in kept] == [
        "item_price",
        "price_to_habit",
        "item_price_rank",
        "item_price_over_mean",
    ]
    assert study._columns_without([]).tolist() == list(range(len(study.columns)))


def test_differences_are_paired_by_list_and_clustered_by_user(study: Study) -> None:
    """Without a change the difference is 0. One tree without most features is a different ranker on as many lists."""
    base = study.ndcg()
    assert study.difference(base, study.ndcg()).difference == 0
    poor = study.ndcg(ranker=study.ranker.model_copy(update={"trees": 1}), without=["affinity", "popularity"])
    d = study.difference(poor, base)
    assert (d.lists, d.clusters) == (len(base), len(np.unique(study.users())))
    assert d.difference == pytest.approx((poor - base).mean())
    assert d.low <= d.difference <= d.high


def test_a_ranker_without_some_features_scores_test_lists(study: Study) -> None:
    """The trees index the remaining features."""
    assert study.ndcg("test", without=["popularity"]).shape == study.ndcg("test").shape


def test_an_unknown_group_raises_with_the_known_groups(study: Study) -> None:
    with pytest.raises(KeyError, match=r"unknown feature group 'tast'; expected one of: popularity, price"):
        study.ndcg(without=["tast"])


def test_a_study_does_not_modify_the_run(night: Night, study: Study) -> None:
    """No file of the run is written."""
    before = {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*")}
    study.ndcg("test")
    assert {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*")} == before
