"""The service under load: `python -m tests.bench.serve`, over HTTP, one worker, with a real Valkey.

A synthetic shop of 100,000 items, with 384-d vectors and a model of 500 trees of 31 leaves, is written as two releases;
1,000 users have full lists (100 engagements, 240 impressions). The service runs in its own process under uvicorn, the
clients in this one. A request has a user and 500 candidates and gets the best 50.

1. Processor time of the service per request (all threads, as counted by the kernel), compared with `Booster.predict` on
   the rows of the same requests, alternating.
2. Latency by number of candidates, one client.
3. Requests per second and latency by number of clients: undisturbed, while releases are swapped, and with a stream of
   500 events per second (ten per request, like the impressions of a page).
4. Processor time of requests with ten columns of numbers per candidate, as lists and as objects, by a release that has
   them as features, compared with requests without columns by the release without; the releases are swapped each round.
   The same for a release with a sequence model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
import uvloop

from features.columns import Column
from features.history import ENGAGEMENTS, SHOWN
from features.table import names, rows
from serving.config import ServiceConfig
from serving.release.release import Release, load_release
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests import NO_EVENT_LIMITS
from tests.bench.assemble import train_model
from tests.bench.clients import Load, closed_loop, posted, stream
from tests.bench.made_up import AT, made_up_items, made_up_sequence, skewed
from tests.bench.memory import write_release_with, write_users

LIMIT = 50
CANDIDATES = (100, 200, 300, 500, 1000)
CLIENTS = (1, 8, 32)
USERS = 1000
POST = 10
"""Events per request of the stream."""
COLUMNS = tuple(Column(f"column_{k}", "number") for k in range(10))


class Question(NamedTuple):
    """A ranking request: its user, its candidates, and its bytes."""

    user_id: str
    item_ids: list[str]
    bytes: bytes


def made_up_questions(
    rng: np.random.Generator, items: int, users: int, candidates: int, count: int, key: str = ""
) -> list[Question]:
    """Requests of uniformly drawn users, for candidates drawn by popularity, in random order."""
    out = []
    for _ in range(count):
        rows_drawn = np.unique(skewed(rng, items, 12 * candidates))
        ids = [f"sku-{i:08d}" for i in rng.permutation(rows_drawn)[:candidates].tolist()]
        user = f"user-{int(rng.integers(users)):08d}"
        body = json.dumps({"user_id": user, "candidates": ids, "limit": LIMIT}, separators=(",", ":"))
        out.append(Question(user, ids, posted("/v1/rank", body.encode(), key)))
    return out


def made_up_posts(rng: np.random.Generator, items: int, users: int, count: int) -> list[bytes]:
    """Requests with ten events each: impressions, and one click. Without IDs, so that each event is new."""
    out = []
    for _ in range(count):
        user, items_seen = f"user-{int(rng.integers(users)):08d}", skewed(rng, items, POST).tolist()
        events = [
            {"event": "impression" if n else "click", "user_id": user, "item_id": f"sku-{i:08d}"}
            for n, i in enumerate(items_seen)
        ]
        out.append(posted("/v1/events", json.dumps(events).encode()))
    return out


def with_columns(rng: np.random.Generator, questions: list[Question]) -> dict[str, list[bytes]]:
    """The requests of these questions with a number per candidate in each of `COLUMNS`, in both forms."""
    lists, objects = [], []
    for q in questions:
        values = {c.name: rng.normal(size=len(q.item_ids)).round(4).tolist() for c in COLUMNS}
        given: dict[str, Any] = {"user_id": q.user_id, "limit": LIMIT}
        lists.append(given | {"candidates": q.item_ids, "columns": values})
        each = zip(*values.values(), strict=True)
        named = [dict(zip(values, of_item, strict=True)) for of_item in each]
        objects.append(given | {"candidates": [{"id": i} | v for i, v in zip(q.item_ids, named, strict=True)]})
    return {
        form: [posted("/v1/rank", json.dumps(body, separators=(",", ":")).encode()) for body in bodies]
        for form, bodies in (("lists", lists), ("objects", objects))
    }


@contextmanager
def service(url: str, release: Path, at: float | None = AT, **settings: Any) -> Iterator[tuple[int, int]]:
    """(process id, port) of a service with one worker that serves this release.

    at: the time that its clock shows now; None for the current time. settings: further ones of the service.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    offset_s = 0 if at is None else at - time.time()
    config = ServiceConfig(port=port, clock_offset_s=offset_s, redis_timeout_s=5, **NO_EVENT_LIMITS, **settings)
    code = (
        "import sys; from pathlib import Path; from serving.app import serve; from serving.config import ServiceConfig;"
        "serve(ServiceConfig.model_validate_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), url, str(release)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            _wait(port, "")
            yield process.pid, port
        except Exception:
            log.seek(0)
            print(log.read()[-4000:].decode(), file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(20)


def _wait(port: int, release: str, seconds: float = 120) -> None:
    """Wait until the service is ready, with this release if given."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as answer:
                if release in ("", json.load(answer)["release"]):
                    return
        except OSError as e:
            if time.monotonic() > end:
                raise SystemExit(f"the service is not ready after {seconds:.0f} s: {e}") from e
        time.sleep(0.05)


def cpu_s(process: int) -> float:
    """Processor seconds used by the threads of a process."""
    tasks = Path(f"/proc/{process}/task").glob("*/schedstat")
    return sum(int(t.read_text("ascii").split()[0]) for t in tasks) / 1e9


def measure_cpu(
    process: int, port: int, url: str, release: Release, questions: list[Question], rounds: int, per_round: int
) -> np.ndarray:
    """ms[rounds, 2]: of the service per request, and of `Booster.predict` on the rows of the same requests."""
    booster = lgb.Booster(model_file=str(release.path / "ranker.txt"))
    out, items = np.empty((rounds, 2)), release.items
    with BulkStore(url) as store:
        for r in range(rounds):
            requests = [questions[(r * per_round + n) % len(questions)] for n in range(per_round)]
            before = cpu_s(process)
            load = uvloop.run(closed_loop(port, [q.bytes for q in requests], 1, total=per_round))
            out[r, 0] = (cpu_s(process) - before) * 1e3 / per_round
            if load.errors or load.degraded:
                raise SystemExit(f"{load.errors} errors, {load.degraded} degraded: {load.first_error}")
            tables = [
                rows(items, store.read(q.user_id, items.catalogue, AT), items.catalogue.rows(sorted(q.item_ids)), AT)
                for q in requests
            ]
            started = time.thread_time()
            for table in tables:
                booster.predict(table, raw_score=True, num_threads=1)
            out[r, 1] = (time.thread_time() - started) * 1e3 / per_round
    return out


def measure_forms(
    process: int, port: int, url: str, releases: dict[str, Path], bodies: dict[str, list[bytes]], rounds: int
) -> dict[str, np.ndarray]:
    """CPU ms[rounds] per request by form. releases: of each form. Those of adjacent forms may be the same."""
    out: dict[str, list[float]] = {form: [] for form in bodies}
    with BulkStore(url) as store:
        for _ in range(rounds):
            for form, requests in bodies.items():
                store.set_pointer(Pointer(releases[form].name, str(releases[form])))
                _wait(port, releases[form].name)
                uvloop.run(closed_loop(port, requests, 1, total=len(requests) // 4 + 1))  # pages of the release
                before = cpu_s(process)
                load = uvloop.run(closed_loop(port, requests, 1, total=len(requests)))
                out[form].append((cpu_s(process) - before) * 1e3 / len(requests))
                if load.errors or load.degraded:
                    raise SystemExit(f"{load.errors} errors, {load.degraded} degraded: {load.first_error}")
    return {form: np.array(values) for form, values in out.items()}


async def measure_disturbed(
    port: int,
    url: str,
    questions: list[bytes],
    clients: int,
    seconds: float,
    releases: list[Path],
    posts: list[bytes],
    per_second: float,
) -> tuple[Load, Load]:
    """What clients see while `releases` are swapped and `posts` are streamed; either may be empty."""
    done = asyncio.Event()

    async def swaps() -> None:
        with BulkStore(url) as store:
            for release in releases:
                store.set_pointer(Pointer(release.name, str(release)))
                await asyncio.to_thread(_wait, port, release.name)
                swapped.append(release.name)

    swapped: list[str] = []
    streaming = asyncio.create_task(stream(port, posts, per_second / POST, done)) if posts else None
    swapping = asyncio.create_task(swaps())
    load = await closed_loop(port, questions, clients, seconds=seconds)
    done.set()
    await swapping
    events = await streaming if streaming else Load()
    if len(swapped) != len(releases):
        raise SystemExit(f"only {len(swapped)} of {len(releases)} releases were swapped in {seconds} s")
    return load, events


def print_line(name: str, load: Load) -> dict[str, float]:
    """Print one line of the table and return its numbers."""
    figures = {
        "per_second": load.per_second,
        "p50": load.at(50),
        "p99": load.at(99),
        "p99.9": load.at(99.9),
        "max": load.at(100),
    }
    print(
        f"{name:>34} {load.per_second:8.0f} {figures['p50']:8.2f} {figures['p99']:8.2f} {figures['p99.9']:8.2f} "
        f"{figures['max']:8.2f} {load.errors + load.degraded:6}",
        flush=True,
    )
    if load.first_error:
        print(f"first error: {load.first_error}")
    return {k: round(v, 2) for k, v in figures.items()} | {"errors": load.errors + load.degraded}


def parse_options() -> argparse.Namespace:
    """The options; `--quick` makes everything small."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to show that it runs")
    parser.add_argument("--items", type=int, default=100_000, help="items in the catalogue")
    parser.add_argument("--trees", type=int, default=500, help="trees of the model, 31 leaves each")
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per line with several clients")
    parser.add_argument("--requests", type=int, default=1000, help="requests per line by candidates")
    parser.add_argument(
        "--rounds", type=int, default=15, help="rounds of 20 requests and their predictions, alternating"
    )
    options = parser.parse_args()
    if options.quick:
        options.items, options.trees, options.seconds, options.requests, options.rounds = 3000, 5, 0.5, 20, 2
    return options


def main() -> None:
    options = parse_options()
    rng = np.random.default_rng(1)
    users = min(USERS, options.items // 10)
    items = made_up_items(rng, options.items, 10 * options.items)
    text = train_model(items, options.items, options.trees, 30 if options.quick else 300)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        releases = [write_release_with(Path(folder), items, text, AT + n) for n in range(2)]
        others = replace(items, columns=COLUMNS), replace(items, sequence=made_up_sequence(rng, options.items))
        for n, other in enumerate(others):
            text = train_model(other, options.items, options.trees, 30 if options.quick else 300)
            releases.append(write_release_with(Path(folder), other, text, AT + 2 + n))
        with BulkStore(url) as store:
            write_users(store, rng, users, ENGAGEMENTS, SHOWN, options.items)
            store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        features = len(names(items))
        del items, others, other
        with service(url, releases[0]) as (process, port):
            machine = platform.processor() or platform.machine()
            print(f"{machine}, {options.items:,} items, {features} features, {options.trees} trees x 31", flush=True)
            print(json.dumps(measure(options, rng, process, port, url, releases, users)))


def measure(
    options: argparse.Namespace,
    rng: np.random.Generator,
    process: int,
    port: int,
    url: str,
    releases: list[Path],
    users: int,
) -> dict[str, Any]:
    """Print every table and return the numbers."""
    questions_by_size = {
        c: made_up_questions(rng, options.items, users, c, 40 if options.quick else 400) for c in CANDIDATES
    }
    questions = [q.bytes for q in questions_by_size[500]]
    uvloop.run(closed_loop(port, questions, 1, total=10 if options.quick else 200))  # warm up pages and code
    cpu = measure_cpu(process, port, url, load_release(releases[0]), questions_by_size[500], options.rounds, 20)
    ratio = cpu[:, 0] / cpu[:, 1]
    service_ms, predict_ms = np.median(cpu, axis=0)
    print(
        f"500 candidates, CPU ms: the whole request {service_ms:.2f}, Booster.predict {predict_ms:.2f}; "
        f"ratio {np.median(ratio):.3f} (p10-p90 {np.quantile(ratio, 0.1):.3f}-{np.quantile(ratio, 0.9):.3f})"
    )
    print(f"{'':>34} {'per s':>8} {'p50 ms':>8} {'p99':>8} {'p99.9':>8} {'max':>8} {'errors':>6}")
    lines: dict[str, dict[str, float]] = {}
    for c in CANDIDATES:
        load = uvloop.run(closed_loop(port, [q.bytes for q in questions_by_size[c]], 1, total=options.requests))
        lines[f"{c} candidates"] = print_line(f"{c} candidates, 1 client", load)
    posts, events_per_second = made_up_posts(rng, options.items, users, 500), 50 if options.quick else 500
    for disturbance, swaps, stream_of in (
        ("", [], []),
        ("swap", [releases[1], releases[0]], []),
        ("events", [], posts),
    ):
        for clients in CLIENTS:
            name = f"{clients} client{'s' * (clients > 1)}{', ' * bool(disturbance)}{disturbance}"
            load, events = uvloop.run(
                measure_disturbed(port, url, questions, clients, options.seconds, swaps, stream_of, events_per_second)
            )
            lines[name] = print_line(name, load)
            if stream_of:
                lines[f"{name}: posts"] = print_line("requests with events", events)
    few = questions_by_size[500][: 5 if options.quick else 60]
    forms = {"without columns": [q.bytes for q in few], **with_columns(rng, few)}
    of_form = {form: releases[2 if form in ("lists", "objects") else 0] for form in forms}
    forms["sequence model"], of_form["sequence model"] = forms["without columns"], releases[3]
    columns = measure_forms(process, port, url, of_form, forms, max(2, options.rounds // 3))
    plain = columns["without columns"]
    for form, ms in columns.items():
        against = f", {np.median(ms / plain):.3f} of it" if ms is not plain else ""
        print(f"500 candidates, {form:>16}: CPU ms {np.median(ms):.2f}{against}")
    return {
        "cpu_ratio_vs_predict": round(float(np.median(ratio)), 4),
        "cpu_ms": round(float(service_ms), 3),
        "predict_ms": round(float(predict_ms), 3),
        **{f"columns_ratio_{form}": round(float(np.median(columns[form] / plain)), 3) for form in ("lists", "objects")},
        "sequence_ratio": round(float(np.median(columns["sequence model"] / plain)), 3),
        "errors": sum(load["errors"] for load in lines.values()),
        **{f"p50_ms_{c}": lines[f"{c} candidates"]["p50"] for c in CANDIDATES},
        **{f"p99_ms_{c}": lines[f"{c} candidates"]["p99"] for c in CANDIDATES},
        "lines": lines,
    }


if __name__ == "__main__":
    main()
