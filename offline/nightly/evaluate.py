"""Evaluation of a run: metrics of every system on the test lists and facts about the run, as JSON and as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I64
from features.log import Lists
from features.text.vectors import Vectors
from offline.data import Targets, list_placements, query_groups
from offline.evaluation import (
    explanation,
    facts,
    objectives,
    off_policy,
    order_of,
    outcomes,
    report,
    runs,
    served_scores,
    slices,
    systems,
)
from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.nightly.list_source import Kind
from offline.nightly.steps import ranker_config, window_facts
from offline.runtime import OnProgress, checksum
from offline.training import fit_ranker, with_unknown
from ranker.metrics import tie_break
from ranker.train import MAX_LIST
from ranker.trees import Trees
from serving.config import ObjectiveConfig
from serving.ranking import Objective, amounts
from serving.rules import RuleError


def write_evaluation(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `evaluation.json` and `report.html`."""
    inputs, (rows, tested, numbers) = a.inputs, a.window_rows("test")
    warm, trees = a.warm[numbers], a.published
    score, data, seed = served_scores(trees, rows, tested), inputs.data, inputs.config.seed
    events, catalogue, items = data.events, data.catalogue, data.items
    targets, columns = inputs.targets(tested), inputs.config.slices.columns
    item_slices = slices.item_column_slices(items, columns, targets)
    known = slices.known_engagements(events, a.windows, targets, len(catalogue))
    truth = data.truth.of(tested.request_ids) if data.truth else None
    others = _other_runs(a, tested)
    orders = systems.orders(tested, a.baselines_of(numbers), score, truth, catalogue.item_ids)
    orders |= {name: run.order for name, run in others.items()}
    if a.simple_order is not None:
        ties = tie_break(tested.item, tested.start)
        orders["trained"] = order_of(served_scores(a.trees, rows, tested), tested.item, tested.start, ties)
    results = systems.judge(
        orders,
        tested,
        targets,
        slices.list_slices(events, tested, warm) | _logged_slices(a, tested),
        slices.target_slices(events, tested, targets, catalogue, known) | item_slices,
        known,
        a.zero_shot,
        seed,
        {system: slices.seen_before(events, tested, order) for system, order in orders.items()},
    )
    evaluation = {
        "schema": report.SCHEMA,
        "level": systems.LEVEL,
        "title": "Nightly evaluation",
        "created_at": facts.iso(a.windows.end),
        "seed": seed,
        "protocol": a.windows.protocol,
        "data": _data_facts(a, [run.note for run in others.values()]),
        "lists": _list_facts(a, results),
        "windows": window_facts(a),
        "encoder": a.json("encoder.json"),
        "ranker": a.json("ranker.json"),
        **results,
        "choice": a.json("choice.json"),
        "rivals": _rivals(a, score, tested, targets, numbers),
        "examples": facts.examples(data, a.replay.histories, tested, orders, warm),
        "calibration": _calibration(a, score, tested),
        "explanation": explanation.explain_model(a.published_text, rows, a.replay.features, seed),
        "outcomes": _outcomes(a),
        "objectives": _objectives(a),
        "off_policy": _off_policy(a, trees, on_progress),
        "options": _options(a),
        "learning_curve": _learning_curve(a, on_progress) if inputs.learning_curve else None,
        "quality": facts.import_facts(inputs.config.data),
        "steps": [{"name": n, "seconds": f["seconds"], "peak_mb": f["peak_mb"]} for n, f in a.run.finished.items()],
    }
    report.write(evaluation, a.run.directory)


def _rivals(a: Artefacts, score: F64, tested: Lists, targets: Targets, numbers: I64) -> list[dict[str, Any]]:
    """The published ranker against the best baseline of each slice, as the gate compares them."""
    simple = comparison.ndcg_of_baselines(a.baselines_of(numbers), targets)
    simple.pop("random")
    of_lists = slices.list_slices(a.inputs.data.events, tested, a.warm[numbers])
    return systems.best_rivals(comparison.ndcg(score, tested, targets), simple, tested.user, of_lists)


