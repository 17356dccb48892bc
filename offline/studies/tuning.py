"""Hyperparameter search for the ranker. Settings are evaluated on later lists, never on the test window.

A trial samples settings, then trains and evaluates two rankers. The first is trained on the early part of the ranker's
window and evaluated on the rest of it; this result also decides whether the trial is pruned. The second is trained on
the whole window and evaluated on validation. Two folds select better than validation alone: it has few lists, so with
many trials some settings look good on it by chance. For the same reason the gain is reported cross-fitted as well.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from features.arrays import F32, F64
from features.log import Lists
from features.table import Feature
from offline.evaluation import PRIMARY
from offline.nightly import Artefacts
from offline.runtime import DataError, OnProgress, no_progress, write_json
from ranker.metrics import Difference, paired_difference, score_lists, tie_break
from ranker.train import RankerConfig, train
from ranker.trees import Trees

STUDY = "tune.db"
FRAGMENT = "tuned.yaml"
REPORT = "tune.json"
LABEL_GAINS: dict[str, tuple[float, ...]] = {
    "0 1 3 7": (0, 1, 3, 7),
    "0 1 2 3": (0, 1, 2, 3),
    "0 1 1.5 2": (0, 1, 1.5, 2),
    "0 1 5 20": (0, 1, 5, 20),
}
"""Candidate `label_gain` values for training. The metric always uses its own, 2^gain - 1."""

_EARLIER = 0.6
"""Share of the ranker's window that the first fold trains on."""


@dataclass(frozen=True)
class Fold:
    """Lists to train on and later lists to evaluate on. x, x_held_out: float32[rows, features] of each."""

    x: F32
    training: Lists
    x_held_out: F32
    held_out: Lists

    def ndcg(
        self,
        config: RankerConfig,
        columns: Sequence[str],
        kept: NDArray[np.intp] | None = None,
        on_tree: Callable[[int, int], None] | None = None,
    ) -> F64:
        """float64[held-out lists]: ndcg@10 of a ranker trained with these settings.

        columns: names of the features. kept: indices of the features to use, or None for all. Early stopping uses the
        held-out lists, as in a nightly run, which biases all settings upwards alike.
        """
        use = np.arange(len(columns)) if kept is None else kept
        x_held_out = np.ascontiguousarray(self.x_held_out[:, use])
        trained = train(
            np.ascontiguousarray(self.x[:, use]),
            self.training.gain,
            self.training.start,
            x_held_out,
            self.held_out.gain,
            self.held_out.start,
            [columns[c] for c in use],
            config,
            self.training.position if config.position_debias else None,
            on_progress=on_tree,
        )
        return self.ndcg_of(Trees.parse(trained.model_text).score(x_held_out))

    def ndcg_of(self, score: F64) -> F64:
        """float64[held-out lists]: ndcg@10 of `score`, float64[held-out rows]."""
        lists = self.held_out
        return score_lists(PRIMARY, score, lists.gain, lists.start, tie_break(lists.item, lists.start), lists.missed)


@dataclass(frozen=True)
class Trial:
    """One sample of settings and its result.

    state: complete, pruned or fail (interrupted). ndcg: mean over the lists of both folds. validation: mean over the
    validation lists. Both are None unless the trial is complete.
    """

    number: int
    state: str
    settings: dict[str, Any]
    ndcg: float | None
    validation: float | None
    seconds: float


@dataclass(frozen=True)
class TuningResult:
    """Result of tuning.

    config: the best settings, or the initial ones if none was better. changed: the sampled settings of `config`, empty
    if none was better. gain: ndcg@10 on the validation lists minus that of the initial settings. It is biased upwards,
    because these lists also helped to select the settings. fair: the same difference, cross-fitted: the lists of each
    half of the users are scored with the settings selected on the other half. It is an unbiased estimate of what tuning
    gains. before: ndcg@10 of the initial settings on the validation lists. trials: in the order they ran,
    including those of earlier calls.
    """

    config: RankerConfig
    changed: dict[str, Any]
    gain: Difference
    fair: Difference
    before: float
    trials: tuple[Trial, ...]

    @property
    def is_sure(self) -> bool:
        """True if the interval of `fair` lies above zero."""
        return bool(self.fair.low > 0)


def make_folds(a: Artefacts) -> tuple[tuple[Fold, ...], tuple[Feature, ...]]:
    """Folds of a nightly run, earliest first, and its features in column order. Raises DataError for too few lists."""
    (x, training, _), (x_held_out, held_out, _) = a.window_rows("ranker"), a.window_rows("validation")
    first = int(np.searchsorted(training.at, training.at[int(_EARLIER * len(training))], side="left"))
    if first == 0:
        raise DataError(f"too few lists for tuning: the ranker window has {len(training)}. Import a longer log.")
    row = int(training.start[first])
    early, late = training.take(np.arange(first)), training.take(np.arange(first, len(training)))
    return (Fold(x[:row], early, x[row:], late), Fold(x, training, x_held_out, held_out)), a.replay.features


