"""Off-policy estimates: planted lists with known values, rejected inputs, and coverage of the simulated truth."""

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
from ranker.offpolicy import Estimate, LoggedLists, doubly_robust, doubly_robust_change, ips, places, snips

SHOP = SimulateConfig(
    items=40, users=200, days=10, lists_per_user_day=0.6, list_length=6, new_items_per_day=0, explore=0.6
)
K = 3


def planted() -> tuple[LoggedLists, I64]:
    """(two logged lists of three items, positions in the new order). Each list agrees with it at one position."""
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
    """A simulated log with the item and the true utility of each row."""

    logged: LoggedLists
    item: I64
    utility: F64

    def value(self, place: I64, k: int) -> float:
        """True value of an order on these lists: utility times the examination probability of the position."""
        examination = power_law(int(place.max()) + 1, POSITION_BIAS)[place]
        return float((self.utility * examination)[place < k].sum() / len(self.logged))


def simulated(config: SimulateConfig, directory: Path) -> Shop:
    simulate(config, directory)
    events, truth, propensities = (
        pq.read_table(directory / f"{f}.parquet").to_pandas() for f in ("events", "truth", "propensities")
    )
    gains = dict(zip(KINDS, GAIN.tolist(), strict=True))
    in_lists = events[events.request_id.notna()].assign(gain=lambda e: e.event.map(gains))
    gain = in_lists.groupby(["request_id", "item_id"]).gain.max()
    users = in_lists.groupby("request_id").user_id.first()
    key = ["request_id", "item_id"]
    rows = propensities.merge(truth, on=key).merge(gain.reset_index(), on=key)
    rows = rows.sort_values(key, kind="stable")
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
    """Predicted gains: mean gain of the item, shrunk, times the effect of the position, both from the other half of the
    users."""
    user = shop.logged.cluster[shop.logged.group] % 2
    out = np.empty(len(place))
    for half in (0, 1):
        gain, item, at = (a[user != half] for a in (shop.logged.gain, shop.item, shop.logged.position))
        mean = gain.mean()
        by_item = (np.bincount(item, gain, 500) + 20 * mean) / (np.bincount(item, minlength=500) + 20)
        by_position = np.bincount(at, gain) / np.bincount(at) / mean
        out[user == half] = (by_item[shop.item] * by_position[place])[user == half]
    return out


ESTIMATORS: dict[str, Callable[[Shop, I64], Estimate]] = {
    "ips": lambda shop, place: ips(shop.logged, place, K),
    "snips": lambda shop, place: snips(shop.logged, place, K),
    "doubly_robust": lambda shop, place: doubly_robust(shop.logged, place, K, predicted(shop, place)),
}


def coverage(seeds: int, directory: Path) -> dict[str, int]:
    """Number of simulated shops in which the interval of each estimator contains the true value."""
    within = dict.fromkeys([*ESTIMATORS, "change"], 0)
    for seed in range(seeds):
        shop = simulated(SHOP.model_copy(update={"seed": seed}), directory / "shop")
        # The order to evaluate is by true utility, which differs from the shown order.
        place = ordered(shop, shop.utility)
        true = shop.value(place, K)
        for name, estimator in ESTIMATORS.items():
            estimate = estimator(shop, place)
            within[name] += estimate.low <= true <= estimate.high
        # The change from an order by the mean gains of items; the predictions are the same at every position.
        mean = predicted(shop, np.zeros_like(place))
        old = ordered(shop, mean)
        _, low, high = doubly_robust_change(shop.logged, place, old, K, mean)
        within["change"] += low <= true / shop.value(old, K) - 1 <= high
    return within


# --- planted lists ---


