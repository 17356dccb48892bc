"""The nightly run with its real parts on a tiny simulated shop: results, resumption, publication and serving."""

from __future__ import annotations

import asyncio
import json
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
from offline.data import concat, dataset
from offline.evaluation import served_scores
from offline.nightly import comparison, publish
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from ranker import query_prior
from serving.ranking.live import Live
from serving.release import release
from serving.store import STREAM, BulkStore, Store
from serving.store.embedded import connect_url
from tests.serving.test_service import FAST, ready, served
from text_encoder.examples import examples

SHOP = SimulateConfig(items=120, users=150, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A workspace with a simulated log, and settings for so small a shop."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 40, "min_data_in_leaf": 20},
        encoder={"epochs": 3, "budget_s": 120, "max_tokens": 32},
        sequence={"epochs": 2},
        gate={"certainty": 0},
    )


@pytest.fixture(scope="module")
def url(config: Config) -> Iterator[str]:
    with connect_url(None, config.embedded) as url:
        yield url


@pytest.fixture(scope="module")
def new_release(config: Config, url: str) -> release.Release:
    return Night(config, url)()


@pytest.fixture(scope="module")
def night(config: Config, url: str, new_release: release.Release) -> Night:
    """The finished run, read-only."""
    return Night(config, url)


def test_the_pointer_names_the_new_release(new_release: release.Release, url: str) -> None:
    """A release is published when the pointer in Redis names it."""
    with BulkStore(url) as store:
        pointer = store.pointer()
    assert pointer is not None
    assert (pointer.id, Path(pointer.path)) == (new_release.id, new_release.path)


def test_vectors_are_in_parquet_and_in_redis_under_the_encoders_fingerprint(
    new_release: release.Release, url: str
) -> None:
    """Parquet has a fixed-size list per row and the fingerprint as metadata; Redis has the same vectors in float16."""
    table = pq.read_table(new_release.path / "items.parquet")
    fingerprint = table.schema.metadata[b"encoder_fingerprint"].decode()
    assert fingerprint == new_release.manifest.encoder_fingerprint
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[384]"
    ids = table["item_id"].to_pylist()[:5]
    stored = np.stack(table["embedding"].to_pylist()[:5])
    with BulkStore(url) as store:
        np.testing.assert_allclose(store.read_vectors(fingerprint, ids, 384), stored, atol=1e-3)