def tune(
    folds: Sequence[Fold],
    columns: Sequence[str],
    base: RankerConfig,
    directory: Path,
    budget_s: float,
    seed: int = 0,
    most: int | None = None,
    on_progress: OnProgress | None = None,
) -> TuningResult:
    """Search the ranker's settings for `budget_s` seconds, resuming the study of an earlier call in this directory.

    folds: earliest first; the last evaluates on validation. columns: names of the features. base: the initial settings;
    they are always evaluated, however short the budget. directory: holds the study (`tune.db`, SQLite) and receives the
    results: `tuned.yaml`, a `ranker:` section to paste into the configuration, and `tune.json` with the trials. The
    study must be of the same folds and the same `base`, as in a run's directory. Only one call may use it at a time,
    because unfinished trials are attributed to a killed call and marked as failed. most: maximum number of trials over
    all calls, None for no limit. on_progress: called with the seconds passed and `budget_s`.

    The settings of a trial depend only on `seed` and the trials before it, so a killed study resumes unchanged. Raises
    DataError if the study was started from different settings.

    `position_debias` is evaluated on gains from the order that was shown. If that order was biased, this favours
    `position_debias: false`, which should then be confirmed on lists shown in random order.
    """
    tuning = _Tuning(folds, columns, base, directory, budget_s, on_progress)
    try:
        tuning.run(seed, most)
        result = tuning.result(seed)
    finally:
        tuning.close()
    directory.joinpath(FRAGMENT).write_text(fragment(result), "utf-8")
    write_json(
        directory / REPORT,
        {
            "best": result.changed,
            "before": result.before,
            "gain": asdict(result.gain),
            "fair": asdict(result.fair),
            "trials": [asdict(trial) for trial in result.trials],
        },
    )
    return result


