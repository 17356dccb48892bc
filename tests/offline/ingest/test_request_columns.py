"""Request columns of imported impressions: what becomes a column, and that each value is kept to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from features.bounds import COLUMN_TEXT, COLUMNS
from offline.config import load
from offline.ingest.importer import import_data
from tests.offline.ingest.exports import NOW, import_export, lines

T0 = 1_760_000_000
SHOWN = {"user_id": "u", "timestamp": T0, "event": "impression", "request_id": "r"}


def columns_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of the impressions, by item."""
    return {r["item_id"]: r["columns"] and json.loads(r["columns"]) for r in rows if r["event"] == "impression"}


def mapped(folder: Path, records: list[dict[str, Any]], source: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Import records with a mapping of their one source: columns by item, and what the import says about it."""
    (folder / "log.jsonl").write_text(lines(*records))
    content = {"unknown_items": "keep", "folder": str(folder), "events": [{"from": "log.jsonl", **source}]}
    (folder / "shop.yaml").write_text(yaml.safe_dump({"import": content}))
    config = load(folder / "shop.yaml").sources
    assert config is not None
    summary = import_data(config, folder / "data", NOW)

    return columns_of(pq.read_table(folder / "data/events.parquet").to_pylist()), [
        s for source_ in summary.sources for s in source_.notes
    ]


def test_mapped_columns_are_typed_by_their_values(tmp_path: Path) -> None:
    """Numbers, flags and texts. A value that is missing in every impression of an item leaves no columns."""
    records = [
        {**SHOWN, "item_id": "a", "score": "1,5", "stock": True, "store": "Wien", "km": 2},
        {**SHOWN, "item_id": "b", "score": "2,25", "stock": False, "store": "", "km": None},
        {**SHOWN, "item_id": "c"},
    ]
    score = {"path": "score", "type": "number", "decimal": ","}
    request = {"bm25": score, "in_stock": "stock", "store": "store", "distance": "km"}
    found, said = mapped(tmp_path, records, {"request": request})
    assert found == {
        "a": {"bm25": 1.5, "in_stock": True, "store": "Wien", "distance": 2.0},
        "b": {"bm25": 2.25, "in_stock": False, "store": None, "distance": None},
        "c": None,
    }
    assert "columns of requests, of 2 impressions: bm25, distance, in_stock, store" in said


def test_numbers_are_kept_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = (rng.normal(size=200) * 10.0 ** rng.integers(-14, 14, 200)).tolist()
    records = [{**SHOWN, "item_id": f"i{k}", "position": k, "bm25": value} for k, value in enumerate(values)]
    found, _ = mapped(tmp_path, records, {"request": {"bm25": "bm25"}})
    assert [found[f"i{k}"]["bm25"] for k in range(200)] == values


def test_members_of_nested_values_are_columns(tmp_path: Path) -> None:
    """Except those that are excluded, mapped under the name, have several values, or are names that no column has."""
    records = [
        {**SHOWN, "item_id": "a", "more": {"bm25": 1.0, "label": 1, "tags": ["x", "y"], "two words": 3, "kg": 1}},
        {**SHOWN, "item_id": "b", "more": {"bm25": 0.5, "label": 0, "tags": ["x"], "kg": 2}},
    ]
    found, said = mapped(
        tmp_path,
        records,
        {"unpack": [{"path": "more"}], "exclude": ["label"], "request": {"kg": {"path": "more.kg", "decimal": "."}}},
    )
    assert found == {"a": {"kg": 1.0, "bm25": 1.0}, "b": {"kg": 2.0, "bm25": 0.5}}
    assert "tags: lists are not read; a column of a request has one value" in said


def test_columns_are_bounded_as_those_of_requests_are(tmp_path: Path) -> None:
    """As many columns, and texts as long, as a request may send. A number that is too large is missing."""
    more = {f"c{k:02d}": k for k in range(COLUMNS + 5)}
    records = [{**SHOWN, "item_id": "a", "more": more, "note": "x" * (COLUMN_TEXT + 1), "big": 1e300, "short": "x"}]
    request = {"note": "note", "big": "big", "short": "short"}
    found, _ = mapped(tmp_path, records, {"request": request, "unpack": [{"path": "more"}]})
    assert len(found["a"]) == COLUMNS
    assert (found["a"]["note"], found["a"]["big"], found["a"]["short"]) == (None, None, "x")


def test_only_impressions_have_columns(tmp_path: Path) -> None:
    """A click is an outcome: what it knows must not reach the features of its list."""
    records = [{**SHOWN, "item_id": "a", "bm25": 1.0}, {**SHOWN, "item_id": "a", "event": "click", "bm25": 9.0}]
    found, _ = mapped(tmp_path, records, {"request": {"bm25": "bm25"}})
    assert found == {"a": {"bm25": 1.0}}


def test_a_data_set_keeps_its_columns_when_it_is_imported_again(tmp_path: Path) -> None:
    columns = json.dumps({"bm25": 0.1, "country": "AT"})
    imported = import_export(
        tmp_path,
        {
            "items.jsonl": lines({"item_id": "a", "title": "A"}),
            "events.jsonl": lines({**SHOWN, "item_id": "a", "event_id": "e", "position": 0, "columns": columns}),
        },
    )
    assert imported.preset == "standard"
    assert columns_of(imported.rows) == {"a": {"bm25": 0.1, "country": "AT"}}


def test_metarank_rankings_keep_their_fields_and_relevancy(tmp_path: Path) -> None:
    """Fields of the ranking and of its items, and the relevancy in either place. A `label` is an outcome."""
    ranking = {"event": "ranking", "id": "r", "timestamp": f"{T0}000", "user": "u", "session": "s"}
    items = [
        {"id": "a", "relevancy": 2.5, "label": 1},
        {"id": "b", "fields": [{"name": "relevancy", "value": 1.5}, {"name": "bm25", "value": 0.3}]},
        "c",
    ]
    fields = [{"name": "query", "value": "mug"}, {"name": "device", "value": "app"}, {"name": "source", "value": "web"}]
    described = [{"event": "item", "item": i, "timestamp": f"{T0}000", "fields": []} for i in "abc"]
    log = lines(*described, {**ranking, "fields": fields, "items": items})
    imported = import_export(tmp_path, {"events.jsonl": log})
    assert imported.preset == "metarank"
    assert columns_of(imported.rows) == {
        "a": {"relevancy": 2.5, "source": "web", "bm25": None},
        "b": {"relevancy": 1.5, "source": "web", "bm25": 0.3},
        "c": {"relevancy": None, "source": "web", "bm25": None},
    }
    assert {r["query"] for r in imported.rows} == {"mug"}


@pytest.mark.parametrize("name", ["two words", "", "x" * 65])
def test_a_declared_column_has_a_name_that_a_request_can_send(tmp_path: Path, name: str) -> None:
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump({"features": {"request": {name: {"type": "number"}}}}))
    with pytest.raises(ValueError, match=r"features\.request"):
        load(tmp_path / "shop.yaml")
