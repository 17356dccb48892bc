"""Failing nightly runs: killed at every step, with corrupt data, on a full disk. The live release serves throughout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from offline.cli import app
from offline.config.checks import CheckConfig
from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.evaluation.report import render
from offline.nightly.night import Night
from offline.nightly.run import resolve_reads
from offline.runtime.errors import ChecksFailed, DataError, ReleaseKept
from offline.runtime.files import checksum
from offline.simulation.dataset import simulate
from offline.studies.staleness import measure_staleness
from serving.lock import Locked, locked
from serving.release import registry, release
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests import ROOT
from tests.serving.test_service import FAST, ready, served
from tests.tiny_encoder import tiny_encoder

pytestmark = pytest.mark.nights
END = datetime(2024, 6, 1, tzinfo=UTC)
SHOP = SimulateConfig(items=120, users=250, days=14, new_items_per_day=1, end=END)
DAY = 86400.0
YAML = """
workspace: {workspace}
ranker: {{trees: 30, min_data_in_leaf: 20}}
encoder: {{epochs: 1, max_tokens: 32}}
gate: {{latency_ratio: 100, certainty: 0}}
"""
"""Ranking so small a shop takes too little time to measure on a busy machine. Its lists are too few to show that the
trained ranker, which is tested here, is better than a simple order."""


def clock() -> float:
    """An hour after the end of the simulated log."""
    return END.timestamp() + 3600


def night_of(config: Config, url: str | None, **options: Any) -> Night:
    return Night(config, url, clock=clock, **options)


def configured(workspace: Path) -> Config:
    (workspace / "shelfwise.yaml").write_text(YAML.format(workspace=workspace))
    return load(workspace / "shelfwise.yaml")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Config:
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    return configured(workspace)


@pytest.fixture(scope="module")
def url(shop: Config) -> Iterator[str]:
    with connect_url(None, shop.embedded) as url:
        yield url


@pytest.fixture(scope="module")
def first(shop: Config, url: str) -> release.Release:
    """The live release, from a run two days before the end of the log."""
    return night_of(shop, url, until=END.timestamp() - 2 * DAY)()


@pytest.fixture
def another(shop: Config, first: release.Release, url: str, tmp_path: Path) -> Iterator[Config]:
    """A copy of the workspace. Afterwards the first release is live again."""
    for name in ("data", "releases", "statistics"):
        shutil.copytree(shop.workspace / name, tmp_path / name)
    yield configured(tmp_path)
    with BulkStore(url) as store:
        store.set_pointer(Pointer(first.id, str(first.path)))


def live(url: str) -> str | None:
    with BulkStore(url) as store:
        pointer = store.pointer()
    return pointer.id if pointer else None


# --- Killed at every step

KILLED = """
import os, signal, sys, traceback
from pathlib import Path
from offline.config.configuration import load
from offline.nightly.night import Night
config, url, end = load(Path(sys.argv[1])), sys.argv[2], float(sys.argv[3])
import lightgbm, torch, text_encoder.train
names = [s.name for s in Night(config, url).steps]
def truncate(path):
    for p in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if p.is_file():
            os.truncate(p, p.stat().st_size // 2)
def child(name):
    night = Night(config, url, clock=lambda: end + 3600)
    def killed(step):
        def work(on_progress):
            step.work(on_progress)
            for name in step.makes[:1]:
                truncate(night.run.file(name))
            night.run.file(".steps.json.1").write_text("half")
            (config.releases / ".making-killed").mkdir(exist_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return step._replace(work=work)
    night.run.do([killed(s) if s.name == name else s for s in night.steps])
for name in names:
    pid = os.fork()
    if not pid:
        try:
            child(name)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(name, status, flush=True)
"""


class Shopper(threading.Thread):
    """Requests a list repeatedly, and records every status and release."""

    def __init__(self, client: httpx.Client, item_ids: list[str]) -> None:
        super().__init__()
        self.statuses: set[int] = set()
        self.releases: list[str] = []
        self._client, self._body, self._over = client, {"user_id": "u00003", "candidates": item_ids}, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            answer = self._client.post("/v1/rank", json=self._body)
            self.statuses.add(answer.status_code)
            self.releases.append(answer.json().get("release", ""))

    def stop(self) -> None:
        self._over.set()
        self.join()


def test_a_run_killed_at_every_step_makes_the_same_release_while_the_live_one_serves(
    another: Config, first: release.Release, url: str, tmp_path: Path
) -> None:
    """Each step is killed when its first file is half written, and the next start continues. The last run completes.

    The ID of a release is a checksum of all its bytes, so the same ID means the same release.
    """
    config = another
    with served(url, FAST, first.path) as client, ExitStack() as stack:
        ready(client)
        shopper = Shopper(client, list(first.items.catalogue.item_ids[:20]))
        shopper.start()
        stack.callback(shopper.stop)
        command = [sys.executable, "-c", KILLED, str(config.workspace / "shelfwise.yaml"), url, str(END.timestamp())]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        killed = dict(line.split() for line in process.stdout.splitlines())
        steps = [s.name for s in night_of(config, url).steps]
        assert killed == {name: str(-signal.SIGKILL) for name in steps}, process.stderr
        night = night_of(config, url)
        made = night()
    assert shopper.statuses == {200}
    assert set(shopper.releases) <= {first.id, made.id}
    assert live(url) == made.id
    assert made.manifest.parent == first.id

    remaining = {p.name for p in config.releases.iterdir()}
    assert remaining == {first.id, made.id, "audit.jsonl", "judgements.jsonl", "lock", "owner"}, (
        "no unfinished directories are left"
    )
    assert not [p.name for p in night.run.directory.iterdir() if p.name.startswith(".")]

    with BulkStore(url) as store:
        store.set_pointer(Pointer(first.id, str(first.path)))
    uninterrupted = configured(_copy(config, tmp_path / "calm", first.id))
    expected = night_of(uninterrupted, url)()
    assert expected.manifest == made.manifest, "the same as an uninterrupted run"


def _copy(config: Config, to: Path, *kept: str) -> Path:
    """Copy the data and some releases of a workspace to another one."""
    shutil.copytree(config.data, to / "data")
    for release_id in kept:
        shutil.copytree(config.releases / release_id, to / "releases" / release_id)
    return to


def test_each_step_reads_only_what_it_declares_and_is_reproducible(
    shop: Config, first: release.Release, url: str, tmp_path: Path
) -> None:
    """Each step runs alone, in a directory with only the files that it reads."""
    options: dict[str, Any] = {"until": END.timestamp() - 2 * DAY}
    finished = night_of(shop, url, **options)
    for planned in finished.run.plan(finished.steps):
        assert planned.done
    timed = {"evaluation.json", "report.html"}  # contain durations
    for name in ("windows", "texts", "lists", "rows", "ranker", "probabilities", "evaluate", "release"):
        night = night_of(shop, url, **options)
        night.run.directory = tmp_path / name
        night.run.directory.mkdir()
        step = next(s for s in resolve_reads(night.steps) if s.name == name)
        for read in step.reads or ():
            (night.run.directory / read).symlink_to(finished.run.file(read).resolve())
        if name == "release":
            (night.run.directory / "parent.json").symlink_to(finished.run.file("parent.json").resolve())
        step.work(lambda done, total: None)
        for written in set(step.makes) - timed:
            assert checksum(night.run.file(written)) == checksum(finished.run.file(written)), written


def test_a_finished_run_is_reported_as_done_and_a_concurrent_run_is_refused(
    shop: Config, first: release.Release, url: str
) -> None:
    night = night_of(shop, url, until=END.timestamp() - 2 * DAY)
    assert all(p.done and p.seconds is not None for p in night.run.plan(night.steps))
    with locked(shop.runs / "lock"), pytest.raises(Locked, match="is in use by process"):
        night()
    assert Locked.status == 5


# --- Corrupt data


def events_of(config: Config) -> pa.Table:
    return pq.read_table(config.data / "events.parquet")


def write_events(config: Config, table: pa.Table) -> None:
    pq.write_table(table, config.data / "events.parquet")


def change_items(config: Config, **columns: Callable[[pa.Table], Any]) -> None:
    table = pq.read_table(config.data / "items.parquet")
    for name, value in columns.items():
        k = table.schema.get_field_index(name)
        table = table.set_column(k, table.schema.field(k), pa.array(value(table), table.schema.field(k).type))
    pq.write_table(table, config.data / "items.parquet")


def seconds_of(table: pa.Table) -> np.ndarray:
    return np.asarray(table["timestamp"].cast(pa.int64()).to_numpy()) / 1e6


def at(seconds: np.ndarray) -> pa.Array:
    return pa.array((seconds * 1e6).astype(np.int64)).cast(pa.timestamp("us", "UTC"))


def truncated(config: Config) -> None:
    path = config.data / "events.parquet"
    os.truncate(path, path.stat().st_size // 2)


def duplicated_day(config: Config) -> None:
    """The last day is logged again a week earlier, with new event IDs."""
    table = events_of(config)
    seconds = seconds_of(table)
    last = table.filter(pa.array(seconds >= END.timestamp() - DAY))
    again = last.set_column(0, "event_id", pc.binary_join_element_wise(last["event_id"], "again", "-"))
    k = again.schema.get_field_index("timestamp")
    again = again.set_column(k, table.schema.field(k), at(seconds_of(last) - 7 * DAY))
    write_events(config, pa.concat_tables([table, again.cast(table.schema)]))


def clock_skew(config: Config) -> None:
    """On the last day, clicks and purchases are logged three hours earlier than lists."""
    table = events_of(config)
    seconds, kind = seconds_of(table), table["event"].to_numpy()
    moved = (kind != "impression") & (seconds > END.timestamp() - DAY)
    k = table.schema.get_field_index("timestamp")
    write_events(config, table.set_column(k, table.schema.field(k), at(seconds - 3 * 3600 * moved)))


def from_the_future(config: Config) -> None:
    table = events_of(config)
    seconds = seconds_of(table)
    k = table.schema.get_field_index("timestamp")
    ahead = seconds + 2 * DAY * (seconds > END.timestamp() - DAY)
    write_events(config, table.set_column(k, table.schema.field(k), at(ahead)))


def emptied_descriptions(config: Config) -> None:
    change_items(config, description=lambda t: [""] * len(t))


def category_missing(config: Config) -> None:
    table = pq.read_table(config.data / "items.parquet")
    category = table["category"].to_pylist()
    most = max({c for c in category if c}, key=category.count)
    pq.write_table(table.filter(pa.array([c != most for c in category])), config.data / "items.parquet")


def prices_in_cents(config: Config) -> None:
    change_items(config, price=lambda t: [None if p is None else 100 * p for p in t["price"].to_pylist()])


def a_bot(config: Config) -> None:
    """One user clicks each item of the catalogue twice on the last day."""
    table = events_of(config)
    items = pq.read_table(config.data / "items.parquet")["item_id"].to_pylist() * 2
    rows = [
        {
            "event_id": f"bot{k}",
            "event": "click",
            "user_id": "u00001",
            "item_id": item,
            "timestamp": datetime.fromtimestamp(END.timestamp() - DAY + 300 * k, UTC),
        }
        for k, item in enumerate(items)
    ]
    write_events(config, pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)]))


CORRUPT: dict[str, tuple[Callable[[Config], None], str, str]] = {
    "truncated file": (truncated, "schema", "events.parquet: cannot be read as Parquet"),
    "duplicated day": (
        duplicated_day,
        "duplicates",
        "occur in the log again, with the same user, item and time of day",
    ),
    "clock skew": (clock_skew, "clock", "are earlier than the list they belong to"),
    "events from the future": (from_the_future, "future", "events are in the future"),
    "emptied descriptions": (emptied_descriptions, "catalogue", "were emptied or truncated"),
    "one category missing": (category_missing, "categories", "items are missing or it was renamed"),
    "prices in cents": (prices_in_cents, "prices", "the unit (cents?) or the currency changed"),
    "a bot that clicks everything": (a_bot, "bot", "user 'u00001' made"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_data_stop_the_run_with_a_message_that_names_the_cause(
    another: Config, first: release.Release, url: str, case: str
) -> None:
    """The run stops before training. The findings are in a file, the live release is kept, and the exit status is 4."""
    corrupt, check, message = CORRUPT[case]
    corrupt(another)
    night = night_of(another, url)
    with pytest.raises(ChecksFailed) as stopped:
        night()
    assert message in str(stopped.value)
    assert stopped.value.status == 4
    findings = json.loads(night.run.file("checks.json").read_text())["findings"]
    assert check in {f["check"] for f in findings if f["level"] == "stop"}
    assert live(url) == first.id
    assert not night.run.file("windows.json").exists()


def test_an_accepted_check_only_warns(another: Config, url: str) -> None:
    """With --accept prices, because the prices did change, the run continues with its next step."""
    prices_in_cents(another)
    config = another.model_copy(update={"checks": CheckConfig(accept=("prices",))})
    night = night_of(config, url)
    night.run.do(night.steps[:2])
    findings = json.loads(night.run.file("checks.json").read_text())["findings"]
    assert [(f["check"], f["level"]) for f in findings if f["check"] == "prices"] == [("prices", "warn")]
    assert night.run.file("windows.json").exists()


def test_the_gate_rejects_a_release_trained_on_shuffled_labels(
    another: Config, first: release.Release, url: str
) -> None:
    """All clicks and purchases are moved to a random item of their list, so no ranker can predict them."""
    table = events_of(another)
    kind, request = table["event"].to_numpy(), np.array(table["request_id"].to_pylist(), object)
    item = np.array(table["item_id"].to_pylist(), object)
    shown: dict[str, list[str]] = {}
    for r, i in zip(request[kind == "impression"], item[kind == "impression"], strict=True):
        shown.setdefault(r, []).append(i)
    rng = np.random.default_rng(0)
    swap = {(r, i): i for r, many in shown.items() for i in many}
    for r, many in shown.items():
        for i, j in zip(many, rng.permutation(many), strict=True):
            swap[r, i] = str(j)
    moved = [swap.get((r, i), i) if k != "impression" else i for r, i, k in zip(request, item, kind, strict=True)]
    column = table.schema.get_field_index("item_id")
    write_events(another, table.set_column(column, table.schema.field(column), pa.array(moved)))
    with pytest.raises(ReleaseKept, match="Check for shuffled labels, or clicks joined to the wrong lists") as kept:
        night_of(another, url)()
    assert kept.value.status == 3
    assert live(url) == first.id


def test_an_encoder_of_another_dimension_does_not_disturb_the_live_release(
    another: Config, first: release.Release, url: str, tmp_path: Path
) -> None:
    """The release is scored in shadow, its vectors have keys of their own, and the live release can be restored."""
    tiny = tiny_encoder(tmp_path / "tiny")
    config = another.model_copy(
        update={
            "encoder": another.encoder.model_copy(update={"model": str(tiny)}),
            "gate": another.gate.model_copy(update={"mode": "shadow"}),
        }
    )
    with pytest.raises(ReleaseKept, match=r"releases are only scored in shadow \(gate.mode: shadow\)"):
        night_of(config, url)()
    assert live(url) == first.id
    night = night_of(config, url)
    objections = [
        r for r, verdict, _ in json.loads(night.run.file("gate.json").read_text())["reasons"] if verdict != "promote"
    ]
    with BulkStore(url) as store:
        assert (store.shadow() is not None) == (objections == ["mode"]), (
            "a release that other rules object to is not scored"
        )
        store.set_shadow(None)
    table = pq.read_table(night.run.file("shadow.parquet"))
    assert np.isfinite(table["new"].to_numpy()).all()
    assert np.isfinite(table["live"].to_numpy()).all()
    candidate = json.loads(night.run.file("gate.json").read_text())["candidate"]
    with BulkStore(url) as store, served(url, FAST, first.path) as client:
        ready(client)
        changes: list[tuple[Callable[[], release.Release], str]] = [
            (lambda: registry.promote(config.releases, store, candidate, "try it"), candidate),
            (lambda: registry.rollback(config.releases, store, "no"), first.id),
        ]
        for change, expected in changes:
            assert change().id == expected
            end = time.monotonic() + 20
            while client.get("/health/ready").json()["release"] != expected:
                assert time.monotonic() < end
                time.sleep(0.05)
        made = release.load_release(config.releases / candidate)
        assert made.manifest.dimension == 32
        stored = store.read_vectors(made.manifest.encoder_fingerprint, list(made.items.catalogue.item_ids[:3]), 32)
    assert np.isfinite(stored).all()


FULL = """
import resource, sys
from offline.cli import main
from offline.nightly.artefacts import Artefacts
create_array = Artefacts.create_array
def full(self, name, shape):
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return create_array(self, name, shape)
if sys.argv.pop(1) == "full":
    Artefacts.create_array = full
main()
"""


def test_a_full_disk_has_its_own_exit_status_and_the_next_run_continues(another: Config, url: str) -> None:
    """Files over 200 kB do not fit: exit status 7, and the live release is kept. With free space, the run completes."""

    def nightly(space: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", FULL, space, "nightly", "--config", str(another.workspace / "shelfwise.yaml")]
        environment = {**os.environ, "REDIS_URL": url, "COLUMNS": "200"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    before = live(url)
    process = nightly("full")
    assert process.returncode == 7, process.stderr
    assert "the disk is full; free some space and run again" in process.stderr
    assert "Traceback" not in process.stderr
    assert live(url) == before
    process = nightly("empty")
    assert process.returncode in (0, 3, 6), process.stderr


def test_an_aged_model_is_trained_on_the_earlier_log_and_tested_on_the_same_lists(
    shop: Config, first: release.Release, tmp_path: Path
) -> None:
    """The test window of a model two days old begins two days before tonight's. A model of age 0 loses nothing."""
    base = night_of(configured(_copy(shop, tmp_path)), None)
    base.run_to("evaluate")
    points = measure_staleness(base, [2])
    assert [p["days"] for p in points] == [0, 2]
    assert points[0]["lost"] == 0
    assert points[1]["lists"] < points[0]["lists"]
    assert points[1]["lost_low"] <= points[1]["lost"] <= points[1]["lost_high"]
    aged = [json.loads(p.read_text()) for p in base.inputs.config.runs.glob("*/windows.json")]
    begin = min(w["test"] for w in aged)
    assert base.artefacts.windows.test - begin == pytest.approx(2 * DAY, abs=DAY / 4)
    evaluation = json.loads(base.run.file("evaluation.json").read_text())
    assert "Model age" in render({**evaluation, "staleness": points})
    with pytest.raises(DataError, match="use smaller ages in --days"):
        measure_staleness(base, [14])


# --- Exit statuses


@pytest.mark.parametrize(
    ("error", "status"),
    [(ChecksFailed("corrupt"), 4), (ReleaseKept("worse"), 3), (Locked("busy"), 5), (OSError(28, "No space left"), 7)],
)
def test_each_outcome_of_a_run_has_its_own_exit_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == status
    assert f"shelfwise: {error}"[:20] in capfd.readouterr().err
