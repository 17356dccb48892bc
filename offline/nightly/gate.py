"""The gate: rules that decide whether a new release may replace the live one. Both rank the same held-out lists.

The live release is scored as it would have served: its own trees on rows with its own item vectors, with item state
and user histories replayed to the time of each list. Items that it lacks have no vector. Only lists later than the live
release's training data count. Verdicts: `promote` publishes the new release, `keep` keeps the live one, and `ask` keeps
it until a person decides.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from features.arrays import F64
from features.history import EMPTY
from offline.config import GateConfig
from offline.data import Targets
from offline.evaluation import served_scores, slices, systems
from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.nightly.comparison import HeldOut
from offline.nightly.list_source import Kind
from offline.runtime import ApprovalNeeded, OnProgress, ReleaseKept
from offline.training import WindowRows, examination_probability
from ranker.metrics import Difference, paired_difference
from serving.ranking import Live
from serving.release import Release, ReleaseError, load_release, registry, write_judgement
from serving.store import Pointer

_REPEATS = 15


def judge_alone(ndcg: F64, held_out: HeldOut, evaluation: Mapping[str, Any], config: GateConfig) -> list[Reason]:
    """Reasons by the rules that need no live release. ndcg: float64[lists] of the new release."""
    out = []
    if (systems.lists_with_gain(held_out.lists)).sum() >= systems.LEAST_LISTS:
        d = paired_difference(ndcg, held_out.random, held_out.lists.user)
        values = f"ndcg@10 {np.nanmean(ndcg):.4f}, random order {np.nanmean(held_out.random):.4f}: "
        interval = f"95% interval of the difference [{d.low:+.4f}, {d.high:+.4f}]"
        if d.clusters < 2:
            one = f"all {d.lists:,} test lists are of one user, so no interval can say whether this is chance"
            out.append(Reason("floor", ASK, values + one))
        elif d.low > 0:
            out.append(Reason("floor", PROMOTE, values + interval))
        else:
            why = "Check for shuffled labels, or clicks joined to the wrong lists."
            out.append(Reason("floor", KEEP, f"{values}{interval}. No better than random on the test lists. {why}"))
    error = (evaluation.get("calibration") or {}).get("error")
    if error is not None:
        verdict = PROMOTE if error <= config.calibration else ASK
        out.append(Reason("calibration", verdict, f"click probabilities are off by {error:.3f} on average"))
    for found in evaluation.get("objectives") or ():
        used = [name for name, weight in found["placements"].items() if weight > 0]
        if found.get("problem") and used:
            why = f"the service would refuse the release for the objective of {', '.join(used)}: {found['problem']}"
            out.append(Reason("objective", KEEP, why))
    values = (evaluation.get("off_policy") or {}).get("systems", {})
    if {"ranker", "shown_order"} <= set(values):
        own, shown = values["ranker"]["doubly_robust"], values["shown_order"]["doubly_robust"]
        worse = own["high"] is not None and own["high"] < shown["value"]
        out.append(
            Reason(
                "off_policy",
                KEEP if worse else PROMOTE,
                f"estimated gain per list {own['value']:.4f} (from logged propensities), "
                f"shown order {shown['value']:.4f}",
            )
        )
    return out


def judge_against_simple_orders(ndcg: F64, held_out: HeldOut) -> list[Reason]:
    """Reasons by the rule that no simple order is better than what is published: for all, known and new users.

    In each slice, the rival is the simple order with the highest mean there. ndcg: float64[lists] of the new release.
    """
    out = []
    for r in systems.best_rivals(ndcg, held_out.simple, held_out.lists.user, held_out.of_lists):
        values = f"{r['own']:.4f}, {r['rival']} {r['theirs']:.4f}: {_signed(r)} on {r['lists']:,} lists"
        about = f"{r['slice'].replace('_', ' ')}: ndcg@10 {values}"
        if r["result"] == "worse":
            out.append(Reason("simple_order", KEEP, f"{about}: worse than the best simple order"))
        elif r["slice"] == "all":
            result = "better than" if r["result"] == "better" else "no clear difference from"
            out.append(Reason("simple_order", PROMOTE, f"{about}: {result} the best simple order"))
    return out


def judge_fallback(choice: Mapping[str, Any], config: GateConfig) -> list[Reason]:
    """A reason if the release ranks by a simple order; too many nights in a row of it keep the live release.

    choice: contents of `choice.json`.
    """
    if choice["simple_order"] is None:
        return []
    if choice["nights"] <= config.fallback_nights:
        left = f"night {choice['nights']} in a row of at most {config.fallback_nights} (gate.fallback_nights)"
        return [Reason("fallback", PROMOTE, f"{choice['sentence']} {left}")]
    why = (
        f"{choice['nights']:,} nights in a row ended with a simple order; gate.fallback_nights is "
        f"{config.fallback_nights}. {choice['sentence']} Check what the shop logs, or raise gate.fallback_nights."
    )
    return [Reason("fallback", KEEP, why)]


def judge_against(
    ndcg: tuple[F64, F64],
    by_slice: Mapping[str, tuple[F64, F64]],
    unweighted: F64,
    held_out: HeldOut,
    live: Release,
    config: GateConfig,
) -> tuple[list[Reason], dict[str, Any]]:
    """Reasons by the rules that compare with the live release, and the figures they used.

    ndcg: float64[lists] of the new and the live release, weighted by inverse propensity. by_slice: the same for each
    slice, NaN outside it. unweighted: float64[lists], ndcg of the live release from raw clicks, as in its manifest.
    """
    new, old = ndcg
    d = paired_difference(new, old, held_out.lists.user)
    figures: dict[str, Any] = {"all": asdict(d)}
    summary = f"ndcg@10 {np.nanmean(new):.4f}, live release {np.nanmean(old):.4f}: {_signed(d)} on {d.lists:,} lists"
    if d.high < 0:
        out = [Reason("quality", KEEP, f"{summary}: worse")]
    elif d.difference < -config.margin:
        out = [Reason("quality", ASK, f"{summary}: may be worse, by more than the margin of {config.margin}")]
    else:
        out = [Reason("quality", PROMOTE, f"{summary}: not worse")]
    out += _label_collapse(unweighted, held_out, live, config)
    large_slices = {
        name: (a, b)
        for name, (a, b) in by_slice.items()
        if (in_slice := ~np.isnan(a)).sum() >= config.slice_lists and len(np.unique(held_out.lists.user[in_slice])) > 1
    }
    for name, (a, b) in large_slices.items():
        # Bonferroni correction for the number of slices.
        s = paired_difference(a, b, held_out.lists.user, level=1 - 0.05 / len(large_slices))
        figures[name] = asdict(s)
        if s.high < 0 and s.difference < -config.slice_margin:
            out.append(
                Reason(
                    "slice",
                    KEEP,
                    f"{name}: {_signed(s)} on {s.lists:,} lists: worse than the slice margin of {config.slice_margin}",
                )
            )
    if not any(r.rule == "slice" for r in out):
        within = f"All {len(large_slices)} slices tested are within the margin of {config.slice_margin}."
        out.append(Reason("slice", PROMOTE, within if large_slices else "No slice is large enough to test."))
    return out, figures


def _signed(d: Difference | Mapping[str, Any]) -> str:
    c = asdict(d) if isinstance(d, Difference) else d
    return f"{c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}]"


def _label_collapse(unweighted: F64, held_out: HeldOut, live: Release, config: GateConfig) -> list[Reason]:
    """A reason to keep the live release if it does much worse on these lists than when it was made.

    In that case the labels of the lists are suspect, not the release. A lead on rebuilt lists says nothing about the
    lead on logged ones, so the rule needs lists of the same kind.
    """
    then, kind = live.manifest.metrics, live.manifest.window.get("test", {}).get("judged")
    if not {"ranker", "random"} <= set(then) or (kind and held_out.kind and kind != held_out.kind):
        return []
    lead, now = (then["ranker"] - then["random"], float(np.nanmean(unweighted) - np.nanmean(held_out.random)))
    if lead <= 0 or now >= config.collapse * lead:
        return []
    return [
        Reason(
            "labels",
            KEEP,
            f"The test lists look different: the live release was {lead:.4f} better than a random order when it was "
            f"made, but {now:.4f} on these lists. Check for shuffled labels, or clicks joined to the wrong lists.",
        )
    ]


def compare_cost(new: Release, live: Release, config: GateConfig) -> list[Reason]:
    """Size and request latency relative to the live release's. Both are timed in turn on the same machine."""
    a, b = (sum(f.bytes for f in r.manifest.files.values()) for r in (new, live))
    verdict = PROMOTE if a <= config.size_ratio * b else ASK
    out = [Reason("size", verdict, f"{a / 1e6:.1f} MB, live release {b / 1e6:.1f} MB")]
    rankers = [Live.of(new), Live.of(live)]
    seconds: list[list[float]] = [[], []]
    for _ in range(_REPEATS + 1):
        for k, ranker in enumerate(rankers):
            ids = list(ranker.items.catalogue.item_ids[: config.candidates])
            start = time.process_time()
            ranker.rank(EMPTY, ids, ranker.release.manifest.cut_off, None)
            seconds[k].append(time.process_time() - start)
    # Skip the first run, which compiles and loads pages. Take the minimum of the others: other load only adds time.
    ms = [1000 * min(t[1:]) for t in seconds]
    ratio = ms[0] / max(ms[1], 1e-9)
    verdict = PROMOTE if ratio <= config.latency_ratio else KEEP
    candidates = min(config.candidates, len(rankers[0].items.catalogue))
    message = f"{ms[0]:.2f} ms to rank {candidates:,} candidates, live release {ms[1]:.2f} ms: ratio {ratio:.2f}"
    return [*out, Reason("latency", verdict, message)]


