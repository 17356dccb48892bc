"""Metrics of planted orders with known values, slices, intervals, and the systems that are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import F64
from features.log import Kind, Lists
from offline.data.query_groups import Targets, baskets, find_targets
from offline.data.windows import Windows
from offline.evaluation.baselines import BASELINES, DEPTH, order_of
from offline.evaluation.slices import known_engagements, list_slices, seen_before, target_slices
from offline.evaluation.systems import (
    METRICS,
    beyond_accuracy,
    calibrate,
    debiased_ndcg,
    has_history,
    judge,
    learning_curve,
    lists_with_gain,
    metrics_for,
    orders,
    per_list,
)
from offline.runtime.errors import DataError
from ranker.metrics import paired_difference, score_lists, tie_break
from tests.worlds import DAY, START, make_catalogue, make_events, make_lists, make_replay

LOG2_3 = np.log2(3.0)
IDS = [f"i{k:03d}" for k in range(200)]
VECTORS = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)


def planted(n: int = 40, size: int = 8) -> Lists:
    """n lists of n / 2 users, one per minute, of `size` distinct items; one random item of each was clicked."""
    rng = np.random.default_rng(5)
    lists = make_lists(
        [60.0 * g for g in range(n)],
        [g % (n // 2) for g in range(n)],
        [rng.permutation(200)[:size].tolist() for _ in range(n)],
    )
    gain = np.zeros(lists.rows, np.int8)
    gain[lists.start[:-1] + rng.integers(0, size, n)] = 1
    return replace(lists, gain=gain, position=np.tile(np.arange(size, dtype=np.int16), n))


def ordered(lists: Lists, score: F64) -> np.ndarray:
    """The order of each list by score."""
    return order_of(score, lists.item, lists.start, tie_break(lists.item, lists.start))


def values(lists: Lists, score: F64, targets: Targets | None = None) -> dict[str, F64]:
    """Each metric per list, of the order by score."""
    return per_list(ordered(lists, score), targets or find_targets(lists, lists), METRICS)


def evaluate(
    lists: Lists,
    scores: Mapping[str, F64],
    warm: np.ndarray | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
) -> Any:
    """The evaluation of systems with these scores; by default every other list is of a warm user."""
    warm = np.arange(len(lists)) % 2 == 0 if warm is None else warm
    by_name = {"all": np.ones(len(lists), bool), "warm_users": warm, "cold_users": ~warm}
    found = {name: ordered(lists, score) for name, score in scores.items()}
    return judge(found, lists, find_targets(lists, lists), by_name, parts or {}, np.ones(200), VECTORS, seed=3)


def test_a_perfect_order_has_a_value_of_1_and_its_reverse_has_not() -> None:
    """One clicked item in eight: in last position, ndcg is 1 / log2(9), reciprocal rank 1 / 8, and recall@10 is 1."""
    lists = planted()
    perfect, worst = values(lists, lists.gain.astype(np.float64)), values(lists, -lists.gain.astype(np.float64))
    for metric in set(METRICS) - {"precision@10"}:
        np.testing.assert_allclose(perfect[metric], 1)
    np.testing.assert_allclose(perfect["precision@10"], 1 / 10)
    np.testing.assert_allclose(worst["ndcg@10"], 1 / np.log2(9))
    np.testing.assert_allclose(worst["mrr@10"], 1 / 8)
    np.testing.assert_allclose(worst["recall@10"], 1)


def test_equal_scores_give_a_random_order_and_not_the_shown_order() -> None:
    """With equal scores, the clicked item is equally likely at each of 8 positions: the mean ndcg is
    mean(1 / log2(1 + rank)). The clicked item was always shown first, so the ndcg of the shown order is 1."""
    lists = planted(n=400)
    gain = np.zeros(lists.rows, np.int8)
    gain[lists.start[:-1]] = 1
    lists = replace(lists, gain=gain)
    expected = np.mean(1 / np.log2(1 + np.arange(1, 9)))
    assert values(lists, np.zeros(lists.rows))["ndcg@10"].mean() == pytest.approx(expected, abs=0.04)
    assert values(lists, -lists.position.astype(np.float64))["ndcg@10"].mean() == 1


def test_a_target_outside_the_list_lowers_the_metric() -> None:
    """The click in first position is worth 1; with a missed target, the ideal is 1 + 1 / log2(3). Recall is 1 / 2."""
    lists = planted(n=2)
    known = find_targets(lists, lists)
    targets = Targets(np.append(known.of, 1), np.append(known.item, 199), np.append(known.gain, 1))
    found = values(lists, lists.gain.astype(np.float64), targets)
    np.testing.assert_allclose(found["ndcg@10"], [1, 1 / (1 + 1 / LOG2_3)])
    np.testing.assert_allclose(found["recall@10"], [1, 1 / 2])


def test_a_list_without_gain_is_undefined_and_one_that_missed_every_target_is_0() -> None:
    lists = planted(n=4)
    gain = lists.gain.copy()
    gain[lists.start[1] : lists.start[3]] = 0
    lists = replace(lists, gain=gain, missed=np.array([[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 0]], np.int32))
    assert lists_with_gain(lists).tolist() == [True, False, True, True]
    known = find_targets(lists, lists)
    targets = Targets(np.array([0, 2, 2, 3]), np.insert(known.item, 1, [198, 199]), np.array([1, 3, 3, 1], np.int8))
    np.testing.assert_allclose(values(lists, gain.astype(np.float64), targets)["ndcg@10"], [1, np.nan, 0, 1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_metrics_of_an_order_equal_metrics_of_its_scores(seed: int) -> None:
    """Each metric is the same from items and targets as from scores, gains and missed counts, including with ties."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, 5).tolist()
    lists = make_lists([float(g) for g in range(5)], [0] * 5, [rng.permutation(20)[:n].tolist() for n in sizes])
    lists = replace(
        lists, gain=rng.integers(0, 4, lists.rows).astype(np.int8), missed=rng.integers(0, 2, (5, 3)).astype(np.int32)
    )
    score = rng.integers(0, 3, lists.rows).astype(np.float64)
    rows, grade = np.nonzero(lists.missed)
    targets = find_targets(lists, lists)
    of = np.concatenate([targets.of, rows])
    by_list = np.argsort(of, kind="stable")
    targets = Targets(
        of[by_list],
        np.concatenate([targets.item, 100 + grade]).astype(np.int32)[by_list],
        np.concatenate([targets.gain, grade + 1]).astype(np.int8)[by_list],
    )
    found = per_list(ordered(lists, score), targets, (*METRICS, "recall@50"))
    ties = tie_break(lists.item, lists.start)
    for metric, value in found.items():
        expected = score_lists(metric, score, lists.gain, lists.start, ties, lists.missed)
        np.testing.assert_allclose(value, expected, err_msg=metric)


