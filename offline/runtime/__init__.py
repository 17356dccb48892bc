"""Runtime: execution engines, progress bars, user-facing errors and atomic file writes.

Imports no other package under `offline`. `Engine` is the interface of both `LOCAL` and a Ray cluster (`open_engine`),
which produce the same bytes. The command line prints user-facing errors without a traceback.
"""

from __future__ import annotations

from offline.runtime.connect import open_engine
from offline.runtime.engine import LOCAL, Engine, EngineError, WorkerGroup, split_evenly
from offline.runtime.errors import ApprovalNeeded, ChecksFailed, DataError, Failure, ReleaseKept
from offline.runtime.files import atomic_path, checksum, source_digest, write_json, write_text
from offline.runtime.progress import OnProgress, console, no_progress, progress_bar

__all__ = [
    "LOCAL",
    "ApprovalNeeded",
    "ChecksFailed",
    "DataError",
    "Engine",
    "EngineError",
    "Failure",
    "OnProgress",
    "ReleaseKept",
    "WorkerGroup",
    "atomic_path",
    "checksum",
    "console",
    "no_progress",
    "open_engine",
    "progress_bar",
    "source_digest",
    "split_evenly",
    "write_json",
    "write_text",
]
