"""Trains the ranker of a run on its feature rows: early stopping on validation, then a refit on both windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F32, F64, I64
from features.log import Lists
from offline.runtime import LOCAL, Engine, OnProgress, WorkerGroup, no_progress
from offline.training.position_effects import examination_probability
from ranker import query_prior
from ranker.train import RankerConfig, Trained, refit, train
from ranker.trees import Trees


class WindowRows(NamedTuple):
    """Feature rows and lists of a window.

    rows: float32[rows, features]. numbers: int64[lists], the number of each list among all lists of the run.
    """

    rows: F32
    lists: Lists
    numbers: I64

    def take(self, lists: I64) -> WindowRows:
        """Select lists by index, ascending."""
        selected = np.isin(np.arange(len(self.lists)), lists)[self.lists.group]
        return WindowRows(self.rows[selected], self.lists.take(lists), self.numbers[lists])


def fit_ranker(
    learn: WindowRows,
    valid: WindowRows,
    refit_on: WindowRows | None,
    names: Sequence[str],
    config: RankerConfig,
    columns: I64 | None = None,
    engine: Engine = LOCAL,
    on_progress: OnProgress | None = None,
) -> tuple[Trained, F64]:
    """Train the ranker. Returns it with float64[validation rows], the scores of the model before the refit.

    The scores are out-of-sample; the refit trains on the validation rows too. learn, valid: rows to train on, and later
    ones for early stopping. refit_on: the rows of both windows, for a refit with the same number of trees; None skips
    it. names: of the features. columns: indices of the features to use, ascending, or None for all; the model's feature
    numbers then index `columns`. Position bias is removed if `config.position_debias` is set and lists have positions.
    """
    use = np.arange(len(names)) if columns is None else columns
    x, x_valid = (_without_rare(w.rows, names, learn.lists) for w in (learn, valid))
    examination = None
    if config.position_debias:
        examination = examination_probability(x, learn.lists, valid.lists, names)
    x_valid = _select_columns(x_valid, columns)
    report = on_progress or no_progress
    job = _job(_select_columns(x, columns), learn.lists, [names[k] for k in use], config) | {
        "valid_rows": x_valid,
        "valid_gain": valid.lists.gain,
        "valid_start": valid.lists.start,
        "valid_examination": examination,
    }
    trained = engine.train("lightgbm", _train, job, report)
    valid_score = Trees.parse(trained.model_text).score(x_valid)
    if refit_on is None:
        return trained, valid_score
    del x, x_valid, job
    rows = _select_columns(_without_rare(refit_on.rows, names, learn.lists), columns)
    job = _job(rows, refit_on.lists, [names[k] for k in use], config) | {"trained": trained}
    return engine.train("lightgbm", _refit, job, report), valid_score


def _without_rare(rows: F32, names: Sequence[str], learned: Lists) -> F32:
    """The rows without the features of queries, or of seeds, if too few lists have these.

    learned: the lists to learn from.
    """
    seeded = int((learned.seeds >= 0).any(axis=1).sum()) if len(learned.seeds) else 0
    return query_prior.hide_seeds(query_prior.hide_query(rows, names, sum(map(bool, learned.query))), names, seeded)


def _select_columns(rows: F32, columns: I64 | None) -> F32:
    return rows if columns is None else rows[:, columns]


def _job(rows: F32, lists: Lists, names: Sequence[str], config: RankerConfig) -> dict[str, Any]:
    return {
        "rows": rows,
        "gain": lists.gain,
        "start": lists.start,
        "names": names,
        "config": config,
        "position": lists.position if config.position_debias else None,
    }


def _train(job: dict[str, Any], group: WorkerGroup, on_progress: OnProgress) -> Trained:
    """Run `train` as one worker of a group."""
    return train(**job, on_progress=on_progress, worker=group.rank, network=group.network)


def _refit(job: dict[str, Any], group: WorkerGroup, on_progress: OnProgress) -> Trained:
    """Run `refit` as one worker of a group."""
    return refit(**job, worker=group.rank, network=group.network)
