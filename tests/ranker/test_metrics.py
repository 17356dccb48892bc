"""Rank metrics against arithmetic by hand and scikit-learn, their ties, their bounds; and the paired bootstrap."""

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
    intervals,
    intra_list_diversity,
    novelty,
    paired_difference,
    popularity_percentile,
    score_lists,
    share_of_the_way,
    tie_break,
    top_k,
)

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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=15), st.integers(0, 10**6), st.sampled_from([1, 3, 10]))
def test_map_precision_recall_and_hit_rate_agree_with_scikit_learn_ties_included(
    gain: list[int], seed: int, k: int
) -> None:
    """Scores tie often. scikit-learn knows no order among equals, so it is given ours, by the rank each item gets."""
    if max(gain) == 0:
        return
    scores = np.random.default_rng(seed).integers(0, 3, len(gain)).astype(float)
    start = np.array([0, len(gain)])
    ties = tie_break(np.arange(len(gain)), start)
    order = top_k(scores, start, ties, len(gain))[0]
    assert (np.diff(scores[order]) <= 0).all()
    relevant, rank = np.array(gain)[order] > 0, np.arange(1, len(gain) + 1)
    taken = rank <= k

    def ours(metric: str) -> float:
        return float(score_lists(metric, scores, np.array(gain, np.int8), start, ties)[0])

    assert ours(f"ndcg@{k}") == pytest.approx(ndcg_score([2.0 ** np.array(gain)[order] - 1], [-rank], k=k), abs=1e-12)
    assert ours("map") == pytest.approx(average_precision_score(relevant, -rank), abs=1e-12)
    assert ours(f"recall@{k}") == pytest.approx(recall_score(relevant, taken), abs=1e-12)
    assert ours(f"hit_rate@{k}") == relevant[:k].any()
    assert ours(f"mrr@{k}") == pytest.approx(max((1 / rank[relevant & taken]), default=0.0))
    # scikit-learn divides by what was taken, we by k, also of a shorter list.
    assert ours(f"precision@{k}") == pytest.approx(precision_score(relevant, taken) * min(k, len(gain)) / k, abs=1e-12)
    if min(gain) == 0:
        assert ours("auc") == pytest.approx(roc_auc_score(np.array(gain) > 0, scores), abs=1e-12)


def test_the_best_k_are_rows_by_falling_score_and_short_lists_end_in_nothing() -> None:
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
"""Two items, one, and none."""


def test_coverage_is_the_share_of_the_catalogue_that_is_ever_recommended() -> None:
    """Items 0 and 1 of 5."""
    assert coverage(TOP, 5) == 2 / 5
    assert coverage(np.full((2, 3), -1), 5) == 0


