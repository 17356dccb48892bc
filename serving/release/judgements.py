"""What the gate said of each night's release: one line a night beside the releases, for whoever decides after it.

The gate writes, in the nightly job; the operator's page reads. A night that is judged again leaves another line, and
the last one counts.
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
    """Add what the gate said (`gate.json`), how well the candidate ranked, and how its features drifted.

    root: the directory of the releases. evaluation: `evaluation.json`. drift: PSI by feature, test lists against those
    learnt from. at: Unix seconds.
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
                "drift": dict(known[:_FEATURES]),
                "drift_median": median(psi for _, psi in known) if known else None,
            }
        ),
    )


_FEATURES = 5
"""Features of the largest drift that a line names."""


def read_judgements(root: Path) -> list[dict[str, Any]]:
    """What the gate said, oldest first, of each candidate the last time.

    `at`, `candidate`, `live`, `verdict`, `reasons` (rule, verdict, message), `figures`, `quality` (by system: ndcg@10,
    low, high), `drift`, `drift_median`.
    """
    last = {line["candidate"]: line for line in read_lines(root / FILE, {"at", "candidate", "verdict"})}
    return sorted(last.values(), key=lambda line: str(line["at"]))
