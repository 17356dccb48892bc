"""Companions of items: bought together, complements, next in the session, and when an item is bought again.

All of it is computed from the baskets and sessions of a log up to a time, and is part of a release, like the
neighbours of `features/neighbours.py`.
"""

from features.companions.repurchase import buy_again_scores, repurchase_seconds
from features.companions.scores import seed_scores
from features.companions.tables import Companions

__all__ = ["Companions", "buy_again_scores", "repurchase_seconds", "seed_scores"]
