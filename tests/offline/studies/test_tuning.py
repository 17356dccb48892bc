"""Tuning and ablation, on synthetic rows in which only one column carries a signal."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from typer.testing import CliRunner

from features.log import Lists
from features.table import FEATURES, Feature, groups, in_group
from offline.cli import app
from offline.cli.terminal import seconds
from offline.config.configuration import load
from offline.config.simulation import SimulateConfig
from offline.runtime.errors import DataError
from offline.simulation.dataset import simulate
from offline.studies import tuning
from offline.studies.ablation import ablate
from offline.studies.tuning import LABEL_GAINS, STUDY, Fold, TuningResult, fragment, make_folds, summarize, tune
from ranker.train import RankerConfig
from tests.worlds import make_lists

QUICK = RankerConfig(trees=8, leaves=31, early_stopping_rounds=4, min_data_in_leaf=5, position_debias=False)
# No leaf can hold this many rows, so the ranker cannot learn.
UNTRAINABLE = QUICK.model_copy(update={"min_data_in_leaf": 100_000})
COLUMNS = ("noise", "signal", "more_noise")
SIZE = 6


STARS = Feature("item_stars", "stars", "as given", "no stars", lambda m: 0.0, "attributes")


def synthetic_rows(n: int, first: int, columns: int = 3, signal: int = 1, most: int = 1) -> tuple[np.ndarray, Lists]:
    """n lists of six items by n / 2 users. Column `signal` is usually highest for the item with gain."""
    rng = np.random.default_rng(first)
    lists = make_lists(
        [60.0 * (first + g) for g in range(n)],
        [g % (n // 2) for g in range(n)],
        [rng.permutation(100)[:SIZE].tolist() for _ in range(n)],
    )
    gain = np.zeros(lists.rows, np.int8)
    gain[lists.start[:-1] + rng.integers(0, SIZE, n)] = rng.integers(1, most + 1, n)
    x = rng.normal(size=(lists.rows, columns)).astype(np.float32)
    x[:, signal] += 2 * gain
    return x, replace(lists, gain=gain, position=np.tile(np.arange(SIZE, dtype=np.int16), n))


def make_two_folds(**kwargs: int) -> tuple[Fold, Fold]:
    """Two folds. The second trains on as many lists as the first has in total, and is evaluated on later ones."""
    (x, training), (x_held_out, held_out), (x_last, last) = (synthetic_rows(60, 60 * k, **kwargs) for k in range(3))
    whole = synthetic_rows(120, 300, **kwargs)
    return Fold(x, training, x_held_out, held_out), Fold(*whole, x_last, last)


def run_tune(directory: Path, base: RankerConfig = QUICK, most: int | None = 3, **kwargs: Any) -> TuningResult:
    directory.mkdir(parents=True, exist_ok=True)
    return tune(
        make_two_folds(), COLUMNS, base, directory, kwargs.pop("budget_s", 300), kwargs.pop("seed", 0), most, **kwargs
    )


# --- folds ---


def test_a_fold_is_evaluated_on_its_held_out_lists_reproducibly() -> None:
    fold = make_two_folds()[-1]
    ndcg = fold.ndcg(QUICK, COLUMNS)
    assert ndcg.shape == (60,)
    assert ndcg.mean() > 0.8
    np.testing.assert_array_equal(ndcg, fold.ndcg(QUICK, COLUMNS))


def test_without_the_signal_column_ndcg_is_near_chance() -> None:
    """For one relevant item of six, chance is the mean of 1 / log2(1 + rank) over ranks 1 to 6."""
    chance = np.mean(1 / np.log2(1 + np.arange(1, SIZE + 1)))
    assert make_two_folds()[-1].ndcg(QUICK, COLUMNS, np.array([0, 2])).mean() == pytest.approx(chance, abs=0.12)


def test_folds_are_split_by_time_and_never_read_the_test_window() -> None:
    """The first fold trains on 60% of the ranker's lists and is evaluated on the rest. The last one trains on all of
    them and is evaluated on validation."""
    windows = []

    def window_rows(window: str) -> tuple[np.ndarray, Lists, None]:
        windows.append(window)
        return *synthetic_rows(50, {"ranker": 0, "validation": 50}[window]), None

    early, last = _folds(window_rows)
    assert windows == ["ranker", "validation"]
    assert (len(early.training), len(early.held_out), len(last.training), len(last.held_out)) == (30, 20, 50, 50)
    assert early.training.at.max() < early.held_out.at.min()
    assert early.held_out.at.max() < last.held_out.at.min()
    np.testing.assert_array_equal(np.vstack([early.x, early.x_held_out]), last.x)


def test_lists_with_the_same_time_cannot_be_split() -> None:
    def window_rows(window: str) -> tuple[np.ndarray, Lists, None]:
        x, lists = synthetic_rows(10, 0)
        return x, replace(lists, at=np.zeros(10)), None

    with pytest.raises(DataError, match="too few lists for tuning: the ranker window has 10"):
        _folds(window_rows)


def _folds(window_rows: Any) -> tuple[Fold, ...]:
    folds, features = make_folds(SimpleNamespace(window_rows=window_rows, replay=SimpleNamespace(features=FEATURES)))  # type: ignore[arg-type]
    assert features == FEATURES
    return folds


# --- tuning ---


def test_settings_that_cannot_learn_are_improved_significantly(tmp_path: Path) -> None:
    result = run_tune(tmp_path, UNTRAINABLE, most=3)
    assert result.gain.low > 0
    assert result.is_sure
    assert result.config.min_data_in_leaf < 1000
    assert summarize(result).endswith(" Better.")


def test_the_fragment_is_a_valid_configuration(tmp_path: Path) -> None:
    """The written file can be passed to --config unchanged, and its first line states the gain."""
    result = run_tune(tmp_path, UNTRAINABLE)
    written = tmp_path / "tuned.yaml"
    assert written.read_text("utf-8") == fragment(result)
    assert written.read_text("utf-8").startswith("# ndcg@10 on 60 validation lists: +")
    ranker = load(written).ranker
    assert {name: getattr(ranker, name) for name in result.changed} == result.changed
    report = json.loads((tmp_path / "tune.json").read_text("utf-8"))
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2]
    assert report["gain"]["lists"] == 60


def test_an_interrupted_study_resumes_with_the_same_result(tmp_path: Path) -> None:
    whole = run_tune(tmp_path / "whole", most=3)
    run_tune(tmp_path / "halves", most=2)
    halves = run_tune(tmp_path / "halves", most=3)
    assert [t.settings for t in whole.trials] == [t.settings for t in halves.trials]
    assert [t.ndcg for t in whole.trials] == [t.ndcg for t in halves.trials]
    assert (whole.gain, whole.fair, whole.config) == (halves.gain, halves.fair, halves.config)


def test_another_seed_samples_other_settings(tmp_path: Path) -> None:
    a, b = (run_tune(tmp_path / str(seed), most=1, seed=seed) for seed in (1, 2))
    assert a.trials[0].settings != b.trials[0].settings


def test_without_time_the_initial_settings_are_kept(tmp_path: Path) -> None:
    result = run_tune(tmp_path, most=None, budget_s=0)
    assert (result.changed, result.config, result.gain.difference) == ({}, QUICK, 0)
    assert summarize(result) == "No better settings found in 0 trials. Keep the initial ones."
    assert yaml.safe_load((tmp_path / "tuned.yaml").read_text("utf-8")) == {"ranker": {}}


def test_a_trial_is_interrupted_when_the_budget_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps during the first trial. Its result is not used, because the ranker is incomplete."""
    real, jump = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + jump[0])

    def advance_clock(done: int, total: int) -> None:
        assert total == 300
        jump[0] = 1000

    result = run_tune(tmp_path, most=None, on_progress=advance_clock)
    assert [(t.state, t.ndcg, t.validation) for t in result.trials] == [("fail", None, None)]
    assert result.changed == {}


