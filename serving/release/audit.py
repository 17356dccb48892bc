"""The audit log: who changed which release, when and why."""

from __future__ import annotations

import getpass
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from serving.release.json_lines import append_line
from serving.store import BulkStore


def record_change(
    root: Path, store: BulkStore, action: str, release_id: str, before: str | None, reason: str, by: str | None = None
) -> None:
    """Append a change of the release pointer to `audit.jsonl` and to the recent changes in Redis."""
    line = json.dumps(
        {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "action": action,
            "release": release_id,
            "before": before,
            "by": f"{by or _user()}@{socket.gethostname()}",
            "reason": reason,
        }
    )
    append_line(root / "audit.jsonl", line)
    store.append_audit(line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return str(os.getuid())
