"""The gate: may a new release take the place of the live one? Both order the same held-out lists, and rules decide.

The live release is scored as it would answer: its own trees on rows made of its own vectors, with item state and users'
lists replayed to the moment of each list. Items it does not hold have no vector. Only lists after what the live release
learnt from count. `promote` publishes; `keep` leaves the live release; `ask` leaves it too, for a person to decide.
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
from features.log import Lists
from offline.config import GateConfig
from offline.data import Targets
from offline.evaluation import BASELINES, slices, systems
from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.nightly.comparison import HeldOut
from offline.runtime import ApprovalNeeded, OnProgress, ReleaseKept
from offline.training import WindowRows, examination_probability
from ranker.metrics import paired_difference
from serving.ranking import Live
from serving.release import Release, ReleaseError, load_release, registry, write_judgement
from serving.store import Pointer

_REPEATS = 15
_LEAST_LISTS = 20


def judge_alone(ndcg: F64, judged: HeldOut, evaluation: Mapping[str, Any], config: GateConfig) -> list[Reason]:
    """Rules that need no live release. ndcg: float64[lists] of the new one."""
    out = []
    if (systems.lists_with_gain(judged.lists)).sum() >= _LEAST_LISTS:
        d = paired_difference(ndcg, judged.random, judged.lists.user)
        ok = d.low > 0
        out.append(
            Reason(
                "floor",
                PROMOTE if ok else KEEP,
                f"ndcg@10 {np.nanmean(ndcg):.4f} against {np.nanmean(judged.random):.4f} "
                f"of a random order [{d.low:+.4f}, {d.high:+.4f}]"
                + (
                    ""
                    if ok
                    else ": it learnt nothing that the test "
                    "lists confirm; were the labels shuffled, or clicks joined to the wrong lists?"
                ),
            )
        )
    error = (evaluation.get("calibration") or {}).get("error")
    if error is not None:
        verdict = PROMOTE if error <= config.calibration else ASK
        out.append(Reason("calibration", verdict, f"click probabilities are off by {error:.3f} on average"))
    worth = (evaluation.get("off_policy") or {}).get("systems", {})
    if {"ranker", "shown_order"} <= set(worth):
        own, shown = worth["ranker"]["doubly_robust"], worth["shown_order"]["doubly_robust"]
        worse = own["high"] is not None and own["high"] < shown["value"]
        out.append(
            Reason(
                "off_policy",
                KEEP if worse else PROMOTE,
                f"worth {own['value']:.4f} gain a list as estimated from logged "
                f"propensities, what was shown gained {shown['value']:.4f}",
            )
        )
    return out


def judge_against(
    ndcg: tuple[F64, F64],
    by_slice: Mapping[str, tuple[F64, F64]],
    plain: F64,
    judged: HeldOut,
    live: Release,
    config: GateConfig,
) -> tuple[list[Reason], dict[str, Any]]:
    """Rules that compare with the live release, and the figures they compared.

    ndcg: float64[lists] of the new and the live release. by_slice: the same for each slice, NaN outside it. plain:
    float64[lists], the live release's by clicks as they are, as its own metrics were when it was made.
    """
    new, old = ndcg
    d = paired_difference(new, old, judged.lists.user)
    figures: dict[str, Any] = {"all": asdict(d)}
    said = f"ndcg@10 {np.nanmean(new):.4f}, the live release {np.nanmean(old):.4f}: {_signed(d)} on {d.lists:,} lists"
    if d.high < 0:
        out = [Reason("quality", KEEP, f"{said}: worse")]
    elif d.difference < -config.margin:
        out = [Reason("quality", ASK, f"{said}: perhaps worse, by more than the margin of {config.margin}")]
    else:
        out = [Reason("quality", PROMOTE, f"{said}: not worse")]
    out += _label_collapse(plain, judged, live, config)
    enough = {
        name: (a, b)
        for name, (a, b) in by_slice.items()
        if (known := ~np.isnan(a)).sum() >= config.slice_lists and len(np.unique(judged.lists.user[known])) > 1
    }
    for name, (a, b) in enough.items():
        # As many looks as there are slices: each is held to a stricter level, so that all together keep theirs.
        s = paired_difference(a, b, judged.lists.user, level=1 - 0.05 / len(enough))
        figures[name] = asdict(s)
        if s.high < 0 and s.difference < -config.slice_margin:
            out.append(Reason("slice", KEEP, f"{name}: {_signed(s)} on {s.lists:,} lists: beyond the guardrail"))
    if not any(r.rule == "slice" for r in out):
        out.append(Reason("slice", PROMOTE, f"none of {len(enough)} slices falls beyond {config.slice_margin}"))
    return out, figures


def _signed(d: Any) -> str:
    return f"{d.difference:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"


def _label_collapse(old: F64, judged: HeldOut, live: Release, config: GateConfig) -> list[Reason]:
    """Whether the live release does on these lists what it did when it was made; else the lists are suspect."""
    was = live.manifest.metrics
    if not {"ranker", "random"} <= set(was):
        return []
    lead, now = was["ranker"] - was["random"], float(np.nanmean(old) - np.nanmean(judged.random))
    if lead <= 0 or now >= config.collapse * lead:
        return []
    return [
        Reason(
            "labels",
            KEEP,
            f"the live release led a random order by {lead:.4f} when it was made, by {now:.4f} on these "
            "lists: not the release but the lists changed; were the labels shuffled, or clicks joined to the wrong "
            "lists?",
        )
    ]


def compare_cost(new: Release, live: Release, config: GateConfig) -> list[Reason]:
    """Size and time of a request, as ratios to the live release's; timed in turns, on the same machine."""
    a, b = (sum(f.bytes for f in r.manifest.files.values()) for r in (new, live))
    verdict = PROMOTE if a <= config.size_ratio * b else ASK
    out = [Reason("size", verdict, f"{a / 1e6:.1f} MB, the live release {b / 1e6:.1f} MB")]
    lives = [Live.of(new), Live.of(live)]
    took: list[list[float]] = [[], []]
    for _ in range(_REPEATS + 1):
        for k, each in enumerate(lives):
            ids = list(each.items.catalogue.item_ids[: config.candidates])
            begun = time.process_time()
            each.rank(EMPTY, ids, each.release.manifest.cut_off, None)
            took[k].append(time.process_time() - begun)
    # The first compiles and reads pages; of the others the least, as what else runs only ever adds.
    ms = [1000 * min(t[1:]) for t in took]
    ratio = ms[0] / max(ms[1], 1e-9)
    verdict = PROMOTE if ratio <= config.latency_ratio else KEEP
    counted = min(config.candidates, len(lives[0].items.catalogue))
    said = f"{ms[0]:.2f} ms to rank {counted:,} candidates, the live release {ms[1]:.2f} ms: {ratio:.2f} times"
    return [*out, Reason("latency", verdict, said)]


