"""How good an order is: planted orders with known values, intervals, slices, and which systems are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from features.log import F64, Kind, Lists
from features.vectors import Vectors
from offline.evaluate import (
    BASELINES,
    METRICS,
    baselines,
    compare,
    has_history,
    lists_with_gain,
    per_list,
    system_scores,
)  # fmt: skip
from offline.quarantine import DataError
from tests.worlds import DAY, make_events, make_lists, make_replay, make_vectors

LOG2_3 = np.log2(3.0)


def planted(n: int = 40, size: int = 8) -> Lists:
    """n lists by n / 2 users, one a minute, of `size` distinct items; one item of each, drawn, was clicked."""
    rng = np.random.default_rng(5)
    lists = make_lists(
        [60.0 * g for g in range(n)], [g % (n // 2) for g in range(n)],
        [rng.permutation(200)[:size].tolist() for _ in range(n)],
    )  # fmt: skip
    gain = np.zeros(lists.rows, np.int8)
    gain[lists.start[:-1] + rng.integers(0, size, n)] = 1
    return replace(lists, gain=gain, position=np.tile(np.arange(size, dtype=np.int16), n))


def judged(lists: Lists, scores: Mapping[str, F64], warm: np.ndarray | None = None) -> Any:
    warm = np.arange(len(lists)) % 2 == 0 if warm is None else warm
    return compare(per_list(lists, scores), lists, warm, seed=3)


def test_a_perfect_order_is_worth_1_and_its_reverse_is_not() -> None:
    """One clicked item in eight: last of eight it has ndcg 1 / log2(9), reciprocal rank 1 / 8, and is within ten."""
    lists = planted()
    values = per_list(lists, {"perfect": lists.gain.astype(np.float64), "worst": -lists.gain.astype(np.float64)})
    for metric in METRICS:
        np.testing.assert_allclose(values["perfect"][metric], 1)
    np.testing.assert_allclose(values["worst"]["ndcg@10"], 1 / np.log2(9))
    np.testing.assert_allclose(values["worst"]["mrr"], 1 / 8)
    np.testing.assert_allclose(values["worst"]["recall@10"], 1)


def test_an_order_without_opinion_is_chances_and_not_the_shown_orders() -> None:
    """With all scores equal, the clicked item stands at each of 8 places alike: mean ndcg is mean(1 / log2(1 + rank)).
    Where the clicked item was always shown on top, that is far below the 1 the shown order has."""
    lists = planted(n=400)
    gain = np.zeros(lists.rows, np.int8)
    gain[lists.start[:-1]] = 1
    lists = replace(lists, gain=gain)
    values = per_list(lists, {"random": np.zeros(lists.rows), "shown": -lists.position.astype(np.float64)})
    expected = np.mean(1 / np.log2(1 + np.arange(1, 9)))
    assert values["random"]["ndcg@10"].mean() == pytest.approx(expected, abs=0.04)
    assert values["shown"]["ndcg@10"].mean() == 1


def test_what_was_not_retrieved_lowers_ndcg() -> None:
    """The click on top is worth 1; with another missed, the best order had 1 + 1 / log2(3). Recall: 1 of 2."""
    lists = planted(n=2)
    missed = replace(lists, missed=np.array([[0, 0, 0], [1, 0, 0]], np.int32))
    values = per_list(missed, {"perfect": lists.gain.astype(np.float64)})["perfect"]
    np.testing.assert_allclose(values["ndcg@10"], [1, 1 / (1 + 1 / LOG2_3)])
    np.testing.assert_allclose(values["recall@10"], [1, 1 / 2])


def test_a_list_without_gain_counts_for_nothing_and_one_that_missed_everything_for_0() -> None:
    lists = planted(n=4)
    gain = lists.gain.copy()
    gain[lists.start[1] : lists.start[3]] = 0
    lists = replace(lists, gain=gain, missed=np.array([[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 0]], np.int32))
    assert lists_with_gain(lists).tolist() == [True, False, True, True]
    values = per_list(lists, {"ranker": gain.astype(np.float64)})["ranker"]["ndcg@10"]
    np.testing.assert_allclose(values, [1, np.nan, 0, 1])
    everyone = judged(lists, {"ranker": gain.astype(np.float64)})["systems"]["ranker"]["all"]
    assert everyone["lists"] == 3
    assert everyone["ndcg@10"]["value"] == pytest.approx((1 + 0 + 1) / 3)


def test_people_with_a_history_and_without_are_reported_apart() -> None:
    """The ranker is perfect for those it knows and worst for those it does not: 1, 1 / log2(9), and half-way in all."""
    lists, warm = planted(), np.arange(40) % 2 == 0
    score = np.where(warm[lists.group], 1, -1) * lists.gain.astype(np.float64)
    found = judged(lists, {"random": np.zeros(lists.rows), "ranker": score}, warm)
    by = found["systems"]["ranker"]
    assert {name: by[name]["lists"] for name in by} == {"all": 40, "warm_users": 20, "cold_users": 20}
    assert by["warm_users"]["ndcg@10"]["value"] == pytest.approx(1)
    assert by["cold_users"]["ndcg@10"]["value"] == pytest.approx(1 / np.log2(9))
    assert by["all"]["ndcg@10"]["value"] == pytest.approx((1 + 1 / np.log2(9)) / 2)
    assert [(c["a"], c["b"], c["slice"]) for c in found["comparisons"]] == [
        ("ranker", "random", s) for s in ("all", "warm_users", "cold_users")
    ]


def test_a_slice_with_nobody_in_it_is_left_out() -> None:
    lists = planted()
    found = judged(lists, {"random": np.zeros(lists.rows), "ranker": np.zeros(lists.rows)}, np.ones(40, bool))
    assert list(found["systems"]["ranker"]) == ["all", "warm_users"]
    assert [c["slice"] for c in found["comparisons"]] == ["all", "warm_users"]


def test_an_interval_holds_its_value_and_excludes_zero_where_one_order_is_plainly_better() -> None:
    lists = planted()
    gain = lists.gain.astype(np.float64)
    found = judged(lists, {"worst": -gain, "same": gain * 2, "ranker": gain})
    better, same = (next(c for c in found["comparisons"] if c["b"] == b) for b in ("worst", "same"))
    assert better["difference"] == pytest.approx(1 - 1 / np.log2(9))
    assert 0 < better["low"] <= better["difference"] <= better["high"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    for by in found["systems"].values():
        v = by["all"]["mrr"]
        assert v["low"] <= v["value"] <= v["high"]


def test_the_same_seed_gives_the_same_interval() -> None:
    lists = planted()
    scores = {"random": np.zeros(lists.rows), "ranker": np.random.default_rng(0).normal(size=lists.rows)}
    assert judged(lists, scores) == judged(lists, scores)


def test_one_person_alone_has_a_value_and_no_interval() -> None:
    lists = replace(planted(n=2), user=np.zeros(2, np.int32))
    v = judged(lists, {"ranker": lists.gain.astype(np.float64)})["systems"]["ranker"]["all"]["ndcg@10"]
    assert v["value"] == 1
    assert np.isnan([v["low"], v["high"]]).all()


def columns(lists: Lists, **known: float) -> F64:
    """Baseline columns: NaN but for those named."""
    out = np.full((lists.rows, len(BASELINES)), np.nan)
    for name, value in known.items():
        out[:, BASELINES.index(name)] = value
    return out


IDS = [f"i{k:03d}" for k in range(200)]


def test_a_baseline_that_has_nothing_to_say_is_left_out() -> None:
    lists = planted(n=2)
    ranker = np.arange(lists.rows, dtype=np.float64)
    found = system_scores(lists, columns(lists, popularity=3.0), ranker, None, IDS)
    assert list(found) == ["random", "shown_order", "popularity", "ranker"]
    assert found["shown_order"][:3].tolist() == [0, -1, -2]


def test_a_list_that_was_never_shown_has_no_shown_order() -> None:
    lists = planted(n=2)
    lists = replace(lists, position=np.full(lists.rows, -1, np.int16))
    assert "shown_order" not in system_scores(lists, columns(lists), np.zeros(lists.rows), None, IDS)


def test_the_best_possible_order_is_that_of_the_hidden_utility() -> None:
    lists = planted(n=2)
    truth = {
        (lists.request_ids[g], IDS[i]): float(i) for g, i in zip(lists.group.tolist(), lists.item.tolist(), strict=True)
    }
    found = system_scores(lists, columns(lists), np.zeros(lists.rows), truth, IDS)
    assert found["best_possible"].tolist() == lists.item.tolist()


def test_rebuilt_lists_have_no_best_possible_and_a_truth_of_another_log_is_refused() -> None:
    """The simulator knows the lists it showed: none of a rebuilt log's, all of its own; some is a mix-up."""
    lists = planted(n=2)
    assert "best_possible" not in system_scores(lists, columns(lists), np.zeros(lists.rows), {("x", "y"): 1.0}, IDS)
    first = (lists.request_ids[0], IDS[lists.item[0]])
    with pytest.raises(DataError, match=r"truth\.parquet: no utility for item 'i\d+' of list 'r0' \(15 such rows\)"):
        system_scores(lists, columns(lists), np.zeros(lists.rows), {first: 1.0}, IDS)


