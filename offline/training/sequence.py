"""Training of the sequence model: for each engagement of a user, the next one among all items.

The loss is a sampled softmax with logQ correction, as that of the encoder (`text_encoder.objective`). Items that a user
has already engaged with are no targets: other features tell what is chosen again. Engagements of one moment, such as a
basket, are predicted from what came before the moment, as a request sees it.

The model is trained once for each encoder, on the events before the same moment, each from the weights of the one
before. It stops after a number of epochs, so that the same data give the same model, unless a budget stops it. torch is
imported only then, as it takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from features.arrays import F32, F64, I64, Bool
from features.log import GAIN, Events
from features.sequence import LENGTH, SequenceModel, age_buckets
from offline.config import SequenceConfig
from text_encoder.examples import newest_engagements

if TYPE_CHECKING:
    from torch import Tensor

    from offline.training.sequence_network import SequenceNetwork

_HALF_ID = 20.0
"""Engagements with an item at which its ID has half of its weight."""
_BATCH_USERS = 128
_BATCH_TARGETS = 2500
_NEGATIVES = 512
"""Items drawn uniformly as candidates of each batch, besides the targets."""
_TEMPERATURE = 0.07
_POPULARITY = 0.7
"""Share of the popularity of items that the scores learn, as `encoder.log_q`."""
_RATE = 1e-3


class Engagements(NamedTuple):
    """Engagements with known items by user, oldest first: user u has the rows `start[u]:start[u + 1]`.

    Users with fewer than two are left out. kind: int64, at: float64, item: int64.
    """

    item: I64
    kind: I64
    at: F64
    start: I64

    @classmethod
    def of(cls, events: Events, before: float, most: int) -> Engagements:
        """The newest `most` engagements strictly before a time."""
        rows = newest_engagements(events.before(before), most, known=True)
        rows = rows[np.argsort(events.user[rows], kind="stable")]
        _, user, size = np.unique(events.user[rows], return_inverse=True, return_counts=True)
        rows, size = rows[size[user] > 1], size[size > 1]
        return cls(
            events.item[rows].astype(np.int64),
            events.kind[rows].astype(np.int64),
            np.asarray(events.at[rows], np.float64),
            np.concatenate(([0], np.cumsum(size))).astype(np.int64),
        )


class Batch(NamedTuple):
    """Windows of engagements, oldest first, padded at the end.

    item: int64[b, t], -1 for padding. kind: int64[b, t]. age: int64[b, t, t], as in `SequenceNetwork.users`. row,
    context, place: int64[m], the row of each target, and the places of the engagement before it and of itself.
    """

    item: I64
    kind: I64
    age: I64
    row: I64
    context: I64
    place: I64

    @classmethod
    def of(cls, engagements: Engagements, begin: I64, end: I64) -> Batch:
        """The windows `begin:end` of the rows of the engagements."""
        size = end - begin
        step = np.arange(int(size.max()))
        real = step < size[:, None]
        source = np.where(real, begin[:, None] + step, begin[:, None])
        item = np.where(real, engagements.item[source], -1)
        at = np.where(real, engagements.at[source], np.inf)
        later = np.zeros_like(real)
        later[:, 1:] = at[:, 1:] > at[:, :-1]
        first_at_time = np.maximum.accumulate(np.where(later, step, 0), axis=1)
        context = first_at_time - 1
        earlier = (item[:, :, None] == item[:, None, :]) & (step[:, None] > step)
        row, place = np.nonzero(real & (context >= 0) & ~earlier.any(axis=2))
        kind = np.where(real, engagements.kind[source], 0)
        return cls(item, kind, _ages(at, real), row, context[row, place], place)


def _ages(at: F64, real: Bool) -> I64:
    """int64[b, t, t]: age bucket of each engagement at the next time after each engagement."""
    following = np.where(real, at, 0.0)
    for j in range(at.shape[1] - 2, -1, -1):
        is_next = np.isfinite(at[:, j + 1])
        following[:, j] = np.where(
            is_next, np.where(at[:, j + 1] > at[:, j], at[:, j + 1], following[:, j + 1]), following[:, j]
        )
    return age_buckets(following[:, :, None] - np.where(real, at, 0.0)[:, None, :])


class Trained(NamedTuple):
    """A trained model, and the number of epochs: fewer than configured if the budget was used up."""

    model: SequenceModel
    epochs: int


def train_models(
    events: Events,
    vectors: F32,
    moments: Sequence[float],
    config: SequenceConfig,
    on_progress: Callable[[int, int], None],
) -> list[Trained]:
    """A model for each moment, trained on the events strictly before it; none if `config.epochs` is 0.

    vectors: float32[k, n, d], text vectors of the items by the encoder of each moment, NaN for an item without text.
    `config.budget_s` covers all models: what is left of it is divided in proportion to the numbers of engagements.
    """
    if not config.epochs:
        return []
    started = time.thread_time()
    sizes = [len(Engagements.of(events, moment, config.most_events).item) + 1 for moment in moments]
    from offline.training.sequence_network import SequenceNetwork

    network = SequenceNetwork(vectors[0], config.seed)
    trained, total = [], config.epochs * len(moments)
    for k, moment in enumerate(moments):
        engagements = Engagements.of(events, moment, config.most_events)
        count = np.bincount(engagements.item, minlength=vectors.shape[1]).astype(np.float64)
        network.use(vectors[k], (count / (count + _HALF_ID)).astype(np.float32))
        now = time.thread_time()
        end = now + (started + config.budget_s - now) * sizes[k] / sum(sizes[k:])
        epochs = 0
        for epochs in _train(network, engagements, count, config, k, end):
            on_progress(k * config.epochs + epochs, total)
        trained.append(Trained(network.export(), epochs))
        on_progress((k + 1) * config.epochs, total)
    return trained


def _batches(engagements: Engagements, most: int, rng: np.random.Generator) -> Iterator[Batch]:
    """One window of each user, or of users with `most` engagements: the newest, or every second time any others."""
    start, stop = engagements.start[:-1], engagements.start[1:]
    if not len(start):
        return
    users = rng.permutation(len(start))
    before = np.cumsum(np.minimum(stop - start, LENGTH + 1)[users])
    users = users[: int(np.searchsorted(before, most)) + 1]
    start, stop = start[users], stop[users]
    size = np.minimum(stop - start, LENGTH + 1)
    end = np.where(rng.random(len(users)) < 0.5, stop, rng.integers(start + size, stop + 1))
    # Windows of about the same length in a batch, so that little is padding.
    by_size = np.argsort(size + rng.uniform(0, 3, len(size)), kind="stable")
    parts = [by_size[k : k + _BATCH_USERS] for k in range(0, len(by_size), _BATCH_USERS)]
    for number in rng.permutation(len(parts)).tolist():
        part = parts[number]
        yield Batch.of(engagements, end[part] - size[part], end[part])


def _train(
    network: SequenceNetwork, engagements: Engagements, count: F64, config: SequenceConfig, number: int, end: float
) -> Iterator[int]:
    """Train, and yield the number of epochs after each. end: processor time of this thread at which to stop."""
    import torch

    rng = np.random.default_rng([config.seed, number])
    torch.manual_seed(int(rng.integers(2**31)))
    optimizers = network.optimizers(_RATE)
    network.train()
    for epoch in range(config.epochs):
        for batch in _batches(engagements, config.events_per_epoch, rng):
            if time.thread_time() > end:
                return
            loss = _loss(network, batch, count, rng)
            if loss is None:
                continue
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            for optimizer in optimizers:
                optimizer.step()
        yield epoch + 1


def _loss(network: SequenceNetwork, batch: Batch, count: F64, rng: np.random.Generator) -> Tensor | None:
    """Mean loss over the targets of a batch, purchases weighing more; None if it has none."""
    import torch
    from torch.nn import functional

    n, row, context, place = len(count), batch.row, batch.context, batch.place
    if not len(row):
        return None
    if len(row) > _BATCH_TARGETS:
        kept = np.sort(rng.choice(len(row), _BATCH_TARGETS, replace=False))
        row, context, place = row[kept], context[kept], place[kept]
    target = batch.item[row, place]
    candidates = np.unique(np.concatenate((target, rng.integers(0, n, _NEGATIVES))))
    known = np.unique(np.concatenate((batch.item[batch.item >= 0], candidates)))
    index = np.zeros(n, np.int64)
    index[known] = np.arange(len(known))
    embedded = network.items(torch.from_numpy(known))
    listed = embedded[torch.from_numpy(np.where(batch.item >= 0, index[batch.item], 0))]
    users = network.users(
        listed, torch.from_numpy(batch.kind), torch.from_numpy(batch.age), torch.from_numpy(batch.item >= 0)
    )
    expected = users[torch.from_numpy(row), torch.from_numpy(context)]
    scores = expected @ embedded[torch.from_numpy(index[candidates])].T / _TEMPERATURE
    scores = scores - torch.from_numpy(_log_q(count, candidates, len(row)))
    column = np.full(n + 1, -1)
    column[candidates] = np.arange(len(candidates))
    own = column[batch.item[row]]  # the padding, -1, reads the last entry
    excluded = np.nonzero((own >= 0) & (own != column[target][:, None]))
    cells = torch.from_numpy(excluded[0]), torch.from_numpy(own[excluded])
    scores = scores.index_put(cells, torch.tensor(-1e9))
    weight = torch.from_numpy(GAIN[batch.kind[row, place]].astype(np.float32))
    loss = functional.cross_entropy(scores, torch.from_numpy(column[target]), reduction="none")
    return (loss * weight).sum() / weight.sum()


def _log_q(count: F64, candidates: I64, targets: int) -> F32:
    """float32[c]: log probability of being a candidate, without the popularity that the scores are to learn."""
    popularity = (count[candidates] + 1) / (count.sum() + len(count))
    absent = np.exp(targets * np.log1p(-popularity)) * (1 - min(1.0, _NEGATIVES / len(count)))
    out = np.log(np.maximum(1 - absent, 1e-9)) - (1 - _POPULARITY) * np.log(popularity)
    result: F32 = out.astype(np.float32)
    return result
