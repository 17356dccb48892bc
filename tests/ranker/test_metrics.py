"""Ranking metrics against manual arithmetic and scikit-learn; ties, bounds, calibration and the paired bootstrap."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration, calibration_curve
from sklearn.metrics import average_precision_score, ndcg_score, precision_score, recall_score, roc_auc_score

from ranker.calibration import calibration, click_probability
from ranker.metrics import (
    coverage,
    gap_closed,
    intervals,
    intra_list_diversity,
    novelty,
    paired_difference,
    popularity_percentile,
    score_lists,
    tie_break,
    top_k,
)

LIST_METRICS = ["ndcg@10", "ndcg", "map@10", "map", "mrr@10", "mrr", "recall@50", "hit_rate@10", "precision@10", "auc"]


def one_list(metric: str, gain_in_order: list[int], missed: Any = None, scores: list[float] | None = None) -> float:
    """The metric of one list. Without scores, the items are ranked in the given order."""
    n = len(gain_in_order)
    start = np.array([0, n])
    list_scores = np.arange(n, 0, -1.0) if scores is None else np.array(scores)
    ties = tie_break(np.arange(n), start)
    missed_counts = None if missed is None else np.array([missed])
    return float(score_lists(metric, list_scores, np.array(gain_in_order, np.int8), start, ties, missed_counts)[0])


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
        # pairs (relevant, irrelevant): the first relevant item is above 1 of 2, the second above 0 of 2
        ("auc", (1 + 0) / 4),
    ],
)
def test_metrics_match_manual_arithmetic(metric: str, expected: float) -> None:
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
    """One relevant item on top, one irrelevant item, and `missed` relevant items that are not in the list."""
    assert one_list(metric, [1, 0], missed) == pytest.approx(expected)


def test_a_list_without_any_of_the_relevant_items_scores_zero_not_nan() -> None:
    assert one_list("recall@50", [0, 0], 2) == 0.0
    assert one_list("ndcg@10", [], 2) == 0.0


@pytest.mark.parametrize("metric", LIST_METRICS)
def test_a_list_without_a_relevant_item_is_undefined(metric: str) -> None:
    """NaN, including for an empty list. Other lists are not affected."""
    start = np.array([0, 2, 2, 4, 6])
    gain = np.array([0, 0, 1, 0, 0, 1], np.int8)
    scores = np.array([2.0, 1.0, 2.0, 1.0, 2.0, 1.0])
    values = score_lists(metric, scores, gain, start, tie_break(np.arange(6), start))
    assert np.isnan(values).tolist() == [True, True, False, False]


def test_auc_of_a_list_with_only_relevant_items_is_undefined() -> None:
    assert np.isnan(one_list("auc", [1, 2]))


def test_nan_scores_rank_last_even_after_minus_infinity() -> None:
    """Order: 1.0, -inf, NaN, so the relevant item with score NaN is third."""
    assert one_list("mrr", [1, 0, 0], scores=[np.nan, -np.inf, 1.0]) == 1 / 3
    assert one_list("mrr", [0, 1, 0], scores=[np.nan, -np.inf, np.inf]) == 1 / 2


def test_zero_and_minus_zero_are_a_tie() -> None:
    assert one_list("auc", [1, 0], scores=[0.0, -0.0]) == 1 / 2


lists = st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=12), min_size=1, max_size=5)


def flat(groups: list[list[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(scores, gains, start, items) of lists of (score, gain) pairs; many scores are equal."""
    pairs = np.array([pair for group in groups for pair in group], float).reshape(-1, 2)
    start = np.cumsum([0, *(len(group) for group in groups)])
    items = np.concatenate([np.arange(len(group)) * 7 + 1 for group in groups]).astype(np.int64)
    return pairs[:, 0], pairs[:, 1].astype(np.int8), start, items


