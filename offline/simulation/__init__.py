"""Simulation: a shop in which the right answer is known, to show and to test everything else by.

`simulate` writes a data set: products with hidden attributes, shoppers with hidden tastes, searches, lists and clicks.
"""

from __future__ import annotations

from offline.simulation.dataset import simulate

__all__ = ["simulate"]
