"""Cells: raw values to IDs, numbers, moments, texts and lists, as SQL expressions over a whole column.

A convention, such as the decimal separator or the order of day and month, is found from all values of a column, never
from one cell. A cell that cannot be read is missing; `Reader` counts it and keeps an example.
"""

from __future__ import annotations

from offline.ingest.cells.currencies import Currencies, currency_code
from offline.ingest.cells.macros import create_macros
from offline.ingest.cells.reader import Reader
from offline.ingest.cells.request_columns import add_request_columns, columns_sql, request_columns

__all__ = [
    "Currencies",
    "Reader",
    "add_request_columns",
    "columns_sql",
    "create_macros",
    "currency_code",
    "request_columns",
]
