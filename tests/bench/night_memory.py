"""Memory of a nightly run as its log grows: `python -m tests.bench.night_memory`, each run in its own process.

The same simulated shop, catalogue and users, with a log of some days and one of `--times` as many days, each put
through all steps of a nightly run. Peaks are counted by the kernel for each step (VmHWM), including mapped files.
Growth is reported in bytes per event.
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
"""Exit statuses when the gate does not let the release pass; all steps but the last two are done."""


class Measured(NamedTuple):
    """A nightly run: events of its log, and the peak memory of each step in MB, in order."""

    events: int
    peak_mb: dict[str, float]

    @property
    def highest(self) -> float:
        """Highest peak in MB."""
        return max(self.peak_mb.values())


def measure(workspace: Path, days: int, users: int, items: int, most: int) -> Measured:
    """Simulate `days` days into a workspace, and run a nightly run on them."""
    workspace.mkdir(parents=True, exist_ok=True)
    path = workspace / "shelfwise.yaml"
    path.write_text(
        CONFIG.format(workspace=workspace, days=days, users=users, items=items, most=most, examples=5 * most)
    )
    for command in ("simulate", "nightly"):
        process = subprocess.run(
            [sys.executable, "-m", "offline.cli", command, "--config", str(path)],
            env={**os.environ, "MALLOC_ARENA_MAX": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode not in (0, *_KEPT):
            raise RuntimeError(f"{command} ended with status {process.returncode}: {process.stderr[-2000:]}")
    (record,) = workspace.glob("runs/*/steps.json")
    steps: dict[str, Any] = json.loads(record.read_text("utf-8"))
    statistics = json.loads(record.with_name("statistics.json").read_text("utf-8"))
    return Measured(statistics["events"], {name: step["peak_mb"] for name, step in steps.items()})


def bytes_per_event(small: Measured, large: Measured) -> float:
    """Growth of the highest peak per additional event."""
    return (large.highest - small.highest) * 2**20 / (large.events - small.events)


def format_table(small: Measured, large: Measured) -> str:
    """A table of each step's peak in both runs, and its growth per additional event."""
    added = large.events - small.events
    lines = [f"{'step':10} {small.events:>12,} {large.events:>12,} {'ratio':>6} {'bytes per event':>15}"]
    for name, peak in small.peak_mb.items():
        after = large.peak_mb[name]
        lines.append(
            f"{name:10} {peak:9,.0f} MB {after:9,.0f} MB {after / peak:6.2f} {(after - peak) * 2**20 / added:15.1f}"
        )
    ratio, growth = large.highest / small.highest, bytes_per_event(small, large)
    lines.append(f"{'whole run':10} {small.highest:9,.0f} MB {large.highest:9,.0f} MB {ratio:6.2f} {growth:15.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=21, help="days of the short log")
    parser.add_argument("--times", type=int, default=10, help="length of the long log, as a multiple")
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument(
        "--most", type=int, default=2000, help="training lists in both runs, with five times as many encoder examples"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        small, large = (
            measure(Path(folder) / str(days), days, options.users, options.items, options.most)
            for days in (options.days, options.days * options.times)
        )
    print(format_table(small, large))


if __name__ == "__main__":
    main()
