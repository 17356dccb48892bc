"""Rules: conditions on items, and the rules of a shop over a ranked list, checked against the catalogue, never code."""

from __future__ import annotations

from serving.rules.conditions import Attributes, Condition, RuleError
from serving.rules.rules import Applied, Cap, Diversity, Plan, Ranked, Removed, Ruled, Rules, StandingRules

__all__ = [
    "Applied",
    "Attributes",
    "Cap",
    "Condition",
    "Diversity",
    "Plan",
    "Ranked",
    "Removed",
    "RuleError",
    "Ruled",
    "Rules",
    "StandingRules",
]
