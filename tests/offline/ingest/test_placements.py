"""The placement of imported events: GA4's list ID in both presets, a column of a file, and what is not a name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from offline.data.schema import EVENTS_SCHEMA, PLACEMENT
from serving.api.events import Accepted, accept
from tests.offline.ingest.exports import NOW, import_export, lines

AT_US = 1_769_763_600_000_000
ITEMS: list[dict[str, Any]] = [{"item_id": "a", "index": 0}, {"item_id": "b", "index": 1, "item_list_id": "cart"}]
LISTS = ["home", "", "x" * 65, "(not set)", "below the basket", None]
"""IDs of lists: only `home` and `below the basket` are names."""
PLACES = ["home", None, None, None, "below the basket", None]


def ga4_events() -> list[tuple[str, dict[str, Any]]]:
    """A list with an item of another list, then a choice in each of `LISTS`: names and parameters."""
    chosen = [({} if name is None else {"item_list_id": name}) | {"items": ITEMS[:1]} for name in LISTS]
    return [("view_item_list", {"item_list_id": "home", "items": ITEMS}), *(("select_item", c) for c in chosen)]


def placements(rows: list[dict[str, Any]]) -> list[tuple[str, str, str | None]]:
    return [(row["event"], row["item_id"], row.get("placement")) for row in rows]


EXPECTED = [("impression", "a", "home"), ("impression", "b", "cart"), *(("click", "a", place) for place in PLACES)]


def test_the_service_and_both_presets_read_the_same_placements_of_ga4_events(tmp_path: Path) -> None:
    bodies = [
        {"client_id": "c", "timestamp_micros": AT_US + k * 10**6, "events": [{"name": name, "params": params}]}
        for k, (name, params) in enumerate(ga4_events())
    ]
    exported = [
        {"event_name": name, "event_timestamp": AT_US + k * 10**6, "user_pseudo_id": "c", **params}
        for k, (name, params) in enumerate(ga4_events())
    ]
    for folder, text, preset in (("mp", lines(*bodies), "ga4_measurement_protocol"), ("bq", lines(*exported), "ga4")):
        (tmp_path / folder).mkdir()
        got = import_export(tmp_path / folder, {"events.jsonl": text})
        assert got.preset == preset
        assert placements(got.rows) == EXPECTED, preset
        assert sum(source.accepted for source in got.summary.sources) == 2 + len(LISTS)
    taken = [one for body in bodies for one in accept(msgspec.Raw(json.dumps(body).encode()), NOW.timestamp(), 60)]
    assert all(isinstance(one, Accepted) for one in taken)
    live = [(one.event.item_id, one.event.placement) for one in taken if isinstance(one, Accepted)]
    assert live == [(item, place) for _, item, place in EXPECTED]


def test_bigquery_may_have_the_list_among_the_parameters_of_an_event(tmp_path: Path) -> None:
    event = {"event_name": "select_item", "event_timestamp": AT_US, "user_pseudo_id": "c", "items": [{"item_id": "a"}]}
    parameters = [{"key": "item_list_id", "value": {"string_value": "home", "int_value": None}}]
    got = import_export(tmp_path, {"events.jsonl": lines(event | {"event_params": parameters})})
    assert placements(got.rows) == [("click", "a", "home")]


HEAD = "event,user_id,item_id,timestamp"
ROW = "view,u,a,2026-01-30T10:00:00Z"


def test_a_column_of_events_is_their_placement(tmp_path: Path) -> None:
    """Bad cells cost the cell and not the row, and the file of the data set is read again as it is."""
    cells = ["home", "", " cart ", "x" * 65, "a\x07b", "null"]
    rows = "".join(f"{ROW[:-3]}0{k}Z,{cell}\n" for k, cell in enumerate(cells))
    files = {"events.csv": f"{HEAD},placement\n{rows}", "items.csv": "item_id,title\na,Mug\n"}
    got = import_export(tmp_path, files)
    assert [row["placement"] for row in got.rows] == ["home", None, "cart", None, None, None]
    assert pq.read_schema(tmp_path / "data" / "events.parquet") == EVENTS_SCHEMA.append(PLACEMENT)
    (tmp_path / "again").mkdir()
    copy = {name: (tmp_path / "data" / name).read_bytes() for name in ("events.parquet", "items.parquet")}
    import_export(tmp_path / "again", copy)
    assert (tmp_path / "again/data/events.parquet").read_bytes() == copy["events.parquet"]


def test_a_data_set_without_placements_has_no_column_for_them(tmp_path: Path) -> None:
    """Nor with a column of files that has no value."""
    items = {"items.csv": "item_id,title\na,Mug\n"}
    (tmp_path / "without").mkdir()
    import_export(tmp_path / "without", {"events.csv": f"{HEAD}\n{ROW}\n", **items})
    (tmp_path / "empty").mkdir()
    import_export(tmp_path / "empty", {"events.csv": f"{HEAD},placement\n{ROW},\n", **items})
    files = [(tmp_path / name / "data" / "events.parquet") for name in ("without", "empty")]
    assert [pq.read_schema(file) for file in files] == [EVENTS_SCHEMA] * 2
    assert files[0].read_bytes() == files[1].read_bytes()
