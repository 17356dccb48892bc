"""Taste factors: a posterior computed by hand, directions learned in a planted world, and missing data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalogue import Catalogue
from features.log import Kind
from features.moment import Moment
from features.segments import Segments
from features.taste import DIMENSIONS, Evidence, fit_factors, logits, taste_posterior_mean, taste_variance
from features.text.implied_tags import AttributeValues, ItemWords
from tests.worlds import DAY, START, make_catalogue, make_events, make_replay, make_vectors

NONE = np.empty(0, np.int32)
ONE = Segments.none()


def _factors(catalogue: Catalogue, vectors: np.ndarray, clicks: np.ndarray, evidence: list[Evidence]) -> np.ndarray:
    return fit_factors(catalogue, AttributeValues.of(catalogue), vectors, clicks, evidence)


def _evidence(items: list[int], residual: list[float], curvature: list[float]) -> Evidence:
    return Evidence(np.array(items, np.int32), np.array(residual), np.array(curvature))


# --- a user's taste ---


def test_a_taste_is_its_posterior_mean() -> None:
    """One item at 2 with residual 0.5 and curvature 0.25: precision 1 + 0.25 x 4 - 0.5^2 / 1.25 = 1.8, pull 1."""
    factor = np.array([[2.0], [0.0]], np.float32)
    found = taste_posterior_mean(factor, *ONE, np.array([0], np.int32), np.array([0.5]), np.array([0.25]), 1.0, NONE)
    assert found == pytest.approx([1 / 1.8])


def test_engagements_outside_the_lists_are_compared_with_the_average_click() -> None:
    """As above, plus item 1 at 3: pull 1 + 3, and the evidence in the lists counts 1 + 1 / 2 times: 1 + 1.2."""
    factor = np.array([[2.0], [3.0], [0.0]], np.float32)
    other = np.array([1], np.int32)
    found = taste_posterior_mean(factor, *ONE, np.array([0], np.int32), np.array([0.5]), np.array([0.25]), 2.0, other)
    assert found == pytest.approx([4 / (1 + 1.5 * 0.8)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 8), shown=st.integers(0, 30), other=st.integers(0, 5))
def test_a_taste_matches_a_solution_by_numpy(seed: int, d: int, shown: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(20, d)).astype(np.float32)
    item, elsewhere = (rng.integers(0, 19, k).astype(np.int32) for k in (shown, other))
    residual, curvature = rng.uniform(-1, 1, shown), rng.uniform(0, 0.25, shown)
    x = factor[item].astype(np.float64)
    mean = curvature @ x
    precision = (x.T * curvature) @ x - np.outer(mean, mean) / (1 + curvature.sum())
    expected = np.linalg.solve(
        np.eye(d) + (1 + other / 3.0) * precision, residual @ x + factor[elsewhere].astype(np.float64).sum(axis=0)
    )
    found = taste_posterior_mean(factor, *ONE, item, residual, curvature, 3.0, elsewhere)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_the_variance_of_a_taste_narrows_where_items_were_shown() -> None:
    """Precision 1 + 0.25 x 4 - 0.5^2 / 1.25 = 1.8 in the first direction and 1 in the second; 0 for an unknown item."""
    factor = np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], np.float32)
    shown, curvature = np.array([0], np.int32), np.array([0.25])
    found = taste_variance(factor, np.array([0, 1, -1], np.int32), shown, curvature, 1.0, 0)
    assert found == pytest.approx([4 / 1.8, 9.0, 0.0])


def test_logits_are_dot_products_and_nan_for_an_unknown_item() -> None:
    """(1, 2) x (3, -1) = 1; the last row belongs to the unknown item."""
    factor = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    found = logits(factor, np.array([0, -1], np.int32), np.array([3.0, -1.0]))
    assert found[0] == 1.0
    assert np.isnan(found[1])


# --- the factors ---


def _planted(users: int, likes: np.ndarray) -> list[Evidence]:
    """Every user is shown every item and clicks those that they like; each click had probability one half."""
    n = likes.shape[1]
    return [_evidence(list(range(n)), (likes[u % len(likes)] - 0.5).tolist(), [0.25] * n) for u in range(users)]


def test_items_liked_by_the_same_users_get_similar_factors() -> None:
    """Two clusters of users like items 0 to 5 or the rest; texts and tags are drawn independently of that."""
    half = (np.arange(12) < 6).astype(float)
    factor = _factors(make_catalogue(), make_vectors(), np.zeros(13), _planted(200, np.array([half, 1 - half])))
    taste = taste_posterior_mean(
        factor, *ONE, np.arange(3, dtype=np.int32), np.full(3, 0.5), np.full(3, 0.25), 1.5, NONE
    )
    found = logits(factor, np.arange(12, dtype=np.int32), taste)
    # The other three items of the cluster rank before all six of the other cluster.
    assert found[3:6].min() > found[6:].max()


def test_the_factor_of_an_unshown_item_follows_from_its_description() -> None:
    """Item 9 has the category, brand, numbers and text of item 3, so users who like item 3 are expected to like it."""
    catalogue, vectors = make_catalogue(), make_vectors()
    for array in (catalogue.category, catalogue.brand, catalogue.numbers, vectors):
        array[9] = array[3]
    start = catalogue.tag_start
    # Tags cannot be copied within a ragged array, so neither item has any.
    object.__setattr__(catalogue, "tag", np.empty(0, np.int32))
    object.__setattr__(catalogue, "tag_start", np.zeros_like(start))
    shown = [k for k in range(12) if k != 9]
    likes = np.isin(shown, [0, 3, 6]).astype(float)
    evidence = [_evidence(shown, (s * (likes - 0.3)).tolist(), [0.25] * 11) for s in (1, -1) * 100]
    factor = _factors(catalogue, vectors, np.zeros(13), evidence)
    taste = taste_posterior_mean(factor, *ONE, np.array([0, 6], np.int32), np.ones(2), np.full(2, 0.25), 1.0, NONE)
    assert logits(factor, np.array([9], np.int32), taste)[0] > 0


def test_an_implied_tag_describes_an_item_like_an_entered_one() -> None:
    """Items 0 to 19 say 'oak', 20 to 39 'steel'; five of each are untagged and were never shown; none has a vector."""
    n = 40
    oak = np.arange(n) < 20
    tagged = [k for k in range(n) if k % 20 < 15]
    start = np.searchsorted(tagged, np.arange(n + 2)).astype(np.int64)
    catalogue = replace(
        make_catalogue(n),
        category=np.zeros(n + 1, np.int32),
        brand=np.zeros(n + 1, np.int32),
        tag_start=start,
        tag=np.where(oak[tagged], 0, 1).astype(np.int32),
        tag_names=["m=oak", "m=steel"],
        numbers=np.empty((n + 1, 0)),
        number_names=[],
        date_names=[],
    )
    evidence = [_evidence(tagged, (s * (oak[tagged] - 0.5)).tolist(), [0.25] * 30) for s in (1, -1) * 20]
    none, clicks = np.full((n + 1, 3), np.nan, np.float32), np.zeros(n + 1)
    words = ItemWords.of([f"{'oak' if o else 'steel'} thing" for o in oak])
    for values, implied in ((AttributeValues.of(catalogue), False), (AttributeValues.of(catalogue, words), True)):
        factor = fit_factors(catalogue, values, none, clicks, evidence)
        taste = taste_posterior_mean(
            factor, *ONE, np.arange(3, dtype=np.int32), np.full(3, 0.5), np.full(3, 0.25), 1.5, NONE
        )
        found = logits(factor, np.arange(n, dtype=np.int32), taste)
        assert (found[15:20].min() > found[35:].max()) is np.True_ if implied else np.allclose(found[15:20], found[35:])


def _correlation_on_unshown_items(seed: int) -> float:
    """Correlation of predicted with true tastes of 300 users for ten of 60 items, which nobody was shown.

    The two true factors of an item are linear in the sixteen coordinates of its text; each user was shown 30 items.
    """
    rng, n, shown = np.random.default_rng(seed), 60, 50
    catalogue = replace(
        make_catalogue(n),
        category=np.zeros(n + 1, np.int32),
        brand=np.zeros(n + 1, np.int32),
        tag_start=np.zeros(n + 2, np.int64),
        tag=NONE,
        tag_names=[],
        numbers=np.empty((n + 1, 0)),
        number_names=[],
        date_names=[],
    )
    text = np.vstack([rng.normal(size=(n, 16)), np.zeros((1, 16))]).astype(np.float32)
    truth = rng.normal(size=(300, 2)) @ (text[:n] @ rng.normal(size=(16, 2)) * 1.5 / 4).T
    evidence = []
    for likes in truth:
        item = np.sort(rng.choice(shown, 30, replace=False)).astype(np.int32)
        clicked = rng.uniform(size=30) < 1 / (1 + np.exp(-likes[item]))
        evidence.append(Evidence(item, clicked - 0.5, np.full(30, 0.25)))
    factor, unshown = _factors(catalogue, text, np.zeros(n + 1), evidence), np.arange(shown, n, dtype=np.int32)
    found = [
        logits(factor, unshown, taste_posterior_mean(factor, *ONE, e.item, e.residual, e.curvature, 15.0, NONE))
        for e in evidence
    ]
    return float(np.mean([np.corrcoef(f, t[shown:])[0, 1] for f, t in zip(found, truth, strict=True)]))


def test_descriptions_predict_the_tastes_for_unshown_items() -> None:
    """The correlation over three such worlds is .83; it is .81 if descriptions are used as factors without learning."""
    assert np.mean([_correlation_on_unshown_items(seed) for seed in range(3)]) > 0.82


def test_the_click_weighted_mean_of_the_factors_is_the_origin() -> None:
    rng = np.random.default_rng(0)
    clicks = np.append(rng.integers(0, 50, 12), 0).astype(np.float64)
    factor = _factors(make_catalogue(), make_vectors(), clicks, _planted(20, rng.integers(0, 2, (5, 12))))
    np.testing.assert_allclose((clicks[:12] + 1) @ factor[:12], 0, atol=1e-3)
    assert not factor[12].any()


def test_the_order_of_users_and_of_their_items_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    evidence = _planted(10, rng.integers(0, 2, (5, 12)))
    reversed_ = [
        Evidence(e.item[::-1].copy(), e.residual[::-1].copy(), e.curvature[::-1].copy()) for e in evidence[::-1]
    ]
    a, b = (_factors(make_catalogue(), make_vectors(), np.zeros(13), e) for e in (evidence, reversed_))
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=1e-4)


def test_without_impressions_there_are_no_factors() -> None:
    empty = [_evidence([], [], [])]
    assert _factors(make_catalogue(), make_vectors(), np.zeros(13), empty).shape == (13, 0)
    assert _factors(make_catalogue(), make_vectors(), np.zeros(13), []).shape == (13, 0)


def test_a_large_catalogue_keeps_its_principal_components() -> None:
    factor = _factors(make_catalogue(300), make_vectors(300, 200), np.zeros(301), _planted(5, np.ones((1, 300))))
    assert factor.shape == (301, DIMENSIONS)
    assert np.isfinite(factor).all()


# --- in replay ---


def test_users_are_expected_to_click_the_kind_of_item_they_clicked_before() -> None:
    """User 0 clicks the even items of every list and user 1 the odd ones; their own kind gets higher logits."""
    rows = []
    for day in range(8):
        for item in range(12):
            for user in (0, 1):
                rows.append((day * DAY, user, item, Kind.IMPRESSION, 2 * day + user))
                if item % 2 == user:
                    rows.append((day * DAY + 60, user, item, Kind.CLICK, 2 * day + user))
    replay = make_replay(make_events(rows, 2))
    at = START + 9 * DAY
    items, every = replay.items_at(at), np.arange(12, dtype=np.int32)
    for user in (0, 1):
        moment = Moment(items, replay.histories.read(user, at), every, at)
        assert moment.taste_posterior is not None
        found = logits(items.factors, every, moment.taste_posterior)
        assert found[every % 2 == user].min() > found[every % 2 != user].max()


def test_factors_depend_only_on_events_before_their_time() -> None:
    rows = [(0.1 * DAY * k, k % 3, k % 12, list(Kind)[k % 3], k % 7) for k in range(90)]
    later = [(5 * DAY + k, k % 3, k % 12, Kind.CLICK, -1) for k in range(20)]
    at = START + 5 * DAY
    before = [r for r in rows if r[0] < 5 * DAY]
    a, b = (make_replay(make_events(r, 3)).items_at(at).factors for r in (before, before + later))
    np.testing.assert_array_equal(a, b)


def test_a_user_without_impressions_has_no_taste_posterior() -> None:
    items = make_replay(make_events([(0.0, 0, 1, Kind.CLICK, -1)], 1)).items_at(START + DAY)
    replay = make_replay(make_events([(0.0, 0, 1, Kind.CLICK, -1)], 1))
    moment = Moment(items, replay.histories.read(0, START + DAY), np.arange(3, dtype=np.int32), START + DAY)
    assert moment.taste_posterior is None
