"""The sections on probabilities of outcomes and on objectives: reliability, and what lists earn by the weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.content import DRAWN, HEADLINE, entries
from offline.evaluation.report.formatting import count, decimal, display_name, finite
from offline.evaluation.report.plots import Plot, Trade, drawable, plot, reliability, trade_off

_NAMES = {"click": "click", "cart": "cart", "purchase": "purchase"}
_EARNED = "earned:"


def probabilities(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """A reliability plot of each outcome, and a table of every slice; None without probabilities."""
    found = page["outcomes"].get("reliability")
    by_outcome = {o: s for o, s in found.items() if isinstance(s, dict)} if isinstance(found, dict) else {}
    if not by_outcome:
        return None
    plots = [(outcome, _reliability(outcome, by_slice)) for outcome, by_slice in by_outcome.items()]
    return {
        "lists": page["outcomes"].get("lists"),
        "plots": [(_NAMES.get(outcome, outcome), drawn) for outcome, drawn in plots if drawn],
        "rows": [
            [f"{_NAMES.get(outcome, outcome)}, {display_name(name)}", *_cells(one)]
            for outcome, by_slice in by_outcome.items()
            for name, one in by_slice.items()
            if isinstance(one, dict)
        ],
    }


def _reliability(outcome: str, by_slice: Mapping[str, Any]) -> Plot | None:
    lines = {
        display_name(name): bins
        for name in DRAWN
        if isinstance(one := by_slice.get(name), dict) and (bins := _bins(one))
    }
    return plot(f"reliability {outcome}", 10, partial(reliability, lines=lines, outcome=outcome)) if lines else None


def _bins(one: Mapping[str, Any]) -> list[tuple[float, float]]:
    pairs = [(drawable(row.get("predicted")), drawable(row.get("observed"))) for row in entries(one.get("bins"))]
    return [(p, o) for p, o in pairs if p is not None and o is not None and 0 <= p <= 1 and 0 <= o <= 1]


def _cells(one: Mapping[str, Any]) -> list[str]:
    means = [_percent(one.get(key)) for key in ("predicted", "observed", "error")]
    losses = [decimal(one.get(key), 4) for key in ("log_loss", "log_loss_of_rate")]
    return [count(one.get("lists")), *means, *losses]


def _percent(value: object) -> str:
    return "-" if (number := finite(value)) is None else f"{100 * number:.2f}%"


def objectives(page: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each objective its title, its plot and its table, or the reason why it has none."""
    return [_objective(k, one) for k, one in enumerate(page["objectives"])]


def _objective(number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    points = entries(one.get("points"))
    value = str(one.get("value"))
    names = sorted({n.removeprefix(_EARNED) for p in points for n in p if n.startswith(_EARNED)})
    first = value if value in names else next(iter(names), value)
    trades = {
        label: [trade for p in points if (trade := _trade(p, prefix, first))]
        for label, prefix in (("observed", ""), ("expected", "expected_"), ("off-policy", "off_policy_"))
    }
    trades = {label: line for label, line in trades.items() if len(line) > 1}
    has_off_policy = any(n.startswith("off_policy_") for p in points for n in p)
    labels = f"change of earned {first}", "change of clicks"
    draw = partial(trade_off, lines=trades, xlabel=labels[0], ylabel=labels[1], wide=("off-policy",))
    head = ["weight", HEADLINE, "clicks", *(f"earned {n}" for n in names), *(f"expected {n}" for n in names)]
    columns = [HEADLINE, "clicks", *(f"{_EARNED}{n}" for n in names), *(f"expected_{_EARNED}{n}" for n in names)]
    if has_off_policy:
        head += ["off-policy clicks", *(f"off-policy {n}" for n in names)]
        columns += ["off_policy_clicks", *(f"off_policy_{_EARNED}{n}" for n in names)]
    placements, outcomes = (
        found if isinstance(found := one.get(key), dict) else {} for key in ("placements", "outcomes")
    )
    return {
        "title": f"{' and '.join(outcomes) or 'outcomes'} times {value}, floor {decimal(one.get('floor'), 2)}",
        "placements": [f"{name} (weight {decimal(weight, 2)})" for name, weight in placements.items()],
        "problem": one.get("problem"),
        "lists": one.get("lists"),
        "lists_of": one.get("lists_of"),
        "plot": plot(f"trade-off {number}", 14, draw) if trades else None,
        "first": first,
        "head": head,
        "rows": [[decimal(p.get("weight"), 2), *(_figure(p, name) for name in columns)] for p in points],
    }


def _trade(point: Mapping[str, Any], prefix: str, name: str) -> Trade | None:
    """(weight, change of the amount, change of clicks), both as (value, low, high) in percent; zeros at weight 0."""
    weight = drawable(point.get("weight"))
    if weight == 0:
        return (0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)) if f"{prefix}clicks" in point else None
    pair = [point.get(f"change_{prefix}{n}") for n in (f"{_EARNED}{name}", "clicks")]
    ends = [tuple(drawable(end) for end in one) if isinstance(one, list) and len(one) == 3 else () for one in pair]
    if weight is None or any(len(one) != 3 or None in one for one in ends):
        return None
    return weight, ends[0], ends[1]  # type: ignore[return-value]


def _figure(point: Mapping[str, Any], name: str) -> str:
    """A figure, and its change from weight 0 with the interval."""
    value, change = point.get(name), point.get(f"change_{name}")
    text = decimal(value[0], 3) if isinstance(value, list) and value else "-"
    if isinstance(change, list) and len(change) == 3:
        low, high = (decimal(end, 1, signed=True) for end in change[1:])
        text += f" ({decimal(change[0], 1, signed=True)}% [{low}, {high}])"
    return text
