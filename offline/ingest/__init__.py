"""Ingest: files of others into a data set of ours.

`import_data` reads the sources of an `ImportConfig`, checks every row, writes items and events and keeps refused rows
with their reason; `validate` does all but the writing; `detect` recognises a known layout; `suggest` drafts a mapping.
"""

from __future__ import annotations

from offline.ingest.detection import detect
from offline.ingest.importer import import_data, validate
from offline.ingest.suggestion import suggest

__all__ = ["detect", "import_data", "suggest", "validate"]
