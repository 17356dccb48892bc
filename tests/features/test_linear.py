"""The linear item-to-item model: ridge regression, its split into a part of low rank and single weights, and scores."""

from __future__ import annotations

import numpy as np
import pytest

from features.linear import Linear
from features.linear.model import MEMORY, PENALTY, RANK, WEIGHTS
from features.log import Events, Kind
from tests.worlds import START, make_events

DAY = 86400.0


def log_of(chosen: np.ndarray) -> Events:
    """A log in which user u clicks item i on day i if `chosen[u, i]`."""
    rows = [(DAY * i, u, i, Kind.CLICK, -1) for u, i in np.argwhere(chosen).tolist()]
    return make_events(rows, n_users=len(chosen))


def weights_of(model: Linear, n: int) -> np.ndarray:
    """float64[n, n], from item, to item: what a list of one item says for each candidate."""
    every, at = np.arange(n, dtype=np.int32), np.array([START])
    return np.stack([model.scores(every, np.array([i], np.int32), at)[1] for i in range(n)])


def ridge(chosen: np.ndarray) -> np.ndarray:
    """EASE in closed form: `-P_ij / P_jj`, with P the inverse of the counts plus the penalty."""
    x = chosen.astype(np.float64)
    inverse = np.linalg.inv(x.T @ x + PENALTY * np.eye(x.shape[1]))
    out = -inverse / np.diag(inverse)
    np.fill_diagonal(out, 0)
    return out


@pytest.fixture(scope="module")
def chosen() -> np.ndarray:
    """bool[300, 60]: two groups of users, each with items of its own, and some noise."""
    random = np.random.default_rng(0)
    own = (np.arange(300)[:, None] % 2) == (np.arange(60) % 2)
    return random.random((300, 60)) < np.where(own, 0.5, 0.08)


def test_with_few_items_the_weights_are_those_of_ridge_regression(chosen: np.ndarray) -> None:
    """60 items have at most 59 single weights each, so that nothing is cut."""
    assert chosen.shape[1] <= WEIGHTS
    model = Linear.build(log_of(chosen), 60, START + 100 * DAY)
    assert model.speaking.shape == (61, RANK)
    np.testing.assert_allclose(weights_of(model, 60), ridge(chosen), atol=1e-5)
    assert (ridge(chosen) < 0).any()


def test_a_candidate_counts_its_items_once_by_recency_and_not_itself(chosen: np.ndarray) -> None:
    """List, newest first: item 3, then 5 and 7 in one visit, then 3 again. Visits ago: 0, 1, 1."""
    model, expected = Linear.build(log_of(chosen), 60, START + 100 * DAY), ridge(chosen)
    at = START + np.array([9, 5, 5, 1]) * DAY
    recent, whole = model.scores(np.array([1, 5, -1], np.int32), np.array([3, 5, 7, 3], np.int32), at)
    half = 0.5 ** (1 / MEMORY)
    np.testing.assert_allclose(whole[0], expected[[3, 5, 7], 1].sum(), atol=1e-5)
    np.testing.assert_allclose(recent[0], expected[3, 1] + half * expected[[5, 7], 1].sum(), atol=1e-5)
    np.testing.assert_allclose(whole[1], expected[[3, 7], 5].sum(), atol=1e-5)
    assert recent[2] == whole[2] == 0, "an unknown item has no weights"


def test_scores_do_not_depend_on_the_other_candidates(chosen: np.ndarray) -> None:
    """To the bit, in any order."""
    model = Linear.build(log_of(chosen), 60, START + 100 * DAY)
    item, at = np.array([3, 5, 7], np.int32), START + np.array([3.0, 2.0, 1.0])
    every = np.arange(-1, 60, dtype=np.int32)
    together = model.scores(every, item, at)
    for c in range(0, 61, 7):
        np.testing.assert_array_equal(model.scores(every[c : c + 1], item, at)[:, 0], together[:, c])


def test_only_events_before_the_time_count_and_nothing_is_known_without_any(chosen: np.ndarray) -> None:
    log = log_of(chosen)
    early = Linear.build(log, 60, START + 30 * DAY)
    only = Linear.build(log.before(START + 30 * DAY), 60, START + 100 * DAY)
    np.testing.assert_array_equal(weights_of(early, 60), weights_of(only, 60))
    assert not weights_of(early, 60)[:, 30:].any(), "item 30 is first clicked on day 30"
    assert not weights_of(Linear.build(log, 60, START), 60).any()


def test_the_best_items_are_those_with_the_highest_sum_of_both_scores(chosen: np.ndarray) -> None:
    """Of 60 items all are scored; of more than `_COMPARED`, those that are best by the part of low rank or offered."""
    model, expected = Linear.build(log_of(chosen), 60, START + 100 * DAY), ridge(chosen)
    item, at = np.array([8, 3], np.int32), np.array([START, START])
    row, score = model.best(item, at)
    assert row.tolist() == list(range(60))
    np.testing.assert_allclose(score, 2 * expected[[8, 3]].sum(axis=0), atol=1e-5)
    assert model.offered[8, 0] == expected[8].argmax()
    assert (expected[8, model.offered[8][model.offered[8] >= 0]] > 0).all()


def test_of_a_large_model_the_best_items_are_among_those_compared() -> None:
    """300 items in 10 groups of 30, and users of one group each: the best 20 are those of the group."""
    random = np.random.default_rng(1)
    own = (np.arange(400)[:, None] % 10) == (np.arange(300) % 10)
    model = Linear.build(log_of(random.random((400, 300)) < np.where(own, 0.4, 0.02)), 300, START + 400 * DAY)
    row, score = model.best(np.array([4, 14, 24], np.int32), START + np.array([3.0, 2.0, 1.0]))
    assert len(row) < 300
    assert (row[np.argsort(-score)[:20]] % 10 == 4).all()
    every = model.scores(np.arange(300, dtype=np.int32), np.array([4, 14, 24], np.int32), START + np.array([3.0, 2, 1]))
    assert np.argsort(-every.sum(axis=0))[:10].tolist() == row[np.argsort(-score)[:10]].tolist()


def test_items_with_most_users_are_in_the_model(chosen: np.ndarray) -> None:
    """With room for 10 items, all others have no weight in either direction."""
    model = Linear.build(log_of(chosen), 60, START + 100 * DAY, most=10)
    known = np.argsort(-chosen.sum(axis=0), kind="stable")[:10]
    weights = weights_of(model, 60)
    rest = np.setdiff1d(np.arange(60), known)
    assert not weights[rest].any()
    assert not weights[:, rest].any()
    assert weights[np.ix_(known, known)].any()
