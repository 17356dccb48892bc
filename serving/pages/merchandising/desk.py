"""The operations behind the API of merchandisers: read the rules, change one, undo, and what can be chosen."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from serving.api import Problem
from serving.merchandising import (
    BoundError,
    Change,
    Document,
    Followed,
    MerchandisingRule,
    Stored,
    UndoError,
    changed,
    check_bounds,
    compile_document,
    read_changes,
    read_document,
    restored,
    with_rule,
    without_rule,
    write_document,
)
from serving.pages.merchandising.forms import (
    MerchandisingHistory,
    MerchandisingItems,
    MerchandisingOptions,
    MerchandisingRuleIn,
    MerchandisingRuleState,
    MerchandisingState,
    MerchandisingUndo,
    PlacementOption,
    invalid,
)
from serving.pages.storefront.shop import products, search, shop
from serving.ranking import Live, Service
from serving.rules import Plan, RuleError, Rules
from serving.store import StoreAway

log = logging.getLogger(__name__)

_VALUES = 200
"""Maximum number of values offered of an attribute."""
_ITEMS = 20
"""Maximum number of items found by their titles."""


class Desk:
    """The merchandising rules as one worker reads and changes them."""

    def __init__(self, service: Service, followed: Followed) -> None:
        self._service, self._followed = service, followed
        self._placements = frozenset(service.config.placements)

    async def read(self) -> Stored:
        """The document in Redis; what this worker last used of it if Redis is unavailable or has lost it."""
        try:
            return await self._stored()
        except StoreAway:
            return Stored("", self._followed.document)

    async def _stored(self) -> Stored:
        """The same. Raises StoreAway."""
        stored = await read_document(self._service.store)
        # An emptied Redis: the next change writes back what this worker still uses.
        return stored if stored.stamp else Stored("", self._followed.document)

    async def state(self) -> MerchandisingState:
        """All rules, and whether they apply now. Raises Problem (503) if no release is loaded."""
        try:
            return await self._state_of((await self._stored()).document, self._followed.problem)
        except StoreAway as e:
            problem = self._followed.problem or f"the rules cannot be changed now: {e}"
            return await self._state_of(self._followed.document, problem)

    async def _state_of(self, document: Document, problem: str = "") -> MerchandisingState:
        live, at = self._service.live(), self._service.clock()
        compiled = await asyncio.to_thread(compile_document, document, live.attributes, self._placements)
        states = [_state(rule, compiled.set_aside.get(rule.id, ""), at) for rule in document.rules]
        return MerchandisingState(document.version, at, states, problem)

    async def history(self, most: int) -> MerchandisingHistory:
        """The newest changes. Raises Problem (503) if Redis is unavailable."""
        try:
            stored = await self._stored()
            return MerchandisingHistory(await read_changes(self._service.store, stored.document.version, most))
        except StoreAway as e:
            raise _redis_away(e) from e

    async def put(self, rule_id: str, asked: MerchandisingRuleIn, by: str) -> MerchandisingState:
        """Add or replace a rule. Raises Problem (409, 422, 503)."""
        check_rules(asked.rules, self._service.live(), "rules")
        self.check_placement(asked.placement)
        before = await self._expected(asked.version)
        old, at = before.document.rule(rule_id), self._service.moment()
        assert not isinstance(asked.start, str)
        assert not isinstance(asked.end, str)
        created = before.document.version + 1 if old is None else old.created
        rule = MerchandisingRule(
            rule_id, asked.rules, asked.placement, asked.start, asked.end, asked.note, by, at, created
        )
        after = with_rule(before.document, rule)
        try:
            check_bounds(after)
        except BoundError as e:
            raise invalid("rules", str(e), "Change or delete rules that are not needed any more.") from e
        return await self._write(before, after, Change(after.version, at, by, "put", asked.note))

    async def delete(self, rule_id: str, version: int, note: str, by: str) -> MerchandisingState:
        """Delete a rule. Raises Problem (404, 409, 503)."""
        before = await self._expected(version)
        if before.document.rule(rule_id) is None:
            raise Problem(
                404, "no-such-rule", "No such rule", f"there is no rule {rule_id!r}", "Reload the rules.", "rule_id"
            )
        after = without_rule(before.document, rule_id)
        return await self._write(before, after, Change(after.version, self._service.moment(), by, "delete", note))

    async def undo(self, asked: MerchandisingUndo, by: str) -> MerchandisingState:
        """Restore the rules of a version, as a new version. Raises Problem (409, 422, 503)."""
        before = await self._expected(asked.version)
        newest = before.document.version
        if asked.to >= newest:
            raise invalid("to", f"version {asked.to} is not before the current one", "Send an earlier version.")
        try:
            changes = await read_changes(self._service.store, newest, newest - asked.to)
            after = restored(before.document, changes, asked.to)
        except StoreAway as e:
            raise _redis_away(e) from e
        except UndoError as e:
            raise invalid("to", str(e), "Restore a later version, or change the rules one by one.") from e
        change = Change(after.version, self._service.moment(), by, "undo", asked.note, to=asked.to)
        return await self._write(before, after, change)

    async def _expected(self, version: int) -> Stored:
        """The document in Redis. Raises Problem (409) if it has another version, and 503 if Redis is unavailable."""
        try:
            stored = await self._stored()
        except StoreAway as e:
            raise _redis_away(e) from e
        if stored.document.version != version:
            raise _moved(stored.document.version)
        return stored

    async def _write(self, before: Stored, after: Document, change: Change) -> MerchandisingState:
        """Write the next version. change: without the rules that it changes. Raises Problem (409, 503)."""
        old, new = changed(before.document, after)
        change = msgspec.structs.replace(change, before=old, after=new)
        try:
            written = await write_document(self._service.store, before.stamp, after, change)
            if written is None:
                raise _moved((await self._stored()).document.version)
        except StoreAway as e:
            raise _redis_away(e) from e
        self._followed.adopt(written)
        ids = ",".join(dict.fromkeys(r.id for r in (*old, *new)))
        log.info("merchandising version %d by %s: %s %s", change.version, change.by, change.action, ids)
        return await self._state_of(after)

    async def options(self, may_write: bool) -> MerchandisingOptions:
        """The choices in a rule and for a preview. Raises Problem (503) if no release is loaded.

        may_write: whether the key may change rules; the IDs of known shoppers are only for those.
        """
        live = self._service.live()
        attributes = await asyncio.to_thread(live.attributes.about, _VALUES)
        placements = [
            PlacementOption(name, list(config.requires)) for name, config in self._service.config.placements.items()
        ]
        shoppers = (await shop(self._service, False)).shoppers if may_write else []
        return MerchandisingOptions(placements, attributes, shoppers, may_write)

    async def items(self, words: str) -> MerchandisingItems:
        """Items by their titles. Raises Problem (503) if no release is loaded."""
        live = self._service.live()
        found = await asyncio.to_thread(search, live, words, _ITEMS)
        return MerchandisingItems(products(live, found))

    def check_placement(self, name: str | None) -> None:
        """Raise Problem (422) for a placement that is not configured."""
        if name is not None and name not in self._placements:
            known = ", ".join(sorted(self._placements)) or "none is configured"
            raise Problem(
                422,
                "unknown-placement",
                "Unknown placement",
                f"{name!r} is not a placement; the placements are: {known}",
                "Use a configured placement, or null for all lists.",
                "placement",
            )


def check_rules(rules: Rules, live: Live, path: str) -> None:
    """Raise Problem (422) for rules that the live release cannot serve. path: of the rules in the request."""
    try:
        Plan.of(rules, live.attributes, path)
    except RuleError as e:
        raise Problem(422, "invalid-rule", "Invalid rule", str(e), "See docs/rules.md for the grammar.", e.path) from e


def _state(rule: MerchandisingRule, problem: str, at: float) -> MerchandisingRuleState:
    if rule.end is not None and rule.end <= at:
        return MerchandisingRuleState(rule, "expired", problem)
    if problem:
        return MerchandisingRuleState(rule, "set aside", problem)
    return MerchandisingRuleState(rule, "active" if rule.applies(at) else "scheduled")


def _moved(version: int) -> Problem:
    return Problem(
        409,
        "moved",
        "The rules have changed",
        f"version {version} of the rules is current; someone else has changed them meanwhile",
        "Read the rules again, and repeat the change with their version.",
        "version",
        version=version,
    )


def _redis_away(error: StoreAway) -> Problem:
    return Problem(
        503,
        "store-away",
        "Redis is unavailable",
        str(error),
        "Retry shortly. The rules of before stay in use.",
        headers={"Retry-After": "1"},
    )
