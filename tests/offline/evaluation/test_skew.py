"""Skew: served feature rows equal replayed ones, and a planted difference is reported for its feature."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml
from typer.testing import CliRunner

from features.decay import ItemState
from features.log import KINDS
from features.table import Items
from offline.cli.app import app
from offline.data.collection import collect
from offline.evaluation.skew import compare_rows
from offline.runtime.errors import DataError
from serving.release.release import load_release
from serving.store import SERVED, BulkStore, Event, Pointer
from tests.offline.data.test_collection import data
from tests.serving.test_release import CUT_OFF, planted_items, publish
from tests.serving.test_service import FAST, ready, served, until, url

__all__ = ["data", "url"]
LOGGED = FAST.model_copy(update={"log_rows_share": 1.0})


def earlier_events() -> list[Event]:
    """Events before the release, in time order."""
    rng, items = np.random.default_rng(5), planted_items().catalogue.item_ids
    at = np.sort(CUT_OFF - rng.uniform(1, 9e5, 150)).round(6)
    return [
        Event(f"b{n}", int(rng.integers(5)), f"u{rng.integers(4)}", items[int(rng.integers(20))], float(t))
        for n, t in enumerate(at)
    ]


def items_after(events: list[Event]) -> Items:
    """The items with the state after these events."""
    items = planted_items()
    state = ItemState.empty(items.catalogue.category, 2)
    state.apply(
        items.catalogue.rows([e.item_id for e in events]),
        np.array([e.kind for e in events], np.int8),
        np.array([e.at for e in events]),
    )
    return replace(items, state=state)


def write_events(events: list[Event], path: Path) -> None:
    """Write events as a Parquet file of a data set."""
    missing = [None] * len(events)
    pq.write_table(
        pa.table(
            {
                "event_id": [e.event_id for e in events],
                "event": [KINDS[e.kind] for e in events],
                "user_id": [e.user_id for e in events],
                "item_id": [e.item_id for e in events],
                "timestamp": pa.array([round(e.at * 1e6) for e in events], pa.int64()).cast(pa.timestamp("us", "UTC")),
                "request_id": pa.array(missing, pa.string()),
                "position": pa.array(missing, pa.int16()),
                "value": pa.array(missing, pa.float64()),
            }
        ),
        path,
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items_after(earlier_events()))


@pytest.fixture
def shop(url: str, release: Path, data: Path) -> Iterator[tuple[httpx.Client, BulkStore, Path]]:
    """A service that logs every feature row, its store with histories from the log, and the data set of that log."""
    earlier = earlier_events()
    write_events(earlier, data / "events.parquet")
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        raw.flushall()
        store.write(earlier, CUT_OFF)
        raw.delete("sw:events")  # events before the release are in its item state already
        store.set_pointer(Pointer(release.name, str(release)))
        clock = iter(range(10**6))
        with served(url, LOGGED, release, clock=lambda: CUT_OFF + 100 + 0.125 * next(clock)) as client:
            ready(client)
            yield client, store, data


def shop_around(client: httpx.Client, store: BulkStore) -> None:
    """Six lists with a view and a click each; each event is in the item state before the next list."""
    for n in range(6):
        user = f"u{n % 5}"
        assert client.post("/v1/rank", json={"user_id": user, "limit": 4, "device": "app"}).status_code == 200
        events = [{"event": kind, "user_id": user, "item_id": f"red-0{1 + 2 * (n % 4)}"} for kind in ("view", "click")]
        assert client.post("/v1/events", json=events).json()["accepted"] == 2
        applied = f'shelfwise_events_total{{outcome="accepted"}} {2.0 * (n + 1)}'
        until(lambda applied=applied: applied in client.get("/metrics").text)
        until(lambda n=n: store.tail().at.size == 2 * (n + 1))
        time.sleep(4 * FAST.poll_s)
    until(lambda: store.length(SERVED) == 6)


def test_a_clean_run_is_bit_identical(shop: tuple[httpx.Client, BulkStore, Path], release: Path) -> None:
    client, store, data = shop
    shop_around(client, store)
    collect(data, store)
    found = compare_rows(data, release.parent)
    assert (found.lists, found.rows, dict(found.left_out)) == (6, 6 * 20, {})
    assert [f.name for f in found.features if f.differ] == []
    assert len(found.features) == len(load_release(release).manifest.feature_names)
    assert {f.verdict(0) for f in found.features} == {"equal"}


def test_a_planted_skew_is_reported_for_its_feature_and_fails_the_command(
    shop: tuple[httpx.Client, BulkStore, Path], release: Path, tmp_path: Path
) -> None:
    """Prices are rounded in the served rows."""
    client, store, data = shop
    shop_around(client, store)
    collect(data, store)
    (part,) = (data / "served").glob("date=*/*.parquet")
    table = pq.read_table(part, partitioning=None)
    names = load_release(release).manifest.feature_names
    price = names.index("item_price")
    changed = []
    for row in table["rows"].to_pylist():
        values = np.frombuffer(row, "<f4").reshape(20, -1).copy()
        values[:, price] = values[:, price].round()
        changed.append(values.tobytes())
    pq.write_table(table.set_column(table.column_names.index("rows"), "rows", pa.array(changed, pa.binary())), part)
    found = {f.name: f for f in compare_rows(data, release.parent).features}
    assert found["item_price"].verdict(0.01) == "SKEW"
    assert found["item_price"].beyond == 1.0
    assert 0 < found["item_price"].largest <= 0.5, "rounding changes a price by at most a half"
    assert {name for name, f in found.items() if f.differ} == {"item_price"}

    config = tmp_path / "shop.yaml"
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "data").symlink_to(data, target_is_directory=True)
    (workspace / "releases").symlink_to(release.parent, target_is_directory=True)
    config.write_text(yaml.safe_dump({"workspace": str(workspace)}))
    result = CliRunner().invoke(app, ["skew", "--config", str(config), "--json", str(tmp_path / "skew.json")])
    assert result.exit_code == 1
    output = json.loads((tmp_path / "skew.json").read_text())
    assert {f["name"]: f["verdict"] for f in output["features"]}["item_price"] == "SKEW"
    assert CliRunner().invoke(app, ["skew", "--config", str(config), "--threshold", "1"]).exit_code == 0


def test_events_missing_from_the_log_skew_the_features_that_count_them(
    shop: tuple[httpx.Client, BulkStore, Path], release: Path
) -> None:
    client, store, data = shop
    shop_around(client, store)
    collect(data, store)
    for part in (data / "events").glob("date=*/*.parquet"):
        part.unlink()
    skewed = {f.name for f in compare_rows(data, release.parent).features if f.beyond > 0}
    assert skewed >= {"item_clicks_1h", "item_views_30d", "repeat_engagements", "user_session_events"}
    assert skewed.isdisjoint({"item_price", "item_age", "item_prior", "hour", "device"})


def test_lists_that_cannot_be_compared_are_reported_with_the_reason(
    shop: tuple[httpx.Client, BulkStore, Path], release: Path
) -> None:
    client, store, data = shop
    with pytest.raises(DataError, match="no list has feature rows"):
        compare_rows(data, release.parent)
    client.post("/v1/rank", json={"user_id": "u1"})
    until(lambda: store.length(SERVED) == 1)
    collect(data, store)
    with pytest.raises(DataError, match="1 lists: their release has been removed"):
        compare_rows(data, data)
