"""Off-policy estimates: planted lists with known values, what is refused, and the simulated shop's truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.arrays import F64, I64
from features.log import GAIN, KINDS
from offline.config.simulation import POSITION_BIAS, SimulateConfig
from offline.simulation.dataset import simulate
from ranker.examination import power_law
from ranker.metrics import tie_break
from ranker.offpolicy import Estimate, LoggedLists, doubly_robust, ips, places, snips

SHOP = SimulateConfig(
    items=40, users=200, days=10, lists_per_user_day=0.6, list_length=6, new_items_per_day=0, explore=0.6
)
K = 3


def planted() -> tuple[LoggedLists, I64]:
    """Two lists of three. New order: items 2, 0, 1 on places 0, 1, 2. Both logs agree with it at one place."""
    logged = LoggedLists(
        start=np.array([0, 3, 6]),
        gain=np.array([0, 1, 0, 2, 0, 1], np.int8),
        position=np.array([1, 0, 2, 0, 2, 1], np.int16),
        propensity=np.array([0.5, 0.25, 0.25, 0.25, 0.5, 0.25]),
        cluster=np.array([7, 8]),
    )
    return logged, np.array([1, 2, 0, 1, 2, 0])


@dataclass(frozen=True)
class Shop:
    """A simulated log: LoggedLists, the items, and what each row would gain at any place."""

    logged: LoggedLists
    item: I64
    utility: F64

    def value(self, place: I64, k: int) -> float:
        """What an order is truly worth on these lists: utility times the chance that the place is looked at."""
        seen = power_law(int(place.max()) + 1, POSITION_BIAS)[place]
        return float((self.utility * seen)[place < k].sum() / len(self.logged))


def simulated(config: SimulateConfig, directory: Path) -> Shop:
    simulate(config, directory)
    events, truth, chance = (
        pq.read_table(directory / f"{f}.parquet").to_pandas() for f in ("events", "truth", "propensities")
    )
    gains = dict(zip(KINDS, GAIN.tolist(), strict=True))
    acts = events[events.request_id.notna()].assign(gain=lambda e: e.event.map(gains))
    gain = acts.groupby(["request_id", "item_id"]).gain.max()
    users = acts.groupby("request_id").user_id.first()
    rows = chance.merge(truth, on=["request_id", "item_id"]).merge(gain.reset_index(), on=["request_id", "item_id"])
    rows = rows.sort_values(["request_id", "item_id"], kind="stable")
    starts = np.flatnonzero(rows.request_id.ne(rows.request_id.shift()).to_numpy())
    logged = LoggedLists(
        np.append(starts, len(rows)),
        rows.gain.to_numpy(),
        rows.position.to_numpy(),
        rows.propensity.to_numpy(),
        pd.factorize(users[rows.request_id.iloc[starts]])[0],
    )
    return Shop(logged, pd.factorize(rows.item_id, sort=True)[0], rows.utility.to_numpy())


def ordered(shop: Shop, scores: F64) -> I64:
    start = shop.logged.start
    return places(scores, start, tie_break(shop.item, start))


def predicted(shop: Shop, place: I64) -> F64:
    """Each item's gain in the lists of the other half of the users, shrunk, times the effect of the place there."""
    user = shop.logged.cluster[shop.logged.group] % 2
    out = np.empty(len(place))
    for half in (0, 1):
        gain, item, at = (a[user != half] for a in (shop.logged.gain, shop.item, shop.logged.position))
        mean = gain.mean()
        by_item = (np.bincount(item, gain, 500) + 20 * mean) / (np.bincount(item, minlength=500) + 20)
        by_place = np.bincount(at, gain) / np.bincount(at) / mean
        out[user == half] = (by_item[shop.item] * by_place[place])[user == half]
    return out


