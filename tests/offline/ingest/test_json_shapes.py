"""Files of one JSON object: a record, or an object around a list of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offline.ingest.reading.json_shapes import find_shape, sample_records
from tests.offline.ingest.exports import import_export, lines

RECORDS: list[dict[str, Any]] = [
    {"item_id": "1", "title": "Rug", "variants": [{"sku": "a"}, {"sku": "b"}]},
    {"id": 7, "options": [{"name": "Size"}]},
    {"productId": "7", "images": [{"url": "u"}]},
    {"event_name": "purchase", "items": [{"item_id": "1"}, {"item_id": "2"}]},
    {"event": "ranking", "items": [{"id": "1"}]},
]
WRAPPERS: list[dict[str, Any]] = [
    {"items": [{"id": "1"}, {"id": "2"}]},
    {"total": 2, "page": 1, "data": {"products": [{"id": "1"}, {"id": "2"}]}},
    {"name": "products", "version": "1", "generated": "2026-01-30", "rows": [{"id": "1"}, {"id": "2"}]},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_an_object_with_an_id_or_the_name_of_an_event_is_one_record(
    tmp_path: Path, record: dict[str, Any], indent: int | None
) -> None:
    """On one line, or over several."""
    (tmp_path / "a.json").write_text(json.dumps(record, indent=indent))
    assert sample_records(tmp_path / "a.json", find_shape(tmp_path / "a.json"), 10) == [record]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapper", WRAPPERS, ids=str)
def test_another_object_is_around_a_list_of_records(
    tmp_path: Path, wrapper: dict[str, Any], indent: int | None
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(wrapper, indent=indent))
    found = sample_records(tmp_path / "a.json", find_shape(tmp_path / "a.json"), 10)
    assert found == [{"id": "1"}, {"id": "2"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson"])
def test_a_line_of_a_file_of_lines_is_a_record_whatever_it_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps(WRAPPERS[0]) + "\n")
    assert sample_records(tmp_path / name, find_shape(tmp_path / name), 10) == [WRAPPERS[0]]


@pytest.mark.parametrize("name", ["items.jsonl", "items.json"])
def test_a_catalogue_of_one_item_with_variants_is_that_item(tmp_path: Path, name: str) -> None:
    """The item stays, its nested objects are left out, and a note says so."""
    got = import_export(
        tmp_path, {name: lines(RECORDS[0]), "events.csv": "event,user_id,item_id,timestamp\nview,u,1,2026-01-30\n"}
    )
    assert {i: (row["title"], "variants" in row) for i, row in got.items.items()} == {"1": ("Rug", False)}
    assert [n for s in got.summary.sources for n in s.notes] == [
        "variants: nested objects are left out; `unpack` makes attributes of their fields"
    ]


def test_a_log_of_one_ga4_event_is_that_event(tmp_path: Path) -> None:
    """`item_list_index` is the place in the list: 2 and 1, not 0 and 1 by order."""
    event = {"event_name": "view_item_list", "event_timestamp": "1769763600000000", "user_pseudo_id": "u"}
    items = [{"item_id": "a", "item_list_index": "2"}, {"item_id": "b", "item_list_index": "1"}]
    got = import_export(tmp_path, {"e.json": lines({**event, "items": items})})
    assert (got.preset, sorted((r["item_id"], r["position"]) for r in got.rows)) == ("ga4", [("a", 2), ("b", 1)])
