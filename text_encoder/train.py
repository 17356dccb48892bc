"""Fine-tuning: the encoder learns from what shoppers engaged with next, within a time budget, or leaves things alone.

Epoch 0 is the encoder as it came. A state that does not beat it on the validation part is never returned. What needs no
reading comes first: a projection over cached vectors costs seconds, and is most of the gain; layers start from it.
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

from features.arrays import F32
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, Progress
from text_encoder.examples import Examples
from text_encoder.group import ALONE, Group
from text_encoder.objective import quality
from text_encoder.scalars import Scalars, scalars
from text_encoder.texts import EncodedTexts, encode_texts
from text_encoder.towers import Projection, Tower, UpperLayers
from text_encoder.trainer import Clock, Data, Epoch, StoppedBy, Trainer
from text_encoder.warm_up import warm_up

_FEWEST = 20
"""Examples below which neither part can say anything."""

_VALIDATED = 5000
"""Validation examples that are ranked: enough for a standard error of half a point of recall."""


@dataclass(frozen=True)
class FineTuned:
    """What came out.

    encoder: the best state; the one that was given where nothing beat it, and then `best_epoch` is 0. vectors:
    float32[n, d], the texts by it, NaN for one without text; they equal `encoder.encode(texts)` but for rounding.
    zero_shot: likewise by the encoder as it came.
    epochs: from epoch 0, zero-shot, over all stages. examples_seen: in all of them. stopped_by: why the last stage
    ended; "too few examples" and "frozen" stand for not having begun.
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
    """The examples whose target has text, their histories and skips without items that have none."""
    has = np.append(readable, False)
    kept = has[examples.history]
    weight = np.where(kept, examples.history_weight, np.float32(0))
    clean = replace(
        examples,
        history=np.where(kept, examples.history, np.int32(-1)),
        history_weight=weight,
        skipped=np.where(has[examples.skipped], examples.skipped, np.int32(-1)),
    )
    return clean.take(has[examples.target] & (weight > 0).any(axis=1))


def _checked(texts: Sequence[str], examples: Examples) -> None:
    highest = max(examples.target.max(initial=-1), examples.history.max(initial=-1), examples.skipped.max(initial=-1))
    if highest >= len(texts):
        raise ValueError(f"examples name item row {highest}, but there are {len(texts)} texts: of another catalogue?")


def _split(examples: Examples, config: EncoderConfig) -> tuple[Examples, Examples]:
    """(training, validation): the last part by time; of a long one, rows evenly drawn."""
    cut = len(examples) - int(len(examples) * config.validation_share)
    rows = np.arange(cut, len(examples))
    if len(rows) > _VALIDATED:
        rows = rows[np.linspace(0, len(rows) - 1, _VALIDATED).astype(np.int64)]
    return examples.take(slice(0, cut)), examples.take(rows)


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


@dataclass(frozen=True)
class _State:
    """An encoder, the vectors it makes (0 without text), and the epoch that reached it."""

    encoder: Encoder
    vectors: Tensor
    epoch: Epoch


@dataclass
class _Tuning:
    """One call of `fine_tune`: what its stages share."""

    texts: list[str]
    data: Data
    config: EncoderConfig
    directory: Path | None
    of: str
    clock: Clock
    log: Scalars
    on_texts: Callable[[int], None]
    on_step: Callable[[float], None]
    epochs: list[Epoch]
    group: Group

    def _file(self, stage: str, encoder: Encoder) -> Path | None:
        """Where a stage keeps its state: the name tells all that it depends on, so no other is taken for it."""
        return (
            self.directory / f"{stage}-{_digest(self.of, encoder.fingerprint)}.safetensors" if self.directory else None
        )

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

    def warmed(self, start: _State, read_s: float) -> tuple[Encoder, Tensor]:
        """The encoder the projection begins with, and its vectors: the one that came, or warmed up."""
        if not self.config.warm_up_epochs:
            return start.encoder, start.vectors
        file = self._file("warm_up", start.encoder)
        self.clock.reserve_s = read_s
        warm = warm_up(start.encoder, self.texts, self.config, file, self.clock, self.on_texts)
        # Each worker warms up by itself, as far as its clock goes; the first one's encoder is everybody's.
        if self.group.size > 1:
            warm.transformer.load_state_dict(self.group.agreed(warm.transformer.state_dict()))
        self.clock.reserve_s = 0.0
        return warm, encode_texts(warm, self.texts, self.directory, None, self.on_texts).vectors

    def run(self, start: _State, read_s: float) -> tuple[_State, StoppedBy]:
        """All stages, each from the best state of the one before."""
        base, vectors = self.warmed(start, read_s)
        projection = Projection(base, vectors, self.config.hidden, self.config.seed, self.group)
        best, stopped_by = self._train("projection", start, projection, base)
        if self.config.mode == "projection" or stopped_by == "budget":
            return best, stopped_by
        # A state may be the last only once validated, and that takes a reading of the catalogue.
        self.clock.reserve_s = read_s
        tower = UpperLayers(
            best.encoder,
            best.vectors,
            self.texts,
            None if self.config.mode == "full" else self.config.n_layers,
            self.config.lora_rank if self.config.mode == "lora" else None,
            self.config.seed,
            self.group,
        )
        tower.read_below(self.on_texts)
        return self._train(self.config.mode, best, tower, best.encoder)


