"""Work in processes of their own that are killed in the middle of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offline.data import collection
from offline.nightly.run import Run, Step
from serving.store import BulkStore

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def exit_status(function: Callable[..., object], *arguments: Any, timeout: float = 60.0) -> int:
    """The exit status of a process that calls a function of this module; minus the number of the signal that ended it.

    Processes are forks of one that has imported this module, so each starts in milliseconds. One that is still running
    after the timeout, in seconds, is killed, and TimeoutError raised.
    """
    process = _CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{function.__name__} is still running after {timeout:g} s")
    return process.exitcode


def collect_killed(data: Path, url: str, function: str, calls: int) -> None:
    """Collect in batches of five, and kill this process when a function is called for the nth time."""
    owner = os if function == "fsync" else collection
    original, remaining = getattr(owner, function), [calls]

    def killing(*arguments: Any) -> Any:
        remaining[0] -= 1
        if not remaining[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(owner, function, killing)
    collection._ROWS, collection._LOGS = 5, tuple(log._replace(batch=5) for log in collection._LOGS)
    with BulkStore(url) as store:
        collection.collect(data, store)


def run_killed(root: Path) -> None:
    """Start a run of two steps, and kill this process when the second one has written half of its file."""
    run = Run(root, {"seed": 1})

    def a(on_progress: object) -> None:
        run.file("a.txt").write_text("a")

    def b(on_progress: object) -> None:
        run.file("b.txt").write_text("half of ")
        os.kill(os.getpid(), signal.SIGKILL)

    run.do([Step("a", "Step a", ["a.txt"], a), Step("b", "Step b", ["b.txt"], b)])