def test_the_unfinished_trial_of_a_killed_call_is_marked_failed(tmp_path: Path) -> None:
    run_tune(tmp_path, most=1)
    study = optuna.load_study(study_name="ranker", storage=f"sqlite:///{tmp_path / STUDY}")
    study.ask()
    study._storage.remove_session()
    result = run_tune(tmp_path, most=2)
    assert [t.state for t in result.trials] == ["complete", "fail", "complete"]


def test_poor_settings_are_pruned_after_the_first_fold(tmp_path: Path) -> None:
    """From the sixth trial on, a trial is pruned if it is below the median of the others on the first fold."""
    result = run_tune(tmp_path, most=12)
    states = [t.state for t in result.trials]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states
    assert all(t.ndcg is None for t in result.trials if t.state == "pruned")


def test_a_study_started_from_other_settings_is_rejected(tmp_path: Path) -> None:
    run_tune(tmp_path, most=1)
    message = r"tune.db: this study was started from different settings \(leaves was 31, is 7\)"
    with pytest.raises(DataError, match=message):
        run_tune(tmp_path, QUICK.model_copy(update={"leaves": 7}), most=1)
    # Settings that do not affect the trees may change.
    assert run_tune(tmp_path, QUICK.model_copy(update={"threads": 2}), most=1).trials


