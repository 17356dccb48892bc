"""The night, whole and with its real parts on a tiny simulated shop: what it makes, resumes, publishes, and serves."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from features.context import Context, Device
from features.history import Histories
from features.log import Events, Kind, Lists
from features.table import names, rows
from features.text.vectors import Vectors
from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.data import dataset
from offline.nightly import publish
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from ranker import query_prior
from serving.ranking.live import Live
from serving.release import release
from serving.store import BulkStore, Store
from serving.store.embedded import connect_url
from tests.serving.test_service import FAST, ready, served
from text_encoder.examples import examples

SHOP = SimulateConfig(items=120, users=150, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A workspace with a simulated log, and settings that suit so small a shop."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 40, "min_data_in_leaf": 20},
        encoder={"epochs": 3, "budget_s": 120, "max_tokens": 32},
    )


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with connect_url(None, config.redis) as url:
        yield url


@pytest.fixture(scope="module")
def made(config: Config, url: str) -> release.Release:
    return Night(config, url)()


@pytest.fixture(scope="module")
def night(config: Config, url: str, made: release.Release) -> Night:
    """The finished night, to be read."""
    return Night(config, url)


def test_the_pointer_names_the_release_that_was_made(made: release.Release, url: str) -> None:
    """Published means that Redis says so; nothing else does."""
    with BulkStore(url) as store:
        pointer = store.pointer()
    assert pointer is not None
    assert (pointer.id, Path(pointer.path)) == (made.id, made.path)


def test_vectors_are_in_parquet_and_in_redis_under_the_encoders_fingerprint(made: release.Release, url: str) -> None:
    """A fixed-size list a row, the fingerprint in the file's metadata, the same vector in Redis as float16."""
    table = pq.read_table(made.path / "items.parquet")
    fingerprint = table.schema.metadata[b"encoder_fingerprint"].decode()
    assert fingerprint == made.manifest.encoder_fingerprint
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[384]"
    ids = table["item_id"].to_pylist()[:5]
    stored = np.stack(table["embedding"].to_pylist()[:5])
    with BulkStore(url) as store:
        np.testing.assert_allclose(store.read_vectors(fingerprint, ids, 384), stored, atol=1e-3)


def test_users_lists_are_seeded_from_the_log(night: Night, made: release.Release, url: str) -> None:
    """Right after the first release a known shopper is known: Redis holds what the log says."""
    data = night.inputs.data
    user = int(np.bincount(data.events.user).argmax())
    with BulkStore(url) as store:
        held = store.read(data.events.user_ids[user], made.items.catalogue, night.inputs.cut_off)
    logged = Histories.of(data.events).read(user, night.inputs.cut_off)
    for a, b in zip(held, logged, strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_encoder_learns_from_nothing_at_or_after_the_rows_it_scores(night: Night) -> None:
    """Four encoders: the first before the ranker's first list, the last before the first test list, which it scores."""
    facts = json.loads(night.run.file("encoder.json").read_text())
    learnt = [examples(night.inputs.data.events, at) for at in facts["moments"]]
    assert [made["examples"] for made in facts["made"]] == [len(part) for part in learnt]
    assert facts["examples"] == len(learnt[-1]) > len(learnt[0]) > 0
    assert all(part.at.max() < at for part, at in zip(learnt, facts["moments"], strict=True))
    assert facts["moments"][0] == night.artefacts.windows.ranker <= night.artefacts.lists.at.min()
    assert facts["moments"][-1] == night.artefacts.windows.test
    made = np.load(night.run.file("vectors.npy"))
    for at, vectors in zip(facts["moments"], made, strict=True):
        expected = Vectors.quantise(np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)]))
        np.testing.assert_array_equal(night.artefacts.replay.items_at(at).vectors.code, expected.code)


def test_the_ranker_is_grown_on_what_chose_it_and_never_on_the_test(night: Night, made: release.Release) -> None:
    """As many lists as the two windows before the test hold; the release's data window ends where the test begins."""
    facts = json.loads(night.run.file("ranker.json").read_text())
    lists = night.artefacts.window_rows("ranker", "validation").lists
    assert facts["refit"]
    assert facts["lists"] == len(lists)
    assert lists.at.max() < night.artefacts.windows.test
    ends = {name: made.manifest.window[name]["to"] for name in ("encoder", "ranker", "validation")}
    assert set(ends.values()) == {made.manifest.window["test"]["from"]}


def test_the_evaluation_compares_with_dull_orders_and_the_best_possible(night: Night) -> None:
    """Each system with an interval, the ranker against each, and the simulator's ceiling above all."""
    found = json.loads(night.run.file("evaluation.json").read_text())
    ndcg = {name: by["all"]["ndcg@10"] for name, by in found["systems"].items()}
    ends = {name: by["all"]["ndcg@10"] for name, by in found["intervals"].items()}
    assert {
        "random",
        "shown_order",
        "popularity",
        "recency_popularity",
        "item_click_rate",
        "own_history",
        "cooccurrence",
        "ease",
        "text_zero_shot",
        "text",
        "ranker",
        "best_possible",
    } == set(ndcg)
    assert all(low <= ndcg[name] <= high for name, (low, high) in ends.items())
    assert max(ndcg, key=lambda name: ndcg[name]) == "best_possible"
    assert ndcg["ranker"] > ends["random"][1]