ESTIMATORS: dict[str, Callable[[Shop, I64], Estimate]] = {
    "ips": lambda shop, place: ips(shop.logged, place, K),
    "snips": lambda shop, place: snips(shop.logged, place, K),
    "doubly_robust": lambda shop, place: doubly_robust(shop.logged, place, K, predicted(shop, place)),
}


def coverage(seeds: int, directory: Path) -> dict[str, int]:
    """In how many simulated shops each estimator's interval holds the truth."""
    within = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(seeds):
        shop = simulated(SHOP.model_copy(update={"seed": seed}), directory / "shop")
        # The order to be judged: what people like best, which the shop's own order is not.
        place = ordered(shop, shop.utility)
        true = shop.value(place, K)
        for name, estimator in ESTIMATORS.items():
            found = estimator(shop, place)
            within[name] += found.low <= true <= found.high
    return within


# --- planted lists ---


def test_ips_weighs_each_agreement_by_the_inverse_of_its_chance() -> None:
    """Both logs agree with the new order at one place each, with a chance of one half."""
    logged, place = planted()
    # List 0: row 0 stands at 1 and goes to 1, weight 1 / 0.5, gain 0. List 1: row 4 stands at 2 and goes to 2, weight
    # 1 / 0.5, gain 0; row 3 stands at 0 and goes to 1; row 5 stands at 1 and goes to 0.
    found = ips(logged, place, 3)
    assert (found.value, found.matches, found.weight) == (0, 2, (2 + 2) / 6)
    # Gain 4 at the agreement of list 0 and 1 at that of list 1.
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert ips(richer, place, 3).value == (4 / 0.5 + 1 / 0.5) / 2
    assert ips(richer, place, 2).value == (4 / 0.5) / 2
    assert ips(richer, place, 1).value == 0


def test_snips_divides_by_the_weights_there_were() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert snips(richer, place, 3).value == pytest.approx(3 * (4 / 0.5 + 1 / 0.5) / (1 / 0.5 + 1 / 0.5))


def test_doubly_robust_adds_the_predictions_and_what_they_missed() -> None:
    """Sum of the predictions of both lists, plus the two agreements' weight times what they gained beyond them."""
    logged, place = planted()
    q = np.array([1.0, 0.5, 0.25, 0.0, 2.0, 1.0])
    value = (q.sum() + (0 - 1.0) / 0.5 + (0 - 2.0) / 0.5) / 2
    assert doubly_robust(logged, place, 3, q).value == pytest.approx(value)


def test_without_predictions_doubly_robust_is_ips() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert ips(richer, place, 3) == doubly_robust(richer, place, 3, np.zeros(6))


def test_clipped_weights_are_counted_and_lower_the_value() -> None:
    """Weights of 1 / 0.5 = 2 are cut to 1.5, both of them: (4 + 1) * 1.5 / 2 lists."""
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    found = ips(richer, place, 3, clip=1.5)
    assert (found.value, found.clipped) == ((4 + 1) * 1.5 / 2, 1.0)
    assert ips(richer, place, 3, clip=2).clipped == 0


def test_the_logged_order_itself_is_worth_what_it_gained() -> None:
    """Without chance all propensities are 1, and every estimate is the mean of what was logged."""
    logged, _ = planted()
    certain = replace(logged, propensity=np.ones(6))
    for found in (ips(certain, logged.position, 3), snips(certain, logged.position, 3)):
        assert (found.value, found.matches, found.effective) == ((1 + 3) / 2, 6, 6)