def test_ips_weights_each_match_by_its_inverse_propensity() -> None:
    """Each list agrees with the new order at one position, with a propensity of one half."""
    logged, place = planted()
    # List 0: row 0 is logged at 1 and goes to 1: weight 1 / 0.5, gain 0. List 1: row 4 is logged at 2 and goes to 2:
    # weight 1 / 0.5, gain 0; row 3 is logged at 0 and goes to 1; row 5 is logged at 1 and goes to 0.
    estimate = ips(logged, place, 3)
    assert (estimate.value, estimate.matches, estimate.weight) == (0, 2, (2 + 2) / 6)
    # Gain 4 at the match of list 0, and 1 at the match of list 1.
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert ips(richer, place, 3).value == (4 / 0.5 + 1 / 0.5) / 2
    assert ips(richer, place, 2).value == (4 / 0.5) / 2
    assert ips(richer, place, 1).value == 0


def test_snips_divides_by_the_sum_of_the_weights() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert snips(richer, place, 3).value == pytest.approx(3 * (4 / 0.5 + 1 / 0.5) / (1 / 0.5 + 1 / 0.5))


def test_doubly_robust_adds_the_predictions_and_their_weighted_errors() -> None:
    """Sum of the predictions of both lists, plus weight times (gain - prediction) of the two matches."""
    logged, place = planted()
    q = np.array([1.0, 0.5, 0.25, 0.0, 2.0, 1.0])
    value = (q.sum() + (0 - 1.0) / 0.5 + (0 - 2.0) / 0.5) / 2
    assert doubly_robust(logged, place, 3, q).value == pytest.approx(value)


def test_the_change_of_an_order_is_relative_to_the_old_one_and_certain_if_they_agree() -> None:
    """Two lists: 4 / 0.5 and 2 / 0.25 + 1 / 0.5 as they were logged, and 4 / 0.5 and 1 / 0.5 in the new order."""
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 0, 0, 2, 1, 0]))
    shown, nothing = np.array([1, 0, 2, 0, 2, 1]), np.zeros(6)
    change, low, high = doubly_robust_change(richer, place, shown, 3, nothing)
    assert change == pytest.approx(10 / 18 - 1)
    assert low < change < high
    assert doubly_robust_change(richer, shown, shown, 3, nothing) == (0.0, 0.0, 0.0)
    assert np.isnan(doubly_robust_change(replace(logged, gain=nothing), place, shown, 3, nothing)).all()


def test_without_predictions_doubly_robust_is_ips() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    assert ips(richer, place, 3) == doubly_robust(richer, place, 3, np.zeros(6))


def test_clipped_weights_are_counted_and_lower_the_value() -> None:
    """Both weights of 1 / 0.5 = 2 are clipped to 1.5: (4 + 1) * 1.5 / 2 lists."""
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    estimate = ips(richer, place, 3, clip=1.5)
    assert (estimate.value, estimate.clipped) == ((4 + 1) * 1.5 / 2, 1.0)
    assert ips(richer, place, 3, clip=2).clipped == 0


def test_the_value_of_the_logged_order_is_its_mean_gain() -> None:
    """Without randomisation all propensities are 1, and every estimate is the mean logged gain."""
    logged, _ = planted()
    certain = replace(logged, propensity=np.ones(6))
    place = logged.position.astype(np.int64)
    for estimate in (ips(certain, place, 3), snips(certain, place, 3)):
        assert (estimate.value, estimate.matches, estimate.effective) == ((1 + 3) / 2, 6, 6)


