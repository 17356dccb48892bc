"""Nights of shops in which trained trees cannot win: the release ranks by a simple order, and everything says so."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.config import Config, load
from offline.data.schema import CANONICAL, EVENTS_SCHEMA
from offline.nightly.night import Night
from offline.runtime import ApprovalNeeded, ReleaseKept
from serving.release import load_release
from serving.store.embedded import connect_url
from tests.tiny_encoder import tiny_encoder

pytestmark = pytest.mark.nights
BEGIN = datetime(2024, 5, 1, tzinfo=UTC)
SHOPS = {
    "200 events": {"items": 30, "events": 200, "users": 50, "popular": 1.0, "categories": 5},
    "noise": {"items": 60, "events": 1500, "users": 150, "popular": 0.0, "categories": 5},
    "one category": {"items": 60, "events": 1500, "users": 150, "popular": 1.0, "categories": 1},
}
"""Purchases by `users` of items drawn by popularity `1 / rank ** popular`, whoever buys. Titles say nothing."""


def shop_of(workspace: Path, items: int, events: int, users: int, popular: float, categories: int) -> Config:
    """A workspace with a month of purchases, and a tiny encoder."""
    rng, data = np.random.default_rng(4), workspace / "data"
    data.mkdir()
    table = {
        "item_id": [f"i{k}" for k in range(items)],
        "title": ["thing"] * items,
        "description": [""] * items,
        "category": [f"c{k % categories}" for k in range(items)],
        "brand": [None] * items,
        "price": [10.0] * items,
        "available_from": [BEGIN] * items,
    }
    pq.write_table(pa.table(table, schema=pa.schema(list(CANONICAL.items()))), data / "items.parquet")
    chance = 1 / np.arange(1, items + 1) ** popular
    at = np.sort(rng.uniform(0, 30 * 86400, events))
    rows: dict[str, list[Any]] = {name: [None] * events for name in EVENTS_SCHEMA.names}
    rows |= {
        "event_id": [f"e{k}" for k in range(events)],
        "event": ["purchase"] * events,
        "user_id": [f"u{k}" for k in rng.integers(0, users, events).tolist()],
        "item_id": [f"i{k}" for k in rng.choice(items, events, p=chance / chance.sum()).tolist()],
        "timestamp": [BEGIN + timedelta(seconds=t) for t in at.tolist()],
    }
    pq.write_table(pa.table(rows, schema=EVENTS_SCHEMA), data / "events.parquet")
    tiny_encoder(workspace / "tiny")
    return load(
        None,
        workspace=workspace,
        lists={"size": 20},
        encoder={"model": str(workspace / "tiny"), "mode": "frozen", "refreshes": 0, "max_tokens": 16},
        gate={"latency_ratio": 100, "fallback_nights": 1},
    )


@pytest.mark.parametrize("name", SHOPS)
def test_where_trees_cannot_win_the_release_ranks_by_a_simple_order_and_the_report_opens_with_it(
    tmp_path: Path, name: str
) -> None:
    """The gate may also keep it, as where no order is better than a random one, but never publishes it in silence."""
    config = shop_of(tmp_path, **SHOPS[name])  # type: ignore[arg-type]
    with connect_url(None, config.embedded) as url:
        night = Night(config, url, clock=lambda: (BEGIN + timedelta(days=31)).timestamp())
        with suppress(ReleaseKept, ApprovalNeeded):
            night()
    release, choice = load_release(night.artefacts.release_path), night.artefacts.json("choice.json")
    assert release.manifest.simple_order == choice["simple_order"]
    assert choice["simple_order"] is not None
    assert release.trees.used_columns <= set(choice["weights"])
    page = night.run.file("report.html").read_text("utf-8")
    first = re.search(r'<p class="verdict \w+">(.*?)</p>', page)
    assert first is not None
    assert first[1].startswith(f"This release ranks by a simple order, {choice['simple_order']}.")
    assert "trained" in night.artefacts.json("evaluation.json")["systems"]
    gate = night.artefacts.json("gate.json")
    assert any(rule == "fallback" and why.startswith(choice["sentence"]) for rule, _, why in gate["reasons"])


def test_after_the_configured_nights_the_live_release_stays(tmp_path: Path) -> None:
    """fallback_nights is 1: the second night in a row that ends with a simple order is not published."""
    config = shop_of(tmp_path, **SHOPS["one category"])  # type: ignore[arg-type]
    nights = []
    with connect_url(None, config.embedded) as url:
        for day in (29, 30):
            end = (BEGIN + timedelta(days=day)).timestamp()
            nights.append(Night(config, url, until=end, clock=lambda end=end: end + 3600))
        nights[0]()
        with pytest.raises(ReleaseKept, match="2 nights in a row ended with a simple order"):
            nights[1]()
        assert nights[1].inputs.live == nights[0].artefacts.release_id
    lines = [json.loads(x) for x in (config.releases / "judgements.jsonl").read_text().splitlines()]
    assert [bool(line["simple_order"]) for line in lines] == [True, True]
