"""Exploration by the posterior: exact propensities, quotas, the budget, and what a service logs and refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from features.arrays import F64, I64
from features.history import EMPTY
from features.log import Kind
from features.moment import Items
from ranker.calibration import OutcomeMap
from ranker.offpolicy import Estimate, LoggedLists, doubly_robust, ips, snips
from serving.config import ExplorationConfig, PlacementConfig, ServiceConfig
from serving.ranking.exploration import Belief, Explored, belief_of, explore_by_posterior, item_spread
from serving.ranking.exploration.merge import Merge, positions
from serving.ranking.live import prepare
from serving.release.manifest import ReleaseError
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.serving.test_placements import logged
from tests.serving.test_recommend import AT, IDS, ids, recommended, shop
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, served

CLICK = OutcomeMap(2.0, -3.0, 0.1, 1000)
MODES: tuple[Literal["thompson", "ucb"], ...] = ("thompson", "ucb")
LENGTH = 8


def planted(seed: int = 0, candidates: int = 20) -> Belief:
    """Candidates with falling click probabilities, of which the last in the list and most below it are new."""
    rng = np.random.default_rng(seed)
    chance = np.sort(rng.uniform(0.02, 0.4, candidates))[::-1]
    new = np.arange(candidates) >= LENGTH + 4
    deviation = np.where(new, rng.uniform(0.8, 1.2, candidates), rng.uniform(0.1, 0.5, candidates))
    return Belief(chance, deviation, new, np.ones(candidates, np.bool_))


def config(**changed: Any) -> ExplorationConfig:
    return ExplorationConfig.model_validate({"share": 1, "quota": 0.25, "budget": 1, **changed})


def draws(belief: Belief, count: int, **changed: Any) -> Iterator[Explored]:
    rng = np.random.default_rng(3)
    for _ in range(count):
        yield explore_by_posterior(belief, LENGTH, config(**changed), rng)


# --- merging ---


def test_an_item_that_is_merged_moves_those_below_it_by_one() -> None:
    """One item above both others with probability .5, between them with .3, and below them with .2."""
    merge = Merge.of(np.array([[0.5, 0.3, 0.2]]))
    # The merged item is at the top, so the others are at 1 and 2: the first has it above with .5, the second with .8.
    others, merged = positions(np.array([0]), 2)
    assert (others.tolist(), merged.tolist()) == ([1, 2], [0])
    of_others, of_merged = merge.probability(others, merged)
    assert (of_others.tolist(), of_merged.tolist()) == (pytest.approx([0.5, 0.8]), pytest.approx([0.5]))
    # Values 10 and 1 for the others and 4 for the merged item, at weights 3, 2, 1.
    expected = 0.5 * (4 * 3 + 10 * 2 + 1) + 0.3 * (10 * 3 + 4 * 2 + 1) + 0.2 * (10 * 3 + 1 * 2 + 4)
    found = merge.expected(np.array([3.0, 2.0, 1.0]), np.array([10.0, 1.0]), np.array([4.0]))
    assert found == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 4), m=st.integers(1, 3))
def test_the_probability_of_a_position_is_the_sum_over_all_draws(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    gap = rng.dirichlet(np.full(n + 1, 0.5), m)
    merge, at = Merge.of(gap), np.zeros((n + m, n + m))
    weight, value = rng.uniform(size=n + m), rng.uniform(size=n + m)
    expected = 0.0
    for gaps in product(range(n + 1), repeat=m):
        chance = float(np.prod([gap[e, g] for e, g in enumerate(gaps)]))
        place = np.concatenate(positions(np.array(gaps), n))
        assert sorted(place) == list(range(n + m))
        at[np.arange(n + m), place] += chance
        expected += chance * float((value * weight[place]).sum())
    assert merge.expected(weight, value[:n], value[n:]) == pytest.approx(expected)
    for gaps in product(range(n + 1), repeat=m):
        others, merged = positions(np.array(gaps), n)
        found = np.concatenate(merge.probability(others, merged))
        place = np.concatenate([others, merged])
        np.testing.assert_allclose(found, at[np.arange(n + m), place], atol=1e-12)


# --- explored lists ---


@pytest.mark.parametrize("mode", MODES)
def test_the_logged_propensity_is_the_frequency_of_an_item_at_its_position(mode: str) -> None:
    """Per set of items: of 800 lists, all within 4.5 standard errors; and one propensity per item and position."""
    lists: Counter[tuple[int, ...]] = Counter()
    shown: Counter[tuple[tuple[int, ...], int, int]] = Counter()
    propensity: dict[tuple[tuple[int, ...], int, int], float] = {}
    for explored in draws(planted(), 800, mode=mode):
        items = tuple(sorted(explored.order.tolist()))
        lists[items] += 1
        for k, (item, p) in enumerate(zip(explored.order.tolist(), explored.propensity.tolist(), strict=True)):
            shown[items, item, k] += 1
            assert propensity.setdefault((items, item, k), p) == pytest.approx(p, rel=1e-9)
    for key, p in propensity.items():
        n = lists[key[0]]
        assert abs(shown[key] / n - p) <= 4.5 * np.sqrt(p * (1 - p) / n) + 1 / n, (key, n)
    assert len(lists) > 1 if mode == "thompson" else len(lists) == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    length=st.integers(1, 30),
    candidates=st.integers(1, 40),
    mode=st.sampled_from(MODES),
    quota=st.sampled_from([0.0, 0.1, 0.25]),
    budget=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
)
def test_an_explored_list_stays_within_its_budget(
    seed: int, length: int, candidates: int, mode: str, quota: float, budget: float
) -> None:
    """Every list has each item once, propensities in (0, 1], and in expectation gives up at most the budget."""
    rng = np.random.default_rng(seed)
    chance = np.sort(rng.uniform(0.001, 0.9, candidates))[::-1]
    new, movable = rng.random(candidates) < 0.4, rng.random(candidates) < 0.9
    belief = Belief(chance, rng.uniform(0.05, 2, candidates), new & movable, movable)
    explored = explore_by_posterior(belief, length, config(mode=mode, quota=quota, budget=budget), rng)
    shown = explored.order.tolist()
    assert len(shown) == min(length, candidates)
    assert len(set(shown)) == len(shown)
    assert ((explored.propensity > 0) & (explored.propensity <= 1)).all()
    assert -1e-9 <= explored.lost <= budget + 1e-9
    joined = [k for k in shown if k >= length]
    assert belief.new[joined].all(), "only new items join a list"
    if budget == 0:
        assert shown == list(range(min(length, candidates)))


def test_lost_clicks_are_those_of_many_lists() -> None:
    """1 - mean of sum chance / log2(position + 2), over that of the ranker's list. All lists have the same items."""
    belief = planted()
    weight = 1 / np.log2(np.arange(LENGTH) + 2.0)
    ranked = float((belief.chance[:LENGTH] * weight).sum())
    found = list(draws(belief, 400, mode="ucb", quota=0.13))
    lost = [1 - float((belief.chance[e.order] * weight).sum()) / ranked for e in found]
    assert np.mean(lost) == pytest.approx(found[0].lost, abs=4 * float(np.std(lost)) / np.sqrt(400))
    assert found[0].lost > 0


