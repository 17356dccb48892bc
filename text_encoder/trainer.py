"""Training loop of one stage: Adam steps on a tower, validation after each epoch, and checkpoints to resume from.

With cached vectors, a step is a batch of examples. If the tower reads texts, a step is a batch of items: the gradient
of their vectors comes from many batches of examples, sampled as usual, and is backpropagated through the texts of these
items. Examples must not be assigned to steps by their items. An item would then be trained with all users who engaged
with it but only few who did not, and its vector would move towards all users.
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
from text_encoder.errors import EncoderError
from text_encoder.examples import Examples
from text_encoder.group import ALONE, Group
from text_encoder.objective import Batch, EngagedItems, Quality, loss, quality
from text_encoder.scalars import Scalars
from text_encoder.towers import Tower

StoppedBy = Literal["epochs", "early stopping", "budget", "too few examples", "frozen"]


@dataclass(frozen=True)
class Epoch:
    """Training and validation metrics of one epoch.

    epoch: number over all stages; 0 is the original encoder. stage: "zero-shot" or a mode. loss: mean training loss, 0
    without training. ndcg_at_10, recall_at_50: on the validation examples after the epoch. examples: number of training
    examples used; if the tower reads texts, they count once per step. seconds: duration including validation.
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
        """Score for choosing the best epoch."""
        return Quality(self.ndcg_at_10, self.recall_at_50).score


class Clock:
    """Processor time spent on training, over all runs, and the budget of it.

    It is the time of the thread that trains, which takes part in every operation: about the time on the wall on a
    machine that does nothing else. What it waits for other processes does not count, so that a busy machine trains as
    long as an idle one, and makes the same release. It must be read by the thread that made it.
    """

    def __init__(self, budget_s: float) -> None:
        self._start, self.budget_s = time.thread_time(), budget_s
        self.reserve_s = 0.0

    def add_earlier_run(self, seconds: float) -> None:
        """Counts the time of an earlier run instead of the time that this run took to catch up with it."""
        self._start = min(self._start, time.thread_time() - seconds)

    @property
    def elapsed_s(self) -> float:
        """Seconds spent so far."""
        return time.thread_time() - self._start

    @property
    def expired(self) -> bool:
        """True if the budget is used up, except for `reserve_s`, the time that a final validation needs."""
        return self.elapsed_s + self.reserve_s >= self.budget_s


class Data(NamedTuple):
    """Training and validation examples of a stage.

    usable: bool[n_items], items that have text.
    """

    train: Examples
    valid: Examples
    usable: Tensor


class _Step(NamedTuple):
    batches: list[I64]
    """Rows of the examples of each batch."""
    items: I64 | None
    """Items whose texts are read; None with cached vectors."""


def _log_q(train: Examples, usable: Tensor, config: EncoderConfig, batch_size: float) -> F32:
    """float32[n_items]: logQ correction, subtracted from the scores of an item.

    The log probability that the item is a candidate in a batch, which makes the sampled softmax estimate the softmax
    over all items, minus its log popularity times the share of popularity that the vectors are not to learn (Menon et
    al., ICLR 2021).
    """
    n_items = len(usable)
    count = np.bincount(train.target, minlength=n_items)
    absent = np.exp(batch_size * np.log1p(-np.minimum(count / len(train), 1 - 1e-9)))
    absent *= 1 - min(1.0, config.random_negatives / int(usable.sum()))
    popularity = np.log((count + 1) / (len(train) + n_items))
    out: F32 = (np.log(np.maximum(1 - absent, 1e-9)) - (1 - config.log_q) * popularity).astype(np.float32)
    return out


