"""The gate: may a new release take the place of the live one? Both order the same held-out lists, and rules decide.

The live release is scored as it would answer: its own trees on rows made of its own vectors, with item state and users'
lists replayed to the moment of each list. Items it does not hold have no vector. Only lists after what the live release
learnt from count. `promote` publishes; `keep` leaves the live release; `ask` leaves it too, for a person to decide.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.history import EMPTY
from features.log import F32, F64, I64, Lists
from features.replay import Replay
from offline import evaluate
from offline.baselines import order_of
from offline.lists import Targets
from offline.verdict import ASK, KEEP, PROMOTE, GateConfig, Reason
from ranker.booster import BoosterTrees
from ranker.metrics import paired_difference, tie_break
from ranker.trees import Trees
from serving.live import Live
from serving.release import Release

_REPEATS = 15
_LEAST_LISTS = 20
Mask = NDArray[np.bool_]


class Judged(NamedTuple):
    """Held-out lists as the gate reads them. random: float64[lists], ndcg@10 of a random order. of_lists: bool[lists]
    and of_targets: bool[targets] by slice. looked_at: float64[targets], the chance that each was looked at in its
    place."""

    lists: Lists
    targets: Targets
    random: F64
    of_lists: Mapping[str, Mask]
    of_targets: Mapping[str, Mask]
    looked_at: F64


def live_score(live: Release, replay: Replay, lists: Lists) -> F64:
    """float64[rows]: what the live release gives each candidate of these lists, each list at its moment."""
    of_live = live.items.catalogue.rows(list(replay.catalogue.item_ids))  # -1, the unknown item, has no vector
    vectors = live.items.vectors
    held: F32 = (vectors.code[of_live].astype(np.float32) * vectors.scale[of_live, None]).astype(np.float32)
    return replayed_score(live.trees, held, replay, lists)


def replayed_score(trees: Trees | BoosterTrees, vectors: F32, replay: Replay, lists: Lists) -> F64:
    """float64[rows]: the score by these trees on rows of these vectors (float32[n, d], NaN for an item without), all
    else as of each list's moment."""
    unknown = np.full((1, vectors.shape[1]), np.nan, np.float32)
    own = Replay(
        replay.catalogue,
        np.vstack([vectors, unknown]),
        replay.events,
        replay.refresh_at,
        replay.custom,
        replay.session_weight,
        words=replay.words,
        given=replay.histories,
    )
    return named_score(trees, [f.name for f in own.features], own.rows(lists))


def named_score(trees: Trees | BoosterTrees, columns: Sequence[str], rows: F32) -> F64:
    """float64[n]: the score of rows whose columns are matched by name; a feature that is not among them is missing."""
    at = {name.replace(" ", "_"): k for k, name in enumerate(columns)}
    matched = np.full((len(rows), len(trees.names)), np.nan, np.float32)
    for column, name in enumerate(trees.names):
        if name in at:
            matched[:, column] = rows[:, at[name]]
    return trees.score(matched)


def alone(ndcg: F64, judged: Judged, evaluation: Mapping[str, Any], config: GateConfig) -> list[Reason]:
    """Rules that need no live release. ndcg: float64[lists] of the new one."""
    out = []
    if (evaluate.lists_with_gain(judged.lists)).sum() >= _LEAST_LISTS:
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
    systems = (evaluation.get("off_policy") or {}).get("systems", {})
    if {"ranker", "shown_order"} <= set(systems):
        own, shown = systems["ranker"]["doubly_robust"], systems["shown_order"]["doubly_robust"]
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


def against(
    ndcg: tuple[F64, F64],
    by_slice: Mapping[str, tuple[F64, F64]],
    plain: F64,
    judged: Judged,
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
    out += _collapse(plain, judged, live, config)
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


def _collapse(old: F64, judged: Judged, live: Release, config: GateConfig) -> list[Reason]:
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


def by_slice(new: F64, old: F64, judged: Judged, fair: Mask) -> dict[str, tuple[F64, F64]]:
    """float64[lists] of both scores (float64[rows]) by slice, whose means are ndcg@10; NaN for a list outside it.

    By what was clicked over the chance of a look: the live release put what it likes on top, where it is clicked more.
    fair: bool[lists], those to compare on.
    """
    orders = [_ordered(score, judged.lists) for score in (new, old)]

    def both(of_lists: Mask, part: Mask | None = None) -> tuple[F64, F64]:
        values = [evaluate.looked_at_ndcg(o, judged.targets, judged.looked_at, part) for o in orders]
        (a, weight), (b, _) = values
        used = fair & of_lists & ~np.isnan(a)
        share = np.where(used, weight, np.nan) / (weight[used].mean() if used.any() else 1.0)
        return a * share, b * share

    every = np.ones(len(judged.lists), bool)
    return (
        {"all": both(every)}
        | {name: both(mask) for name, mask in judged.of_lists.items()}
        | {name: both(every, part) for name, part in judged.of_targets.items()}
    )


def ndcg(score: F64, lists: Lists, targets: Targets) -> F64:
    """float64[lists]: ndcg@10 of a score (float64[rows])."""
    return evaluate.per_list(_ordered(score, lists), targets, (evaluate.PRIMARY,))[evaluate.PRIMARY]


def _ordered(score: F64, lists: Lists) -> Any:
    return order_of(score, lists.item, lists.start, tie_break(lists.item, lists.start))


def cost(new: Release, live: Release, config: GateConfig) -> list[Reason]:
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


def after(lists: Lists, live: Release) -> I64:
    """int64: numbers of the lists that the live release cannot have learnt from, by the windows it was made with."""
    begin = live.manifest.window.get("test", {}).get("from")
    since = datetime.fromisoformat(begin).timestamp() if begin else live.manifest.cut_off
    return np.flatnonzero(lists.at >= since)


def write_shadow(path: Path, judged: Lists, item_ids: Sequence[str], new: F64, live: F64 | None) -> None:
    """Both releases' scores of every candidate of the test lists, side by side, as Parquet."""
    missing = np.full(len(new), np.nan)
    pq.write_table(
        pa.table(
            {
                "request_id": [judged.request_ids[g] for g in judged.group.tolist()],
                "item_id": [item_ids[i] for i in judged.item.tolist()],
                "gain": judged.gain,
                "new": new,
                "live": missing if live is None else live,
            }
        ),
        path,
    )
