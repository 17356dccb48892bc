"""Tuning and ablation: planted rows in which one column tells all, studies that go on, figures that do not flatter."""

from __future__ import annotations

import json
import math
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
from offline.studies.tuning import LABEL_GAINS, STUDY, Fold, Tuned, fragment, make_folds, summarize, tune
from ranker.train import RankerConfig
from tests.worlds import make_lists

QUICK = RankerConfig(trees=8, leaves=31, early_stopping_rounds=4, min_data_in_leaf=5, position_debias=False)
# No leaf can hold so many: a ranker that cannot learn.
DUMB = QUICK.model_copy(update={"min_data_in_leaf": 100_000})
COLUMNS = ("noise", "signal", "more_noise")
SIZE = 6


STARS = Feature("item_stars", "stars", "as given", "no stars", lambda m: 0.0, "attributes")


def planted(n: int, first: int, columns: int = 3, signal: int = 1, most: int = 1) -> tuple[np.ndarray, Lists]:
    """n lists of six by n / 2 users; column `signal` is highest, as a rule, for the one that was chosen."""
    rng = np.random.default_rng(first)
    made = make_lists(
        [60.0 * (first + g) for g in range(n)],
        [g % (n // 2) for g in range(n)],
        [rng.permutation(100)[:SIZE].tolist() for _ in range(n)],
    )
    gain = np.zeros(made.rows, np.int8)
    gain[made.start[:-1] + rng.integers(0, SIZE, n)] = rng.integers(1, most + 1, n)
    x = rng.normal(size=(made.rows, columns)).astype(np.float32)
    x[:, signal] += 2 * gain
    return x, replace(made, gain=gain, position=np.tile(np.arange(SIZE, dtype=np.int16), n))


def parts(**how: int) -> tuple[Fold, Fold]:
    """Two folds, the second later and learning from all of the first."""
    (x, learnt), (x_judged, judged), (x_last, last) = (planted(60, 60 * k, **how) for k in range(3))
    whole = planted(120, 300, **how)
    return Fold(x, learnt, x_judged, judged), Fold(*whole, x_last, last)


def tuned(directory: Path, base: RankerConfig = QUICK, most: int | None = 3, **how: Any) -> Tuned:
    directory.mkdir(parents=True, exist_ok=True)
    return tune(parts(), COLUMNS, base, directory, how.pop("budget_s", 300), how.pop("seed", 0), most, **how)


# --- folds ---


def test_a_fold_judges_by_the_later_lists_and_the_same_twice() -> None:
    fold = parts()[-1]
    found = fold.ndcg(QUICK, COLUMNS)
    assert found.shape == (60,)
    assert found.mean() > 0.8
    np.testing.assert_array_equal(found, fold.ndcg(QUICK, COLUMNS))


def test_without_the_column_that_tells_all_a_fold_is_near_chance() -> None:
    """One chosen of six by chance: mean(1 / log2(1 + rank)) over ranks 1 to 6."""
    chance = np.mean(1 / np.log2(1 + np.arange(1, SIZE + 1)))
    assert parts()[-1].ndcg(QUICK, COLUMNS, np.array([0, 2])).mean() == pytest.approx(chance, abs=0.12)


def test_folds_are_cut_by_time_and_never_touch_the_test_window() -> None:
    """The first learns from the first six tenths of the ranker's lists and is judged on the rest; the last learns from
    all of them and is judged on validation."""
    asked = []

    def part(window: str) -> tuple[np.ndarray, Lists, None]:
        asked.append(window)
        return *planted(50, {"ranker": 0, "validation": 50}[window]), None

    early, last = _folds(part)
    assert asked == ["ranker", "validation"]
    assert (len(early.learnt), len(early.judged), len(last.learnt), len(last.judged)) == (30, 20, 50, 50)
    assert early.learnt.at.max() < early.judged.at.min()
    assert early.judged.at.max() < last.judged.at.min()
    np.testing.assert_array_equal(np.vstack([early.x, early.x_judged]), last.x)


def test_lists_of_one_moment_cannot_be_cut() -> None:
    def part(window: str) -> tuple[np.ndarray, Lists, None]:
        x, made = planted(10, 0)
        return x, replace(made, at=np.zeros(10)), None

    with pytest.raises(DataError, match="the ranker window holds 10 lists, too few to tune by"):
        _folds(part)


def _folds(part: Any) -> tuple[Fold, ...]:
    made, features = make_folds(SimpleNamespace(window_rows=part, replay=SimpleNamespace(features=FEATURES)))  # type: ignore[arg-type]
    assert features == FEATURES
    return made


# --- tuning ---


def test_settings_that_cannot_learn_are_bettered_and_surely_so(tmp_path: Path) -> None:
    found = tuned(tmp_path, DUMB, most=3)
    assert found.gain.low > 0
    assert found.is_sure
    assert found.config.min_data_in_leaf < 1000
    assert summarize(found).endswith(": better.")


def test_the_fragment_is_a_configuration(tmp_path: Path) -> None:
    """What is written can be given to --config as it is, and says what it is worth in its first line."""
    found = tuned(tmp_path, DUMB)
    written = tmp_path / "tuned.yaml"
    assert written.read_text("utf-8") == fragment(found)
    assert written.read_text("utf-8").startswith("# ndcg@10 on 60 validation lists: +")
    ranker = load(written).ranker
    assert {name: getattr(ranker, name) for name in found.changed} == found.changed
    report = json.loads((tmp_path / "tune.json").read_text("utf-8"))
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2]
    assert report["gain"]["lists"] == 60


def test_a_study_that_was_stopped_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole = tuned(tmp_path / "whole", most=3)
    tuned(tmp_path / "halves", most=2)
    halves = tuned(tmp_path / "halves", most=3)
    assert [t.settings for t in whole.trials] == [t.settings for t in halves.trials]
    assert [t.ndcg for t in whole.trials] == [t.ndcg for t in halves.trials]
    assert (whole.gain, whole.fair, whole.config) == (halves.gain, halves.fair, halves.config)


def test_another_seed_draws_other_settings(tmp_path: Path) -> None:
    a, b = (tuned(tmp_path / str(seed), most=1, seed=seed) for seed in (1, 2))
    assert a.trials[0].settings != b.trials[0].settings


def test_without_time_the_first_settings_stay(tmp_path: Path) -> None:
    found = tuned(tmp_path, most=None, budget_s=0)
    assert (found.changed, found.config, found.gain.difference) == ({}, QUICK, 0)
    assert summarize(found) == "No setting out of 0 trials was better than the first ones."
    assert yaml.safe_load((tmp_path / "tuned.yaml").read_text("utf-8")) == {"ranker": {}}


def test_time_that_ends_within_a_trial_cuts_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps once the first trial has begun; its figures, being of half a ranker, are not used."""
    real, jump = tuning.time.monotonic, [0.0]
    monkeypatch.setattr(tuning.time, "monotonic", lambda: real() + jump[0])

    def seen(done: int, total: int) -> None:
        assert total == 300
        jump[0] = 1000

    found = tuned(tmp_path, most=None, on_progress=seen)
    assert [(t.state, t.ndcg, t.validation) for t in found.trials] == [("fail", None, None)]
    assert found.changed == {}


def test_a_trial_of_a_call_that_was_killed_is_given_up(tmp_path: Path) -> None:
    tuned(tmp_path, most=1)
    study = optuna.load_study(study_name="ranker", storage=f"sqlite:///{tmp_path / STUDY}")
    study.ask()
    study._storage.remove_session()
    found = tuned(tmp_path, most=2)
    assert [t.state for t in found.trials] == ["complete", "fail", "complete"]


def test_hopeless_settings_are_pruned_after_the_first_fold(tmp_path: Path) -> None:
    """From the sixth trial on, whoever is below the median of the others on the first fold is given up."""
    found = tuned(tmp_path, most=12)
    states = [t.state for t in found.trials]
    assert states[:5] == ["complete"] * 5
    assert "pruned" in states
    assert all(t.ndcg is None for t in found.trials if t.state == "pruned")


def test_a_study_of_other_first_settings_is_refused(tmp_path: Path) -> None:
    tuned(tmp_path, most=1)
    with pytest.raises(DataError, match=r"tune.db is a study of other settings \(leaves 31 is now 7\): remove it"):
        tuned(tmp_path, QUICK.model_copy(update={"leaves": 7}), most=1)
    # What does not change the trees may change.
    assert tuned(tmp_path, QUICK.model_copy(update={"threads": 2}), most=1).trials


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    """Also one that would end the address of a database."""
    found = tuned(tmp_path / "a b?c#d%20é", most=1)
    assert len(found.trials) == 1
    assert (tmp_path / "a b?c#d%20é" / STUDY).is_file()


def test_only_what_can_change_something_is_drawn(tmp_path: Path) -> None:
    """Gains are where there are several; debiasing where there are positions and the base asks for it."""
    plain = tuned(tmp_path / "plain", most=1)
    assert not {"label_gain", "position_debias"} & set(plain.trials[0].settings)
    for directory, debias in ((tmp_path / "graded", False), (tmp_path / "debiased", True)):
        directory.mkdir()
        base = QUICK.model_copy(update={"position_debias": debias})
        found = tune(parts(most=3), COLUMNS, base, directory, 300, most=1)
        assert found.trials[0].settings["label_gain"] in LABEL_GAINS.values()
        assert debias == ("position_debias" in found.trials[0].settings)


def test_the_fair_figure_is_not_flattered_by_trying_often() -> None:
    """A hundred settings, all alike but for noise: the best of them looks better on the lists that chose it, and is no
    better on those that did not."""
    rng = np.random.default_rng(1)
    every = rng.random((100, 600))
    user = np.arange(600, dtype=np.int32) // 3
    last, last_user = every[:, 300:], user[300:]
    best = every.mean(axis=1).argmax()
    fair = tuning._fair(every, last, user, last_user, seed=0)
    assert last[best].mean() - last[0].mean() > 0.03
    assert fair.low < 0 < fair.high


@pytest.mark.parametrize(
    ("budget", "expected"), [("90s", 90), ("90", 90), ("10m", 600), ("1h30m", 5400), (" 2h ", 7200), ("1m30", 90)]
)
def test_a_budget_is_a_time(budget: str, expected: float) -> None:
    assert seconds(budget) == expected


@pytest.mark.parametrize("budget", ["", "0", "0m", "-5m", "ten", "10 m", "1.5h", "٣m", "nan", "1d", "m", "9" * 40])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(DataError, match="is no time; expected one such as 90s, 10m or 1h30m"):
        seconds(budget)


# --- ablation ---


def test_groups_come_in_column_order_and_those_within_the_list_last() -> None:
    """Made of the others, they are added when these are there."""
    own = Feature("mine", "", "", "", lambda m: 0.0)
    found = groups((*FEATURES, STARS, own))
    assert found[0] == "popularity"
    assert found[-3:] == ["attributes", "own", "within-list"]
    assert all(in_group(FEATURES, group).any() for group in groups(FEATURES))


def test_what_is_compared_within_the_list_goes_with_the_feature_it_compares() -> None:
    left_out = {f.name for f, of in zip(FEATURES, in_group(FEATURES, "price"), strict=True) if of}
    assert left_out == {"item_price", "price_to_habit", "item_price_rank", "item_price_over_mean"}


def test_the_group_that_tells_all_is_the_one_that_is_missed() -> None:
    """The signal is `text_taste`: without its group all is lost, added it brings all, and no other group does either.
    Its rank within the list goes with it, or nothing would be missed."""
    features = (*FEATURES, STARS)
    columns = [f.name for f in features]
    signal, derived = columns.index("text_taste"), columns.index("text_taste_rank")
    made = []
    for n, first in ((100, 0), (60, 500)):
        x, found = planted(n, first, len(columns), signal)
        x[:, derived] = x[:, signal]
        made += [x, found]
    told: list[tuple[int, int]] = []
    found = ablate(Fold(*made), features, QUICK, seeds=2, on_progress=lambda *at: told.append(at))
    by = {g.group: g for g in found.groups}
    assert list(by) == groups(features)
    assert max(by, key=lambda g: by[g].lost.difference) == "interest text"
    assert by["interest text"].lost.low > 0.1
    assert by["interest text"].gained.low > 0.1
    # The copy alone is missed a little, as two columns of one signal are found sooner than one.
    others = [g for g in found.groups if g.group not in ("interest text", "within-list")]
    assert all(abs(g.lost.difference) < 0.1 for g in others)
    assert by["within-list"].lost.difference < by["interest text"].lost.low
    assert by["within-list"].added == found.full
    # What the groups add, one by one, leads from chance to the whole.
    chance = found.full - math.fsum(g.gained.difference for g in found.groups)
    assert chance == pytest.approx(made_chance(Fold(*made)))
    steps = 2 * len(by) * 2  # with and without each, by two seeds
    assert told[-1] == (steps, steps)


def made_chance(fold: Fold) -> float:
    return float(fold.judge(np.zeros(fold.judged.rows)).mean())


# --- the commands ---


def test_the_commands_make_the_rows_they_need_and_print_what_they_found(tmp_path: Path) -> None:
    """From a log alone: `tune` does the night up to its rows, `ablate` finds them done, and both leave their files."""
    simulate(SimulateConfig(items=60, users=60, days=6, list_length=8, lists_per_user_day=0.5), tmp_path / "data")
    config = tmp_path / "shop.yaml"
    config.write_text(
        "encoder: {epochs: 1, budget_s: 60, max_tokens: 16}\n"
        "ranker: {trees: 5, min_data_in_leaf: 5, early_stopping_rounds: 2}\n"
    )
    where = ["-c", str(config), "-w", str(tmp_path)]
    said = CliRunner().invoke(app.app, ["tune", *where, "--budget", "2s"], catch_exceptions=False)
    assert said.exit_code == 0
    assert "trials, by ndcg@10" in said.output
    (run,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    assert f"settings: {run / 'tuned.yaml'}" in said.output
    said = CliRunner().invoke(app.app, ["ablate", *where, "--seeds", "1"], catch_exceptions=False)
    assert "validation lists" in said.output
    found = json.loads((run / "ablation.json").read_text("utf-8"))
    assert [g["group"] for g in found["groups"]] == groups((*FEATURES, STARS))


def test_a_budget_that_is_none_stops_the_command_before_the_night_begins(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="budget 'soon' is no time"):
        CliRunner().invoke(app.app, ["tune", "-w", str(tmp_path), "--budget", "soon"], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()
