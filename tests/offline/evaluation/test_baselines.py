"""Baselines: the scores of each, as of the time of the list, and their tuning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.history import EMPTY, Histories, History
from features.log import Events, Kind, Lists
from features.text.vectors import Vectors
from offline.evaluation.baselines import BASELINES, DEPTH, Baselines, EngagementCounts, blend, order_of, repeat_rate
from offline.evaluation.ease import Ease, pairs
from ranker.metrics import tie_break
from tests.worlds import DAY, START, logs, make_events, make_lists, make_replay, make_vectors

ZERO_SHOT = Vectors.quantise(make_vectors(seed=9))
BOUGHT, CLICK, SHOWN = Kind.PURCHASE, Kind.CLICK, Kind.IMPRESSION


def bought(*rows: tuple[float, int, int]) -> Events:
    """Purchases of (days after START, user, item)."""
    return make_events([(day * DAY, user, item, BOUGHT, -1) for day, user, item in rows], n_users=40)


def scores(events: Events, lists: Lists, whole: bool = False) -> list[dict[str, np.ndarray]]:
    """Scores of the candidates of each list, by baseline."""
    replay = make_replay(events, refresh_days=(1.0, 2.0))
    baselines = Baselines(replay, lists, ZERO_SHOT, seed=3, whole=whole)
    return [dict(zip(BASELINES, baselines.scores(r).T, strict=True)) for r in replay.snapshots(lists)]


def test_baselines_use_events_before_the_list() -> None:
    """Item 0: shown twice, clicked once. Item 3: shown once, clicked twice. Item 2: shown three times, no clicks.

    Click rates, shrunk to the shop's rate of 3 / 6 with 10 impressions: (1 + 5) / 12, (2 + 5) / 11, 5 / 13.
    """
    events = make_events(
        [
            (0, 1, 0, SHOWN, 0),
            (0, 1, 3, SHOWN, 0),
            (0, 1, 0, SHOWN, 1),
            *((0, 1, 2, SHOWN, r) for r in range(3)),
            (9, 1, 0, CLICK, 0),
            (9, 1, 3, CLICK, 0),
            (5, 0, 3, CLICK, -1),
            (3 * DAY, 0, 5, BOUGHT, -1),
        ],
        n_users=3,
    )
    known, new = scores(events, make_lists([2 * DAY, 2 * DAY], [0, 2], [[0, 3, 5, 2], [0, 3, 5, 2]]))
    assert known["popularity"].tolist() == [1, 2, 0, 0], "item 5 is bought after the list"
    assert known["recency_popularity"].argmax() == 1
    np.testing.assert_allclose(known["item_click_rate"], [6 / 12, 7 / 11, 5 / 10, 5 / 13], atol=0.01)
    assert known["cooccurrence"].argmax() == 0, "user 1 clicked item 0 with item 3, which user 0 clicked"
    assert known["ease"].tolist().index(np.nanmax(known["ease"])) == 0
    assert known["text"][1] == pytest.approx(1, abs=0.01), "the clicked item is the most similar"
    assert np.isnan(known["text"][3]), "item 2 has no vector"
    assert known["text_zero_shot"][0] != known["text"][0], "different encoders give different similarities"
    assert np.isnan(new["text"]).all()
    assert np.isnan(new["ease"]).all()
    np.testing.assert_array_equal(new["popularity"], known["popularity"])


def test_sessions_start_from_the_latest_visit_and_count_pairs_of_one_session_alone() -> None:
    """Users 1 and 2 bought 3 and 4 at once, and 5 a day later. User 0 bought 3: in sessions, only 4 goes with it."""
    pairs = [(day, u, item) for u in (1, 2) for day, item in ((0, 3), (0, 4), (1, 5))]
    events = bought(*pairs, (1.5, 0, 3))
    (by_baseline,) = scores(events, make_lists([3 * DAY], [0], [[4, 5]]))
    assert by_baseline["sessions"][0] > by_baseline["sessions"][1] == 0
    assert by_baseline["cooccurrence"][1] > 0, "users who bought 3 bought 5 as well"


def test_blend_adds_standardised_scores_and_knows_nothing_without_either() -> None:
    """Co-occurrence 0 and 2 has mean 1 and deviation 1. Of text, 0.2 and 0.4 are known: -1 and 1, and 0 if unknown."""
    text = np.array([0.2, 0.4, np.nan, 0.3], np.float32)
    expected = [-1 - 0.7 * 1.5**0.5, 1 + 0.7 * 1.5**0.5, -1, 1]
    np.testing.assert_allclose(blend(np.array([0.0, 2.0, 0.0, 2.0]), text), expected, rtol=1e-5)
    assert np.isnan(blend(np.zeros(3), np.full(3, np.nan, np.float32))).all()


def test_popularity_counts_all_events_and_recency_popularity_decays() -> None:
    """Item 4 was bought three times 60 days ago, item 6 twice yesterday."""
    events = bought(*((0, u, 4) for u in (1, 2, 3)), (59, 4, 6), (59, 5, 6))
    (by_baseline,) = scores(events, make_lists([60 * DAY], [0], [[4, 6]]))
    assert by_baseline["popularity"].tolist() == [3, 2]
    assert by_baseline["recency_popularity"].argmax() == 1


def test_random_differs_between_lists_and_is_reproducible() -> None:
    lists = make_lists([DAY, DAY], [0, 0], [[0, 1, 2], [0, 1, 2]])
    one, other = scores(bought((0, 0, 1)), lists)
    assert one["random"].tolist() != other["random"].tolist()
    assert one["random"].tolist() == scores(bought((0, 0, 1)), lists)[0]["random"].tolist()


def rebuilt(lists: Lists) -> Lists:
    """The lists without positions, as if rebuilt rather than logged."""
    return Lists(**{**vars(lists), "position": np.full(lists.rows, -1, np.int16)})


def test_without_repeat_purchases_items_that_the_user_had_rank_last() -> None:
    """All 8 purchases are new to their user. In a rebuilt list, every item that user 0 had has the lowest score."""
    once = bought(*((0.1 * k, k % 2, k) for k in range(8)))
    (by_baseline,) = scores(once, rebuilt(make_lists([2 * DAY], [0], [list(range(8))])))
    assert np.isnan(by_baseline["own_history"]).all(), "it scores only items that the user had"
    for name in set(BASELINES) - {"item_click_rate", "ease", "own_history", "sessions"}:
        assert set(np.flatnonzero(by_baseline[name] == -np.inf)) - {2} == {0, 4, 6}, name
    (shown,) = scores(once, make_lists([2 * DAY], [0], [list(range(8))]))
    assert np.isfinite(shown["popularity"]).all(), "in a logged list all items are scored"


def test_own_history_counts_visits_with_an_item_and_breaks_ties_by_the_latest() -> None:
    """User 0: item 1 twice in one visit, then 2, then 3 and 2, then 4. Visits: 2 with item 2, 1 with the others. Visits
    ago: 0 for 4, 1 for 2 and 3, 3 for 1. User 1's purchases do not count for user 0, and user 2 has no history."""
    events = make_events(
        [
            (0, 0, 1, Kind.CART, -1),
            (0, 0, 1, BOUGHT, -1),
            (1, 0, 2, BOUGHT, -1),
            (2, 0, 3, BOUGHT, -1),
            (2, 0, 2, BOUGHT, -1),
            (3, 0, 4, BOUGHT, -1),
            *((k, 1, 5, BOUGHT, -1) for k in range(5)),
        ],
        n_users=3,
    )
    user_0, user_2 = scores(events, make_lists([9.0, 9.0], [0, 2], [[1, 2, 3, 4, 5, -1]] * 2))
    expected = [1 + 1 / 5, 2 + 1 / 3, 1 + 1 / 3, 1 + 1 / 2, 0, 0]
    np.testing.assert_allclose(user_0["own_history"], expected)
    assert np.isnan(user_2["own_history"]).all()
    (other,) = scores(events, make_lists([9.0], [0], [[6, 7]]))
    assert np.isnan(other["own_history"]).all(), "the user had none of the candidates"


