"""How much memory a night takes as its log grows: `python -m tests.bench.night_memory`, a process of its own for each.

The same simulated shop, catalogue and shoppers, logged for some days and for `--times` as many, each put through every
step of a night. Peaks are those the kernel counts for each step (VmHWM), mapped files included; what grows is said in
bytes an event.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = """
workspace: {workspace}
simulate: {{items: {items}, users: {users}, days: {days}, new_items_per_day: 0, end: 2024-06-01T00:00:00Z}}
lists: {{most: {most}}}
encoder: {{epochs: 1, most_examples: {examples}}}
ranker: {{trees: 50}}
checks: {{accept: [volume, input_drift, feature_drift]}}
"""


_KEPT = (3, 6)
"""How a night ends that the gate did not let pass: all its steps but the last two are done."""


class Measured(NamedTuple):
    """A night: events of its log, and the peak of each step in MB, in their order."""

    events: int
    peak_mb: dict[str, float]

    @property
    def highest(self) -> float:
        """MB."""
        return max(self.peak_mb.values())


def measure(workspace: Path, days: int, users: int, items: int, most: int) -> Measured:
    """Simulate so many days into a workspace, and put them through a night."""
    workspace.mkdir(parents=True, exist_ok=True)
    path = workspace / "shelfwise.yaml"
    path.write_text(
        CONFIG.format(workspace=workspace, days=days, users=users, items=items, most=most, examples=5 * most)
    )
    for command in ("simulate", "nightly"):
        found = subprocess.run(
            [sys.executable, "-m", "offline.cli", command, "--config", str(path)],
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        if found.returncode not in (0, *_KEPT):
            raise RuntimeError(f"{command} ended with {found.returncode}: {found.stderr[-2000:]}")
    (record,) = workspace.glob("runs/*/steps.json")
    steps: dict[str, Any] = json.loads(record.read_text("utf-8"))
    statistics = json.loads(record.with_name("statistics.json").read_text("utf-8"))
    return Measured(statistics["events"], {name: step["peak_mb"] for name, step in steps.items()})


def bytes_an_event(small: Measured, large: Measured) -> float:
    """What the highest peak grew by for each event more."""
    return (large.highest - small.highest) * 2**20 / (large.events - small.events)


def said(small: Measured, large: Measured) -> str:
    """A table: each step's peak in both, and what it grew by for each event more."""
    more = large.events - small.events
    lines = [f"{'step':10} {small.events:>12,} {large.events:>12,} {'ratio':>6} {'bytes an event':>15}"]
    for name, peak in small.peak_mb.items():
        later = large.peak_mb[name]
        lines.append(
            f"{name:10} {peak:9,.0f} MB {later:9,.0f} MB {later / peak:6.2f} {(later - peak) * 2**20 / more:15.1f}"
        )
    ratio, grown = large.highest / small.highest, bytes_an_event(small, large)
    lines.append(f"{'the night':10} {small.highest:9,.0f} MB {large.highest:9,.0f} MB {ratio:6.2f} {grown:15.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=21, help="of the short log")
    parser.add_argument("--times", type=int, default=10, help="as many days in the long one")
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument(
        "--most", type=int, default=2000, help="lists that are learnt from, in both; five times as many examples"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            measure(Path(folder) / str(days), days, options.users, options.items, options.most)
            for days in (options.days, options.days * options.times)
        )
    print(said(small, large))


if __name__ == "__main__":
    main()