def test_a_click_at_a_rarely_examined_position_weighs_more() -> None:
    """Order 7, 3, 5: item 7 was examined for sure, item 5 with probability 0.25, so it weighs 4. With target 7 alone,
    the value is 1."""
    lists = make_lists([0.0, 1.0], [0, 0], [[3, 5, 7], [3, 5, 7]])
    targets = Targets(np.zeros(2, np.int64), np.array([7, 5], np.int32), np.ones(2, np.int8))
    order, seen = ordered(lists, np.array([2.0, 1.0, 3.0, 2.0, 1.0, 3.0])), np.array([1, 0.25])
    expected = (1 + 4 / 2) / (4 + 1 / LOG2_3)
    np.testing.assert_allclose(debiased_ndcg(order, targets, seen), [[expected, np.nan], [1 + 4, 0]])
    with_7_alone = np.array(debiased_ndcg(order, targets, seen, np.array([True, False])))
    np.testing.assert_allclose(with_7_alone, [[1.0, np.nan], [1.0, 0.0]])
    assert np.isnan(debiased_ndcg(order, targets, seen, np.zeros(2, bool))[0]).all()


def test_with_every_item_examined_debiased_ndcg_is_plain_ndcg() -> None:
    """For all targets and for a part of them, inside and outside the list."""
    rng = np.random.default_rng(2)
    lists = replace(planted(), gain=rng.integers(0, 4, planted().rows).astype(np.int8))
    targets = find_targets(lists, lists)
    targets = targets._replace(item=np.where(rng.random(len(targets.item)) < 0.1, 250, targets.item).astype(np.int32))
    order, part = ordered(lists, rng.normal(size=lists.rows)), rng.random(len(targets.of)) < 0.5
    for of_part in (None, part):
        found, _ = debiased_ndcg(order, targets, np.ones(len(targets.of)), of_part)
        np.testing.assert_allclose(found, per_list(order, targets, ("ndcg@10",), of_part)["ndcg@10"])


