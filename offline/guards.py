"""Where a night is held to its checks and its gate: what they read of the run, what they write, how they stop it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from features.log import F64, Lists
from offline import checks, evaluate, gate, slices, statistics, verdict
from offline.baselines import BASELINES
from offline.checks import Finding
from offline.quarantine import DataError
from offline.run import write_json
from ranker.trees import Trees
from serving import release, releases
from serving.judgements import write_judgement
from serving.manifest import ReleaseError
from serving.store import Pointer

if TYPE_CHECKING:
    from offline.nightly import Night

FINDINGS = ("checks.json", "drift.json")


def check(night: Night, now: float) -> None:
    """Write `statistics.json` and `checks.json`. Raises ChecksFailed, the files there all the same."""
    config, run = night.config, night.run
    found: list[Finding] = []
    try:
        events = night.data.events
        if not len(events):
            raise DataError(f"{config.data / 'events.parquet'}: holds no event; import a log")
    except DataError as e:
        _write(night, "checks.json", [Finding("schema", checks.STOP, str(e))])
        raise checks.ChecksFailed(f"the data checks stopped the night; the live release stays\n  schema: {e}") from e
    until = night.until if night.until is not None else float(np.nextafter(events.at[-1], np.inf))
    made = statistics.of(night.data, until, now + config.checks.future_s)
    before = checks.last(config.statistics, run.directory.name, until)
    found = checks.disk(run.directory, _last_bytes(run.directory), config.checks)
    found += checks.judge(made, before, config.checks, now)
    write_json(run.file("statistics.json"), made)
    _write(night, "checks.json", found)
    checks.raise_if_stopped(found, run.file("checks.json"))


def check_features(night: Night) -> None:
    """Write `drift.json`: features of the test lists against those learnt from. Raises ChecksFailed."""
    learnt, tested = night.part("ranker")[0], night.part("test")[0]
    drift = statistics.feature_drift(learnt, tested, [f.name for f in night.replay.features])
    found = checks.features(drift, night.config.checks)
    _write(night, "drift.json", found, drift)
    checks.raise_if_stopped(found, night.run.file("drift.json"))


def is_held_to(night: Night, name: str) -> bool:
    """Whether the findings in a file of `FINDINGS` were held to the limits of this configuration."""
    return bool(night.json(name)["limits"] == night.config.checks.model_dump(mode="json"))


def _write(night: Night, name: str, findings: list[Finding], drift: dict[str, float] | None = None) -> None:
    write_json(
        night.run.file(name),
        {
            "limits": night.config.checks.model_dump(mode="json"),
            "findings": [f._asdict() for f in findings],
            **({"drift": drift} if drift is not None else {}),
        },
    )


def _last_bytes(directory: Path) -> int:
    """What the largest other run takes on disk, less what this one has already."""

    def size(path: Path) -> int:
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())

    others = [size(p) for p in directory.parent.iterdir() if p.is_dir() and p != directory]
    return max(0, max(others, default=0) - size(directory))


def judge(night: Night, pointer: Pointer | None) -> None:
    """Write `gate.json`, the verdict with its reasons and figures, and `shadow.parquet`, both releases' scores."""
    config, made = night.config.gate, night.json("release.json")
    new = release.load(Path(made["path"]), custom=night.custom)
    x, lists, which = night.part("test")
    score = Trees.parse(night.run.file("ranker.txt").read_text("utf-8")).score(x)
    judged = _judged(night, lists, which)
    reasons = gate.alone(gate.ndcg(score, lists, judged.targets), judged, night.json("evaluation.json"), config)
    figures: dict[str, Any] = {}
    live_score: F64 | None = None
    live_id = pointer.id if pointer else None
    if pointer is not None and live_id != new.id:
        try:
            live = release.load(Path(pointer.path), custom=night.custom)
        except ReleaseError as e:
            reasons.append(verdict.Reason("quality", verdict.ASK, f"the live release cannot be compared with: {e}"))
        else:
            live_score = gate.live_score(live, night.replay, lists)
            more, figures = _compared(score, live_score, judged, live, config)
            reasons += [*more, *gate.cost(new, live, config)]
    said, reasons = verdict.sternest(reasons, config)
    gate.write_shadow(night.run.file("shadow.parquet"), lists, night.data.catalogue.item_ids, score, live_score)
    found = {
        "verdict": said,
        "candidate": new.id,
        "live": live_id,
        "reasons": [list(r) for r in reasons],
        "figures": figures,
        "asked": config.model_dump(mode="json"),
    }
    drift = night.json("drift.json").get("drift", {})
    write_judgement(night.config.releases, found, night.json("evaluation.json"), drift, time.time())
    write_json(night.run.file("gate.json"), found)


def is_judged(night: Night) -> bool:
    """Whether the verdict was reached by this configuration, and against the release that is live, or is live."""
    found = night.json("gate.json")
    same = found["asked"] == night.config.gate.model_dump(mode="json")
    return same and night.live in (found["live"], found["candidate"])


def _judged(night: Night, lists: Lists, which: Any) -> gate.Judged:
    events, catalogue = night.data.events, night.data.catalogue
    targets = night.targets(lists)
    warm = np.load(night.run.file("warm.npy"), allow_pickle=False)[which]
    baselines = np.load(night.run.file("baselines.npy"), allow_pickle=False)
    known = slices.known_engagements(events, night.windows, targets, len(catalogue))
    random = evaluate.per_list(baselines[:, BASELINES.index("random")], targets, (evaluate.PRIMARY,))[evaluate.PRIMARY]
    return gate.Judged(
        lists,
        targets,
        random,
        slices.of_lists(events, lists, warm),
        slices.of_targets(events, lists, targets, catalogue, known),
        night.looked_at(lists, targets),
    )


def _compared(
    score: F64, live_score: F64, judged: gate.Judged, live: release.Release, config: verdict.GateConfig
) -> tuple[list[verdict.Reason], dict[str, Any]]:
    """On the lists that the live release cannot have learnt from."""
    fair = np.isin(np.arange(len(judged.lists)), gate.after(judged.lists, live))
    by_slice = gate.by_slice(score, live_score, judged, fair)
    a, b = by_slice.pop("all")
    plain = np.where(fair, gate.ndcg(live_score, judged.lists, judged.targets), np.nan)
    if (~np.isnan(a)).sum() < 2:
        said = "the live release learnt from every test list, so nothing is left to compare on: is this an older night?"
        return [verdict.Reason("quality", verdict.ASK, said)], {}
    return gate.against((a, b), by_slice, plain, judged, live, config)


def goes_into_shadow(night: Night) -> bool:
    """Whether the configuration wants what the gate has nothing else against scored beside the live release."""
    found = night.json("gate.json")
    against = [rule for rule, said, _ in found["reasons"] if said != verdict.PROMOTE]
    return night.config.gate.mode == "shadow" and against == ["mode"] and night.live is not None


def raise_unless_it_may_go_live(night: Night, pointer: Pointer | None) -> None:
    """Raises Kept or Asked by the gate's verdict, and Kept for a live release that is pinned or one rolled back."""
    made = night.json("release.json")["id"]
    if pointer is not None and pointer.pinned:
        raise verdict.Kept(
            f"the live release {pointer.id} is pinned, so {made} was not published: `shelfwise releases unpin` lets "
            "nights replace it again"
        )
    if line := releases.rolled_back(night.config.releases, made):
        raise verdict.Kept(
            f"{made} was rolled back by {line.get('by')} at {line.get('at')} ({line.get('reason')}), so it was not "
            f"published again: `shelfwise releases promote {made}` does"
        )
    verdict.raise_unless_promoted(night.json("gate.json"))
