"""Rules of a shop for ranked lists, and the conditions on items that they use. Both are data, never code."""

from __future__ import annotations

from serving.rules.conditions import MOST_CONDITIONS, MOST_VALUES, AboutAttribute, Attributes, Condition, RuleError
from serving.rules.requests import RequestCondition, StandingCondition, compile_for_requests
from serving.rules.rules import Applied, Cap, Diversity, Plan, Ranked, Removed, RuledList, Rules, StandingRules
from serving.rules.variants import VariantPlan, Variants, VariantSettings, first_of_group, only_without

__all__ = [
    "MOST_CONDITIONS",
    "MOST_VALUES",
    "AboutAttribute",
    "Applied",
    "Attributes",
    "Cap",
    "Condition",
    "Diversity",
    "Plan",
    "Ranked",
    "Removed",
    "RequestCondition",
    "RuleError",
    "RuledList",
    "Rules",
    "StandingCondition",
    "StandingRules",
    "VariantPlan",
    "VariantSettings",
    "Variants",
    "compile_for_requests",
    "first_of_group",
    "only_without",
]