PROMOTE, ASK, KEEP = "promote", "ask", "keep"


_SEVERITY = (PROMOTE, ASK, KEEP)


class Reason(NamedTuple):
    """The result of one rule: its name, its verdict and a message."""

    rule: str
    verdict: str
    message: str


def decide(reasons: Sequence[Reason], config: GateConfig) -> tuple[str, list[Reason]]:
    """The strictest verdict of all rules, and the reasons with the deciding ones first."""
    out = list(reasons)
    if config.mode == "ask":
        out.append(Reason("mode", ASK, "every release needs approval (gate.mode: ask)"))
    if config.mode == "shadow":
        out.append(Reason("mode", KEEP, "releases are only scored in shadow (gate.mode: shadow); see shadow.parquet"))
    out.sort(key=lambda r: -_SEVERITY.index(r.verdict))
    return (out[0].verdict if out else PROMOTE), out


def raise_unless_promoted(judgement: Mapping[str, Any]) -> None:
    """Raise ReleaseKept or ApprovalNeeded with the deciding reasons, unless the verdict in `gate.json` is `promote`."""
    if judgement["verdict"] == PROMOTE:
        return
    causes = "\n".join(
        f"  {rule}: {why}" for rule, verdict, why in judgement["reasons"] if verdict == judgement["verdict"]
    )
    how = f"shelfwise releases diff {judgement['live'] or ''} {judgement['candidate']}".replace("  ", " ")
    if judgement["verdict"] == KEEP:
        kept = f"the gate keeps the live release {judgement['live']}"
        rejected = f"the gate rejected {judgement['candidate']}; no release is live"
        raise ReleaseKept(f"{kept if judgement['live'] else rejected}\n{causes}\ncompare: {how}")
    raise ApprovalNeeded(
        f"the gate needs your approval to publish {judgement['candidate']} (live: {judgement['live'] or 'none'})\n"
        f"{causes}\ncompare: {how}\napprove: shelfwise releases promote {judgement['candidate']}"
    )


