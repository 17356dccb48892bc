"""What the encoder is trained for, and how well it does it: the next item, found among all by its text.

Sampled softmax over the items of a batch with logQ correction (Bengio & Senecal, 2008; Yi et al., RecSys 2019): without
it popular items, being in most batches, are pushed away from everyone. Some items drawn evenly from the catalogue stand
beside the targets (Yang et al., WWW 2020): one that no one ever engaged with would otherwise be no one's negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from features.arrays import F32, F64, I32, I64
from text_encoder.examples import Examples


def pooled(vectors: Tensor, history: Tensor, weight: Tensor) -> Tensor:
    """float32[b, d]: the weighted mean of the vectors of each history, brought to unit length.

    vectors: float32[m, d]. history: int64[b, H], rows of `vectors`, any row where weight is 0. weight: float32[b, H].
    """
    # Unlike indexing, whose gradient is summed by racing threads, this gives the same bits each time.
    summed = torch.nn.functional.embedding_bag(history, vectors, per_sample_weights=weight, mode="sum")
    return torch.nn.functional.normalize(summed, dim=1)


class EngagedItems:
    """The items each user engaged with in the examples: no negatives for that user, whatever list they were in."""

    def __init__(self, examples: Examples, n_items: int) -> None:
        user = np.concatenate((np.repeat(examples.user, examples.history.shape[1]), examples.user)).astype(np.int64)
        item = np.concatenate((examples.history.ravel(), examples.target))
        self._n_items = n_items
        self._pair = np.unique(user[item >= 0] * n_items + item[item >= 0])
        self._item = self._pair % n_items
        self._start = np.searchsorted(self._pair // n_items, np.arange(int(user.max(initial=-1)) + 2))

    def has(self, user: I32, item: I32) -> NDArray[np.bool_]:
        """Whether the user engaged with the item; the two are broadcast."""
        return np.isin(user.astype(np.int64) * self._n_items + item, self._pair) & (item >= 0)

    def cells(self, user: I64, column: I64) -> tuple[I64, I64]:
        """(rows, columns) of a batch's score matrix that are no negatives.

        user: int64[b]. column: int64[n_items], the column of each item, `-1` for one that has none.
        """
        size = self._start[user + 1] - self._start[user]
        row = np.repeat(np.arange(len(user)), size)
        place = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size) + np.repeat(self._start[user], size)
        at = column[self._item[place]]
        return row[at >= 0], at[at >= 0]


@dataclass(frozen=True)
class Batch:
    """Examples with their items as rows of one small matrix of vectors, so each is encoded once.

    rows: int64[m], the catalogue row of each.
    history: int64[b, H], weight: float32[b, H]. column: int64[c], the candidates of the softmax among the m.
    target: int64[b], among the columns. excluded: (rows, columns) that are no negatives. skipped: int64[b, K] among the
    m, `-1` for none. value: float32[b], what an example counts for. log_q: float32[c].
    """

    rows: I64
    history: Tensor
    weight: Tensor
    column: Tensor
    target: Tensor
    excluded: tuple[Tensor, Tensor]
    skipped: Tensor
    value: Tensor
    log_q: Tensor

    @classmethod
    def of(cls, part: Examples, engaged: EngagedItems, drawn: I64, log_q: F32) -> Batch:
        """The batch of some examples.

        drawn: int64[r], items to stand among the candidates whoever engaged with them. log_q: float32[n_items], taken
        off the scores of an item: log of the chance that it is a candidate, and what popularity is to be left out.
        """
        n_items = len(log_q)
        target: I64 = np.unique(np.concatenate((part.target, drawn))).astype(np.int64)
        rows = np.unique(np.concatenate((part.history.ravel(), part.skipped.ravel(), target))).astype(np.int64)
        rows = rows[rows >= 0]
        place = np.full(n_items + 1, -1, np.int64)  # the last one is read by -1: none
        place[rows] = np.arange(len(rows))
        column = np.full(n_items, -1, np.int64)
        column[target] = np.arange(len(target))

        excluded = engaged.cells(part.user.astype(np.int64), column)
        own = column[part.target]
        other = own[excluded[0]] != excluded[1]
        skipped = np.where(engaged.has(part.user[:, None], part.skipped), -1, place[part.skipped])
        return cls(
            rows,
            torch.from_numpy(np.maximum(place[part.history], 0)),
            torch.from_numpy(part.history_weight),
            torch.from_numpy(place[target]),
            torch.from_numpy(own),
            (torch.from_numpy(excluded[0][other]), torch.from_numpy(excluded[1][other])),
            torch.from_numpy(skipped),
            torch.from_numpy(part.weight),
            torch.from_numpy(log_q[target]),
        )


def loss(vectors: Tensor, batch: Batch, temperature: float, skipped_weight: float) -> Tensor:
    """Scalar: weighted mean of the softmax losses; `skipped_weight` times that of target against its own skips added.

    vectors: float32[m, d], the vectors of `batch.rows`. In a softmax over the catalogue four skips among thousands
    would hardly be felt, so target against skips is a small softmax of its own; and only there has the list's policy,
    which chose both, no say. An example whose candidates are all excluded but its target has a loss of 0.
    """
    interest = pooled(vectors, batch.history, batch.weight)
    scores = interest @ vectors[batch.column].T / temperature - batch.log_q
    scores = scores.index_put(batch.excluded, torch.tensor(-torch.inf))
    each = torch.nn.functional.cross_entropy(scores, batch.target, reduction="none")
    total = (each * batch.value).sum() / batch.value.sum()
    some = (batch.skipped >= 0).any(dim=1)
    if skipped_weight == 0 or not bool(some.any()):
        return total
    interest, skipped, value = interest[some], batch.skipped[some], batch.value[some]
    shown = torch.cat((batch.column[batch.target[some], None], skipped.clamp(min=0)), dim=1)
    cosine = (torch.nn.functional.embedding(shown, vectors) @ interest[:, :, None]).squeeze(2) / temperature
    none = torch.cat((torch.zeros(len(shown), 1, dtype=torch.bool), skipped < 0), dim=1)
    among = torch.nn.functional.cross_entropy(
        cosine.masked_fill(none, -torch.inf), torch.zeros(len(shown), dtype=torch.int64), reduction="none"
    )
    return total + skipped_weight * (among * value).sum() / value.sum()


class Quality(NamedTuple):
    """How well the next item is found among all items."""

    ndcg_at_10: float
    recall_at_50: float

    @property
    def score(self) -> float:
        """One number to choose by: the geometric mean, so that a relative gain in either counts alike."""
        return math.sqrt(self.ndcg_at_10 * self.recall_at_50)


def quality(vectors: Tensor, usable: Tensor, examples: Examples) -> Quality:
    """ndcg@10 and recall@50 of the target among all usable items; the items of the history are not ranked.

    vectors: float32[n, d], unit length. usable: bool[n], items that have text. examples: targets among these.
    Equal scores stand in row order. With one relevant item, ndcg@10 is 1 / log2(1 + rank) up to rank 10. NaN without
    examples.
    """
    ranks: list[F64] = []
    row = torch.arange(len(vectors))
    for start in range(0, len(examples), 1024):
        part = examples.take(slice(start, start + 1024))
        history, target = (
            torch.from_numpy(part.history.astype(np.int64)),
            torch.from_numpy(part.target.astype(np.int64)),
        )
        scores = pooled(vectors, history.clamp(min=0), torch.from_numpy(part.history_weight)) @ vectors.T
        own = scores.gather(1, target[:, None])
        scores[:, ~usable] = -torch.inf
        # An empty place of a history excludes the target, which is not compared with itself anyway.
        scores.scatter_(1, torch.where(history >= 0, history, target[:, None]), -torch.inf)
        ahead = (scores > own) | ((scores == own) & (row < target[:, None]))
        ranks.append(1.0 + ahead.sum(dim=1).double().numpy())
    if not ranks:
        return Quality(math.nan, math.nan)
    rank = np.concatenate(ranks)
    return Quality(float(np.mean(np.where(rank <= 10, 1.0 / np.log2(1.0 + rank), 0.0))), float(np.mean(rank <= 50)))
