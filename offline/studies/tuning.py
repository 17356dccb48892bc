"""Tunes the ranker's settings by what they do on later lists: never on the test window, and never believed too soon.

A trial is a draw of settings, trained and judged twice: on the first part of the ranker's window, judged on the rest of
it; then on all of it, judged on the validation window. The first is also what a trial is given up by. Two folds choose
better than one, since validation alone holds few lists and many trials will find some setting that flatters it.
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
"""What gains may be worth in training; all are judged by the metric's own, 2^gain - 1."""

_EARLIER = 0.6
"""Share of the ranker's window that the first fold learns from."""


@dataclass(frozen=True)
class Fold:
    """Lists to learn from and later ones to judge by. x: float32[rows, features], of each."""

    x: F32
    learnt: Lists
    x_judged: F32
    judged: Lists

    def ndcg(
        self,
        config: RankerConfig,
        columns: Sequence[str],
        kept: NDArray[np.intp] | None = None,
        on_tree: Callable[[int, int], None] | None = None,
    ) -> F64:
        """float64[judged lists]: ndcg@10 of a ranker trained with these settings.

        columns: names of the features. kept: numbers of those that are used, all if None. Training stops early by the
        judged lists, as the night's does, which flatters all settings alike.
        """
        use = np.arange(len(columns)) if kept is None else kept
        x_judged = np.ascontiguousarray(self.x_judged[:, use])
        made = train(
            np.ascontiguousarray(self.x[:, use]),
            self.learnt.gain,
            self.learnt.start,
            x_judged,
            self.judged.gain,
            self.judged.start,
            [columns[c] for c in use],
            config,
            self.learnt.position if config.position_debias else None,
            on_progress=on_tree,
        )
        return self.judge(Trees.parse(made.model_text).score(x_judged))

    def judge(self, score: F64) -> F64:
        """float64[judged lists]: ndcg@10 of a score of their rows."""
        lists = self.judged
        return score_lists(PRIMARY, score, lists.gain, lists.start, tie_break(lists.item, lists.start), lists.missed)


@dataclass(frozen=True)
class Trial:
    """One draw of settings. state: complete, pruned or fail (cut off). ndcg: mean over the lists of both folds;
    validation: over those of the last; None where it did not come so far."""

    number: int
    state: str
    settings: dict[str, Any]
    ndcg: float | None
    validation: float | None
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    config: the best settings, those it began with if none was better. changed: the tuned ones among them. gain: their
    ndcg@10 above the first settings' on the validation lists, which also chose them, so that it flatters. fair: the
    same with each half of the users judging what the other half's lists would have chosen, an honest figure for tuning
    as such. trials: in the order they ran, those of earlier calls included.
    """

    config: RankerConfig
    changed: dict[str, Any]
    gain: Difference
    fair: Difference
    before: float
    trials: tuple[Trial, ...]

    @property
    def is_sure(self) -> bool:
        """Whether the honest interval excludes zero."""
        return bool(self.fair.low > 0)


def make_folds(a: Artefacts) -> tuple[tuple[Fold, ...], tuple[Feature, ...]]:
    """The folds of a night, earliest first, and its features in column order."""
    (x, learnt, _), (x_judged, judged, _) = a.window_rows("ranker"), a.window_rows("validation")
    first = int(np.searchsorted(learnt.at, learnt.at[int(_EARLIER * len(learnt))], side="left"))
    if first == 0:
        raise DataError(f"the ranker window holds {len(learnt)} lists, too few to tune by: import a longer log")
    row = int(learnt.start[first])
    early, late = learnt.take(np.arange(first)), learnt.take(np.arange(first, len(learnt)))
    return (Fold(x[:row], early, x[row:], late), Fold(x, learnt, x_judged, judged)), a.replay.features


def tune(
    parts: Sequence[Fold],
    columns: Sequence[str],
    base: RankerConfig,
    directory: Path,
    budget_s: float,
    seed: int = 0,
    most: int | None = None,
    on_progress: OnProgress | None = None,
) -> Tuned:
    """Draw settings around `base` for `budget_s` seconds; goes on where an earlier call in this directory stopped.

    parts: folds, earliest first; the last is validation. columns: names of the features. directory: holds the study
    (`tune.db`, SQLite) and gets the results: `tuned.yaml`, a `ranker:` section to paste into the configuration, and
    `tune.json`, the trials. The study must be of the same folds and `base`, as that of a run's directory is, and used
    by one call at a time: another's unfinished trials are taken for those of a call that was killed. most: trials in
    all, None for as many as there is time for. on_progress: called with seconds passed and `budget_s`.

    Whether to set positions aside is judged by gains that were had in the shown order, which favours not doing so where
    that order was biased: `position_debias: false` should be checked on lists shown in a random order.

    A trial's settings follow from `seed` and the trials before it, so a study that was killed goes on as it would have.
    The first settings are always judged, however short the time. Raises DataError for a study of other settings.
    """
    tuning = _Tuning(parts, columns, base, directory, budget_s, on_progress)
    try:
        tuning.run(seed, most)
        found = tuning.found(seed)
    finally:
        tuning.close()
    directory.joinpath(FRAGMENT).write_text(fragment(found), "utf-8")
    write_json(
        directory / REPORT,
        {
            "best": found.changed,
            "before": found.before,
            "gain": asdict(found.gain),
            "fair": asdict(found.fair),
            "trials": [asdict(trial) for trial in found.trials],
        },
    )
    return found


def fragment(found: Tuned) -> str:
    """The best settings as YAML, with what is known of their worth in front."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in found.changed.items()}
    return f"# {summarize(found)}\n{yaml.safe_dump({'ranker': plain}, sort_keys=False)}"


