"""The account of an import: what happened to every row of every file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class SourceSummary:
    """What happened to a file: read = accepted + quarantined, always.

    read: rows; lines: of a file where one line may be several rows, else None. quarantined: rows by reason.
    """

    file: str
    read: int
    lines: int | None
    accepted: int
    quarantined: Mapping[str, int]
    notes: Sequence[str]


@dataclass(frozen=True)
class ImportSummary:
    """What an import made, or would make.

    events: accepted ones by kind. first, last: ISO 8601 moments of the events, None without events.
    examples: sentences for the first few refused rows of every file and reason.
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
        """(file, `read` or `accepted` or the reason of a refusal, rows), in the order of the sources."""
        rows = []
        for s in self.sources:
            rows += [(s.file, "read", s.read), (s.file, "accepted", s.accepted)]
            rows += [(s.file, reason, n) for reason, n in s.quarantined.items()]
        return rows

    def to_json(self) -> str:
        """The summary as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def why_nothing(self) -> str:
        """Why no event was accepted: the commonest reason."""
        refused = [(n, reason, s.file) for s in self.sources for reason, n in s.quarantined.items()]
        if not refused:
            return "No event was found in the sources."
        n, reason, file = max(refused)
        return f"No event was accepted. Most rows were refused for {reason} ({n} of {file})."
