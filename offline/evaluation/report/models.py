"""How the order comes about: the encoder, the trees, what they go by, whether more data would help."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from offline.evaluation.report.content import HEADLINE, entries, level
from offline.evaluation.report.formatting import count, decimal, display_name, escape, finite, truncate
from offline.evaluation.report.markup import collapsed, grid, note, table
from offline.evaluation.report.plots import bars, calibration, curve, drawable, plot, swarm

_MOST_BARS = 20
_MOST_SWARMS = 15


def encoder(page: Mapping[str, Any]) -> str:
    """How the text encoder was fine-tuned, and what it learned by epoch."""
    found = page["encoder"]
    if not found:
        return ""
    labels = {"model": "model", "mode": "mode", "stopped_by": "stopped by"}
    said = [f"{label} {escape(found[key])}" for key, label in labels.items() if found.get(key) is not None]
    said += [f"{count(found['examples'])} examples"] if found.get("examples") is not None else []
    line = entries(found.get("curve"))
    names = list(dict.fromkeys(name for point in line for name in point if name not in ("epoch", "loss")))
    # Before the first epoch nothing was trained, so there is no loss.
    losses = {"loss": [(e, drawable(p.get("loss"))) for p in line if (e := drawable(p.get("epoch"))) != 0]}
    held_out = {n: [(drawable(p.get("epoch")), drawable(p.get(n))) for p in line] for n in names}
    kept = f" Kept was epoch {count(found['best_epoch'])}." if isinstance(found.get("best_epoch"), int) else ""
    plots = curve(
        "encoder training loss",
        "<b>Text encoder</b>, training loss by epoch. It should fall, then flatten.",
        losses,
        "epoch",
    )
    plots += curve(
        "encoder on lists held out",
        "<b>Text encoder</b>, next items of shoppers held out, found by text alone. Epoch 0 is the encoder as it came; "
        f"see how far fine-tuning rises above it, and where it stops rising.{kept}",
        held_out,
        "epoch",
    )
    return f"<h2>Text encoder</h2><p>{'; '.join(said)}.</p>" + grid(plots)


def ranker(page: Mapping[str, Any]) -> str:
    """The trees: how they grew, and what they split on."""
    found = page["ranker"]
    if not found:
        return ""
    plots = _grown(found) + _importance(found)
    rows = _features(found)
    every = table(
        "What each feature is, by gain",
        ["feature", "about", "gain"],
        [[name, about, decimal(gain, 1)] for name, about, gain in rows],
        text_columns=2,
    )
    said = f"<p>{count(found['trees'])} trees.</p>" if found.get("trees") is not None else ""
    return (
        "<h2>Ranker</h2>" + said + grid(plots) + collapsed("Every feature, with what it means", every if rows else "")
    )


def trust(page: Mapping[str, Any]) -> str:
    """Whether scores can be read as rates, and whether more data would help."""
    plots = _calibration(page["calibration"]) + _learned(page["learning_curve"], level(page))
    return "<h2>How far scores can be trusted</h2>" + grid(plots) if plots else ""


def age(page: Mapping[str, Any]) -> str:
    """What a model loses by being some days old."""
    points = page["staleness"]
    if not points:
        return ""
    rows = [
        [
            count(p.get("days")),
            count(p.get("lists")),
            decimal(p.get(HEADLINE)),
            decimal(p.get("lost")),
            f"[{decimal(p.get('lost_low'))}, {decimal(p.get('lost_high'))}]",
        ]
        for p in points
    ]
    head = ["days old", "lists learnt from", HEADLINE, "lost", f"{level(page)}interval"]
    line = {HEADLINE: [(drawable(p.get("days")), drawable(p.get(HEADLINE))) for p in points]}
    band = [(drawable(p.get("days")), drawable(p.get("low")), drawable(p.get("high"))) for p in points]
    caption = (
        f"<b>Age</b>, {HEADLINE} on the same test lists by days since the model learnt; item state and users' lists "
        "are up to date. Where it falls, train that often."
    )
    return (
        "<h2>What age costs</h2>"
        + table("Models of different ages", head, rows)
        + grid(curve("age", caption, line, "days old", band=band))
    )


def _features(ranker: Mapping[str, Any]) -> list[list[Any]]:
    return [[*row, None, None, None][:3] for row in ranker.get("importance") or [] if isinstance(row, list)]


def _grown(ranker: Mapping[str, Any]) -> list[str]:
    line = [(float(tree), drawable(value)) for tree, value in enumerate(ranker.get("curve") or [], 1)]
    caption = (
        f"<b>Ranker</b>, {HEADLINE} on validation by tree. It should rise, then flatten; trees after the dashed line "
        "made it no better and were dropped."
    )
    return curve("ranker", caption, {HEADLINE: line}, "trees", drawable(ranker.get("trees")))


def _importance(ranker: Mapping[str, Any]) -> list[str]:
    rows = _features(ranker)
    total = sum(max(finite(gain) or 0.0, 0.0) for _, _, gain in rows) or 1.0
    # Divided first, as a hundred times the largest float is none; rounded, as no axis shows what is next to nothing.
    shown = [
        (truncate(name, 34), round(100 * (max(g, 0.0) / total), 6))
        for name, _, gain in rows
        if (g := finite(gain)) is not None
    ]
    shown = shown[:_MOST_BARS]
    if not shown:
        return []
    caption = (
        f"<b>Features</b>, the first {len(shown)} of {len(rows)} by share of the trees' gain: what the trees split on "
        "to order their training lists."
    )
    return [plot("importance", caption, len(shown), partial(bars, rows=shown, about="% of gain", form="{:.1f}"))]


def _calibration(found: Mapping[str, Any]) -> list[str]:
    bins = [
        (p, o)
        for b in entries(found.get("bins"))
        if (p := drawable(b.get("predicted"))) is not None
        and (o := drawable(b.get("observed"))) is not None
        and 0 <= p <= 1
        and 0 <= o <= 1
    ]
    if not bins:
        return []
    caption = (
        "<b>Calibration</b>, test rows in bins of equal size by predicted click rate, the map from score to rate "
        "fitted on validation. On the dashed line a prediction is what happens; above it clicks were more than "
        f"predicted. Mean distance {decimal(found.get('error'))}."
    )
    return [plot("calibration", caption, 10, partial(calibration, bins=bins))]


def _learned(points: list[dict[str, Any]], sure: str) -> list[str]:
    line = {HEADLINE: [(drawable(p.get("lists")), drawable(p.get(HEADLINE))) for p in points]}
    band = [(drawable(p.get("lists")), drawable(p.get("low")), drawable(p.get("high"))) for p in points]
    caption = (
        f"<b>Learning curve</b>, {HEADLINE} on the same test lists by how many lists the ranker learned from; shaded "
        f"the {sure}interval. Where it still rises at the right end, a longer log would help."
    )
    return curve("learning curve", caption, line, "training lists", band=band)


def explanation(page: Mapping[str, Any]) -> str:
    """What moves scores: SHAP values by feature and by group."""
    found = page["explanation"]
    features = [f for f in entries(found.get("features")) if drawable(f.get("mean_abs")) is not None]
    groups = [g for g in entries(found.get("groups")) if drawable(g.get("mean_abs")) is not None]
    if not features:
        return ""
    shown = features[:_MOST_SWARMS]
    means = [(truncate(f.get("name"), 34), float(f["mean_abs"])) for f in shown]
    families = [(display_name(g.get("group")), float(g["mean_abs"])) for g in groups]
    swarms = [(truncate(f.get("name"), 34), _points(f.get("points"))) for f in shown]
    about = "mean |SHAP|, in points of score"
    plots = [
        plot(
            "shap swarm",
            "<b>What moves a score, and which way</b>: a point is one row; right of zero the feature "
            "raised it. Colour is the feature's value among the rows, from low (blue) to high (orange); grey "
            "is missing. Orange on the right means: more of it ranks higher.",
            round(1.6 * len(shown)),
            partial(swarm, rows=swarms, about="SHAP value, in points of score"),
        ),
        plot(
            "shap",
            f"<b>How much each feature moves scores</b>, the first {len(shown)} of {len(features)}, whichever "
            "way it moves them.",
            len(means),
            partial(bars, rows=means, about=about, form="{:.3f}"),
        ),
    ]
    if families:
        plots.append(
            plot(
                "shap groups",
                "<b>By family</b>: SHAP values of a family's features added up row by row, so that "
                "those which cancel out do not count.",
                len(families),
                partial(bars, rows=families, about=about, form="{:.3f}"),
            )
        )
    said = (
        f"SHAP values of {count(found.get('rows'))} rows of test lists: how far each feature moved the score of a row "
        "from the mean score; over all features they add up to the score. They say what the model goes by, not what "
        "would change a shopper's mind."
    )
    rows = [[f.get("name"), f.get("group"), f.get("about"), decimal(f["mean_abs"], 4)] for f in features]
    every = table("Mean |SHAP| of each feature", ["feature", "family", "about", "mean |SHAP|"], rows, text_columns=3)
    # The tall one on the left, the others one below the other on the right.
    sides = [plots[0], f"<div>{''.join(plots[1:])}</div>"]
    return "<h2>What the ranker goes by</h2>" + note(said) + grid(sides) + collapsed("Every feature", every)


def _points(points: object) -> list[tuple[float, float | None]]:
    pairs = [p for p in points if isinstance(p, list) and len(p) == 2] if isinstance(points, list) else []
    levels = [(drawable(x), finite(v)) for x, v in pairs]
    return [(x, None if v is None else min(max(v, 0.0), 1.0)) for x, v in levels if x is not None]
