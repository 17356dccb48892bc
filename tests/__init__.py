"""Tests: a folder for each package and subpackage, benchmarks in `bench`, and shared helpers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
"""Real data and cases next to the checkout; tests that need them are skipped if they do not exist."""

NO_EVENT_LIMITS: dict[str, Any] = dict.fromkeys(
    (
        "shopper_events_per_minute",
        "shopper_events_per_day",
        "shopper_item_engagements_per_day",
        "shopper_item_impressions_per_day",
    )
)
"""Settings of a service that accepts any number of events of one shopper, as load tests and shared services need."""
