"""Report of a closed loop: quality by day with intervals, the outcome of each nightly run, and a plot."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from features.arrays import F64, I64
from offline.config.simulation import SimulateConfig
from ranker.metrics import intervals, paired_difference
from tests.bench.visitors import Line, Played

ORDERS = {"live": "trained every night", "kept": "first release kept", "popularity": "popularity"}
"""Labels of the compared orders, the loop's own first."""
_COLOURS = {"live": "#0b6e99", "kept": "#c2571a", "popularity": "#777777"}


def summary(days: list[tuple[Played, dict[str, Any]]], shop: SimulateConfig) -> dict[str, Any]:
    """ndcg@10 of each order with its interval over shoppers, and the lead over each other one, by day and overall.

    whole: figures of all days as a flat object. days: one object per day, with its nightly run.
    """
    per_day = [
        {
            "day": k + 1,
            **_measure(*_values(played)),
            "clicks": played.clicks,
            "purchases": played.purchases,
            "events": played.events,
            "night": night,
        }
        for k, (played, night) in enumerate(days)
    ]
    parts = [_values(played) for played, _ in days]
    together = _measure(
        {arm: np.concatenate([value[arm] for value, _ in parts]) for arm in ORDERS},
        np.concatenate([user for _, user in parts]),
    )
    outcomes = Counter(night["outcome"] for _, night in days)
    whole = {
        **{arm: together["ndcg@10"][arm][0] for arm in ORDERS},
        "lists": together["lists"],
        **{
            f"lead_over_{arm}{end}": together["lead"][arm][key]
            for arm in ("kept", "popularity")
            for end, key in (("", "difference"), ("_low", "low"), ("_high", "high"))
        },
        "days": len(days),
        "published": outcomes["published"],
        **_experiment([line for played, _ in days for line in played.lines]),
    }
    return {
        "whole": whole,
        "together": together,
        "outcomes": dict(outcomes),
        "days": per_day,
        "shop": shop.model_dump(mode="json"),
    }


def _experiment(lines: list[Line]) -> dict[str, Any]:
    """Lists by arm, and the true relative effect on clicks per list, `lift`; empty without an experiment."""
    arms = Counter(line.arm for line in lines if line.arm is not None)
    if not arms:
        return {}
    control, changed = np.array([line.expected for line in lines if line.arm is not None]).sum(axis=0)
    return {"lift": float(changed / control - 1.0), "arms": dict(arms)}


def _values(played: Played) -> tuple[dict[str, F64], I64]:
    value = {arm: np.array([line.ndcg[arm] for line in played.lines], np.float64) for arm in ORDERS}
    return value, np.array([line.user for line in played.lines], np.int64)


def _measure(value: dict[str, F64], user: I64) -> dict[str, Any]:
    """`lists`, `ndcg@10` of each order as [mean, low, high], and `lead` of the first order over the others."""
    mean, low, high = intervals(np.column_stack(list(value.values())), user)
    ndcg = {arm: [float(mean[k]), float(low[k]), float(high[k])] for k, arm in enumerate(value)}
    own, *others = value
    lead = {arm: asdict(paired_difference(value[own], value[arm], user)) for arm in others}
    return {"lists": len(user), "ndcg@10": ndcg, "lead": lead}


def draw(report: dict[str, Any], path: Path) -> None:
    """Plot `summary` as SVG.

    Above, a line per order with its interval as a band; 1 is the best possible order. Below, the lead over the first
    release, paired by request.
    """
    days = [d["day"] for d in report["days"]]
    settings = {"svg.hashsalt": "loop", "svg.fonttype": "path", "font.size": 9}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained", facecolor="white")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        above.axhline(1, color="#222222", linewidth=1)
        above.annotate("best possible order", (days[0], 1), (0, -11), textcoords="offset points")
        for arm, label in ORDERS.items():
            mean, low, high = zip(*(d["ndcg@10"][arm] for d in report["days"]), strict=True)
            above.plot(days, mean, marker="o", markersize=3, color=_COLOURS[arm], label=label)
            above.fill_between(days, low, high, color=_COLOURS[arm], alpha=0.15, linewidth=0)
        leads = [d["lead"]["kept"] for d in report["days"]]
        lead_mean = np.array([lead["difference"] for lead in leads])
        error = np.abs([[lead["low"], lead["high"]] for lead in leads] - lead_mean[:, None]).T
        below.errorbar(days, lead_mean, error, fmt="o", markersize=4, color=_COLOURS["live"], elinewidth=1)
        below.axhline(0, color="#222222", linewidth=0.8)
        unpublished = [d["day"] + 0.5 for d in report["days"] if d["night"]["outcome"] != "published"]
        if unpublished:
            below.plot(unpublished, [0] * len(unpublished), "x", color="#b00020", label="nightly run did not publish")
            below.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        above.set(ylabel="ndcg@10 of expected gain", ylim=(None, 1.03))
        below.set(xlabel="day", ylabel="lead over the\nfirst release", xticks=days)
        for axes in (above, below):
            axes.grid(axis="y", alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        above.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(path, format="svg", metadata=no_metadata)
