"""Ingest: imports external files into a data set.

`detect` recognises a common export by its shape and returns its mapping, an `ImportConfig`; `suggest` drafts one for
other files. `import_data` reads the tables of a mapping, checks every row, writes items, events and users, and keeps
rejected rows with the reason. `validate` does the same without writing.

`reading` turns files into raw tables, `presets` and `suggestion` find mappings, `mapping` compiles them to SQL, and
`cells` reads the values.
"""

from __future__ import annotations

from offline.ingest.detection import detect
from offline.ingest.importer import import_data, validate
from offline.ingest.suggestion import suggest

__all__ = ["detect", "import_data", "suggest", "validate"]
