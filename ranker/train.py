"""Ranker training: LightGBM's lambdarank on graded gains, with early stopping on validation lists.

The result is the model text, which `ranker.trees` scores without LightGBM. LightGBM is only imported when training
starts. The same rows, configuration and seed give the same text.
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
"""Network parameters for training with one worker."""

MAX_LIST = 10_000
"""LightGBM's limit of rows per list for lambdarank."""

# Characters that LightGBM does not allow in feature names, because it also writes them as JSON.
FORBIDDEN = '",:[]{}'


class RankerConfig(BaseModel):
    """Parameters of ranker training. LightGBM's parameter names are in brackets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trees: int = Field(500, ge=1, le=10_000, description="Maximum number of trees. Early stopping may choose fewer.")
    leaves: int = Field(15, ge=2, le=255, description="Maximum number of leaves per tree. [num_leaves]")
    learning_rate: float = Field(0.05, gt=0, le=1, description="Learning rate.")
    min_data_in_leaf: int = Field(
        100, ge=1, description="Minimum number of rows in a leaf. Use a higher value for noisier gains."
    )
    feature_fraction: float = Field(
        0.6, gt=0, le=1, description="Share of the features that is sampled at random for each tree."
    )
    lambda_l2: float = Field(10.0, ge=0, description="L2 regularisation of leaf values.")
    max_bin: int = Field(255, ge=2, le=65_535, description="Maximum number of histogram bins per feature.")
    early_stopping_rounds: int = Field(
        100, ge=1, description="Stop after this many trees without an improvement of ndcg@10 on the validation lists."
    )
    label_gain: tuple[float, ...] = Field(
        (0, 1, 3, 7),
        min_length=2,
        description="Weight in training of gain 0, 1, 2, and so on, in ascending order and starting with 0. The ndcg "
        "metric uses 2^gain - 1.",
    )
    truncation_level: int = Field(
        30,
        ge=1,
        description="Train only on pairs of items with at least one of the two ranked above this position. "
        "[lambdarank_truncation_level]",
    )
    position_debias: bool = Field(
        True,
        description="Estimate position bias in training and remove it from the scores. Needs the positions of the "
        "shown items.",
    )
    position_regularization: float = Field(
        0.0,
        ge=0,
        description="L2 regularisation of the estimated position bias. [lambdarank_position_bias_regularization]",
    )
    refit: bool = Field(
        True,
        description="After validation has chosen the number of trees, train again with this number of trees on the "
        "training and validation lists together.",
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Random seed of the feature sampling.")
    threads: int = Field(
        1, ge=1, le=256, description="Number of training threads. The trees do not depend on this number."
    )

    @field_validator("label_gain")
    @classmethod
    def _ascending(cls, gains: tuple[float, ...]) -> tuple[float, ...]:
        if gains[0] != 0 or any(later <= earlier for earlier, later in pairwise(gains)):
            raise ValueError(f"label_gain {gains}: expected values in ascending order, starting with 0")
        return gains


@dataclass(frozen=True)
class Trained:
    """A trained model with its training statistics.

    model_text: LightGBM's text of the first `best_iteration` trees. valid_curve: ndcg@10 on the validation lists after
    each trained tree, including trees after the best. importance: total gain of the splits of each feature, largest
    first; contains every feature. lists: number of lists that the trees of `model_text` were trained on.
    lists_without_gain: number of lists that were left out because no item in them has a gain, so there are no pairs to
    order. valid_lists, valid_lists_without_gain: the same for the validation lists. before_refit: the
    text of the model before the refit, for which the validation lists are new; `model_text` without a refit.
    """

    model_text: str
    best_iteration: int
    valid_curve: tuple[float, ...]
    importance: dict[str, float]
    lists: int
    lists_without_gain: int
    valid_lists: int
    valid_lists_without_gain: int
    before_refit: str = ""


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
    """Trains a lambdarank model with the number of trees that is best on the validation lists.

    rows: float32[n, features], NaN if missing. gain: int8[n], an index into `config.label_gain`. start: int64[lists +
    1]; list g is rows `start[g]:start[g + 1]`. valid_rows, valid_gain, valid_start: the same for the validation lists.
    The caller must ensure that these are later in time. position: int16[n], 0 for the top, negative for a row that was
    not shown; only used in training, and required if `config.position_debias` is set. categorical: names of features
    whose integer values are categories. on_progress: called with (trees trained, maximum number of trees) after each
    tree.

    Rows that were not shown get the deepest position of all. They have no position, and with a special one the
    estimated position bias would explain why they are never clicked, although they were sampled as negatives.

    valid_examination: float64[n] in (0, 1], the examination probability of each validation row (see
    `ranker.examination`). If given, early stopping uses `ips_ndcg`, otherwise ndcg of the gains as logged. If the lists
    were shown in a biased order, the logged gains make early stopping favour models that reproduce that order, and stop
    the training of a debiased model too early.

    network: LightGBM's `machines`, `num_machines` and `local_listen_port`, for training with several workers. All
    workers pass the same arguments except for their own number, `worker`, and port. Each trains on its share of the
    lists, and all validate on all validation lists, so they stop at the same tree. The workers agree on every split.
    They do not agree on the position bias, which LightGBM estimates on each worker from that worker's lists.

    Raises `ValueError` naming the invalid argument, row or feature name.
    """
    _check_names(names, categorical)
    all_lists = _ListsWithGain.checked("", rows, gain, start, len(names), config, position)
    train_lists = all_lists.share(worker, int(network.get("num_machines", 1)))
    valid_lists = _ListsWithGain.checked(
        "valid_", valid_rows, valid_gain, valid_start, len(names), config, None, valid_examination
    )
    if config.position_debias and position is None:
        raise ValueError("position_debias is set but position is missing; pass positions or set position_debias: false")
    booster, curve = _fit_booster(
        train_lists, valid_lists, list(names), config, list(categorical), on_progress, network
    )
    best = int(booster.best_iteration)
    text = booster.model_to_string(num_iteration=best)
    return Trained(
        model_text=text,
        best_iteration=best,
        valid_curve=tuple(curve),
        importance=_importance(booster, names, best),
        lists=len(all_lists.sizes),
        lists_without_gain=all_lists.without_gain,
        valid_lists=len(valid_lists.sizes),
        valid_lists_without_gain=valid_lists.without_gain,
        before_refit=text,
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
    """Trains a model again on the given lists, with the number of trees that validation has chosen.

    Meant for the training and validation lists together, because the validation lists are the newest and no longer
    needed for validation. Test lists must be later than all of them. Arguments as in `train`. The validation curve of
    `trained` is kept.
    """
    import lightgbm as lgb

    _check_names(names, categorical)
    all_lists = _ListsWithGain.checked("", rows, gain, start, len(names), config, position)
    own_lists = all_lists.share(worker, int(network.get("num_machines", 1)))
    if config.position_debias and position is None:
        raise ValueError("position_debias is set but position is missing; pass positions or set position_debias: false")
    parameters = _parameters(config) | _network_parameters(network)
    data = lgb.Dataset(
        own_lists.rows,
        own_lists.gain,
        group=own_lists.sizes,
        position=own_lists.position,
        feature_name=list(names),
        categorical_feature=list(categorical),
        params=parameters,
    )
    booster = lgb.train(parameters, data, num_boost_round=trained.best_iteration)
    return replace(
        trained,
        model_text=booster.model_to_string(),
        importance=_importance(booster, names, trained.best_iteration),
        lists=len(all_lists.sizes),
        lists_without_gain=all_lists.without_gain,
    )


def _importance(booster: Any, names: Sequence[str], trees: int) -> dict[str, float]:
    gains = booster.feature_importance("gain", iteration=trees)
    return dict(sorted(zip(names, map(float, gains), strict=True), key=lambda pair: -pair[1]))


@dataclass(frozen=True)
class _ListsWithGain:
    """The lists that contain a gain. Lambdarank can only train on these, and ndcg is only defined for these."""

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
    ) -> _ListsWithGain:
        """Checks the arrays and leaves out lists without gain. prefix: prefix of argument names in error messages."""
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != features:
            raise ValueError(f"{prefix}rows are {rows.dtype}{list(rows.shape)}, expected float32[n, {features}]")
        _check_lists(prefix, start, len(rows))
        if gain.shape != (len(rows),) or not np.issubdtype(gain.dtype, np.integer):
            raise ValueError(f"{prefix}gain is {gain.dtype}{list(gain.shape)}, expected int8[{len(rows)}]")
        invalid = np.flatnonzero((gain < 0) | (gain >= len(config.label_gain)))
        if len(invalid):
            highest = len(config.label_gain) - 1
            raise ValueError(f"{prefix}gain[{invalid[0]}] is {gain[invalid[0]]}, expected 0 to {highest} (label_gain)")
        sizes = np.diff(start)
        gains_before = np.concatenate([[0], np.cumsum(gain > 0)])
        has_gain = gains_before[start[1:]] > gains_before[start[:-1]]
        if not has_gain.any():
            raise ValueError(
                f"{prefix}gain: none of the {len(sizes)} lists has a gain above 0, so there is no order to learn"
            )
        keep = np.repeat(has_gain, sizes)
        positions = (
            None if position is None or not config.position_debias else _training_positions(position, len(rows))[keep]
        )
        if examination_probability is not None:
            if (
                examination_probability.shape != (len(rows),)
                or not ((examination_probability > 0) & (examination_probability <= 1)).all()
            ):
                raise ValueError(
                    f"{prefix}examination: expected {len(rows)} probabilities above 0 and at most 1, one per row"
                )
            examination_probability = examination_probability[keep]
        return cls(rows[keep], gain[keep], sizes[has_gain], positions, int((~has_gain).sum()), examination_probability)

    def share(self, worker: int, workers: int) -> _ListsWithGain:
        """The lists of one of several workers: list g goes to worker g modulo `workers`.

        Lists are not split, because lambdarank compares the rows of a list with each other. Raises `ValueError` if
        there are fewer lists than workers.
        """
        if workers == 1:
            return self
        if len(self.sizes) < workers:
            raise ValueError(f"{len(self.sizes)} lists with gain for {workers} workers: use fewer workers")
        own = np.arange(len(self.sizes)) % workers == worker
        keep = np.repeat(own, self.sizes)
        positions = None if self.position is None else self.position[keep]
        return replace(self, rows=self.rows[keep], gain=self.gain[keep], sizes=self.sizes[own], position=positions)


def _check_names(names: Sequence[str], categorical: Sequence[str]) -> None:
    for name in names:
        # The model text separates names with white space.
        if not name or any(letter.isspace() or letter in FORBIDDEN for letter in name):
            raise ValueError(f"feature name {name!r}: must not be empty or contain white space or any of {FORBIDDEN}")
    if len(set(names)) < len(names):
        raise ValueError(f"feature name {next(n for n in names if list(names).count(n) > 1)!r} occurs twice")
    unknown = [name for name in categorical if name not in names]
    if unknown:
        raise ValueError(f"categorical contains {unknown[0]!r}, which is not a feature")


def _check_lists(prefix: str, start: I64, rows: int) -> None:
    integers = np.issubdtype(start.dtype, np.integer) and start.ndim == 1
    if not integers or len(start) < 2 or start[0] != 0 or start[-1] != rows or (np.diff(start) < 0).any():
        raise ValueError(
            f"{prefix}start is {start[:3]}..., expected integers rising from 0 to {rows}, the number of rows, "
            "for at least one list"
        )
    longest = int(np.diff(start).argmax())
    if start[longest + 1] - start[longest] > MAX_LIST:
        size = start[longest + 1] - start[longest]
        raise ValueError(
            f"{prefix}start: list {longest} has {size} rows, but LightGBM allows {MAX_LIST}; sample its rows"
        )


def _training_positions(position: I16, rows: int) -> I64:
    """Positions for training: rows that were not shown get the deepest position."""
    if position.shape != (rows,) or not np.issubdtype(position.dtype, np.integer):
        raise ValueError(f"position is {position.dtype}{list(position.shape)}, expected int16[{rows}]")
    return np.where(position < 0, max(position.max(initial=0), 0), position).astype(np.int64)


def _fit_booster(
    train_lists: _ListsWithGain,
    valid_lists: _ListsWithGain,
    names: list[str],
    config: RankerConfig,
    categorical: list[str],
    on_progress: Callable[[int, int], None] | None,
    network: Mapping[str, Any],
) -> tuple[Any, list[float]]:
    """(booster, validation curve)."""
    import lightgbm as lgb

    parameters = _parameters(config) | _network_parameters(network)
    options: dict[str, Any] = {"feature_name": names, "categorical_feature": categorical, "params": parameters}
    data = lgb.Dataset(
        train_lists.rows, train_lists.gain, group=train_lists.sizes, position=train_lists.position, **options
    )
    valid_data = lgb.Dataset(valid_lists.rows, valid_lists.gain, group=valid_lists.sizes, reference=data, **options)
    history: dict[str, Any] = {}
    metric = None if valid_lists.examination_probability is None else _ips_metric(valid_lists, config)
    if metric is not None:
        parameters["metric"] = "None"

    def report(environment: Any) -> None:
        if on_progress is not None:
            on_progress(environment.iteration + 1, config.trees)

    booster = lgb.train(
        parameters,
        data,
        num_boost_round=config.trees,
        valid_sets=[valid_data],
        valid_names=["valid"],
        feval=metric,
        callbacks=[
            lgb.record_evaluation(history),
            report,
            lgb.early_stopping(config.early_stopping_rounds, verbose=False),
        ],
    )
    return booster, [float(value) for value in history["valid"]["ndcg@10"]]


def _ips_metric(lists: _ListsWithGain, config: RankerConfig) -> Callable[[F64, Any], tuple[str, float, bool]]:
    """`ips_ndcg` as a LightGBM metric for early stopping, with the name of the built-in metric."""
    gain = np.array(config.label_gain, np.float64)[lists.gain]
    start = np.concatenate(([0], np.cumsum(lists.sizes)))
    of = np.repeat(np.arange(len(lists.sizes)), lists.sizes)
    examination_probability = (
        np.ones(len(gain)) if lists.examination_probability is None else lists.examination_probability
    )

    def metric(score: F64, _: Any) -> tuple[str, float, bool]:
        rank = np.empty(len(gain), np.int64)
        rank[np.lexsort((-score, of))] = np.arange(len(gain)) - start[of]
        value, weight = ips_ndcg(of, rank, gain, examination_probability, len(lists.sizes))
        return "ndcg@10", float(np.nansum(value * weight) / weight.sum()), True

    return metric


def _network_parameters(network: Mapping[str, Any]) -> dict[str, Any]:
    """LightGBM's parameters for several workers; empty for one worker."""
    return {**network, "tree_learner": "data", "pre_partition": True} if len(network) else {}


def _parameters(config: RankerConfig) -> dict[str, Any]:
    """LightGBM's parameters. With row-wise histograms and `deterministic`, the text depends on the input alone."""
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
