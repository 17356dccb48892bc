"""Rank metrics against arithmetic by hand and scikit-learn, their ties, their bounds; and the paired bootstrap."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from ranker.metrics import paired_difference, score_lists, tie_break

LIST_METRICS = ["ndcg@10", "ndcg", "map@10", "map", "mrr@10", "mrr", "recall@50", "hit_rate@10", "precision@10", "auc"]


def one_list(metric: str, gain_in_order: list[int], missed: Any = None, scores: list[float] | None = None) -> float:
    """The metric of one list whose items are scored in the order given."""
    n = len(gain_in_order)
    start = np.array([0, n])
    falling = np.arange(n, 0, -1.0) if scores is None else np.array(scores)
    ties = tie_break(np.arange(n), start)
    beside = None if missed is None else np.array([missed])
    return float(score_lists(metric, falling, np.array(gain_in_order, np.int8), start, ties, beside)[0])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # gains in ranked order: 0, 3, 0, 1
        ("ndcg@10", ((2**3 - 1) / log2(3) + (2**1 - 1) / log2(5)) / ((2**3 - 1) / log2(2) + (2**1 - 1) / log2(3))),
        ("ndcg@2", ((2**3 - 1) / log2(3)) / ((2**3 - 1) / log2(2) + (2**1 - 1) / log2(3))),
        ("ndcg@1", 0.0),
        ("map@10", (1 / 2 + 2 / 4) / 2),
        ("map", (1 / 2 + 2 / 4) / 2),
        ("map@3", (1 / 2) / 2),
        ("map@1", 0 / 1),
        ("mrr", 1 / 2),
        ("mrr@1", 0.0),
        ("recall@3", 1 / 2),
        ("recall@50", 2 / 2),
        ("hit_rate@1", 0.0),
        ("hit_rate@2", 1.0),
        ("precision@10", 2 / 10),
        ("precision@2", 1 / 2),
        # pairs (relevant, other): the first relevant beats 1 of 2, the second 0 of 2
        ("auc", (1 + 0) / 4),
    ],
)
def test_a_metric_is_what_the_arithmetic_says(metric: str, expected: float) -> None:
    assert one_list(metric, [0, 3, 0, 1]) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("metric", "missed", "expected"),
    [
        ("ndcg@10", 1, (1 / log2(2)) / (1 / log2(2) + 1 / log2(3))),
        ("ndcg@10", [0, 1], (1 / log2(2)) / (3 / log2(2) + 1 / log2(3))),
        ("ndcg@1", 1, 1.0),
        ("recall@50", 3, 1 / (1 + 3)),
        ("map@10", 1, (1 / 1) / 2),
        ("mrr", 5, 1.0),
        ("auc", 5, 1.0),
    ],
)
def test_relevant_items_that_were_not_retrieved_count_against_the_list(
    metric: str, missed: Any, expected: float
) -> None:
    """A list of one relevant item on top and one other; `missed` more exist that no candidate list held."""
    assert one_list(metric, [1, 0], missed) == pytest.approx(expected)


def test_a_list_that_retrieved_none_of_the_relevant_scores_zero_not_nan() -> None:
    assert one_list("recall@50", [0, 0], 2) == 0.0
    assert one_list("ndcg@10", [], 2) == 0.0


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_a_list_without_a_relevant_item_is_undefined(metric: str) -> None:
    """NaN, also for an empty list; its neighbours keep their values."""
    start = np.array([0, 2, 2, 4, 6])
    gain = np.array([0, 0, 1, 0, 0, 1], np.int8)
    scores = np.array([2.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    values = score_lists(metric, scores, gain, start, tie_break(np.arange(6), start))
    assert np.isnan(values).tolist() == [True, True, False, False]


def test_auc_of_a_list_of_nothing_but_relevant_items_is_undefined() -> None:
    assert np.isnan(one_list("auc", [1, 2]))


def test_nan_scores_rank_last_even_after_minus_infinity() -> None:
    """Order: 1.0, -inf, NaN, so the relevant NaN item stands third."""
    assert one_list("mrr", [1, 0, 0], scores=[np.nan, -np.inf, 1.0]) == 1 / 3
    assert one_list("mrr", [0, 1, 0], scores=[np.nan, -np.inf, np.inf]) == 1 / 2


def test_zero_and_minus_zero_are_a_tie() -> None:
    assert one_list("auc", [1, 0], scores=[0.0, -0.0]) == 1 / 2


lists = st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=12), min_size=1, max_size=5)


def flat(groups: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, gains, start and items of lists of (score, gain), with many ties among scores."""
    pairs = np.array([pair for group in groups for pair in group], float).reshape(-1, 2)
    start = np.cumsum([0, *(len(group) for group in groups)])
    items = np.concatenate([np.arange(len(group)) * 7 + 1 for group in groups]).astype(np.int64)
    return pairs[:, 0], pairs[:, 1].astype(np.int8), start, items


