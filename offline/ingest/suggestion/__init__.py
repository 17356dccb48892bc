"""Suggestion: drafts a mapping for files in an unknown layout, from names in several languages and from values.

`vocabulary` knows words, `tables` what a sample of each column shows, `roles` which column could be what, `joins` which
tables lead to which, and `draft` writes the mapping. Every guess has a comment: a person reviews the draft.
"""

from __future__ import annotations

from offline.ingest.suggestion.draft import suggest

__all__ = ["suggest"]
