"""An honest client beside an attack: `python -m tests.bench.hostile`, against `shelfwise serve` with several workers.

The service has its default settings, and two keys: one of the shop's back end, and a public one of its pages. Neither
has a rate, which is the default; `--key-rate` gives the public one the rate that the documentation asks for. Attackers
are a process of their own. They hold hostile connections, opening another one for each that the service closes, while
they send every kind of hostile request, some with the public key and some without (`tests/bench/attack.py`).

The honest client has 8 connections that it keeps, and asks for 10 rankings per second of 100 candidates for users with
full lists, first for a while alone, and then during the attack. A ranking counts from the moment it was due, and fails
if it has another status than 200 or has not the 50 items. A health check per second has a connection of its own. Ends
with one line of JSON:

p50_ms, p90_ms, p99_ms: rankings during the attack. quiet_p50_ms, quiet_p99_ms: before it. p99_ratio: of the two p99
rankings: those answered during the attack. failed, first_failure: in both phases
degraded: rankings during the attack without the user's history, because Redis did not answer in time
health_p99_ms, health_failed: the same for health checks
attack_per_second: hostile requests per second
connections, closed: hostile connections opened, and those of them that the service closed
statuses: responses to hostile requests by status; closed, reset or silent (15 s): requests without any
server_errors: responses with a status of 500 or more that are not 503 with a reason, as received and as in /metrics
tracebacks, deaths: in the log of the service, of tracebacks and of worker processes

It fails if a ranking or a check failed, or if server_errors, tracebacks or deaths is not 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import time
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from features.history import ENGAGEMENTS, SHOWN
from features.log import Kind
from serving.http import new_key
from serving.store import BulkStore, Event, Pointer
from serving.store.embedded import connect_url
from tests.bench.assemble import train_model
from tests.bench.attack import Outcome, attack, request
from tests.bench.clients import Connection, Load, connected
from tests.bench.cold_start import Started, started
from tests.bench.made_up import made_up_items, skewed
from tests.bench.memory import write_release_with
from tests.bench.serve import LIMIT, Question, made_up_questions

CANDIDATES = 100
USERS = 50
POOL = 8
"""Connections of the honest client, so that it has some to most workers."""
PATIENCE_S = 10.0
_CHECKS = ("/health/ready", "/health/live")


class Honest:
    """The client of a shop. rankings, checks: what it got in the phase in progress."""

    def __init__(self, port: int, questions: list[Question], per_second: float) -> None:
        self.rankings, self.checks = Load(), Load()
        self._port, self._questions, self._per_second = port, questions, per_second
        self._free: deque[Connection] = deque()
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def phase(self) -> AsyncIterator[None]:
        """Ask while the body runs, then wait for all answers."""
        self.rankings, self.checks = Load(), Load()
        repeating = [
            asyncio.create_task(self._repeat(self._rank, self._per_second)),
            asyncio.create_task(self._repeat(self._check, 1.0)),
        ]
        try:
            yield
        finally:
            for task in repeating:
                task.cancel()
            await asyncio.gather(*repeating, return_exceptions=True)
            await asyncio.gather(*self._asking)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._free:
            connection.close()

    async def _repeat(self, ask: Callable[[int, float], Coroutine[None, None, None]], per_second: float) -> None:
        start = time.perf_counter()
        for n in count():
            due = start + n / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self._asking.add(task := asyncio.create_task(ask(n, due)))
            task.add_done_callback(self._asking.discard)

    async def _rank(self, n: int, due: float) -> None:
        question = self._questions[n % len(self._questions)]
        with _failures(self.rankings):
            async with asyncio.timeout(PATIENCE_S):
                # The connection used longest ago, so that all are used in turn. One with a failure is not used again.
                connection = self._free.popleft() if len(self._free) >= POOL else await connected(self._port)
                status, body = await connection.ask(question.bytes)
            self._free.append(connection)
            self.rankings.take(body, status, due)
            if status == 200:
                check_ranking(question, body)

    async def _check(self, n: int, due: float) -> None:
        with _failures(self.checks):
            async with asyncio.timeout(PATIENCE_S):
                connection = await connected(self._port)
                status, body = await connection.ask(request("GET", _CHECKS[n % 2]))
            connection.close()
            self.checks.take(body, status, due)


class WrongAnswer(Exception):
    """Raised for a ranking that is not one of the requested candidates."""


def check_ranking(question: Question, body: bytes) -> None:
    """Raise WrongAnswer unless a response has as many of the candidates as were asked for."""
    ranked = {item["item_id"] for item in json.loads(body)["items"]}
    if len(ranked) != LIMIT or not ranked <= set(question.item_ids):
        raise WrongAnswer(body[:300].decode(errors="replace"))


@contextmanager
def _failures(load: Load) -> Iterator[None]:
    """Count what keeps a request from being answered, or its answer from being right."""
    try:
        yield
    except (OSError, TimeoutError, WrongAnswer) as e:
        load.errors += 1
        load.first_error = load.first_error or f"{type(e).__name__}: {e}"


def attack_from_here(*arguments: Any) -> Outcome:
    """Run an attack to its end, in this process. Not on uvloop, which raises RuntimeError for a lost connection."""
    os.nice(10)  # attackers have machines of their own, and take no processor from the service
    return asyncio.run(attack(*arguments))


async def measure(
    options: argparse.Namespace, port: int, questions: list[Question], public_key: str
) -> tuple[list[Load], list[Load], Outcome]:
    """(rankings and checks of the quiet phase, those during the attack, what became of the attack)."""
    honest = Honest(port, questions, options.rankings)
    async with honest.phase():  # warms up every worker, so that pages and code are in memory
        await asyncio.sleep(options.quiet / 4)
    async with honest.phase():
        await asyncio.sleep(options.quiet)
    quiet = [honest.rankings, honest.checks]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as attackers:
        plan = (
            *(options.items, options.requests, options.connections, options.again),
            *(options.per_second, options.senders, options.seed),
        )
        in_pool = partial(asyncio.get_running_loop().run_in_executor, attackers)
        await in_pool(os.getpid)  # starts the process before the phase begins
        async with honest.phase():
            outcome = await in_pool(attack_from_here, port, public_key, *plan)
    honest.close()
    return quiet, [honest.rankings, honest.checks], outcome


def write_histories(store: BulkStore, rng: np.random.Generator, items: int) -> None:
    """Give the users of the honest client full lists, of the last days."""
    now = time.time()
    for user in range(USERS):
        kinds = np.repeat([Kind.CLICK, Kind.IMPRESSION], [ENGAGEMENTS, SHOWN]).tolist()
        rows = skewed(rng, items, len(kinds)).tolist()
        name = f"user-{user:08d}"
        store.write(
            [
                Event(f"{name}-{n}", kind, name, f"sku-{row:08d}", float(int(now) - 3600 - 60 * n))
                for n, (kind, row) in enumerate(zip(kinds, rows, strict=True))
            ],
            now,
        )


def server_errors(service: Started, key: str) -> Counter[str]:
    """Responses of all workers with a status of 500 or more, but for 503, as the service counts them."""
    asked = urllib.request.Request(f"{service.address}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    found = Counter[str]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            status = sample.labels.get("status", "")
            if sample.name == "shelfwise_requests_total" and status >= "500" and status != "503":
                found[f"{sample.labels['route']} {status}"] += int(sample.value)
    return found


def parse_options() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="hostile requests")
    parser.add_argument("--connections", type=int, default=1000, help="hostile connections that are open at once")
    parser.add_argument("--again", type=float, default=5.0, help="seconds until a closed connection is opened again")
    parser.add_argument("--workers", type=int, default=4, help="worker processes of the service")
    parser.add_argument("--per-second", type=float, default=100, help="hostile requests per second; 0: no pause")
    parser.add_argument("--senders", type=int, default=32, help="hostile requests in progress at most")
    parser.add_argument("--key-rate", type=float, help="requests per second and worker with the public key")
    parser.add_argument("--rankings", type=float, default=10, help="rankings per second of the honest client")
    parser.add_argument("--quiet", type=float, default=60, help="seconds without an attack, after a quarter to warm up")
    parser.add_argument("--items", type=int, default=20_000, help="items in the catalogue")
    parser.add_argument("--trees", type=int, default=500, help="trees of the model, 31 leaves each")
    parser.add_argument("--seed", type=int, default=0, help="seed of the hostile requests")
    return parser.parse_args()


def main() -> None:
    """Measure, print what became of the attack by kind, and end with one JSON object."""
    options = parse_options()
    rng = np.random.default_rng(options.seed)
    items = made_up_items(rng, options.items, 10 * options.items)
    model = train_model(items, options.items, options.trees, 40)
    shop, shop_line = new_key("shop", ["rank", "events", "metrics"])
    page, page_line = new_key("page", ["rank", "events"], options.key_rate)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        work = Path(folder)
        (work / "keys.txt").write_text(f"{shop_line}\n{page_line}\n", "ascii")
        release = write_release_with(work / "releases", items, model, time.time())
        del items
        with BulkStore(url) as store:
            write_histories(store, rng, options.items)
            store.set_pointer(Pointer(release.name, str(release)))
        questions = made_up_questions(rng, options.items, USERS, CANDIDATES, 200, shop)
        settings = {"workers": options.workers, "keys_file": str(work / "keys.txt")}
        with started(url, work, None, None, **settings) as service:
            quiet, disturbed, outcome = uvloop.run(measure(options, service.port, questions, page))
            counted = server_errors(service, shop)
        log = service.log.read_text("utf-8", "replace")
    print(platform.processor() or platform.machine())
    for kind, answers in sorted(outcome.answers.items()):
        print(f"{kind:>32}  {', '.join(f'{n} x {what}' for what, n in answers.most_common())}")
    for kind, opened in outcome.connections.items():
        print(f"{kind:>32}  {opened} opened, {outcome.closed[kind]} closed by the service")
    figures = figures_of(quiet, disturbed, outcome) | {
        "server_errors": len(outcome.unexplained) + counted.total(),
        "tracebacks": log.count("Traceback (most recent call last)"),
        "deaths": len(re.findall(r"Child process \[\d+\] died", log)),
    }
    print(json.dumps(figures))
    if any(figures[name] for name in ("failed", "health_failed", "server_errors", "tracebacks", "deaths")):
        print(*outcome.unexplained[:20], *counted, log[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit("the service failed under the attack: see above")


def figures_of(quiet: list[Load], disturbed: list[Load], outcome: Outcome) -> dict[str, Any]:
    """The figures of the honest client and of the attack."""
    rankings, checks = disturbed
    ms = {
        "p50_ms": rankings.at(50),
        "p90_ms": rankings.at(90),
        "p99_ms": rankings.at(99),
        "quiet_p50_ms": quiet[0].at(50),
        "quiet_p99_ms": quiet[0].at(99),
        "health_p99_ms": checks.at(99),
        "p99_ratio": rankings.at(99) / quiet[0].at(99),
        "attack_per_second": outcome.sent / outcome.seconds,
    }
    return {name: round(value, 2) for name, value in ms.items()} | {
        "rankings": len(rankings.ms),
        "failed": quiet[0].errors + rankings.errors,
        "degraded": rankings.degraded,
        "first_failure": quiet[0].first_error or rankings.first_error,
        "health_failed": sum(load.errors for load in (quiet[1], checks)),
        "connections": outcome.connections.total(),
        "closed": outcome.closed.total(),
        "statuses": dict(outcome.statuses.most_common()),
    }


if __name__ == "__main__":
    main()