def test_debiased_ndcg_does_not_favour_the_shown_order() -> None:
    """All items are equally good, so no order is better, but position k is examined with probability 1 / (1 + k).

    By plain ndcg the shown order leads by far; by IPS ndcg, the interval of the difference includes zero.
    """
    rng, size, count = np.random.default_rng(3), 12, 4000
    lists = make_lists([60.0 * g for g in range(count)], list(range(count)), [list(range(size))] * count)
    place = np.tile(np.arange(size), count)
    clicked = rng.random(lists.rows) < 0.3 / (1 + place)
    lists = replace(lists, gain=clicked.astype(np.int8), position=place.astype(np.int16))
    targets = find_targets(lists, lists)
    shown, other = ordered(lists, -place.astype(np.float64)), ordered(lists, rng.normal(size=lists.rows))
    plain = [per_list(o, targets, ("ndcg@10",))["ndcg@10"] for o in (shown, other)]
    debiased = [np.prod(debiased_ndcg(o, targets, (1 / (1 + place))[clicked]), axis=0) for o in (shown, other)]
    assert paired_difference(plain[0], plain[1], lists.user).low > 0.15
    d = paired_difference(debiased[0], debiased[1], lists.user)
    assert d.low < 0 < d.high


def test_targets_outside_the_part_are_removed_from_the_order() -> None:
    """Order 7, 3, 5, 9 with targets 7, 5 and 8, which is not in the list.

    Part {5, 8}: without 7, item 5 is second; the ideal has both on top. Part {7}: it is first. No part: undefined.
    """
    lists = make_lists([0.0], [0], [[3, 5, 7, 9]])
    targets = Targets(np.zeros(3, np.int64), np.array([7, 5, 8], np.int32), np.ones(3, np.int8))
    order = ordered(lists, np.array([3.0, 2.0, 4.0, 1.0]))
    part = per_list(order, targets, METRICS, np.array([False, True, True]))
    assert part["ndcg@10"][0] == pytest.approx((1 / LOG2_3) / (1 + 1 / LOG2_3))
    assert part["recall@10"][0] == 1 / 2
    assert per_list(order, targets, METRICS, np.array([True, False, False]))["ndcg@10"][0] == 1
    assert np.isnan(per_list(order, targets, METRICS, np.zeros(3, bool))["ndcg@10"][0])


def test_warm_and_cold_users_are_reported_separately() -> None:
    """The ranker is perfect for warm users and worst for cold users: 1, 1 / log2(9), and their mean over all."""
    lists, warm = planted(), np.arange(40) % 2 == 0
    score = np.where(warm[lists.group], 1, -1) * lists.gain.astype(np.float64)
    found = evaluate(lists, {"random": np.zeros(lists.rows), "ranker": score}, warm)
    by = found["systems"]["ranker"]
    assert {name: by[name]["lists"] for name in by} == {"all": 40, "warm_users": 20, "cold_users": 20}
    assert by["warm_users"]["ndcg@10"] == pytest.approx(1)
    assert by["cold_users"]["ndcg@10"] == pytest.approx(1 / np.log2(9))
    assert by["all"]["ndcg@10"] == pytest.approx((1 + 1 / np.log2(9)) / 2)
    assert [(c["a"], c["b"], c["slice"]) for c in found["comparisons"]] == [
        ("ranker", "random", s) for s in ("all", "warm_users", "cold_users")
    ]


def test_the_share_of_the_gap_that_the_ranker_closes_is_reported_by_slice() -> None:
    """The ranker is best possible for warm users, and equal to popularity, the worst order, for cold users."""
    lists, warm = planted(), np.arange(40) % 2 == 0
    gain = lists.gain.astype(np.float64)
    scores = {"popularity": -gain, "ranker": np.where(warm[lists.group], gain, -gain), "best_possible": gain}
    found = evaluate(lists, scores, warm)["shares"]
    assert {name: found[name]["share"] for name in found} == {
        "all": pytest.approx(0.5),
        "warm_users": pytest.approx(1),
        "cold_users": pytest.approx(0),
    }
    assert found["all"]["low"] < 0.5 < found["all"]["high"]
    assert found["all"]["lists"] == 40
    assert "shares" not in evaluate(lists, {"ranker": gain, "popularity": -gain}, warm)


