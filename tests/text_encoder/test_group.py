"""Training with several workers: the result is that of one worker except for rounding, and equal on all workers."""

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
from text_encoder.group import Group, own_rows
from text_encoder.train import FineTuned, fine_tune

T = TypeVar("T")


class ThreadGroup:
    """A `Group` of threads instead of processes, which exchange values in a shared list."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._values, self._barrier = rank, len(values), values, barrier

    def _gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait()
        gathered = list(self._values)
        self._barrier.wait()
        return gathered

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._gather(tensor.detach().clone())).sum(dim=0)

    def broadcast(self, value: T) -> T:
        first: T = self._gather(value)[0]
        return first


def run_workers(size: int, work: Callable[[Group], T]) -> list[T]:
    """The result of each of `size` workers."""
    values, barrier = [None] * size, threading.Barrier(size, timeout=300)

    def run_worker(rank: int) -> T:
        try:
            return work(ThreadGroup(rank, values, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run_worker, range(size)))


def test_each_row_always_belongs_to_the_same_worker() -> None:
    """Rows are assigned by their number, regardless of their position in the array."""
    groups = [ThreadGroup(rank, [None] * 3, threading.Barrier(1)) for rank in range(3)]
    rows = np.array([7, 3, 4, 0, 9, 8])
    assert [own_rows(rows, g).tolist() for g in groups] == [[3, 0, 9], [7, 4], [8]]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load("minilm", max_tokens=16)


def tuned(minilm: Encoder, size: int, **changes: object) -> list[FineTuned]:
    encoded = minilm.encode(TEXTS)
    settings = config(log_to="none", epochs=2, **changes)
    return run_workers(size, lambda group: fine_tune(minilm, TEXTS, planted(), settings, None, None, encoded, group))


def test_workers_that_read_texts_give_the_result_of_one_worker(minilm: Encoder) -> None:
    """Whole batches and texts are divided among the workers, so only the order of sums differs."""
    changes = NO_PROJECTION | {"mode": "last_layers", "n_layers": 1, "layer_learning_rate": 1e-4}
    (single,) = tuned(minilm, 1, **changes)
    several = tuned(minilm, 3, **changes)
    for result in several:
        np.testing.assert_allclose(result.vectors, single.vectors, atol=1e-4)
        np.testing.assert_array_equal(result.vectors, several[0].vectors)
    assert np.nanmax(np.abs(single.vectors - single.zero_shot)) > 1e-3, "training changed the vectors"


def test_workers_that_share_batches_train_as_well_as_one_worker(minilm: Encoder) -> None:
    """A worker only has its own examples as negatives, so the result differs slightly, but not between workers."""
    (single,) = tuned(minilm, 1)
    several = tuned(minilm, 2)
    np.testing.assert_array_equal(several[1].vectors, several[0].vectors)
    assert several[0].epochs[-1].ndcg_at_10 == pytest.approx(single.epochs[-1].ndcg_at_10, abs=0.1)
    assert several[0].epochs[-1].ndcg_at_10 > 1.5 * several[0].epochs[0].ndcg_at_10
