"""Reading: any supported file becomes a raw table of one temporary DuckDB database.

`find_files` lists the data files of a path, `peek` recognises format, encoding, delimiter and columns of each from its
beginning, and `Library` loads files into raw tables. A raw table has one row per record, the columns of the file, and
`_file`, `_row` (as in messages) and `_seq` (order in the table). Nothing here knows items or events.
"""

from __future__ import annotations

from offline.ingest.reading.files import find_files
from offline.ingest.reading.library import Library, RawTable, renamed_columns, table_name
from offline.ingest.reading.numbered import Numbered, find_numbered, make_lists
from offline.ingest.reading.peeking import Options, Peek, peek

__all__ = [
    "Library",
    "Numbered",
    "Options",
    "Peek",
    "RawTable",
    "find_files",
    "find_numbered",
    "make_lists",
    "peek",
    "renamed_columns",
    "table_name",
]