def test_an_empty_slice_is_left_out() -> None:
    lists = planted()
    scores = {"random": np.zeros(lists.rows), "ranker": np.zeros(lists.rows)}
    found = evaluate(lists, scores, np.ones(40, bool), {"head": np.zeros(40, bool), "tail": np.arange(40) < 7})
    assert list(found["systems"]["ranker"]) == ["all", "warm_users", "tail"]
    assert [c["slice"] for c in found["comparisons"]] == ["all", "warm_users", "tail"]
    assert found["systems"]["ranker"]["tail"]["lists"] == 7


def test_an_interval_contains_its_value_and_excludes_zero_for_a_clearly_better_order() -> None:
    lists = planted()
    gain = lists.gain.astype(np.float64)
    found = evaluate(lists, {"worst": -gain, "same": gain * 2, "ranker": gain})
    better, same = (next(c for c in found["comparisons"] if c["b"] == b) for b in ("worst", "same"))
    assert better["difference"] == pytest.approx(1 - 1 / np.log2(9))
    assert 0 < better["low"] <= better["difference"] <= better["high"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    for system, by in found["systems"].items():
        low, high = found["intervals"][system]["all"]["mrr@10"]
        assert low <= by["all"]["mrr@10"] <= high


def test_the_fine_tuned_encoder_is_compared_with_the_pretrained_one() -> None:
    lists = planted()
    gain = lists.gain.astype(np.float64)
    found = evaluate(lists, {"text_zero_shot": -gain, "text": gain, "ranker": gain})
    assert [(c["a"], c["b"]) for c in found["comparisons"] if c["slice"] == "all"] == [
        ("ranker", "text_zero_shot"),
        ("ranker", "text"),
        ("text", "text_zero_shot"),
    ]


def test_the_same_seed_gives_the_same_numbers_as_json_values() -> None:
    lists = planted()
    scores = {"random": np.zeros(lists.rows), "ranker": np.random.default_rng(0).normal(size=lists.rows)}
    found = evaluate(lists, scores)
    assert json.dumps(found) == json.dumps(evaluate(lists, scores))
    assert isinstance(found["systems"]["ranker"]["all"]["ndcg@10"], float)


def test_a_single_user_has_a_value_and_no_interval() -> None:
    lists = replace(planted(n=2), user=np.zeros(2, np.int32))
    found = evaluate(lists, {"ranker": lists.gain.astype(np.float64)})
    assert found["systems"]["ranker"]["all"]["ndcg@10"] == 1
    assert np.isnan(found["intervals"]["ranker"]["all"]["ndcg@10"]).all()


def test_coverage_novelty_popularity_and_diversity_are_reported() -> None:
    """Two lists of items 0 and 1 of a catalogue of 3, so coverage is 2 / 3; both items have 7 engagements."""
    lists = replace(make_lists([0.0, 1.0], [0, 1], [[0, 1], [1, 0]]), gain=np.array([1, 0, 1, 0], np.int8))
    order = ordered(lists, np.zeros(4))
    vectors = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
    found = judge(
        {"ranker": order},
        lists,
        find_targets(lists, lists),
        {"all": np.ones(2, bool)},
        {},
        np.array([7.0, 7.0, 0.0]),
        vectors,
        seed=0,
    )["systems"]["ranker"]["all"]
    assert found["coverage@10"] == 2 / 3
    assert found["novelty@10"] == pytest.approx(-np.log2(8 / 17))
    assert found["popularity@10"] == pytest.approx((1 + 3) / 6)
    assert found["diversity@10"] == pytest.approx(1)
    assert set(beyond_accuracy(order, np.ones(3), vectors)) == {"novelty@10", "popularity@10", "diversity@10"}


@pytest.mark.parametrize(
    ("longest", "more"), [(24, ("auc",)), (51, ("recall@50", "auc")), (DEPTH + 1, ("recall@50",)), (0, ("auc",))]
)
def test_the_metrics_depend_on_the_length_of_the_lists(longest: int, more: tuple[str, ...]) -> None:
    assert metrics_for(make_lists([0.0, 1.0], [0, 0], [list(range(longest)), []])) == METRICS + more


# The systems


def baseline_orders(lists: Lists, *names: str) -> np.ndarray:
    """Orders by baseline: item 7 first for `random` and the named ones, and none for the others."""
    out = np.full((len(lists), len(BASELINES), DEPTH), -1, np.int32)
    for name in ("random", *names):
        out[:, BASELINES.index(name), 0] = 7
    return out


def test_a_baseline_without_an_order_is_left_out() -> None:
    lists = planted(n=2)
    ranker = np.arange(lists.rows, dtype=np.float64)
    found = orders(lists, baseline_orders(lists, "popularity"), ranker, None, IDS)
    assert list(found) == ["random", "shown_order", "popularity", "ranker"]
    assert found["shown_order"][0, :8].tolist() == lists.item[:8].tolist()
    assert found["ranker"][0, :8].tolist() == lists.item[:8][::-1].tolist()


def test_a_baseline_without_an_order_for_a_list_gets_the_random_one() -> None:
    lists = planted(n=2)
    baselines = baseline_orders(lists, "text")
    baselines[1, BASELINES.index("random"), 0] = 5
    baselines[1, BASELINES.index("text"), 0] = -1
    assert orders(lists, baselines, np.zeros(lists.rows), None, IDS)["text"][:, 0].tolist() == [7, 5]


def test_rebuilt_lists_have_no_shown_order() -> None:
    lists = planted(n=2)
    lists = replace(lists, position=np.full(lists.rows, -1, np.int16))
    assert "shown_order" not in orders(lists, baseline_orders(lists), np.zeros(lists.rows), None, IDS)


def test_the_best_possible_order_is_by_hidden_utility() -> None:
    lists = planted(n=2)
    truth = {
        (lists.request_ids[g], IDS[i]): float(i) for g, i in zip(lists.group.tolist(), lists.item.tolist(), strict=True)
    }
    found = orders(lists, baseline_orders(lists), np.zeros(lists.rows), truth, IDS)
    assert found["best_possible"][0, :8].tolist() == sorted(lists.item[:8].tolist(), reverse=True)


def test_rebuilt_lists_have_no_best_possible_order_and_a_truth_of_another_log_is_rejected() -> None:
    """The simulator knows the utility of all rows of its own log, of no row of a rebuilt one; some is an error."""
    lists = planted(n=2)
    assert "best_possible" not in orders(lists, baseline_orders(lists), np.zeros(lists.rows), {("x", "y"): 1.0}, IDS)
    first = (lists.request_ids[0], IDS[lists.item[0]])
    with pytest.raises(DataError, match=r"truth\.parquet: no utility for item 'i\d+' of list 'r0' \(15 such rows\)"):
        orders(lists, baseline_orders(lists), np.zeros(lists.rows), {first: 1.0}, IDS)


def test_a_user_is_warm_after_an_engagement_or_an_impression() -> None:
    events = make_events([(0, 0, 1, Kind.CLICK, -1), (0, 1, 1, Kind.IMPRESSION, 3)], n_users=3)
    snapshots = make_replay(events).snapshots(make_lists([DAY] * 3, [0, 1, 2], [[1]] * 3))
    assert [has_history(r) for r in snapshots] == [True, True, False]


# Slices


def test_users_are_sliced_by_engagements_before_the_list() -> None:
    """Before the list, users 0 to 3 clicked 4, 5, 20 and 50 times, and user 4 only had impressions."""
    rows = [(float(k), u, k % 12, Kind.CLICK, -1) for u, n in enumerate((4, 5, 20, 50)) for k in range(n)]
    rows += [(float(k), 4, k % 12, Kind.IMPRESSION, 0) for k in range(9)] + [(DAY, 0, 1, Kind.CLICK, -1)]
    lists = make_lists([DAY] * 5, list(range(5)), [[1]] * 5)
    found = list_slices(make_events(rows, 5), lists, np.arange(5) < 4)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in found.items()} == {
        "all": [0, 1, 2, 3, 4],
        "warm_users": [0, 1, 2, 3],
        "cold_users": [4],
        "history_1_4": [0],
        "history_5_19": [1],
        "history_20_49": [2],
        "history_50_plus": [3],
    }