def test_the_directory_may_have_any_name(tmp_path: Path) -> None:
    """Including characters that are special in a database URL."""
    result = run_tune(tmp_path / "a b?c#d%20é", most=1)
    assert len(result.trials) == 1
    assert (tmp_path / "a b?c#d%20é" / STUDY).is_file()


def test_only_settings_with_an_effect_are_sampled(tmp_path: Path) -> None:
    """`label_gain` needs graded gains; `position_debias` needs positions and must be set in the base."""
    plain = run_tune(tmp_path / "plain", most=1)
    assert not {"label_gain", "position_debias"} & set(plain.trials[0].settings)
    for directory, debias in ((tmp_path / "graded", False), (tmp_path / "debiased", True)):
        directory.mkdir()
        base = QUICK.model_copy(update={"position_debias": debias})
        result = tune(make_two_folds(most=3), COLUMNS, base, directory, 300, most=1)
        assert result.trials[0].settings["label_gain"] in LABEL_GAINS.values()
        assert debias == ("position_debias" in result.trials[0].settings)


def test_the_cross_fitted_gain_is_not_inflated_by_many_trials() -> None:
    """A hundred settings differ only by noise. The best of them looks better on the lists that selected it, but not on
    the others."""
    rng = np.random.default_rng(1)
    every = rng.random((100, 600))
    user = np.arange(600, dtype=np.int32) // 3
    last, last_user = every[:, 300:], user[300:]
    best = every.mean(axis=1).argmax()
    fair = tuning._cross_fitted_gain(every, last, user, last_user, seed=0)
    assert last[best].mean() - last[0].mean() > 0.03
    assert fair.low < 0 < fair.high


@pytest.mark.parametrize(
    ("budget", "expected"), [("90s", 90), ("90", 90), ("10m", 600), ("1h30m", 5400), (" 2h ", 7200), ("1m30", 90)]
)
def test_a_budget_is_parsed_as_seconds(budget: str, expected: float) -> None:
    assert seconds(budget) == expected


@pytest.mark.parametrize("budget", ["", "0", "0m", "-5m", "ten", "10 m", "1.5h", "٣m", "nan", "1d", "m", "9" * 40])
def test_an_invalid_budget_is_rejected(budget: str) -> None:
    with pytest.raises(DataError, match="is not a duration; expected, for example, 90s, 10m or 1h30m"):
        seconds(budget)


# --- ablation ---