def _logged_slices(a: Artefacts, tested: Lists) -> dict[str, NDArray[np.bool_]]:
    """bool[lists] by slice: of the configured columns of events, and of each placement."""
    files, config = a.inputs.log_files, a.inputs.config
    out = slices.event_column_slices(files, config.slices.columns, tested, a.inputs.data.items.column_names)
    if config.placements:
        out |= slices.placement_slices(list(config.placements), list_placements(files, tested), tested)
    return out


def is_current(a: Artefacts) -> bool:
    """True if the evaluation was written with the current options."""
    return bool(a.json("evaluation.json").get("options") == _options(a))


def _options(a: Artefacts) -> dict[str, Any]:
    """Options that add optional parts to the evaluation."""
    configs = a.inputs.config.placements
    placements = list(configs)
    wanted = {n: p.objective.model_dump(mode="json") for n, p in configs.items() if p.objective is not None}
    return {
        "slices": list(a.inputs.config.slices.columns),
        **({"placements": placements} if placements else {}),
        **({"objectives": wanted} if wanted else {}),
        "learning_curve": a.inputs.learning_curve,
        "runs": {path.name: checksum(path) for path in a.inputs.runs},
    }


def _other_runs(a: Artefacts, tested: Lists) -> dict[str, runs.OrderedRun]:
    whole = a.windows.protocol == "leave-last-out"
    item_ids = a.inputs.data.catalogue.item_ids
    return {runs.run_name(path): runs.order_run(path, tested, item_ids, whole) for path in a.inputs.runs}


def _calibration(a: Artefacts, score: F64, tested: Lists) -> dict[str, Any] | None:
    """Calibration of click probabilities, fitted on validation lists of the judged kind; None without a click there.

    Rebuilt lists have one choice among 100 candidates, logged ones several among those shown: a fit on one kind says
    nothing about the other.
    """
    numbers = a.windows.lists("validation", a.lists)
    valid = a.lists.take(numbers)
    rows = (a.logged[numbers] == (a.judged_kind == "logged"))[valid.group]
    if not valid.gain[rows].any():
        return None
    return systems.calibrate(a.served_valid_score()[rows], valid.gain[rows], score, tested.gain)


def _outcomes(a: Artefacts) -> dict[str, Any]:
    """The maps of `calibration.json`, and their reliability on test lists: all, by history and by placement."""
    fitted, scored = a.json("calibration.json"), a.scored
    if not (fitted["maps"] and len(scored.lists)):
        return {}
    of_lists = {"all": np.ones(len(scored.lists), bool), "warm_users": scored.warm, "cold_users": ~scored.warm}
    names = list(a.inputs.config.placements)
    of_lists |= slices.placement_slices(names, list_placements(a.inputs.log_files, scored.lists), scored.lists)
    return fitted | {"reliability": outcomes.reliability(a.maps, scored, of_lists)}


def _objectives(a: Artefacts) -> list[dict[str, Any]]:
    """The trade-off of each placement with an objective, on its own test lists.

    Placements with fewer than `systems.SMALL` of these are judged on all test lists, those that differ in the weight
    alone together. `lists_of` is the placement, or None for all lists. An objective that this run cannot have has
    `problem`, the reason, instead of figures: the service would refuse the release.
    """
    placements, scored = a.inputs.config.placements, a.scored
    configs = {name: p.objective for name, p in placements.items() if p.objective is not None}
    if not configs:
        return []
    found = slices.placement_slices(list(placements), list_placements(a.inputs.log_files, scored.lists), scored.lists)
    of_placement = {name: mask for name in configs if (mask := found.get(f"placement:{name}")) is not None}
    own = [name for name, mask in of_placement.items() if mask.sum() >= systems.SMALL]
    together: dict[str, list[str]] = {}
    for name, one in configs.items():
        if name not in own:
            together.setdefault(one.model_copy(update={"weight": 0.0}).model_dump_json(), []).append(name)
    amounts_of, logged = _amounts(a, configs), _logged(a)
    judged: list[tuple[list[str], objectives.Judged, str | None]]
    judged = [([name], objectives.part(scored, logged, of_placement[name]), name) for name in own]
    judged += [(names, (scored, logged), None) for names in together.values()]
    return [_objective(a, configs, names, lists, amounts_of, of) for names, lists, of in judged]


