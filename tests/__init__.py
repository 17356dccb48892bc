"""Tests: a folder for each package and subpackage, benchmarks in `bench`, and shared helpers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
"""Real data and cases next to the checkout; tests that need them are skipped if they do not exist."""
