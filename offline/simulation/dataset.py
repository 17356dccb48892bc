"""The simulated shop: a data set in which the right answer is known, to show and to test everything else by.

Shoppers with hidden tastes see lists made by a mediocre shop, and click, cart and buy by what they see and like. What
is written is what a real shop would have logged, plus `truth.parquet`: the hidden utility of every shown item, the
order no ranker can be expected to beat. A shop that explores also logs `propensities.parquet`.

Days are drawn one after the other and written as they come, so memory is a day's worth however long the log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from offline.runtime import no_progress
from offline.simulation.products import Products, make_products
from offline.simulation.shop import DEVICES_IN_USE, DayLog, Shop
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
_SEARCHED = _EVENTS.append(pa.field("query", pa.string()))
"""Of a shop in which people search."""
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
    """What was written, and over what span. `items` and `users` count what is in the files, `events` rows by name."""

    items: int
    users: int
    lists: int
    lists_with_click: int
    events: dict[str, int]
    first_at: datetime
    last_at: datetime

    @property
    def click_rate(self) -> float:
        """Clicks per impression, NaN where nothing was shown."""
        shown = self.events["impression"]
        return self.events["click"] / shown if shown else float("nan")


def simulate(
    config: SimulateConfig, directory: Path, on_progress: Callable[[int, int], None] | None = None
) -> SimulationSummary:
    """Write `items.parquet`, `events.parquet` and `truth.parquet` into a directory, made if it is not there.

    With `explore` above 0 also `propensities.parquet`: request_id, item_id, position and propensity of every
    impression, the chance in (0, 1] that the item came to stand there given the list's items and the shop's own order.

    Files of these names are replaced, each when it is complete; propensities of an earlier log, and `import.json`, the
    account of one that was imported, are removed; others are left alone. Progress counts days, and the catalogue as one
    more. Raises NotADirectoryError where `directory` is a file.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; give a directory to write into")
    directory.mkdir(parents=True, exist_ok=True)
    report = on_progress or no_progress
    shop = open_shop(config)
    report(1, config.days + 1)
    book = LogWriter(shop.stock, config.users, shop.searches.texts if config.searches else None)
    items = _write(directory, shop, book, config, report)
    return SimulationSummary(
        items=items,
        users=len(book.seen),
        lists=book.lists,
        lists_with_click=book.lists_with_click,
        events=dict(zip(KINDS, book.count.tolist(), strict=True)),
        first_at=config.start,
        last_at=config.end,
    )


def open_shop(config: SimulateConfig) -> Shop:
    """The shop on the morning of its first day, with all that will arrive: its days are those of the log, and then
    `ahead` more."""
    # A stream of its own for each part: more shoppers leave the catalogue as it was.
    rngs = [np.random.default_rng([config.seed, part]) for part in range(8)]
    days = config.days + config.ahead
    arrivals = rngs[0].poisson(config.new_items_per_day, days).astype(np.int64)
    opening_us = int(config.start.timestamp()) * 1_000_000
    return Shop(
        make_products(rngs[1], config.items, arrivals, opening_us),
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
    )


def _write(
    directory: Path, shop: Shop, book: LogWriter, config: SimulateConfig, report: Callable[[int, int], None]
) -> int:
    """The files, under another name until all are complete; returns how many items there are."""
    events = _EVENTS if book.texts is None else _SEARCHED
    daily = {"events": (events, book.events_table), "truth": (_TRUTH, book.truth_table)}
    if shop.explore > 0:
        daily["propensities"] = (_PROPENSITIES, book.propensities_table)
    paths = {name: directory / f"{name}.parquet" for name in ("items", *daily)}
    part = {name: path.with_suffix(".parquet.part") for name, path in paths.items()}
    # What arrives later stands behind what is there.
    items = shop.stock.table.slice(0, int((shop.stock.available_us < config.end.timestamp() * 1e6).sum()))
    pq.write_table(items, part["items"], compression="zstd")
    with ExitStack() as files:
        writers = {
            name: files.enter_context(pq.ParquetWriter(part[name], schema, compression="zstd"))
            for name, (schema, _) in daily.items()
        }
        for day in range(config.days):
            log = shop.day(day)
            book.add(log)
            for name, (_, table) in daily.items():
                writers[name].write_table(table(log))
            report(day + 2, config.days + 1)
    for name, path in paths.items():
        part[name].replace(path)
    # What is of the log that was replaced would be taken for this one's.
    (directory / "import.json").unlink(missing_ok=True)
    if "propensities" not in paths:
        (directory / "propensities.parquet").unlink(missing_ok=True)
    return len(items)


