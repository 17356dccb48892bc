"""Mapping: compiles a source of the configuration to one SQL query over raw tables.

`compile_source` returns a query with one row per event, item or user, and its raw values by canonical name. Reading the
values is the task of `cells`.
"""

from __future__ import annotations

from offline.ingest.mapping.query import CURRENCY, MappedSource, compile_source

__all__ = ["CURRENCY", "MappedSource", "compile_source"]
