"""Rules that merchandisers change while the service runs: pins, boosts, filters and others, with start and end.

They are one versioned document in Redis, with a history of its changes. Every worker follows it, and compiles it for
the release that it serves. All of it is off unless `serving.merchandising` is true.
"""

from __future__ import annotations

from serving.merchandising.bounds import BoundError, check_bounds
from serving.merchandising.compiled import Compiled, compile_document
from serving.merchandising.document import (
    LATEST,
    NOTE,
    RULE_ID,
    Change,
    Document,
    MerchandisingRule,
    UndoError,
    changed,
    restored,
    with_rule,
    without_rule,
)
from serving.merchandising.followed import Followed
from serving.merchandising.stored import CHANGES, Stored, read_changes, read_document, read_rules, write_document

__all__ = [
    "CHANGES",
    "LATEST",
    "NOTE",
    "RULE_ID",
    "BoundError",
    "Change",
    "Compiled",
    "Document",
    "Followed",
    "MerchandisingRule",
    "Stored",
    "UndoError",
    "changed",
    "check_bounds",
    "compile_document",
    "read_changes",
    "read_document",
    "read_rules",
    "restored",
    "with_rule",
    "without_rule",
    "write_document",
]
