"""Fine-tuning: the encoder learns from what shoppers engaged with next, within a time budget, or leaves things alone.

Epoch 0 is the encoder as it came. A state that does not beat it on the validation part is never returned.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from features.log import F32, I64
from text_encoder import checkpoint
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, Progress
from text_encoder.examples import Examples
from text_encoder.objective import Batch, Engaged, Quality, loss, quality
from text_encoder.towers import Projection, Tower, UpperLayers

_FEWEST = 20
"""Examples below which neither part can say anything."""

_VALIDATED = 5000
"""Validation examples that are ranked: enough for a standard error of half a point of recall."""

StoppedBy = Literal["epochs", "early stopping", "budget", "too few examples", "frozen"]


@dataclass(frozen=True)
class Epoch:
    """One pass: mean loss (0 for epoch 0), quality on the validation part after it, examples used in it."""

    epoch: int
    loss: float
    ndcg_at_10: float
    recall_at_50: float
    examples: int


@dataclass(frozen=True)
class FineTuned:
    """What came out.

    encoder: the best state; the one that was given where nothing beat it, and then `best_epoch` is 0. vectors:
    float32[n, d], the texts by it, NaN for one without text; they equal `encoder.encode(texts)` but for rounding.
    zero_shot: likewise by the encoder as it came.
    epochs: from epoch 0, zero-shot. stopped_by: "too few examples" and "frozen" stand for not having begun.
    """

    encoder: Encoder
    vectors: F32
    zero_shot: F32
    epochs: tuple[Epoch, ...]
    best_epoch: int
    examples_seen: int
    stopped_by: StoppedBy
    elapsed_s: float


class _Clock:
    """Seconds spent in all runs of this training."""

    def __init__(self, before_s: float, budget_s: float) -> None:
        self._start, self._budget_s = time.monotonic() - before_s, budget_s
        self.reserve_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether what is left is needed for validating what has been reached."""
        return self.elapsed_s + self.reserve_s >= self._budget_s


def _usable(examples: Examples, readable: np.ndarray) -> Examples:
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


def _parts(train: Examples, config: EncoderConfig, draw: np.random.Generator) -> list[I64]:
    """Rows of each step of an epoch.

    Where a text pass is dear, all examples of a target come in the same step, so each text is read once an epoch.
    """
    rows = draw.permutation(len(train))[: config.examples_per_epoch]
    if config.mode == "projection":
        steps = max(1, round(len(rows) / config.batch_size))
        return list(np.array_split(rows, steps))
    items = draw.permutation(np.unique(train.target[rows]))
    step = np.zeros(int(train.target.max()) + 1, np.int64)
    step[items] = np.arange(len(items)) % _item_steps(len(items), config)
    by_step = rows[np.argsort(step[train.target[rows]], kind="stable")]
    edges = np.cumsum(np.bincount(step[train.target[rows]]))[:-1]
    return np.split(by_step, edges)


def _log_q(train: Examples, usable: Tensor, config: EncoderConfig) -> F32:
    """float32[n_items]: log of the chance that an item is among a step's candidates, times `log_q`."""
    count = np.bincount(train.target, minlength=len(usable))
    if config.mode == "projection":
        share = np.minimum(count / len(train), 1 - 1e-9)
        absent = np.exp(min(config.batch_size, len(train)) * np.log1p(-share))
    else:
        absent = np.where(count > 0, 1 - 1 / _item_steps(int((count > 0).sum()), config), 1.0)
    absent = absent * (1 - min(1.0, config.random_negatives / int(usable.sum())))
    out: F32 = (config.log_q * np.log(np.maximum(1 - absent, 1e-9))).astype(np.float32)
    return out


