"""Summary of an import: accepted and rejected rows of every file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SourceSummary:
    """Row counts of one file. Always read = accepted + quarantined.

    read: rows. lines: lines of a file in which a line may be several rows, else None. quarantined: rows by reason.
    """

    file: str
    read: int
    lines: int | None
    accepted: int
    quarantined: Mapping[str, int]
    notes: Sequence[str]


@dataclass(frozen=True)
class ImportSummary:
    """Summary of an import, or of its validation.

    events: accepted events by kind. first, last: ISO 8601 timestamps of the events, None without events. examples:
    messages about the first rejected row of every file and reason.
    """

    sources: Sequence[SourceSummary]
    users: int
    items: int
    lists: int
    events: Mapping[str, int]
    first: str | None
    last: str | None
    notes: Sequence[str]
    examples: Sequence[str]

    def table(self) -> list[tuple[str, str, int]]:
        """(file, `read`, `accepted` or a rejection reason, rows), in the order of the sources."""
        rows = []
        for s in self.sources:
            rows += [(s.file, "read", s.read), (s.file, "accepted", s.accepted)]
            rows += [(s.file, reason, n) for reason, n in s.quarantined.items()]
        return rows

    def to_json(self) -> str:
        """The summary as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def why_nothing(self) -> str:
        """Message for an import without events, with the most common rejection reason."""
        refused = [(n, reason, s.file) for s in self.sources for reason, n in s.quarantined.items()]
        if not refused:
            return "No events were found in the sources."
        n, reason, file = max(refused)
        return f"No event was accepted. Most common reason: {reason} ({n} rows of {file})."
