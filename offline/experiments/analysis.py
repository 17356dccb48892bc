"""The result of an experiment: sample ratio, differences of all metrics from the control, guardrails and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from offline.experiments.database import DAY_US
from offline.experiments.design import Design, Observed
from offline.experiments.metrics import GUARDRAILS, METRICS, Metric
from offline.experiments.statistics import (
    ALPHA,
    UNIT,
    Interval,
    Moments,
    SampleRatio,
    contrast,
    estimate,
    interval,
    sample_ratio,
    tuned_target,
)
from offline.runtime import DataError

SCHEMA = 1
LEAST = 100
"""Units an arm needs before it is compared: with fewer, the normal approximation is poor."""
INVALID, EMPTY, BETTER, WORSE, UNDECIDED = "invalid", "no data", "better", "worse", "undecided"
"""Outcomes of a verdict."""


class Look(NamedTuple):
    """The difference and its always-valid interval at the end of a day. at: Unix seconds. units: of both arms."""

    at: float
    units: int
    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A metric of an arm against the control.

    control, value: of the two arms, adjusted for outcomes before the start where `explained`, the share of the variance
    that these explain, is above 0. difference: arm minus control, in units of the metric. relative: the same divided by
    the control's value, with intervals on the scale of logs; its `se` is that of the log of the ratio. looks: one per
    day. decided: the first look whose interval excludes zero, None without one.
    """

    metric: str
    arm: str
    control: float
    value: float
    difference: Interval
    relative: Interval
    explained: float
    looks: tuple[Look, ...]
    decided: float | None


class Verdict(NamedTuple):
    """outcome: see the constants. arm: the best arm, if one is better. text: the same in words. harmed: guardrails that
    are worse in that arm, or in any arm without a better one."""

    outcome: str
    arm: str | None
    text: str
    harmed: tuple[str, ...] = ()


class Report(NamedTuple):
    """Everything about an experiment. totals: by arm and column. comparisons: of metrics, the deciding one first."""

    design: Design
    metric: str
    alpha: float
    ratio: SampleRatio
    totals: Mapping[str, Mapping[str, float]]
    comparisons: tuple[Comparison, ...]
    guardrails: tuple[Comparison, ...]
    verdict: Verdict
    counts: Mapping[str, int]
    since: float
    days: float


def analyse(found: Observed, design: Design, metric: str = "revenue", alpha: float = ALPHA) -> Report:
    """The result so far.

    metric: the one that decides; the interval of every other metric is for itself. alpha: of all arms together, divided
    among them (Bonferroni). Raises DataError for an unknown metric.
    """
    if metric not in METRICS:
        raise DataError(f"--metric {metric}: no such metric; choose one of {', '.join(METRICS)}")
    since = found.first_us / 1e6
    if found.preference is not None:
        return _interleaved(found, found.preference, design, alpha)
    if found.moments is None:
        ratio = sample_ratio(np.zeros((0, len(design.arms))), design.shares)
        return Report(design, metric, alpha, ratio, {}, (), (), _no_units(design), found.counts, since, 0.0)
    moments = found.moments
    ratio = sample_ratio(moments.units, design.shares)
    each = alpha / (len(design.arms) - 1)
    ordered = [metric, *(name for name in METRICS if name != metric)]
    comparisons = [c for name in ordered for c in _compare(found, moments, design, name, METRICS[name], each)]
    guardrails = [c for name, g in GUARDRAILS.items() for c in _compare(found, moments, design, name, g, each)]
    totals = {
        arm: {name: float(moments.sums[-1, k, 0, moments.columns.index(name)]) for name in moments.columns}
        for k, arm in enumerate(design.arms)
    }
    verdict = _verdict(design, ratio, metric, comparisons, guardrails)
    return Report(
        design, metric, alpha, ratio, totals, tuple(comparisons), tuple(guardrails), verdict, found.counts, since,
        float(found.days[-1]),
    )  # fmt: skip


