"""The document compiled for one release: the rules that apply to a list at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field

from serving.merchandising.document import Document, MerchandisingRule
from serving.rules import Attributes, Plan, RuleError


@dataclass
class Compiled:
    """The rules of a document, compiled for the items of one release.

    plans: each rule with its plan, in the order in which they apply. set_aside: why a rule cannot be used with this
    release, by ID; those rules do not apply. placements: the names that are configured.
    """

    document: Document
    plans: tuple[tuple[MerchandisingRule, Plan], ...]
    set_aside: dict[str, str]
    placements: frozenset[str]
    _changes: list[float] = field(default_factory=list)
    _period: int = -1
    _by_list: dict[str | None, Plan | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._changes = sorted({t for r, _ in self.plans for t in (r.start, r.end) if t is not None})

    def after(self, configured: Plan | None, placement: str | None, at: float) -> Plan | None:
        """The rules of the configuration for a list, followed by those that apply to it at this time.

        configured: always the same for a placement. placement: None for a list without one. at: Unix seconds. The plan
        is the same until a rule begins or ends, so it is made once.
        """
        period = bisect_right(self._changes, at)
        if period != self._period:
            self._period, self._by_list = period, {}
        if placement not in self._by_list:
            self._by_list[placement] = self._joined(configured, placement, at)
        return self._by_list[placement]

    def _joined(self, plan: Plan | None, placement: str | None, at: float) -> Plan | None:
        # Rules for one placement take precedence over those for all lists.
        lists = (None,) if placement is None else (None, placement)
        for of_list in lists:
            for rule, own in self.plans:
                if rule.placement == of_list and rule.applies(at):
                    plan = own if plan is None else plan.then(own)
        return plan

    def again(self, attributes: Attributes) -> Compiled:
        """The same document, compiled for other items."""
        return compile_document(self.document, attributes, self.placements)


def compile_document(document: Document, attributes: Attributes, placements: Collection[str]) -> Compiled:
    """Compile a document for a release. Never fails: a rule that the release cannot serve is set aside.

    placements: names of the configured placements.
    """
    plans, set_aside = [], dict[str, str]()
    for rule in document.rules:
        if rule.placement is not None and rule.placement not in placements:
            set_aside[rule.id] = f"placement {rule.placement!r} is not configured"
            continue
        try:
            plan = Plan.of(rule.rules, attributes, f"merchandising.{rule.id}")
        except RuleError as e:
            set_aside[rule.id] = f"{e.path}: {e}"
        else:
            if plan is not None:
                plans.append((rule, plan))
    return Compiled(document, tuple(plans), set_aside, frozenset(placements))