def test_baselines_are_what_was_known_at_the_moment() -> None:
    """Item 0: shown twice, clicked once. Item 3: shown once, clicked by two. Item 2: shown three times, for nothing.

    Counting alone, at a shop's rate of 3 / 6 with the strength of 10 impressions: (1 + 5) / 12, (2 + 5) / 11, 5 / 13.
    """
    events = make_events([
        (0, 1, 0, Kind.IMPRESSION, 0), (0, 1, 3, Kind.IMPRESSION, 0), (0, 1, 0, Kind.IMPRESSION, 1),
        *((0, 1, 2, Kind.IMPRESSION, r) for r in range(3)),
        (9, 1, 0, Kind.CLICK, 0), (9, 1, 3, Kind.CLICK, 0), (5, 0, 3, Kind.CLICK, -1),
        (3 * DAY, 0, 5, Kind.PURCHASE, -1),
    ], n_users=3)  # fmt: skip
    replay = make_replay(events, refresh_days=(1.0,))
    asked = make_lists([2 * DAY, 2 * DAY], [0, 2], [[0, 3, 5, 2], [0, 3, 5, 2]])
    zero_shot = Vectors.quantise(make_vectors(seed=9))
    (warm, known), (cold, stranger) = (
        (has_history(r), dict(zip(BASELINES, baselines(r, zero_shot).T, strict=True))) for r in replay.readings(asked)
    )
    assert (warm, cold) == (True, False)
    assert known["popularity"].argmax() == 1, "item 3 was engaged with twice, item 0 once, 5 only tomorrow"
    assert known["popularity"][2] == 0
    np.testing.assert_allclose(known["item_click_rate"], [6 / 12, 7 / 11, 5 / 10, 5 / 13], atol=0.01)
    assert known["cooccurrence"].argmax() == 0, "user 1 clicked item 0 with item 3, which user 0 clicked"
    assert known["text"][1] == pytest.approx(1, abs=0.01), "the item itself is nearest to the interest"
    assert np.isnan(known["text"][3]), "item 2 has no vector"
    assert known["text_zero_shot"][0] != known["text"][0], "another encoder, another cosine"
    assert np.isnan(stranger["text"]).all()
    np.testing.assert_array_equal(stranger["popularity"], known["popularity"])
