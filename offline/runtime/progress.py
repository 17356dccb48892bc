"""Progress bars with an ETA for long-running steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

OnProgress = Callable[[int, int], None]

console = Console(stderr=True, force_jupyter=False)
"""Console for progress and messages: standard error, so that results can be piped. Notebooks get plain lines too,
because rich needs ipywidgets for more and warns at each bar without them."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """Show a progress bar with an ETA during the block. Yields a function to call with (done, total)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        Remaining(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(title, total=None)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield on_progress
        # A step that reported no total counts as one unit, now complete.
        progress.update(task, total=progress.tasks[task].total or 1, completed=progress.tasks[task].total or 1)