def test_targets_are_sliced_by_engagements_before_the_list() -> None:
    """Before the basket of user 0, item 3 was bought by user 1, item 4 by 20 users, item 5 by user 0, item 6 by nobody.

    The head is 3 of 12 items: 4, then 3 and 5 by row. A later purchase of item 6 does not count before the test.
    """
    rows = [(1.0, 1, 3, Kind.PURCHASE, -1), *((1.0, u, 4, Kind.PURCHASE, -1) for u in range(1, 21))]
    rows += [(1.0, 0, 5, Kind.PURCHASE, -1), (9e5, 7, 6, Kind.PURCHASE, -1)]
    rows += [(50.0, 0, i, Kind.PURCHASE, -1) for i in (3, 4, 5, 6)]
    events, catalogue = make_events(rows, 25), make_catalogue()
    groups = baskets(events, START + 50)
    lists = groups.take(np.array([0]))
    targets = find_targets(lists, groups)
    count = known_engagements(events, Windows(START, START + 2, START + 3, START + 50, START + 1e6), targets, 12)
    assert count.tolist() == [0, 0, 0, 1, 20, 1, 0, 0, 0, 0, 0, 0]
    found = target_slices(events, lists, targets, catalogue, count)
    assert {name: targets.item[mask].tolist() for name, mask in found.items()} == {
        "warm_items": [3, 4, 5],
        "cold_items": [6],
        "seen_1_4": [3, 5],
        "seen_5_19": [],
        "seen_20_plus": [4],
        "repeats": [5],
        "new_items": [3, 4, 6],
        "head": [3, 4, 5],
        "tail": [6],
        "category:a": [3, 6],
        "category:b": [4],
        "category:c": [5],
    }
    last_out = Windows(START, START + 2, START + 3, START + 50, START + 1e6, "leave-last-out")
    assert known_engagements(events, last_out, targets, 12)[:7].tolist() == [0, 0, 0, 1, 20, 1, 1]


