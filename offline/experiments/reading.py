"""Exposures and outcomes of an experiment, read from the data set in bounded memory.

The log is read in spans of time, without erased users and duplicates, and goes into a DuckDB database on disk, which
joins actions to exposures. Memory holds a hash of each unit and the sums of `Moments`.

An exposure is a served list with items that has the experiment in its log record. A unit (a user, after merges, or a
session) belongs to the arm of its exposures; units with exposures to several arms are counted and left out. An action
counts if it is at most the attribution time after the unit's latest exposure before it, whatever page it comes from: an
arm that merely moves purchases from one page to another gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from offline.data import LogFiles
from offline.experiments.database import Database
from offline.experiments.design import Design, Observed, Window
from offline.experiments.money import Prices
from offline.runtime import DataError, OnProgress, no_progress


def read(
    files: LogFiles,
    design: Design,
    window: Window | None = None,
    prices: Prices | None = None,
    on_progress: OnProgress = no_progress,
) -> Observed:
    """The exposures and outcomes of an experiment up to the end of the log. Raises DataError for files that are broken.

    files: of the data set, without limits of time. prices: None if the value of a purchase is its revenue.
    """
    with Database(files, design.unit, window or Window(), prices or Prices.unknown()) as log:
        arms = {name: k for k, name in enumerate(design.arms)}
        log.add_lists(design, arms)
        on_progress(1, 3)
        log.add_events(design)
        on_progress(2, 3)
        found = log.observed(design)
        on_progress(3, 3)
    return found


def read_all(
    files: LogFiles,
    placements: Sequence[str],
    unit: str,
    days: float,
    window: Window | None = None,
    prices: Prices | None = None,
) -> Observed:
    """All lists of these placements in the last days of the log as a single arm, to plan an experiment on them.

    placements: empty for all. Without served lists, impressions are the lists.
    """
    bounds = files.events.bounds
    if bounds is None:
        raise DataError(f"{files.directory}: the log has no events; import or collect some first")
    start = bounds[1] / 1e6 - days * 86400
    design = Design("all", ("all",), (1.0,), unit, start, planned_days=days, placements=tuple(placements))
    with Database(files, unit, window or Window(), prices or Prices.unknown()) as log:
        log.add_lists(design, None)
        if not log.units.size:
            log.add_impressions(design)
        log.add_events(design)
        return log.observed(design)
