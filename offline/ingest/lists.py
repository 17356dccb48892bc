"""Checks across events: lists, duplicates, and items that no source describes."""

from __future__ import annotations

from typing import NamedTuple

from features.log import KINDS, Kind
from offline.config import ImportConfig
from offline.ingest.account import Account
from offline.ingest.reading import Library
from offline.ingest.reading.library import literal

_SHOWN = f"kind = {int(Kind.IMPRESSION)}"


class EventChecks(NamedTuple):
    """Checks of the table `shop.events` of a library; refused rows are counted in an account."""

    library: Library
    account: Account
    config: ImportConfig

    def refuse(self, bad: str, column: str, reason: str) -> int:
        """Refuse the events whose `seq` is in the result of a query; returns their number."""
        sql = self.library.sql
        sql.execute(f"CREATE OR REPLACE TEMP TABLE _bad AS {bad}")
        if not (n := self.library.rows("SELECT count(*) FROM _bad")[0][0]):
            return 0
        for number, source in enumerate(self.config.events):
            name = ((source.columns.get(column) or None) and source.columns[column].path) or column  # type: ignore[union-attr]
            self.account.refuse(
                self.account.of(source.table),
                f"SELECT file, row, {literal(name)}, CAST({column} AS VARCHAR), {literal(reason)} AS reason"
                f" FROM shop.events WHERE source = {number} AND seq IN (SELECT seq FROM _bad) ORDER BY seq",
            )
        sql.execute("DELETE FROM shop.events WHERE seq IN (SELECT seq FROM _bad)")
        return int(n)

    def run(self) -> list[str]:
        """All checks except of unknown items, in the order in which they depend on one another. Returns notes."""
        notes = self.find_lists()
        if self.library.rows(f"SELECT count(*) FROM shop.events WHERE {_SHOWN} AND request_id IS NOT NULL")[0][0]:
            self.refuse_shared_lists()
            self.refuse_mixed_arms()
            notes += self.unify_times()
        self.name_events()
        self.refuse(
            "SELECT seq FROM shop.events QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY seq) > 1",
            "event_id",
            "duplicate_event",
        )
        self.refuse(
            f"SELECT seq FROM shop.events WHERE {_SHOWN} AND request_id IS NOT NULL"
            " QUALIFY row_number() OVER (PARTITION BY request_id, item_id ORDER BY seq) > 1",
            "item_id",
            "item_twice_in_list",
        )
        return [*notes, *self.compare_clicks()]

    def find_lists(self) -> list[str]:
        """Assign rows without a list to the newest list that showed the item, for sources that ask for it."""
        notes = []
        for number, source in enumerate(self.config.events):
            if source.find_list_within_s is None:
                continue
            within_us = round(source.find_list_within_s * 1e6)
            events = f"SELECT * FROM shop.events WHERE source = {number} AND NOT {_SHOWN} AND request_id IS NULL"
            shown = f"SELECT * FROM shop.events WHERE {_SHOWN} AND request_id IS NOT NULL"
            found = self.library.rows(
                f"CREATE OR REPLACE TEMP TABLE _found AS SELECT e.seq, s.request_id FROM ({events}) AS e"
                f" ASOF JOIN ({shown}) AS s"
                " ON e.user_id = s.user_id AND e.item_id = s.item_id AND e.timestamp >= s.timestamp"
                f" WHERE e.timestamp - s.timestamp <= {within_us}; SELECT count(*) FROM _found"
            )
            if found[0][0]:
                self.library.sql.execute(
                    "UPDATE shop.events SET request_id = f.request_id FROM _found AS f WHERE shop.events.seq = f.seq"
                )
            minutes = source.find_list_within_s / 60
            notes.append(
                f"{found[0][0]} events were assigned to the newest list of the last {minutes:g} minutes that showed"
                " the item"
            )
        return notes

    def refuse_shared_lists(self) -> None:
        """Refuse rows of a list that was first shown to another user."""
        owners = (
            f"SELECT request_id, arg_min(user_id, seq) AS owner FROM shop.events"
            f" WHERE {_SHOWN} AND request_id IS NOT NULL GROUP BY request_id"
        )
        self.refuse(
            f"SELECT seq FROM shop.events JOIN ({owners}) AS o USING (request_id) WHERE user_id <> owner",
            "request_id",
            "list_of_another_user",
        )

    def refuse_mixed_arms(self) -> None:
        """Refuse impressions in other arms than the first of their list. A missing arm contradicts none."""
        known = f"{_SHOWN} AND request_id IS NOT NULL AND experiments IS NOT NULL"
        arms = "CAST(experiments AS VARCHAR)"
        first = f"SELECT request_id, arg_min({arms}, seq) AS arms FROM shop.events WHERE {known} GROUP BY request_id"
        self.refuse(
            f"SELECT seq FROM shop.events JOIN ({first}) AS f USING (request_id) WHERE {known} AND {arms} <> f.arms",
            "experiments",
            "list_of_another_arm",
        )

    def unify_times(self) -> list[str]:
        """Set impressions to the earliest time of their list."""
        first = (
            f"SELECT request_id, min(timestamp) AS first_shown FROM shop.events WHERE {_SHOWN}"
            " AND request_id IS NOT NULL GROUP BY 1"
        )
        self.library.sql.execute(
            "CREATE OR REPLACE TEMP TABLE _moved AS SELECT seq, first_shown FROM shop.events"
            f" JOIN ({first}) USING (request_id) WHERE {_SHOWN} AND timestamp > first_shown"
        )
        moved = self.library.rows("SELECT count(*) FROM _moved")[0][0]
        if not moved:
            return []
        self.library.sql.execute(
            "UPDATE shop.events SET timestamp = m.first_shown FROM _moved AS m WHERE shop.events.seq = m.seq"
        )
        return [f"{moved} impressions were moved to the earliest time of their list"]

    def name_events(self) -> None:
        """Give events without an ID the MD5 of their content, so that duplicates of an event get the same ID.

        Content: user, item, kind, time and list, with the position for impressions and the value for other events.
        """
        kinds = ", ".join(literal(k) for k in KINDS)
        parts = [
            "user_id",
            "item_id",
            f"[{kinds}][kind + 1]",
            "timestamp",
            "coalesce(request_id, '')",
            f"CASE WHEN {_SHOWN} THEN coalesce(position::VARCHAR, '') ELSE '' END",
            f"CASE WHEN {_SHOWN} THEN '' ELSE coalesce(value::VARCHAR, '') END",
        ]
        derived = f"md5({' || chr(31) || '.join(f'({p})' for p in parts)})"
        self.library.sql.execute(
            f"CREATE OR REPLACE TABLE shop.events AS SELECT * REPLACE (coalesce(event_id, {derived}) AS event_id)"
            " FROM shop.events"
        )

    def compare_clicks(self) -> list[str]:
        """Note on impressions with a `clicked` flag that contradicts the click events."""
        clicks = f"SELECT DISTINCT request_id, item_id, true AS found FROM shop.events WHERE kind = {int(Kind.CLICK)}"
        flagged, wrong = self.library.rows(
            "SELECT count(*), count(*) FILTER (clicked <> coalesce(found, false)) FROM shop.events AS e"
            f" LEFT JOIN ({clicks}) AS c ON e.item_id = c.item_id AND e.request_id IS NOT DISTINCT FROM c.request_id"
            " WHERE clicked IS NOT NULL"
        )[0]
        if not flagged:
            return []
        return [
            f"`clicked` agrees with the click events for {flagged - wrong} of {flagged} impressions; the events are"
            " used"
        ]
