"""What became of a closed loop: quality by day with intervals, each night's outcome, and a plot."""

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
from tests.bench.visitors import Played

ORDERS = {"live": "trained every night", "kept": "first release kept", "popularity": "popularity"}
"""The orders that are compared, in words, the loop's own first."""
_COLOURS = {"live": "#0b6e99", "kept": "#c2571a", "popularity": "#777777"}


def summary(days: list[tuple[Played, dict[str, Any]]], shop: SimulateConfig) -> dict[str, Any]:
    """By day and of all days: ndcg@10 of each order with its interval over shoppers, and the lead over each other one.

    whole: figures of all days as one flat object. days: one object a day, with its night.
    """
    per_day = [
        {
            "day": k + 1,
            **_measured(*_values(played)),
            "clicks": played.clicks,
            "purchases": played.purchases,
            "events": played.events,
            "night": night,
        }
        for k, (played, night) in enumerate(days)
    ]
    parts = [_values(played) for played, _ in days]
    together = _measured(
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
    }
    return {
        "whole": whole,
        "together": together,
        "outcomes": dict(outcomes),
        "days": per_day,
        "shop": shop.model_dump(mode="json"),
    }


def _values(played: Played) -> tuple[dict[str, F64], I64]:
    value = {arm: np.array([line.ndcg[arm] for line in played.lines], np.float64) for arm in ORDERS}
    return value, np.array([line.user for line in played.lines], np.int64)


def _measured(value: dict[str, F64], user: I64) -> dict[str, Any]:
    """`lists`, `ndcg@10` of each order as [mean, low, high], and `lead` of the first over the others."""
    mean, low, high = intervals(np.column_stack(list(value.values())), user)
    found = {arm: [float(mean[k]), float(low[k]), float(high[k])] for k, arm in enumerate(value)}
    own, *others = value
    lead = {arm: asdict(paired_difference(value[own], value[arm], user)) for arm in others}
    return {"lists": len(user), "ndcg@10": found, "lead": lead}


def draw(found: dict[str, Any], path: Path) -> None:
    """The plot of `summary` as SVG: a line an order, a band its interval, 1 the best possible order; below, the lead
    over the first release, paired by request."""
    days = [d["day"] for d in found["days"]]
    settings = {"svg.hashsalt": "loop", "svg.fonttype": "path", "font.size": 9}
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained", facecolor="white")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        above.axhline(1, color="#222222", linewidth=1)
        above.annotate("best possible order", (days[0], 1), (0, -11), textcoords="offset points")
        for arm, words in ORDERS.items():
            mean, low, high = zip(*(d["ndcg@10"][arm] for d in found["days"]), strict=True)
            above.plot(days, mean, marker="o", markersize=3, color=_COLOURS[arm], label=words)
            above.fill_between(days, low, high, color=_COLOURS[arm], alpha=0.15, linewidth=0)
        leads = [d["lead"]["kept"] for d in found["days"]]
        mean = np.array([lead["difference"] for lead in leads])
        beyond = np.abs([[lead["low"], lead["high"]] for lead in leads] - mean[:, None]).T
        below.errorbar(days, mean, beyond, fmt="o", markersize=4, color=_COLOURS["live"], elinewidth=1)
        below.axhline(0, color="#222222", linewidth=0.8)
        refused = [d["day"] + 0.5 for d in found["days"] if d["night"]["outcome"] != "published"]
        if refused:
            below.plot(refused, [0] * len(refused), "x", color="#b00020", label="night that did not publish")
            below.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        above.set(ylabel="ndcg@10 of expected gain", ylim=(None, 1.03))
        below.set(xlabel="day", ylabel="lead over the\nfirst release", xticks=days)
        for axes in (above, below):
            axes.grid(axis="y", alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        above.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        path.parent.mkdir(parents=True, exist_ok=True)
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(path, format="svg", metadata=nothing)