@settings(max_examples=40, deadline=None)
@given(lists, st.randoms())
def test_neither_the_order_of_rows_nor_of_lists_matters(groups: list[list[tuple[int, int]]], random: Any) -> None:
    """Ties included: rows shuffled within lists, and lists among themselves, give each list the same values."""
    scores, gain, start, items = flat(groups)
    lists_in_order = list(range(len(groups)))
    random.shuffle(lists_in_order)
    rows: list[int] = []
    for one in lists_in_order:
        own = list(range(start[one], start[one + 1]))
        random.shuffle(own)
        rows += own
    again = np.cumsum([0, *(len(groups[one]) for one in lists_in_order)])
    moved = np.array(rows, np.int64)
    for metric in LIST_METRICS:
        whole = score_lists(metric, scores, gain, start, tie_break(items, start))
        shuffled = score_lists(metric, scores[moved], gain[moved], again, tie_break(items[moved], again))
        np.testing.assert_array_equal(shuffled, whole[lists_in_order])


@settings(max_examples=40, deadline=None)
@given(lists)
def test_only_the_order_of_the_scores_counts(groups: list[list[tuple[int, int]]]) -> None:
    """A rising function of the scores changes nothing, and no input is touched."""
    scores, gain, start, items = flat(groups)
    ties = tie_break(items, start)
    before = scores.copy()
    for metric in LIST_METRICS:
        same = score_lists(metric, np.exp(scores) - 5, gain, start, ties)
        np.testing.assert_array_equal(same, score_lists(metric, scores, gain, start, ties))
    np.testing.assert_array_equal(scores, before)


@settings(max_examples=40, deadline=None)
@given(lists, st.sampled_from([0, 2]))
def test_values_lie_between_zero_and_one_and_the_best_order_reaches_one(
    groups: list[list[tuple[int, int]]], missed: int
) -> None:
    scores, gain, start, items = flat(groups)
    ties = tie_break(items, start)
    beside = np.full(len(groups), missed)
    for metric in LIST_METRICS:
        values = score_lists(metric, scores, gain, start, ties, beside)
        assert np.all((values >= 0) & (values <= 1) | np.isnan(values))
    for metric in ("ndcg@10", "ndcg", "map@3", "mrr", "hit_rate@1", "auc"):
        best = score_lists(metric, gain.astype(float), gain, start, ties)
        np.testing.assert_allclose(best[~np.isnan(best)], 1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=15), st.integers(0, 10**6), st.sampled_from([1, 3, 10]))
