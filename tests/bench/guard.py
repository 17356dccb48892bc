"""What it costs a request to be guarded: `python -m tests.bench.guard`, in one process, without a network.

The same POST with 500 candidates' worth of body goes to an empty FastAPI route as it is, and through the guard with a
key, its rate, the queue, the deadline, the counts and a log that says nothing; turn about, in processor time. Beside
it, what counting alone costs of that, and how long a ranking of the same process waits in line when more come than can
be answered: with the queue bounded, and with a queue as long as it gets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import uvloop
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Message

from serving.config import ServiceConfig
from serving.http.guard import Guard, needs
from serving.http.keys import Keys, new_key
from serving.records.metrics import Metrics

ROUTE = "/v1/rank"


def made_up_scope(key: str) -> dict[str, Any]:
    """An ASGI request with the headers that a storefront sends."""
    headers = {
        "host": "h",
        "user-agent": "shop/1",
        "accept": "*/*",
        "content-type": "application/json",
        "authorization": f"Bearer {key}",
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": ROUTE,
        "raw_path": ROUTE.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        "server": ("h", 80),
        "client": ("c", 1),
        "state": {},
    }


async def ask(app: ASGIApp, key: str, body: bytes) -> int:
    """Send one request and read its answer; the status."""
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(made_up_scope(key), receive, send)
    return status


def empty() -> FastAPI:
    """An application whose one route reads the body and says {}."""
    app = FastAPI()

    @app.post(ROUTE, openapi_extra=needs("rank"))
    async def rank(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type="application/json")

    return app


async def cpu_us(do: Callable[[], Awaitable[object]], times: int) -> float:
    """Processor microseconds of one."""
    began = time.process_time()
    for _ in range(times):
        await do()
    return (time.process_time() - began) / times * 1e6


async def guarded(repeats: int, times: int) -> np.ndarray:
    """us[repeats, 3]: of a bare request, of a guarded one, of its counts alone."""
    key, line = new_key("storefront", ["rank"], 1e6)
    body = json.dumps({"user_id": "u", "candidates": [f"sku-{n:08d}" for n in range(500)]}).encode()
    bare, inner, counts = empty(), empty(), Metrics()
    guard = Guard(inner, inner.router.routes, ServiceConfig(), Keys(lines=line), counts)
    out = np.empty((repeats, 3))

    async def count() -> None:
        counts.request(ROUTE, 200, 0.004)
        counts.ranked(500, False, False)

    assert await ask(bare, key, body) == await ask(guard, key, body) == 200
    for r in range(repeats):
        out[r, 0] = await cpu_us(lambda: ask(bare, key, body), times)
        out[r, 1] = await cpu_us(lambda: ask(guard, key, body), times)
        out[r, 2] = await cpu_us(count, times)
    return out


async def crowd(most: int, each_s: float, per_second: float, seconds: float) -> tuple[list[float], float, int]:
    """(seconds until each answer, answers a second, how many were refused) where more come than can be answered."""
    app = FastAPI()
    answered: list[float] = []

    @app.post(ROUTE, openapi_extra=needs("rank"))
    async def rank(request: Request) -> Response:
        await asyncio.sleep(0)  # as a read of the user's history lets others begin
        end = time.perf_counter() + each_s
        while time.perf_counter() < end:
            pass
        return Response(b"{}", media_type="application/json")

    config = ServiceConfig(max_in_flight=most, max_wait_s=0.1 if most < 10_000 else 30, deadline_s=60)
    guard = Guard(app, app.router.routes, config, Keys(), Metrics())
    refused = 0

    async def one(due: float) -> None:
        nonlocal refused
        if await ask(guard, "", b"{}") == 200:
            answered.append(time.perf_counter() - due)
        else:
            refused += 1

    began, tasks = time.perf_counter(), []
    for n in range(int(per_second * seconds)):
        due = began + n / per_second
        if (ahead := due - time.perf_counter()) > 0:  # all that came meanwhile are there at once, as from sockets
            await asyncio.sleep(ahead)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return answered, len(answered) / (time.perf_counter() - began), refused


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--times", type=int, default=500, help="requests of one measurement")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the crowd, each way")
    options = parser.parse_args()
    print(platform.processor() or platform.machine(), flush=True)
    us = uvloop.run(guarded(options.repeats, options.times))
    bare, whole, counts = np.median(us, axis=0)
    print(
        f"an empty FastAPI route {bare:.0f} us, guarded {whole:.0f} us, of which counting {counts:.1f} us", flush=True
    )
    found = {}
    for name, most in (("bounded", 128), ("unbounded", 10_000)):
        answered, rate, refused = uvloop.run(crowd(most, 0.005, 300, options.seconds))
        found[name] = np.percentile(np.array(answered) * 1e3, [50, 99])
        print(
            f"300 a second where 200 can be answered, {name}: "
            f"p50 {found[name][0]:.0f} ms, p99 {found[name][1]:.0f} ms, {rate:.0f} answered a second, {refused} refused"
        )
    ratios = {
        "guard_us": round(float(np.median(us[:, 1] - us[:, 0])), 1),
        "metrics_us": round(float(counts), 2),
        "guard_ratio_to_route": round(float(np.median(us[:, 1] / us[:, 0])), 3),
        "crowd_p99_bounded_to_unbounded": round(float(found["bounded"][1] / found["unbounded"][1]), 4),
    }
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