@settings(max_examples=40, deadline=None)
@given(lists, st.randoms())
def test_neither_the_order_of_rows_nor_of_lists_matters(groups: list[list[tuple[int, int]]], random: Any) -> None:
    """Shuffling the lists, and the rows within each list, does not change the values, even with ties."""
    scores, gain, start, items = flat(groups)
    group_order = list(range(len(groups)))
    random.shuffle(group_order)
    rows: list[int] = []
    for group in group_order:
        own = list(range(start[group], start[group + 1]))
        random.shuffle(own)
        rows += own
    new_start = np.cumsum([0, *(len(groups[group]) for group in group_order)])
    moved = np.array(rows, np.int64)
    for metric in LIST_METRICS:
        original = score_lists(metric, scores, gain, start, tie_break(items, start))
        shuffled = score_lists(metric, scores[moved], gain[moved], new_start, tie_break(items[moved], new_start))
        np.testing.assert_array_equal(shuffled, original[group_order])


@settings(max_examples=40, deadline=None)
@given(lists)
def test_only_the_order_of_the_scores_matters(groups: list[list[tuple[int, int]]]) -> None:
    """An increasing function of the scores gives the same values. The inputs are not modified."""
    scores, gain, start, items = flat(groups)
    ties = tie_break(items, start)
    before = scores.copy()
    for metric in LIST_METRICS:
        same = score_lists(metric, np.exp(scores) - 5, gain, start, ties)
        np.testing.assert_array_equal(same, score_lists(metric, scores, gain, start, ties))
    np.testing.assert_array_equal(scores, before)


@settings(max_examples=40, deadline=None)
@given(lists, st.sampled_from([0, 2]))
def test_values_are_between_zero_and_one_and_the_ideal_order_reaches_one(
    groups: list[list[tuple[int, int]]], missed: int
) -> None:
    scores, gain, start, items = flat(groups)
    ties = tie_break(items, start)
    missed_counts = np.full(len(groups), missed)
    for metric in LIST_METRICS:
        values = score_lists(metric, scores, gain, start, ties, missed_counts)
        assert np.all((values >= 0) & (values <= 1) | np.isnan(values))
    for metric in ("ndcg@10", "ndcg", "map@3", "mrr", "hit_rate@1", "auc"):
        best = score_lists(metric, gain.astype(float), gain, start, ties)
        np.testing.assert_allclose(best[~np.isnan(best)], 1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=15), st.integers(0, 10**6), st.sampled_from([1, 3, 10]))