def _amounts(a: Artefacts, configs: Mapping[str, ObjectiveConfig]) -> dict[str, F64]:
    """float64[n + 1] by name: the price and the values of the objectives, of those that some item has."""
    catalogue = a.inputs.data.catalogue
    return {
        name: amounts(catalogue, name, "")[0]
        for name in sorted({"price", *(c.value for c in configs.values() if isinstance(c.value, str))})
        if (found := catalogue.amounts(name)) is not None and not np.isnan(found).all()
    }


def _objective(
    a: Artefacts,
    configs: Mapping[str, ObjectiveConfig],
    names: Sequence[str],
    judged: objectives.Judged,
    by_name: Mapping[str, F64],
    lists_of: str | None,
) -> dict[str, Any]:
    """The facts and the trade-off of the objective of some placements. judged: lists, and their propensities."""
    one, weights = configs[names[0]], {name: configs[name].weight for name in names}
    facts: dict[str, Any] = {"value": one.value, "outcomes": one.outcomes, "floor": one.floor}
    facts |= {"placements": weights, "lists_of": lists_of}
    try:
        objective = Objective.of(one, a.maps, a.inputs.data.catalogue, f"placements.{names[0]}.objective")
    except RuleError as e:
        return facts | {"problem": f"{e.path}: {e}"}
    scored, logged = judged
    seed = a.inputs.config.seed
    return facts | objectives.trade_off(objective, scored, by_name, list(weights.values()), seed, systems.LEVEL, logged)


def _logged(a: Artefacts) -> objectives.Propensities | None:
    """The propensities of the scored test lists; None if there are none."""
    data, lists = a.inputs.data, a.scored.lists
    if data.propensities is None or not a.inputs.is_logged or not len(lists):
        return None
    found = off_policy.complete_lists(lists, data.propensities.of(lists.request_ids), data.catalogue.item_ids)
    return found if len(found[0]) else None


def _list_facts(a: Artefacts, results: Mapping[str, Any]) -> dict[str, Any]:
    """The source of the lists, the reason for it, the judged kind of test lists, and the figures of each kind.

    results: of `systems.judge` for the judged kind. Figures (`kinds`): number of test lists, and for each system the
    mean of `PRIMARY` with its interval, `[mean, low, high]`.
    """
    source = a.inputs.list_source
    facts = {"source": source.kind, "reason": source.reason, "judged": a.judged_kind}
    kinds: tuple[Kind, ...] = ("logged", "rebuilt")
    by_kind = {
        kind: _kind_figures(results if kind == a.judged_kind else _judge_other_kind(a, kind), len(a.test_lists(kind)))
        for kind in kinds
    }
    return facts | {"kinds": {kind: figures for kind, figures in by_kind.items() if figures["lists"]}}


def _judge_other_kind(a: Artefacts, kind: Kind) -> Mapping[str, Any]:
    """`systems.judge` of the test lists of a kind as a whole; empty without lists."""
    numbers = a.test_lists(kind)
    if not len(numbers):
        return {}
    rows, tested, _ = a.rows_of(numbers)
    data, everything = a.inputs.data, np.ones(len(tested), bool)
    # The simulator's truth is of shown lists alone, and this kind is evaluated for comparison only.
    score = served_scores(a.published, rows, tested)
    orders = systems.orders(tested, a.baselines_of(numbers), score, None, data.catalogue.item_ids)
    targets, count = a.inputs.targets(tested), np.zeros(len(data.catalogue))
    return systems.judge(orders, tested, targets, {"all": everything}, {}, count, a.zero_shot, a.inputs.config.seed)