def test_groups_are_in_column_order_with_within_list_last() -> None:
    """Within-list features are computed from the others, so they are added last."""
    own = Feature("mine", "", "", "", lambda m: 0.0)
    ordered = groups((*FEATURES, STARS, own))
    assert ordered[0] == "popularity"
    assert ordered[-3:] == ["attributes", "own", "within-list"]
    assert all(in_group(FEATURES, group).any() for group in groups(FEATURES))


def test_a_within_list_feature_belongs_to_the_group_of_its_source_too() -> None:
    left_out = {f.name for f, of in zip(FEATURES, in_group(FEATURES, "price"), strict=True) if of}
    assert left_out == {"item_price", "price_to_habit", "item_price_rank", "item_price_over_mean"}


def test_the_group_with_the_signal_is_the_important_one() -> None:
    """The signal is `text_taste`: leaving its group out loses everything, and adding it gains everything. No other
    group does either. Its rank within the list is left out too, or nothing would be lost."""
    features = (*FEATURES, STARS)
    columns = [f.name for f in features]
    signal, derived = columns.index("text_taste"), columns.index("text_taste_rank")
    (x, training), (x_held_out, held_out) = (
        synthetic_rows(n, first, len(columns), signal) for n, first in ((100, 0), (60, 500))
    )
    for rows in (x, x_held_out):
        rows[:, derived] = rows[:, signal]
    fold = Fold(x, training, x_held_out, held_out)
    progress: list[tuple[int, int]] = []
    ablation = ablate(fold, features, QUICK, seeds=2, on_progress=lambda *at: progress.append(at))
    by = {g.group: g for g in ablation.groups}
    assert list(by) == groups(features)
    assert max(by, key=lambda g: by[g].lost.difference) == "interest text"
    assert by["interest text"].lost.low > 0.1
    assert by["interest text"].gained.low > 0.1
    # Leaving out only the copy loses a little, as two columns with one signal are sampled more often than one.
    others = [g for g in ablation.groups if g.group not in ("interest text", "within-list")]
    assert all(abs(g.lost.difference) < 0.1 for g in others)
    assert by["within-list"].lost.difference < by["interest text"].lost.low
    assert by["within-list"].added == ablation.full
    # The gains of the groups add up to the difference between chance and all features.
    chance = ablation.full - math.fsum(g.gained.difference for g in ablation.groups)
    assert chance == pytest.approx(chance_ndcg(fold))
    steps = 2 * len(by) * 2  # with and without each group, for two seeds
    assert progress[-1] == (steps, steps)


def chance_ndcg(fold: Fold) -> float:
    return float(fold.ndcg_of(np.zeros(fold.held_out.rows)).mean())


# --- the commands ---


def test_the_commands_make_the_rows_they_need_and_print_their_results(tmp_path: Path) -> None:
    """From a log, `tune` runs the nightly steps up to the rows and `ablate` reuses them. Both write their files."""
    simulate(SimulateConfig(items=60, users=60, days=6, list_length=8, lists_per_user_day=0.5), tmp_path / "data")
    config = tmp_path / "shop.yaml"
    config.write_text(
        "encoder: {epochs: 1, budget_s: 60, max_tokens: 16}\n"
        "ranker: {trees: 5, min_data_in_leaf: 5, early_stopping_rounds: 2}\n"
    )
    where = ["-c", str(config), "-w", str(tmp_path)]
    output = CliRunner().invoke(app.app, ["tune", *where, "--budget", "2s"], catch_exceptions=False)
    assert output.exit_code == 0
    assert "trials by ndcg@10" in output.output
    (run,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    assert f"settings: {run / 'tuned.yaml'}" in output.output
    output = CliRunner().invoke(app.app, ["ablate", *where, "--seeds", "1"], catch_exceptions=False)
    assert "validation lists" in output.output
    ablation = json.loads((run / "ablation.json").read_text("utf-8"))
    assert [g["group"] for g in ablation["groups"]] == groups((*FEATURES, STARS))


def test_an_invalid_budget_stops_the_command_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="budget 'soon' is not a duration"):
        CliRunner().invoke(app.app, ["tune", "-w", str(tmp_path), "--budget", "soon"], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()
