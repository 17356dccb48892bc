"""The report of an experiment as one self-contained HTML page, like that of a nightly run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from offline.evaluation import report as evaluation
from offline.experiments.analysis import BETTER, INVALID, WORSE, Comparison, Report, harmed
from offline.experiments.metrics import GUARDRAILS, METRICS, Metric
from offline.runtime import write_text

_PREFERENCE = Metric("preference", "preference", "decided")


def write(report: Report, path: Path) -> None:
    """Write the page to a file, whole or not at all. The folder must exist."""
    write_text(path, render(report))


def render(report: Report) -> str:
    """The page. All text is escaped; a number that is not known is shown as "-"."""
    design, verdict = report.design, report.verdict
    at = partial(datetime.fromtimestamp, tz=UTC)
    outcome = {BETTER: "better", WORSE: "worse", INVALID: "worse"}.get(verdict.outcome, "")
    template = evaluation.environment("offline.experiments").get_template("experiment.html")
    return template.render(
        title=f"Experiment {design.name}",
        facts=[
            f"{report.days:,.1f} days since {at(report.since):%Y-%m-%d}",
            f"unit: {design.unit}",
            f"metric that decides: {label_of(report.metric, design.unit)}",
        ],
        verdict=verdict,
        outcome=outcome,
        ratio=report.ratio,
        level=f"{1 - report.alpha:.0%}",
        ratio_rows=ratio_rows(report),
        headline=_headline(report),
        timelines=[_timeline(c, design.unit) for c in report.comparisons if c.metric == report.metric],
        columns=["metric", "arm", "control", "arm's value", "difference", "always valid", "fixed horizon", "relative"],
        rows=[row(c, report) for c in report.comparisons],
        guardrails=guardrail_rows(report),
        notes=[f"{count:,} {name}" for name, count in report.counts.items()],
        is_null=design.is_null,
        arms=len(design.arms),
    )


def label_of(name: str, unit: str) -> str:
    """The label of a metric, with the name of the unit."""
    return _metric(name).label.replace("unit", unit)


def _metric(name: str) -> Metric:
    return METRICS.get(name) or GUARDRAILS.get(name) or _PREFERENCE


def ratio_rows(report: Report) -> list[list[str]]:
    """Each arm with its units, their share, and the share expected."""
    ratio, total = report.ratio, max(sum(report.ratio.units), 1)
    if report.design.interleaved:
        return [["both", f"{ratio.units[0]:,}", "-", "-"]]
    return [
        [arm, f"{units:,}", f"{units / total:.2%}", f"{share:.2%}"]
        for arm, units, share in zip(report.design.arms, ratio.units, ratio.shares, strict=True)
    ]


def guardrail_rows(report: Report) -> list[list[str]]:
    """The rows of the guardrails, each with the harm that is accepted, and whether it is worse by more."""
    return [
        [*row(g, report), f"{getattr(report.design.margins, g.metric):g}", "worse" if harmed(g, report.design) else "-"]
        for g in report.guardrails
    ]


def row(c: Comparison, report: Report) -> list[str]:
    """A comparison as a row of text: metric, arm, both values, difference, both intervals, relative difference."""
    decimal, digits = evaluation.formatting.decimal, _metric(c.metric).digits
    d, r = c.difference, c.relative

    def ends(low: float, high: float) -> str:
        return f"[{decimal(low, digits, True)}, {decimal(high, digits, True)}]"

    relative = "-" if np.isnan(r.low) else f"{r.value:+.1%} [{r.low:+.1%}, {r.high:+.1%}]"
    return [
        label_of(c.metric, report.design.unit),
        c.arm,
        decimal(c.control, digits),
        decimal(c.value, digits),
        decimal(d.value, digits, True),
        ends(d.low, d.high),
        ends(d.fixed_low, d.fixed_high),
        relative,
    ]


def _headline(report: Report) -> Any:
    """A plot of the relative differences of all metrics."""
    plots = evaluation.plots
    rows = []
    for c in report.comparisons:
        entry = {"value": 100 * c.relative.value, "low": 100 * c.relative.low, "high": 100 * c.relative.high}
        several = len(report.design.arms) > 2
        label = f"{c.metric}, {c.arm}" if several else c.metric
        colour = plots.ACCENT if c.metric == report.metric else plots.SOFT
        if not np.isnan(c.relative.low) and (found := plots.interval_row(label, entry, colour)):
            rows.append(found)
    if not rows:
        return None
    rows = rows[::-1]
    draw = partial(plots.dots, rows=rows, xlabel="% of the control", limits=plots.limits(rows), zero=True)
    return plots.plot("differences", len(rows), draw)


def _timeline(c: Comparison, unit: str) -> tuple[str, Any]:
    """(title, plot of the difference by day with its always-valid interval)."""
    drawable = evaluation.plots.drawable
    days: Sequence[int] = range(1, len(c.looks) + 1)
    line = [(float(day), drawable(look.value)) for day, look in zip(days, c.looks, strict=True)]
    band = [(float(day), drawable(look.low), drawable(look.high)) for day, look in zip(days, c.looks, strict=True)]
    title = f"{label_of(c.metric, unit)}: {c.arm} minus control"
    return title, evaluation.plots.curve(f"by day {c.arm}", {c.metric: line}, "day", band=band)
