"""A night's evaluation: every order on the test lists, and what stands beside the figures; as JSON and as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from features.log import F64, I64
from features.vectors import Vectors
from offline import column_slices, evaluate, explanation, facts, lists, policies, report, slices
from offline.progress import OnProgress
from ranker.trees import Trees

if TYPE_CHECKING:
    from offline.nightly import Night


def write(night: Night, on_progress: OnProgress) -> None:
    """Write `evaluation.json` and `report.html`."""
    x, tested, which = night.part("test")
    valid = night.lists.take(night.windows.lists("validation", night.lists))
    valid_score = np.load(night.run.file("valid_score.npy"), allow_pickle=False)
    baselines = np.load(night.run.file("baselines.npy"), allow_pickle=False)
    warm = np.load(night.run.file("warm.npy"), allow_pickle=False)[which]
    model = night.run.file("ranker.txt").read_text("utf-8")
    trees = Trees.parse(model)
    score, events, catalogue = trees.score(x), night.data.events, night.data.catalogue
    targets, columns = night.targets(tested), night.config.slices.columns
    of_items = column_slices.of_items(night.data.items, columns, targets)
    of_events = column_slices.of_events(night.log_files, columns, tested, night.data.items.column_names)
    known = slices.known_engagements(events, night.windows, targets, len(catalogue))
    truth = night.data.truth.of(tested.request_ids) if night.data.truth else None
    orders = evaluate.orders(tested, baselines, score, truth, catalogue.item_ids)
    had = {system: slices.had_before(events, tested, order) for system, order in orders.items()}
    found = evaluate.judge(
        orders,
        tested,
        targets,
        slices.of_lists(events, tested, warm) | of_events,
        slices.of_targets(events, tested, targets, catalogue, known) | of_items,
        known,
        night.zero_shot[:-1],
        night.config.seed,
        had,
    )
    table = night.replay.features
    own = [f.name for f in night.custom]
    report.write(
        {
            "schema": report.SCHEMA,
            "level": evaluate.LEVEL,
            "title": "Nightly evaluation",
            "created_at": facts.iso(night.windows.end),
            "seed": night.config.seed,
            "protocol": night.windows.protocol,
            "data": _data_facts(night),
            "windows": night.window_facts(),
            "encoder": night.json("encoder.json"),
            "ranker": night.json("ranker.json"),
            **found,
            "examples": facts.examples(night.data, night.replay.histories, tested, orders, warm),
            "calibration": evaluate.calibrated(valid_score, valid.gain, score, tested.gain),
            "explanation": explanation.explained(model, x, table, own, night.config.seed),
            "off_policy": _off_policy(night, trees, on_progress),
            "asked": _asked(night),
            "learning_curve": _learning_curve(night, on_progress) if night.learning_curve else None,
            "quality": facts.of_import(night.config.data),
            "steps": [
                {"name": n, "seconds": f["seconds"], "peak_mb": f["peak_mb"]} for n, f in night.run.finished.items()
            ],
        },
        night.run.directory,
    )


def _off_policy(night: Night, trees: Trees, on_progress: OnProgress) -> dict[str, Any]:
    if night.data.propensities is None or not night.is_logged:
        return {}
    return policies.worth(
        night.data,
        night.replay,
        night.asked,
        night.windows,
        trees,
        Vectors.quantise(night.zero_shot),
        night.config.seed,
        evaluate.LEVEL,
        on_progress,
    )


def _asked(night: Night) -> dict[str, Any]:
    """What an evaluation holds beyond the usual."""
    return {"slices": list(night.config.slices.columns), "learning_curve": night.learning_curve}


def is_as_asked(night: Night) -> bool:
    """Whether an evaluation holds what this configuration and night ask for."""
    return bool(night.json("evaluation.json").get("asked") == _asked(night))


def _learning_curve(night: Night, on_progress: OnProgress) -> list[dict[str, Any]]:
    """How the ranker does on the test lists when it learns from fewer; of a night that is evaluated.

    Lists are of the ranker's window; grown anew, it gets the same share of those of validation, evenly spread.
    """
    x_test, tested, _ = night.part("test")
    learnt, valid = (night.windows.lists(window, night.lists) for window in ("ranker", "validation"))

    def fit(which: I64) -> F64:
        again = np.linspace(0, len(valid), round(len(valid) * len(which) / len(learnt)), endpoint=False)
        among = np.concatenate((learnt[which], valid[again.astype(np.int64)]))
        return Trees.parse(night.trained(among)[0].model_text).score(x_test)

    return evaluate.learning_curve(fit, len(learnt), tested, night.targets(tested), night.config.seed, on_progress)


def _data_facts(night: Night) -> dict[str, Any]:
    notes = (
        []
        if night.is_logged
        else [f"Lists were rebuilt: at each basket, retrieval offered up to {night.config.lists.size} candidates."]
    )
    if night.windows.protocol == "leave-last-out":
        users = len(np.unique(lists.bare(night.asked()).user))
        early = users - len(night.windows.lists("test", night.lists))
        notes.append("Each user's last basket is the test; every baseline orders the whole catalogue.")
        notes += [f"{early:,} users left before the ranker's first list and are not tested."] if early else []
    shown, without = len(night.lists), 0
    if night.is_logged:
        counts = [(len(part), int((~evaluate.lists_with_gain(part)).sum())) for part in night.asked()]
        shown, without = (sum(c[k] for c in counts) for k in (0, 1))
    return facts.of_data(night.data) | {
        "lists": shown,
        "lists_source": "logged" if night.is_logged else "rebuilt",
        "lists_without_gain": without,
        "notes": notes,
    }
