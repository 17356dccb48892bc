"""A night on a Ray cluster of several node processes: what `local` makes, to the bit, whoever dies on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from features.log import Lists
from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.ingest.importer import import_data
from offline.nightly.night import Night
from offline.runtime.engine import LOCAL, WorkerGroup, split_evenly
from offline.runtime.errors import DataError
from offline.runtime.files import checksum
from offline.runtime.progress import OnProgress
from offline.runtime.ray_engine import Ray, connected
from offline.simulation.dataset import simulate
from offline.training.rows import RowBlock, RowsJob, make_rows
from ranker.metrics import paired_difference, score_lists, tie_break
from ranker.trees import Trees
from tests.offline.runtime.test_engine import log_of_days
from text_encoder import texts
from text_encoder.encoder import load as load_encoder

pytestmark = [
    pytest.mark.ray,
    # Ray's own: processes and sockets it leaves to the system when a node is killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Of settings that Ray Data makes for itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SHOP = SimulateConfig(items=60, users=400, days=8, end=datetime(2024, 6, 1, tzinfo=UTC))
STORE_BYTES = 200 * 2**20


class Nodes(NamedTuple):
    """A head node, which the tests belong to, and two more; each with one CPU."""

    address: str
    workers: list[Any]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Processes of Ray Train that a test of seconds has no use for.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, "wait": False}
    try:
        # Addresses of their own, none of which leaves the machine. 127.0.0.1 Ray takes for any address of it.
        cluster.add_node(node_ip_address="127.0.0.2", **options)
        workers = [cluster.add_node(node_ip_address=f"127.0.0.{k}", **options) for k in (3, 4)]
        cluster.wait_for_nodes(timeout=120)
        yield Nodes(cluster.address, workers)
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(nodes: Nodes) -> Iterator[Ray]:
    with connected(nodes.address) as engine:
        yield engine


def configured(workspace: Path) -> Config:
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 10, "min_data_in_leaf": 20},
        encoder={"epochs": 1, "budget_s": 600, "max_tokens": 16, "refreshes": 1},
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Night:
    """A night by the local engine, up to the release."""
    workspace = tmp_path_factory.mktemp("local")
    simulate(SHOP, workspace / "data")
    night = Night(configured(workspace), None)
    night()
    return night


def test_a_night_on_ray_makes_the_files_of_a_local_night_to_the_byte(local: Night, engine: Ray, tmp_path: Path) -> None:
    """From the same data and configuration: the same run, lists, vectors, rows, ranker, and the same release."""
    (tmp_path / "data").symlink_to(local.config.data)
    night = Night(configured(tmp_path), None, engine=engine)
    night.run_to("ranker")
    assert engine.parts > 1
    assert night.run.directory.name == local.run.directory.name
    names = ("vectors.npy", "zero_shot.npy", "lists.npz", "rows.npy", "baselines.npy", "warm.npy", "ranker.txt")
    assert {n: checksum(night.run.file(n)) for n in names} == {n: checksum(local.run.file(n)) for n in names}


def test_texts_are_read_in_blocks_by_several_nodes(engine: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks, read by whoever is free: the vectors of a reading here, to the bit."""
    monkeypatch.setattr(texts, "BLOCK", 32)
    encoder = load_encoder("minilm", max_tokens=16)
    lamps = [f"lamp number {k}" + " for the garden" * (k % 3) for k in range(80)]
    here, there = (
        texts.encode_texts(encoder, lamps, None, None, lambda _: None, over_blocks).vectors
        for over_blocks in (texts.map_serially, engine.map)
    )
    np.testing.assert_array_equal(there, here)


def test_the_files_of_a_log_are_checked_by_several_nodes(engine: Ray, tmp_path: Path) -> None:
    """What `import` writes of four sources, and says of every row, is what it writes here."""
    config, now = log_of_days(tmp_path), datetime(2026, 2, 1, tzinfo=UTC)
    here, there = (import_data(config, tmp_path / str(k), now, engine=e) for k, e in enumerate((LOCAL, engine)))
    assert there == here
    names = ("events.parquet", "items.parquet", "quarantine.parquet")
    assert [checksum(tmp_path / "1" / n) for n in names] == [checksum(tmp_path / "0" / n) for n in names]


def ndcg(tested: Lists, score: np.ndarray) -> np.ndarray:
    """float64[lists]: ndcg@10 by these scores."""
    return score_lists("ndcg@10", score, tested.gain, tested.start, tie_break(tested.item, tested.start))