def summarize(found: Tuned) -> str:
    """One sentence: how much was gained, and whether to believe it."""
    if not found.changed:
        return f"No setting out of {len(found.trials)} trials was better than the first ones."
    g, f = found.gain, found.fair
    said = (
        f"{PRIMARY} on {g.lists} validation lists: {g.difference:+.4f} [{g.low:+.4f}, {g.high:+.4f}] over the first "
        f"settings' {found.before:.4f}; chosen by one half of the users and judged by the other: {f.difference:+.4f} "
        f"[{f.low:+.4f}, {f.high:+.4f}]"
    )
    return f"{said}: {'better' if found.is_sure else 'not surely better, keep the first settings'}."


class _OutOfTime(Exception):
    """The budget is spent in the middle of a trial."""


class _Tuning:
    """A study on disk, the folds it judges by, and the time there is."""

    def __init__(
        self,
        parts: Sequence[Fold],
        columns: Sequence[str],
        base: RankerConfig,
        directory: Path,
        budget_s: float,
        on_progress: OnProgress | None,
    ) -> None:
        self._parts, self._columns, self._base = parts, columns, base
        self._begun, self._budget_s = time.monotonic(), budget_s
        self._report = on_progress or no_progress
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # The file is opened here, since an address cannot hold every path: `?` begins its options.
        opened = {"creator": lambda: sqlite3.connect(directory / STUDY, timeout=60)}
        self._storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs=opened)
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="ranker",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
        self._check_base(directory)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def run(self, seed: int, most: int | None) -> None:
        """Trials until the time or the number is up."""
        if "before" not in self._study.user_attrs:
            self._study.set_user_attr("before", [fold.tolist() for fold in self._judged(self._base, lambda *_: None)])
        for cut_off in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            # Of a call that was killed.
            self._study.tell(cut_off.number, state=TrialState.FAIL)
        while self._left() > 0 and (most is None or self._ended() < most):
            # A sampler of its own for each trial: where the study goes on does not depend on where it was stopped.
            self._study.sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + self._ended()) % 2**32)
            self._try(self._study.ask())

    def _try(self, trial: optuna.Trial) -> None:
        try:
            made = self._judged(self._drawn(trial), self._on_tree, trial)
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except _OutOfTime:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            trial.set_user_attr("ndcg", [fold.tolist() for fold in made])
            self._study.tell(trial, float(np.concatenate(made).mean()))

    def _judged(
        self, config: RankerConfig, on_tree: Callable[[int, int], None], trial: optuna.Trial | None = None
    ) -> list[F64]:
        """For each fold, float64[judged lists]."""
        made: list[F64] = []
        for step, fold in enumerate(self._parts):
            made.append(fold.ndcg(config, self._columns, on_tree=on_tree))
            if trial is not None and step < len(self._parts) - 1:
                trial.report(float(np.concatenate(made).mean()), step)
                if trial.should_prune():
                    raise optuna.TrialPruned
        return made

    def _on_tree(self, grown: int, most: int) -> None:
        self._report(int(min(time.monotonic() - self._begun, self._budget_s)), int(self._budget_s))
        if self._left() <= 0:
            raise _OutOfTime

    def _left(self) -> float:
        return self._begun + self._budget_s - time.monotonic()

    def _ended(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))

    def _check_base(self, directory: Path) -> None:
        """The study's first settings must be these, or its figures say nothing of them."""
        mine = json.loads(self._base.model_dump_json(exclude={"threads"}))
        held = self._study.user_attrs.get("base", mine)
        odd = [f"{name} {held.get(name)} is now {value}" for name, value in mine.items() if held.get(name) != value]
        if odd:
            self.close()
            raise DataError(f"{directory / STUDY} is a study of other settings ({odd[0]}): remove it to begin anew")
        self._study.set_user_attr("base", mine)

    def _drawn(self, trial: optuna.Trial) -> RankerConfig:
        """Settings: ranges wide enough that the best lies within, not at the edge."""
        drawn: dict[str, Any] = {
            "leaves": trial.suggest_int("leaves", 2, 127, log=True),
            "learning_rate": trial.suggest_float("learning_rate", 0.015, 0.2, log=True),
            "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 10, 500, log=True),
            "feature_fraction": trial.suggest_float("feature_fraction", 0.15, 1.0),
            "lambda_l2": trial.suggest_float("lambda_l2", 0.01, 100.0, log=True),
            "truncation_level": trial.suggest_int("truncation_level", 5, 60, log=True),
        }
        learnt = self._parts[-1].learnt
        # Where only clicks were logged, or no positions, these change nothing.
        if learnt.gain.max() > 1:
            drawn["label_gain"] = LABEL_GAINS[trial.suggest_categorical("label_gain", list(LABEL_GAINS))]
        if self._base.position_debias and (learnt.position >= 0).any():
            drawn["position_debias"] = trial.suggest_categorical("position_debias", [True, False])
        return RankerConfig.model_validate({**self._base.model_dump(), **drawn})

    def found(self, seed: int) -> Tuned:
        """The best of what was judged to the end."""
        before = [np.array(fold) for fold in self._study.user_attrs["before"]]
        done = [t for t in self._study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
        judged = [before] + [[np.array(fold) for fold in t.user_attrs["ndcg"]] for t in done]
        every = np.stack([np.concatenate(j) for j in judged])
        best = int(every.mean(axis=1).argmax())
        changed = _settings(done[best - 1]) if best else {}
        last = np.stack([j[-1] for j in judged])
        user = np.concatenate([fold.judged.user for fold in self._parts])
        return Tuned(
            config=RankerConfig.model_validate({**self._base.model_dump(), **changed}),
            changed=changed,
            gain=paired_difference(last[best], last[0], self._parts[-1].judged.user, seed=seed),
            fair=_fair(every, last, user, self._parts[-1].judged.user, seed),
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
    held = dict(trial.params)
    if "label_gain" in held:
        held["label_gain"] = LABEL_GAINS[held["label_gain"]]
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in held.items()}


def _fair(every: F64, last: F64, user: NDArray[np.int32], last_user: NDArray[np.int32], seed: int) -> Difference:
    """Gain over the first settings, each half of the users judging what the other half's lists chose.

    every: float64[settings, lists of all folds], last: [settings, lists of the last]; row 0 the first settings.
    """
    users = np.random.default_rng(seed).permutation(np.unique(user))
    half, last_half = (np.isin(u, users[: len(users) // 2]) for u in (user, last_user))
    chosen = last[0].copy()
    for side in (False, True):
        others = every[:, half != side]
        best = int(others.mean(axis=1).argmax()) if others.shape[1] else 0
        chosen[last_half == side] = last[best, last_half == side]
    return paired_difference(chosen, last[0], last_user, seed=seed)
