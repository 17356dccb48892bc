"""Earnings: what the lists of each placement brought, by release and arm.

`make_tables` credits lists with purchases by last touch, and estimates from the holdout of an experiment what would not
have been bought without them. The two are never added up. `write` makes the page, and `publish` the file that the
service reads.
"""

from __future__ import annotations

from offline.earnings.holdouts import Holdout, holdouts, why_not_incremental
from offline.earnings.page import amount, publish, write
from offline.earnings.tables import Settings, make_tables

__all__ = ["Holdout", "Settings", "amount", "holdouts", "make_tables", "publish", "why_not_incremental", "write"]