@given(
    k=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    explore=st.floats(0.05, 1.0),
    gain=st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
@settings(max_examples=25, deadline=None)
def test_ips_and_doubly_robust_are_unbiased_over_all_orders_that_can_be_logged(
    k: int, seed: int, explore: float, gain: list[int]
) -> None:
    """Four items whose gain depends on item and position. The expected estimate, over all 24 orders with the
    probabilities of the exploring shop, is the sum of the gains at the new positions, even with wrong predictions."""
    rng = np.random.default_rng(seed)
    gain_at = np.array(gain)[:, None] * rng.random(4)
    place = rng.permutation(4)
    start, cluster = np.array([0, 4]), np.array([0])
    value = robust = 0.0
    for order in permutations(range(4)):
        position = np.array(order)
        probability = explore / 24 + (1 - explore) * (order == (0, 1, 2, 3))
        propensity = explore / 4 + (1 - explore) * (position == np.arange(4))
        logged = LoggedLists(start, gain_at[np.arange(4), position], position, propensity, cluster)
        value += probability * ips(logged, place, k).value
        robust += probability * doubly_robust(logged, place, k, np.full(4, 1.7)).value
    true = gain_at[np.arange(4), place][place < k].sum()
    assert value == pytest.approx(true)
    assert robust == pytest.approx(true)


def test_snips_is_exact_for_a_constant_gain() -> None:
    """Every item gains 2 at any position: 3 positions have value 6 for any weights, with an interval of width 0."""
    logged, place = planted()
    estimate = snips(replace(logged, gain=np.full(6, 2)), place, 3)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((6, 6, 6))


def test_one_user_gives_a_value_but_no_interval() -> None:
    logged, place = planted()
    estimate = ips(replace(logged, cluster=np.array([7, 7])), place, 3)
    assert estimate.value == 0
    assert np.isnan([estimate.low, estimate.high]).all()


def test_a_higher_level_gives_a_wider_interval_around_the_value() -> None:
    logged, place = planted()
    richer = replace(logged, gain=np.array([4, 1, 0, 2, 1, 1]))
    narrow, wide = (ips(richer, place, 3, level=level) for level in (0.8, 0.95))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_places_sort_nan_last_and_break_ties_like_the_metrics() -> None:
    scores = np.array([np.nan, 2.0, 5.0, 1.0, 1.0])
    ties = np.array([0, 0, 0, 9, 3], np.uint64)
    assert places(scores, np.array([0, 3, 5]), ties).tolist() == [2, 1, 0, 1, 0]


# --- rejected inputs ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"propensity": np.array([0.5, 0.25, 0, 0.25, 0.5, 0.25])}, r"propensity\[2\] is 0.0, expected above 0"),
        ({"propensity": np.array([0.5, np.nan, 1, 0.25, 0.5, 0.25])}, r"propensity\[1\] is nan.*leave out the whole"),
        ({"propensity": np.array([0.5, 1.5, 1, 0.25, 0.5, 0.25])}, r"propensity\[1\] is 1.5"),
        ({"gain": np.array([0, 1, 0, np.inf, 0, 0])}, r"gain\[3\] is inf, expected a finite number"),
        ({"gain": np.zeros(5)}, r"gain has shape \[5\], expected \[6\]"),
        ({"position": np.array([1, 0, 2, 0, 2, 2])}, r"position of list 1 is \[0, 2, 2\]; expected each of 0 to 2"),
        ({"position": np.array([-1, 0, 2, 0, 2, 1])}, r"position of list 0 is \[-1, 0, 2\]"),
        ({"position": np.array([1.0, 0, 2, 0, 2, 1])}, "position is float64, expected integers"),
        ({"start": np.array([0, 3, 3, 6])}, r"start is \[0 3 3 6\]..., expected integers rising"),
        ({"start": np.array([0])}, r"start is \[0\]..., expected integers rising"),
        ({"cluster": np.array([1])}, r"cluster has shape \[1\], expected \[2\]"),
    ],
)
def test_an_invalid_log_is_rejected_with_the_row(change: dict[str, np.ndarray], message: str) -> None:
    logged, _ = planted()
    with pytest.raises(ValueError, match=message):
        replace(logged, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k=0"),
        ({"clip": 0.5}, "clip=0.5"),
        ({"clip": np.nan}, "clip=nan"),
        ({"level": 1.0}, "level=1.0"),
        ({"place": np.array([0, 1, 2, 0, 1, 1])}, r"place of list 1 is \[0, 1, 1\]"),
        ({"place": np.array([0, 1, 2])}, r"place has shape \[3\]"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, object], message: str) -> None:
    logged, place = planted()
    with pytest.raises(ValueError, match=message):
        ips(**{"logged": logged, "place": place, "k": 3, **arguments})  # type: ignore[arg-type]


