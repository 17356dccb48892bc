"""The document of merchandising rules, its changes, and how a change is made and undone. Functions of values only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from serving.rules import Rules

RULE_ID = "^[A-Za-z0-9_-]{1,64}$"
"""Pattern of the ID of a rule: `explain` puts it into a path, and the routes into a URL."""
NOTE = 500
"""Maximum length of a note, in characters."""
LATEST = 253_402_300_799.0
"""The last moment of the year 9999, in Unix seconds: the latest that a start or an end may be."""


class MerchandisingRule(Struct, frozen=True, omit_defaults=True):
    """Rules for the lists of one placement, or for all lists, with the time in which they apply.

    placement: null for all lists. start, end: Unix seconds; the rules apply from the start until just before the end;
    null for no limit. note: the reason, in the words of the author. by: name of the key that changed the rule last. at:
    when that was, Unix seconds. created: version of the document in which the rule was added; rules apply in this
    order.
    """

    id: str
    rules: Rules
    placement: str | None = None
    start: float | None = None
    end: float | None = None
    note: str = ""
    by: str = ""
    at: float = 0.0
    created: int = 0

    def applies(self, at: float) -> bool:
        """True if the rule applies at this time (Unix seconds)."""
        return (self.start is None or self.start <= at) and (self.end is None or at < self.end)


class Document(Struct, frozen=True, omit_defaults=True):
    """All merchandising rules, in the order in which they apply. version: increases by one with every change."""

    version: int = 0
    rules: list[MerchandisingRule] = []

    def rule(self, rule_id: str) -> MerchandisingRule | None:
        """The rule with this ID, None if there is none."""
        return next((r for r in self.rules if r.id == rule_id), None)


class Change(Struct, frozen=True, omit_defaults=True):
    """A change of the document. version: the one that it made. by: name of the key. at: Unix seconds.

    before, after: the rules that it changed, as they were before and after; a rule that is only in one of them was
    deleted or added. to: of an undo, the version whose rules it restored.
    """

    version: int
    at: float
    by: str
    action: Literal["put", "delete", "undo"]
    note: str = ""
    before: list[MerchandisingRule] = []
    after: list[MerchandisingRule] = []
    to: int | None = None


class UndoError(ValueError):
    """A version cannot be restored; the message says why."""


def with_rule(document: Document, rule: MerchandisingRule) -> Document:
    """The next version, in which the rule is added, or replaces the one with its ID."""
    others = [r for r in document.rules if r.id != rule.id]
    return _document(document.version + 1, [*others, rule])


def without_rule(document: Document, rule_id: str) -> Document:
    """The next version, without the rule with this ID."""
    return _document(document.version + 1, [r for r in document.rules if r.id != rule_id])


def restored(document: Document, changes: Iterable[Change], to: int) -> Document:
    """The next version, with the rules of version `to`.

    changes: those since version `to`, newest first. Raises UndoError if one of them is missing.
    """
    rules, version = {r.id: r for r in document.rules}, document.version
    for change in changes:
        if change.version != version or version <= to:
            break
        for rule in change.after:
            rules.pop(rule.id, None)
        rules |= {rule.id: rule for rule in change.before}
        version -= 1
    if version != to:
        raise UndoError(
            f"the changes since version {to} are not all kept: the oldest that can be restored is {version}"
        )
    return _document(document.version + 1, rules.values())


def changed(before: Document, after: Document) -> tuple[list[MerchandisingRule], list[MerchandisingRule]]:
    """The rules that differ between two versions: (as before, as after)."""
    old, new = {r.id: r for r in before.rules}, {r.id: r for r in after.rules}
    return [r for r in before.rules if new.get(r.id) != r], [r for r in after.rules if old.get(r.id) != r]


def _document(version: int, rules: Iterable[MerchandisingRule]) -> Document:
    return Document(version, sorted(rules, key=lambda r: (r.created, r.id)))