def _compare(
    found: Observed, moments: Moments, design: Design, name: str, metric: Metric, alpha: float
) -> list[Comparison]:
    """The metric of each arm against the control; none if no arm has the outcome."""
    if not np.isfinite(totals := moments.totals(metric.numerator)[-1]).all() or not (totals != 0).any():
        return []
    measured = estimate(moments, metric.numerator, metric.denominator, metric.covariates, LEAST)
    out = []
    for k, arm in enumerate(design.arms[1:], 1):
        c = contrast(measured, k)
        target = tuned_target(c.time, found.days, design.planned_days)
        units = (moments.units[:, 0] + moments.units[:, k]).round().astype(int).tolist()
        each = [interval(*pair, alpha) for pair in zip(c.value, c.variance, c.time, [target] * len(units), strict=True)]
        log_ratio = np.log1p(c.relative[-1]) if c.relative[-1] > -1 else np.nan
        relative = _ratio(interval(float(log_ratio), float(c.log_variance[-1]), float(c.time[-1]), target, alpha))
        ends = _ends(found)
        looks = tuple(Look(at, n, i.value, i.low, i.high) for at, n, i in zip(ends, units, each, strict=True))
        decided = next((look.at for look in looks if look.low > 0 or look.high < 0), None)
        values = measured.value[-1]
        out.append(
            Comparison(
                name, arm, float(values[0]), float(values[k]), each[-1], relative, float(measured.explained[-1]),
                looks, decided,
            )
        )  # fmt: skip
    return out


def _ratio(log: Interval) -> Interval:
    """The interval of a relative difference from that of the log of the ratio, so that none is below -100%.

    NaN if the standard error of the log is above 1: nothing is known then, and a log is no approximation.
    """
    if not log.se <= 1:
        return Interval(*[np.nan] * 8)
    ends = np.expm1([log.value, log.low, log.high, log.fixed_low, log.fixed_high])
    value, low, high, fixed_low, fixed_high = (float(e) for e in ends)
    return Interval(value, log.se, low, high, log.p, fixed_low, fixed_high, log.fixed_p)


def _ends(found: Observed) -> list[float]:
    """Unix seconds of the end of each look's day; the last one is the end of the log."""
    ends = found.first_us / 1e6 + DAY_US / 1e6 * np.arange(1, len(found.days) + 1)
    if len(found.days) > 1 and found.days[-1] - found.days[-2] < 1:
        ends[-1] = ends[-2] + (found.days[-1] - found.days[-2]) * DAY_US / 1e6
    return [float(e) for e in ends]


def _no_units(design: Design) -> Verdict:
    return Verdict(EMPTY, None, f"No list of {design.name} was served to a {design.unit} yet.")


def harmed(guardrail: Comparison, design: Design) -> bool:
    """True if a guardrail is worse than in the control by more than the accepted margin, wherever in its always-valid
    interval the difference is."""
    margin: float = getattr(design.margins, guardrail.metric)
    difference = guardrail.difference
    worse = difference.low > margin if GUARDRAILS[guardrail.metric].harm > 0 else difference.high < -margin
    return bool(worse)


def _verdict(
    design: Design, ratio: SampleRatio, metric: str, comparisons: list[Comparison], guardrails: list[Comparison]
) -> Verdict:
    primary = [c for c in comparisons if c.metric == metric]
    worse = tuple(dict.fromkeys(f"{g.metric} in {g.arm}" for g in guardrails if harmed(g, design)))
    if ratio.alarm:
        return Verdict(
            INVALID, None,
            "The arms do not have the units that their shares say. Do not use any difference below before the cause is "
            "found.",
            worse,
        )  # fmt: skip
    if not sum(ratio.units):
        return _no_units(design)
    if not primary:
        return Verdict(UNDECIDED, None, f"No arm has any {metric} yet.", worse)
    if design.is_null:
        off = [c.arm for c in primary if c.difference.sign]
        text = (
            f"The arms are the same, but {', '.join(off)} differs: look for an error in assignment or logging."
            if off else "The arms are the same, and no difference is found, as it should be."
        )  # fmt: skip
        return Verdict(INVALID if off else UNDECIDED, None, text, worse)
    return _decide(design, metric, primary, guardrails, worse)


def _decide(
    design: Design, metric: str, primary: list[Comparison], guardrails: list[Comparison], worse: tuple[str, ...]
) -> Verdict:
    label = METRICS[metric].label.replace("unit", design.unit)
    better = sorted((c for c in primary if c.difference.sign > 0), key=lambda c: -c.difference.value)
    for c in better:
        hurt = tuple(g.metric for g in guardrails if g.arm == c.arm and harmed(g, design))
        text = f"{c.arm} is better than {design.arms[0]}: {label} {_percent(c.relative)}."
        if hurt:
            text += f" But it is worse in {', '.join(hurt)}: decide whether that is worth it."
        return Verdict(BETTER, c.arm, text, hurt)
    if all(c.difference.sign < 0 for c in primary):
        return Verdict(WORSE, None, f"Every arm is worse than {design.arms[0]} in {label}.", worse)
    open_arms = [c.arm for c in primary if not c.difference.sign]
    if all(np.isnan(c.difference.low) for c in primary):
        return Verdict(UNDECIDED, None, f"An arm has fewer than {LEAST} {design.unit}s: too few to compare.", worse)
    between = f"{design.arms[0]} and {', '.join(open_arms)}"
    return Verdict(UNDECIDED, None, f"No difference in {label} is certain yet between {between}.", worse)