def judge_release(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `gate.json` with the verdict, reasons and figures, and `shadow.parquet` with both releases' scores."""
    inputs, config, pointer = a.inputs, a.inputs.config.gate, a.inputs.pointer()
    new = load_release(a.release_path, custom=inputs.custom)
    test = a.window_rows("test")
    score, held_out = served_scores(a.published, test.rows, test.lists), _held_out(a, test)
    evaluation, choice = a.json("evaluation.json"), a.json("choice.json")
    ndcg = comparison.ndcg(score, held_out.lists, held_out.targets)
    reasons = judge_alone(ndcg, held_out, evaluation, config)
    reasons += judge_against_simple_orders(ndcg, held_out)
    reasons += judge_fallback(choice, config)
    figures: dict[str, Any] = {}
    live_score: F64 | None = None
    live_id = pointer.id if pointer else None
    if pointer is not None and live_id != new.id:
        try:
            live = load_release(Path(pointer.path), custom=inputs.custom)
        except ReleaseError as e:
            reasons.append(Reason("quality", ASK, f"the live release cannot be loaded for comparison: {e}"))
        else:
            live_score = comparison.score_with_live(live, a.replay, test.lists)
            compared, figures = _compare(score, live_score, held_out, live, config)
            reasons += [*compared, *compare_cost(new, live, config)]
            other, other_figures = _compare_other_kind(a, live)
            reasons, figures = reasons + other, figures | other_figures
    verdict, reasons = decide(reasons, config)
    item_ids = inputs.data.catalogue.item_ids
    comparison.write_scores(a.file("shadow.parquet"), test.lists, item_ids, score, live_score)
    judgement = {
        "verdict": verdict,
        "candidate": new.id,
        "live": live_id,
        "reasons": [list(r) for r in reasons],
        "figures": figures,
        "cut_off": inputs.cut_off,
        "simple_order": choice["simple_order"],
        "options": config.model_dump(mode="json"),
    }
    write_judgement(inputs.config.releases, judgement, evaluation, a.json("drift.json").get("drift", {}), time.time())
    a.write_json("gate.json", judgement)


def is_current(a: Artefacts) -> bool:
    """True if the gate settings are unchanged and no other release has gone live since the verdict.

    The candidate itself may have gone live.
    """
    judgement, live = a.json("gate.json"), a.inputs.live
    return judgement["options"] == a.inputs.config.gate.model_dump(mode="json") and live in (
        judgement["live"],
        judgement["candidate"],
    )


def _held_out(a: Artefacts, test: WindowRows) -> HeldOut:
    inputs, lists = a.inputs, test.lists
    events, catalogue, targets = inputs.data.events, inputs.data.catalogue, a.inputs.targets(lists)
    known = slices.known_engagements(events, a.windows, targets, len(catalogue))
    simple = comparison.ndcg_of_baselines(a.baselines_of(test.numbers), targets)
    return HeldOut(
        lists,
        targets,
        simple.pop("random"),
        simple,
        slices.list_slices(events, lists, a.warm[test.numbers]),
        slices.target_slices(events, lists, targets, catalogue, known),
        _examination(a, test, targets),
        a.judged_kind,
    )


def _examination(a: Artefacts, test: WindowRows, targets: Targets) -> F64:
    """float64[targets]: examination probability at the position of each target; 1 without position debiasing.

    It is estimated from the logged lists of the ranker window, or from the test lists themselves if that has none.
    """
    if a.judged_kind != "logged" or not a.inputs.config.ranker.position_debias:
        return np.ones(len(targets.of))
    numbers, names = a.windows.lists("ranker", a.lists), [f.name for f in a.replay.features]
    numbers = numbers[a.logged[numbers]]
    learned = a.rows_of(numbers) if len(numbers) else test
    # The targets of logged lists are their rows with a gain, in order.
    return examination_probability(learned.rows, learned.lists, test.lists, names)[test.lists.gain > 0]


def _compare_other_kind(a: Artefacts, live: Release) -> tuple[list[Reason], dict[str, Any]]:
    """Both releases on the test lists of the other kind: a reason that never objects, and the figures.

    Empty if all test lists are of one kind, or if fewer than 2 are later than the live release's training data.
    """
    kind: Kind = "rebuilt" if a.judged_kind == "logged" else "logged"
    numbers = a.test_lists(kind)
    numbers = numbers[comparison.comparable_lists(a.lists.take(numbers), live)]
    if len(numbers) < 2:
        return [], {}
    rows, lists, _ = a.rows_of(numbers)
    targets = a.inputs.targets(lists)
    scores = served_scores(a.published, rows, lists), comparison.score_with_live(live, a.replay, lists)
    new, old = (comparison.ndcg(score, lists, targets) for score in scores)
    d = paired_difference(new, old, lists.user)
    message = (
        f"{kind} lists, reported only: ndcg@10 {np.nanmean(new):.4f}, live release {np.nanmean(old):.4f}: {_signed(d)} "
        f"on {d.lists:,} lists; the {a.judged_kind} lists decide"
    )
    return [Reason("other_lists", PROMOTE, message)], {f"{kind}_lists": asdict(d)}


def _compare(
    score: F64, live_score: F64, held_out: HeldOut, live: Release, config: GateConfig
) -> tuple[list[Reason], dict[str, Any]]:
    """Compare both releases on the lists that the live one cannot have been trained on."""
    comparable = np.isin(np.arange(len(held_out.lists)), comparison.comparable_lists(held_out.lists, live))
    by_slice = comparison.ndcg_by_slice(score, live_score, held_out, comparable)
    a, b = by_slice.pop("all")
    unweighted = np.where(comparable, comparison.ndcg(live_score, held_out.lists, held_out.targets), np.nan)
    if (~np.isnan(a)).sum() < 2:
        message = (
            "fewer than 2 test lists are later than the live release's training data, so the releases cannot be "
            "compared; is this run older than the live release?"
        )
        return [Reason("quality", ASK, message)], {}
    return judge_against((a, b), by_slice, unweighted, held_out, live, config)


def wants_shadow(a: Artefacts) -> bool:
    """True if gate.mode is shadow, no other rule objects to the release, and another release is live."""
    objections = [rule for rule, verdict, _ in a.json("gate.json")["reasons"] if verdict != PROMOTE]
    return a.inputs.config.gate.mode == "shadow" and objections == ["mode"] and a.inputs.live is not None


def raise_unless_allowed(a: Artefacts, pointer: Pointer | None) -> None:
    """Raise ReleaseKept if the live release is pinned or this one was rolled back; else see `raise_unless_promoted`."""
    release_id = a.release_id
    if pointer is not None and pointer.pinned:
        raise ReleaseKept(
            f"{release_id} was not published, because the live release {pointer.id} is pinned; "
            "`shelfwise releases unpin` lets nightly runs replace it again"
        )
    if line := registry.last_rollback(a.inputs.config.releases, release_id):
        raise ReleaseKept(
            f"{release_id} was not published, because {line.get('by')} rolled it back at {line.get('at')} "
            f"({line.get('reason')}); `shelfwise releases promote {release_id}` publishes it anyway"
        )
    raise_unless_promoted(a.json("gate.json"))