def test_with_repeat_purchases_items_that_the_user_had_are_scored() -> None:
    often = bought(*((0.1 * k, 0, k % 3) for k in range(9)))
    assert repeat_rate(often) == 6 / 9
    (by_baseline,) = scores(often, rebuilt(make_lists([2 * DAY], [0], [[0, 1, 2]])))
    assert by_baseline["popularity"].tolist() == [3, 3, 3]


def test_the_repeat_rate_counts_events_at_one_time_once() -> None:
    """User 0 adds item 1 to the cart and buys it at the same time, then buys it again; user 1 buys it once. 1 of 3 is a
    repeat. Impressions do not count."""
    events = make_events(
        [
            (0, 0, 1, Kind.CART, -1),
            (0, 0, 1, BOUGHT, -1),
            (9, 0, 1, BOUGHT, -1),
            (9, 1, 1, BOUGHT, -1),
            (8, 1, 1, SHOWN, 0),
        ],
        n_users=2,
    )
    assert repeat_rate(events) == 1 / 3
    assert repeat_rate(bought()) == 0


@settings(max_examples=25, deadline=None)
@given(logs(), st.integers(1, 9), st.booleans())
def test_no_baseline_sees_the_future(rows: list[tuple[float, int, int, Kind, int]], k: int, whole: bool) -> None:
    """Events at or after the first list change none of its scores, not even through EASE."""
    cut = k * DAY / 6
    lists = make_lists([cut, cut], [0, 1], [[0, 1, 2, 3], [5, 6]])
    with_future = scores(make_events(rows, 3), lists, whole)
    past_only = scores(make_events([r for r in rows if r[0] < cut], 3), lists, whole)
    for a, b in zip(with_future, past_only, strict=True):
        for name in BASELINES:
            np.testing.assert_array_equal(a[name], b[name])