def _advance(on_progress: Progress | None, total: int) -> Callable[[float], None]:
    done = 0.0

    def by(more: float) -> None:
        nonlocal done
        done = min(done + more, total)
        if on_progress:
            on_progress(int(done), total)

    return by


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    examples: Examples,
    config: EncoderConfig,
    checkpoint_dir: Path | None = None,
    on_progress: Progress | None = None,
    found: EncodedTexts | None = None,
    group: Group = ALONE,
) -> FineTuned:
    """The encoder fine-tuned on history -> next item, or the one given where that did not better it on validation.

    texts: one an item, in catalogue order ("" has none), made by the encoder's template. checkpoint_dir: an interrupted
    run called again with the same arguments goes on after its last epoch and ends with the same weights; a larger
    `budget_s` or more `epochs` goes on as well. TensorBoard's files stand in it, under `tensorboard`. on_progress:
    called with (done, total) in texts read and examples trained on; an early end leaves it short of the total. found:
    the catalogue as `read` by this encoder, where that has been done. group: the workers that train together, each of
    which calls this; all return the same, and the first alone writes.

    The budget counts from the call on. Every item must have its vector, so reading the catalogue is the one thing that
    cannot be left out: where it alone takes longer, `BudgetSpent` is raised and what was read is kept for the next
    call. Deterministic by `config.seed` on one machine unless the budget ends it. Raises `ValueError` for examples of
    another catalogue or more layers than there are, `FloatingPointError` where training diverges, and
    `ModuleNotFoundError` where `log_to` names a package that is not installed.
    """
    _checked(texts, examples)
    if group.rank:
        checkpoint_dir, config = None, config.model_copy(update={"log_to": "none"})
    log = scalars(config.log_to, checkpoint_dir / "tensorboard" if checkpoint_dir else None, config.model_dump())
    try:
        return _fine_tune(encoder, list(texts), examples, config, checkpoint_dir, log, on_progress, found, group)
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
    found: EncodedTexts | None,
    group: Group,
) -> FineTuned:
    clock = Clock(config.budget_s)
    unit = min(len(examples), config.examples_per_epoch)
    by = _advance(on_progress, _total(len(texts), unit, config))
    if found is None:
        found = encode_texts(encoder, texts, directory, clock, by)
    else:
        by(len(texts))
    data = Data(*_split(_readable_examples(examples, found.readable), config), torch.from_numpy(found.readable.copy()))
    if min(len(data.train), len(data.valid)) < _FEWEST:
        return _unchanged(encoder, found, (), "too few examples", clock)
    epoch = Epoch(0, "zero-shot", 0.0, *quality(found.vectors, data.usable, data.valid), 0, clock.elapsed_s)
    if config.mode == "frozen":
        return _unchanged(encoder, found, (epoch,), "frozen", clock)

    log.add(0, {"ndcg@10": epoch.ndcg_at_10, "recall@50": epoch.recall_at_50})
    settings = config.model_dump(exclude={"budget_s", "epochs", "log_to"}, mode="json")
    of = _digest(texts, settings, *(getattr(examples, name) for name in Examples.__dataclass_fields__))
    start = _State(encoder, found.vectors, epoch)
    tuning = _Tuning(texts, data, config, directory, of, clock, log, by, lambda share: by(share * unit), [epoch], group)
    best, stopped_by = tuning.run(start, found.seconds)
    return FineTuned(
        best.encoder,
        found.with_missing(best.vectors),
        found.with_missing(found.vectors),
        tuple(tuning.epochs),
        best.epoch.epoch,
        sum(e.examples for e in tuning.epochs),
        stopped_by,
        clock.elapsed_s,
    )


def _total(n_texts: int, unit: int, config: EncoderConfig) -> int:
    """Texts to read and examples to train on, at most."""
    layers = config.mode in ("last_layers", "lora", "full")
    snapshots = 1 + layers + (config.warm_up_epochs + 1 if config.warm_up_epochs else 0)
    return snapshots * n_texts + (1 + layers) * config.epochs * unit


def _unchanged(
    encoder: Encoder, found: EncodedTexts, epochs: tuple[Epoch, ...], stopped_by: StoppedBy, clock: Clock
) -> FineTuned:
    vectors = found.with_missing(found.vectors)
    return FineTuned(encoder, vectors, vectors, epochs, 0, 0, stopped_by, clock.elapsed_s)