def test_predictions_must_be_finite_with_one_per_row() -> None:
    logged, place = planted()
    with pytest.raises(ValueError, match=r"predicted\[1\] is nan"):
        doubly_robust(logged, place, 3, np.array([0, np.nan, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"predicted has shape \[2\]"):
        doubly_robust(logged, place, 3, np.zeros(2))


def test_snips_rejects_an_order_that_never_agrees_with_the_log() -> None:
    logged, _ = planted()
    with pytest.raises(
        ValueError, match="does not agree with the logged one at any of the first 1 positions of 2 lists"
    ):
        snips(logged, np.array([0, 1, 2, 1, 0, 2]), 1)


# --- the simulated shop, whose true values are known ---


def test_a_shop_without_exploration_logs_no_propensities_and_removes_old_ones(tmp_path: Path) -> None:
    """Propensities left from an earlier log would be mistaken for those of this log."""
    simulate(SHOP, tmp_path)
    assert (tmp_path / "propensities.parquet").exists()
    simulate(SHOP.model_copy(update={"explore": 0.0}), tmp_path)
    assert not (tmp_path / "propensities.parquet").exists()


def test_the_propensities_of_a_simulation_are_reproducible(tmp_path: Path) -> None:
    simulate(SHOP, tmp_path / "a")
    simulate(SHOP, tmp_path / "b")
    name = "propensities.parquet"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_propensities_match_the_share_of_shuffled_lists(tmp_path: Path) -> None:
    """60% of the lists of 6 are shuffled. The propensity is 0.6 / 6 + 0.4 for an item at its original position, else
    0.6 / 6. An item is at its original position in the 40% of lists in original order and in 1 / 6 of the others."""
    shop = simulated(SHOP, tmp_path)
    assert np.unique(shop.logged.propensity.round(6)).tolist() == [0.1, 0.5]
    assert (shop.logged.propensity > 0.4).mean() == pytest.approx(0.4 + 0.6 / 6, abs=0.03)
    fully = simulated(SHOP.model_copy(update={"explore": 1.0}), tmp_path)
    assert set(fully.logged.propensity) == {1 / 6}


def test_intervals_contain_the_true_value_at_their_nominal_rate(tmp_path: Path) -> None:
    """95% intervals contain the true value in at least 10 of 12 shops (probability of fewer: 2%)."""
    within = coverage(12, tmp_path)
    assert all(count >= 10 for count in within.values()), within


@pytest.mark.slow
def test_intervals_contain_the_true_value_in_at_least_90_of_100_shops(tmp_path: Path) -> None:
    within = coverage(100, tmp_path)
    assert all(count >= 90 for count in within.values()), within


def test_the_mean_weight_is_1_unless_propensities_are_wrong(tmp_path: Path) -> None:
    """If all propensities are too low by half, the mean weight is 2."""
    shop = simulated(SHOP, tmp_path)
    place = ordered(shop, shop.utility)
    assert ips(shop.logged, place, K).weight == pytest.approx(1, abs=0.15)
    wrong = replace(shop.logged, propensity=shop.logged.propensity / 2)
    assert ips(wrong, place, K).weight == pytest.approx(2, abs=0.3)


def test_snips_and_doubly_robust_have_narrower_intervals_than_ips(tmp_path: Path) -> None:
    shop = simulated(SHOP, tmp_path)
    place = ordered(shop, shop.utility)
    widths = {name: f.high - f.low for name, f in ((n, e(shop, place)) for n, e in ESTIMATORS.items())}
    assert widths["snips"] < widths["ips"]
    assert widths["doubly_robust"] < widths["ips"]