def _item_steps(n_targets: int, config: EncoderConfig) -> int:
    """Steps an epoch where targets are dealt out to steps; a small catalogue still gets some."""
    return -(-n_targets // min(config.batch_texts, max(32, n_targets // 8)))


class _Trainer:
    """One run over a tower: steps, validation, checkpoints in `file`, if any."""

    def __init__(
        self, tower: Tower, train: Examples, valid: Examples, config: EncoderConfig, usable: Tensor, file: Path | None
    ) -> None:
        self.tower, self.train, self.valid, self.config, self.usable = tower, train, valid, config, usable
        self.parameters = list(tower.parameters.values())
        self.start = [p.detach().clone() for p in self.parameters]
        self.best = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.rate)
        self.engaged = Engaged(train, len(usable))
        self.log_q = _log_q(train, usable, config)
        self.drawable: I64 = np.flatnonzero(usable.numpy())
        self.file = file
        self.epochs: list[Epoch] = []

    @property
    def best_epoch(self) -> Epoch:
        """The best so far; the first of equals, so zero-shot stays where nothing is better."""
        return max(self.epochs, key=lambda e: Quality(e.ndcg_at_10, e.recall_at_50).score)

    def step(self, rows: I64, draw: np.random.Generator) -> float:
        """One step of the optimizer; the loss before it."""
        size = min(self.config.random_negatives, len(self.drawable))
        drawn = draw.choice(self.drawable, size, replace=False, shuffle=False)
        batch = Batch.of(self.train.take(rows), self.engaged, drawn, self.log_q)
        leaf = self.tower.vectors(batch.rows, batch.candidate).requires_grad_()
        value = loss(leaf, batch, self.config.temperature, self.config.skipped_weight)
        value.backward()  # type: ignore[no-untyped-call]
        if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
            raise FloatingPointError(
                f"training diverged at rate {self.config.rate:g}, temperature {self.config.temperature:g}: "
                "lower the learning rate or raise the temperature"
            )
        self.optimizer.zero_grad()
        self.tower.backward(leaf.grad)
        self.optimizer.step()
        if self.config.weight_decay:
            with torch.no_grad():
                for parameter, start in zip(self.parameters, self.start, strict=True):
                    parameter.lerp_(start, min(1.0, self.config.rate * self.config.weight_decay))
        return float(value.detach())

    def epoch(self, number: int, clock: _Clock, on_examples: Callable[[int], None]) -> tuple[float, int]:
        """(mean loss, examples used) of one epoch, or of as much of it as the budget allows."""
        total, seen = 0.0, 0
        draw = np.random.default_rng([self.config.seed, number])
        for rows in _parts(self.train, self.config, draw):
            if clock.over:
                break
            total += self.step(rows, draw) * len(rows)
            seen += len(rows)
            on_examples(len(rows))
        return total / max(seen, 1), seen

    def validate(self, number: int, mean_loss: float, seen: int) -> None:
        """Adds an epoch with the quality of the parameters as they stand, and keeps these if they are the best."""
        found = quality(self.tower.refresh(lambda _: None), self.usable, self.valid)
        self.epochs.append(Epoch(number, mean_loss, *found, seen))
        if self.best_epoch is self.epochs[-1]:
            self.best = [p.detach().clone() for p in self.parameters]

    def restore_best(self) -> None:
        """Goes back to the best parameters."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)

    def save(self, elapsed_s: float) -> None:
        """Writes all that a run needs to go on as if it had never stopped."""
        if not self.file:
            return
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            tensors |= {f"now.{i}": parameter, f"best.{i}": self.best[i]}
            tensors |= {f"{name}.{i}": value for name, value in self.optimizer.state.get(parameter, {}).items()}
        checkpoint.write(self.file, tensors, {"epochs": [asdict(e) for e in self.epochs], "elapsed_s": elapsed_s})

    def resume(self) -> float:
        """Takes up what an earlier run left, and gives the seconds it had spent; 0 where there is none."""
        kept = checkpoint.read(self.file) if self.file else None
        if not kept:
            return 0.0
        tensors, facts = kept
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"now.{i}"])
                self.best[i] = tensors[f"best.{i}"].to(parameter.device)
                if f"step.{i}" in tensors:
                    names = ("step", "exp_avg", "exp_avg_sq")
                    self.optimizer.state[parameter] = {name: tensors[f"{name}.{i}"] for name in names}
        self.epochs = [Epoch(**epoch) for epoch in facts["epochs"]]
        self.tower.refresh(lambda _: None)
        return float(facts["elapsed_s"])

    def run(self, clock: _Clock, on_examples: Callable[[int], None]) -> StoppedBy:
        """Trains until there is a reason to stop, and names it."""
        while True:
            number = len(self.epochs)
            if number > self.config.epochs:
                return "epochs"
            if number and number - 1 - self.best_epoch.epoch >= self.config.patience:
                return "early stopping"
            mean_loss, seen = self.epoch(number, clock, on_examples) if number else (0.0, 0)
            if number and not seen:
                return "budget"
            before_s = clock.elapsed_s
            self.validate(number, mean_loss, seen)
            clock.reserve_s = clock.elapsed_s - before_s
            self.save(clock.elapsed_s)


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else json.dumps(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _zero_shot(
    encoder: Encoder, texts: list[str], directory: Path | None, on_texts: Callable[[int], None]
) -> tuple[Tensor, np.ndarray]:
    """Vectors of all items, 0 without text, and which have text; kept in the checkpoint's directory once made."""
    readable = np.array([bool(text.strip()) for text in texts], bool)
    file = directory / f"vectors-{_digest(encoder.fingerprint, texts)}.safetensors" if directory else None
    kept = checkpoint.read(file) if file else None
    if kept:
        on_texts(int(readable.sum()))
        return kept[0]["vectors"], readable
    done = 0

    def advance(now: int, _: int) -> None:
        nonlocal done
        on_texts(now - done)
        done = now

    vectors = torch.from_numpy(np.nan_to_num(encoder.encode(texts, advance)))
    if file:
        checkpoint.write(file, {"vectors": vectors}, {})
    return vectors, readable