def test_ndcg_and_auc_agree_with_scikit_learn(gain: list[int], seed: int, k: int) -> None:
    """scikit-learn is given 2^gain - 1, as its own gain is linear."""
    scores = np.random.default_rng(seed).permutation(len(gain)).astype(float)
    if max(gain) == 0:
        return
    expected = ndcg_score([[2.0**g - 1 for g in gain]], [scores], k=k)
    assert one_list(f"ndcg@{k}", gain, scores=list(scores)) == pytest.approx(expected, abs=1e-12)
    if min(gain) == 0:
        auc = roc_auc_score([g > 0 for g in gain], scores // 2)
        assert one_list("auc", gain, scores=list(scores // 2)) == pytest.approx(auc, abs=1e-12)


def test_among_equal_scores_no_place_is_favoured() -> None:
    """With all scores equal, the relevant item of 4,000 lists of 10, first in its list, is rank 1 in a tenth."""
    lists_, size = 4000, 10
    start = np.arange(0, lists_ * size + 1, size)
    gain = np.tile(np.array([1] + [0] * 9, np.int8), lists_)
    items = np.random.default_rng(0).integers(0, 10**6, lists_ * size)
    hit = score_lists("hit_rate@1", np.zeros(len(gain)), gain, start, tie_break(items, start))
    assert abs(hit.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / lists_)


@pytest.mark.parametrize(
    "metric", ["", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@x", "NDCG@10", "f1@10", "auc@10", "precision", "ndcg@10 "]
)
def test_an_unknown_metric_is_refused_with_what_would_be_right(metric: str) -> None:
    with pytest.raises(ValueError, match=r"as in '(ndcg|precision)@10'"):
        one_list(metric, [1, 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gain": np.array([0, -1, 0])}, r"gain\[1\] is -1, expected 0 to 30"),
        ({"gain": np.array([0, 31, 0])}, r"gain\[1\] is 31"),
        ({"gain": np.array([0.0, 1.0, 0.5])}, "gain is float64, expected integers"),
        ({"gain": np.array([0, 1])}, "gain has 2 values, expected 3"),
        ({"start": np.array([0, 2])}, "start must rise from 0 to the 3 rows"),
        ({"start": np.array([0, 2, 1, 3])}, "start must rise"),
        ({"start": np.array([], np.int64)}, "start must rise"),
        ({"tie_break": np.zeros(3)}, "tie_break is float64"),
        ({"tie_break": np.zeros(2, np.uint64)}, r"expected uint64\[3\]"),
        ({"missed": np.array([-1])}, "missed holds -1"),
        ({"missed": np.array([1, 1])}, "missed has 2 values, expected 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(changes: dict[str, Any], sentence: str) -> None:
    given_: dict[str, Any] = {"scores": np.zeros(3), "gain": np.array([0, 1, 0]), "start": np.array([0, 3])}
    given_ |= {"tie_break": np.zeros(3, np.uint64)} | changes
    with pytest.raises(ValueError, match=sentence):
        score_lists("ndcg@10", **given_)


def test_the_difference_is_the_mean_over_lists_where_both_are_defined() -> None:
    """Lists 0 and 2 count: (0.5 - 0.25 + 1.0 - 0.25) / 2."""
    a, b = np.array([0.5, np.nan, 1.0]), np.array([0.25, np.nan, 0.25])
    found = paired_difference(a, b, np.array([7, 7, 9]))
    assert (found.difference, found.lists, found.clusters) == ((0.25 + 0.75) / 2, 2, 2)
    assert found.low <= found.difference <= found.high


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Users differ, lists of a user are alike: 90% intervals of 200 worlds hold the true 0.1 about 180 times."""
    held, narrow = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(60), 5)
        a = 0.1 + rng.normal(size=60)[user] + 0.3 * rng.normal(size=300)
        clustered = paired_difference(a, np.zeros(300), user, n=300, seed=seed, level=0.9)
        listwise = paired_difference(a, np.zeros(300), np.arange(300), n=300, seed=seed, level=0.9)
        held += clustered.low <= 0.1 <= clustered.high
        narrow += listwise.low <= 0.1 <= listwise.high
    # Binomial(200, 0.9) has a standard deviation of 4.2; taking lists for independent is far off.
    assert 167 <= held <= 193
    assert narrow < 150


def test_the_same_seed_gives_the_same_interval_and_user_numbers_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b, user = rng.random(500), rng.random(500), rng.integers(0, 80, 500)
    first = paired_difference(a, b, user, seed=3)
    assert first == paired_difference(a, b, user * 1000 - 7, seed=3)
    assert first != paired_difference(a, b, user, seed=4)
    swapped = paired_difference(b, a, user, seed=3)
    assert (swapped.difference, swapped.low) == pytest.approx((-first.difference, -first.high))


def test_a_clear_difference_has_a_small_p_and_none_has_one_of_one() -> None:
    user = np.arange(200)
    better = paired_difference(np.full(200, 0.6), np.full(200, 0.5), user, n=999)
    assert better.p == pytest.approx(2 * (0 + 1) / (999 + 1))
    assert paired_difference(np.full(200, 0.5), np.full(200, 0.5), user).p == 1.0


def test_one_user_gives_a_difference_but_no_interval() -> None:
    found = paired_difference(np.array([1.0, 0.0]), np.array([0.5, 0.0]), np.array([3, 3]))
    assert found.difference == 0.25
    assert np.isnan([found.low, found.high, found.p]).all()


@pytest.mark.parametrize(
    ("a", "b", "cluster", "options", "sentence"),
    [
        ([1.0], [1.0, 2.0], [1], {}, "have 1, 2 and 1 lists"),
        ([np.nan, 1.0], [0.5, 1.0], [1, 2], {}, "list 0: a is nan and b is 0.5"),
        ([np.inf], [0.5], [1], {}, "list 0: a is inf"),
        ([np.nan], [np.nan], [1], {}, "nothing to compare"),
        ([], [], [], {}, "nothing to compare"),
        ([1.0], [1.0], [1], {"n": 0}, "n=0"),
        ([1.0], [1.0], [1], {"level": 1.0}, "level=1.0"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: Any, b: Any, cluster: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        paired_difference(np.array(a, float), np.array(b, float), np.array(cluster, int), **options)
