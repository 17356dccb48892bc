"""Probabilities of outcomes on shown lists, and the trade-off of objectives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from features.log import Lists
from offline.evaluation import objectives, outcomes
from offline.evaluation.outcomes import ScoredLists
from ranker.calibration import LEAST_POSITIVES, Outcome, OutcomeMap, fit_maps, probabilities
from serving.config import ObjectiveConfig
from serving.ranking import Objective
from tests.worlds import make_catalogue, make_lists

MAPS: dict[Outcome, OutcomeMap] = {
    "click": OutcomeMap(1.0, -1.0, 0.4, 1000),
    "purchase": OutcomeMap(1.0, -3.0, 0.1, 1000),
}


def scored(n: int = 300, length: int = 6, seed: int = 0) -> ScoredLists:
    """Lists of six of twelve items whose outcomes have the probabilities of `MAPS`; every third user is new."""
    rng = np.random.default_rng(seed)
    items = [rng.permutation(12)[:length].tolist() for _ in range(n)]
    lists = make_lists([float(k) for k in range(n)], [k % 40 for k in range(n)], items)
    score = rng.normal(0, 1, lists.rows)
    chance, draw = probabilities(MAPS, score), rng.random(lists.rows)
    gain = np.where(draw < chance["purchase"], 3, np.where(draw < chance["click"], 1, 0)).astype(np.int8)
    position = np.tile(np.arange(length, dtype=np.int16), n)
    fields = {name: getattr(lists, name) for name in Lists.__dataclass_fields__}
    return ScoredLists(Lists(**(fields | {"gain": gain, "position": position})), score, np.arange(n) % 3 > 0)


# --- maps ---


def test_maps_recover_the_probabilities_that_outcomes_were_drawn_with() -> None:
    found, drawn = scored(5000), MAPS["click"]
    maps = fit_maps(found.score, found.lists.gain)
    assert list(maps) == ["click", "cart", "purchase"]
    assert (maps["click"].slope, maps["click"].intercept) == pytest.approx((drawn.slope, drawn.intercept), abs=0.05)
    assert maps["click"].rate == np.mean(found.lists.gain > 0)
    assert maps["click"].rows == 30_000


def test_an_outcome_that_is_rare_or_falls_with_the_score_has_no_map() -> None:
    score = np.linspace(0, 1, 1000)
    gain = np.zeros(1000, np.int8)
    gain[-2 * LEAST_POSITIVES :] = 1
    gain[-LEAST_POSITIVES + 1 :] = 3
    assert list(fit_maps(score, gain)) == ["click"]
    assert fit_maps(-score, gain) == {}


def test_no_outcome_is_more_probable_than_a_lesser_one() -> None:
    maps: dict[Outcome, OutcomeMap] = {
        "click": OutcomeMap(1.0, -1.0, 0.3, 9),
        "purchase": OutcomeMap(3.0, -2.0, 0.1, 9),
    }
    found = probabilities(maps, np.array([0.0, 1.0]))
    # At 1, the map of purchases gives 1 / (1 + exp(-1)), above that of clicks, 1 / (1 + exp(0)).
    np.testing.assert_allclose(found["purchase"], [1 / (1 + math.exp(2)), 0.5])


# --- reliability ---


def test_reliability_has_every_outcome_by_slice() -> None:
    found = scored()
    of_lists = {"all": np.ones(300, bool), "cold_users": ~found.warm, "placement:x": np.arange(300) < 99}
    by_outcome = outcomes.reliability(MAPS, found, of_lists)
    assert {outcome: list(by_slice) for outcome, by_slice in by_outcome.items()} == {
        "click": ["all", "cold_users"],
        "purchase": ["all", "cold_users"],
    }
    one = by_outcome["purchase"]["all"]
    assert (one["lists"], one["rows"]) == (300, 1800)
    assert one["observed"] == np.mean(found.lists.gain == 3)
    assert one["predicted"] == pytest.approx(probabilities(MAPS, found.score)["purchase"].mean())
    assert one["error"] < 0.03
    assert one["log_loss"] < one["log_loss_of_rate"]


def test_the_log_loss_is_finite_for_certain_predictions() -> None:
    loss = outcomes.log_loss(np.array([0.5, 1.0]), np.array([True, False]))
    assert loss == pytest.approx((math.log(2) - math.log(1e-12)) / 2, rel=1e-3)


# --- trade-off ---


def objective(**changed: Any) -> Objective:
    config = ObjectiveConfig.model_validate({"value": "price", "floor": 0.0, **changed})
    return Objective.of(config, MAPS, make_catalogue(), "objective")


def test_weight_0_has_the_order_of_the_ranker_and_a_higher_weight_earns_more() -> None:
    found, goal = scored(), objective()
    result = objectives.trade_off(goal, found, {"price": goal.amount}, [0.4], 0, 0.95)
    points = {p["weight"]: p for p in result["points"]}
    assert list(points) == [0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1]
    assert not any(name.startswith("change_") for name in points[0])
    expected = [p["expected_earned:price"][0] for p in points.values()]
    clicks = [p["expected_clicks"][0] for p in points.values()]
    # All six items are within the first ten positions, so the lists earn the same in any order.
    assert expected == pytest.approx([expected[0]] * 9)
    assert clicks == pytest.approx([clicks[0]] * 9)
    assert points[1]["ndcg@10"][0] < points[0]["ndcg@10"][0]


def test_more_is_expected_to_be_earned_and_less_clicked_at_a_higher_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "SHOWN", 2)
    found, goal = scored(), objective()
    points = objectives.trade_off(goal, found, {"price": goal.amount}, [], 0, 0.95)["points"]
    earned = [p["expected_earned:price"][0] for p in points]
    clicks = [p["expected_clicks"][0] for p in points]
    assert earned == sorted(earned)
    assert clicks == sorted(clicks, reverse=True)
    value, low, high = points[-1]["change_expected_earned:price"]
    assert value == pytest.approx(100 * (earned[-1] / earned[0] - 1))
    assert low <= value <= high


def test_a_shown_order_has_its_own_value_off_policy() -> None:
    """Lists shown in the order of the scores, without randomness: at weight 0 every weight is 1."""
    found, goal = scored(), objective()
    order = np.lexsort((-found.score, found.lists.group))
    position = np.empty(found.lists.rows, np.int16)
    position[order] = np.arange(found.lists.rows) - found.lists.start[found.lists.group]
    fields = {name: getattr(found.lists, name) for name in Lists.__dataclass_fields__}
    shown = ScoredLists(Lists(**(fields | {"position": position})), found.score, found.warm)
    logged = np.arange(300), np.ones(found.lists.rows)
    points = objectives.trade_off(goal, shown, {"price": goal.amount}, [], 0, 0.95, logged)["points"]
    assert points[0]["off_policy_clicks"][0] == pytest.approx((found.lists.gain > 0).sum() / 300)
    assert "change_off_policy_clicks" not in points[0]
    old, new = (points[k]["off_policy_earned:price"][0] for k in (0, -1))
    change, low, high = points[-1]["change_off_policy_earned:price"]
    assert change == pytest.approx(100 * (new / old - 1))
    assert low < change < high


def test_a_part_of_the_lists_has_its_own_propensities() -> None:
    """Lists of 6. Lists 1, 3 and 4 have propensities; of lists 0, 3 and 4, the last two are numbers 1 and 2."""
    found = scored(5)
    logged = np.array([1, 3, 4]), np.repeat([0.1, 0.3, 0.4], 6)
    some, of_some = objectives.part(found, logged, np.array([True, False, False, True, True]))
    assert of_some is not None
    assert some.lists.user.tolist() == [0, 3, 4]
    assert of_some[0].tolist() == [1, 2]
    assert of_some[1].tolist() == [0.3] * 6 + [0.4] * 6
    assert objectives.part(found, logged, np.array([True, False, True, False, False]))[1] is None


def test_the_trade_off_of_no_lists_has_no_points() -> None:
    none = scored().take(np.empty(0, np.int64))
    assert objectives.trade_off(objective(), none, {}, [], 0, 0.95)["points"] == []
