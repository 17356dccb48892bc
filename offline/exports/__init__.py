"""Exports: ranked lists for many users as files, such as for an e-mail, and the users for whom a product ranks high.

`live_at` prepares a release and the users as the service would have them at one time. `write_export` ranks for all of
them on an engine, and writes one file per 1,000 users. Interrupted, it continues with the files that are missing and
ends with the same bytes. An export is not an exposure: nothing is logged.
"""

from __future__ import annotations

from offline.exports.export import (
    Audience,
    Destination,
    Export,
    Exported,
    merchandising_of,
    started_at,
    started_merchandising,
    write_export,
)
from offline.exports.state import Shoppers, live_at, read_user_ids

__all__ = [
    "Audience",
    "Destination",
    "Export",
    "Exported",
    "Shoppers",
    "live_at",
    "merchandising_of",
    "read_user_ids",
    "started_at",
    "started_merchandising",
    "write_export",
]