def _percent(relative: Interval) -> str:
    if np.isnan(relative.low):
        return "higher"
    return f"{relative.value:+.1%} [{relative.low:+.1%}, {relative.high:+.1%}]"


def _interleaved(found: Observed, preference: Moments, design: Design, alpha: float) -> Report:
    """The result of interleaving: the share of decided lists that prefer the second arm, minus one half.

    Chapelle, Joachims, Radlinski and Yue, "Large-scale validation and analysis of interleaved search evaluation" (TOIS
    2012). Lists of one unit are not independent, so the variance is over units.
    """
    measured = estimate(preference, "preference", "decided", (), LEAST)
    value, variance = measured.value[:, 0] / 2, measured.variance[:, 0] / 4
    time = np.square(measured.base[:, 0]) * variance
    target = tuned_target(time, found.days, design.planned_days)
    each = [interval(v, s, t, target, alpha) for v, s, t in zip(value, variance, time, strict=True)]
    units = preference.units[:, 0].round().astype(int).tolist()
    looks = tuple(Look(at, n, i.value, i.low, i.high) for at, n, i in zip(_ends(found), units, each, strict=True))
    decided = next((look.at for look in looks if look.low > 0 or look.high < 0), None)
    unknown = Interval(*[np.nan] * 8)
    arm = design.arms[1]
    comparison = Comparison("preference", arm, 0.5, 0.5 + value[-1], each[-1], unknown, 0.0, looks, decided)
    sign = each[-1].sign
    outcome = {1: BETTER, -1: WORSE, 0: UNDECIDED}[sign]
    text = {
        1: f"Lists prefer {arm}: {0.5 + value[-1]:.1%} of those with an action, where half is no difference.",
        -1: f"Lists prefer {design.arms[0]} to {arm}.",
        0: f"No preference between {design.arms[0]} and {arm} is certain yet.",
    }[sign]
    totals = {"both": {name: float(preference.totals(name)[-1, 0]) for name in preference.columns}}
    ratio = SampleRatio((units[-1],), (1.0,), 1.0, None)
    verdict = Verdict(outcome, arm if sign > 0 else None, text)
    since = found.first_us / 1e6
    return Report(
        design,
        "preference",
        alpha,
        ratio,
        totals,
        (comparison,),
        (),
        verdict,
        found.counts,
        since,
        float(found.days[-1]),
    )


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON values. Numbers that are not known are null."""

    def at(seconds: float) -> str:
        return datetime.fromtimestamp(seconds, UTC).isoformat()

    def comparison(c: Comparison) -> dict[str, Any]:
        return {
            **c._asdict(),
            "difference": c.difference._asdict(),
            "relative": c.relative._asdict(),
            "looks": [look._asdict() | {"at": at(look.at)} for look in c.looks],
            "decided": None if c.decided is None else at(c.decided),
        }

    d = report.design
    out: dict[str, Any] = _finite(
        {
            "schema": SCHEMA,
            "experiment": d.name,
            "arms": list(d.arms),
            "unit": d.unit,
            "is_null": d.is_null,
            "interleaved": d.interleaved,
            "metric": report.metric,
            "level": 1 - report.alpha,
            "since": at(report.since),
            "days": report.days,
            "sample_ratio": report.ratio._asdict() | {"alarm": report.ratio.alarm},
            "verdict": report.verdict._asdict(),
            "totals": report.totals,
            "metrics": [comparison(c) for c in report.comparisons],
            "guardrails": [comparison(c) | {"harmed": harmed(c, d)} for c in report.guardrails],
            "counts": dict(report.counts),
        }
    )
    return out


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def units_of(report: Report) -> Mapping[str, int]:
    """Number of units by arm."""
    return {arm: round(total[UNIT]) for arm, total in report.totals.items()}
