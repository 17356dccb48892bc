"""Nightly runs on a Ray cluster of several node processes match a local run bit for bit, even if a node dies."""

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
from offline.nightly.night import Night
from offline.runtime.engine import WorkerGroup, split_evenly
from offline.runtime.errors import DataError
from offline.runtime.files import checksum
from offline.runtime.progress import OnProgress
from offline.runtime.ray_engine import Ray, connected
from offline.simulation.dataset import simulate
from offline.training.rows import RowBlock, RowsJob, make_rows
from ranker.metrics import paired_difference, score_lists, tie_break
from ranker.trees import Trees
from text_encoder import texts
from text_encoder.encoder import load as load_encoder

pytestmark = [
    pytest.mark.ray,
    # Ray leaves processes and sockets of a killed node to the operating system.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Raised by Ray Data for settings of its own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SHOP = SimulateConfig(items=60, users=400, days=8, end=datetime(2024, 6, 1, tzinfo=UTC))
STORE_BYTES = 200 * 2**20


class Nodes(NamedTuple):
    """A Ray cluster with a head node, which the tests connect to, and two worker nodes. Each has one CPU."""

    address: str
    workers: list[Any]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray Train processes that a short test does not need.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    options = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, "wait": False}
    try:
        # One loopback address per node. Ray takes 127.0.0.1 for any address of the machine, so it is not used.
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
    """A nightly run on the local engine, up to the release."""
    workspace = tmp_path_factory.mktemp("local")
    simulate(SHOP, workspace / "data")
    night = Night(configured(workspace), None)
    night()
    return night


def test_a_nightly_run_on_ray_writes_the_same_bytes_as_a_local_run(local: Night, engine: Ray, tmp_path: Path) -> None:
    """The same data and configuration give the same run ID, lists, vectors, rows and ranker."""
    (tmp_path / "data").symlink_to(local.inputs.config.data)
    night = Night(configured(tmp_path), None, engine=engine)
    night.run_to("ranker")
    assert engine.parts > 1
    assert night.run.directory.name == local.run.directory.name
    names = ("vectors.npy", "zero_shot.npy", "lists.npz", "rows.npy", "baselines.npy", "warm.npy", "ranker.txt")
    assert {n: checksum(night.run.file(n)) for n in names} == {n: checksum(local.run.file(n)) for n in names}


def test_encoding_texts_on_several_nodes_gives_the_same_vectors(engine: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks, each encoded on any free node: the same vectors as in this process, bit for bit."""
    monkeypatch.setattr(texts, "BLOCK", 32)
    encoder = load_encoder("minilm", max_tokens=16)
    lamps = [f"lamp number {k}" + " for the garden" * (k % 3) for k in range(80)]
    serial, mapped = (
        texts.encode_texts(encoder, lamps, None, None, lambda _: None, over_blocks).vectors
        for over_blocks in (texts.map_serially, engine.map)
    )
    np.testing.assert_array_equal(mapped, serial)


def ndcg(tested: Lists, score: np.ndarray) -> np.ndarray:
    """float64[lists]: ndcg@10 of the order by `score`."""
    return score_lists("ndcg@10", score, tested.gain, tested.start, tie_break(tested.item, tested.start))


def ranker_ndcg(night: Night) -> np.ndarray:
    """float64[lists]: ndcg@10 of the trained ranker on the test lists."""
    x, tested, _ = night.artefacts.window_rows("test")
    return ndcg(tested, Trees.parse(night.run.file("ranker.txt").read_text("utf-8")).score(x))


def test_two_training_workers_reach_the_quality_of_one(local: Night, engine: Ray, tmp_path: Path) -> None:
    """Encoder and ranker trained by two workers each: different models, in a run of their own.

    On the test lists they are not significantly worse than those of one worker, and they beat a random order.
    """
    (tmp_path / "data").symlink_to(local.inputs.config.data)
    night = Night(configured(tmp_path), None, engine=Ray(engine._ray, workers=2))
    night.run_to("ranker")
    assert night.run.directory.name != local.run.directory.name
    same = {n: checksum(night.run.file(n)) == checksum(local.run.file(n)) for n in ("zero_shot.npy", "ranker.txt")}
    assert same == {"zero_shot.npy": True, "ranker.txt": False}
    tested = local.artefacts.window_rows("test").lists
    against_one = paired_difference(ranker_ndcg(night), ranker_ndcg(local), tested.user)
    assert against_one.high >= 0, against_one
    against_random = paired_difference(ranker_ndcg(night), ndcg(tested, np.zeros(tested.rows)), tested.user)
    assert against_random.low > 0, against_random


def die_then_fail(directory: Path, group: WorkerGroup, on_progress: OnProgress) -> str:
    """A training function that kills its process at the first call and raises at the second."""
    calls = len(list(directory.iterdir()))
    (directory / str(calls)).touch()
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    raise DataError(f"{directory.name} is damaged")


def test_a_training_is_restarted_after_losing_a_worker_but_not_after_an_error(engine: Ray, tmp_path: Path) -> None:
    """The first call dies by SIGKILL, the second raises: the error is raised here unchanged, without a third call."""
    with pytest.raises(DataError, match=f"^{tmp_path.name} is damaged$"):
        engine.train("torch", die_then_fail, tmp_path, lambda done, total: None)
    assert len(list(tmp_path.iterdir())) == 2


def raise_for_part(name: str, part: int) -> Iterator[int]:
    raise DataError(f"{name} {part} is damaged")
    yield 0


def test_an_error_in_a_part_is_raised_unchanged(engine: Ray) -> None:
    """Class and message are kept, so that the command line can handle the error."""
    with pytest.raises(DataError, match=r"^file 7 is damaged$"):
        list(engine.map(raise_for_part, "file", [7, 8]))


class Watched(NamedTuple):
    """A job of feature rows, and a directory with a file for each start of a part. home: ID of the driver's node."""

    job: RowsJob
    starts: Path
    home: str


def blocks_after_kill(watched: Watched, part: range) -> Iterator[RowBlock]:
    """Like `make_rows`, but on a worker node the first start of each part waits until a node has been killed."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    first = not list(watched.starts.glob(f"{part.start}-*"))
    (watched.starts / f"{part.start}-{node}-{time.monotonic_ns()}").touch()
    deadline = time.monotonic() + 120
    while node != watched.home and first and not (watched.starts / "killed").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return make_rows(watched.job, part)


def test_a_killed_node_does_not_change_the_result(local: Night, engine: Ray, nodes: Nodes, tmp_path: Path) -> None:
    """SIGKILL to a node in the middle of a part: the part is restarted elsewhere, and all rows are the same."""
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

    made = local.artefacts
    job = RowsJob(made.replay, made.lists, made.windows.lists("test", made.lists), made.zero_shot, 17, False)
    watched = Watched(job, tmp_path, ray.get_runtime_context().get_node_id())
    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    blocks = list(engine.map(blocks_after_kill, watched, split_evenly(made.lists.start, 6)))
    killer.join()
    np.testing.assert_array_equal(np.concatenate([b.rows for b in blocks]), np.load(local.run.file("rows.npy")))
    np.testing.assert_array_equal(np.concatenate([b.best for b in blocks]), np.load(local.run.file("baselines.npy")))
    starts = [path.name.split("-")[0] for path in tmp_path.glob("*-*-*")]
    assert len(starts) > len(set(starts)) == 6, "a part that ran on the killed node was started again"
