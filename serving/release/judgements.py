"""The gate's decisions: one JSON line per nightly run, stored with the releases.

The gate of the nightly run writes them and the operator's page reads them. Evaluating a run again appends another line;
the last line of a candidate counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from serving.release.json_lines import append_line, read_lines

FILE = "judgements.jsonl"


def write_judgement(
    root: Path, gate: Mapping[str, Any], evaluation: Mapping[str, Any], drift: Mapping[str, float], at: float
) -> None:
    """Append the gate's decision, the candidate's ranking quality and the drift of its features.

    root: the directory of the releases. gate: content of `gate.json`. evaluation: content of `evaluation.json`.
    drift: PSI per feature between the test and the training lists, NaN if unknown. at: Unix seconds.
    """
    known = sorted(((name, psi) for name, psi in drift.items() if not math.isnan(psi)), key=lambda pair: -pair[1])
    quality = {
        system: [
            by["all"]["ndcg@10"],
            *evaluation.get("intervals", {}).get(system, {}).get("all", {}).get("ndcg@10", []),
        ]
        for system, by in evaluation["systems"].items()
        if "ndcg@10" in by.get("all", {})
    }
    append_line(
        root / FILE,
        json.dumps(
            {
                "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
                "candidate": gate["candidate"],
                "live": gate["live"],
                "verdict": gate["verdict"],
                "reasons": gate["reasons"],
                "figures": gate["figures"],
                "quality": quality,
                "cut_off": gate.get("cut_off"),
                "simple_order": gate.get("simple_order"),
                "drift": dict(known[:_FEATURES]),
                "drift_median": median(psi for _, psi in known) if known else None,
            }
        ),
    )


_FEATURES = 5
"""Number of features in a line, those with the largest drift."""


def read_judgements(root: Path) -> list[dict[str, Any]]:
    """The gate's last decision on each candidate, oldest first.

    Fields: `at`, `candidate`, `live`, `verdict`, `reasons` (rule, verdict, message), `figures`, `quality` (by system:
    ndcg@10, low, high), `cut_off` of the log in Unix seconds, `simple_order` (what the release ranks by, None if its
    ranker is trained), `drift`, `drift_median`.
    """
    last = {line["candidate"]: line for line in read_lines(root / FILE, {"at", "candidate", "verdict"})}
    return sorted(last.values(), key=lambda line: str(line["at"]))
