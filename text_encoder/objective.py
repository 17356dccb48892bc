"""Training objective and quality metrics of the encoder: retrieving the next item among all items by its text.

The loss is a sampled softmax over the items of a batch with logQ correction (Bengio & Senecal, 2008; Yi et al., RecSys
2019). Without the correction, popular items are negatives in most batches and their scores become too low. Items
sampled uniformly from the catalogue are added to the targets as candidates (Yang et al., WWW 2020). Otherwise items
without engagements would never be negatives.
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
    """float32[b, d]: the weighted mean of the vectors of each history, normalised to unit length.

    vectors: float32[m, d]. history: int64[b, H], rows of `vectors`; any row if its weight is 0. weight: float32[b, H].
    """
    # The gradient of embedding_bag is deterministic. That of indexing is not, because threads add to it concurrently.
    summed = torch.nn.functional.embedding_bag(history, vectors, per_sample_weights=weight, mode="sum")
    return torch.nn.functional.normalize(summed, dim=1)


class EngagedItems:
    """The items that each user engaged with in the examples. They are not used as negatives for that user."""

    def __init__(self, examples: Examples, n_items: int) -> None:
        user = np.concatenate((np.repeat(examples.user, examples.history.shape[1]), examples.user)).astype(np.int64)
        item = np.concatenate((examples.history.ravel(), examples.target))
        self._n_items = n_items
        self._pair = np.unique(user[item >= 0] * n_items + item[item >= 0])
        self._item = self._pair % n_items
        self._start = np.searchsorted(self._pair // n_items, np.arange(int(user.max(initial=-1)) + 2))

    def contains(self, user: I32, item: I32) -> NDArray[np.bool_]:
        """True if the user engaged with the item. The two arrays are broadcast."""
        return np.isin(user.astype(np.int64) * self._n_items + item, self._pair) & (item >= 0)

    def excluded_cells(self, user: I64, column: I64) -> tuple[I64, I64]:
        """(rows, columns) of the cells of a batch's score matrix that must not be used as negatives.

        user: int64[b]. column: int64[n_items], the column of each item, `-1` if it has none.
        """
        size = self._start[user + 1] - self._start[user]
        row = np.repeat(np.arange(len(user)), size)
        pair = np.arange(len(row)) - np.repeat(np.cumsum(size) - size, size) + np.repeat(self._start[user], size)
        item_column = column[self._item[pair]]
        return row[item_column >= 0], item_column[item_column >= 0]


@dataclass(frozen=True)
class Batch:
    """A batch of examples whose items refer to rows of one matrix of vectors, so that each item is encoded once.

    rows: int64[m], catalogue row of each vector. history: int64[b, H], rows of the matrix. history_weight: float32[b,
    H]. column: int64[c], rows of the matrix that are candidates of the softmax. target: int64[b], index into `column`.
    excluded: (rows, columns) of the cells that are not negatives. skipped: int64[b, K], rows of the matrix, padded with
    `-1`. example_weight: float32[b]. log_q: float32[c].
    """

    rows: I64
    history: Tensor
    history_weight: Tensor
    column: Tensor
    target: Tensor
    excluded: tuple[Tensor, Tensor]
    skipped: Tensor
    example_weight: Tensor
    log_q: Tensor

    @classmethod
    def of(cls, examples: Examples, engaged: EngagedItems, random_items: I64, log_q: F32) -> Batch:
        """The batch of the given examples.

        random_items: int64[r], additional candidates. log_q: float32[n_items], subtracted from the scores of an item:
        the log probability that it is a candidate, corrected for the popularity that the vectors are not to learn.
        """
        n_items = len(log_q)
        candidates: I64 = np.unique(np.concatenate((examples.target, random_items))).astype(np.int64)
        items = (examples.history.ravel(), examples.skipped.ravel(), candidates)
        rows = np.unique(np.concatenate(items)).astype(np.int64)
        rows = rows[rows >= 0]
        matrix_row = np.full(n_items + 1, -1, np.int64)  # index -1, for padding, reads the last entry
        matrix_row[rows] = np.arange(len(rows))
        column = np.full(n_items, -1, np.int64)
        column[candidates] = np.arange(len(candidates))

        excluded = engaged.excluded_cells(examples.user.astype(np.int64), column)
        target = column[examples.target]
        not_target = target[excluded[0]] != excluded[1]
        skipped = np.where(engaged.contains(examples.user[:, None], examples.skipped), -1, matrix_row[examples.skipped])
        return cls(
            rows,
            torch.from_numpy(np.maximum(matrix_row[examples.history], 0)),
            torch.from_numpy(examples.history_weight),
            torch.from_numpy(matrix_row[candidates]),
            torch.from_numpy(target),
            (torch.from_numpy(excluded[0][not_target]), torch.from_numpy(excluded[1][not_target])),
            torch.from_numpy(skipped),
            torch.from_numpy(examples.weight),
            torch.from_numpy(log_q[candidates]),
        )


def loss(vectors: Tensor, batch: Batch, temperature: float, skipped_weight: float) -> Tensor:
    """Scalar: weighted mean of the softmax losses, plus `skipped_weight` times that of the targets against their skips.

    vectors: float32[m, d], the vectors of `batch.rows`. Four skips among thousands of candidates would have little
    effect on the first softmax, so the target and its skips have a softmax of their own. It is also not affected by how
    the shown lists were selected, because the target and the skips come from the same list. An example without any
    candidates except the target has a loss of 0.
    """
    interest = pooled(vectors, batch.history, batch.history_weight)
    scores = interest @ vectors[batch.column].T / temperature - batch.log_q
    scores = scores.index_put(batch.excluded, torch.tensor(-torch.inf))
    losses = torch.nn.functional.cross_entropy(scores, batch.target, reduction="none")
    total = (losses * batch.example_weight).sum() / batch.example_weight.sum()
    has_skips = (batch.skipped >= 0).any(dim=1)
    if skipped_weight == 0 or not bool(has_skips.any()):
        return total
    interest, skipped, weight = interest[has_skips], batch.skipped[has_skips], batch.example_weight[has_skips]
    shown = torch.cat((batch.column[batch.target[has_skips], None], skipped.clamp(min=0)), dim=1)
    cosine = (torch.nn.functional.embedding(shown, vectors) @ interest[:, :, None]).squeeze(2) / temperature
    padding = torch.cat((torch.zeros(len(shown), 1, dtype=torch.bool), skipped < 0), dim=1)
    skip_losses = torch.nn.functional.cross_entropy(
        cosine.masked_fill(padding, -torch.inf), torch.zeros(len(shown), dtype=torch.int64), reduction="none"
    )
    return total + skipped_weight * (skip_losses * weight).sum() / weight.sum()


class Quality(NamedTuple):
    """Metrics of retrieving the next item among all items."""

    ndcg_at_10: float
    recall_at_50: float

    @property
    def score(self) -> float:
        """Score for model selection: the geometric mean, which weights relative gains in both metrics equally."""
        return math.sqrt(self.ndcg_at_10 * self.recall_at_50)


def quality(vectors: Tensor, usable: Tensor, examples: Examples) -> Quality:
    """ndcg@10 and recall@50 of the target among all usable items that are not in the history.

    vectors: float32[n, d], unit length. usable: bool[n], items that have text. examples: with usable targets. Ties are
    broken by row number. With one relevant item, ndcg@10 is 1 / log2(1 + rank) up to rank 10, else 0. NaN without
    examples.
    """
    ranks: list[F64] = []
    row = torch.arange(len(vectors))
    for start in range(0, len(examples), 1024):
        block = examples.take(slice(start, start + 1024))
        history, target = (
            torch.from_numpy(block.history.astype(np.int64)),
            torch.from_numpy(block.target.astype(np.int64)),
        )
        scores = pooled(vectors, history.clamp(min=0), torch.from_numpy(block.history_weight)) @ vectors.T
        target_score = scores.gather(1, target[:, None])
        scores[:, ~usable] = -torch.inf
        # Padding in a history excludes the target, which is not compared with itself anyway.
        scores.scatter_(1, torch.where(history >= 0, history, target[:, None]), -torch.inf)
        ahead = (scores > target_score) | ((scores == target_score) & (row < target[:, None]))
        ranks.append(1.0 + ahead.sum(dim=1).double().numpy())
    if not ranks:
        return Quality(math.nan, math.nan)
    rank = np.concatenate(ranks)
    return Quality(float(np.mean(np.where(rank <= 10, 1.0 / np.log2(1.0 + rank), 0.0))), float(np.mean(rank <= 50)))