def test_a_night_that_is_done_does_nothing_again(night: Night) -> None:
    """The same data and configuration find every step finished."""
    before = {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*") if p.is_file()}
    night()
    assert {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("lost", ["rows", "ranker"])
def test_a_night_cut_short_ends_with_the_same_release_to_the_byte(
    config: Config, made: release.Release, tmp_path: Path, lost: str
) -> None:
    """Killed before a step was finished, started again: its files are made anew and the release has the same id.

    The id is a checksum over every file of the release.
    """
    shutil.copytree(config.workspace, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("redis", "releases"))
    again = Night(config.model_copy(update={"workspace": tmp_path}), None)
    steps = [s.name for s in again.steps]
    for step in again.steps[steps.index(lost) :]:
        for name in step.makes:
            again.run.file(name).unlink(missing_ok=True)
    assert again().id == made.id


def test_a_replayed_row_is_the_served_row_to_the_bit(night: Night, made: release.Release, url: str) -> None:
    """Events sent to the service after the release, then ranked; and the same events at the end of the log, replayed.

    Through HTTP, Redis, the event stream and the memory-mapped release on one side, arrays on the other.
    """
    at = night.inputs.cut_off + 1000.0
    catalogue = made.items.catalogue
    rng = np.random.default_rng(0)
    user = night.inputs.data.events.user_ids[3]
    typed = f"{catalogue.titles[0]} wodden xyzzy"
    sent = [
        {
            "event_id": f"parity-{k}",
            "event": kind,
            "user_id": user,
            "item_id": catalogue.item_ids[item],
            "timestamp": at - 900 + 7 * k,
            "device": "tablet",
            "session_id": "s",
        }
        for k, (kind, item) in enumerate(
            (str(rng.choice(["impression", "view", "click", "cart", "purchase"])), int(rng.integers(len(catalogue))))
            for _ in range(60)
        )
    ]
    with served(url, FAST, made.path, clock=lambda: at) as client:
        ready(client)
        assert client.post("/v1/events", json=sent).json()["accepted"] == len(sent)
        time.sleep(4 * FAST.poll_s)  # item state follows the stream
        asked = {"user_id": user, "candidates": [*catalogue.item_ids, "unheard of"], "device": "Tablet", "query": typed}
        scores = {i["item_id"]: i["score"] for i in client.post("/v1/rank", json=asked).json()["items"]}
    candidates = np.append(np.arange(len(catalogue)), -1).astype(np.int32)
    live = Live.of(made)
    with BulkStore(url) as store:
        live.apply(store.tail(live.last))
        online = rows(live.items, store.read(user, catalogue, at), candidates, at, Context(Device.TABLET, typed))
    log = _with(night.inputs.data, sent)
    replay = replace(night.artefacts.replay, events=log, refresh_at=np.array([night.inputs.cut_off]), given=None)
    offline = replay.rows(_one_list(log.user_ids.index(user), at, candidates, Device.TABLET, typed))
    assert (offline[:, names(live.items).index("device")] == Device.TABLET).all()
    np.testing.assert_array_equal(online, offline)
    assert np.isfinite(offline[:, names(live.items).index("query_cosine")]).any()
    score = made.trees.score(offline)
    assert not made.knows_queries  # nobody searched in this log
    expected = (score + query_prior.query_bonus(offline, made.trees.names, score)).tolist()
    assert scores == dict(zip(asked["candidates"], expected, strict=True))


def _with(data: dataset.Dataset, sent: list[dict[str, object]]) -> Events:
    """The log with these events at its end."""
    e = data.events
    n = len(sent)
    kinds = [Kind[str(s["event"]).upper()] for s in sent]
    return Events(
        np.append(e.at, [float(str(s["timestamp"])) for s in sent]),
        np.append(e.user, [e.user_ids.index(str(s["user_id"])) for s in sent]).astype(np.int32),
        np.append(e.item, data.catalogue.rows([str(s["item_id"]) for s in sent])).astype(np.int32),
        np.append(e.kind, kinds).astype(np.int8),
        np.append(e.request, np.full(n, -1)).astype(np.int32),
        np.append(e.position, np.full(n, -1)).astype(np.int16),
        np.append(e.value, np.full(n, np.nan)),
        e.user_ids,
        e.request_ids,
        np.append(e.session, np.full(n, -1)).astype(np.int32),
        np.append(e.device, np.full(n, -1)).astype(np.int8),
    )


def _one_list(user: int, at: float, candidates: np.ndarray, device: int, query: str) -> Lists:
    n = len(candidates)
    return Lists(
        np.array([at]),
        np.array([user], np.int32),
        ["r"],
        np.array([0, n]),
        candidates,
        np.zeros(n, np.int16),
        np.zeros(n, np.int8),
        np.zeros((1, 3), np.int32),
        np.array([device], np.int8),
        [query],
    )


def test_a_user_erased_while_the_night_ran_is_not_brought_back(night: Night, made: release.Release, url: str) -> None:
    """The log was read before; Redis knows of the erasure when the lists are seeded."""
    users = night.inputs.data.events.user_ids
    gone, stays = (users[u] for u in np.bincount(night.inputs.data.events.user).argsort()[-2:].tolist())

    async def erase() -> None:
        store = Store(url, 5.0)
        await store.erase(gone, time.time())
        await store.close()

    asyncio.run(erase())
    publish.publish(night.artefacts, lambda done, total: None)
    with BulkStore(url) as store:
        assert not len(store.read(gone, made.items.catalogue, night.inputs.cut_off).item)
        assert len(store.read(stays, made.items.catalogue, night.inputs.cut_off).item)
