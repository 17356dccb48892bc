"""Experiments with known effects: what is stated, written and observed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from features.arrays import F64
from offline.config.simulation import SimulateConfig
from tests.bench.effects import CONTROL, EFFECTS, EXPERIMENT, Effect, Truth, simulate_experiment


def observed(directory: Path) -> tuple[F64, F64, dict[str, float]]:
    """(clicks, lists) of each shopper, control first: float64[2, users]; and the mean time of a list, by arm."""
    lists = ds.dataset(directory / "served").to_table().to_pylist()
    events = pq.read_table(directory / "events.parquet", columns=["event", "request_id"]).to_pylist()
    clicks: dict[str, int] = {}
    for event in events:
        if event["event"] == "click" and event["request_id"]:
            clicks[event["request_id"]] = clicks.get(event["request_id"], 0) + 1
    users: dict[tuple[int, str], list[float]] = {}
    took: dict[str, list[float]] = {}
    for row in lists:
        if row["experiments"] is None:
            continue
        ((name, arm),) = row["experiments"]
        assert name == EXPERIMENT
        took.setdefault(arm, []).append(row["took_ms"])
        total = users.setdefault((int(arm != CONTROL), row["user_id"]), [0.0, 0.0])
        total[0] += clicks.get(row["request_id"], 0)
        total[1] += 1
    assert len({user for _, user in users}) == len(users), "a shopper stays in their arm"
    sums = [np.array([t for (a, _), t in users.items() if a == arm]) for arm in (0, 1)]
    return sums[0], sums[1], {arm: float(np.mean(of)) for arm, of in took.items()}


def lift_and_error(control: F64, arm: F64) -> tuple[float, float]:
    """The observed relative effect on clicks per list, with its standard error over shoppers (delta method)."""
    rate, variance = [], []
    for sums in (control, arm):
        rate.append(sums[:, 0].sum() / sums[:, 1].sum())
        residual = sums[:, 0] - rate[-1] * sums[:, 1]
        variance.append((residual**2).sum() / sums[:, 1].sum() ** 2 / rate[-1] ** 2)
    ratio = rate[1] / rate[0]
    return ratio - 1, float(ratio * np.sqrt(sum(variance)))


def test_a_novelty_fades_by_half_in_its_half_life() -> None:
    assert Effect(odds=0.5, half_life_days=2.0).odds_at(np.array([0.0, 2.0, 4.0])).tolist() == [0.5, 0.25, 0.125]
    assert EFFECTS["large"].odds_at(100.0) == EFFECTS["large"].odds


def test_an_arm_without_an_effect_has_a_lift_of_zero(tmp_path: Path) -> None:
    truth = simulate_experiment(SimulateConfig(items=60, users=60, days=4), "null", tmp_path, start=2)
    assert truth.lift == 0
    assert truth.lists > 0
    assert Truth(10, 2.0, 3.0, 0, 0).lift == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("effect", ["large", "broken", "novelty"])
def test_the_observed_effect_is_the_true_one(tmp_path: Path, effect: str) -> None:
    """Within 4 standard errors, which are below a tenth of the clicks."""
    truth = simulate_experiment(SimulateConfig(users=1500, days=14), effect, tmp_path, start=4)
    control, arm, _ = observed(tmp_path)
    lift, error = lift_and_error(control, arm)
    assert error < 0.1
    assert abs(lift - truth.lift) < 4 * error
    assert control[:, 1].sum() + arm[:, 1].sum() == truth.lists


def test_a_slow_arm_is_slow_in_the_log(tmp_path: Path) -> None:
    simulate_experiment(SimulateConfig(items=100, users=100, days=6), "slow", tmp_path, start=2)
    took = observed(tmp_path)[2]
    assert took["slow"] > 500 > 50 > took[CONTROL]
