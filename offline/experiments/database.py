"""The database of one analysis: exposures and actions on disk, joined and summed up by DuckDB."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.arrays import F64, I64, U64
from features.log import KINDS, Kind
from offline.data import LogFiles, to_microseconds
from offline.experiments.design import Design, Observed, Window
from offline.experiments.lookups import Items, id_hashes, read_merges
from offline.experiments.money import Prices
from offline.experiments.statistics import UNIT, Moments, add_days
from serving.config import INTERLEAVED

DAY_US = 86_400_000_000
MEMORY = "1GB"
"""Memory of the database; beyond it, it uses the disk."""
DEPTH = 10
"""Positions of a list whose diversity is measured."""
MONEY = ("revenue", "margin")
_ACTIONS = ("clicks", "carts", "purchases", *MONEY)
_RETURN = -1
"""Kind of a purchase with a negative value, which counts for money only."""
_LISTS = ("lists", "degraded", "ms", "timed", "diversity", "varied")
OUTCOMES = (*_LISTS, *_ACTIONS)
COLUMNS = (UNIT, *OUTCOMES, *(f"{name}_before" for name in _ACTIONS))
"""Columns of the moments. timed, varied: lists whose time and diversity are known; `ms` and `diversity` are sums."""
PREFERENCE = (UNIT, "lists", "decided", "preference")
"""Columns of interleaving: lists, those with an action on an item of one team, and the sum of their preferences."""


class Database:
    """The database of one analysis, on disk."""

    def __init__(self, files: LogFiles, unit: str, window: Window, prices: Prices) -> None:
        self.files, self.unit, self.window, self.prices = files, unit, window, prices
        self.items = Items.of(files.directory)
        self.merges = read_merges(files)
        self.units: U64 = np.empty(0, np.uint64)
        self.counts: dict[str, int] = {}
        self.start_us = 0
        self.end_us = 0

    def __enter__(self) -> Database:
        self._folder = TemporaryDirectory(prefix="shelfwise-experiment-")
        self.sql = duckdb.connect(f"{self._folder.name}/log.duckdb")
        # One thread: sums do not depend on the order in which threads finish.
        for setting in (f"memory_limit = '{MEMORY}'", "threads = 1", "enable_progress_bar = false"):
            self.rows(f"SET {setting}")
        self.rows(
            "CREATE TABLE lists (unit UBIGINT, moment BIGINT, arm TINYINT, request UBIGINT, degraded DOUBLE, "
            "ms DOUBLE, diversity DOUBLE)"
        )
        self.rows(
            "CREATE TABLE events (unit UBIGINT, moment BIGINT, kind TINYINT, revenue DOUBLE, margin DOUBLE, "
            "request UBIGINT, item BIGINT)"
        )
        self.rows("CREATE TABLE teams (request UBIGINT, item BIGINT, team TINYINT)")
        return self

    def __exit__(self, *error: object) -> None:
        self.sql.close()
        self._folder.cleanup()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Result of a query, complete: a connection with an unread result refuses the next query."""
        return self.sql.execute(query).fetchall()

    def count(self, name: str, rows: int) -> None:
        """Add to a count of the report."""
        if rows:
            self.counts[name] = self.counts.get(name, 0) + rows

    def _insert(self, table: str, columns: Mapping[str, Any]) -> None:
        rows = pa.table(dict(columns))
        if len(rows):
            self.sql.register("span", rows)
            self.rows(f"INSERT INTO {table} SELECT * FROM span")
            self.sql.unregister("span")

    def _units(self, table: pa.Table, at: I64) -> tuple[U64, np.ndarray]:
        """(hash of the unit of each row, whether it has one)."""
        column = "user_id" if self.unit == "user" else "session_id"
        ids = pc.fill_null(table[column].combine_chunks().cast(pa.string()), "")
        unit, known = id_hashes(ids), pc.not_equal(ids, "").to_numpy(zero_copy_only=False)
        return self.merges.apply(unit, at) if self.unit == "user" else unit, known

    def add_lists(self, design: Design, arms: Mapping[str, int] | None) -> None:
        """Read the exposures. arms: None for all lists, as arm 0."""
        begin = self.files.begin if design.start is None else round(design.start * 1e6)
        end = self.files.end if design.end is None else round(design.end * 1e6)
        columns = (
            "request_id", "at", "user_id", "session_id", "placement", "degraded", "took_ms", "live_ms", "item_ids",
            "experiments", "teams",
        )  # fmt: skip
        parts = [np.empty(0, np.uint64)]
        for span in self.files.served_spans(columns, begin, end):
            if arms is None and design.placements:
                span = span.filter(pc.is_in(span["placement"], pa.array(design.placements)))
            arm = self._arms(span, design, arms)
            at = to_microseconds(span["at"])
            unit, known = self._units(span, at)
            length = pc.fill_null(pc.list_value_length(span["item_ids"]), 0).to_numpy()
            exposed = arm >= 0
            self.count("lists without items", int((exposed & (length == 0)).sum()))
            self.count(f"lists without a {self.unit}", int((exposed & ~known).sum()))
            kept = np.flatnonzero(exposed & known & (length > 0))
            span = span.take(pa.array(kept))
            request = id_hashes(span["request_id"])
            ms = pc.coalesce(span["took_ms"], span["live_ms"])
            self._insert(
                "lists",
                {
                    "unit": unit[kept],
                    "at": at[kept],
                    "arm": arm[kept].astype(np.int8),
                    "request": request,
                    "degraded": pc.fill_null(span["degraded"], False).cast(pa.float64()),
                    "ms": ms,
                    "diversity": pa.array(self._diversity(span["item_ids"]), from_pandas=True),
                },
            )
            if design.interleaved and arms is not None:
                self._add_teams(span, request, arms)
            parts.append(np.unique(unit[kept]))
            if len(parts) > 64:
                parts = [np.unique(np.concatenate(parts))]
        self.units = np.unique(np.concatenate(parts))

    def _arms(self, span: pa.Table, design: Design, arms: Mapping[str, int] | None) -> I64:
        """int64: the arm of each list, -1 for one that is not in the experiment."""
        if arms is None:
            return np.zeros(len(span), np.int64)
        named = pc.map_lookup(span["experiments"].combine_chunks(), pa.scalar(design.name), "first")
        known = pa.array([INTERLEAVED] if design.interleaved else list(arms), pa.string())
        out: I64 = pc.fill_null(pc.index_in(named, known, skip_nulls=True), -1).to_numpy().astype(np.int64)
        self.count(
            "lists of an arm that is not configured", int((pc.is_valid(named).to_numpy(False) & (out < 0)).sum())
        )
        return out

    def _diversity(self, lists: pa.ChunkedArray) -> F64:
        """float64: share of the pairs of the first items of a list whose categories differ; NaN without a pair.

        Gini-Simpson index of the categories: intra-list diversity with a distance of 1 between categories.
        """
        items, of, key = _places(lists)
        category = self.items.category[self.items.rows(items)].astype(np.int64)
        used = (category >= 0) & (key % 2**20 < DEPTH)
        n = np.bincount(of[used], minlength=len(lists)).astype(np.float64)
        pair, same = np.unique(of[used] * 2**31 + category[used], return_counts=True)
        equal = np.bincount(pair // 2**31, same * (same - 1), len(lists))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(n > 1, 1 - equal / (n * (n - 1)), np.nan)

    def _add_teams(self, span: pa.Table, request: U64, arms: Mapping[str, int]) -> None:
        """Read the arm that chose each item."""
        (items, of, item_key), (teams, _, team_key) = (_places(span[c]) for c in ("item_ids", "teams"))
        place = np.searchsorted(team_key, item_key)
        has_team = place < len(team_key)
        has_team[has_team] = team_key[place[has_team]] == item_key[has_team]
        team = np.full(len(of), -1)
        index = pc.fill_null(pc.index_in(teams, pa.array(list(arms), pa.string()), skip_nulls=True), -1).to_numpy()
        team[has_team] = index[place[has_team]]
        item = self.items.rows(items)
        chosen = (team >= 0) & (item >= 0)
        columns = {"request": request[of[chosen]], "item": item[chosen], "team": team[chosen].astype(np.int8)}
        self._insert("teams", columns)

    def add_impressions(self, design: Design) -> None:
        """Impressions as lists, for a log from before the service: one list for each request ID and user."""
        begin = round((design.start or 0) * 1e6)
        self.rows("CREATE TEMP TABLE shown (unit UBIGINT, moment BIGINT, request UBIGINT)")
        for span in self._event_spans(begin, None):
            shown = span.filter(
                pc.and_(pc.equal(span["event"], KINDS[Kind.IMPRESSION]), pc.is_valid(span["request_id"]))
            )
            at = to_microseconds(shown["timestamp"])
            unit, known = self._units(shown, at)
            columns = {"unit": unit, "at": at, "request": id_hashes(shown["request_id"])}
            self._insert("shown", {name: values[known] for name, values in columns.items()})
        self.rows(
            "INSERT INTO lists SELECT unit, min(moment), 0, request, 0, NULL, NULL FROM shown GROUP BY unit, request"
        )
        found: Any = self.sql.execute("SELECT DISTINCT unit FROM lists ORDER BY unit").fetchnumpy()
        self.units = found["unit"].astype(np.uint64)

    def _event_spans(self, begin: int, end: int | None) -> Iterator[pa.Table]:
        files = LogFiles(self.files.directory, self.files.storage, begin, end if end is not None else self.files.end)
        bounds = files.events.bounds
        if bounds is not None and bounds[0] < files.end and bounds[1] >= begin:
            yield from (span.table for span in files.event_spans())

    def add_events(self, design: Design) -> None:
        """Read the actions of exposed units, from the days before the start on."""
        if not len(self.units):
            return
        first = self.rows("SELECT min(moment) FROM lists")[0][0]
        self.start_us = round(design.start * 1e6) if design.start is not None else int(first)
        begin = self.start_us - round(self.window.before_days * DAY_US)
        end = None if design.end is None else round((design.end + self.window.attribution_s) * 1e6) + 1
        for span in self._event_spans(begin, end):
            self.end_us = max(self.end_us, int(to_microseconds(span["timestamp"])[-1]))
            kind = pc.index_in(span["event"], pa.array(KINDS)).to_numpy()
            acts = np.isin(kind, (Kind.CLICK, Kind.CART, Kind.PURCHASE))
            span, kind = span.filter(pa.array(acts)), kind[acts]
            at = to_microseconds(span["timestamp"])
            unit, known = self._units(span, at)
            kept = np.flatnonzero(known & np.isin(unit, self.units))
            span = span.take(pa.array(kept))
            kind, revenue, margin = self._money(span, kind[kept])
            columns = {
                "unit": unit[kept],
                "at": at[kept],
                "kind": kind.astype(np.int8),
                "revenue": revenue,
                "margin": margin,
                "request": id_hashes(span["request_id"]),
                "item": self.items.rows(span["item_id"]),
            }
            self._insert("events", columns)

    def _money(self, span: pa.Table, kind: I64) -> tuple[I64, F64, F64]:
        """(kind, -1 for a return; revenue; margin of actions). Unknown money, and that of other actions, is 0; unknown
        money is counted.
        """
        bought = np.flatnonzero(kind == Kind.PURCHASE)
        paid = span.take(pa.array(bought))
        value = pc.fill_null(paid["value"], np.nan).to_numpy()
        value = np.where(np.isfinite(value), value, np.nan)
        out = np.zeros(len(kind)), np.zeros(len(kind))
        for name, total, money in zip(MONEY, out, self.prices.money(paid["item_id"].to_pylist(), value), strict=True):
            total[bought] = np.nan_to_num(money)
            if name == "revenue" or self.prices.has_margins:
                self.count(f"purchases without a known {name}", int(np.isnan(money).sum()))
        returned = bought[value < 0]
        self.count("returns", len(returned))
        kind = kind.copy()
        kind[returned] = _RETURN
        return kind, *out

    def observed(self, design: Design) -> Observed:
        """Join actions to exposures, and sum up."""
        if not len(self.units):
            return Observed(None, None, 0, np.empty(0), self.counts)
        self.rows(
            "CREATE TABLE arrivals AS SELECT unit, min(arm) AS arm, min(moment) AS moment FROM lists GROUP BY unit "
            "HAVING min(arm) = max(arm)"
        )
        crossed, last = self.rows(
            "SELECT count(DISTINCT unit) - (SELECT count(*) FROM arrivals), max(moment) FROM lists"
        )[0]
        self.count(f"{self.unit}s in several arms", crossed)
        attribution = round(self.window.attribution_s * 1e6)
        self.rows(
            "CREATE TABLE acts AS SELECT e.*, e.moment - l.moment AS delay FROM events e ASOF JOIN lists l "
            f"ON e.unit = l.unit AND e.moment >= l.moment WHERE e.moment >= {self.start_us}"
        )
        late = self.rows(f"SELECT count(*) FROM acts WHERE delay > {attribution}")[0][0]
        self.count("actions after the attribution time", late)
        first_us = self.start_us // DAY_US * DAY_US
        looks = int((max(self.end_us, int(last)) - first_us) // DAY_US) + 1
        sums = np.zeros((looks, len(design.arms), len(COLUMNS), len(COLUMNS)))
        if not design.interleaved:
            _sum_up(sums, self._batches(_daily_query(first_us, self.start_us, attribution), 3 + len(COLUMNS) - 1))
        ends = np.minimum(first_us + DAY_US * np.arange(1, looks + 1), max(self.end_us, int(last)) + 1)
        preference = self._preference(first_us, looks, attribution) if design.interleaved else None
        moments = None if design.interleaved else Moments(COLUMNS, sums.cumsum(axis=0))
        return Observed(moments, preference, first_us, (ends - self.start_us) / DAY_US, self.counts)

    def _preference(self, first_us: int, looks: int, attribution: int) -> Moments:
        """Of interleaved lists, sums over units. The preference of a list is the sign of the difference of actions."""
        query = f"""
            WITH credit AS (
                SELECT t.request, least(count(DISTINCT CASE WHEN t.team = 0 THEN t.item END), 1000) AS a,
                    least(count(DISTINCT CASE WHEN t.team = 1 THEN t.item END), 1000) AS b
                FROM teams t JOIN events e ON e.request = t.request AND e.item = t.item
                JOIN lists l ON l.request = t.request AND e.unit = l.unit
                WHERE e.kind >= 0 AND e.moment >= l.moment AND e.moment - l.moment <= {attribution}
                GROUP BY t.request)
            SELECT l.unit, 0 AS arm, (l.moment - {first_us}) // {DAY_US} AS day, count(*)::DOUBLE AS lists,
                count(CASE WHEN c.a <> c.b OR c.a > 0 THEN 1 END)::DOUBLE AS decided,
                coalesce(sum(sign(c.b - c.a)), 0)::DOUBLE AS preference
            FROM lists l LEFT JOIN credit c ON c.request = l.request GROUP BY ALL ORDER BY unit, day"""
        sums = np.zeros((looks, 1, len(PREFERENCE), len(PREFERENCE)))
        _sum_up(sums, self._batches(query, 3 + len(PREFERENCE) - 1))
        return Moments(PREFERENCE, sums.cumsum(axis=0))

    def _batches(self, query: str, columns: int) -> Iterator[list[np.ndarray]]:
        """The rows of a query over units, in blocks that end with a unit."""
        rest: list[np.ndarray] | None = None
        for batch in self.sql.sql(query).to_arrow_reader(65_536):
            block = [batch.column(k).to_numpy(zero_copy_only=False) for k in range(columns)]
            if rest is not None:
                block = [np.concatenate(pair) for pair in zip(rest, block, strict=True)]
            cut = int(np.searchsorted(block[0], block[0][-1])) if len(block[0]) else 0
            yield [column[:cut] for column in block]
            rest = [column[cut:] for column in block]
        if rest is not None:
            yield rest


def _places(lists: pa.ChunkedArray) -> tuple[pa.Array, I64, I64]:
    """(elements of lists, number of the list of each, a key of list and position of each, ascending)."""
    lists = lists.combine_chunks()
    of = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    position = np.arange(len(of)) - np.searchsorted(of, np.arange(len(lists)))[of]
    return pc.list_flatten(lists), of, of * 2**20 + position


def _sum_up(sums: F64, blocks: Iterator[list[np.ndarray]]) -> None:
    """Add blocks of rows (unit, arm, day, values...) to the sums."""
    for unit, arm, day, *values in blocks:
        add_days(sums, unit, arm.astype(np.int64), day.astype(np.int64), np.column_stack(values).astype(np.float64))


def _daily_query(first_us: int, start_us: int, attribution: int) -> str:
    """Actions of each unit on each day, in the order of `COLUMNS`, ordered by unit and day."""
    acted = [f"(kind = {int(k)})::DOUBLE" for k in (Kind.CLICK, Kind.CART, Kind.PURCHASE)] + [*MONEY]
    zeros = ["0::DOUBLE"] * len(_ACTIONS)
    lists = ["1::DOUBLE", "degraded", "coalesce(ms, 0)", "(ms IS NOT NULL)::DOUBLE", "coalesce(diversity, 0)",
             "(diversity IS NOT NULL)::DOUBLE"]  # fmt: skip
    names = [*OUTCOMES, *(f"{n}_before" for n in _ACTIONS)]
    parts = [
        ("lists", "moment", "TRUE", [*lists, *zeros, *zeros]),
        ("acts", "moment", f"delay <= {attribution}", [*["0::DOUBLE"] * len(_LISTS), *acted, *zeros]),
        ("events", "NULL", f"moment < {start_us}", [*["0::DOUBLE"] * len(_LISTS), *zeros, *acted]),
    ]
    rows = " UNION ALL ".join(
        f"SELECT unit, {at} AS moment, {', '.join(f'{v} AS {n}' for v, n in zip(values, names, strict=True))} "
        f"FROM {table} WHERE {where}"
        for table, at, where, values in parts
    )
    total = ", ".join(f"sum(r.{n}) AS {n}" for n in names)
    return (
        f"WITH rows AS ({rows}) "
        f"SELECT r.unit, a.arm, (coalesce(r.moment, a.moment) - {first_us}) // {DAY_US} AS day, {total} "
        "FROM rows r JOIN arrivals a ON a.unit = r.unit GROUP BY r.unit, a.arm, day ORDER BY r.unit, day"
    )
