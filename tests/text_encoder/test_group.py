"""Training together: several workers make what one makes, as near as sums in another order allow, and all the same."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.text_encoder.test_text_encoder import NO_PROJECTION, TEXTS, planted
from tests.text_encoder.test_training import config
from text_encoder.encoder import Encoder, load
from text_encoder.group import Group, share
from text_encoder.texts import encode_texts, map_serially
from text_encoder.train import FineTuned, fine_tune

T = TypeVar("T")


class Threads:
    """One of some threads that train together, as processes would; what they say is laid on one table."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, len(table), table, barrier

    def _said(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait()
        said = list(self._table)
        self._barrier.wait()
        return said

    def total(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._said(tensor.detach().clone())).sum(dim=0)

    def agreed(self, value: T) -> T:
        return self._said(value)[0]


def together(size: int, work: Callable[[Group], T]) -> list[T]:
    """What each of `size` workers returns."""
    table, barrier = [None] * size, threading.Barrier(size, timeout=300)

    def one(rank: int) -> T:
        try:
            return work(Threads(rank, table, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(one, range(size)))


def test_each_row_is_one_workers_and_always_the_same_ones() -> None:
    """Rows by their number, wherever they stand: what a worker keeps of an item it finds again."""
    groups = [Threads(rank, [None] * 3, threading.Barrier(1)) for rank in range(3)]
    rows = np.array([7, 3, 4, 0, 9, 8])
    assert [share(rows, g).tolist() for g in groups] == [[3, 0, 9], [7, 4], [8]]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load("minilm", max_tokens=16)


def tuned(minilm: Encoder, size: int, **changes: object) -> list[FineTuned]:
    found = encode_texts(minilm, TEXTS, None, None, lambda _: None, map_serially)
    settings = config(log_to="none", epochs=2, **changes)
    return together(size, lambda group: fine_tune(minilm, TEXTS, planted(), settings, None, None, found, group))


def test_workers_that_read_texts_together_reach_what_one_reaches(minilm: Encoder) -> None:
    """Batches and texts are dealt out whole, so only the order of sums differs; every worker ends with the same."""
    changes = NO_PROJECTION | {"mode": "last_layers", "n_layers": 1, "layer_learning_rate": 1e-4}
    (alone,) = tuned(minilm, 1, **changes)
    several = tuned(minilm, 3, **changes)
    for one in several:
        np.testing.assert_allclose(one.vectors, alone.vectors, atol=1e-4)
        np.testing.assert_array_equal(one.vectors, several[0].vectors)
    assert np.nanmax(np.abs(alone.vectors - alone.zero_shot)) > 1e-3, "and it learnt something"


def test_workers_that_share_batches_of_examples_learn_as_one_does(minilm: Encoder) -> None:
    """Each has its own examples as negatives, fewer than one would have: alike, not equal, and the same on each."""
    (alone,) = tuned(minilm, 1)
    several = tuned(minilm, 2)
    np.testing.assert_array_equal(several[1].vectors, several[0].vectors)
    assert several[0].epochs[-1].ndcg_at_10 == pytest.approx(alone.epochs[-1].ndcg_at_10, abs=0.1)
    assert several[0].epochs[-1].ndcg_at_10 > 1.5 * several[0].epochs[0].ndcg_at_10
