"""`fit_ranker`: the ranker of a run from its rows, chosen on validation and refit on both windows."""

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
    """Rows of the lists of a window. rows: float32[rows, features]. numbers: int64[lists], among all of the run."""

    rows: F32
    lists: Lists
    numbers: I64

    def take(self, lists: I64) -> WindowRows:
        """Some of the lists, by their place here, ascending."""
        inside = np.isin(np.arange(len(self.lists)), lists)[self.lists.group]
        return WindowRows(self.rows[inside], self.lists.take(lists), self.numbers[lists])


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
    """The ranker, and float64[validation rows]: scores by the model before refitting, which had not seen them.

    refit_on: the rows of both windows, on which the model is trained again with as many trees; None leaves it out.
    names: of the features. columns: numbers of the features it may read, ascending; all if None, else the model counts
    among these. Positions are set aside where `config.position_debias` says so and lists have any.
    """
    use = np.arange(len(names)) if columns is None else columns
    searched = sum(map(bool, learn.lists.query))
    x, x_valid = (query_prior.hide_query(w.rows, names, searched) for w in (learn, valid))
    seen = None
    if config.position_debias:
        seen = examination_probability(x, learn.lists, valid.lists, names)
    x_valid = _some(x_valid, columns)
    watched = on_progress or no_progress
    job = _job(_some(x, columns), learn.lists, [names[k] for k in use], config) | {
        "valid_rows": x_valid,
        "valid_gain": valid.lists.gain,
        "valid_start": valid.lists.start,
        "valid_examination": seen,
    }
    chosen = engine.train("lightgbm", _train, job, watched)
    valid_score = Trees.parse(chosen.model_text).score(x_valid)
    if refit_on is None:
        return chosen, valid_score
    del x, x_valid, job
    rows = _some(query_prior.hide_query(refit_on.rows, names, searched), columns)
    job = _job(rows, refit_on.lists, [names[k] for k in use], config) | {"trained": chosen}
    return engine.train("lightgbm", _refit, job, watched), valid_score


def _some(rows: F32, columns: I64 | None) -> F32:
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
    """`train` by one worker of a group."""
    return train(**job, on_progress=on_progress, worker=group.rank, network=group.network)


def _refit(job: dict[str, Any], group: WorkerGroup, on_progress: OnProgress) -> Trained:
    """`refit` by one worker of a group."""
    return refit(**job, worker=group.rank, network=group.network)