@given(
    k=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    explore=st.floats(0.05, 1.0),
    gain=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_over_every_order_the_log_could_have_held_ips_and_doubly_robust_are_exact(
    k: int, seed: int, explore: float, gain: list[int]
) -> None:
    """Four items whose gain depends on item and place: the mean of the estimates over all 24 orders, each as often as
    the exploring shop shows it, is the sum of the gains at the new places. A wrong prediction changes nothing."""
    rng = np.random.default_rng(seed)
    at_place = np.array(gain)[:, None] * rng.random(4)
    place = rng.permutation(4)
    start, one = np.array([0, 4]), np.array([0])
    value = robust = 0.0
    for order in permutations(range(4)):
        position = np.array(order)
        chance = explore / 24 + (1 - explore) * (order == (0, 1, 2, 3))
        propensity = explore / 4 + (1 - explore) * (position == np.arange(4))
        logged = LoggedLists(start, at_place[np.arange(4), position], position, propensity, one)
        value += chance * ips(logged, place, k).value
        robust += chance * doubly_robust(logged, place, k, np.full(4, 1.7)).value
    true = at_place[np.arange(4), place][place < k].sum()
    assert value == pytest.approx(true)
    assert robust == pytest.approx(true)


def test_snips_takes_a_constant_gain_for_what_it_is() -> None:
    """Every item gains 2 wherever it stands: 3 places are worth 6 whatever the weights, and there is no doubt."""
    logged, place = planted()
    found = snips(replace(logged, gain=np.full(6, 2)), place, 3)
    assert (found.value, found.low, found.high) == pytest.approx((6, 6, 6))


def test_one_user_gives_a_value_and_no_interval() -> None:
    logged, place = planted()
    found = ips(replace(logged, cluster=np.array([7, 7])), place, 3)
    assert found.value == 0
    assert np.isnan([found.low, found.high]).all()


def test_a_wider_level_is_a_wider_interval_around_the_value() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    narrow, wide = (ips(richer, place, 3, level=level) for level in (0.8, 0.95))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_places_are_those_of_the_metrics_with_nan_last_and_ties_by_hash() -> None:
    scores = np.array([np.nan, 2.0, 5.0, 1.0, 1.0])
    ties = np.array([0, 0, 0, 9, 3], np.uint64)
    assert places(scores, np.array([0, 3, 5]), ties).tolist() == [2, 1, 0, 1, 0]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"propensity": np.array([0.5, 0.25, 0, 0.25, 0.5, 0.25])}, r"propensity\[2\] is 0.0, expected above 0"),
        ({"propensity": np.array([0.5, np.nan, 1, 0.25, 0.5, 0.25])}, r"propensity\[1\] is nan.*leave out lists"),
        ({"propensity": np.array([0.5, 1.5, 1, 0.25, 0.5, 0.25])}, r"propensity\[1\] is 1.5"),
        ({"gain": np.array([0, 1, 0, -1, 0, 0])}, r"gain\[3\] is -1, expected a finite number from 0"),
        ({"gain": np.array([0, 1, 0, np.inf, 0, 0])}, r"gain\[3\] is inf"),
        ({"gain": np.zeros(5)}, r"gain has shape \[5\], expected \[6\]"),
        ({"position": np.array([1, 0, 2, 0, 2, 2])}, r"position of list 1 holds \[0, 2, 2\]; expected each of 0 to 2"),
        ({"position": np.array([-1, 0, 2, 0, 2, 1])}, r"position of list 0 holds \[-1, 0, 2\]"),
        ({"position": np.array([1.0, 0, 2, 0, 2, 1])}, "position is float64, expected integers"),
        ({"start": np.array([0, 3, 3, 6])}, "start must be integers that rise"),
        ({"start": np.array([0])}, "start must be integers that rise"),
        ({"cluster": np.array([1])}, r"cluster has shape \[1\], expected \[2\]"),
    ],
)
def test_a_log_that_does_not_fit_is_refused_with_the_row(change: dict[str, np.ndarray], said: str) -> None:
    logged, _ = planted()
    with pytest.raises(ValueError, match=said):
        replace(logged, **change)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"k": 0}, "k=0"),
        ({"clip": 0.5}, "clip=0.5"),
        ({"clip": np.nan}, "clip=nan"),
        ({"level": 1.0}, "level=1.0"),
        ({"place": np.array([0, 1, 2, 0, 1, 1])}, r"place of list 1 holds \[0, 1, 1\]"),
        ({"place": np.array([0, 1, 2])}, r"place has shape \[3\]"),
    ],
)
def test_an_impossible_question_is_refused(arguments: dict[str, object], said: str) -> None:
    logged, place = planted()
    with pytest.raises(ValueError, match=said):
        ips(**{"logged": logged, "place": place, "k": 3, **arguments})  # type: ignore[arg-type]


