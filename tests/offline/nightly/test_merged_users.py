"""A nightly run whose log has merges: rows, labels, and what it adds to Redis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.history import Histories
from features.replay import Replay
from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.data.schema import MERGES_SCHEMA
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from serving.store import BulkStore
from serving.store.embedded import connect_url

pytestmark = pytest.mark.slow
SHOP = SimulateConfig(items=100, users=300, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))
PAIRS = 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A simulated log in which 20 of the most active users are merged into 20 others, at two thirds of the time."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    events = pq.read_table(workspace / "data/events.parquet", columns=["user_id", "timestamp"])
    counts = events.group_by("user_id").aggregate([("user_id", "count")]).sort_by([("user_id_count", "descending")])
    active, at = counts["user_id"].to_pylist()[: 2 * PAIRS], events["timestamp"].cast(pa.int64()).to_numpy()
    moment = int(np.sort(at)[2 * len(at) // 3])
    merges = {
        "user_id": active[::2],
        "from_id": active[1::2],
        "at": pa.array([moment] * PAIRS, pa.timestamp("us", "UTC")),
    }
    folder = workspace / "data/merges/date=2024-05-28"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(merges, MERGES_SCHEMA), folder / "part-1-0.parquet")
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 30, "min_data_in_leaf": 20},
        encoder={"mode": "frozen", "refreshes": 0, "max_tokens": 16},
        lists={"refreshes": 1},
        gate={"latency_ratio": 100, "certainty": 0},
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


def test_only_rows_of_merged_users_after_their_merge_differ_from_a_log_without_merges(night: Night) -> None:
    """In the features of a user's lists; those of items do not depend on merges."""
    merges, lists = night.inputs.data.merges, night.artefacts.lists
    assert len(merges.at) == PAIRS
    replay: Replay = night.artefacts.replay
    plain = replace(replay, given=Histories.of(replay.events, replay.retention))
    of_user = [k for k, f in enumerate(replay.features) if f.name.startswith(("session_", "user_"))]
    differ = (replay.rows(lists)[:, of_user].view(np.uint32) != plain.rows(lists)[:, of_user].view(np.uint32)).any(
        axis=1
    )
    changed = np.unique(lists.group[differ])
    is_merged = np.isin(lists.user, np.concatenate((merges.source, merges.into)))
    assert of_user
    assert len(changed) > PAIRS
    assert (is_merged & (lists.at > merges.at[0]))[changed].all()
    np.testing.assert_array_equal(night.artefacts.array("rows.npy"), replay.rows(lists))


def test_redis_has_the_joined_histories_and_nothing_of_a_guest_from_before(night: Night, url: str) -> None:
    data, at = night.inputs.data, night.inputs.cut_off
    merges, histories = data.merges, night.artefacts.replay.histories
    with BulkStore(url) as store:
        for source, into in zip(merges.source.tolist(), merges.into.tolist(), strict=True):
            for user in (source, into):
                stored = store.read(data.events.user_ids[user], data.catalogue, at)
                assert [x.tolist() for x in stored] == [x.tolist() for x in histories.read(user, at)]
                if user == source:
                    assert (stored.at >= merges.at[0]).all()


def test_another_merge_makes_another_run(night: Night, config: Config, url: str) -> None:
    folder = config.data / "merges/date=2024-05-28"
    table = pq.read_table(folder / "part-1-0.parquet", partitioning=None)
    more = folder / "part-2-0.parquet"
    pq.write_table(table.slice(0, 1), more)
    try:
        assert Night(config, url).run.directory != night.run.directory
    finally:
        more.unlink()