def test_new_items_join_until_the_quota_is_met() -> None:
    """A quarter of eight positions: two new items, in place of the last that are not new; one if the list has one."""
    belief = planted()
    for explored in draws(belief, 20):
        assert int(belief.new[explored.order].sum()) == 2
        kept = explored.order[~belief.new[explored.order]]
        assert kept.tolist() == [0, 1, 2, 3, 4, 5], "others keep the ranker's order"
    has_one = belief._replace(new=belief.new | (np.arange(20) == 7))
    for explored in draws(has_one, 20):
        assert int(has_one.new[explored.order].sum()) == 2
        assert 7 in explored.order
    for explored in draws(belief, 20, quota=0):
        assert sorted(explored.order.tolist()) == list(range(LENGTH))


def test_a_budget_that_is_too_small_for_two_new_items_admits_one() -> None:
    """With 2% of the clicks, one joins in most lists, and none or two in fewer."""
    belief = planted()
    free = [explored.lost for explored in draws(belief, 50)]
    least = min(free) / 2
    joined = {int(belief.new[e.order].sum()) for e in draws(belief, 50, budget=least)}
    assert max(joined) < 2


def test_thompson_places_an_item_with_the_probability_that_it_belongs_there() -> None:
    """Of four items, the second is uncertain: it is above the first with the logistic probability of that."""
    chance, deviation = np.array([0.3, 0.2, 0.1, 0.05]), np.array([0.01, 1.0, 0.01, 0.01])
    belief = Belief(chance, deviation, np.zeros(4, np.bool_), np.ones(4, np.bool_))
    scale = np.sqrt(3) / np.pi
    above = 1 / (1 + np.exp((np.log(0.3 / 0.7) - np.log(0.2 / 0.8)) / scale))
    rng = np.random.default_rng(0)
    tops = [e for e in (explore_by_posterior(belief, 4, config(quota=0), rng) for _ in range(200)) if e.order[0] == 1]
    # An explored list keeps the ranker's order with probability .2.
    assert tops[0].propensity[0] == pytest.approx(0.8 * above)
    assert 0 < len(tops) < 100


def test_a_seed_gives_the_same_lists() -> None:
    first, second = ([e.order.tolist() for e in draws(planted(), 30)] for _ in range(2))
    assert first == second


# --- off-policy estimates ---


