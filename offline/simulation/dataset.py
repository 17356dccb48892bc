"""Writes the data set of a simulated shop whose true user preferences are known.

Shoppers with hidden tastes see lists in a mediocre order, and click, add to the cart and buy depending on position and
taste. The files contain what a real shop would log, plus `truth.parquet`: the hidden utility of every shown item. No
ranker can be expected to beat the order by utility. With exploration, `propensities.parquet` is written as well.

Days are simulated and written one at a time, so that memory use does not depend on the length of the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from features.arrays import I32, I64
from features.log import KINDS, Kind
from offline.config import SimulateConfig
from offline.runtime import OnProgress, atomic_path, no_progress
from offline.simulation.day_log import DEVICES_IN_USE, DayLog
from offline.simulation.products import Products, make_products, with_margins
from offline.simulation.shop import Shop
from offline.simulation.shoppers import Shoppers, fashions

_EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),
        ("request_id", pa.string()),
        ("position", pa.int16()),
        ("value", pa.float64()),
        ("session_id", pa.string()),
        ("device", pa.string()),
    ]
)
_EVENTS_WITH_QUERY = _EVENTS.append(pa.field("query", pa.string()))
"""Schema of the events of a shop with searches."""
_TRUTH = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("utility", pa.float64(), nullable=False),
    ]
)
_PROPENSITIES = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("position", pa.int16(), nullable=False),
        pa.field("propensity", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SimulationSummary:
    """Counts and time span of the files written. events: rows by event kind."""

    items: int
    users: int
    lists: int
    lists_with_click: int
    events: dict[str, int]
    first_at: datetime
    last_at: datetime

    @property
    def click_rate(self) -> float:
        """Clicks per impression; NaN without impressions."""
        shown = self.events["impression"]
        return self.events["click"] / shown if shown else float("nan")


def simulate(config: SimulateConfig, directory: Path, on_progress: OnProgress | None = None) -> SimulationSummary:
    """Simulate a shop and write `items.parquet`, `events.parquet` and `truth.parquet` to a directory.

    If `explore` is above 0, also write `propensities.parquet`: request_id, item_id, position and propensity of every
    impression. The propensity, in (0, 1], is the probability of the item to be at its position, given the items of the
    list and the order by the shop.

    The directory is created if needed. Existing files of these names are replaced once all new ones are complete.
    Propensities of an earlier log and `import.json`, the report of an import, are deleted. Other files are not touched.
    Progress counts days, plus one for the catalogue. Raises NotADirectoryError if `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; give a directory to write to")
    directory.mkdir(parents=True, exist_ok=True)
    report = on_progress or no_progress
    shop = open_shop(config)
    report(1, config.days + 1)
    writer = LogWriter(shop.stock, config.users, shop.searches.texts if config.searches else None)
    items = _write(directory, shop, writer, config, report)
    return SimulationSummary(
        items=items,
        users=len(writer.seen),
        lists=writer.lists,
        lists_with_click=writer.lists_with_click,
        events=dict(zip(KINDS, writer.count.tolist(), strict=True)),
        first_at=config.start,
        last_at=config.end,
    )


def open_shop(config: SimulateConfig) -> Shop:
    """The shop at the start of its first day, with the products that arrive on all days of the log and `ahead` more."""
    # One random stream per component, so that for example more shoppers do not change the catalogue.
    rngs = [np.random.default_rng([config.seed, part]) for part in range(10)]
    days = config.days + config.ahead
    arrivals = rngs[0].poisson(config.new_items_per_day, days).astype(np.int64)
    opening_us = int(config.start.timestamp()) * 1_000_000
    products = make_products(rngs[1], config.items, arrivals, opening_us, config.language)
    if config.margins:
        products = with_margins(products, rngs[8])
    return Shop(
        products,
        Shoppers.invent(rngs[2], config.users),
        fashions(rngs[3], days),
        opening_us,
        config.lists_per_user_day,
        config.list_length,
        rngs[4],
        config.explore,
        rngs[5],
        rngs[6],
        config.position_bias,
        config.searches,
        rngs[7],
        config.complements,
        rngs[9],
    )


def _write(directory: Path, shop: Shop, writer: LogWriter, config: SimulateConfig, report: OnProgress) -> int:
    """Write the files, under temporary names until all are complete. Returns the number of items written."""
    events = _EVENTS if writer.texts is None else _EVENTS_WITH_QUERY
    daily = {"events": (events, writer.events_table), "truth": (_TRUTH, writer.truth_table)}
    if shop.explore > 0:
        daily["propensities"] = (_PROPENSITIES, writer.propensities_table)
    paths = {name: directory / f"{name}.parquet" for name in ("items", *daily)}
    # Items that arrive after the log are the last rows.
    items = shop.stock.table.slice(0, int((shop.stock.available_us < config.end.timestamp() * 1e6).sum()))
    with ExitStack() as files:
        temporary = {name: files.enter_context(atomic_path(path)) for name, path in paths.items()}
        pq.write_table(items, temporary["items"], compression="zstd")
        writers = {
            name: files.enter_context(pq.ParquetWriter(temporary[name], schema, compression="zstd"))
            for name, (schema, _) in daily.items()
        }
        for day in range(config.days):
            log = shop.day(day)
            writer.add(log)
            for name, (_, table) in daily.items():
                writers[name].write_table(table(log))
            report(day + 2, config.days + 1)
    # If kept, these files of a previous log would be mistaken for files of this one.
    (directory / "import.json").unlink(missing_ok=True)
    if "propensities" not in paths:
        (directory / "propensities.parquet").unlink(missing_ok=True)
    return len(items)


@dataclass
class LogWriter:
    """Converts days to tables of the data set and keeps the counts.

    texts: queries so far; None without searches. seen: users with events.
    """

    stock: Products
    shoppers: int
    texts: Sequence[str] | None
    rows: int = 0
    lists: int = 0
    lists_with_click: int = 0
    count: I64 = field(default_factory=lambda: np.zeros(len(KINDS), np.int64))
    seen: set[int] = field(default_factory=set)

    def add(self, log: DayLog) -> None:
        """Add a day to the counts. Call this before `events_table`."""
        self.rows += len(log.kind)
        self.count += np.bincount(log.kind, minlength=len(KINDS))
        self.lists += len(np.unique(log.request[log.kind == Kind.IMPRESSION]))
        self.lists_with_click += len(np.unique(log.request[log.kind == Kind.CLICK]))
        self.seen.update(np.unique(log.user).tolist())

    def user_ids(self, user: I32) -> pa.Array:
        """User IDs as strings."""
        return _ids("u", user, max(5, len(str(self.shoppers))))

    def events_table(self, log: DayLog) -> pa.Table:
        """The events of a day as a table of `events.parquet`."""
        item_ids = self.stock.table.column("item_id").combine_chunks()
        first = self.rows - len(log.kind)
        no_request = log.request < 0
        columns = [
            _ids("e", np.arange(first, self.rows), 8),
            pa.DictionaryArray.from_arrays(log.kind, list(KINDS)).dictionary_decode(),
            self.user_ids(log.user),
            item_ids.take(pa.array(log.item)),
            pa.array(log.at_us).cast(pa.timestamp("us", tz="UTC")),
            pc.if_else(pa.array(no_request), None, _ids("r", np.maximum(log.request, 0), 7)),
            pa.array(log.position, mask=no_request),
            pa.array(log.value, mask=np.isnan(log.value)),
            _ids("s", log.visit, 7),
            pa.array(DEVICES_IN_USE, pa.string()).take(pa.array(log.device, mask=log.device < 0)),
        ]
        if self.texts is None:
            return pa.Table.from_arrays(columns, schema=_EVENTS)
        query = pa.array(self.texts, pa.string()).take(pa.array(log.query, mask=log.query < 0))
        return pa.Table.from_arrays([*columns, query], schema=_EVENTS_WITH_QUERY)

    def truth_table(self, log: DayLog) -> pa.Table:
        """The impressions of a day as a table of `truth.parquet`."""
        shown = np.flatnonzero(log.kind == Kind.IMPRESSION)
        item_ids = self.stock.table.column("item_id").combine_chunks()
        columns = [
            _ids("r", log.request[shown], 7),
            item_ids.take(pa.array(log.item[shown])),
            pa.array(log.utility[shown]),
        ]
        return pa.Table.from_arrays(columns, schema=_TRUTH)

    def propensities_table(self, log: DayLog) -> pa.Table:
        """The impressions of a day as a table of `propensities.parquet`."""
        shown = np.flatnonzero(log.kind == Kind.IMPRESSION)
        item_ids = self.stock.table.column("item_id").combine_chunks()
        columns = [
            _ids("r", log.request[shown], 7),
            item_ids.take(pa.array(log.item[shown])),
            pa.array(log.position[shown]),
            pa.array(log.propensity[shown]),
        ]
        return pa.Table.from_arrays(columns, schema=_PROPENSITIES)


def _ids(prefix: str, number: NDArray[np.integer], width: int) -> pa.Array:
    """IDs such as `u00042`."""
    digits = pc.utf8_lpad(pc.cast(pa.array(number), pa.string()), width, "0")
    return pc.binary_join_element_wise(prefix, digits, "")