def ranked(night: Night) -> np.ndarray:
    """float64[lists]: ndcg@10 of the night's ranker on its test lists."""
    x, tested, _ = night.artefacts.window_rows("test")
    return ndcg(tested, Trees.parse(night.run.file("ranker.txt").read_text("utf-8")).score(x))


def test_two_workers_that_train_together_do_as_well_as_one(local: Night, engine: Ray, tmp_path: Path) -> None:
    """Encoder and ranker by two workers each: another model, in a run of its own, as good on the test but for chance.

    Not for want of learning: both are better than a random order.
    """
    (tmp_path / "data").symlink_to(local.config.data)
    night = Night(configured(tmp_path), None, engine=Ray(engine._ray, workers=2))
    night.run_to("ranker")
    assert night.run.directory.name != local.run.directory.name
    same = {n: checksum(night.run.file(n)) == checksum(local.run.file(n)) for n in ("zero_shot.npy", "ranker.txt")}
    assert same == {"zero_shot.npy": True, "ranker.txt": False}
    tested = local.artefacts.window_rows("test").lists
    against_one = paired_difference(ranked(night), ranked(local), tested.user)
    assert against_one.low <= 0 <= against_one.high, against_one
    against_random = paired_difference(ranked(night), ndcg(tested, np.zeros(tested.rows)), tested.user)
    assert against_random.low > 0, against_random


def lost_then_damaged(seen: Path, mates: WorkerGroup, on_progress: OnProgress) -> str:
    begun = len(list(seen.iterdir()))
    (seen / str(begun)).touch()
    if not begun:
        os.kill(os.getpid(), signal.SIGKILL)
    raise DataError(f"{seen.name} is damaged")


def test_a_training_that_loses_a_worker_begins_again_and_one_that_fails_does_not(engine: Ray, tmp_path: Path) -> None:
    """SIGKILL to the worker, and then an error: that is raised as it was there, and nothing is tried a third time."""
    with pytest.raises(DataError, match=f"^{tmp_path.name} is damaged$"):
        engine.train("torch", lost_then_damaged, tmp_path, lambda done, total: None)
    assert len(list(tmp_path.iterdir())) == 2


def refused(what: str, part: int) -> Iterator[int]:
    raise DataError(f"{what} {part} is damaged")
    yield 0


def test_an_error_of_a_part_is_the_error_of_the_night(engine: Ray) -> None:
    """As it was raised there, with its own class and words: the command line knows what to say of it."""
    with pytest.raises(DataError, match=r"^file 7 is damaged$"):
        list(engine.map(refused, "file", [7, 8]))


class Watched(NamedTuple):
    """Rows to be made, and a directory in which who begins a part leaves a file."""

    asked: RowsJob
    begun: Path
    home: str


def held_blocks(watched: Watched, part: range) -> Iterator[RowBlock]:
    """`blocks`, but on any node other than the first a part waits, once, until a node has been killed."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    first = not list(watched.begun.glob(f"{part.start}-*"))
    (watched.begun / f"{part.start}-{node}-{time.monotonic_ns()}").touch()
    until = time.monotonic() + 120
    while node != watched.home and first and not (watched.begun / "killed").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return make_rows(watched.asked, part)


def test_a_node_killed_midway_costs_time_alone(local: Night, engine: Ray, nodes: Nodes, tmp_path: Path) -> None:
    """SIGKILL to a node in the middle of a part: the part is begun again elsewhere, and all rows are the same."""
    import ray

    by_id = {node.node_id: node for node in nodes.workers}

    def kill() -> None:
        while True:
            for path in tmp_path.glob("*-*-*"):
                if (node := by_id.get(path.name.split("-")[1])) is not None:
                    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
                    (tmp_path / "killed").touch()
                    return
            time.sleep(0.05)

    asked = RowsJob(local.replay, local.lists, local.windows.lists("test", local.lists), local.zero_shot, 17, False)
    watched = Watched(asked, tmp_path, ray.get_runtime_context().get_node_id())
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = list(engine.map(held_blocks, watched, split_evenly(local.lists.start, 6)))
    killer.join()
    np.testing.assert_array_equal(np.concatenate([b.rows for b in found]), np.load(local.run.file("rows.npy")))
    np.testing.assert_array_equal(np.concatenate([b.best for b in found]), np.load(local.run.file("baselines.npy")))
    begun = [path.name.split("-")[0] for path in tmp_path.glob("*-*-*")]
    assert len(begun) > len(set(begun)) == 6, "a part that the killed node had begun was begun again"