def test_user_histories_are_seeded_from_the_log(night: Night, new_release: release.Release, url: str) -> None:
    """Right after the first release, Redis holds the histories of the log."""
    data = night.inputs.data
    user = int(np.bincount(data.events.user).argmax())
    with BulkStore(url) as store:
        stored = store.read(data.events.user_ids[user], new_release.items.catalogue, night.inputs.cut_off)
    logged = Histories.of(data.events).read(user, night.inputs.cut_off)
    for actual, expected in zip(stored, logged, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_each_encoder_is_trained_only_on_events_before_the_rows_it_scores(night: Night) -> None:
    """Four encoders: the first is trained before the ranker's first list, the last before the first test list.

    The last one scores the test lists.
    """
    facts = json.loads(night.run.file("encoder.json").read_text())
    used = [examples(night.inputs.data.events, at) for at in facts["moments"]]
    assert [encoder["examples"] for encoder in facts["made"]] == [len(part) for part in used]
    assert facts["examples"] == len(used[-1]) > len(used[0]) > 0
    assert all(part.at.max() < at for part, at in zip(used, facts["moments"], strict=True))
    assert facts["moments"][0] == night.artefacts.windows.ranker <= night.artefacts.lists.at.min()
    assert facts["moments"][-1] == night.artefacts.windows.test
    by_encoder = np.load(night.run.file("vectors.npy"))
    for at, vectors in zip(facts["moments"], by_encoder, strict=True):
        expected = Vectors.quantise(np.vstack([vectors, np.full((1, vectors.shape[1]), np.nan, np.float32)]))
        np.testing.assert_array_equal(night.artefacts.replay.items_at(at).vectors.code, expected.code)


def test_the_ranker_is_refit_on_the_validation_window_and_never_on_the_test_window(
    night: Night, new_release: release.Release
) -> None:
    """A refit uses all lists of the ranker and validation windows.

    The windows of the release end where the test window begins.
    """
    facts = json.loads(night.run.file("ranker.json").read_text())
    lists = night.artefacts.window_rows("ranker", "validation").lists
    assert facts["refit"]
    assert facts["lists"] == len(lists)
    assert lists.at.max() < night.artefacts.windows.test
    ends = {name: new_release.manifest.window[name]["to"] for name in ("encoder", "ranker", "validation")}
    assert set(ends.values()) == {new_release.manifest.window["test"]["from"]}


def test_the_release_has_probabilities_fitted_on_all_lists_of_the_validation_window(
    night: Night, new_release: release.Release
) -> None:
    """Lists without a click count too. The report checks each probability on later lists."""
    maps, windows = new_release.manifest.calibration, night.artefacts.windows
    assert maps == night.artefacts.maps
    lists = concat(night.inputs.short_lists())
    valid = ((lists.at >= windows.validation) & (lists.at < windows.test))[lists.group]
    assert maps["click"].rows == valid.sum()
    assert maps["click"].rate == np.mean(lists.gain[valid] > 0)
    evaluation = json.loads(night.run.file("evaluation.json").read_text())
    reliability = evaluation["outcomes"]["reliability"]
    assert set(reliability) == set(maps)
    assert reliability["click"]["all"]["rows"] == (lists.at >= windows.test)[lists.group].sum()
    assert evaluation["objectives"] == []


def test_the_evaluation_compares_with_simple_baselines_and_the_best_possible_order(night: Night) -> None:
    """Every system has an interval, and the simulator's best possible order is the ceiling."""
    evaluation = json.loads(night.run.file("evaluation.json").read_text())
    ndcg = {name: by["all"]["ndcg@10"] for name, by in evaluation["systems"].items()}
    intervals = {name: by["all"]["ndcg@10"] for name, by in evaluation["intervals"].items()}
    assert {
        "random",
        "shown_order",
        "popularity",
        "recency_popularity",
        "item_click_rate",
        "own_history",
        "cooccurrence",
        "sessions",
        "ease",
        "text_zero_shot",
        "text",
        "blend",
        "ranker",
        "best_possible",
    } == set(ndcg)
    assert all(low <= ndcg[name] <= high for name, (low, high) in intervals.items())
    assert max(ndcg, key=lambda name: ndcg[name]) == "best_possible"
    assert ndcg["ranker"] > intervals["random"][1]


def test_a_finished_run_changes_no_file(night: Night) -> None:
    """With the same data and configuration, every step is finished."""
    before = {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*") if p.is_file()}
    night()
    assert {p: p.stat().st_mtime_ns for p in night.run.directory.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("away_days", "rank"), [(0, 1), (165, 2), (190, 3)])
def test_a_replayed_row_equals_the_served_row_to_the_bit(
    night: Night, new_release: release.Release, url: str, away_days: int, rank: int
) -> None:
    """Rows of events sent to the service after the release equal the rows of the same events replayed from the log.

    Served through HTTP, Redis, the event stream and the memory-mapped release; replayed from arrays. After 190 days,
    the user's lists have expired in both; after 165 and at most 10 days of the log, they have not. rank: of the user by
    the number of events.
    """
    at = night.inputs.cut_off + away_days * 86400.0 + 1000.0
    catalogue = new_release.items.catalogue
    rng = np.random.default_rng(0)
    user = night.inputs.data.events.user_ids[int(np.bincount(night.inputs.data.events.user).argsort()[-rank])]
    query = f"{catalogue.titles[0]} wodden xyzzy"
    sent = [
        {
            "event_id": f"parity-{away_days}-{k}",
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
    with BulkStore(url) as store:
        store.run([["DEL", store.layout.key(STREAM)]])
    with served(url, FAST, new_release.path, clock=lambda: at) as client:
        ready(client)
        assert client.post("/v1/events", json=sent).json()["accepted"] == len(sent)
        time.sleep(4 * FAST.poll_s)  # wait until item state has caught up with the stream
        request = {
            "user_id": user,
            "candidates": [*catalogue.item_ids, "unknown item"],
            "device": "Tablet",
            "query": query,
        }
        scores = {i["item_id"]: i["score"] for i in client.post("/v1/rank", json=request).json()["items"]}
    candidates = np.append(np.arange(len(catalogue)), -1).astype(np.int32)
    live = Live.of(new_release)
    with BulkStore(url) as store:
        live.apply(store.tail(live.last))
        history = store.read(user, catalogue, at, new_release.manifest.retention)
    online = rows(live.items, history, candidates, at, Context(Device.TABLET, query))
    assert (history.at.min() < night.inputs.cut_off) == (away_days < 180)
    log = _with_events(night.inputs.data, sent)
    replay = replace(night.artefacts.replay, events=log, refresh_at=np.array([night.inputs.cut_off]), given=None)
    offline = replay.rows(_one_list(log.user_ids.index(user), at, candidates, Device.TABLET, query))
    assert (offline[:, names(live.items).index("device")] == Device.TABLET).all()
    np.testing.assert_array_equal(online, offline)
    assert np.isfinite(offline[:, names(live.items).index("query_cosine")]).any()
    assert np.isfinite(offline[:, names(live.items).index("sequence_cosine")]).any()
    score = new_release.trees.score(offline)
    assert not new_release.knows_queries  # nobody searched in this log
    expected = (score + query_prior.query_bonus(offline, new_release.trees.names, score)).tolist()
    assert scores == dict(zip(request["candidates"], expected, strict=True))


def test_the_gate_scores_the_live_release_with_its_sequence_model(night: Night, new_release: release.Release) -> None:
    """The release that this run made has about the scores of the run; without its model it has others."""
    a, test = night.artefacts, night.artefacts.window_rows("test")
    own = served_scores(a.published, test.rows, test.lists)
    without = replace(new_release, items=replace(new_release.items, sequence=None))
    apart = [np.abs(comparison.score_with_live(x, a.replay, test.lists) - own).mean() for x in (new_release, without)]
    assert apart[0] < 0.2 * apart[1]


def _with_events(data: dataset.Dataset, sent: list[dict[str, object]]) -> Events:
    """The log with these events appended."""
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


def test_a_user_erased_during_the_run_is_not_restored(night: Night, new_release: release.Release, url: str) -> None:
    """The log was read before the erasure, which Redis reports when histories are seeded."""
    users = night.inputs.data.events.user_ids
    erased, kept = (users[u] for u in np.bincount(night.inputs.data.events.user).argsort()[-2:].tolist())

    async def erase() -> None:
        store = Store(url, 5.0)
        await store.erase(erased, time.time())
        await store.close()

    asyncio.run(erase())
    publish.publish(night.artefacts, lambda done, total: None)
    with BulkStore(url) as store:
        assert not len(store.read(erased, new_release.items.catalogue, night.inputs.cut_off).item)
        assert len(store.read(kept, new_release.items.catalogue, night.inputs.cut_off).item)