def test_new_only_removes_items_that_the_user_had_before() -> None:
    """User 0 had items 1 to 4, which rank above the new item 5, and then buys 1 and 5.

    Without the other target, item 5 has position 4: 1 / log2(5). In the order of new items it is first.
    """
    rows = [(float(k), 0, k, Kind.PURCHASE, -1) for k in (1, 2, 3, 4)]
    rows += [(50.0, 0, i, Kind.PURCHASE, -1) for i in (1, 5)]
    events = make_events(rows, 2)
    groups = baskets(events, START + 50)
    targets = find_targets(groups, groups)
    order = np.array([[2, 1, 3, 4, 5, 6, -1]], np.int32)
    had = seen_before(events, groups, order)
    assert had.tolist() == [[True, True, True, True, False, False, False]]
    found = judge(
        {"ranker": order},
        groups,
        targets,
        {"all": np.ones(1, bool)},
        {"new_items": targets.item == 5},
        np.ones(12),
        VECTORS[:12],
        seed=3,
        had={"ranker": had},
    )["systems"]["ranker"]
    assert found["new_items"]["ndcg@10"] == pytest.approx(1 / np.log2(5))
    assert found["new_only"]["ndcg@10"] == 1


# Calibration and learning curve


def test_click_probabilities_are_fitted_on_validation_and_evaluated_on_test() -> None:
    """The error is small if clicks depend on the score alike in both, and large if test clicks are reversed."""
    rng = np.random.default_rng(0)
    score = rng.normal(size=8000)
    gain = (rng.random(8000) < 1 / (1 + np.exp(-score))).astype(np.int8)
    calibrated = calibrate(score[:4000], gain[:4000], score[4000:], gain[4000:])
    assert calibrated["error"] < 0.03
    assert sum(b["rows"] for b in calibrated["bins"]) == 4000
    assert calibrate(score[:4000], gain[:4000], score[4000:], 1 - gain[4000:])["error"] > 0.3
    json.dumps(calibrated)


def test_a_learning_curve_trains_on_nested_parts() -> None:
    """An eighth, a quarter, a half and all of 40 lists; the planted ranker is right on as many test lists as it saw."""
    lists, parts, progress = planted(), [], []

    def fit(which: np.ndarray) -> F64:
        parts.append(set(which.tolist()))
        return np.where(lists.group < len(which), 1, -1) * lists.gain.astype(np.float64)

    found = learning_curve(fit, 40, lists, find_targets(lists, lists), 0, lambda *x: progress.append(x))
    assert [p["lists"] for p in found] == [5, 10, 20, 40] == [len(s) for s in parts]
    assert all(a < b for a, b in pairwise(parts))
    for p in found:
        share = p["lists"] / 40
        assert p["ndcg@10"] == pytest.approx(share + (1 - share) / np.log2(9))
        assert p["low"] <= p["ndcg@10"] <= p["high"]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_learning_curve_of_few_lists_has_each_size_once() -> None:
    lists = planted(n=4)
    found = learning_curve(lambda which: np.zeros(lists.rows), 3, lists, find_targets(lists, lists), 0)
    assert [p["lists"] for p in found] == [1, 3]
