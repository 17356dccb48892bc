"""Columns of requests over HTTP: both forms rank equally, errors name the field, and the log keeps every value."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from features.arrays import F32, F64
from features.bounds import COLUMN_TEXT, COLUMNS
from features.columns import Column, Scalar, table
from features.context import Context
from features.decay import ItemState
from features.history import EMPTY
from features.moment import Items
from features.table import names, rows
from offline.data import LogFiles, collect, list_columns, load_dataset, logged_lists
from offline.data.schema import EVENTS_SCHEMA
from offline.evaluation.skew import compare_rows
from serving.release.release import load_release
from serving.store import SERVED, BulkStore, Pointer
from tests.offline.data.test_collection import data
from tests.serving.test_release import CUT_OFF, planted_items, publish
from tests.serving.test_service import FAST, ready, served, until, url

__all__ = ["data", "url"]
DECLARED = (
    Column("bm25", "number"),
    Column("in_stock", "flag"),
    Column("country", "category", "request", ("AT", "DE")),
)
IDS = list(planted_items().catalogue.item_ids)
LOGGED = FAST.model_copy(update={"log_rows_share": 1.0})


def before_events(declared: tuple[Column, ...]) -> Items:
    """The planted items before any event, so that an empty log replays to their state, with declared columns."""
    planted = planted_items()
    state = ItemState.empty(planted.catalogue.category, len(planted.catalogue.category_names))
    return replace(planted, columns=declared, state=state)


def fitted(them: Items, tables: list[F32], labels: list[F64], leaves: int, trees: int) -> str:
    """The text of trees that were fitted to feature rows."""
    data = lightgbm.Dataset(
        np.concatenate(tables), np.concatenate(labels), feature_name=[n.replace(" ", "_") for n in names(them)]
    )
    settings = {"objective": "regression", "verbose": -1, "num_threads": 1, "deterministic": True}
    return str(lightgbm.train(settings | {"num_leaves": leaves}, data, trees).model_to_string())


@contextmanager
def logging_service(url: str, release: Path) -> Iterator[httpx.Client]:
    """A service that logs all feature rows; each request is 1/8 s after the one before."""
    clock = itertools.count()
    with BulkStore(url) as store:
        store.set_pointer(Pointer(release.name, str(release)))
    with served(url, LOGGED, release, clock=lambda: CUT_OFF + 100 + 0.125 * next(clock)) as client:
        ready(client)
        yield client


@contextmanager
def emptied_store(running: httpx.Client, url: str, *streams: str) -> Iterator[BulkStore]:
    """The store of a service, with these logs emptied once the lists that it served before are written."""
    last = running.post("/v1/rank", json={"candidates": IDS[:1]}).json()["request_id"].encode()
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        until(lambda: any(last in fields[b"l"] for _, fields in raw.xrange("sw:served")))
        for stream in streams:
            raw.xtrim(stream, 0)
        yield store


def items() -> Items:
    return before_events(DECLARED)


def model() -> str:
    """Trees that prefer a high bm25, and items in stock."""
    rng, them, table_, label = np.random.default_rng(1), items(), [], []
    every = np.arange(len(IDS), dtype=np.int32)
    for _ in range(30):
        scores, in_stock = rng.normal(size=len(IDS)), rng.random(len(IDS)) < 0.5
        sent: dict[str, Any] = {"bm25": scores.tolist(), "in_stock": in_stock.tolist(), "country": "AT"}
        table_.append(rows(them, EMPTY, every, CUT_OFF, Context(columns=table(DECLARED, sent))))
        label.append(scores + in_stock)
    return fitted(them, table_, label, leaves=7, trees=20)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), items(), model_text=model())


@pytest.fixture(scope="module")
def running(url: str, release: Path) -> Iterator[httpx.Client]:
    with logging_service(url, release) as client:
        yield client


@pytest.fixture
def store(running: httpx.Client, url: str) -> Iterator[BulkStore]:
    """The store of the service, with an empty log of served lists: those of earlier tests are written and removed."""
    with emptied_store(running, url, "sw:served") as store:
        yield store


def ranked(client: httpx.Client, body: dict[str, Any], path: str = "/v1/rank") -> dict[str, float]:
    """Scores by item, best first."""
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return {item["item_id"]: item["score"] for item in answer.json()["items"]}


def as_objects(ids: list[str], columns: dict[str, list[Scalar]]) -> list[dict[str, Scalar]]:
    return [{"id": i, **{name: values[k] for name, values in columns.items()}} for k, i in enumerate(ids)]


def test_columns_and_objects_give_the_same_scores_as_the_features(running: httpx.Client, release: Path) -> None:
    """To the bit, in any order of the candidates, and with an unknown item among them."""
    ids, rng = [*IDS[:6], "unknown"], np.random.default_rng(4)
    columns: dict[str, list[Scalar]] = {
        "bm25": [*rng.normal(size=6).tolist(), None],
        "in_stock": [True, False, None, True, True, False, True],
    }
    by_columns = ranked(running, {"candidates": ids, "columns": {**columns, "country": "DE"}})
    assert ranked(running, {"candidates": as_objects(ids, columns), "columns": {"country": "DE"}}) == by_columns
    backwards = {name: values[::-1] for name, values in columns.items()}
    assert ranked(running, {"candidates": ids[::-1], "columns": {**backwards, "country": "DE"}}) == by_columns
    loaded = load_release(release)
    row = loaded.items.catalogue.rows(ids)
    context = Context(columns=table(DECLARED, {**columns, "country": "DE"}))
    expected = loaded.trees.score(rows(loaded.items, EMPTY, row, CUT_OFF + 100, context))
    known = {i: s for i, s in zip(ids, expected.tolist(), strict=True) if i != "unknown"}
    assert {i: by_columns[i] for i in known} == pytest.approx(known, abs=1e-3), "only the age of items has changed"
    assert ranked(running, {"candidates": ids}) != by_columns


def test_a_higher_score_of_the_search_engine_ranks_an_item_higher(running: httpx.Client) -> None:
    ids = [IDS[3], IDS[5], IDS[7]]
    for order in itertools.permutations(range(3)):
        scores = [[2.0, 0.5, -1.5][k] for k in order]
        found = list(ranked(running, {"candidates": as_objects(ids, {"bm25": list(scores), "in_stock": [True] * 3})}))
        assert found == [ids[k] for k in np.argsort([-s for s in scores])]


def test_the_first_values_of_a_repeated_candidate_count(running: httpx.Client) -> None:
    ids = [IDS[0], IDS[2], IDS[0]]
    twice = ranked(running, {"candidates": ids, "columns": {"bm25": [2.0, 0.0, -2.0]}})
    assert twice == ranked(running, {"candidates": ids[:2], "columns": {"bm25": [2.0, 0.0]}})


def test_a_candidate_may_be_an_object_beside_ids(running: httpx.Client) -> None:
    mixed = [IDS[0], {"id": IDS[2], "bm25": 1.5}]
    assert ranked(running, {"candidates": mixed}) == ranked(
        running, {"candidates": IDS[0:3:2], "columns": {"bm25": [None, 1.5]}}
    )


def test_a_value_of_the_request_is_used_without_candidates(running: httpx.Client) -> None:
    """In a ranking of the whole catalogue, and in recommendations."""
    in_stock = ranked(running, {"columns": {"in_stock": True}})
    assert len(in_stock) == len(IDS)
    assert all(in_stock[i] > s for i, s in ranked(running, {"columns": {"in_stock": False}}).items())
    body = {"limit": 5, "columns": {"in_stock": True, "country": "AT"}}
    assert len(ranked(running, body, "/v1/recommend")) == 5


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"columns": {"bm25": [1.0, "2"]}}, "columns.bm25[1]", "'2' is not a number"),
        ({"candidates": [IDS[0], {"id": IDS[1], "bm25": "high"}]}, "candidates[1].bm25", "'high' is not a number"),
        ({"columns": {"bm25": "high"}}, "columns.bm25", "'high' is not a number"),
        ({"columns": {"in_stock": ["no", True]}}, "columns.in_stock[0]", "'no' is not true or false"),
        ({"columns": {"bm25": 1e300}}, "columns.bm25", "1e+300 is not between"),
        ({"columns": {"bm25": [1.0]}}, "columns.bm25", "has 1 values, but there are 2 candidates"),
        ({"columns": {"country": ["AT", "DE"]}}, "columns.country", "is a column of the request"),
        ({"candidates": [{"id": IDS[0], "country": "AT"}]}, "candidates[0].country", "is a column of the request"),
        ({"candidates": [{"bm25": 1.0}]}, "candidates[0].id", "has no ID"),
        ({"candidates": [{"id": 7}]}, "candidates[0].id", "'7.0' is not an ID"),
        ({"candidates": [{"id": "null"}]}, "candidates[0]", "stands for a missing ID"),
        ({"candidates": [{"id": IDS[0], "bm25": 1}], "columns": {"bm25": 2}}, "columns.bm25", "both in `columns`"),
        ({"columns": {"bm25": {"a": 1}}}, "columns[...]", "got `object`"),
        ({"columns": {f"c{k}": 1 for k in range(COLUMNS + 1)}}, "columns", "51 columns in one request"),
        ({"columns": {"note": "x" * (COLUMN_TEXT + 1)}}, "columns[...]", "length <= 256"),
        ({"columns": {"note": "a\x00b"}}, "columns.note", "contains a control character"),
        ({"columns": {"note": "a\x85b"}}, "columns.note", "contains a control character"),
        ({"columns": {" bm25": 1}}, "columns. bm25", "white space around it"),
        ({"columns": {"": 1}}, "columns.", "a name has 1 to 64 characters"),
        ({"columns": {"x" * 65: 1}}, "columns." + "x" * 64, "a name has 1 to 64 characters"),
        ({"candidates": [{"id": IDS[0], **{f"c{k}": 1 for k in range(COLUMNS + 1)}}]}, "columns", "51 columns"),
        ({"candidates": [{"id": ""}]}, "candidates[0].id", "is not an ID"),
    ],
)
def test_an_invalid_column_is_refused_with_its_field(
    running: httpx.Client, body: dict[str, Any], field: str, message: str
) -> None:
    answer = running.post("/v1/rank", json={"candidates": IDS[:2], **body})
    assert answer.status_code == 422
    problem = answer.json()
    assert (problem["field"], message in problem["detail"]) == (field, True), problem


def test_lists_of_values_need_candidates(running: httpx.Client) -> None:
    for path in ("/v1/rank", "/v1/recommend"):
        answer = running.post(path, json={"columns": {"bm25": [1.0]}})
        assert (answer.status_code, answer.json()["field"]) == (422, "columns.bm25")
        assert "the request has no `candidates`" in answer.json()["detail"]


def counted(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if "_columns_total" in line and line[0] != "#"}


def test_missing_and_undeclared_columns_are_counted(running: httpx.Client) -> None:
    """A recommendation cannot have a value per candidate, so only columns of the request can be missing in it."""
    before = counted(running)
    ranked(running, {"candidates": IDS[:2], "columns": {"bm25": [1.0, 2.0], "margin": [0.1, 0.2], "country": "AT"}})
    ranked(running, {"limit": 2}, "/v1/recommend")
    grown = {name: n - before.get(name, 0.0) for name, n in counted(running).items() if n != before.get(name, 0.0)}
    assert grown == {
        'shelfwise_missing_columns_total{column="in_stock"}': 1,
        'shelfwise_missing_columns_total{column="country"}': 1,
        "shelfwise_undeclared_columns_total": 1,
    }


def test_the_log_replays_the_columns_to_the_bit(
    running: httpx.Client, store: BulkStore, data: Path, release: Path
) -> None:
    """Served rows equal replayed rows after `collect`, for both forms, and `skew` counts a missing column.

    The shown items of a list have their values for the night as well, and an import of the same values gives the same.
    """
    pq.write_table(EVENTS_SCHEMA.empty_table(), data / "events.parquet")
    rng = np.random.default_rng(9)
    scores = (rng.normal(size=(3, 8)) * 10.0 ** rng.integers(-12, 12, 8)).tolist()
    for n, ids in enumerate((IDS[:8], IDS[4:12])):
        columns: dict[str, list[Scalar]] = {"bm25": scores[n], "in_stock": [True, False] * 4, "margin": scores[2]}
        ranked(running, {"user_id": "u1", "candidates": ids, "limit": 5, "columns": {**columns, "country": "DE"}})
        body = {"user_id": "u1", "candidates": as_objects(ids, columns), "limit": 5, "columns": {"country": "DE"}}
        ranked(running, body)
    ranked(running, {"user_id": "u2", "candidates": IDS[:3], "columns": {"bm25": [0.1, 0.2, 0.3]}})
    until(lambda: store.length(SERVED) == 5)
    collect(data, store)

    found = compare_rows(data, release.parent)
    assert (found.lists, found.rows) == (5, 4 * 8 + 3)
    assert [f.name for f in found.features if f.differ] == []
    assert found.missing_columns == {"in_stock": 1, "country": 1}

    files, dataset = LogFiles.of(data), load_dataset(data)
    lists = logged_lists(dataset.shown)
    declared = (*DECLARED, Column("margin", "number"))
    for_night = list_columns(files, lists, dataset.catalogue.item_ids, declared)
    expected = sent_values(files.read_served(), declared)
    item = [dataset.catalogue.item_ids[i] for i in lists.item.tolist()]
    request = [lists.request_ids[g] for g in lists.group.tolist()]
    assert for_night.T.tobytes() == np.array([expected[r, i] for r, i in zip(request, item, strict=True)]).tobytes()
    assert np.isnan(for_night).sum() == 3 * 3, "the last list has neither in_stock, country nor margin"

    imported = data / "imported"
    imported.mkdir()
    pq.write_table(as_impressions(files.read_served()), imported / "events.parquet")
    of_file = list_columns(LogFiles.of(imported), lists, dataset.catalogue.item_ids, declared)
    assert of_file.tobytes() == for_night.tobytes()


def test_an_impression_brings_its_own_columns(
    running: httpx.Client, store: BulkStore, data: Path, release: Path
) -> None:
    """Of a list that the shop ranked itself: they are collected, and read for the night to the bit.

    If the service has ranked the list with columns, those of the request count alone: its scores came from them.
    """
    scores = [0.1, 1e-7 / 3, -2.5]
    served_id = running.post(
        "/v1/rank", json={"user_id": "u5", "candidates": IDS[:1], "columns": {"bm25": 7.0}}
    ).json()["request_id"]
    shown = [
        {"event": "impression", "user_id": "u5", "item_id": i, "request_id": "own", "columns": {"bm25": s, "x": "y"}}
        for i, s in zip(IDS, scores, strict=False)
    ]
    also = shown[0] | {"request_id": served_id, "columns": {"bm25": 1, "in_stock": True}}
    assert running.post("/v1/events", json=[*shown, also]).json()["accepted"] == 4
    until(lambda: store.length(SERVED) == 1)
    collect(data, store)
    dataset = load_dataset(data)
    lists = logged_lists(dataset.shown)
    bm25, in_stock = list_columns(LogFiles.of(data), lists, dataset.catalogue.item_ids, DECLARED[:2])
    by_list = {r: bm25[lists.start[g] : lists.start[g + 1]].tolist() for g, r in enumerate(lists.request_ids)}
    assert by_list == {"own": np.array(scores, np.float32).tolist(), served_id: [7.0]}
    assert np.isnan(in_stock).all(), "the service ranked without it"


@pytest.mark.parametrize(
    ("event", "columns", "message"),
    [
        ("click", {"bm25": 1}, "only an impression has columns"),
        ("impression", {f"c{k}": 1 for k in range(COLUMNS + 1)}, "51 columns in one event"),
        ("impression", {"note": "a\x00b"}, "contains a control character"),
        ("impression", {" note": 1}, "white space around it"),
        ("impression", {"bm25": [1.0]}, "got `array`"),
    ],
)
def test_an_event_with_invalid_columns_is_refused(
    running: httpx.Client, event: str, columns: dict[str, Any], message: str
) -> None:
    answer = running.post(
        "/v1/events", json={"event": event, "user_id": "u", "item_id": IDS[0], "columns": columns}
    ).json()
    assert answer["status"] == 422
    assert answer["field"].startswith("columns")
    assert message in answer["detail"]


def sent_values(served: pa.Table, declared: tuple[Column, ...]) -> dict[tuple[str, str], np.ndarray]:
    """float32[columns] by request and candidate, from the feature rows that the service scored and logged."""
    out: dict[tuple[str, str], np.ndarray] = {}
    for row in served.to_pylist():
        sent = table(declared, json.loads(row["candidate_columns"]))
        values = np.broadcast_to(sent, (len(declared), len(row["candidates"])))
        scored = np.frombuffer(row["rows"], "<f4").reshape(len(row["candidates"]), -1)
        place = [names(items()).index(f"request_{c.name}") for c in DECLARED]
        assert scored[:, place].tobytes() == np.ascontiguousarray(values[: len(DECLARED)].T).tobytes()
        out |= {(row["request_id"], i): values[:, k].copy() for k, i in enumerate(row["candidates"])}
    return out


def as_impressions(served: pa.Table) -> pa.Table:
    """The lists as impressions with columns, as an import writes them."""
    records = []
    for row in served.to_pylist():
        sent = json.loads(row["columns"])
        for k, item_id in enumerate(row["item_ids"]):
            columns = {name: v[k] if isinstance(v, list) else v for name, v in sent.items()}
            shown = {"event_id": f"{row['request_id']}#{k}", "event": "impression", "user_id": row["user_id"]}
            where = {"item_id": item_id, "timestamp": row["at"], "request_id": row["request_id"], "position": k}
            records.append({**shown, **where, "columns": json.dumps(columns)})
    return pa.Table.from_pylist(records, EVENTS_SCHEMA)


def test_a_release_without_columns_has_no_trace_of_them(tmp_path: Path, release: Path) -> None:
    """Its manifest is that of earlier versions, so that their releases can still be served."""
    plain = publish(tmp_path)
    assert "columns" not in json.loads((plain / "manifest.json").read_text())
    assert load_release(plain).items.columns == ()
    assert load_release(release).items.columns == DECLARED


def test_columns_follow_their_candidates_beside_written_items(running: httpx.Client) -> None:
    """Candidates are then sorted in another way. This is the last test of the module, because it adds an item."""
    ids = [IDS[3], "new", IDS[0], IDS[3]]
    assert running.put("/v1/items", json={"item_id": "new", "title": "A new thing"}).status_code == 202
    until(lambda: running.get("/v1/items/new").json()["live"])
    found = ranked(running, {"candidates": ids, "columns": {"bm25": [2.0, 1.0, -1.0, -9.0], "in_stock": True}})
    assert list(found) == [IDS[3], "new", IDS[0]]
    backwards = {"candidates": ids[2::-1], "columns": {"bm25": [-1.0, 1.0, 2.0], "in_stock": True}}
    assert ranked(running, backwards) == found
