"""Cost of guarding a request: `python -m tests.bench.guard`, in one process, without a network.

The same POST with a body of 500 candidates goes to an empty FastAPI route directly, and through the guard with API key,
rate limit, queue, deadline, metrics and a silent log; alternating, in processor time. Also measured: the cost of the
metrics alone, and how long a ranking waits in the queue under overload, with a bounded and with an unbounded queue.
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
from serving.http.shopper_tokens import ShopperTokens
from serving.records.metrics import Metrics

ROUTE = "/v1/rank"


def made_up_scope(key: str) -> dict[str, Any]:
    """An ASGI request with the headers that a storefront sends."""
    headers = {
        "host": "localhost",
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
        "server": ("localhost", 80),
        "client": ("c", 1),
        "state": {},
    }


async def ask(app: ASGIApp, key: str, body: bytes) -> int:
    """Send one request and read its response; returns the status."""
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(made_up_scope(key), receive, send)
    return status


def empty() -> FastAPI:
    """An application whose only route reads the body and returns {}."""
    app = FastAPI()

    @app.post(ROUTE, openapi_extra=needs("rank"))
    async def rank(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type="application/json")

    return app


async def cpu_us(do: Callable[[], Awaitable[object]], times: int) -> float:
    """Processor microseconds per call."""
    start = time.process_time()
    for _ in range(times):
        await do()
    return (time.process_time() - start) / times * 1e6


async def measure_guard(repeats: int, times: int) -> np.ndarray:
    """us[repeats, 3]: of a bare request, of a guarded one, and of its metrics alone."""
    key, line = new_key("storefront", ["rank"], 1e6)
    body = json.dumps({"user_id": "u", "candidates": [f"sku-{n:08d}" for n in range(500)]}).encode()
    bare, inner, counts = empty(), empty(), Metrics()
    guard = Guard(inner, inner.router.routes, ServiceConfig(), Keys(lines=line), ShopperTokens(), counts)
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


async def measure_overload(
    most: int, each_s: float, per_second: float, seconds: float
) -> tuple[list[float], float, int]:
    """(seconds until each response, responses per second, number of refused requests) under overload."""
    app = FastAPI()
    latencies: list[float] = []

    @app.post(ROUTE, openapi_extra=needs("rank"))
    async def rank(request: Request) -> Response:
        await asyncio.sleep(0)  # yield, as reading the user's history does
        end = time.perf_counter() + each_s
        while time.perf_counter() < end:
            pass
        return Response(b"{}", media_type="application/json")

    config = ServiceConfig(max_in_flight=most, max_wait_s=0.1 if most < 10_000 else 30, deadline_s=60)
    guard = Guard(app, app.router.routes, config, Keys(), ShopperTokens(), Metrics())
    refused = 0

    async def one(due: float) -> None:
        nonlocal refused
        if await ask(guard, "", b"{}") == 200:
            latencies.append(time.perf_counter() - due)
        else:
            refused += 1

    start, tasks = time.perf_counter(), []
    for n in range(int(per_second * seconds)):
        due = start + n / per_second
        if (ahead := due - time.perf_counter()) > 0:  # requests due in the meantime all start at once, as from sockets
            await asyncio.sleep(ahead)
        tasks.append(asyncio.create_task(one(due)))
    await asyncio.gather(*tasks)
    return latencies, len(latencies) / (time.perf_counter() - start), refused


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--times", type=int, default=500, help="requests per measurement")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of overload per queue")
    options = parser.parse_args()
    print(platform.processor() or platform.machine(), flush=True)
    us = uvloop.run(measure_guard(options.repeats, options.times))
    bare, guarded, counts = np.median(us, axis=0)
    print(f"empty FastAPI route {bare:.0f} us, guarded {guarded:.0f} us, of which metrics {counts:.1f} us", flush=True)
    percentiles = {}
    for name, most in (("bounded", 128), ("unbounded", 10_000)):
        latencies, rate, refused = uvloop.run(measure_overload(most, 0.005, 300, options.seconds))
        percentiles[name] = np.percentile(np.array(latencies) * 1e3, [50, 99])
        print(
            f"300 requests/s for a capacity of 200/s, {name} queue: "
            f"p50 {percentiles[name][0]:.0f} ms, p99 {percentiles[name][1]:.0f} ms, {rate:.0f} responses/s, "
            f"{refused} refused"
        )
    figures = {
        "guard_us": round(float(np.median(us[:, 1] - us[:, 0])), 1),
        "metrics_us": round(float(counts), 2),
        "guard_ratio_to_route": round(float(np.median(us[:, 1] / us[:, 0])), 3),
        "crowd_p99_bounded_to_unbounded": round(float(percentiles["bounded"][1] / percentiles["unbounded"][1]), 4),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