def _tower(
    encoder: Encoder, texts: list[str], cached: Tensor, config: EncoderConfig, on_texts: Callable[[int], None]
) -> Tower:
    if config.mode == "projection":
        return Projection(encoder, cached)
    tower = UpperLayers(encoder, cached, texts, config.n_layers if config.mode == "last_layers" else None)
    tower.read_below(on_texts)
    return tower


def _advance(on_progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def by(more: int) -> None:
        nonlocal done
        done = min(done + more, total)
        if on_progress:
            on_progress(done, total)

    return by


def _split(examples: Examples, config: EncoderConfig) -> tuple[Examples, Examples]:
    """(training, validation): the last part by time; of a long one, rows evenly drawn."""
    cut = len(examples) - int(len(examples) * config.validation_share)
    rows = np.arange(cut, len(examples))
    if len(rows) > _VALIDATED:
        rows = rows[np.linspace(0, len(rows) - 1, _VALIDATED).astype(np.int64)]
    return examples.take(slice(0, cut)), examples.take(rows)


def _training_file(
    directory: Path | None, encoder: Encoder, texts: list[str], examples: Examples, config: EncoderConfig
) -> Path | None:
    """Where this training keeps its state: the name tells all that it depends on, so no other is taken for it."""
    if directory is None:
        return None
    arrays = [getattr(examples, name) for name in Examples.__dataclass_fields__]
    settings = config.model_dump(exclude={"budget_s", "epochs"}, mode="json")
    return directory / f"training-{_digest(encoder.fingerprint, texts, settings, *arrays)}.safetensors"


def fine_tune(
    encoder: Encoder,
    texts: Sequence[str],
    examples: Examples,
    config: EncoderConfig,
    checkpoint_dir: Path | None = None,
    on_progress: Progress | None = None,
) -> FineTuned:
    """The encoder fine-tuned on history -> next item, or the one given where that did not better it on validation.

    texts: one an item, in catalogue order ("" has none), made by the encoder's template. checkpoint_dir: an interrupted
    run called again with the same arguments goes on after its last epoch and ends with the same weights; a larger
    `budget_s` or more `epochs` goes on as well. on_progress: called with (done, total) in texts read and examples
    trained on; an early end leaves it short of the total.

    Deterministic by `config.seed` on one machine unless the budget ends it. Raises `ValueError` for examples of another
    catalogue or more layers than there are, `FloatingPointError` where training diverges.
    """
    _checked(texts, examples)
    texts = list(texts)
    clock = _Clock(0.0, config.budget_s)
    by = _advance(on_progress, 2 * len(texts) + config.epochs * min(len(examples), config.examples_per_epoch))
    cached, readable = _zero_shot(encoder, texts, checkpoint_dir, by)
    usable = torch.from_numpy(readable)

    def with_missing(vectors: Tensor) -> F32:
        return np.where(readable[:, None], vectors.numpy(), np.float32(np.nan))

    train, valid = _split(_usable(examples, readable), config)
    if min(len(train), len(valid)) < _FEWEST:
        return FineTuned(
            encoder, with_missing(cached), with_missing(cached), (), 0, 0, "too few examples", clock.elapsed_s
        )
    if config.mode == "frozen":
        zero_shot = Epoch(0, 0.0, *quality(cached, usable, valid), 0)
        return FineTuned(
            encoder, with_missing(cached), with_missing(cached), (zero_shot,), 0, 0, "frozen", clock.elapsed_s
        )

    tower = _tower(encoder, texts, cached, config, by)
    file = _training_file(checkpoint_dir, encoder, texts, examples, config)
    trainer = _Trainer(tower, train, valid, config, usable, file)
    clock = _Clock(trainer.resume() or clock.elapsed_s, config.budget_s)
    stopped_by = trainer.run(clock, by)
    trainer.restore_best()
    best = trainer.best_epoch.epoch
    return FineTuned(
        tower.encoder() if best else encoder,
        with_missing(tower.refresh(lambda _: None) if best else cached),
        with_missing(cached),
        tuple(trainer.epochs),
        best,
        sum(epoch.examples for epoch in trainer.epochs),
        stopped_by,
        clock.elapsed_s,
    )
