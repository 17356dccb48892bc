"""The placement as a feature and a slice: served rows are replayed to the bit, and lists know where they were shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.columns import Column, table, with_placement
from features.context import Context
from features.history import EMPTY
from features.moment import Items
from features.table import rows
from offline.data import LogFiles, collect, list_columns, list_placements, load_dataset, logged_lists
from offline.data.schema import EVENTS_SCHEMA, PLACEMENT
from offline.evaluation.skew import compare_rows
from offline.evaluation.slices import placement_slices
from serving.config import PlacementConfig
from serving.store import BulkStore, Pointer
from tests.offline.data.test_collection import data
from tests.serving.test_columns import IDS, before_events, emptied_store, fitted
from tests.serving.test_placements import logged
from tests.serving.test_release import CUT_OFF, publish
from tests.serving.test_service import FAST, ready, served, url
from tests.worlds import make_lists

__all__ = ["data", "url"]
DECLARED = (Column("placement", "category", "request", ("home", "cart")),)
PLACEMENTS = {name: PlacementConfig() for name in ("home", "cart", "new one")}


def items() -> Items:
    return before_events(DECLARED)


def model() -> str:
    """Trees that prefer one half of the catalogue at `home`, and the other half elsewhere."""
    them, every, tables, labels = items(), np.arange(len(IDS), dtype=np.int32), [], []
    for k in range(30):
        context = Context(columns=table(DECLARED, {"placement": ["home", "cart", None][k % 3]}))
        tables.append(rows(them, EMPTY, every, CUT_OFF, context))
        labels.append(np.where((every < len(IDS) // 2) == (k % 3 == 0), 1.0, 0.0))
    return fitted(them, tables, labels, leaves=7, trees=20)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items(), model_text=model())


@pytest.fixture
def store(running: httpx.Client, url: str) -> Iterator[BulkStore]:
    """The store of the service, without the lists of earlier tests."""
    with emptied_store(running, url, "sw:served") as store:
        yield store


@pytest.fixture(scope="module")
def running(url: str, release: Path) -> Iterator[httpx.Client]:
    """A service with three placements, two of which the release knows; it logs all feature rows."""
    config = FAST.model_copy(update={"log_rows_share": 1.0, "placements": PLACEMENTS})
    with BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
    with served(url, config, release, clock=lambda: CUT_OFF + 100) as client:
        ready(client)
        yield client


def scores(client: httpx.Client, **request: Any) -> dict[str, float]:
    answer = client.post("/v1/rank", json={"candidates": IDS, **request})
    assert answer.status_code == 200, answer.text
    return {item["item_id"]: item["score"] for item in answer.json()["items"]}


def test_the_placement_of_a_request_is_its_column(running: httpx.Client) -> None:
    """A column that is sent counts instead, unless it is missing. A new placement is like any other unknown value."""
    home, cart, none = scores(running, placement="home"), scores(running, placement="cart"), scores(running)
    assert len({tuple(found) for found in (home, cart)}) == 2, "the two orders differ"
    assert home == scores(running, columns={"placement": "home"})
    assert cart == scores(running, placement="home", columns={"placement": "cart"})
    for missing in (None, ""):
        assert home == scores(running, placement="home", columns={"placement": missing})
    assert scores(running, placement="new one") == scores(running, columns={"placement": "never heard of"})
    assert none == scores(running, columns={"placement": None})
    explained = running.post("/v1/rank", json={"candidates": IDS, "placement": "home", "explain": True}).json()
    assert {item["item_id"]: item["score"] for item in explained["items"]} == home


@pytest.mark.parametrize(
    "declared",
    [
        Column("placement", "number"),
        Column("placement", "category", "candidate", ("home",)),
        Column("placement", "flag", "request"),
        Column("placement", "category", "user", ("home",)),
        Column("page", "category", "request", ("home",)),
    ],
)
def test_another_declaration_of_that_name_is_left_alone(declared: Column) -> None:
    """Such as the column of a shop from before placements, with scores of an advertisement."""
    assert with_placement((declared,), {"x": 1.0}, "home") == {"x": 1.0}
    assert with_placement(DECLARED, {"x": 1.0}, "home") == {"x": 1.0, "placement": "home"}
    assert with_placement(DECLARED, {"x": 1.0}, None) == {"x": 1.0}


def test_a_declared_placement_that_is_not_sent_is_counted_as_missing(running: httpx.Client) -> None:
    def missing() -> float:
        lines = running.get("/metrics").text.splitlines()
        found = [
            line.split()[1] for line in lines if line.startswith('shelfwise_missing_columns_total{column="placement"}')
        ]
        return float(found[0]) if found else 0.0

    before = missing()
    scores(running, placement="home")
    scores(running, columns={"placement": "home"})
    assert missing() == before
    scores(running)
    assert missing() == before + 1


def test_the_log_replays_placements_to_the_bit(
    running: httpx.Client, url: str, store: BulkStore, data: Path, release: Path
) -> None:
    """Served rows equal replayed rows, and the night reads for each list what the service ranked it with.

    An impression brings a placement of its own for a list that the service did not rank with one.
    """
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    asked: list[tuple[dict[str, Any], float, str | None]] = [
        ({"placement": "home"}, 0.0, "home"),
        ({"placement": "cart"}, 1.0, "cart"),
        ({"placement": "new one"}, 2.0, "new one"),
        ({"placement": "home", "columns": {"placement": "cart", "x": 1}}, 1.0, "home"),
        ({"placement": "home", "columns": {"placement": ""}}, 0.0, "home"),
        ({"columns": {"placement": "cart"}}, 1.0, None),
        ({}, np.nan, None),
    ]
    expected = {}
    for request, code, place in asked:
        answer = running.post("/v1/rank", json={"user_id": "u", "candidates": IDS[:5], "limit": 3, **request}).json()
        expected[answer["request_id"]] = code, place
    first, *_, last = expected
    shown = [
        {"event": "impression", "user_id": "u", "item_id": IDS[0], "request_id": "own", "placement": "cart"},
        {"event": "click", "user_id": "u", "item_id": IDS[0], "request_id": "own", "placement": "home"},
        {"event": "impression", "user_id": "u", "item_id": IDS[1], "request_id": "another"},
        {"event": "click", "user_id": "u", "item_id": IDS[1], "request_id": "another", "placement": "home"},
        {"event": "impression", "user_id": "u", "item_id": IDS[2], "request_id": first, "placement": "cart"},
    ]
    assert running.post("/v1/events", json=shown).json()["accepted"] == 5
    expected |= {"own": (1.0, "cart"), "another": (np.nan, None)}
    logged(url, last)
    collect(data, store)

    found = compare_rows(data, release.parent)
    assert [f.name for f in found.features if f.differ] == []
    assert (found.lists, found.missing_columns) == (len(asked), {"placement": 1})

    dataset, files = load_dataset(data), LogFiles.of(data)
    lists = logged_lists(dataset.shown)
    lists = lists.take(np.array([g for g, r in enumerate(lists.request_ids) if r in expected]))
    (column,) = list_columns(files, lists, dataset.catalogue.item_ids, DECLARED)
    by_list = {r: set(column[lists.start[g] : lists.start[g + 1]].tolist()) for g, r in enumerate(lists.request_ids)}
    assert {r: values for r, values in by_list.items() if not np.isnan([*values]).any()} == {
        r: {code} for r, (code, _) in expected.items() if not np.isnan(code)
    }
    assert len(by_list) == len(expected)
    assert list_placements(files, lists) == {r: place for r, (_, place) in expected.items() if place is not None}
    by_slice = placement_slices(["home", "cart", "never used"], list_placements(files, lists), lists)
    count = {name: int(mask.sum()) for name, mask in by_slice.items()}
    assert count == {"placement:home": 3, "placement:cart": 2, "placement:(other)": 1, "placement:(none)": 3}


def test_the_first_impression_with_a_placement_names_that_of_its_list(tmp_path: Path) -> None:
    """Whatever the order of the files: at second 2, before the one at second 3; clicks never do."""
    rows_ = [
        ("impression", "r0", 3, "late"),
        ("impression", "r0", 2, "early"),
        ("impression", "r0", 1, None),
        ("click", "r1", 1, "clicked"),
        ("impression", "r1", 2, None),
        ("impression", "r9", 1, "of another list"),
    ]
    lists = replace(make_lists([0, 1], [0, 0], [[0], [0]]), at=np.array([0.0, 1.0]))
    for folder, order in (("a", rows_), ("b", rows_[::-1])):
        (tmp_path / folder).mkdir()
        records = [
            {"event_id": f"{kind}{request}{at}", "event": kind, "user_id": "u", "item_id": "i", "timestamp": at * 10**6}
            | {"request_id": request, "placement": place}
            for kind, request, at, place in order
        ]
        table_ = pa.Table.from_pylist(records, EVENTS_SCHEMA.append(PLACEMENT))
        pq.write_table(table_, tmp_path / folder / "events.parquet")
        assert list_placements(LogFiles.of(tmp_path / folder), lists) == {"r0": "early"}


def test_lists_without_placements_have_no_slices() -> None:
    lists = make_lists([0, 1], [0, 0], [[0], [0]])
    assert placement_slices(["home"], {}, lists) == {}
    assert {n: m.tolist() for n, m in placement_slices(["home"], {"r1": "home"}, lists).items()} == {
        "placement:home": [False, True],
        "placement:(none)": [True, False],
    }