PROMOTE, ASK, KEEP = "promote", "ask", "keep"


_SEVERITY = (PROMOTE, ASK, KEEP)


class Reason(NamedTuple):
    """What one rule says: its name, its verdict, and why."""

    rule: str
    verdict: str
    message: str


def decide(reasons: Sequence[Reason], config: GateConfig) -> tuple[str, list[Reason]]:
    """The sternest of the reasons' verdicts, and the reasons, those that decided first."""
    out = list(reasons)
    if config.mode == "ask":
        out.append(Reason("mode", ASK, "the configuration leaves every release to a person (gate.mode: ask)"))
    if config.mode == "shadow":
        out.append(Reason("mode", KEEP, "only scored beside the live release (gate.mode: shadow), see shadow.parquet"))
    out.sort(key=lambda r: -_SEVERITY.index(r.verdict))
    return (out[0].verdict if out else PROMOTE), out


def raise_unless_promoted(found: Mapping[str, Any]) -> None:
    """Raises Kept or Asked, with every reason that led to it, for what the gate wrote."""
    if found["verdict"] == PROMOTE:
        return
    causes = "\n".join(f"  {rule}: {why}" for rule, verdict, why in found["reasons"] if verdict == found["verdict"])
    how = f"shelfwise releases diff {found['live'] or ''} {found['candidate']}".replace("  ", " ")
    if found["verdict"] == KEEP:
        raise ReleaseKept(f"the gate keeps the live release {found['live'] or '(none)'}\n{causes}\ncompare: {how}")
    raise ApprovalNeeded(
        f"the gate asks whether {found['candidate']} may replace {found['live'] or 'no release'}\n{causes}\n"
        f"compare: {how}; then: shelfwise releases promote {found['candidate']}"
    )


