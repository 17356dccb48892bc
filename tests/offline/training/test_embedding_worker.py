"""Embedding worker: an item written as it is in the release keeps its text and its vector; the store is only read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.catalogue import STANDARD_COLUMNS
from offline.training.embedding_worker import ItemTexts, ReadOnly, texts_of
from offline.training.vector_store import VectorStore
from serving.api.decoding import split_body
from serving.api.items import accept_item
from serving.store import ItemFields, decode_fields
from text_encoder.text import catalogue_texts

TEMPLATE = "{title}. {brand}. {category}. {description}. {price}. {width}. {tested}. {attributes}"
AT = 1_700_000_000.0
SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        **dict.fromkeys(("title", "description", "category", "brand"), pa.string()),
        "price": pa.float64(),
        "available_from": pa.timestamp("us", "UTC"),
        **dict.fromkeys(("group_id", "image_url"), pa.string()),
        "style": pa.list_(pa.string()),
        "fabric": pa.string(),
        "net weight": pa.list_(pa.string()),
        "width": pa.float64(),
        "tested": pa.bool_(),
    }
)

texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
tags = st.none() | st.lists(st.sampled_from(["long", "warm", "Warm", " warm", "wool", "", "Ärmel"]), max_size=5)
rows = st.fixed_dictionaries(
    {
        **dict.fromkeys(("title", "description", "category", "brand", "fabric", "image_url"), texts),
        "group_id": st.sampled_from([None, "shirt", "7"]),
        "style": tags,
        "net weight": tags,
        "price": st.none() | st.floats(0, 1e6),
        "width": st.none() | st.floats(-1e6, 1e6),
        "tested": st.none() | st.booleans(),
        "available_from": st.datetimes(datetime(2000, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    }
)


def body(row: Mapping[str, Any]) -> dict[str, Any]:
    """The item as `PUT /v1/items` takes it."""
    standard = {name: row[name] for name in STANDARD_COLUMNS if name in row}
    standard["available_from"] = row["available_from"].isoformat()
    return standard | {"attributes": {name: v for name, v in row.items() if name not in STANDARD_COLUMNS}}


def written(items: list[dict[str, Any]]) -> dict[str, ItemFields]:
    """The items as Redis holds them after `PUT /v1/items`."""
    accepted = [accept_item(part, AT) for part in split_body(json.dumps(list(map(body, items))).encode(), len(items))]
    return {item_id: decode_fields({k.encode(): v for k, v in fields.items()}) for item_id, fields in accepted}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, min_size=1, max_size=4))
def test_an_item_written_as_released_keeps_its_text_and_vector(tmp_path: Path, catalogue: list[dict[str, Any]]) -> None:
    items = [{"item_id": f"item {i}", **row} for i, row in enumerate(catalogue)]
    table = pa.Table.from_pylist(items, SCHEMA)
    nightly = dict(zip(table["item_id"].to_pylist(), catalogue_texts(TEMPLATE, table), strict=True))
    vector = np.arange(3 * len(items), dtype=np.float32).reshape(-1, 3)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vector.ravel()), 3)
    pq.write_table(table.append_column("embedding", embedding), tmp_path / "items.parquet")

    found = texts_of(TEMPLATE, written(items), tmp_path / "items.parquet")

    assert found.released == nightly
    assert found.now == nightly
    assert {i: v.tolist() for i, v in found.vectors.items()} == dict(zip(nightly, vector.tolist(), strict=True))


def test_an_item_whose_text_the_nightly_run_did_not_read_has_no_vector() -> None:
    """Its vector in the release is NaN, so the worker encodes it, also if its text has not changed."""
    vectors = {"read": np.ones(3, np.float32), "unread": np.full(3, np.nan, np.float32)}
    found = ItemTexts({}, {}, vectors)
    assert [found.has_vector(i) for i in ("read", "unread", "new")] == [True, False, False]


def test_the_worker_reads_the_vector_store_and_adds_nothing(tmp_path: Path) -> None:
    """In all deployments, the workspace of the worker is read-only."""
    store, known, new = VectorStore(tmp_path), b"k" * 16, b"n" * 16
    store.write("model", [known], np.ones((1, 3), np.float32))
    worker = ReadOnly(store)
    worker.write("model", [new], np.ones((1, 3), np.float32))
    assert worker.read("model", [known, new], 3)[1].tolist() == [True, False]
    assert store.rows("model") == 1