def off_policy(seed: int, lists: int, of: Callable[[Belief, I64], F64]) -> tuple[LoggedLists, I64, F64, float]:
    """(explored lists with clicks, positions of a policy, predicted gains, the policy's true value) of a planted shop.

    of: the scores by which the policy orders the items of a list. Position k is examined with probability (1 + k)^-.5.
    """
    rng = np.random.default_rng(seed)
    examined = (1.0 + np.arange(LENGTH)) ** -0.5
    gain, propensity, place, predicted, value = [], [], [], [], []
    for g in range(lists):
        belief = planted(seed * 100_003 + g % 50)
        # The hidden truth: each item's log odds are off by what is not known of it.
        odds = np.log(belief.chance / (1 - belief.chance)) + belief.deviation * rng.normal(size=len(belief.chance))
        click = 1 / (1 + np.exp(-odds))
        explored = explore_by_posterior(belief, LENGTH, config(), rng)
        order = np.argsort(np.argsort(-of(belief, explored.order), kind="stable"))
        gain.append(rng.random(LENGTH) < click[explored.order] * examined)
        propensity.append(explored.propensity)
        place.append(order)
        predicted.append(belief.chance[explored.order] * examined[order])
        value.append(float((click[explored.order] * examined[order]).sum()))
    position = np.tile(np.arange(LENGTH), lists)
    log = LoggedLists(
        np.arange(lists + 1) * LENGTH,
        np.concatenate(gain).astype(np.float64),
        position,
        np.concatenate(propensity),
        np.arange(lists),
    )
    return log, np.concatenate(place), np.concatenate(predicted), float(np.mean(value))


POLICIES: dict[str, Callable[[Belief, I64], F64]] = {
    "ranker": lambda belief, item: belief.chance[item],
    "optimist": lambda belief, item: (
        np.log(belief.chance / (1 - belief.chance))[item] + np.where(belief.new, belief.deviation, 0)[item]
    ),
}
"""The ranker's order of the shown items, and new items by their upper bounds."""


def covered(seeds: int, lists: int, policy: str) -> dict[str, int]:
    """Number of shops in which the interval of each estimator contains the true value of a policy."""
    within: Counter[str] = Counter()
    for seed in range(seeds):
        log, place, predicted, true = off_policy(seed, lists, POLICIES[policy])
        found: dict[str, Estimate] = {
            "ips": ips(log, place, LENGTH),
            "snips": snips(log, place, LENGTH),
            "doubly_robust": doubly_robust(log, place, LENGTH, predicted),
        }
        for name, e in found.items():
            within[name] += e.low <= true <= e.high
    return dict(within)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_off_policy_intervals_contain_the_true_value(policy: str) -> None:
    """At least 34 of 40 at a level of 95%: fewer have a probability below .1%."""
    assert min(covered(40, 150, policy).values()) >= 34


# --- what is known ---


def test_an_item_is_known_the_better_the_more_clicks_were_expected_on_it() -> None:
    """Variance 1 / (1 / 0.5 + impressions x rate x (1 - rate)) without a taste; new below 100 impressions."""
    items = planted_items()
    state = items.state.copy()
    state.value[:], state.latest[:] = 0, AT
    state.value[0, Kind.IMPRESSION], state.value[0, Kind.CLICK] = 200, 40
    items = replace(items, state=state, factors=np.empty((0, 0), np.float32))
    item, score = np.array([0, 1, -1], np.int32), np.array([1.0, 0.5, 0.0])
    belief = belief_of(items, 0.5, EMPTY, item, score, AT, CLICK, config())
    # The rate is shrunk toward the prior with the weight of 10 impressions.
    rate = (40 + 10 * float(items.prior[0])) / 210
    assert belief.deviation[0] ** 2 == pytest.approx(1 / (2 + 200 * rate * (1 - rate)))
    assert belief.deviation[1] ** 2 == pytest.approx(0.5)
    assert belief.chance == pytest.approx(1 / (1 + np.exp(3 - 2 * score)))
    assert belief.new.tolist() == [False, True, False]
    assert belief.movable.tolist() == [True, True, False]


def spread_shop(items: int, spread: float) -> Items:
    """Items whose log odds of a click differ by this variance from a prediction of 10%, shown 400 times each."""
    rng = np.random.default_rng(5)
    base = planted_items()
    odds = np.log(0.1 / 0.9) + np.sqrt(spread) * rng.normal(size=len(base.catalogue))
    state = base.state.copy()
    state.value[:], state.latest[:] = 0, AT
    state.value[: len(odds), Kind.IMPRESSION] = 400
    state.value[: len(odds), Kind.CLICK] = rng.binomial(400, 1 / (1 + np.exp(-odds)))[:, None]
    return replace(base, state=state, prior=np.full(len(odds) + 1, 0.1, np.float32))