def test_best_ranks_the_candidates_or_with_whole_the_catalogue() -> None:
    events = bought((0, 1, 4), (0, 2, 4), (0, 3, 7))
    lists = make_lists([2 * DAY], [0], [[7, 4, 0]])
    replay = make_replay(events, refresh_days=(1.0,))
    for whole in (False, True):
        baselines = Baselines(replay, lists, ZERO_SHOT, seed=3, whole=whole)
        (best,) = (baselines.best(r) for r in replay.snapshots(lists))
        assert best.shape == (len(BASELINES), DEPTH)
        popular = best[BASELINES.index("popularity")]
        assert popular[:2].tolist() == [4, 7]
        assert (popular >= 0).sum() == (12 if whole else 3)
        assert (best[BASELINES.index("text")] == -1).all(), "user 0 has no history"


def test_items_that_are_not_available_yet_are_not_ranked() -> None:
    events = bought((0, 1, 4))
    replay = make_replay(events, refresh_days=())
    lists = make_lists([DAY], [0], [[0]])
    replay.catalogue.available_from[4] = START + 2 * DAY
    baselines = Baselines(replay, lists, ZERO_SHOT, seed=3, whole=True)
    (best,) = (baselines.best(r) for r in replay.snapshots(lists))
    assert 4 not in best
    assert sorted(best[0][best[0] >= 0].tolist()) == [i for i in range(12) if i != 4]


def test_an_order_breaks_ties_by_a_hash_and_is_padded() -> None:
    item, start = np.array([5, 6, 7, 1], np.int32), np.array([0, 3, 4])
    order = order_of(np.array([1.0, 3.0, np.nan, 0.0]), item, start, tie_break(item, start))
    assert order[:, :4].tolist() == [[6, 5, 7, -1], [1, -1, -1, -1]]
    empty = order_of(np.empty(0), item[:0], np.array([0, 0]), tie_break(item[:0], np.array([0, 0])))
    assert (empty == -1).all()


# EASE