def _kind_figures(results: Mapping[str, Any], lists: int) -> dict[str, Any]:
    return {
        "lists": lists,
        systems.PRIMARY: {
            system: [by["all"][systems.PRIMARY], *results["intervals"][system]["all"][systems.PRIMARY]]
            for system, by in results.get("systems", {}).items()
            if "all" in by
        },
    }


def _off_policy(a: Artefacts, trees: Trees, on_progress: OnProgress) -> dict[str, Any]:
    inputs = a.inputs
    if inputs.data.propensities is None or not inputs.is_logged:
        return {}
    text = Vectors.quantise(with_unknown(a.zero_shot))
    seed, level = inputs.config.seed, systems.LEVEL
    return off_policy.estimate_values(
        inputs.data, a.replay, inputs.lists, a.windows, trees, text, seed, level, on_progress, inputs.with_columns
    )


def _learning_curve(a: Artefacts, on_progress: OnProgress) -> list[dict[str, Any]]:
    """Test metrics of rankers trained on fewer lists.

    The lists are from the ranker window. A refit also uses the same share of the validation lists, evenly spaced.
    """
    inputs, (x_test, tested, _) = a.inputs, a.window_rows("test")
    learn, valid = a.window_rows("ranker"), a.window_rows("validation")
    both, names, config = a.window_rows("ranker", "validation"), [f.name for f in a.replay.features], ranker_config(a)

    def fit(which: I64) -> F64:
        share = round(len(valid.lists) * len(which) / len(learn.lists))
        again = np.linspace(0, len(valid.lists), share, endpoint=False).astype(np.int64)
        among = np.concatenate((learn.numbers[which], valid.numbers[again]))
        refit_on = both.take(np.flatnonzero(np.isin(both.numbers, among))) if config.refit else None
        fitted, _ = fit_ranker(learn.take(which), valid, refit_on, names, config, engine=inputs.engine)
        return Trees.parse(fitted.model_text).score(x_test)

    return systems.learning_curve(
        fit, len(learn.lists), tested, inputs.targets(tested), inputs.config.seed, on_progress
    )


def _list_counts(block: Lists) -> tuple[int, int, int]:
    """Numbers of lists, of lists without gain, and of lists too long to train on."""
    return len(block), int((~systems.lists_with_gain(block)).sum()), int((np.diff(block.start) > MAX_LIST).sum())


def _data_facts(a: Artefacts, notes_on_runs: list[str]) -> dict[str, Any]:
    inputs = a.inputs
    size = inputs.config.lists.size
    which = "Some lists" if inputs.is_mixed else "Lists"
    notes = [] if inputs.is_logged else [f"{which} were rebuilt: up to {size} retrieved items for each basket."]
    notes += [inputs.list_source.notice] if inputs.list_source.notice else []
    if a.windows.protocol == "leave-last-out":
        users = len(np.unique(query_groups.keys(inputs.lists()).user))
        early = users - len(a.windows.lists("test", a.lists))
        notes.append("Each user's last basket is the test; baselines rank the whole catalogue.")
        notes += [f"{early:,} users whose last basket is before the ranker window are not tested."] if early else []
    shown, without_gain = len(a.lists), 0
    if inputs.is_logged:
        shown, without_gain, too_long = np.sum(
            [_list_counts(block) for block in inputs.logged_lists()], axis=0
        ).tolist()
        notes += [f"Lists of more than {MAX_LIST:,} items were left out: {too_long:,}."] if too_long else []
    return facts.data_facts(inputs.data) | {
        "lists": shown,
        "lists_source": inputs.list_source.kind,
        "lists_without_gain": without_gain,
        "notes": notes + notes_on_runs,
    }
