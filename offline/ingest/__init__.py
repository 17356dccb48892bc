"""Ingest: imports external files into a data set.

`import_data` reads the sources of an `ImportConfig`, checks every row, writes items and events, and keeps rejected rows
with the reason. `validate` does the same without writing. `detect` recognises a known layout, and `suggest` drafts a
column mapping.
"""

from __future__ import annotations

from offline.ingest.detection import detect
from offline.ingest.importer import import_data, validate
# from offline.ingest.suggestion import suggest

__all__ = ["detect", "import_data", "validate"]