class Trainer:
    """Trains one stage on a tower: steps, validation, and checkpoints in `file`, if given."""

    def __init__(
        self,
        tower: Tower,
        data: Data,
        config: EncoderConfig,
        stage: str,
        start: Epoch,
        first_epoch: int,
        file: Path | None,
        group: Group = ALONE,
    ) -> None:
        """start: the epoch to improve on. first_epoch: number of the first epoch of this stage.

        group: the workers that share each step. With cached vectors, each worker trains on its share of every batch,
        with only the items of this share as negatives, and the gradients are averaged. If the tower reads texts, the
        workers divide whole batches, and the result is that of a single worker except for rounding.
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
        self.items_to_read = items[items >= 0] if tower.reads_text else None
        batch_size = min(config.batch_size, len(data.train))
        own_batch_size = batch_size if tower.reads_text else batch_size / group.size
        self.log_q = _log_q(data.train, data.usable, config, own_batch_size)
        self.usable_items: I64 = np.flatnonzero(data.usable.numpy())
        self.epochs, self._first_epoch = [start], first_epoch

    @property
    def best_epoch(self) -> Epoch:
        """The epoch with the best score; the earliest in a tie, so the start wins if no epoch is better."""
        return max(self.epochs, key=lambda e: e.score)

    def _steps(self, draw: np.random.Generator) -> list[_Step]:
        if self.items_to_read is None:
            return [_Step([batch], None) for batch in self._batches(draw)]
        items = draw.permutation(self.items_to_read)
        # Smaller steps for small catalogues, so that an epoch has several.
        size = min(self.config.batch_texts, max(32, len(items) // 8))
        return [_Step(self._batches(draw), step_items) for step_items in np.array_split(items, -(-len(items) // size))]

    def _batches(self, draw: np.random.Generator) -> list[I64]:
        rows: I64 = draw.permutation(len(self.data.train))[: self.config.examples_per_epoch]
        return np.array_split(rows, max(1, round(len(rows) / self.config.batch_size)))

    def _random_negatives(self, draw: np.random.Generator) -> I64:
        """Additional random candidates for a batch."""
        size = min(self.config.random_negatives, len(self.usable_items))
        return draw.choice(self.usable_items, size, replace=False, shuffle=False)

    def _gradient(self, rows: I64, random_items: I64) -> tuple[I64, Tensor, float]:
        """(items, gradient of their vectors, loss) of a batch of examples."""
        batch = Batch.of(self.data.train.take(rows), self.engaged, random_items, self.log_q)
        leaf = self.tower.vectors(batch.rows).requires_grad_()
        value = loss(leaf, batch, self.config.temperature, self.config.skipped_weight)
        value.backward()  # type: ignore[no-untyped-call]
        if leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
            raise EncoderError(
                f"training diverged with learning rate {self.rate:g} and temperature {self.config.temperature:g}; "
                "reduce the learning rate or increase the temperature"
            )
        return batch.rows, leaf.grad, float(value.detach())

    def step(self, step: _Step, draw: np.random.Generator) -> float:
        """Runs one optimizer step. Returns the loss before it."""
        self.optimizer.zero_grad()
        if step.items is None:
            # If a batch has fewer examples than there are workers, every worker trains on all of it.
            batch, random_items = step.batches[0], self._random_negatives(draw)
            own = batch[self.group.rank :: self.group.size] if len(batch) >= self.group.size else batch
            rows, gradient, value = self._gradient(own, random_items)
            self.tower.backward(rows, gradient)
            value = self._mean(value)
        else:
            value = self._backward_through_texts(step.batches, step.items, draw)
        self.optimizer.step()
        if self.config.weight_decay:
            with torch.no_grad():
                for parameter, start in zip(self.parameters, self.start, strict=True):
                    parameter.lerp_(start, min(1.0, self.rate * self.config.weight_decay))
        return value

    def _backward_through_texts(self, batches: list[I64], items: I64, draw: np.random.Generator) -> float:
        """Backpropagates the mean gradient over the batches through the texts of the items. Returns the mean loss."""
        index = np.full(len(self.data.usable), -1, np.int64)
        index[items] = np.arange(len(items))
        total_loss, total_gradient = 0.0, torch.zeros(0)
        for number, batch in enumerate(batches):
            random_items = self._random_negatives(draw)
            if number % self.group.size != self.group.rank:
                continue
            rows, gradient, value = self._gradient(batch, random_items)
            total_gradient = total_gradient if len(total_gradient) else torch.zeros(len(items), gradient.shape[1])
            in_step = index[rows] >= 0
            total_gradient[torch.from_numpy(index[rows[in_step]])] += gradient[torch.from_numpy(in_step)]
            total_loss += value
        if not len(total_gradient):  # fewer batches than workers
            total_gradient = torch.zeros_like(self.tower.vectors(items))
        self.tower.backward(items, self.group.all_reduce(total_gradient) / len(batches))
        return self._mean(total_loss) * self.group.size / len(batches)

    def _mean(self, value: float) -> float:
        """The mean of a number over the workers."""
        return float(self.group.all_reduce(torch.tensor([value], dtype=torch.float64))) / self.group.size

    def _epoch(self, clock: Clock, on_step: Callable[[float], None]) -> tuple[float, int]:
        """(mean loss, examples used) of one epoch, which ends early if the budget is used up."""
        total, seen = 0.0, 0
        draw = np.random.default_rng([self.config.seed, len(self.epochs)])
        steps = self._steps(draw)
        for step in steps:
            if self.group.broadcast(clock.expired):
                break
            size = sum(map(len, step.batches))
            total += self.step(step, draw) * size
            seen += size
            on_step(1 / len(steps))
        return total / max(seen, 1), seen

    def _validate(self, mean_loss: float, seen: int, clock: Clock, began_s: float) -> None:
        """Validates the current parameters, adds the epoch, and stores the parameters if they are the best."""
        before_s = clock.elapsed_s
        vectors = self.tower.refresh(lambda _: None)
        metrics = self.group.broadcast(quality(vectors, self.data.usable, self.data.valid))
        clock.reserve_s = clock.elapsed_s - before_s
        number = self._first_epoch + len(self.epochs) - 1
        self.epochs.append(Epoch(number, self.stage, mean_loss, *metrics, seen, clock.elapsed_s - began_s))
        if self.best_epoch is self.epochs[-1]:
            self.best = [p.detach().clone() for p in self.parameters]

    def restore_best(self) -> None:
        """Resets the parameters to the best ones."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)

    def _save(self, elapsed_s: float) -> None:
        """Writes a checkpoint with the complete training state."""
        if not self.file or self.group.rank:
            return
        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            tensors |= {f"now.{i}": parameter, f"best.{i}": self.best[i]}
            tensors |= {f"{name}.{i}": value for name, value in self.optimizer.state.get(parameter, {}).items()}
        checkpoint.write(self.file, tensors, {"epochs": [asdict(e) for e in self.epochs], "elapsed_s": elapsed_s})

    def _resume(self, clock: Clock) -> None:
        """Restores the state from the checkpoint of an earlier run, if there is one."""
        # Read by the first worker only: the file may not exist on the machines of the others.
        saved = self.group.broadcast(checkpoint.read(self.file) if self.file and not self.group.rank else None)
        if not saved:
            return
        tensors, facts = saved
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"now.{i}"])
                self.best[i] = tensors[f"best.{i}"].to(parameter.device)
                if f"step.{i}" in tensors:
                    names = ("step", "exp_avg", "exp_avg_sq")
                    self.optimizer.state[parameter] = {name: tensors[f"{name}.{i}"] for name in names}
        self.epochs = [Epoch(**epoch) for epoch in facts["epochs"]]
        self.tower.refresh(lambda _: None)
        clock.add_earlier_run(float(facts["elapsed_s"]))

    def run(self, clock: Clock, log: Scalars, on_step: Callable[[float], None]) -> StoppedBy:
        """Trains until there is a reason to stop, and returns that reason.

        on_step: called after each step with the share of the epoch that the step is.
        """
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
