"""A nightly run with columns of requests and attributes of users, from the log to a ranking of its release."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.columns import Column, table
from features.context import NO_DEVICE
from features.table import names
from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.data.imported import PROFILES_FILE
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from ranker import query_prior
from serving.release import load_release
from serving.store import STREAM, BulkStore
from serving.store.embedded import connect_url
from tests.serving.test_service import FAST, ready, served

pytestmark = pytest.mark.slow
SHOP = SimulateConfig(items=100, users=300, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))
COLUMNS = (
    Column("bm25", "number"),
    Column("page", "category", "request", ("home", "search")),
    Column("age", "number", "user"),
    Column("country", "category", "user", ("AT", "DE")),
)


def bm25(request_id: str, item_id: str) -> float | None:
    """A score that is known for most impressions, and the same for every reader of the log."""
    number = int(request_id[1:]) * 31 + int(item_id[1:]) * 7
    return None if number % 5 == 0 else (number % 97) / 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A simulated log whose impressions have columns, and whose users have attributes, but for the last one."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    path = workspace / "data/events.parquet"
    events = pq.read_table(path)
    columns = [
        json.dumps({"bm25": bm25(request, item), "page": "search" if int(request[1:]) % 2 else "home"})
        if kind == "impression"
        else None
        for kind, request, item in zip(
            *(events[c].to_pylist() for c in ("event", "request_id", "item_id")), strict=True
        )
    ]
    pq.write_table(events.append_column("columns", pa.array(columns, pa.string())), path)
    users = sorted(set(events["user_id"].to_pylist()))[:-1]
    ages, countries = [float(20 + k % 50) for k in range(len(users))], [["AT", "DE"][k % 2] for k in range(len(users))]
    pq.write_table(pa.table({"user_id": users, "age": ages, "country": countries}), workspace / "data" / PROFILES_FILE)
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 30, "min_data_in_leaf": 20},
        encoder={"mode": "frozen", "refreshes": 0, "max_tokens": 16},
        gate={"certainty": 0},
        features={
            "request": {
                "bm25": {"type": "number"},
                "page": {"type": "category", "per": "request", "values": ["home", "search"]},
            },
            "user": {"age": {"type": "number"}, "country": {"type": "category", "values": ["AT", "DE"]}},
        },
    )


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with connect_url(None, config.embedded) as url:
        yield url


@pytest.fixture(scope="module")
def night(config: Config, url: str) -> Night:
    """The finished run, whose release is live."""
    Night(config, url)()
    return Night(config, url)


def test_rows_have_the_logged_values(night: Night, config: Config) -> None:
    """Of every candidate of every list, and of every user."""
    assert config.features.columns == COLUMNS
    lists, rows = night.artefacts.lists, night.artefacts.array("rows.npy")
    column = {f.name: rows[:, k] for k, f in enumerate(night.artefacts.replay.features)}
    ids, group = night.inputs.data.catalogue.item_ids, lists.group.tolist()
    requests = [str(lists.request_ids[g]) for g in group]
    scores = [bm25(r, ids[i]) for r, i in zip(requests, lists.item.tolist(), strict=True)]
    np.testing.assert_array_equal(column["request_bm25"], np.array(scores, np.float64).astype(np.float32))
    np.testing.assert_array_equal(column["request_page"], np.array([int(r[1:]) % 2 for r in requests], np.float32))
    known = {r["user_id"]: r for r in pq.read_table(config.data / PROFILES_FILE).to_pylist()}
    users = [night.inputs.data.events.user_ids[lists.user[g]] for g in group]
    ages = [known[u]["age"] if u in known else np.nan for u in users]
    np.testing.assert_array_equal(column["user_age"], np.array(ages, np.float32))
    assert np.isfinite(column["request_bm25_rank"]).mean() == pytest.approx(0.8, abs=0.05), "4 of 5 scores are known"


def test_the_release_ranks_by_the_same_features(night: Night, config: Config, url: str) -> None:
    """Over HTTP, with the attributes that the run has added to Redis: scores are those of replayed rows, to the bit."""
    release = load_release(night.artefacts.release_path)
    assert release.items.columns == COLUMNS
    assert release.items.columns == night.artefacts.replay.columns
    catalogue, at = release.items.catalogue, night.inputs.cut_off + 3600.0
    data = night.inputs.data
    user = int(np.bincount(data.events.user).argmax())
    user_id = data.events.user_ids[user]
    known = next(r for r in pq.read_table(config.data / PROFILES_FILE).to_pylist() if r["user_id"] == user_id)
    scores = [None if k % 4 == 0 else k / 3 for k in range(len(catalogue))]
    with BulkStore(url) as store:
        store.run([["DEL", store.layout.key(STREAM)]])
    with served(url, FAST, release.path, clock=lambda: at) as client:
        ready(client)
        time.sleep(4 * FAST.poll_s)
        body = {"user_id": user_id, "candidates": list(catalogue.item_ids), "query": "oak"}
        answer = client.post("/v1/rank", json=body | {"columns": {"bm25": scores, "page": "search"}})
    found = {i["item_id"]: i["score"] for i in answer.json()["items"]}
    sent = table(COLUMNS, {"bm25": scores, "page": "search"}, {"age": known["age"], "country": known["country"]})
    n = len(catalogue)
    lists = replace(
        night.artefacts.lists.take(np.array([0])),
        at=np.array([at]),
        user=np.array([user], np.int32),
        start=np.array([0, n]),
        item=np.arange(n, dtype=np.int32),
        position=np.zeros(n, np.int16),
        gain=np.zeros(n, np.int8),
        device=np.array([NO_DEVICE], np.int8),
        query=["oak"],
        columns=sent,
    )
    replay = replace(night.artefacts.replay, refresh_at=np.array([night.inputs.cut_off]))
    rows = replay.rows(lists)
    assert (rows[:, names(release.items).index("user_age")] == known["age"]).all()
    score = release.trees.score(rows)
    if not release.knows_queries:
        score = score + query_prior.query_bonus(rows, release.trees.names, score)
    assert found == dict(zip(catalogue.item_ids, score.tolist(), strict=True))


def test_another_declaration_makes_another_run(night: Night, config: Config) -> None:
    """Attributes of users are part of a run only if one is declared."""
    changed = config.model_copy(update={"features": config.features.model_copy(update={"user": {}})})
    assert Night(changed, None).inputs.digest != night.inputs.digest
    assert "users" in night.inputs.digest
    assert "users" not in Night(changed, None).inputs.digest