def test_the_spread_of_items_is_estimated_from_their_clicks() -> None:
    """Twenty items: about .3 for a variance of .3; the lowest value for one of 0; .5 if nothing was shown."""
    assert item_spread(spread_shop(20, 0.3), AT) == pytest.approx(0.3, abs=0.2)
    assert item_spread(spread_shop(20, 0.0), AT) == 0.1
    state = planted_items().state.copy()
    state.value[:] = 0
    assert item_spread(replace(planted_items(), state=state), AT) == 0.5


# --- configuration and service ---


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"explore": {"mode": "greedy"}}, "'swaps', 'thompson' or 'ucb'"),
        ({"explore": {"share": 2}}, "less than or equal to 1"),
        ({"explore": {"mode": "swaps", "budget": 0.1}}, "budget has no effect with the mode swaps"),
        ({"explore": {"quota": 0.5}}, "less than or equal to 0.25"),
        ({"explore": {"mode": "ucb"}, "rules": {"cap": [{"attribute": "brand", "most": 1}]}}, "never explored"),
        ({"explore": {}, "objective": {"weight": 0.3}}, "use the mode swaps"),
    ],
)
def test_an_invalid_exploration_is_refused(placement: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PlacementConfig.model_validate(placement)


def test_a_number_is_the_share_of_swaps() -> None:
    assert PlacementConfig.model_validate({"explore": 0.2}) == PlacementConfig(
        explore=ExplorationConfig(mode="swaps", share=0.2)
    )


def test_the_service_reads_what_was_written() -> None:
    """Workers start with the settings as JSON, which has every default."""
    assert ServiceConfig.model_validate_json(EXPLORING.model_dump_json()) == EXPLORING


EXPLORING = ServiceConfig.model_validate(
    {
        **dict(FAST),
        "placements": {
            "always": {"explore": {"share": 1, "quota": 0.25, "budget": 0.5, "new_below": 5}, "limit": 8},
            "never": {"explore": {"share": 1e-9}, "limit": 8},
            "swaps": {"explore": 0.5},
        },
    }
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = planted_model(planted_items())
    return publish(tmp_path_factory.mktemp("releases"), items=shop(), model_text=model, calibration={"click": CLICK})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, released: Path) -> Iterator[str]:
    with connect_url(None, tmp_path_factory.mktemp("valkey")) as url, BulkStore(url) as store:
        store.write([Event("e", Kind.CLICK, "u", "red-01", AT - 1)], AT)
        store.set_pointer(Pointer(released.name, str(released)))
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with served(url, EXPLORING, clock=lambda: AT) as client:
        ready(client)
        yield client


def test_an_explored_list_is_logged_with_its_propensities(client: httpx.Client, url: str) -> None:
    ranked = ids(recommended(client, user_id="u", placement="never"))
    orders = set()
    for _ in range(8):
        answer = recommended(client, user_id="u", placement="always")
        found = logged(url, answer["request_id"])
        assert found.item_ids == ids(answer)
        assert found.propensities is not None
        assert ((found.propensities > 0) & (found.propensities <= 1)).all()
        assert len(set(ids(answer))) == 8
        orders.add(tuple(ids(answer)))
    assert len(orders - {tuple(ranked)}) > 1


@pytest.mark.parametrize(
    "request_",
    [
        {"placement": "never"},
        {"placement": "always", "shown": False},
        {"placement": "always", "rules": {"filter": {"attribute": "brand", "eq": "x"}}},
    ],
)
def test_a_list_that_is_not_explored_has_the_order_of_its_scores(
    client: httpx.Client, url: str, request_: dict[str, Any]
) -> None:
    """Lists outside the share, that nobody sees, or with rules, have no propensity and falling scores."""
    answer = recommended(client, user_id="u", **request_)
    scores = [i["score"] for i in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    if request_.get("shown", True):
        assert logged(url, answer["request_id"]).propensities is None


def test_all_candidates_of_a_request_may_be_explored(client: httpx.Client) -> None:
    """/v1/rank without a limit of its own has that of the placement; the same items with as many as candidates."""
    answer = recommended(client, "rank", user_id="u", placement="always", candidates=IDS[:8])
    assert sorted(ids(answer)) == sorted(IDS[:8])
    one = recommended(client, "rank", user_id="u", placement="always", candidates=IDS[:1])
    assert ids(one) == IDS[:1]
    assert ids(recommended(client, "rank", user_id="u", placement="always", candidates=["x", "y"])) == ["x", "y"]


def test_a_release_without_a_probability_of_a_click_is_refused(tmp_path: Path) -> None:
    path = publish(tmp_path, items=shop(), model_text=planted_model(planted_items()))
    placements = {"home": PlacementConfig(explore=config())}
    with pytest.raises(ReleaseError, match=r"placements\.home\.explore: the release has no probability of a click"):
        prepare(path, None, placements=placements)
