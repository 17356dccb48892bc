"""The ASGI application and its worker processes. The work behind the routes is in `serving.ranking.service`.

Bodies of `/v1` are decoded and encoded by msgspec and returned as a ready `Response`; FastAPI does routing and docs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from features.custom import load as load_features
from features.table import Feature
from serving.clock import make_clock
from serving.config import ServiceConfig
from serving.http import (
    SHOPPER_TOKEN_HEADER,
    Connections,
    Guard,
    Keys,
    ShopperTokens,
    add_document,
    add_error_handlers,
    add_routes,
    keys,
    log_config,
)
from serving.lock import locked
from serving.pages import MERCHANDISING_FORMS, add_merchandising, add_operator, add_reference, add_storefront
from serving.ranking import Follower, Service
from serving.records import Metrics, Timeline, metrics
from serving.release import ensure_owner, latest_release, read_owner
from serving.store import EvictionError, Store, StoreAway, UserLimits

log = logging.getLogger(__name__)

_CONFIG_VARIABLE = "SHELFWISE_SERVICE"
_RELEASES_VARIABLE = "SHELFWISE_RELEASES"
_FEATURES_VARIABLE = "SHELFWISE_FEATURES"
_WORKER_S = 60
"""Seconds after which a worker that does not answer its supervisor is replaced."""


def create_app(
    config: ServiceConfig,
    redis_url: str,
    *,
    release: Path | None = None,
    clock: Callable[[], float] | None = None,
    custom: tuple[Feature, ...] = (),
    good: Keys | None = None,
    owner: str = "",
) -> FastAPI:
    """Create the ASGI application. It connects on startup, and starts with or without Redis and a release.

    It accepts connections once it has loaded a release, or found that there is none to load.

    release: directory of the release to start with if Redis is unavailable or names none. owner: ID of the shop whose
    releases may be served; empty for any. clock: returns the time of a request in Unix seconds, before the configured
    offset; defaults to the configured clock. good: the valid API keys; without keys, anyone who can reach the service
    may call every route. Raises KeysError if the secrets of shopper tokens cannot be used.
    """
    tokens = ShopperTokens(config.shopper_tokens, config.shopper_secrets_file)
    counts, good, now = Metrics(), good or Keys(), clock or make_clock(config.clock_file)
    limits = UserLimits(config.retention, config.max_users)
    store = Store(redis_url, config.redis_timeout_s, config.redis_failures, config.redis_pause_s, limits)
    follower = Follower(config, store, release, custom, counts, owner=owner)
    service = Service(config, store, follower, lambda: now() + config.clock_offset_s, counts)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        _stop_with_parent()
        following = asyncio.create_task(follower.run())
        following.add_done_callback(_log_if_failed)
        tasks = [
            following,
            asyncio.create_task(_reload_keys(good, tokens, counts)),
            asyncio.create_task(service.served.run()),
            asyncio.create_task(service.shadow.run()),
            asyncio.create_task(service.watch_memory()),
        ]
        if config.operator:
            tasks.append(asyncio.create_task(timeline.run()))
        started = asyncio.create_task(follower.started.wait())
        await asyncio.wait({following, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        tasks.append(asyncio.create_task(service.arm_releases.run()))
        await service.arm_releases.started()
        yield
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await service.served.flush()
        await store.close()

    app = FastAPI(title="Shelfwise", version="1", lifespan=lifespan, openapi_url=None)
    add_routes(app, service)
    add_reference(app)
    if config.storefront:
        add_storefront(app, service)
    timeline = Timeline(store, counts, service.clock)
    if config.operator:
        add_operator(app, service, timeline, redis_url, custom)
    if config.merchandising:
        add_merchandising(app, service)
    add_error_handlers(app)
    add_document(app, MERCHANDISING_FORMS if config.merchandising else ())
    app.add_middleware(Guard, routes=app.router.routes, config=config, keys=good, tokens=tokens, metrics=counts)
    if config.cors_origins:  # outside the guard: a browser's preflight request carries no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", SHOPPER_TOKEN_HEADER],
            expose_headers=["Date", "Retry-After", "RateLimit", "RateLimit-Policy", "X-Request-ID"],
            max_age=3600,
        )
    return app


async def _reload_keys(good: Keys, tokens: ShopperTokens, counts: Metrics) -> None:
    """Reload keys and secrets every second, so that changes of them take effect within two, without a restart."""
    while True:
        await asyncio.sleep(1)
        try:
            if all([await asyncio.to_thread(one.look) for one in (good, tokens)]):
                counts.keys_checked(time.time())
        except Exception:  # a revoked key must not stay valid because one attempt failed
            log.exception("the keys could not be reloaded; trying again in a second")


def _stop_with_parent() -> None:
    """Stop this worker process if the one that started it ends, even if that was killed: it would keep the port."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    loop, sentinel = asyncio.get_running_loop(), parent.sentinel

    def stop() -> None:
        loop.remove_reader(sentinel)
        log.error("the process that started this worker has ended, so the worker stops")
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sentinel, stop)


