"""Verdicts of planted experiments: effects, none, a broken sample ratio, outliers, guardrails and several arms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.experiments import page
from offline.experiments.analysis import BETTER, EMPTY, INVALID, UNDECIDED, WORSE, Report, analyse, to_json
from offline.experiments.database import COLUMNS, PREFERENCE
from offline.experiments.design import Design, Observed
from offline.experiments.planning import milestones, plan
from offline.experiments.shipping import decide
from offline.experiments.statistics import UNIT, Moments
from offline.runtime import DataError, Failure
from serving.config import Margins

DAYS, MIDNIGHT_US = 10, 1_780_272_000_000_000
TEST = Design(
    "test",
    ("control", "new"),
    (1.0, 1.0),
    planned_days=14,
    placements=("home",),
    changes={"control": {}, "new": {"release": "r2"}},
)


def observed(
    arms: Sequence[Mapping[str, Any]], units: Sequence[int], seed: int = 0, counts: dict[str, int] | None = None
) -> Observed:
    """An experiment whose units arrive evenly over ten days and act at once.

    arms: mean of each column by arm, drawn from a Poisson distribution; a function draws a column itself.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((DAYS, len(arms), len(COLUMNS), len(COLUMNS)))
    for k, (means, n) in enumerate(zip(arms, units, strict=True)):
        values = np.zeros((n, len(COLUMNS)))
        values[:, 0] = 1
        for name, mean in ({"lists": 2} | dict(means)).items():
            values[:, COLUMNS.index(name)] = mean(rng, n) if callable(mean) else rng.poisson(mean, n)
        for look in range(DAYS):
            seen = values[: n * (look + 1) // DAYS]
            sums[look, k] = seen.T @ seen
    return Observed(Moments(COLUMNS, sums), None, MIDNIGHT_US, np.arange(1.0, DAYS + 1), counts or {})


def primary(report: Report) -> Any:
    return next(c for c in report.comparisons if c.metric == report.metric)


def test_a_large_effect_is_better_with_its_interval() -> None:
    """2.0 clicks against 2.4 per user, which is +20%."""
    report = analyse(observed([{"clicks": 2.0}, {"clicks": 2.4}], [4000, 4000]), TEST, "clicks")
    assert (report.verdict.outcome, report.verdict.arm) == (BETTER, "new")
    c = primary(report)
    assert c.difference.low < 0.4 < c.difference.high
    assert c.relative.low < 0.2 < c.relative.high
    assert re.match(r"new is better than control: clicks per user \+\d\d\.\d% \[\+", report.verdict.text)
    assert c.decided is not None
    assert c.decided <= MIDNIGHT_US / 1e6 + DAYS * 86400
    assert len(c.looks) == DAYS
    assert c.looks[-1].units == 8000


def test_no_effect_is_undecided_and_a_loss_is_worse() -> None:
    assert (
        analyse(observed([{"clicks": 2.0}, {"clicks": 2.0}], [4000, 4000]), TEST, "clicks").verdict.outcome == UNDECIDED
    )
    assert analyse(observed([{"clicks": 2.4}, {"clicks": 2.0}], [4000, 4000]), TEST, "clicks").verdict.outcome == WORSE


def test_a_sample_ratio_mismatch_overrules_any_effect() -> None:
    report = analyse(observed([{"clicks": 2.0}, {"clicks": 3.0}], [5200, 4000]), TEST, "clicks")
    assert report.ratio.alarm
    assert (report.verdict.outcome, report.verdict.arm) == (INVALID, None)


def test_one_large_order_on_the_first_day_decides_nothing() -> None:
    """The first user of the new arm spends a million."""

    def revenue(rng: np.random.Generator, n: int) -> np.ndarray:
        values = rng.exponential(20, n) * (rng.random(n) < 0.1)
        values[0] = 1e6
        return values

    usual = {"revenue": lambda rng, n: rng.exponential(20, n) * (rng.random(n) < 0.1)}
    for units in ([2000, 2000], [3600, 400]):
        design = replace(TEST, shares=(units[0], units[1]))
        report = analyse(observed([usual, {"revenue": revenue}], units), design)
        c = primary(report)
        assert c.decided is None
        assert report.verdict.outcome == UNDECIDED


@pytest.mark.parametrize("units", [[0, 0], [1, 0], [1, 1], [200, 1], [99, 500]])
def test_few_units_give_no_interval(units: list[int]) -> None:
    """Up to a single unit, and an empty arm: no warning and no verdict."""
    design = replace(TEST, shares=(1.0, 1.0) if units[0] == units[1] else (float(units[0]), max(float(units[1]), 1e-3)))
    report = analyse(observed([{"clicks": 2.0}] * 2, units), design, "clicks")
    assert report.verdict.outcome == (UNDECIDED if any(units) else EMPTY)
    assert all(np.isnan(c.difference.low) for c in report.comparisons)
    json.dumps(to_json(report), allow_nan=False)
    assert "<svg" not in page.render(report) or any(units)


def test_nobody_exposed_is_no_data() -> None:
    report = analyse(Observed(None, None, 0, np.empty(0), {}), TEST)
    assert report.verdict.outcome == EMPTY
    json.dumps(to_json(report), allow_nan=False)
    page.render(report)


def test_a_harmed_guardrail_is_named_in_the_verdict() -> None:
    """The better arm takes 30 ms per list against 20."""
    arms = [{"clicks": c, "timed": 2, "ms": 2 * ms} for c, ms in ((2.0, 20), (2.4, 30))]
    report = analyse(observed(arms, [4000, 4000]), TEST, "clicks")
    assert (report.verdict.arm, report.verdict.harmed) == ("new", ("latency",))
    with pytest.raises(Failure, match=r"worse in latency.*--force"):
        decide(report, {}, "new")
    assert decide(report, {}, force=True).problems


@pytest.mark.parametrize(
    ("metric", "values", "margin", "harmed"),
    [
        ("latency", (20, 23), 5.0, False),
        ("latency", (20, 23), 2.0, True),
        ("latency", (20, 23), 2.999, False),
        ("diversity", (0.6, 0.5), 0.2, False),
        ("diversity", (0.6, 0.4), 0.1, True),
        ("diversity", (0.5, 0.6), 0.05, False),
    ],
)
def test_harm_within_the_margin_is_accepted(
    metric: str, values: tuple[float, float], margin: float, harmed: bool
) -> None:
    """The whole interval must be beyond the margin: 3 ms more are not certainly more than 2.999."""
    columns = {"latency": ("timed", "ms"), "diversity": ("varied", "diversity")}[metric]
    arms = [{"clicks": c, columns[0]: 2, columns[1]: 2 * v} for c, v in zip((2.0, 2.4), values, strict=True)]
    design = replace(TEST, margins=Margins(**{metric: margin}))
    assert analyse(observed(arms, [4000, 4000]), design, "clicks").verdict.harmed == ((metric,) if harmed else ())


def test_a_faster_arm_is_not_harmed() -> None:
    arms = [{"clicks": 2.0, "timed": 2, "ms": 2 * ms} for ms in (30, 20)]
    assert analyse(observed(arms, [4000, 4000]), TEST, "clicks").verdict.harmed == ()


def test_an_a_a_test_that_differs_says_so() -> None:
    null = replace(TEST, changes={"control": {}, "new": {}})
    quiet = analyse(observed([{"clicks": 2.0}] * 2, [4000, 4000]), null, "clicks")
    assert (quiet.verdict.outcome, quiet.verdict.text[:18]) == (UNDECIDED, "The arms are the s")
    loud = analyse(observed([{"clicks": 2.0}, {"clicks": 2.4}], [4000, 4000]), null, "clicks")
    assert loud.verdict.outcome == INVALID
    assert "look for an error" in loud.verdict.text


def test_several_arms_share_the_error_probability() -> None:
    """Four arms against the control: the intervals are those of alpha / 4, so they are wider."""
    four = replace(TEST, arms=("control", "a", "b", "c", "d"), shares=(1.0,) * 5, changes=None)
    clicks = [{"clicks": 2.0}] * 4 + [{"clicks": 2.4}]
    found = observed(clicks, [3000] * 5)
    report = analyse(found, four, "clicks")
    assert report.verdict.arm == "d"
    alone = analyse(found, four, "clicks", alpha=4 * 0.05)
    wide, narrow = primary(report).difference, primary(alone).difference
    assert wide.high - wide.low > narrow.high - narrow.low
    two = analyse(observed(clicks[-2:], [3000] * 2), TEST, "clicks")
    assert primary(two).difference.low == pytest.approx(
        analyse(observed(clicks[-2:], [3000] * 2), TEST, "clicks", alpha=0.05).comparisons[0].difference.low
    )


def test_adjusting_for_the_time_before_narrows_the_interval() -> None:
    """Clicks follow those before the start, so most of their variance is explained, and the effect stays."""

    def planted(lift: float) -> Observed:
        rng = np.random.default_rng(5)
        sums = np.zeros((1, 2, len(COLUMNS), len(COLUMNS)))
        for k in range(2):
            x = np.zeros((2000, len(COLUMNS)))
            x[:, 0] = x[:, COLUMNS.index("lists")] = 1
            before = rng.gamma(0.5, 4, 2000)
            x[:, COLUMNS.index("clicks_before")] = before
            x[:, COLUMNS.index("clicks")] = before + rng.normal(0, 0.5, 2000) + lift * k
            sums[0, k] = x.T @ x
        return Observed(Moments(COLUMNS, sums), None, MIDNIGHT_US, np.array([1.0]), {})

    report = analyse(planted(0.1), TEST, "clicks")
    c = primary(report)
    assert c.explained > 0.9
    assert c.difference.low < 0.1 < c.difference.high
    assert report.verdict.outcome == BETTER, "0.1 is 6 adjusted standard errors, and one without"


def interleaving(preferences: tuple[float, float, float], units: int = 2000) -> Observed:
    """Units with two decided lists each; probabilities of a preference for the control, of a tie, and for the arm."""
    rng = np.random.default_rng(3)
    sums = np.zeros((DAYS, 1, 4, 4))
    x = np.ones((units, 4))
    x[:, 1] = x[:, 2] = 2
    x[:, 3] = rng.choice([-1, 0, 1], (units, 2), p=preferences).sum(axis=1)
    for look in range(DAYS):
        seen = x[: units * (look + 1) // DAYS]
        sums[look, 0] = seen.T @ seen
    return Observed(None, Moments(PREFERENCE, sums), MIDNIGHT_US, np.arange(1.0, DAYS + 1), {})


def test_interleaving_estimates_the_share_of_lists_that_prefer_an_arm() -> None:
    """0.5 for, 0.2 ties and 0.3 against: 0.5 + 0.2 / 2 = 60% prefer the arm."""
    design = replace(TEST, interleaved=True)
    report = analyse(interleaving((0.3, 0.2, 0.5)), design)
    c = report.comparisons[0]
    assert c.value == pytest.approx(0.6, abs=0.02)
    assert (report.verdict.outcome, report.verdict.arm) == (BETTER, "new")
    assert c.difference.low < 0.1 < c.difference.high
    assert analyse(interleaving((0.4, 0.2, 0.4)), design).verdict.outcome == UNDECIDED
    assert analyse(interleaving((0.5, 0.2, 0.3)), design).verdict.outcome == WORSE


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(DataError, match="--metric profit: no such metric; choose one of clicks, carts"):
        analyse(observed([{"clicks": 1}] * 2, [200, 200]), TEST, "profit")


def test_the_page_shows_the_mismatch_first_and_escapes_names() -> None:
    """Even if an arm had markup in its name."""
    design = replace(TEST, arms=("control", "<b>new"), changes=None)
    html = page.render(
        analyse(observed([{"clicks": 2.0}, {"clicks": 3.0}], [5200, 4000], counts={"lists without items": 3}), design)
    )
    assert html.index("Sample ratio mismatch") < html.index("Differences from the control")
    assert "<b>new" not in html
    assert "&lt;b&gt;new" in html
    assert "3 lists without items" in html
    assert "<script" not in html
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_a_plan_finds_the_known_effect() -> None:
    """Means of 2 with variance 2, and 5,000 users in each half: the standard error is sqrt(2 (1/2500 + 1/2500)) / 2."""
    found = observed([{"clicks": 2.0}], [5000])
    made = plan(found, "clicks", (1, 1))
    last = made.durations[-1]
    assert (last.days, last.units) == (10, 5000)
    se = np.sqrt(2 * 2 / 2500) / 2
    assert last.fixed == pytest.approx((1.960 + 0.842) * se, rel=0.03)
    assert last.always == pytest.approx((3.035 + 0.842) * se, rel=0.03)
    assert made.needed(0.5) == made.durations[0] or made.needed(0.5) is not None
    assert made.needed(0.001) is None
    half = plan(found, "clicks", (1, 1), traffic=0.25).durations[-1]
    assert half.units == 1250
    assert half.fixed == pytest.approx(2 * last.fixed)
    assert [d.days for d in milestones(made.durations)] == [7, 10]


def test_a_plan_without_data_says_what_is_missing() -> None:
    with pytest.raises(DataError, match="no lists of these placements"):
        plan(Observed(None, None, 0, np.empty(0), {}), "clicks", (1, 1))
    with pytest.raises(DataError, match="has no revenue"):
        plan(observed([{"clicks": 2.0}], [500]), "revenue", (1, 1))


def shipped(changes: Mapping[str, Any], known: Mapping[str, Any], **others: Any) -> Any:
    design = replace(TEST, changes={"control": {}, "new": changes}, **others)
    return decide(analyse(observed([{"clicks": 2.0}, {"clicks": 2.4}], [4000, 4000]), design, "clicks"), known)


def test_a_better_release_is_promoted() -> None:
    found = shipped({"release": "r2"}, {})
    assert (found.release, found.settings, found.problems) == ("r2", "", ())


def test_a_better_setting_is_yaml_for_its_placements() -> None:
    """Rules follow those that the placement has."""
    cap, pin = {"attribute": "brand", "most": 2}, {"item_id": "a", "position": 1}
    found = shipped(
        {"objective": {"weight": 0.3}, "rules": {"cap": [cap]}}, {"home": {"rules": {"cap": [pin]}}, "cart": {}}
    )
    assert found.release is None
    assert found.settings == (
        "placements:\n  home:\n    objective:\n      weight: 0.3\n    rules:\n      cap:\n"
        "      - item_id: a\n        position: 1\n      - attribute: brand\n        most: 2\n"
    )


def test_what_has_no_setting_is_refused() -> None:
    """Even with --force: there is nothing to do."""
    with pytest.raises(Failure, match="names no placement and the configuration has none"):
        shipped({"explore": 0.1}, {}, placements=())
    with pytest.raises(Failure, match="no setting makes that the default"):
        shipped({"order": "popularity"}, {})
    with pytest.raises(Failure, match=r"rules.filter and the arm both have a value"):
        shipped({"rules": {"filter": {"a": 1}}}, {"home": {"rules": {"filter": {"b": 1}}}})


def test_shipping_needs_a_verdict_or_force() -> None:
    """No difference, a mismatch, and an arm that is not the best."""
    even = analyse(observed([{"clicks": 2.0}] * 2, [4000, 4000]), TEST, "clicks")
    with pytest.raises(Failure, match="There is no arm to ship"):
        decide(even, {})
    with pytest.raises(Failure, match=r"not certain to be better.*--force"):
        decide(even, {}, "new")
    assert decide(even, {}, "new", force=True).release == "r2"
    broken = analyse(observed([{"clicks": 2.0}, {"clicks": 3.0}], [5200, 4000]), TEST, "clicks")
    with pytest.raises(Failure, match="sample ratio"):
        decide(broken, {}, "new")
    with pytest.raises(Failure, match="has the arms control, new"):
        decide(even, {}, "old")


def test_the_page_is_written_whole(tmp_path: Path) -> None:
    report = analyse(observed([{"clicks": 2.0}, {"clicks": 2.4}], [400, 400]), TEST, "clicks")
    page.write(report, tmp_path / "experiment.html")
    assert (tmp_path / "experiment.html").read_text("utf-8") == page.render(report)
    assert to_json(report)["totals"]["new"][UNIT] == 400
