"""Bars with an ETA for whatever takes more than a moment; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

OnProgress = Callable[[int, int], None]

console = Console(stderr=True, force_jupyter=False)
"""Where progress and remarks go: standard error, so that results can be piped. In a notebook too, as plain lines: rich
would ask for ipywidgets there, and warn at each bar."""


def no_progress(done: int, total: int) -> None:
    """For where nobody watches."""


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A function to call with (done, total) while the block runs; draws one line with an ETA."""
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
        # What cannot be counted is one thing, and it is done.
        progress.update(task, total=progress.tasks[task].total or 1, completed=progress.tasks[task].total or 1)
