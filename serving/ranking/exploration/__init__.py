"""Exploration: lists that differ from the ranker's order at random, with known propensities.

`swaps` exchanges neighbouring items. `policy` moves the items that the shop knows least about, and reserves positions
for new ones: which (`policy`), how little is known of them (`belief`), and where they are placed (`merge`).
"""

from __future__ import annotations

from serving.ranking.exploration.belief import Belief, belief_of, check_explorations, item_spread
from serving.ranking.exploration.policy import Explored, explore_by_posterior
from serving.ranking.exploration.swaps import explore

__all__ = ["Belief", "Explored", "belief_of", "check_explorations", "explore", "explore_by_posterior", "item_spread"]