def test_predictions_must_be_finite_and_one_a_row() -> None:
    logged, place = planted()
    with pytest.raises(ValueError, match=r"predicted\[1\] is nan"):
        doubly_robust(logged, place, 3, np.array([0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"predicted has shape \[2\]"):
        doubly_robust(logged, place, 3, np.zeros(2))


def test_snips_says_when_the_log_knows_nothing_of_the_new_order() -> None:
    logged, _ = planted()
    with pytest.raises(ValueError, match="agrees with the logged one at none of its first 1 places in 2 lists"):
        snips(logged, np.array([0, 1, 2, 1, 0, 2]), 1)


# --- the simulated shop, whose truth is known ---


def test_a_shop_that_does_not_explore_logs_no_propensities_and_removes_old_ones(tmp_path: Path) -> None:
    """Propensities of an earlier log would be taken for this one's."""
    simulate(SHOP, tmp_path)
    assert (tmp_path / "propensities.parquet").exists()
    simulate(SHOP.model_copy(update={"explore": 0.0}), tmp_path)
    assert not (tmp_path / "propensities.parquet").exists()


def test_an_exploring_shop_writes_the_same_bytes_again(tmp_path: Path) -> None:
    simulate(SHOP, tmp_path / "a")
    simulate(SHOP, tmp_path / "b")
    name = "propensities.parquet"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_propensities_are_those_of_a_shuffled_share(tmp_path: Path) -> None:
    """A shown item stands at its own place with 0.6 / 6 + 0.4, elsewhere with 0.6 / 6; lists keep their own order in
    0.4 of cases and each item its own place in 1 / 6 of the others."""
    shop = simulated(SHOP, tmp_path)
    assert np.unique(shop.logged.propensity.round(6)).tolist() == [0.1, 0.5]
    assert (shop.logged.propensity > 0.4).mean() == pytest.approx(0.4 + 0.6 / 6, abs=0.03)
    fully = simulated(SHOP.model_copy(update={"explore": 1.0}), tmp_path)
    assert set(fully.logged.propensity) == {1 / 6}


def test_estimates_lie_within_their_intervals_of_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    """Twelve shops: 95% intervals hold the truth in ten or more (fewer has a chance of 2%)."""
    within = coverage(12, tmp_path)
    assert all(count >= 10 for count in within.values()), within


@pytest.mark.slow
def test_estimates_lie_within_their_intervals_of_the_truth_in_90_of_100_shops(tmp_path: Path) -> None:
    within = coverage(100, tmp_path)
    assert all(count >= 90 for count in within.values()), within


def test_weights_average_to_1_and_wrong_propensities_show(tmp_path: Path) -> None:
    """With propensities half of what they were, weights average to 2."""
    shop = simulated(SHOP, tmp_path)
    place = ordered(shop, shop.utility)
    assert ips(shop.logged, place, K).weight == pytest.approx(1, abs=0.15)
    wrong = replace(shop.logged, propensity=shop.logged.propensity / 2)
    assert ips(wrong, place, K).weight == pytest.approx(2, abs=0.3)


def test_self_normalising_and_predicting_narrow_the_interval(tmp_path: Path) -> None:
    shop = simulated(SHOP, tmp_path)
    place = ordered(shop, shop.utility)
    widths = {name: f.high - f.low for name, f in ((n, e(shop, place)) for n, e in ESTIMATORS.items())}
    assert widths["snips"] < widths["ips"]
    assert widths["doubly_robust"] < widths["ips"]
