"""The incremental estimate: who counts, with which purchases, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.earnings import Holdout, Settings, holdouts, why_not_incremental
from serving.config import ExperimentConfig
from tests.offline.earnings.logs import DAY, Log, settings_of

TRIAL = Holdout("trial", ("held", "ranked"), (1.0, 1.0), 28.0)


def settings(**earnings: Any) -> Settings:
    return settings_of(**earnings)._replace(holdouts=[TRIAL])


def shown(log: Log, at: float, user: str, arm: str, placement: str = "home") -> Log:
    """A list of the trial, shown to a user."""
    request = f"q{len(log.served)}"
    log.serve(at, request, user, ["a"], placement, arms={"trial": arm})
    return log.show(at, request, user, ["a"], placement)


def last(tables: dict[str, Any], outcome: str = "revenue") -> dict[str, Any]:
    """The last estimate of the treated arm."""
    return dict(tables["experiments"][0]["treated"][0]["outcomes"][outcome][-1])


def test_it_is_the_difference_per_user_times_the_treated_users(tmp_path: Path) -> None:
    """Held users bought for 10, 20 and 0, treated ones for 30, 50, 0 and 0; what was shown does not matter."""
    log = Log()
    for user, arm, spent in [
        *(("h1", "held", 10.0), ("h2", "held", 20.0), ("h3", "held", 0.0)),
        *(("t1", "ranked", 30.0), ("t2", "ranked", 50.0), ("t3", "ranked", 0.0), ("t4", "ranked", 0.0)),
    ]:
        shown(log, 0, user, arm)
        if spent:
            log.event(100, "purchase", user, "b", value=spent)
    tables = log.earnings(tmp_path, settings())
    found, held, ranked = last(tables), np.array([10.0, 20.0, 0.0]), np.array([30.0, 50.0, 0.0, 0.0])
    difference = 80 / 4 - 30 / 3
    assert found["value"] == pytest.approx(4 * difference)
    assert (found["per_user"], found["of_holdout"]) == pytest.approx((difference, 30 / 3))
    together = (3 * held.var(ddof=1) + 4 * ranked.var(ddof=1)) / (3 + 4)
    half = 1.959964 * (together * (1 / 3 + 1 / 4)) ** 0.5
    assert found["fixed_low"] == pytest.approx(4 * (difference - half))
    assert found["low"] < found["fixed_low"] < found["fixed_high"] < found["high"]
    assert tables["experiments"][0]["holdout_users"] == 3
    assert found["users"] == 4


def test_purchases_before_the_first_list_and_long_after_the_last_do_not_count(tmp_path: Path) -> None:
    """The last list of the trial is on day 5 and the window is a day, so purchases on day 7 are not of the trial."""
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        log.event(10, "purchase", f"u{k}", "a", value=1000.0)
        shown(log, 2 * DAY, f"u{k}", arm)
        log.event(2 * DAY + 10, "purchase", f"u{k}", "a", value=1.0 + k)
        shown(log, 5 * DAY, f"u{k}", arm)
        log.event(7 * DAY, "purchase", f"u{k}", "a", value=500.0 * k)
    tables = log.earnings(tmp_path, settings())
    assert last(tables)["value"] == pytest.approx(2 * ((3 + 4) / 2 - (1 + 2) / 2))
    assert tables["shop"]["total"]["purchases"] == 12


def test_a_served_list_without_impressions_is_an_exposure(tmp_path: Path) -> None:
    """As in reports of experiments: here, impressions are reported for the first user of each arm only, and an empty
    list exposes nobody."""
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        log.serve(0, f"q{k}", f"u{k}", ["a"], arms={"trial": arm}).event(10, "purchase", f"u{k}", "b", value=5.0 + k)
        if k % 2:
            log.show(0, f"q{k}", f"u{k}", ["a"])
    log.serve(0, "empty", "u9", [], arms={"trial": "ranked"})
    tables = log.earnings(tmp_path, settings())
    assert (tables["experiments"][0]["holdout_users"], last(tables)["users"]) == (2, 2)
    assert last(tables)["value"] == pytest.approx(2 * ((7 + 8) / 2 - (5 + 6) / 2))


def test_a_return_is_subtracted(tmp_path: Path) -> None:
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        shown(log, 0, f"u{k}", arm).event(10, "purchase", f"u{k}", "a", value=5.0 + k)
        log.event(20, "purchase", f"u{k}", "a", value=-1.0 - 2 * (k % 2))
    assert last(log.earnings(tmp_path, settings()))["value"] == pytest.approx(2 * ((6 + 5) / 2 - (4 + 3) / 2))


def test_a_user_with_lists_of_both_arms_is_counted_and_left_out(tmp_path: Path) -> None:
    """As a guest in one arm, and after the login in the other."""
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        shown(log, 0, f"u{k}", arm).event(10, "purchase", f"u{k}", "a", value=5.0 + k)
    shown(log, 0, "guest", "held").merge(50, "guest", "both")
    shown(log, 100, "both", "ranked").event(110, "purchase", "both", "a", value=1000.0)
    tables = log.earnings(tmp_path, settings())
    assert (tables["experiments"][0]["in_two_arms"], last(tables)["users"]) == (1, 2)
    assert last(tables)["value"] == pytest.approx(2 * ((7 + 8) / 2 - (5 + 6) / 2))


def test_each_day_has_the_estimate_up_to_its_end(tmp_path: Path) -> None:
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        shown(log, 0, f"u{k}", arm).event(10, "purchase", f"u{k}", "a", value=5.0 + k)
        shown(log, 1.5 * DAY, f"u{k}", arm).event(1.6 * DAY, "purchase", f"u{k}", "a", value=10.0 * k)
    days = log.earnings(tmp_path, settings())["experiments"][0]["treated"][0]["outcomes"]["revenue"]
    assert [d["day"] for d in days] == ["2024-10-04", "2024-10-05"]
    assert [d["value"] for d in days] == pytest.approx([2 * (15 - 11) / 2, 2 * (15 - 11 + 50 - 10) / 2])


def test_margins_are_estimated_as_revenue_is(tmp_path: Path) -> None:
    """An a costs 6."""
    log = Log()
    for k, arm in enumerate(["held", "held", "ranked", "ranked"]):
        shown(log, 0, f"u{k}", arm).event(10, "purchase", f"u{k}", "a", value=8.0 + k)
    tables = log.earnings(tmp_path, settings(margin="margin"), margin=[4.0, 5.0, None, None])
    assert last(tables, "margin")["value"] == pytest.approx(2 * ((10 + 11) / 2 - (8 + 9) / 2))
    assert last(tables, "margin")["of_holdout"] == pytest.approx((8 + 9) / 2 - 6)


def test_wrong_numbers_of_users_give_an_alarm(tmp_path: Path) -> None:
    """540 users in one arm and 60 in the other, where halves were planned."""
    log = Log()
    for k in range(600):
        shown(log, k, f"u{k}", "held" if k % 10 else "ranked")
    tables = log.earnings(tmp_path, settings())
    assert tables["experiments"][0]["sample_ratio"]["alarm"]
    assert last(tables)["value"] == 0.0
    assert last(tables)["low"] is None, "nobody has bought anything"


def test_an_experiment_that_the_configuration_does_not_know_has_only_last_touch(tmp_path: Path) -> None:
    log = shown(shown(Log(), 0, "u", "held"), 0, "v", "ranked").event(5, "purchase", "v", "a", value=3.0)
    tables = log.earnings(tmp_path, settings_of())
    assert tables["experiments"] == []
    assert [(e["arm"], e["total"]["revenue"]) for e in tables["arms"]] == [("held", 0.0), ("ranked", 3.0)]
    assert tables["not_incremental"] == [{"experiment": "trial", "reason": "it is not in the configuration"}]


def test_only_experiments_over_users_with_a_holdout_are_incremental() -> None:
    """Every other one has its reason."""
    arms: dict[str, Any] = {"held": {"order": "popularity"}, "ranked": {}}
    configs: dict[str, Any] = {
        "trial": {"arms": arms},
        "sessions": {"arms": arms, "unit": "session"},
        "mixed": {"arms": {"old": {}, "new": {}}, "interleave": True},
        "releases": {"arms": {"old": {}, "new": {"release": "r2"}}},
    }
    experiments = {name: ExperimentConfig.model_validate(config) for name, config in configs.items()}
    assert [h.experiment for h in holdouts(experiments)] == ["trial"]
    reasons = {name: reason.split()[1:4] for name, reason in why_not_incremental(experiments).items()}
    assert reasons == {
        "sessions": ["unit", "is", "the"], "mixed": ["lists", "mix", "both"], "releases": ["has", "no", "holdout,"],
    }  # fmt: skip
