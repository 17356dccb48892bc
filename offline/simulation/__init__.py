"""Simulation of a shop whose true user preferences are known, for demonstrations and tests.

`simulate` writes a data set: products with hidden attributes, shoppers with hidden tastes, searches, lists and clicks.
`visit` lets the same shoppers use a running service.
"""

from __future__ import annotations

from offline.simulation.dataset import simulate
from offline.simulation.visits import Visits, visit

__all__ = ["Visits", "simulate", "visit"]
