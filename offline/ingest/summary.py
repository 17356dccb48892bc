"""Summary of an import: accepted and rejected rows of every table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SourceSummary:
    """Row counts of one table. Always read = accepted + quarantined + left_out.

    file: its file, or the first of several. read: rows. records: rows of the files, which may hold several rows or
    none. quarantined: rows by reason. left_out: rows by kind of what the mapping does not import.
    """

    file: str
    read: int
    records: int
    accepted: int
    quarantined: Mapping[str, int]
    left_out: Mapping[str, int]
    notes: Sequence[str]


@dataclass(frozen=True)
class ImportSummary:
    """Summary of an import, or of its validation.

    events: accepted events by kind. profiles: users with attributes. first, last: ISO 8601 timestamps of the events,
    None without events. examples: messages about the first rejected row of every reason, for at most two files.
    """

    sources: Sequence[SourceSummary]
    users: int
    items: int
    lists: int
    profiles: int
    events: Mapping[str, int]
    first: str | None
    last: str | None
    notes: Sequence[str]
    examples: Sequence[str]

    def table(self) -> list[tuple[str, str, int]]:
        """(file, `read`, `accepted`, a rejection reason or what is left out, rows), in the order of the tables."""
        rows = []
        for s in self.sources:
            rows += [(s.file, "read", s.read), (s.file, "accepted", s.accepted)]
            rows += [(s.file, reason, n) for reason, n in s.quarantined.items()]
            rows += [(s.file, f"left out: {what}", n) for what, n in s.left_out.items()]
        return rows

    def to_json(self) -> str:
        """The summary as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def why_nothing(self) -> str:
        """Message for an import without events, with its root cause.

        If events were refused because their items are unknown, the cause is what refused the items.
        """
        refused = [(n, reason, s.file) for s in self.sources for reason, n in s.quarantined.items()]
        if not refused:
            return "No events were found in the sources."
        causes = [r for r in refused if r[1] != "unknown_item"] or refused
        n, reason, file = max(causes)
        echo = sum(n for n, reason, _ in refused if reason == "unknown_item")
        therefore = f", hence {echo} events of unknown items" if echo and reason != "unknown_item" else ""
        return f"No event was accepted. Most common reason: {reason} ({n} rows of {file}){therefore}."