def fragment(result: TuningResult) -> str:
    """The best settings as a YAML `ranker:` section, with a summary of their gain as a comment above it."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in result.changed.items()}
    return f"# {summarize(result)}\n{yaml.safe_dump({'ranker': plain}, sort_keys=False)}"


def summarize(result: TuningResult) -> str:
    """The gain with its interval, and whether it is significant, in one line."""
    if not result.changed:
        return f"No better settings found in {len(result.trials)} trials. Keep the initial ones."
    g, f = result.gain, result.fair
    figures = (
        f"{PRIMARY} on {g.lists} validation lists: {g.difference:+.4f} [{g.low:+.4f}, {g.high:+.4f}] compared with "
        f"{result.before:.4f} for the initial settings; cross-fitted over two halves of the users: {f.difference:+.4f} "
        f"[{f.low:+.4f}, {f.high:+.4f}]."
    )
    return f"{figures} {'Better.' if result.is_sure else 'No clear gain: keep the initial settings.'}"


class _OutOfTime(Exception):
    """The budget ran out during a trial."""


class _Tuning:
    """A study on disk, the folds it evaluates on, and the remaining time."""

    def __init__(
        self,
        folds: Sequence[Fold],
        columns: Sequence[str],
        base: RankerConfig,
        directory: Path,
        budget_s: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._folds, self._columns, self._base = folds, columns, base
        self._started, self._budget_s = time.monotonic(), budget_s
        self._report = on_progress or no_progress
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # The file is opened here, because a database URL cannot hold every path: `?` starts its options.
        engine = {"creator": lambda: sqlite3.connect(directory / STUDY, timeout=60)}
        self._storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=engine)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="ranker",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
        self._check_base(directory)

    def close(self) -> None:
        """Close the database file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def run(self, seed: int, most: int | None) -> None:
        """Run trials until the budget is spent or there are `most` trials."""
        if "before" not in self._study.user_attrs:
            self._study.set_user_attr("before", [fold.tolist() for fold in self._evaluate(self._base, lambda *_: None)])
        for interrupted in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            # Left by a call that was killed.
            self._study.tell(interrupted.number, state=TrialState.FAIL)
        while self._left() > 0 and (most is None or self._ended() < most):
            # Seeded by the number of finished trials, so that a resumed study draws the same settings.
            self._study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + self._ended()) % 2**32)
            self._try(self._study.ask())

    def _try(self, trial: optuna.Trial) -> None:
        try:
            ndcg = self._evaluate(self._sample(trial), self._on_tree, trial)
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except _OutOfTime:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("ndcg", [fold.tolist() for fold in ndcg])
            self._study.tell(trial, float(np.concatenate(ndcg).mean()))

    def _evaluate(
        self, config: RankerConfig, on_tree: Callable[[int, int], None], trial: optuna.Trial | None = None
    ) -> list[F64]:
        """ndcg@10 for each fold, float64[held-out lists]. Raises TrialPruned below the median of earlier trials."""
        ndcg: list[F64] = []
        for step, fold in enumerate(self._folds):
            ndcg.append(fold.ndcg(config, self._columns, on_tree=on_tree))
            if trial is not None and step < len(self._folds) - 1:
                trial.report(float(np.concatenate(ndcg).mean()), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return ndcg

    def _on_tree(self, done: int, total: int) -> None:
        self._report(int(min(time.monotonic() - self._started, self._budget_s)), int(self._budget_s))
        if self._left() <= 0:
            raise _OutOfTime

    def _left(self) -> float:
        return self._started + self._budget_s - time.monotonic()

    def _ended(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def _check_base(self, directory: Path) -> None:
        """Raise DataError if the study was started from different settings."""
        base = json.loads(self._base.model_dump_json(exclude={"threads"}))
        stored = self._study.user_attrs.get("base", base)
        changes = [
            f"{name} was {stored.get(name)}, is {value}" for name, value in base.items() if stored.get(name) != value
        ]
        if changes:
            self.close()
            raise DataError(
                f"{directory / STUDY}: this study was started from different settings ({changes[0]})."
                " Delete the file to start a new study."
            )
        self._study.set_user_attr("base", base)

    def _sample(self, trial: optuna.Trial) -> RankerConfig:
        """Sample settings from ranges wide enough that the optimum is not at an edge."""
        settings: dict[str, Any] = {
            "leaves": trial.suggest_int("leaves", 2, 127, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 0.015, 0.2, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 10, 500, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.15, 1.0),
            "lambda_l2": trial.suggest_float("lambda_l2", 0.01, 100.0, log=True),
            "truncation_level": trial.suggest_int("truncation_level", 5, 60, log=True),
        }
        training = self._folds[-1].training
        # Without graded gains, or without positions, these settings have no effect.
        if training.gain.max() > 1:
            settings["label_gain"] = LABEL_GAINS[trial.suggest_categorical("label_gain", list(LABEL_GAINS))]
        if self._base.position_debias and (training.position >= 0).any():
            settings["position_debias"] = trial.suggest_categorical("position_debias", [True, False])
        return RankerConfig.model_validate({**self._base.model_dump(), **settings})

    def result(self, seed: int) -> TuningResult:
        """The best of the initial settings and the complete trials."""
        before = [np.array(fold) for fold in self._study.user_attrs["before"]]
        done = [t for t in self._study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        evaluated = [before] + [[np.array(fold) for fold in t.user_attrs["ndcg"]] for t in done]
        every = np.stack([np.concatenate(folds) for folds in evaluated])
        best = int(every.mean(axis=1).argmax())
        changed = _settings(done[best - 1]) if best else {}
        last = np.stack([folds[-1] for folds in evaluated])
        user = np.concatenate([fold.held_out.user for fold in self._folds])
        return TuningResult(
            config=RankerConfig.model_validate({**self._base.model_dump(), **changed}),
            changed=changed,
            gain=paired_difference(last[best], last[0], self._folds[-1].held_out.user, seed=seed),
            fair=_cross_fitted_gain(every, last, user, self._folds[-1].held_out.user, seed),
            before=float(last[0].mean()),
            trials=tuple(map(self._trial, self._study.get_trials(deepcopy=False))),
        )

    @staticmethod
    def _trial(t: FrozenTrial) -> Trial:
        ndcg = t.user_attrs.get("ndcg")
        return Trial(
            number=t.number,
            state=t.state.name.lower(),
            settings=_settings(t),
            ndcg=t.value if ndcg else None,
            validation=float(np.mean(ndcg[-1])) if ndcg else None,
            seconds=t.duration.total_seconds() if t.duration else 0.0,
        )


def _settings(trial: FrozenTrial) -> dict[str, Any]:
    settings = dict(trial.params)
    if "label_gain" in settings:
        settings["label_gain"] = LABEL_GAINS[settings["label_gain"]]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in settings.items()}


def _cross_fitted_gain(
    every: F64, last: F64, user: NDArray[np.int32], last_user: NDArray[np.int32], seed: int
) -> Difference:
    """Gain over the initial settings, each half of the users scored with settings selected on the other half's lists.

    every: float64[settings, lists of all folds]. last: float64[settings, lists of the last fold]. Row 0 holds the
    initial settings. user, last_user: int32, the user of each list.
    """
    users = np.random.default_rng(seed).permutation(np.unique(user))
    half, last_half = (np.isin(u, users[: len(users) // 2]) for u in (user, last_user))
    selected = last[0].copy()
    for side in (False, True):
        others = every[:, half != side]
        best = int(others.mean(axis=1).argmax()) if others.shape[1] else 0
        selected[last_half == side] = last[best, last_half == side]
    return paired_difference(selected, last[0], last_user, seed=seed)