@dataclass
class LogWriter:
    """Puts days into the layout on disk, and keeps the tally. texts: what was typed so far, None where nobody may."""

    stock: Products
    shoppers: int
    texts: Sequence[str] | None
    rows: int = 0
    lists: int = 0
    lists_with_click: int = 0
    count: I64 = field(default_factory=lambda: np.zeros(len(KINDS), np.int64))
    seen: set[int] = field(default_factory=set)

    def add(self, log: DayLog) -> None:
        """Count one day, before it is written."""
        self.rows += len(log.kind)
        self.count += np.bincount(log.kind, minlength=len(KINDS))
        self.lists += len(np.unique(log.request[log.kind == Kind.IMPRESSION]))
        self.lists_with_click += len(np.unique(log.request[log.kind == Kind.CLICK]))
        self.seen.update(np.unique(log.user).tolist())

    def user_ids(self, user: I32) -> pa.Array:
        """Shoppers' ids, as strings."""
        return _ids("u", user, max(5, len(str(self.shoppers))))

    def events_table(self, log: DayLog) -> pa.Table:
        """A day's events in the layout of `events.parquet`."""
        item_ids = self.stock.table.column("item_id").combine_chunks()
        first = self.rows - len(log.kind)
        none = log.request < 0
        columns = [
            _ids("e", np.arange(first, self.rows), 8),
            pa.DictionaryArray.from_arrays(log.kind, list(KINDS)).dictionary_decode(),
            self.user_ids(log.user),
            item_ids.take(pa.array(log.item)),
            pa.array(log.at_us).cast(pa.timestamp("us", tz="UTC")),
            pc.if_else(pa.array(none), None, _ids("r", np.maximum(log.request, 0), 7)),
            pa.array(log.position, mask=none),
            pa.array(log.value, mask=np.isnan(log.value)),
            _ids("s", log.visit, 7),
            pa.array(DEVICES_IN_USE, pa.string()).take(pa.array(log.device, mask=log.device < 0)),
        ]
        if self.texts is None:
            return pa.Table.from_arrays(columns, schema=_EVENTS)
        typed = pa.array(self.texts, pa.string()).take(pa.array(log.query, mask=log.query < 0))
        return pa.Table.from_arrays([*columns, typed], schema=_SEARCHED)

    def truth_table(self, log: DayLog) -> pa.Table:
        """A day's impressions, in their order, in the layout of `truth.parquet`."""
        shown = np.flatnonzero(log.kind == Kind.IMPRESSION)
        item_ids = self.stock.table.column("item_id").combine_chunks()
        columns = [
            _ids("r", log.request[shown], 7),
            item_ids.take(pa.array(log.item[shown])),
            pa.array(log.utility[shown]),
        ]
        return pa.Table.from_arrays(columns, schema=_TRUTH)

    def propensities_table(self, log: DayLog) -> pa.Table:
        """A day's impressions, in their order, in the layout of `propensities.parquet`."""
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
    """Ids such as `u00042`."""
    digits = pc.utf8_lpad(pc.cast(pa.array(number), pa.string()), width, "0")
    return pc.binary_join_element_wise(prefix, digits, "")
