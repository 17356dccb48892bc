"""The loop: steps of Adam on a tower, validation after each epoch, the best state kept, all of it resumable.

Over cached vectors a step is a batch of examples. Where texts are read a step is a batch of items: many batches of
examples, drawn as ever, tell the gradient of all vectors, and it is taken down through these items' texts. Dealing out
the examples with the items instead would be wrong: an item would meet all the shoppers who took it at once, but few of
those who did not, and be drawn to everyone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.arrays import F32, I64
from text_encoder import checkpoint
from text_encoder.config import EncoderConfig
from text_encoder.examples import Examples
from text_encoder.group import ALONE, Group
from text_encoder.objective import Batch, EngagedItems, Quality, loss, quality
from text_encoder.scalars import Scalars
from text_encoder.towers import Tower

StoppedBy = Literal["epochs", "early stopping", "budget", "too few examples", "frozen"]


@dataclass(frozen=True)
class Epoch:
    """One pass: what it trained, mean loss (0 where none was trained), quality on the validation part after it.

    epoch: from 0, which is the encoder as it came, over all stages. stage: "zero-shot" or a mode. examples: used in
    it, where texts are read those of each reading. seconds: it took, validation included.
    """

    epoch: int
    stage: str
    loss: float
    ndcg_at_10: float
    recall_at_50: float
    examples: int
    seconds: float = field(compare=False)

    @property
    def score(self) -> float:
        """What epochs are chosen by."""
        return Quality(self.ndcg_at_10, self.recall_at_50).score


class Clock:
    """Seconds spent in all runs of this training."""

    def __init__(self, budget_s: float) -> None:
        self._start, self.budget_s = time.monotonic(), budget_s
        self.reserve_s = 0.0

    def spent_before(self, seconds: float) -> None:
        """Counts the seconds of an earlier run, which stand for those this run has spent on catching up."""
        self._start = min(self._start, time.monotonic() - seconds)

    @property
    def elapsed_s(self) -> float:
        """So far."""
        return time.monotonic() - self._start

    @property
    def over(self) -> bool:
        """Whether what is left is needed for validating what has been reached."""
        return self.elapsed_s + self.reserve_s >= self.budget_s


class Data(NamedTuple):
    """What a stage learns from and is chosen by.

    usable: bool[n_items], items that have text.
    """

    train: Examples
    valid: Examples
    usable: Tensor


class _Step(NamedTuple):
    batches: list[I64]
    """Rows of examples."""
    read: I64 | None
    """Items whose text is read; None where vectors are at hand."""


def _log_q(train: Examples, usable: Tensor, config: EncoderConfig, batch: float) -> F32:
    """float32[n_items]: what is taken off an item's scores in a step of `batch` examples.

    The log of the chance that it is among the step's candidates, so that what is learnt is the softmax over all items;
    less its log popularity, by the share that vectors are not to explain (Menon et al., ICLR 2021).
    """
    n_items = len(usable)
    count = np.bincount(train.target, minlength=n_items)
    absent = np.exp(batch * np.log1p(-np.minimum(count / len(train), 1 - 1e-9)))
    absent *= 1 - min(1.0, config.random_negatives / int(usable.sum()))
    popularity = np.log((count + 1) / (len(train) + n_items))
    out: F32 = (np.log(np.maximum(1 - absent, 1e-9)) - (1 - config.log_q) * popularity).astype(np.float32)
    return out


class Trainer:
    """One stage over a tower: steps, validation, checkpoints in `file`, if any."""

    def __init__(
        self,
        tower: Tower,
        data: Data,
        config: EncoderConfig,
        stage: str,
        start: Epoch,
        first: int,
        file: Path | None,
        group: Group = ALONE,
    ) -> None:
        """start: the epoch that reached what training must better. first: the number of the first epoch of its own.

        group: the workers that share each step. Over vectors at hand each takes its share of a batch, whose examples
        have one another as negatives, and gradients are averaged; where texts are read, whole batches, and what comes
        out is a single worker's but for rounding.
        """
        self.group = group
        self.tower, self.data, self.config, self.stage, self.file = tower, data, config, stage, file
        self.parameters = list(tower.parameters.values())
        self.start = [p.detach().clone() for p in self.parameters]
        self.best = [p.detach().clone() for p in self.parameters]
        self.rate = config.learning_rate if stage == "projection" else config.layer_rate
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.rate)
        self.engaged = EngagedItems(data.train, len(data.usable))
        items = np.unique(np.append(data.train.history, data.train.target)).astype(np.int64)
        self.readable = items[items >= 0] if tower.reads_text else None
        together = min(config.batch_size, len(data.train))
        alone = together if tower.reads_text else together / group.size
        self.log_q = _log_q(data.train, data.usable, config, alone)
        self.drawable: I64 = np.flatnonzero(data.usable.numpy())
        self.epochs, self._first = [start], first

    @property
    def best_epoch(self) -> Epoch:
        """The best so far; the first of equals, so what came stays where nothing is better."""
        return max(self.epochs, key=lambda e: e.score)

    def _steps(self, draw: np.random.Generator) -> list[_Step]:
        if self.readable is None:
            return [_Step([part], None) for part in self._batches(draw)]
        items = draw.permutation(self.readable)
        # A small catalogue still gets some steps.
        size = min(self.config.batch_texts, max(32, len(items) // 8))
        return [_Step(self._batches(draw), part) for part in np.array_split(items, -(-len(items) // size))]

    def _batches(self, draw: np.random.Generator) -> list[I64]:
        rows: I64 = draw.permutation(len(self.data.train))[: self.config.examples_per_epoch]
        return np.array_split(rows, max(1, round(len(rows) / self.config.batch_size)))

    def _drawn(self, draw: np.random.Generator) -> I64:
        """Items that join the candidates of a batch."""
        size = min(self.config.random_negatives, len(self.drawable))
        return draw.choice(self.drawable, size, replace=False, shuffle=False)

    def _gradient(self, rows: I64, drawn: I64) -> tuple[I64, Tensor, float]:
        """(items, gradient of their vectors, loss) of a batch of examples."""
        batch = Batch.of(self.data.train.take(rows), self.engaged, drawn, self.log_q)
        leaf = self.tower.vectors(batch.rows).requires_grad_()
        value = loss(leaf, batch, self.config.temperature, self.config.skipped_weight)
        value.backward()  # type: ignore[no-untyped-call]
        if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
            raise FloatingPointError(
                f"training diverged at rate {self.rate:g}, temperature {self.config.temperature:g}: "
                "lower the learning rate or raise the temperature"
            )
        return batch.rows, leaf.grad, float(value.detach())

    def step(self, step: _Step, draw: np.random.Generator) -> float:
        """One step of the optimizer; the loss before it."""
        self.optimizer.zero_grad()
        if step.read is None:
            # A batch of fewer examples than workers is everybody's.
            batch, drawn = step.batches[0], self._drawn(draw)
            own = batch[self.group.rank :: self.group.size] if len(batch) >= self.group.size else batch
            rows, gradient, value = self._gradient(own, drawn)
            self.tower.backward(rows, gradient)
            value = self._mean(value)
        else:
            value = self._read(step.batches, step.read, draw)
        self.optimizer.step()
        if self.config.weight_decay:
            with torch.no_grad():
                for parameter, start in zip(self.parameters, self.start, strict=True):
                    parameter.lerp_(start, min(1.0, self.rate * self.config.weight_decay))
        return value

    def _read(self, batches: list[I64], items: I64, draw: np.random.Generator) -> float:
        """Takes the mean gradient over the batches down through the texts of some items; the mean loss."""
        place = np.full(len(self.data.usable), -1, np.int64)
        place[items] = np.arange(len(items))
        total, summed = 0.0, torch.zeros(0)
        for number, part in enumerate(batches):
            drawn = self._drawn(draw)
            if number % self.group.size != self.group.rank:
                continue
            rows, gradient, value = self._gradient(part, drawn)
            summed = summed if len(summed) else torch.zeros(len(items), gradient.shape[1])
            among = place[rows] >= 0
            summed[torch.from_numpy(place[rows[among]])] += gradient[torch.from_numpy(among)]
            total += value
        if not len(summed):  # fewer batches than workers
            summed = torch.zeros_like(self.tower.vectors(items))
        self.tower.backward(items, self.group.total(summed) / len(batches))
        return self._mean(total) * self.group.size / len(batches)

    def _mean(self, value: float) -> float:
        """The mean of a number over the workers."""
        return float(self.group.total(torch.tensor([value], dtype=torch.float64))) / self.group.size

    def _epoch(self, clock: Clock, on_step: Callable[[float], None]) -> tuple[float, int]:
        """(mean loss, examples used) of one epoch, or of as much of it as the budget allows."""
        total, seen = 0.0, 0
        draw = np.random.default_rng([self.config.seed, len(self.epochs)])
        steps = self._steps(draw)
        for step in steps:
            if self.group.agreed(clock.over):
                break
            size = sum(map(len, step.batches))
            total += self.step(step, draw) * size
            seen += size
            on_step(1 / len(steps))
        return total / max(seen, 1), seen

    def _validate(self, mean_loss: float, seen: int, clock: Clock, began_s: float) -> None:
        """Adds an epoch with the quality of the parameters as they stand, and keeps these if they are the best."""
        before_s = clock.elapsed_s
        vectors = self.tower.refresh(lambda _: None)
        found = self.group.agreed(quality(vectors, self.data.usable, self.data.valid))
        clock.reserve_s = clock.elapsed_s - before_s
        number = self._first + len(self.epochs) - 1
        self.epochs.append(Epoch(number, self.stage, mean_loss, *found, seen, clock.elapsed_s - began_s))
        if self.best_epoch is self.epochs[-1]:
            self.best = [p.detach().clone() for p in self.parameters]

    def restore_best(self) -> None:
        """Goes back to the best parameters."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)

    def _save(self, elapsed_s: float) -> None:
        """Writes all that a run needs to go on as if it had never stopped."""
        if not self.file or self.group.rank:
            return
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            tensors |= {f"now.{i}": parameter, f"best.{i}": self.best[i]}
            tensors |= {f"{name}.{i}": value for name, value in self.optimizer.state.get(parameter, {}).items()}
        checkpoint.write(self.file, tensors, {"epochs": [asdict(e) for e in self.epochs], "elapsed_s": elapsed_s})

    def _resume(self, clock: Clock) -> None:
        """Takes up what an earlier run left, if any."""
        # What the first worker has: the others may be on machines that never saw the file.
        kept = self.group.agreed(checkpoint.read(self.file) if self.file and not self.group.rank else None)
        if not kept:
            return
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
        clock.spent_before(float(facts["elapsed_s"]))

    def run(self, clock: Clock, log: Scalars, on_step: Callable[[float], None]) -> StoppedBy:
        """Trains until there is a reason to stop, and names it. on_step: takes shares of an epoch."""
        self._resume(clock)
        while True:
            if len(self.epochs) > self.config.epochs:
                return "epochs"
            if len(self.epochs) - 1 - self.epochs.index(self.best_epoch) >= self.config.patience:
                return "early stopping"
            began_s = clock.elapsed_s
            mean_loss, seen = self._epoch(clock, on_step)
            if not seen:
                return "budget"
            self._validate(mean_loss, seen, clock, began_s)
            self._report(log)
            self._save(clock.elapsed_s)

    def _report(self, log: Scalars) -> None:
        epoch = self.epochs[-1]
        log.add(
            epoch.epoch,
            {
                "loss": epoch.loss,
                "ndcg@10": epoch.ndcg_at_10,
                "recall@50": epoch.recall_at_50,
                "examples/s": epoch.examples / max(epoch.seconds, 1e-9),
            },
        )
