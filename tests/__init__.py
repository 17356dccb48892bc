"""The specification: a folder for each package and room, the benchmarks in `bench`, helpers beside them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
"""Real data and cases beside the checkout; tests that need them are skipped where they are absent."""