def checkerboard(users: int = 30) -> Events:
    """Even users buy even items 0 to 4, odd users odd items 1 to 5; each user lacks one of their own."""
    return bought(
        *((0.01 * i, u, i) for u in range(users) for i in range(6) if i % 2 == u % 2 and i // 2 != u // 2 % 3)
    )


def history_of(events: Events, user: int) -> History:
    """The user's history after all events."""
    return Histories.of(events).read(user, START + 100 * DAY)


def test_ease_completes_a_checkerboard() -> None:
    """An even user lacks one even item and all odd items; the even item scores highest among these."""
    events, every = checkerboard(), np.arange(12, dtype=np.int32)
    ease = Ease.fit(events, 12, penalty=3.0, memory=8.0)
    for user in range(6):
        history = history_of(events, user)
        score = np.where(np.isin(every, history.item), -np.inf, np.nan_to_num(ease.scores(history, every), nan=-9))
        assert int(score.argmax()) % 2 == user % 2


def test_ease_is_the_ridge_regression_of_each_item_on_all_others() -> None:
    """The closed form equals solving each column separately without its own item, from which Steck derives it."""
    events, penalty = bought(*((u, u, i) for u, i in np.argwhere(np.random.default_rng(2).random((30, 7)) < 0.4))), 2.0
    ease = Ease.fit(events, 12, penalty, memory=8.0)
    x = np.zeros((40, 12))
    x[events.user, events.item] = 1
    for j in ease.item.tolist():
        others = [i for i in ease.item.tolist() if i != j]
        a = x[:, others]
        expected = np.linalg.solve(a.T @ a + penalty * np.eye(len(others)), a.T @ x[:, j])
        column = ease.weight[:, ease.item.tolist().index(j)]
        np.testing.assert_allclose(np.delete(column, ease.item.tolist().index(j)), expected, atol=1e-5)
        assert column[ease.item.tolist().index(j)] == 0


def test_ease_decays_by_visits_not_by_days() -> None:
    """Item 0 is one visit back, item 1 two visits and 99 days: a half-life of one visit gives 1 / 2 and 1 / 4."""
    ease = Ease(np.array([0, 1, 2]), np.array([[0, 0, 1], [0, 0, 10], [0, 0, 0]], np.float32), memory=1.0)
    history = history_of(bought((99, 0, 2), (98, 0, 0), (0, 0, 1)), 0)
    assert ease.scores(history, np.array([2], np.int32)).tolist() == [1 / 2 + 10 / 4]


def test_ease_scores_only_the_items_with_most_engagements() -> None:
    events = bought((0, 0, 3), (0, 1, 3), (0, 0, 5), (0, 1, 5), (0, 2, 7))
    ease = Ease.fit(events, 12, 1.0, 8.0, most=2)
    assert ease.item.tolist() == [3, 5]
    score = ease.scores(history_of(events, 0), np.array([7, 5, -1, 3], np.int32))
    assert np.isnan(score).tolist() == [True, False, True, False]
    assert np.isnan(ease.scores(history_of(events, 2), np.array([3, 5], np.int32))).all(), "user 2 had neither item"


def test_ease_without_a_log_or_a_history_scores_nothing() -> None:
    every = np.arange(12, dtype=np.int32)
    for events in (bought(), make_events([(0, 0, 1, SHOWN, 0), (0, 0, -1, CLICK, -1)], 3)):
        assert np.isnan(Ease.select(events, 12, True, seed=0).scores(history_of(checkerboard(), 0), every)).all()
    assert np.isnan(Ease.select(checkerboard(), 12, True, seed=0).scores(EMPTY, every)).all()


def test_ease_selects_a_short_memory_where_only_the_last_visit_predicts_the_next() -> None:
    """Item k is always followed by item k + 1; earlier visits carry no information."""
    rng, rows = np.random.default_rng(0), []
    for user in range(40):
        day = 0.0
        for first in rng.integers(0, 5, 12).tolist():
            rows += [(day, user, 2 * first), (day + 1, user, 2 * first + 1)]
            day += 2
        rows = rows if user % 2 else rows[:-1]
    assert Ease.select(bought(*rows), 12, new_only=False, seed=0).memory == 2.0


# Counting


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), max_size=30),
    st.lists(st.tuples(st.integers(-4, 4), st.integers(-1, 7)), max_size=10),
)
def test_engagement_counts_equal_a_simple_count(log: list[tuple[int, int]], queries: list[tuple[int, int]]) -> None:
    """Events of the entity strictly before the time, read four at a time; 0 for an unknown entity."""
    of, when = (np.array([q[k] for q in queries], np.int64) for k in (0, 1))
    rows = [(float(t), 0, e, CLICK, -1) for e, t in log]
    events = make_events([(t, u, e + 3, k, r) for t, u, e, k, r in rows], 1)
    counts = EngagementCounts(events, lambda e: e.item.astype(np.int64) - 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Events.parts, "__defaults__", (4,))
        found = counts.before(of, START + when.astype(np.float64))
    assert found.tolist() == [sum(e == o and t < w for e, t in log) for o, w in queries]


def test_every_pair_of_user_and_item_has_its_own_number() -> None:
    user, item = (a.ravel().astype(np.int32) for a in np.meshgrid([0, 1, 2**31 - 1], [0, 1, 2**31 - 1]))
    assert len(np.unique(pairs(user, item))) == 9