def test_ndcg_and_auc_agree_with_scikit_learn(gain: list[int], seed: int, k: int) -> None:
    """scikit-learn's gain is linear, so it gets 2^gain - 1."""
    scores = np.random.default_rng(seed).permutation(len(gain)).astype(float)
    if max(gain) == 0:
        return
    expected = ndcg_score([[2.0**g - 1 for g in gain]], [scores], k=k)
    assert one_list(f"ndcg@{k}", gain, scores=list(scores)) == pytest.approx(expected, abs=1e-12)
    if min(gain) == 0:
        auc = roc_auc_score([g > 0 for g in gain], scores // 2)
        assert one_list("auc", gain, scores=list(scores // 2)) == pytest.approx(auc, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=15), st.integers(0, 10**6), st.sampled_from([1, 3, 10]))
def test_map_precision_recall_and_hit_rate_agree_with_scikit_learn_also_with_ties(
    gain: list[int], seed: int, k: int
) -> None:
    """Many scores are equal. scikit-learn has no order for ties, so it gets the rank of each item instead of scores."""
    if max(gain) == 0:
        return
    scores = np.random.default_rng(seed).integers(0, 3, len(gain)).astype(float)
    start = np.array([0, len(gain)])
    ties = tie_break(np.arange(len(gain)), start)
    order = top_k(scores, start, ties, len(gain))[0]
    assert (np.diff(scores[order]) <= 0).all()
    relevant, rank = np.array(gain)[order] > 0, np.arange(1, len(gain) + 1)
    top = rank <= k

    def value(metric: str) -> float:
        return float(score_lists(metric, scores, np.array(gain, np.int8), start, ties)[0])

    assert value(f"ndcg@{k}") == pytest.approx(ndcg_score([2.0 ** np.array(gain)[order] - 1], [-rank], k=k), abs=1e-12)
    assert value("map") == pytest.approx(average_precision_score(relevant, -rank), abs=1e-12)
    assert value(f"recall@{k}") == pytest.approx(recall_score(relevant, top), abs=1e-12)
    assert value(f"hit_rate@{k}") == relevant[:k].any()
    assert value(f"mrr@{k}") == pytest.approx(max((1 / rank[relevant & top]), default=0.0))
    # scikit-learn divides by the number of items in the top k, which may be fewer than k; `precision@k` divides by k.
    assert value(f"precision@{k}") == pytest.approx(precision_score(relevant, top) * min(k, len(gain)) / k, abs=1e-12)
    if min(gain) == 0:
        assert value("auc") == pytest.approx(roc_auc_score(np.array(gain) > 0, scores), abs=1e-12)


def test_top_k_returns_rows_by_descending_score_and_pads_short_lists() -> None:
    """List 0 is rows 0 to 2 with NaN last, list 1 is empty, list 2 is row 3."""
    scores, start = np.array([1.0, np.nan, 2.0, -np.inf]), np.array([0, 3, 3, 4])
    ties = tie_break(np.arange(4), start)
    assert top_k(scores, start, ties, 2).tolist() == [[2, 0], [-1, -1], [3, -1]]
    assert top_k(scores, start, ties, 3).tolist() == [[2, 0, 1], [-1, -1, -1], [3, -1, -1]]
    with pytest.raises(ValueError, match="k is 0"):
        top_k(scores, start, ties, 0)
    with pytest.raises(ValueError, match="tie_break is float64"):
        top_k(scores, start, np.zeros(4), 2)  # type: ignore[arg-type]


TOP = np.array([[0, 1], [1, -1], [-1, -1]], np.int64)
"""Lists with two items, one item, and none."""


def test_coverage_is_the_share_of_the_catalogue_that_is_recommended() -> None:
    """Items 0 and 1 of 5."""
    assert coverage(TOP, 5) == 2 / 5
    assert coverage(np.full((2, 3), -1), 5) == 0


def test_novelty_is_the_mean_self_information_of_a_list() -> None:
    """3, 1 and 0 engagements: with one added to each, p is 4 / 7, 2 / 7 and 1 / 7."""
    values = novelty(TOP, np.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(values, [(-log2(4 / 7) - log2(2 / 7)) / 2, -log2(2 / 7), np.nan])


def test_popularity_is_a_percentile_in_which_equal_counts_count_half() -> None:
    """Counts 5, 1, 1, 0. The first: 3 are below, 4 at most equal: (3 + 4) / 8. The second: 1 and 3: (1 + 3) / 8."""
    values = popularity_percentile(TOP, np.array([5.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(values, [((3 + 4) / 8 + (1 + 3) / 8) / 2, (1 + 3) / 8, np.nan])


def test_random_lists_have_a_mean_popularity_percentile_of_one_half() -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 500, (4000, 10))
    assert popularity_percentile(items, rng.geometric(0.3, 500).astype(float)).mean() == pytest.approx(0.5, abs=0.01)


def test_diversity_is_one_minus_the_mean_cosine_of_the_pairs() -> None:
    """(1, 0), (0, 2) and (1, 1) have cosines 0, sqrt(1/2), sqrt(1/2). A list with one vector has no pair."""
    vectors = np.array([[1, 0], [0, 2], [1, 1], [np.nan, 0], [0, 0]], np.float32)
    items = np.array([[0, 1, 2], [0, 1, -1], [0, 3, 4], [0, 0, -1], [0, -1, -1]])
    values = intra_list_diversity(items, vectors)
    np.testing.assert_allclose(values, [1 - 2 * np.sqrt(0.5) / 3, 1, np.nan, 0, np.nan], atol=1e-7)
    assert len(intra_list_diversity(items[:0], vectors)) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=8, max_size=200))
def test_every_row_is_in_one_bin_and_equal_predictions_share_it(rows: list[tuple[int, bool]]) -> None:
    probability, clicked = np.array([p / 20 for p, _ in rows]), np.array([c for _, c in rows])
    result = calibration(probability, clicked, 5)
    assert result.rows.sum() == len(rows)
    assert (result.rows * result.observed).sum() == pytest.approx(clicked.sum())
    assert (result.rows * result.predicted).sum() == pytest.approx(probability.sum())
    assert (np.diff(result.predicted) > 0).all()
    assert 0 <= result.error <= 1


def test_calibration_agrees_with_scikit_learn() -> None:
    """With scikit-learn's quantile bins, on distinct predictions."""
    probability = np.random.default_rng(0).permutation(100) / 100 + 0.001
    clicked = np.arange(100) % 3 == 0
    observed, predicted = calibration_curve(clicked, probability, n_bins=5, strategy="quantile")
    result = calibration(probability, clicked, 5)
    np.testing.assert_allclose(result.observed, observed)
    np.testing.assert_allclose(result.predicted, predicted)


def test_the_calibration_error_is_the_mean_gap_over_rows() -> None:
    """60 rows at 0.2 with 30% clicked, and 40 rows at 0.6 with 50% clicked: 0.6 * 0.1 + 0.4 * 0.1."""
    probability = np.repeat([0.2, 0.6], [60, 40])
    clicked = np.concatenate([np.arange(60) < 18, np.arange(40) < 20])
    result = calibration(probability, clicked)
    assert (result.rows.tolist(), result.predicted.tolist()) == ([60, 40], pytest.approx([0.2, 0.6]))
    assert result.error == pytest.approx(0.6 * 0.1 + 0.4 * 0.1)


@pytest.mark.parametrize("values", [[], [1.5], [np.nan], [-0.1]])
def test_invalid_probabilities_are_rejected(values: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        calibration(np.array(values), np.zeros(len(values), bool))


def test_click_probability_agrees_with_platt_scaling_in_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(3, 40, 3000)
    clicked = rng.random(3000) < 1 / (1 + np.exp(1 - scores / 20))
    slope, intercept = click_probability(scores, clicked)
    expected = _SigmoidCalibration().fit(scores, clicked)
    assert (slope, intercept) == pytest.approx((-expected.a_, -expected.b_), rel=1e-3)


@pytest.mark.parametrize("clicked", [True, False])
def test_click_probability_is_finite_if_all_or_no_rows_are_clicked_or_all_scores_are_equal(clicked: bool) -> None:
    """All of 8 clicked: (8 + 1) / (8 + 2), Platt's smoothed target. None clicked: 1 / (8 + 2)."""
    slope, intercept = click_probability(np.full(8, 2.5), np.full(8, clicked))
    assert 1 / (1 + np.exp(-(slope * 2.5 + intercept))) == pytest.approx(9 / 10 if clicked else 1 / 10)
    assert slope == pytest.approx(0, abs=1e-6)
    assert np.isfinite(click_probability(np.arange(8.0), np.full(8, clicked))).all()
    for scores in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ValueError, match="not finite"):
            click_probability(np.array(scores), np.zeros(len(scores), bool))


def test_ties_do_not_favour_any_row_position() -> None:
    """4,000 lists of 10 rows with equal scores: the relevant item, always the first row, has rank 1 in 10% of them."""
    n_lists, size = 4000, 10
    start = np.arange(0, n_lists * size + 1, size)
    gain = np.tile(np.array([1] + [0] * 9, np.int8), n_lists)
    items = np.random.default_rng(0).integers(0, 10**6, n_lists * size)
    hit = score_lists("hit_rate@1", np.zeros(len(gain)), gain, start, tie_break(items, start))
    assert abs(hit.mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / n_lists)


@pytest.mark.parametrize(
    "metric", ["", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@x", "NDCG@10", "f1@10", "auc@10", "precision", "ndcg@10 "]
)
def test_an_unknown_metric_is_rejected_with_a_valid_example(metric: str) -> None:
    with pytest.raises(ValueError, match=r"as in '(ndcg|precision)@10'"):
        one_list(metric, [1, 0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gain": np.array([0, -1, 0])}, r"gain\[1\] is -1, expected 0 to 30"),
        ({"gain": np.array([0, 31, 0])}, r"gain\[1\] is 31"),
        ({"gain": np.array([0.0, 1.0, 0.5])}, "gain is float64, expected integers"),
        ({"gain": np.array([0, 1])}, "gain has 2 values, expected 3"),
        ({"start": np.array([0, 2])}, r"start is \[0 2\]...\[0 2\], expected row numbers rising from 0 to 3"),
        ({"start": np.array([0, 2, 1, 3])}, "expected row numbers rising"),
        ({"start": np.array([], np.int64)}, "expected row numbers rising"),
        ({"tie_break": np.zeros(3)}, "tie_break is float64"),
        ({"tie_break": np.zeros(2, np.uint64)}, r"expected uint64\[3\]"),
        ({"missed": np.array([-1])}, "missed contains -1"),
        ({"missed": np.array([1, 1])}, "missed has 2 values, expected 1"),
    ],
)
def test_invalid_arrays_are_rejected_by_name(changes: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"scores": np.zeros(3), "gain": np.array([0, 1, 0]), "start": np.array([0, 3])}
    arguments |= {"tie_break": np.zeros(3, np.uint64)} | changes
    with pytest.raises(ValueError, match=sentence):
        score_lists("ndcg@10", **arguments)


def test_the_difference_is_the_mean_over_lists_where_both_are_defined() -> None:
    """Lists 0 and 2 count: (0.5 - 0.25 + 1.0 - 0.25) / 2."""
    a, b = np.array([0.5, np.nan, 1.0]), np.array([0.25, np.nan, 0.25])
    result = paired_difference(a, b, np.array([7, 7, 9]))
    assert (result.difference, result.lists, result.clusters) == ((0.25 + 0.75) / 2, 2, 2)
    assert result.low <= result.difference <= result.high


def test_intervals_have_their_nominal_coverage() -> None:
    """Lists of one user are correlated. Of 200 intervals at 90%, about 180 contain the true difference of 0.1."""
    covered, covered_listwise = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        user = np.repeat(np.arange(60), 5)
        a = 0.1 + rng.normal(size=60)[user] + 0.3 * rng.normal(size=300)
        clustered = paired_difference(a, np.zeros(300), user, n=300, seed=seed, level=0.9)
        listwise = paired_difference(a, np.zeros(300), np.arange(300), n=300, seed=seed, level=0.9)
        covered += clustered.low <= 0.1 <= clustered.high
        covered_listwise += listwise.low <= 0.1 <= listwise.high
    # Binomial(200, 0.9) has a standard deviation of 4.2. Treating lists as independent gives intervals far too narrow.
    assert 167 <= covered <= 193
    assert covered_listwise < 150


def test_the_same_seed_gives_the_same_interval_whatever_the_user_numbers() -> None:
    rng = np.random.default_rng(0)
    a, b, user = rng.random(500), rng.random(500), rng.integers(0, 80, 500)
    first = paired_difference(a, b, user, seed=3)
    assert first == paired_difference(a, b, user * 1000 - 7, seed=3)
    assert first != paired_difference(a, b, user, seed=4)
    swapped = paired_difference(b, a, user, seed=3)
    assert (swapped.difference, swapped.low) == pytest.approx((-first.difference, -first.high))


def test_a_clear_difference_has_a_small_p_and_no_difference_has_p_one() -> None:
    user = np.arange(200)
    better = paired_difference(np.full(200, 0.6), np.full(200, 0.5), user, n=999)
    assert better.p == pytest.approx(2 * (0 + 1) / (999 + 1))
    assert paired_difference(np.full(200, 0.5), np.full(200, 0.5), user).p == 1.0


def test_one_user_gives_a_difference_but_no_interval() -> None:
    result = paired_difference(np.array([1.0, 0.0]), np.array([0.5, 0.0]), np.array([3, 3]))
    assert result.difference == 0.25
    assert np.isnan([result.low, result.high, result.p]).all()


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
def test_invalid_comparisons_are_rejected(a: Any, b: Any, cluster: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        paired_difference(np.array(a, float), np.array(b, float), np.array(cluster, int), **options)


def test_intervals_of_many_columns_equal_those_of_single_columns() -> None:
    """Columns a, b and a - b have the same resamples as `paired_difference`. NaN is ignored per column."""
    rng = np.random.default_rng(0)
    a, b, user = rng.random(300), rng.random(300), rng.integers(0, 40, 300)
    with_nan = np.where(np.arange(300) % 7 == 0, np.nan, a)
    mean, low, high = intervals(np.column_stack([a, b, a - b, with_nan, np.full(300, np.nan)]), user, n=500, seed=3)
    for k, (x, y) in enumerate([(a, 0 * a), (b, 0 * b), (a, b)]):
        single = paired_difference(x, y, user, n=500, seed=3)
        assert (mean[k], low[k], high[k]) == pytest.approx((single.difference, single.low, single.high))
    assert mean[3] == pytest.approx(np.nanmean(with_nan))
    assert low[3] < mean[3] < high[3]
    assert np.isnan([mean[4], low[4], high[4]]).all()


def test_one_user_has_a_mean_without_interval_and_no_users_have_neither() -> None:
    mean, low, high = intervals(np.array([[0.5], [1.0]]), np.array([7, 7]))
    assert mean.tolist() == [0.75]
    assert np.isnan([low, high]).all()
    assert all(np.isnan(x).all() for x in intervals(np.empty((0, 2)), np.empty(0, int)))
    with pytest.raises(ValueError, match="have 2 and 1 lists"):
        intervals(np.ones((2, 1)), np.array([1]))


def test_a_column_with_values_of_one_user_only_has_no_interval() -> None:
    mean, low, high = intervals(np.array([[0.5, 1.0], [1.0, np.nan]]), np.array([1, 2]))
    assert mean.tolist() == [0.75, 1.0]
    assert not np.isnan(low[0])
    assert np.isnan([low[1], high[1]]).all()


# --- the share of the gap that is closed ---


def test_the_share_of_the_gap_uses_means_over_lists() -> None:
    """Means .4, .2 and .7: (.4 - .2) / (.7 - .2). The list with a NaN is ignored."""
    system, base, top = np.array([0.5, 0.3, np.nan]), np.array([0.2, 0.2, 0.9]), np.array([0.8, 0.6, 0.9])
    share, low, high = gap_closed(system, base, top, np.array([1, 2, 3]))
    assert share == pytest.approx(0.2 / 0.5)
    # A resample with the first user twice gives 0.3 / 0.6, one with the second user twice 0.1 / 0.4.
    assert (low, high) == pytest.approx((0.25, 0.5))


def test_without_a_gap_there_is_no_share_and_with_one_user_no_interval() -> None:
    values, user = np.array([0.5, 0.3]), np.array([4, 4])
    assert np.isnan(gap_closed(values, values, values, user)).all()
    share, low, high = gap_closed(values, values - 0.1, values + 0.1, user)
    assert share == pytest.approx(0.5)
    assert np.isnan([low, high]).all()
