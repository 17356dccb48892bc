"""The model sections: text encoder, ranker, feature importance, calibration, learning curve and model age."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.content import HEADLINE, entries
from offline.evaluation.report.formatting import count, decimal, display_name, finite, truncate
from offline.evaluation.report.plots import Plot, Points, bars, calibration, curve, drawable, plot, swarm

_MOST_BARS = 20
_MOST_SWARMS = 15


def encoder(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings of the text encoder's fine-tuning, and its loss and validation metrics by epoch."""
    found = page["encoder"]
    if not found:
        return None
    labels = {"model": "model", "mode": "mode", "stopped_by": "stopped by"}
    facts = [f"{label} {found[key]}" for key, label in labels.items() if found.get(key) is not None]
    facts += [f"{count(found['examples'])} examples"] if found.get("examples") is not None else []
    if isinstance(unread := found.get("unread"), int) and unread:
        facts.append(f"{count(unread)} items without a text vector, because encoder.read_s ended before they were read")
    epochs = entries(found.get("curve"))
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch if name not in ("epoch", "loss")))
    # Epoch 0 is the encoder before training, which has no loss.
    losses = [(x, y) for x, y in _points(epochs, "epoch", "loss") if x != 0]
    validation = {name: _points(epochs, "epoch", name) for name in names}
    return {
        "facts": facts,
        "best_epoch": epoch if isinstance(epoch := found.get("best_epoch"), int) else None,
        "loss": curve("encoder training loss", {"loss": losses}, "epoch"),
        "validation": curve("encoder on validation", validation, "epoch"),
    }


def ranker(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """The trees: their training curve, and the split gain of each feature."""
    found = page["ranker"]
    if not found:
        return None
    line = [(float(tree), drawable(value)) for tree, value in enumerate(found.get("curve") or [], 1)]
    rows = [[*row, None, None, None][:3] for row in found.get("importance") or [] if isinstance(row, list)]
    gains = [(truncate(name, 34), g) for name, _, gain in rows if (g := finite(gain)) is not None]
    total = sum(max(g, 0.0) for _, g in gains) or 1.0
    # Divide first: 100 times the largest float is infinite. Round: an axis cannot show the smallest floats.
    bars_drawn = [(name, round(100 * (max(g, 0.0) / total), 6)) for name, g in gains[:_MOST_BARS]]
    draw = partial(bars, rows=bars_drawn, xlabel="% of gain", form="{:.1f}")
    return {
        "trees": found.get("trees"),
        "curve": curve("ranker", {HEADLINE: line}, "trees", drawable(found.get("trees"))),
        "importance": plot("importance", len(bars_drawn), draw) if bars_drawn else None,
        "drawn": len(bars_drawn),
        "features": [[name, about, decimal(gain, 1)] for name, about, gain in rows],
    }


def diagnostics(page: Mapping[str, Any]) -> dict[str, Any]:
    """Plots of calibration and of the learning curve, each None where it is missing."""
    found, points = page["calibration"], page["learning_curve"]
    rates = _points(entries(found.get("bins")), "predicted", "observed")
    bins = [(p, o) for p, o in rates if p is not None and o is not None and 0 <= p <= 1 and 0 <= o <= 1]
    return {
        "calibration": plot("calibration", 10, partial(calibration, bins=bins)) if bins else None,
        "error": decimal(found.get("error")),
        "learning": _with_band("learning curve", points, "lists", "training lists"),
    }


def age(page: Mapping[str, Any]) -> dict[str, Any]:
    """The metric by model age, as a plot and as a table with what each age loses."""
    points = page["staleness"]
    rows = [[count(p.get("days")), count(p.get("lists")), decimal(p.get(HEADLINE)), _lost(p)] for p in points]
    return {"rows": rows, "plot": _with_band("age", points, "days", "days old")}


def _lost(point: Mapping[str, Any]) -> str:
    low, high = decimal(point.get("lost_low")), decimal(point.get("lost_high"))
    return f"{decimal(point.get('lost'))} [{low}, {high}]"


def explanation(page: Mapping[str, Any]) -> dict[str, Any] | None:
    """SHAP values of test rows, by feature and by feature group."""
    found = page["explanation"]
    features = [f for f in entries(found.get("features")) if drawable(f.get("mean_abs")) is not None]
    if not features:
        return None
    shown = features[:_MOST_SWARMS]
    means = [(truncate(f.get("name"), 34), float(f["mean_abs"])) for f in shown]
    groups = [
        (display_name(g.get("group")), mean)
        for g in entries(found.get("groups"))
        if (mean := drawable(g.get("mean_abs"))) is not None
    ]
    swarms = [(truncate(f.get("name"), 34), _swarm_points(f.get("points"))) for f in shown]
    draw_swarm = partial(swarm, rows=swarms, xlabel="SHAP value, in score units")
    draw_bars = partial(bars, xlabel="mean |SHAP|, in score units", form="{:.3f}")
    return {
        "rows": found.get("rows"),
        "drawn": len(shown),
        "swarm": plot("shap swarm", round(1.6 * len(shown)), draw_swarm),
        "means": plot("shap", len(means), partial(draw_bars, rows=means)),
        "groups": plot("shap groups", len(groups), partial(draw_bars, rows=groups)) if groups else None,
        "features": [[f.get("name"), f.get("group"), f.get("about"), decimal(f["mean_abs"], 4)] for f in features],
    }


def _points(rows: list[dict[str, Any]], x: str, y: str) -> Points:
    return [(drawable(row.get(x)), drawable(row.get(y))) for row in rows]


def _with_band(name: str, rows: list[dict[str, Any]], x: str, xlabel: str) -> Plot | None:
    """The headline metric by `x`, with its interval shaded."""
    band = [(drawable(row.get(x)), drawable(row.get("low")), drawable(row.get("high"))) for row in rows]
    return curve(name, {HEADLINE: _points(rows, x, HEADLINE)}, xlabel, band=band)


def _swarm_points(points: object) -> list[tuple[float, float | None]]:
    """(SHAP value, rank of the feature's value from 0 to 1) of each row; None where the value is missing."""
    pairs = [p for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
    ranked = [(drawable(x), finite(v)) for x, v in pairs]
    return [(x, None if v is None else min(max(v, 0.0), 1.0)) for x, v in ranked if x is not None]
