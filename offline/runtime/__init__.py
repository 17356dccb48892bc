"""Runtime: where work is done and what it needs everywhere: engines, progress, errors, files written whole.

Imports no other room. `Engine` is the contract of `LOCAL` and of a Ray cluster (`open_engine`), which give the same
bytes. Errors a person can mend are printed without a traceback by the command line.
"""

from __future__ import annotations

from offline.runtime.connect import open_engine
from offline.runtime.engine import LOCAL, Engine, EngineError, WorkerGroup, split_evenly
from offline.runtime.errors import ApprovalNeeded, ChecksFailed, DataError, Failure, ReleaseKept
from offline.runtime.files import checksum, source_digest, write_json
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
    "checksum",
    "console",
    "no_progress",
    "open_engine",
    "progress_bar",
    "source_digest",
    "split_evenly",
    "write_json",
]
