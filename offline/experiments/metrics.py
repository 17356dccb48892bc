"""The metrics of an experiment: outcomes per unit and per list, and guardrails."""

from __future__ import annotations

from typing import NamedTuple

from offline.experiments.statistics import UNIT

ACTIONS = ("clicks", "carts", "purchases", "revenue", "margin")
"""Outcomes of the actions of a unit. revenue, margin: of purchases, by `Prices`."""
_BEFORE = ("clicks_before", "carts_before", "purchases_before")


class Metric(NamedTuple):
    """A ratio of two columns of the moments. covariates: columns that it is adjusted for. harm: direction in which a
    guardrail is harmed, 0 for another metric. digits: decimals to print."""

    label: str
    numerator: str
    denominator: str
    covariates: tuple[str, ...] = ()
    harm: int = 0
    digits: int = 4


METRICS = {
    **{
        name: Metric(f"{name} per unit", name, UNIT, tuple(dict.fromkeys((f"{name}_before", *_BEFORE))))
        for name in ACTIONS
    },
    **{f"{name} per list": Metric(f"{name} per list", name, "lists") for name in ACTIONS},
    "lists": Metric("lists per unit", "lists", UNIT),
}
"""By name. The metric that decides is one of these, chosen before the start."""
GUARDRAILS = {
    "latency": Metric("ms per list", "ms", "timed", harm=1, digits=2),
    "degraded": Metric("degraded share", "degraded", "lists", harm=1),
    "diversity": Metric("diversity", "diversity", "varied", harm=-1, digits=3),
}
