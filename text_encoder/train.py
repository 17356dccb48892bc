"""Fine-tuning of the encoder on the next item that users engage with, within a time budget.

Epoch 0 is the original encoder, and only an encoder with a better validation score is returned instead of it. The first
stage trains a projection of cached vectors, which takes seconds and gives most of the improvement. Training of layers
starts from its result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.arrays import F32, Bool
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, Progress
from text_encoder.examples import Examples
from text_encoder.group import ALONE, Group
from text_encoder.objective import quality
from text_encoder.scalars import Scalars, scalars
from text_encoder.towers import Projection, Tower, UpperLayers
from text_encoder.trainer import Clock, Data, Epoch, StoppedBy, Trainer

_MIN_EXAMPLES = 20
"""Minimum number of training examples, and of validation examples."""

_MAX_VALIDATION_EXAMPLES = 5000
"""Maximum number of validation examples, enough for a standard error of recall of half a percentage point."""


@dataclass(frozen=True)
class FineTuned:
    """Result of fine-tuning.

    encoder: the best encoder; the original one, with `best_epoch` 0, if none was better. vectors: float32[n, d], its
    vectors of the texts, NaN without text. They equal `encoder.encode(texts)` except for rounding. zero_shot: the same
    for the original encoder. epochs: of all stages, from epoch 0, which is zero-shot. examples_seen: total number of
    training examples. stopped_by: why the last stage ended; "too few examples" and "frozen" mean that there was no
    training.
    """

    encoder: Encoder
    vectors: F32
    zero_shot: F32
    epochs: tuple[Epoch, ...]
    best_epoch: int
    examples_seen: int
    stopped_by: StoppedBy
    elapsed_s: float


def _readable_examples(examples: Examples, readable: np.ndarray) -> Examples:
    """The examples whose target has text, without items that have no text in their histories and skips."""
    has_text = np.append(readable, False)  # index -1, for padding, reads the last entry
    keep = has_text[examples.history]
    weight = np.where(keep, examples.history_weight, np.float32(0))
    filtered = replace(
        examples,
        history=np.where(keep, examples.history, np.int32(-1)),
        history_weight=weight,
        skipped=np.where(has_text[examples.skipped], examples.skipped, np.int32(-1)),
    )
    return filtered.take(has_text[examples.target] & (weight > 0).any(axis=1))


def _check_item_rows(texts: Sequence[str], examples: Examples) -> None:
    highest = max(examples.target.max(initial=-1), examples.history.max(initial=-1), examples.skipped.max(initial=-1))
    if highest >= len(texts):
        raise ValueError(
            f"examples contain item row {highest}, but there are only {len(texts)} texts; pass the texts of the same "
            "catalogue"
        )


def _split(examples: Examples, config: EncoderConfig) -> tuple[Examples, Examples]:
    """(training, validation): validation is the last part by time, evenly subsampled if it is too long."""
    cut = len(examples) - int(len(examples) * config.validation_share)
    rows = np.arange(cut, len(examples))
    if len(rows) > _MAX_VALIDATION_EXAMPLES:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_VALIDATION_EXAMPLES).astype(np.int64)]
    return examples.take(slice(0, cut)), examples.take(rows)


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


@dataclass(frozen=True)
class _State:
    """An encoder, its vectors (0 for items without text), and its epoch."""

    encoder: Encoder
    vectors: Tensor
    epoch: Epoch


@dataclass
class _Tuning:
    """State of one call of `fine_tune`, shared by its stages."""

    texts: list[str]
    data: Data
    config: EncoderConfig
    directory: Path | None
    inputs_digest: str
    clock: Clock
    log: Scalars
    on_texts: Callable[[int], None]
    on_step: Callable[[float], None]
    epochs: list[Epoch]
    group: Group

    def _file(self, stage: str, encoder: Encoder) -> Path | None:
        """Checkpoint file of a stage. Its name includes a hash of all inputs, so it is never used with other inputs."""
        if not self.directory:
            return None
        return self.directory / f"{stage}-{_digest(self.inputs_digest, encoder.fingerprint)}.safetensors"

    def _train(self, stage: str, start: _State, tower: Tower, base: Encoder) -> tuple[_State, StoppedBy]:
        first = self.epochs[-1].epoch + 1
        trainer = Trainer(tower, self.data, self.config, stage, start.epoch, first, self._file(stage, base), self.group)
        stopped_by = trainer.run(self.clock, self.log, self.on_step)
        self.epochs += trainer.epochs[1:]
        best = trainer.best_epoch
        if best is trainer.epochs[0]:
            return start, stopped_by
        trainer.restore_best()
        return _State(tower.encoder(), tower.refresh(self.on_texts), best), stopped_by

    def run(self, start: _State) -> tuple[_State, StoppedBy]:
        """Trains all stages, each from the best state of the one before."""
        projection = Projection(start.encoder, start.vectors, self.config.hidden, self.config.seed, self.group)
        best, stopped_by = self._train("projection", start, projection, start.encoder)
        if self.config.mode == "projection" or stopped_by == "budget":
            return best, stopped_by
        tower = UpperLayers(
            best.encoder,
            best.vectors,
            self.texts,
            None if self.config.mode == "full" else self.config.n_layers,
            self.config.lora_rank if self.config.mode == "lora" else None,
            self.config.seed,
            self.group,
        )
        tower.cache_lower_layers(self.on_texts)
        # Validation after the last epoch has to encode the catalogue, so this time is reserved.
        self.clock.reserve_s = self.group.broadcast(tower.refresh_s())
        return self._train(self.config.mode, best, tower, best.encoder)


def _progress_counter(on_progress: Progress | None, total: int) -> Callable[[float], None]:
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done
        done = min(done + amount, total)
        if on_progress:
            on_progress(int(done), total)

    return advance


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    examples: Examples,
    config: EncoderConfig,
    checkpoint_dir: Path | None = None,
    on_progress: Progress | None = None,
    zero_shot: F32 | None = None,
    group: Group = ALONE,
) -> FineTuned:
    """Fine-tunes the encoder on history -> next item. Returns the original encoder if validation does not improve.

    texts: one per item in catalogue order, from the encoder's template; "" for an item without text. checkpoint_dir: an
    interrupted run that is called again with the same arguments continues after its last epoch and ends with the same
    weights; with a larger `budget_s` or more `epochs`, it trains longer. TensorBoard files go into its subdirectory
    `tensorboard`. on_progress: called with (done, total), the number of texts encoded and examples trained on; training
    that stops early does not reach the total. zero_shot: float32[n, d], vectors of the texts by this encoder, NaN for
    an item to be treated as one without text; None to encode the texts first. group: the workers that train together.
    Each calls this function; all return the same result, and only the first writes files.

    The time budget is for training, and starts when the texts are encoded. The result is deterministic given
    `config.seed` on one machine, unless the budget stops training. Raises `ValueError` for examples from another
    catalogue, and `EncoderError` for too large an `n_layers`, if training diverges, or if the
    package of `log_to` is not installed.
    """
    _check_item_rows(texts, examples)
    if group.rank:
        checkpoint_dir, config = None, config.model_copy(update={"log_to": "none"})
    log = scalars(config.log_to, checkpoint_dir / "tensorboard" if checkpoint_dir else None, config.model_dump())
    try:
        return _fine_tune(encoder, list(texts), examples, config, checkpoint_dir, log, on_progress, zero_shot, group)
    finally:
        log.close()


def _fine_tune(
    encoder: Encoder,
    texts: list[str],
    examples: Examples,
    config: EncoderConfig,
    directory: Path | None,
    log: Scalars,
    on_progress: Progress | None,
    zero_shot: F32 | None,
    group: Group,
) -> FineTuned:
    epoch_size = min(len(examples), config.examples_per_epoch)
    advance = _progress_counter(on_progress, _total_progress(len(texts), epoch_size, config))
    if zero_shot is None:
        zero_shot = encoder.encode(texts)
    advance(len(texts))
    clock = Clock(config.budget_s)
    readable: Bool = np.asarray(np.isfinite(zero_shot).all(axis=1))
    texts = [text if has_vector else "" for text, has_vector in zip(texts, readable.tolist(), strict=True)]
    vectors = torch.from_numpy(np.where(readable[:, None], zero_shot, np.float32(0)))
    data = Data(*_split(_readable_examples(examples, readable), config), torch.from_numpy(readable))
    if min(len(data.train), len(data.valid)) < _MIN_EXAMPLES:
        return _unchanged(encoder, zero_shot, (), "too few examples", clock)
    epoch = Epoch(0, "zero-shot", 0.0, *quality(vectors, data.usable, data.valid), 0, clock.elapsed_s)
    if config.mode == "frozen":
        return _unchanged(encoder, zero_shot, (epoch,), "frozen", clock)

    log.add(0, {"ndcg@10": epoch.ndcg_at_10, "recall@50": epoch.recall_at_50})
    settings = config.model_dump(exclude={"budget_s", "epochs", "log_to"}, mode="json")
    inputs_digest = _digest(texts, settings, *(getattr(examples, name) for name in Examples.__dataclass_fields__))
    start = _State(encoder, vectors, epoch)
    tuning = _Tuning(
        texts,
        data,
        config,
        directory,
        inputs_digest,
        clock,
        log,
        advance,
        lambda share: advance(share * epoch_size),
        [epoch],
        group,
    )
    best, stopped_by = tuning.run(start)
    return FineTuned(
        best.encoder,
        np.where(readable[:, None], best.vectors.numpy(), np.float32(np.nan)),
        zero_shot,
        tuple(tuning.epochs),
        best.epoch.epoch,
        sum(e.examples for e in tuning.epochs),
        stopped_by,
        clock.elapsed_s,
    )


def _total_progress(n_texts: int, epoch_size: int, config: EncoderConfig) -> int:
    """Maximum number of texts to encode plus examples to train on."""
    has_layers = config.mode in ("last_layers", "lora", "full")
    return (1 + has_layers) * n_texts + (1 + has_layers) * config.epochs * epoch_size


def _unchanged(
    encoder: Encoder, vectors: F32, epochs: tuple[Epoch, ...], stopped_by: StoppedBy, clock: Clock
) -> FineTuned:
    return FineTuned(encoder, vectors, vectors, epochs, 0, 0, stopped_by, clock.elapsed_s)
