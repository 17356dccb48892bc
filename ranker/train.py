"""Trains the ranker: LightGBM's lambdarank on graded gains, stopped early on lists it has not seen.

What leaves is the model's text, which `ranker.trees` scores without LightGBM; LightGBM itself is imported when training
begins and nowhere else. The same rows, configuration and seed give the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ranker.examination import ips_ndcg

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

ALONE: Mapping[str, Any] = MappingProxyType({})
"""The network of one worker."""

# LightGBM's own limit for lambdarank.
MAX_LIST = 10_000

# What LightGBM refuses in a feature's name, which it also writes as JSON.
FORBIDDEN = '",:[]{}'


class RankerConfig(BaseModel):
    """How the trees are grown. Names in brackets are LightGBM's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trees: int = Field(500, ge=1, le=10_000, description="The most trees that are grown; early stopping decides.")
    leaves: int = Field(15, ge=2, le=255, description="Leaves to a tree. [num_leaves]")
    learning_rate: float = Field(0.05, gt=0, le=1, description="How much of each tree is believed.")
    min_data_in_leaf: int = Field(100, ge=1, description="Rows a leaf must hold: higher for noisier gains.")
    feature_fraction: float = Field(0.6, gt=0, le=1, description="Share of the features each tree may ask.")
    lambda_l2: float = Field(10.0, ge=0, description="L2 penalty on leaf values.")
    max_bin: int = Field(255, ge=2, le=65_535, description="Distinct values of a feature that are told apart.")
    early_stopping_rounds: int = Field(100, ge=1, description="Trees without a better validation ndcg@10 that end it.")
    label_gain: tuple[float, ...] = Field(
        (0, 1, 3, 7), min_length=2, description="What gain 0, 1, 2, ... is worth, rising; ndcg's own is 2^gain - 1."
    )
    truncation_level: int = Field(
        30, ge=1, description="Pairs are learned when one of both is above this rank. [lambdarank_truncation_level]"
    )
    position_debias: bool = Field(
        True, description="Learn, and set aside, what a shown position alone adds; needs positions."
    )
    position_regularization: float = Field(
        0.0, ge=0, description="Pulls the learned position effects to 0. [lambdarank_position_bias_regularization]"
    )
    refit: bool = Field(
        True, description="Once validation has chosen how many trees, grow as many on its lists as well."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the features sampled for each tree.")
    threads: int = Field(1, ge=1, le=256, description="Threads LightGBM trains with; the trees are the same for any.")

    @field_validator("label_gain")
    @classmethod
    def _rising(cls, gains: tuple[float, ...]) -> tuple[float, ...]:
        if gains[0] != 0 or any(later <= earlier for earlier, later in pairwise(gains)):
            raise ValueError(f"label_gain {gains}: expected 0 first and each above the one before")
        return gains


@dataclass(frozen=True)
class Trained:
    """The model and how it came about.

    model_text: LightGBM's text of the best `best_iteration` trees. valid_curve: ndcg@10 on validation after each tree
    grown, best or not. importance: feature to summed gain of its splits, every feature, largest first. lists: those
    the trees of `model_text` were grown on; lists_without_gain: those left out because nothing in them was engaged
    with, so they order no pair. valid_lists and valid_lists_without_gain: of those that chose the number of trees.
    """

    model_text: str
    best_iteration: int
    valid_curve: tuple[float, ...]
    importance: dict[str, float]
    lists: int
    lists_without_gain: int
    valid_lists: int
    valid_lists_without_gain: int


def train(
    rows: F32,
    gain: I8,
    start: I64,
    valid_rows: F32,
    valid_gain: I8,
    valid_start: I64,
    names: Sequence[str],
    config: RankerConfig,
    position: I16 | None = None,
    categorical: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    valid_examination: F64 | None = None,
    worker: int = 0,
    network: Mapping[str, Any] = ALONE,
) -> Trained:
    """A lambdarank model of `rows`, with as many trees as do best on the validation lists.

    rows: float32[n, features], NaN for missing. gain: int8[n], an index into `config.label_gain`. start: int64[lists +
    1], list g is rows `start[g]:start[g + 1]`. The same three for validation, whose lists must be later in time: that
    is the caller's to see to. position: int16[n], 0 the top, negative for a row that was not shown; used in training
    alone, and required where `config.position_debias` is set. categorical: features whose whole numbers are
    categories. on_progress: called with (trees grown, most trees) after each.

    A row not shown takes the deepest position of all. It has none, and one of its own would let the position effect
    explain away that unshown rows are never clicked, which is what they were sampled to teach. Validation takes gains
    as they are unless `valid_examination` is given, float64[n] in (0, 1], the chance that each of its rows was looked
    at (see `ranker.examination`): then by `ips_ndcg`. Where lists were shown in a biased order, clicks as they are
    make early stopping favour models that repeat that order, and stop a debiased one too soon.

    network: LightGBM's `machines`, `num_machines` and `local_listen_port`, where several workers train together, each
    with the same arguments but its own number `worker` and port. Each learns from its share of whole lists, and all
    validate on all of validation, so that all stop at the same tree. They agree on every split, and not on the effects
    of positions, which LightGBM estimates on each worker from the lists that are there.

    Raises `ValueError` naming the argument, row or name that does not fit.
    """
    _check_names(names, categorical)
    whole = _Part.checked("", rows, gain, start, len(names), config, position)
    train_part = whole.share(worker, int(network.get("num_machines", 1)))
    valid_part = _Part.checked(
        "valid_", valid_rows, valid_gain, valid_start, len(names), config, None, valid_examination
    )
    if config.position_debias and position is None:
        raise ValueError("position_debias is set and position is missing; pass positions or set position_debias: false")
    booster, curve = _boost(train_part, valid_part, list(names), config, list(categorical), on_progress, network)
    best = int(booster.best_iteration)
    return Trained(
        model_text=booster.model_to_string(num_iteration=best),
        best_iteration=best,
        valid_curve=tuple(curve),
        importance=_importance(booster, names, best),
        lists=len(whole.sizes),
        lists_without_gain=whole.without_gain,
        valid_lists=len(valid_part.sizes),
        valid_lists_without_gain=valid_part.without_gain,
    )


def refit(
    trained: Trained,
    rows: F32,
    gain: I8,
    start: I64,
    names: Sequence[str],
    config: RankerConfig,
    position: I16 | None = None,
    categorical: Sequence[str] = (),
    worker: int = 0,
    network: Mapping[str, Any] = ALONE,
) -> Trained:
    """The model that was chosen, its trees grown anew, as many of them, on these lists.

    For the lists it learned from together with those it was chosen by: the newest there are, of no more use once they
    have chosen. What it is judged by must be later than all. Arguments are as in `train`; the curve stays as it was.
    """
    import lightgbm as lgb

    _check_names(names, categorical)
    whole = _Part.checked("", rows, gain, start, len(names), config, position)
    part = whole.share(worker, int(network.get("num_machines", 1)))
    if config.position_debias and position is None:
        raise ValueError("position_debias is set and position is missing; pass positions or set position_debias: false")
    parameters = _parameters(config) | _network_parameters(network)
    data = lgb.Dataset(
        part.rows,
        part.gain,
        group=part.sizes,
        position=part.position,
        feature_name=list(names),
        categorical_feature=list(categorical),
        params=parameters,
    )
    booster = lgb.train(parameters, data, num_boost_round=trained.best_iteration)
    return replace(
        trained,
        model_text=booster.model_to_string(),
        importance=_importance(booster, names, trained.best_iteration),
        lists=len(whole.sizes),
        lists_without_gain=whole.without_gain,
    )


def _importance(booster: Any, names: Sequence[str], trees: int) -> dict[str, float]:
    shares = booster.feature_importance("gain", iteration=trees)
    return dict(sorted(zip(names, map(float, shares), strict=True), key=lambda pair: -pair[1]))


@dataclass(frozen=True)
class _Part:
    """The lists that hold a gain: all that lambdarank can learn from, and all that ndcg is defined on."""

    rows: F32
    gain: I8
    sizes: I64
    position: I64 | None
    without_gain: int
    examination_probability: F64 | None = None

    @classmethod
    def checked(
        cls,
        prefix: str,
        rows: F32,
        gain: I8,
        start: I64,
        features: int,
        config: RankerConfig,
        position: I16 | None,
        examination_probability: F64 | None = None,
    ) -> _Part:
        """The part, its arrays seen to fit together; `prefix` names them in errors."""
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != features:
            raise ValueError(f"{prefix}rows are {rows.dtype}{list(rows.shape)}, expected float32[n, {features}]")
        _check_lists(prefix, start, len(rows))
        if gain.shape != (len(rows),) or not np.issubdtype(gain.dtype, np.integer):
            raise ValueError(f"{prefix}gain is {gain.dtype}{list(gain.shape)}, expected int8[{len(rows)}]")
        strange = np.flatnonzero((gain < 0) | (gain >= len(config.label_gain)))
        if len(strange):
            most = len(config.label_gain) - 1
            raise ValueError(f"{prefix}gain[{strange[0]}] is {gain[strange[0]]}, label_gain knows 0 to {most}")
        sizes = np.diff(start)
        gained = np.concatenate([[0], np.cumsum(gain > 0)])
        useful = gained[start[1:]] > gained[start[:-1]]
        if not useful.any():
            raise ValueError(f"{prefix}gain: none of {len(sizes)} lists holds a gain above 0; nothing orders them")
        kept = np.repeat(useful, sizes)
        place = None if position is None or not config.position_debias else _places(position, len(rows))[kept]
        if examination_probability is not None:
            if (
                examination_probability.shape != (len(rows),)
                or not ((examination_probability > 0) & (examination_probability <= 1)).all()
            ):
                raise ValueError(f"{prefix}examination_probability: expected {len(rows)} chances above 0 and at most 1")
            examination_probability = examination_probability[kept]
        return cls(rows[kept], gain[kept], sizes[useful], place, int((~useful).sum()), examination_probability)

    def share(self, worker: int, workers: int) -> _Part:
        """The lists of one of several workers: every so many-th, whole, since their rows are ordered among themselves.

        Raises `ValueError` where there are fewer lists than workers.
        """
        if workers == 1:
            return self
        if len(self.sizes) < workers:
            raise ValueError(f"{len(self.sizes)} lists with gain for {workers} workers: train with fewer")
        own = np.arange(len(self.sizes)) % workers == worker
        kept = np.repeat(own, self.sizes)
        place = None if self.position is None else self.position[kept]
        return replace(self, rows=self.rows[kept], gain=self.gain[kept], sizes=self.sizes[own], position=place)


def _check_names(names: Sequence[str], categorical: Sequence[str]) -> None:
    for name in names:
        # The model text separates names by blanks.
        if not name or any(letter.isspace() or letter in FORBIDDEN for letter in name):
            raise ValueError(f"feature name {name!r}: expected no blanks and none of {FORBIDDEN}")
    if len(set(names)) < len(names):
        raise ValueError(f"feature name {next(n for n in names if list(names).count(n) > 1)!r} occurs twice")
    unknown = [name for name in categorical if name not in names]
    if unknown:
        raise ValueError(f"categorical names {unknown[0]!r}, which is no feature")


def _check_lists(prefix: str, start: I64, rows: int) -> None:
    integers = np.issubdtype(start.dtype, np.integer) and start.ndim == 1
    if not integers or len(start) < 2 or start[0] != 0 or start[-1] != rows or (np.diff(start) < 0).any():
        raise ValueError(f"{prefix}start must rise from 0 to the {rows} rows and hold a list, found {start[:3]}")
    longest = int(np.diff(start).argmax())
    if start[longest + 1] - start[longest] > MAX_LIST:
        size = start[longest + 1] - start[longest]
        raise ValueError(f"{prefix}start: list {longest} has {size} rows, LightGBM takes {MAX_LIST}; sample its rows")


def _places(position: I16, rows: int) -> I64:
    """Positions with the rows that were not shown at the deepest."""
    if position.shape != (rows,) or not np.issubdtype(position.dtype, np.integer):
        raise ValueError(f"position is {position.dtype}{list(position.shape)}, expected int16[{rows}]")
    return np.where(position < 0, max(position.max(initial=0), 0), position).astype(np.int64)


def _boost(
    part: _Part,
    valid: _Part,
    names: list[str],
    config: RankerConfig,
    categorical: list[str],
    on_progress: Callable[[int, int], None] | None,
    network: Mapping[str, Any],
) -> tuple[Any, list[float]]:
    """The booster and its validation curve."""
    import lightgbm as lgb

    parameters = _parameters(config) | _network_parameters(network)
    shape: dict[str, Any] = {"feature_name": names, "categorical_feature": categorical, "params": parameters}
    data = lgb.Dataset(part.rows, part.gain, group=part.sizes, position=part.position, **shape)
    check = lgb.Dataset(valid.rows, valid.gain, group=valid.sizes, reference=data, **shape)
    history: dict[str, Any] = {}
    metric = None if valid.examination_probability is None else _ips_metric(valid, config)
    if metric is not None:
        parameters["metric"] = "None"

    def report(environment: Any) -> None:
        if on_progress is not None:
            on_progress(environment.iteration + 1, config.trees)

    booster = lgb.train(
        parameters,
        data,
        num_boost_round=config.trees,
        valid_sets=[check],
        valid_names=["valid"],
        feval=metric,
        callbacks=[
            lgb.record_evaluation(history),
            report,
            lgb.early_stopping(config.early_stopping_rounds, verbose=False),
        ],
    )
    return booster, [float(value) for value in history["valid"]["ndcg@10"]]


def _ips_metric(valid: _Part, config: RankerConfig) -> Callable[[F64, Any], tuple[str, float, bool]]:
    """The metric that stops training, under the name of LightGBM's own."""
    worth = np.array(config.label_gain, np.float64)[valid.gain]
    start = np.concatenate(([0], np.cumsum(valid.sizes)))
    examination_probability = (
        np.ones(len(worth)) if valid.examination_probability is None else valid.examination_probability
    )

    def metric(score: F64, _: Any) -> tuple[str, float, bool]:
        return "ndcg@10", ips_ndcg(score, worth, start, examination_probability), True

    return metric


def _network_parameters(network: Mapping[str, Any]) -> dict[str, Any]:
    """LightGBM's parameters for training with others; none where there are none."""
    return {**network, "tree_learner": "data", "pre_partition": True} if len(network) else {}


def _parameters(config: RankerConfig) -> dict[str, Any]:
    """LightGBM's parameters. Row-wise histograms and `deterministic` make the text depend on nothing but the input."""
    return {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "num_leaves": config.leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "lambda_l2": config.lambda_l2,
        "max_bin": config.max_bin,
        "label_gain": list(config.label_gain),
        "lambdarank_truncation_level": config.truncation_level,
        "lambdarank_position_bias_regularization": config.position_regularization,
        "seed": config.seed,
        "num_threads": config.threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
