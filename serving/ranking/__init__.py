"""Ranking: from a request to a list.

`Follower` keeps the live release up to date, `Live` ranks with it, and `Service` answers requests: history, retrieval,
ranking, rules, exploration, explanation, and the log of served lists.
"""

from __future__ import annotations

from serving.ranking.follower import Follower
from serving.ranking.live import Live, prepare
from serving.ranking.objective import Objective, Worth, amounts
from serving.ranking.overlay import NO_OVERLAY, Overlay
from serving.ranking.placements import NO_PLACEMENT, Placement
from serving.ranking.ranking import Ranking
from serving.ranking.service import Service, plan_of

__all__ = [
    "NO_OVERLAY",
    "NO_PLACEMENT",
    "Follower",
    "Live",
    "Objective",
    "Overlay",
    "Placement",
    "Ranking",
    "Service",
    "Worth",
    "amounts",
    "plan_of",
    "prepare",
]