def test_novelty_is_the_mean_self_information_of_a_list() -> None:
    """Engaged with 3 times, once and never: p is 4 / 7, 2 / 7 and 1 / 7 once each is counted one more."""
    found = novelty(TOP, np.array([3.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, [(-log2(4 / 7) - log2(2 / 7)) / 2, -log2(2 / 7), np.nan])


def test_popularity_is_a_percentile_in_which_equals_count_half() -> None:
    """Of counts 5, 1, 1, 0 the first has 3 below it and itself: (3 + 4) / 8; the second 1 below and 3 up to it."""
    found = popularity_percentile(TOP, np.array([5.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(found, [((3 + 4) / 8 + (1 + 3) / 8) / 2, (1 + 3) / 8, np.nan])


def test_a_random_list_has_the_middle_of_popularity() -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 500, (4000, 10))
    assert popularity_percentile(items, rng.geometric(0.3, 500).astype(float)).mean() == pytest.approx(0.5, abs=0.01)


def test_diversity_is_one_minus_the_mean_cosine_of_the_pairs() -> None:
    """Of (1, 0), (0, 2) and (1, 1): cosines 0, sqrt(1/2), sqrt(1/2). A list with one vector has no pair."""
    vectors = np.array([[1, 0], [0, 2], [1, 1], [np.nan, 0], [0, 0]], np.float32)
    items = np.array([[0, 1, 2], [0, 1, -1], [0, 3, 4], [0, 0, -1], [0, -1, -1]])
    found = intra_list_diversity(items, vectors)
    np.testing.assert_allclose(found, [1 - 2 * np.sqrt(0.5) / 3, 1, np.nan, 0, np.nan], atol=1e-7)
    assert len(intra_list_diversity(items[:0], vectors)) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=8, max_size=200))
def test_every_row_is_in_one_bin_and_equal_predictions_share_it(rows: list[tuple[int, bool]]) -> None:
    probability, clicked = np.array([p / 20 for p, _ in rows]), np.array([c for _, c in rows])
    found = calibration(probability, clicked, 5)
    assert found.rows.sum() == len(rows)
    assert (found.rows * found.observed).sum() == pytest.approx(clicked.sum())
    assert (found.rows * found.predicted).sum() == pytest.approx(probability.sum())
    assert (np.diff(found.predicted) > 0).all()
    assert 0 <= found.error <= 1


def test_reliability_agrees_with_scikit_learn() -> None:
    """Its quantile bins, on predictions that differ."""
    fine = np.random.default_rng(0).permutation(100) / 100 + 0.001
    hit = np.arange(100) % 3 == 0
    observed, predicted = calibration_curve(hit, fine, n_bins=5, strategy="quantile")
    ours = calibration(fine, hit, 5)
    np.testing.assert_allclose(ours.observed, observed)
    np.testing.assert_allclose(ours.predicted, predicted)


def test_the_calibration_error_is_the_mean_gap_over_rows() -> None:
    """60 rows at 0.2, 30% of them clicked, and 40 at 0.6, half: 0.6 * 0.1 + 0.4 * 0.1."""
    probability = np.repeat([0.2, 0.6], [60, 40])
    clicked = np.concatenate([np.arange(60) < 18, np.arange(40) < 20])
    found = calibration(probability, clicked)
    assert (found.rows.tolist(), found.predicted.tolist()) == ([60, 40], pytest.approx([0.2, 0.6]))
    assert found.error == pytest.approx(0.6 * 0.1 + 0.4 * 0.1)


@pytest.mark.parametrize("odd", [[], [1.5], [np.nan], [-0.1]])
def test_what_is_no_probability_is_refused(odd: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        calibration(np.array(odd), np.zeros(len(odd), bool))


def test_click_probability_is_platts_scaling() -> None:
    """scikit-learn's own, on scores of any scale."""
    rng = np.random.default_rng(1)
    scores = rng.normal(3, 40, 3000)
    clicked = rng.random(3000) < 1 / (1 + np.exp(1 - scores / 20))
    slope, intercept = click_probability(scores, clicked)
    other = _SigmoidCalibration().fit(scores, clicked)
    assert (slope, intercept) == pytest.approx((-other.a_, -other.b_), rel=1e-3)


@pytest.mark.parametrize("clicked", [True, False])
def test_click_probability_is_finite_for_clicks_all_or_none_and_for_one_score(clicked: bool) -> None:
    """All of 8 clicked: (8 + 1) / (8 + 2), Platt's smoothed target; none: 1 / (8 + 2)."""
    slope, intercept = click_probability(np.full(8, 2.5), np.full(8, clicked))
    assert 1 / (1 + np.exp(-(slope * 2.5 + intercept))) == pytest.approx(9 / 10 if clicked else 1 / 10)
    assert slope == pytest.approx(0, abs=1e-6)
    assert np.isfinite(click_probability(np.arange(8.0), np.full(8, clicked))).all()
    for odd in ([], [1.0, np.nan], [np.inf]):
        with pytest.raises(ValueError, match="not finite"):
            click_probability(np.array(odd), np.zeros(len(odd), bool))


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


def test_many_intervals_at_once_are_those_of_each_alone() -> None:
    """Columns a, b and a - b share their resamples with `paired_difference`; NaN is left out column by column."""
    rng = np.random.default_rng(0)
    a, b, user = rng.random(300), rng.random(300), rng.integers(0, 40, 300)
    holed = np.where(np.arange(300) % 7 == 0, np.nan, a)
    mean, low, high = intervals(np.column_stack([a, b, a - b, holed, np.full(300, np.nan)]), user, n=500, seed=3)
    for k, (x, y) in enumerate([(a, 0 * a), (b, 0 * b), (a, b)]):
        alone = paired_difference(x, y, user, n=500, seed=3)
        assert (mean[k], low[k], high[k]) == pytest.approx((alone.difference, alone.low, alone.high))
    assert mean[3] == pytest.approx(np.nanmean(holed))
    assert low[3] < mean[3] < high[3]
    assert np.isnan([mean[4], low[4], high[4]]).all()


def test_one_user_has_means_and_no_intervals_and_nobody_nothing() -> None:
    mean, low, high = intervals(np.array([[0.5], [1.0]]), np.array([7, 7]))
    assert mean.tolist() == [0.75]
    assert np.isnan([low, high]).all()
    assert all(np.isnan(x).all() for x in intervals(np.empty((0, 2)), np.empty(0, int)))
    with pytest.raises(ValueError, match="have 2 and 1 lists"):
        intervals(np.ones((2, 1)), np.array([1]))


def test_a_column_that_only_one_user_has_has_no_interval() -> None:
    mean, low, high = intervals(np.array([[0.5, 1.0], [1.0, np.nan]]), np.array([1, 2]))
    assert mean.tolist() == [0.75, 1.0]
    assert not np.isnan(low[0])
    assert np.isnan([low[1], high[1]]).all()


# --- the share of the way ---


def test_the_share_of_the_way_is_of_means_over_lists() -> None:
    """Means .4, .2 and .7: (.4 - .2) / (.7 - .2); the list without a value in all three is left out."""
    own, base, top = np.array([0.5, 0.3, np.nan]), np.array([0.2, 0.2, 0.9]), np.array([0.8, 0.6, 0.9])
    share, low, high = share_of_the_way(own, base, top, np.array([1, 2, 3]))
    assert share == pytest.approx(0.2 / 0.5)
    # Drawn twice, the first user alone makes 0.3 / 0.6, the second 0.1 / 0.4.
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.5))


def test_there_is_no_share_where_nothing_is_above_the_base_and_no_interval_of_one_user() -> None:
    some, user = np.array([0.5, 0.3]), np.array([4, 4])
    assert np.isnan(share_of_the_way(some, some, some, user)).all()
    share, low, high = share_of_the_way(some, some - 0.1, some + 0.1, user)
    assert share == pytest.approx(0.5)
    assert np.isnan([low, high]).all()
