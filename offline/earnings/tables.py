"""The tables of earnings: lists, actions and money by placement, release and arm, and the incremental estimates.

The log is read once. Its rows are split by list, to match lists with what names them, and then by user, to find last
touches and to count distinct users. Each file of the split fits into memory, whatever the length of the log.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from features.arrays import I64
from offline.config import AttributeKind, EarningsConfig
from offline.data import DAY_US, LogFiles
from offline.earnings.attribution import last_touches, named_lists
from offline.earnings.cells import Cells, break_down
from offline.earnings.holdouts import Holdout, HoldoutSums, incremental
from offline.earnings.reading import event_rows, served_rows
from offline.earnings.rows import RowKind, Rows, SplitRows
from offline.earnings.sums import FigureSums, GroupSums
from offline.experiments import Prices, read_merges
from offline.runtime import OnProgress, no_progress

SCHEMA = 1
ROWS_PER_FILE = 2_000_000
"""Rows of a file of the split: about 130 MB, and three times that while they are sorted."""
_ITEMS_PER_LIST = 20
"""Rough size of a served list, to choose the number of files."""
_COUNTS = ("lists", "users", "clicks", "carts", "purchases", "returns", "without_revenue", "without_margin")


class Settings(NamedTuple):
    """Settings of the tables besides the data set.

    attribution_s: seconds. attributes: kinds of item attributes. not_incremental: by `why_not_incremental`.
    """

    earnings: EarningsConfig
    attribution_s: float
    attributes: Mapping[str, AttributeKind]
    holdouts: Sequence[Holdout] = ()
    currency: str | None = None
    not_incremental: Mapping[str, str] = MappingProxyType({})
    rows_per_file: int = ROWS_PER_FILE


class _Split(NamedTuple):
    """Facts about the lists, from splitting the rows by user.

    seen, silent: served lists by placement number. last_list: Unix microseconds of the last list of each cell.
    unlisted: number of impressions of no list.
    """

    cells: Cells
    seen: I64
    silent: I64
    last_list: I64
    unlisted: int


def make_tables(
    files: LogFiles, settings: Settings, scratch: Path | None = None, on_progress: OnProgress = no_progress
) -> dict[str, Any]:
    """The content of `earnings.json`; docs/earnings.md describes it.

    scratch: directory for temporary files, about 80 bytes per row; by default the system's. Raises DataError and
    FileNotFoundError for a data set that cannot be read, or that lacks an attribute.
    """
    bounds = [b for b in (files.events.bounds, files.served.bounds) if b is not None]
    end = max((last for _, last in bounds), default=0)
    last_day = end // DAY_US
    first_day = max(last_day - settings.earnings.days + 1, min((first for first, _ in bounds), default=0) // DAY_US)
    files = replace(files, begin=max(files.begin, first_day * DAY_US))
    window, scratch = round(settings.attribution_s * 1e6), scratch or Path(tempfile.gettempdir())
    prices = Prices.of(files.directory, settings.attributes, settings.earnings)
    with SplitRows(scratch, _estimated_rows(files), settings.rows_per_file) as by_user:
        split = _split_by_user(files, prices, by_user, settings, scratch, window, on_progress)
        days = last_day - first_day + 1
        sums = _Sums(split, settings, first_day, days, window)
        for rows in by_user.parts():
            sums.add(rows)
    return {
        "schema": SCHEMA,
        "first_day": _date(first_day),
        "last_day": _date(last_day),
        "complete_to": _date(complete) if (complete := (end + 1 - window) // DAY_US - 1) >= first_day else None,
        "log_end": datetime.fromtimestamp(end / 1e6, UTC).isoformat(timespec="seconds"),
        "attribution_s": settings.attribution_s,
        "currency": settings.currency,
        "value": settings.earnings.value,
        "margin": settings.earnings.margin or settings.earnings.cost,
        **sums.tables(),
        "notes": sums.notes(),
    }


def _estimated_rows(files: LogFiles) -> int:
    return files.events.rows + (1 + _ITEMS_PER_LIST) * files.served.rows


def _split_by_user(
    files: LogFiles,
    prices: Prices,
    by_user: SplitRows,
    settings: Settings,
    scratch: Path,
    window: int,
    on_progress: OnProgress,
) -> _Split:
    cells, merges, total, done, unlisted = Cells(), read_merges(files), _estimated_rows(files), 0, 0
    with SplitRows(scratch, total, settings.rows_per_file) as by_list:
        for read in (served_rows(files, cells, merges), event_rows(files, cells, merges, prices)):
            for rows in read:
                named = rows["request"] != 0
                by_list.add(rows[named], rows["request"][named])
                action = ~named & (rows["kind"] != RowKind.SHOWN)
                unlisted += int((~named & ~action).sum())
                by_user.add(rows[action], rows["user"][action])
                done += len(rows)
                on_progress(min(done, total), total)
        tallies, last_list = [], np.empty(0, np.int64)
        for rows in by_list.parts():
            found = named_lists(rows, cells, window)
            by_user.add(found.rows, found.rows["user"])
            tallies.append((found.seen, found.silent))
            lists = found.rows[found.rows["kind"] <= RowKind.SILENT]
            last_list = np.append(last_list, np.zeros(len(cells) - len(last_list), np.int64))
            np.maximum.at(last_list, lists["cell"], lists["at"])
    # Placements and cells that were met later have zeros.
    size = len(cells.placements)
    seen, silent = (
        sum((np.pad(t[k], (0, size - len(t[k]))) for t in tallies), np.zeros(size, np.int64)) for k in (0, 1)
    )
    return _Split(cells, seen, silent, last_list, unlisted)


class _Sums:
    """All sums over the users of the files."""

    def __init__(self, split: _Split, settings: Settings, first_day: int, days: int, window: int) -> None:
        self._split, self._settings, self._window = split, settings, window
        self._first_day, self._days = first_day, days
        cells = split.cells.all
        self._placement = split.cells.placement_codes()
        self._hides_silent = split.seen > 0
        names = sorted({name for cell in cells for name, _ in cell.arms})
        self._unknown = [n for n in names if n not in {h.experiment for h in settings.holdouts}]
        columns = ("placement", "release")
        self._groups = {
            "all": [GroupSums(break_down(cells, ()), first_day, days)],
            "placements": [GroupSums(break_down(cells, columns[:1]), first_day, days)],
            "releases": [GroupSums(break_down(cells, columns), first_day, days)],
            "arms": [GroupSums(break_down(cells, (*columns, "arm"), name), first_day, days) for name in names],
        }
        self._shop_total, self._shop_daily = FigureSums(), FigureSums()
        self._holdouts = [
            HoldoutSums(h, cells, first_day, days, self._last_list(h.experiment) + window)
            for h in settings.holdouts
            if h.experiment in names
        ]
        self._placements_of = {
            name: sorted({cell.placement or "" for cell in cells if name in dict(cell.arms)}) for name in names
        }
        self._anonymous = 0

    def _last_list(self, experiment: str) -> int:
        inside = [k for k, cell in enumerate(self._split.cells.all) if experiment in dict(cell.arms)]
        return int(self._split.last_list[inside].max(initial=0))

    def add(self, rows: Rows) -> None:
        """Add the users of a file."""
        served = rows[rows["kind"] <= RowKind.SILENT]
        unseen = np.isin(rows["kind"], (RowKind.SILENT, RowKind.LISTED)) & (rows["cell"] >= 0)
        unseen[unseen] = self._hides_silent[self._placement[rows["cell"][unseen]]]
        rows = rows[~unseen]
        lists, actions = rows[rows["kind"] <= RowKind.SILENT], last_touches(rows, self._window)
        self._anonymous += int((lists["user"] == 0).sum())
        for group in (g for groups in self._groups.values() for g in groups):
            group.add(lists, actions)
        bought = actions[actions["kind"] >= RowKind.PURCHASE]
        day = bought["at"] // DAY_US - self._first_day
        nobody = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._shop_total.add(*nobody, np.zeros(len(bought), np.int64), bought)
        self._shop_daily.add(*nobody, day, bought)
        for holdout in self._holdouts:
            holdout.add(served, bought)

    def tables(self) -> dict[str, Any]:
        """The tables, with the figures of all days and of each."""
        shop = dict(self._shop_total.items()).get(0, dict.fromkeys(_COUNTS, 0.0) | {"revenue": 0.0, "margin": 0.0})
        shop_days = {self._first_day + day: figures for day, figures in self._shop_daily.items()}
        out: dict[str, Any] = {"shop": {"total": self._bought(shop), "days": self._by_day(shop_days, self._bought)}}
        for name, groups in self._groups.items():
            out[name] = [entry for group in groups for entry in self._entries(group)]
        out["experiments"] = [
            self._dated(incremental(h)) | {"placements": self._placements_of[h.holdout.experiment]}
            for h in self._holdouts
        ]
        reasons = self._settings.not_incremental
        out["not_incremental"] = [
            {"experiment": name, "reason": reasons.get(name, "it is not in the configuration")}
            for name in self._unknown
        ]
        return out

    def _entries(self, group: GroupSums) -> list[dict[str, Any]]:
        daily = group.daily()
        found = [
            {
                **group.breakdown.names[code],
                "total": self._figures(total),
                "days": self._by_day(daily[code], self._figures),
            }
            for code, total in group.total().items()
        ]
        return sorted(found, key=lambda e: [str(v or "") for k, v in e.items() if k not in ("total", "days")])

    def _figures(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """Figures as numbers of JSON. Revenue and margin are None if they are unknown for every purchase."""
        out: dict[str, Any] = {name: int(figures[name]) for name in _COUNTS}
        bought = out["purchases"] + out["returns"]
        for name in ("revenue", "margin"):
            out[name] = None if bought and out[f"without_{name}"] == bought else round(figures[name], 6)
        if self._settings.earnings.margin is None and self._settings.earnings.cost is None:
            del out["margin"], out["without_margin"]
        return out

    def _bought(self, figures: Mapping[str, float]) -> dict[str, Any]:
        """The figures of all purchases, also those that no list is credited with."""
        left_out = ("lists", "users", "clicks", "carts")
        return {name: value for name, value in self._figures(figures).items() if name not in left_out}

    def _by_day(self, days: Mapping[int, Mapping[str, float]], form: Any) -> list[dict[str, Any]]:
        return [{"day": _date(day), **form(figures)} for day, figures in sorted(days.items())]

    def _dated(self, found: dict[str, Any]) -> dict[str, Any]:
        for treated in found["treated"]:
            if self._settings.earnings.margin is None and self._settings.earnings.cost is None:
                del treated["outcomes"]["margin"]
            for days in treated["outcomes"].values():
                for entry in days:
                    entry["day"] = _date(entry["day"])
        return found

    def notes(self) -> list[str]:
        """Notes on the data for readers of the tables."""
        split, out = self._split, []
        names = {number: name or "no placement" for name, number in split.cells.placements.items()}
        for number, (seen, silent) in enumerate(zip(split.seen.tolist(), split.silent.tolist(), strict=True)):
            if silent and seen:
                out.append(
                    f"{names[number]}: served lists without any reported impression or click are left out: {silent:,}."
                )
            elif silent:
                out.append(
                    f"{names[number]}: no impressions are reported, so served lists count as shown, from top to "
                    f"bottom: {silent:,}."
                )
        if self._anonymous:
            out.append(f"Lists without a user, which are in no count of users: {self._anonymous:,}.")
        if split.unlisted:
            out.append(
                f"Impressions without a request ID, which belong to no list and are left out: {split.unlisted:,}."
            )
        return out


def _date(day: int) -> str:
    return str(np.datetime64(int(day), "D"))