def judge_release(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `gate.json`, the verdict with its reasons and figures, and `shadow.parquet`, both releases' scores."""
    inputs, config, pointer = a.inputs, a.inputs.config.gate, a.inputs.pointer()
    new = load_release(a.release_path, custom=inputs.custom)
    test = a.window_rows("test")
    score, held_out = a.trees.score(test.rows), _held_out(a, test)
    evaluation = a.json("evaluation.json")
    reasons = judge_alone(comparison.ndcg(score, held_out.lists, held_out.targets), held_out, evaluation, config)
    figures: dict[str, Any] = {}
    live_score: F64 | None = None
    live_id = pointer.id if pointer else None
    if pointer is not None and live_id != new.id:
        try:
            live = load_release(Path(pointer.path), custom=inputs.custom)
        except ReleaseError as e:
            reasons.append(Reason("quality", ASK, f"the live release cannot be compared with: {e}"))
        else:
            live_score = comparison.score_with_live(live, a.replay, test.lists)
            more, figures = _compare(score, live_score, held_out, live, config)
            reasons += [*more, *compare_cost(new, live, config)]
    verdict, reasons = decide(reasons, config)
    item_ids = inputs.data.catalogue.item_ids
    comparison.write_scores(a.file("shadow.parquet"), test.lists, item_ids, score, live_score)
    found = {
        "verdict": verdict,
        "candidate": new.id,
        "live": live_id,
        "reasons": [list(r) for r in reasons],
        "figures": figures,
        "asked": config.model_dump(mode="json"),
    }
    write_judgement(inputs.config.releases, found, evaluation, a.json("drift.json").get("drift", {}), time.time())
    a.write_json("gate.json", found)


def is_current(a: Artefacts) -> bool:
    """Whether the verdict was reached by this configuration, and against the release that is live, or is live."""
    found, live = a.json("gate.json"), a.inputs.live
    return found["asked"] == a.inputs.config.gate.model_dump(mode="json") and live in (
        found["live"],
        found["candidate"],
    )


def _held_out(a: Artefacts, test: WindowRows) -> HeldOut:
    inputs, lists = a.inputs, test.lists
    events, catalogue, targets = inputs.data.events, inputs.data.catalogue, a.inputs.targets(lists)
    known = slices.known_engagements(events, a.windows, targets, len(catalogue))
    random = a.baselines[:, BASELINES.index("random")]
    return HeldOut(
        lists,
        targets,
        systems.per_list(random, targets, (systems.PRIMARY,))[systems.PRIMARY],
        slices.list_slices(events, lists, a.warm[test.numbers]),
        slices.target_slices(events, lists, targets, catalogue, known),
        _examination(a, lists, targets),
    )


def _examination(a: Artefacts, lists: Lists, targets: Targets) -> F64:
    """float64[targets]: the chance that each was looked at where it stood; 1 where lists have no positions."""
    if not (a.inputs.is_logged and a.inputs.config.ranker.position_debias):
        return np.ones(len(targets.of))
    learned, names = a.window_rows("ranker"), [f.name for f in a.replay.features]
    # The targets of logged lists are their rows with a gain, in order.
    return examination_probability(learned.rows, learned.lists, lists, names)[lists.gain > 0]


def _compare(
    score: F64, live_score: F64, held_out: HeldOut, live: Release, config: GateConfig
) -> tuple[list[Reason], dict[str, Any]]:
    """Comparison on the lists that the live release cannot have learned from."""
    fair = np.isin(np.arange(len(held_out.lists)), comparison.comparable_lists(held_out.lists, live))
    by_slice = comparison.ndcg_by_slice(score, live_score, held_out, fair)
    a, b = by_slice.pop("all")
    plain = np.where(fair, comparison.ndcg(live_score, held_out.lists, held_out.targets), np.nan)
    if (~np.isnan(a)).sum() < 2:
        why = "the live release learnt from every test list, so nothing is left to compare on: is this an older night?"
        return [Reason("quality", ASK, why)], {}
    return judge_against((a, b), by_slice, plain, held_out, live, config)


def wants_shadow(a: Artefacts) -> bool:
    """Whether the configuration wants a release that passed everything else scored beside the live release."""
    against = [rule for rule, verdict, _ in a.json("gate.json")["reasons"] if verdict != PROMOTE]
    return a.inputs.config.gate.mode == "shadow" and against == ["mode"] and a.inputs.live is not None


def raise_unless_allowed(a: Artefacts, pointer: Pointer | None) -> None:
    """Raises ReleaseKept or ApprovalNeeded by the verdict, and ReleaseKept for a pin or a release rolled back."""
    release_id = a.release_id
    if pointer is not None and pointer.pinned:
        raise ReleaseKept(
            f"the live release {pointer.id} is pinned, so {release_id} was not published: `shelfwise releases unpin` "
            "lets nights replace it again"
        )
    if line := registry.last_rollback(a.inputs.config.releases, release_id):
        raise ReleaseKept(
            f"{release_id} was rolled back by {line.get('by')} at {line.get('at')} ({line.get('reason')}), so it was "
            f"not published again: `shelfwise releases promote {release_id}` does"
        )
    raise_unless_promoted(a.json("gate.json"))