def _log_if_failed(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and following.exception() is not None:
        log.critical("the event stream is no longer being followed", exc_info=following.exception())


def from_environment() -> FastAPI:
    """Create the application of a worker process from the environment variables set by `serve`."""
    # Chosen by each worker as it starts, because a worker may be started again days after the service.
    root = Path(os.environ[_RELEASES_VARIABLE]) if _RELEASES_VARIABLE in os.environ else None
    config = ServiceConfig.model_validate_json(os.environ.get(_CONFIG_VARIABLE, "{}"))
    custom = load_features(json.loads(os.environ.get(_FEATURES_VARIABLE, "[]")))
    good = Keys(config.keys_file, os.environ.get(keys.KEYS_VARIABLE, ""))
    return create_app(
        config,
        os.environ["REDIS_URL"],
        release=latest_release(root) if root else None,
        custom=custom,
        good=good,
        owner=read_owner(root) if root else "",
    )


def serve(config: ServiceConfig, redis_url: str, releases: Path | None = None, custom: Sequence[str] = ()) -> None:
    """Run the service until it is stopped, with the configured number of worker processes.

    releases: directory of the shop's releases. Workers start with one of them if Redis is unavailable or names none,
    and refuse those of other shops. custom: custom features, as module:function. Raises FeatureError if one cannot be
    loaded, KeysError if keys cannot be read or if the service would listen beyond this machine without keys, ClockError
    if the file of a simulated clock cannot be read, and EvictionError if Redis can be reached and may evict keys.
    """
    load_features(custom)
    make_clock(config.clock_file)()
    asyncio.run(_check_eviction(Store(redis_url, config.redis_timeout_s)))
    keys.check_exposure(config.host, Keys(config.keys_file, os.environ.get(keys.KEYS_VARIABLE, "")), config.insecure)
    ShopperTokens(config.shopper_tokens, config.shopper_secrets_file)
    os.environ[_FEATURES_VARIABLE] = json.dumps(list(custom))
    os.environ["REDIS_URL"] = redis_url
    os.environ[_CONFIG_VARIABLE] = config.model_dump_json()
    if releases is not None:
        os.environ[_RELEASES_VARIABLE] = str(releases)
        _ensure_owner(releases)
    with _shared_metrics(config.workers):
        settings = uvicorn.Config(
            "serving.app:from_environment",
            factory=True,
            host=config.host,
            port=config.port,
            workers=config.workers,
            log_config=log_config(config.log, config.log_requests),
            access_log=False,
            # A worker answers the supervisor only when it has imported its modules, which takes long on a busy machine.
            timeout_worker_healthcheck=_WORKER_S,
            **limits(config),
        )
        _run(settings, [p for p in (config.port, config.internal_port) if p is not None])


def _ensure_owner(releases: Path) -> None:
    """Give the shop its ID, if it has none and the directory can be written to."""
    with suppress(OSError):
        releases.mkdir(parents=True, exist_ok=True)
        with locked(releases / "lock", wait=True):
            ensure_owner(releases)


async def _check_eviction(store: Store) -> None:
    try:
        problem = (await store.memory()).problem
    except StoreAway:  # the service starts without Redis, and /health/ready reports the policy later
        return
    finally:
        await store.close()
    if problem:
        raise EvictionError(problem)


def _run(settings: uvicorn.Config, ports: Sequence[int]) -> None:
    """Run the worker processes, each listening on all ports: `uvicorn.run` listens on one port only."""
    sockets = []
    for settings.port in ports:
        sockets.append(settings.bind_socket())
    with suppress(KeyboardInterrupt):
        if settings.workers > 1:
            Multiprocess(settings, sockets).run()
            return
        server = uvicorn.Server(settings)
        server.run(sockets)
        if not server.started:
            sys.exit(STARTUP_FAILURE)


def limits(config: ServiceConfig) -> dict[str, Any]:
    """The configured connection and time limits, as arguments of `uvicorn.run`."""
    return {"http": Connections(config), "ws": "none", "timeout_graceful_shutdown": config.drain_s}


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Set up a directory for the metrics of all workers, if there are several."""
    if workers == 1 or metrics.DIRECTORY in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="shelfwise-metrics-") as directory:
        os.environ[metrics.DIRECTORY] = directory
        yield
        del os.environ[metrics.DIRECTORY]
