"""Hand-made data sets: a catalogue, events, and served lists with arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offline.config import EarningsConfig
from offline.data import EVENTS_SCHEMA, LogFiles
from offline.data.schema import SERVED_SCHEMA
from offline.earnings.tables import Settings, make_tables

DAY = 86400.0
START = 20_000 * DAY
"""2024-10-04T00:00Z."""
PRICES: Mapping[str, float | None] = {"a": 10.0, "b": 20.0, "free": 0.0, "unpriced": None}


class Log:
    """Events and served lists, at seconds after `START`."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.served: list[dict[str, Any]] = []
        self.merges: list[dict[str, Any]] = []

    def event(self, at: float, event: str, user: str, item: str, **columns: Any) -> Log:
        """Add an event. columns: further ones, such as request_id, value and placement."""
        row = {"event_id": f"e{len(self.events)}", "event": event, "user_id": user, "item_id": item}
        self.events.append({**row, "timestamp": round((START + at) * 1e6), **columns})
        return self

    def show(self, at: float, request: str, user: str, items: Sequence[str], placement: str = "home") -> Log:
        """Add the impressions of a list."""
        for position, item in enumerate(items):
            self.event(at, "impression", user, item, request_id=request, position=position, placement=placement)
        return self

    def serve(
        self,
        at: float,
        request: str,
        user: str | None,
        items: Sequence[str],
        placement: str | None = "home",
        release: str = "r1",
        arms: Mapping[str, str] | None = None,
    ) -> Log:
        """Add a served list."""
        self.served.append(
            {
                "request_id": request,
                "at": round((START + at) * 1e6),
                "user_id": user,
                "item_ids": list(items),
                "placement": placement,
                "release": release,
                "experiments": list(arms.items()) if arms else None,
            }
        )
        return self

    def merge(self, at: float, guest: str, user: str) -> Log:
        """Add a merge of a guest into a user."""
        self.merges.append({"user_id": user, "from_id": guest, "at": round((START + at) * 1e6)})
        return self

    def write(self, directory: Path, prices: Mapping[str, float | None] = PRICES, **attributes: Sequence[Any]) -> None:
        """Write the data set. attributes: columns of the catalogue."""
        items = {"item_id": list(prices), "title": list(prices), "price": list(prices.values()), **attributes}
        pq.write_table(pa.table(items), directory / "items.parquet")
        placement = pa.field("placement", pa.string())
        pq.write_table(_table(self.events, EVENTS_SCHEMA.append(placement)), directory / "events.parquet")
        if self.served:
            experiments = pa.field("experiments", pa.map_(pa.string(), pa.string()))
            path = directory / "served" / "date=2024-10-04"
            path.mkdir(parents=True)
            table = _table(self.served, SERVED_SCHEMA.append(placement).append(experiments))
            pq.write_table(table, path / "part-0-0.parquet")
        if self.merges:
            path = directory / "merges" / "date=2024-10-04"
            path.mkdir(parents=True)
            schema = pa.schema([("user_id", pa.string()), ("from_id", pa.string()), ("at", pa.timestamp("us", "UTC"))])
            pq.write_table(_table(self.merges, schema), path / "part-0-0.parquet")

    def earnings(
        self, directory: Path, settings: Settings | None = None, **attributes: Sequence[Any]
    ) -> dict[str, Any]:
        """The tables of the data set, which is written to an empty directory."""
        self.write(directory, PRICES, **attributes)
        return make_tables(LogFiles.of(directory), settings or settings_of(), directory)


def settings_of(attribution_s: float = DAY, **earnings: Any) -> Settings:
    """Settings of the tables. earnings: keys of the configuration."""
    return Settings(EarningsConfig.model_validate({"value": "amount", **earnings}), attribution_s, {})


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.table({f.name: pa.array([r.get(f.name) for r in rows], f.type) for f in schema}, schema=schema)
