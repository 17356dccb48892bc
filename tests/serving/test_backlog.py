"""Metrics of work that is not done: keys not reloaded, item updates not encoded, evictions, failed nightly runs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from features.log import Kind
from offline.cli.night import _counted, run_night
from offline.config.configuration import load
from serving.app import _check_eviction, serve
from serving.http.keys import Keys, new_key
from serving.store import BulkStore, BulkWrittenItems, Event, EvictionError, Store
from tests.serving.test_guard import counted
from tests.serving.test_keys import bearer
from tests.serving.test_service import FAST, served, until, url

__all__ = ["url"]
CHECKED = "shelfwise_keys_checked_timestamp_seconds"
AGE, NIGHTS_UNPUBLISHED = "shelfwise_item_update_age_seconds", "shelfwise_nights_unpublished"
MEMORY = "shelfwise_redis_memory_ratio"
EVICTED = "shelfwise_redis_evicted_keys"


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()
        raw.config_resetstat()
    with served(url, FAST) as client:
        yield client


def value(client: httpx.Client, name: str) -> float:
    return counted(client)[name, ""]


def test_the_keys_are_reported_as_checked_only_while_their_file_can_be_used(url: str, tmp_path: Path) -> None:
    """A file with an error stays an error at every later look, until it is corrected."""
    key, line = new_key("prometheus", ["metrics"])
    file = tmp_path / "keys"
    file.write_text(line)
    keys = Keys(file)
    file.write_text("prometheus metrics")
    assert [keys.look(), keys.look()] == [False, False]
    assert keys.of(f"Bearer {key}") is None, "a line with an error is not a key"
    file.write_text(f"{line} # corrected")
    assert keys.look()
    file.unlink()
    assert [keys.look(), keys.look()] == [False, False]
    assert Keys(lines=line).look(), "without a file there is nothing to reload"

    file.write_text(line)
    began = time.time()
    with served(url, FAST, good=Keys(file)) as client:
        client.headers.update(bearer(key))
        until(lambda: value(client, CHECKED) >= began)
        file.unlink()
        file.mkdir()  # exists, but cannot be read: the previous keys stay valid
        last = value(client, CHECKED)
        until(lambda: time.time() > last + 4)  # the file is read every second
        assert value(client, CHECKED) <= last + 1.5


def test_the_oldest_item_update_that_is_not_encoded_has_its_age_in_the_metrics(client: httpx.Client, url: str) -> None:
    """Also before the first worker, and if a worker claimed the update but never finished it. 0 without updates."""
    assert value(client, AGE) == 0
    with redis.Redis.from_url(url) as raw, BulkStore(url) as store:
        written = int((time.time() - 100) * 1000)
        raw.xadd("sw:item-changes", {"i": "a", "w": "put"}, id=f"{written}-0")
        raw.xadd("sw:item-changes", {"i": "b", "w": "put"}, id=f"{written + 40_000}-0")
        assert 100 <= value(client, AGE) < 130
        worker = BulkWrittenItems(store)
        (first, *_), (second, *_) = worker.claim("worker", 10, 0, 30_000)
        assert 100 <= value(client, AGE) < 130, "claimed, but not finished"
        worker.acknowledge([first])
        assert 60 <= value(client, AGE) < 90, "the second was written 100 - 40 = 60 s ago"
        worker.acknowledge([second])
        assert value(client, AGE) == 0


def test_evicted_keys_are_in_the_metrics(client: httpx.Client, url: str) -> None:
    """A server with another policy than noeviction drops lists silently."""
    assert value(client, EVICTED) == 0
    with redis.Redis.from_url(url) as raw:
        before = raw.config_get("maxmemory-policy") | raw.config_get("maxmemory")
        raw.set("sw:{u}:e", "x" * 1_000_000)
        raw.config_set("maxmemory-policy", "allkeys-random")
        raw.config_set("maxmemory", 1)
        try:
            until(lambda: raw.dbsize() == 0)
        finally:
            for name, old in before.items():
                raw.config_set(name, old)
    assert value(client, EVICTED) == 1


def test_days_with_a_nightly_run_since_the_last_success_are_in_the_metrics(
    client: httpx.Client, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries of one day count once, `--no-publish` does not count, and a run that succeeds sets the number to 0."""
    monkeypatch.setenv("REDIS_URL", url)
    config = load(None, workspace=tmp_path)
    assert value(client, NIGHTS_UNPUBLISHED) == 0
    for day in ("2026-01-30", "2026-01-30", "2026-01-31"):
        monkeypatch.setattr("offline.cli.night.today", lambda day=day: day)
        with pytest.raises(FileNotFoundError):
            run_night(config, publish=True)  # the workspace is empty
    assert value(client, NIGHTS_UNPUBLISHED) == 2
    monkeypatch.setattr("offline.cli.night.today", lambda: "2026-02-01")
    with pytest.raises(FileNotFoundError):
        run_night(config, publish=False)
    assert value(client, NIGHTS_UNPUBLISHED) == 2
    with _counted(url):
        assert value(client, NIGHTS_UNPUBLISHED) == 3
    assert value(client, NIGHTS_UNPUBLISHED) == 0


def test_while_redis_is_unavailable_the_other_metrics_are_still_served() -> None:
    with served("unix:///nowhere.sock", FAST) as client:
        assert value(client, "shelfwise_redis_up") == 0


def test_a_full_memory_and_the_number_of_users_are_in_the_metrics(client: httpx.Client, url: str) -> None:
    """Users are counted until their lists are deleted; the share of memory is that of `maxmemory`."""
    with BulkStore(url) as store, redis.Redis.from_url(url) as raw:
        now = time.time()
        store.write([Event("1", Kind.CLICK, "u", "a", now), Event("2", Kind.CLICK, "v", "a", now)], now)
        raw.zadd("sw:users", {"deleted a second ago": now - 1})
        assert (value(client, "shelfwise_users"), value(client, "shelfwise_users_max")) == (2, FAST.max_users)
        assert 0 < value(client, MEMORY) < 0.5, "without maxmemory, the share of the machine's memory"
        raw.config_set("maxmemory", 10 * raw.info("memory")["used_memory"])
        try:
            assert value(client, MEMORY) == pytest.approx(0.1, rel=0.2)
        finally:
            raw.config_set("maxmemory", 0)


def test_a_service_is_not_ready_while_redis_may_evict_keys(
    client: httpx.Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not start with such a Redis either. Without `maxmemory`, the policy has no effect."""
    problem = "maxmemory-policy allkeys-lru and would delete users' lists.*set maxmemory-policy to noeviction"
    monkeypatch.setattr("serving.ranking.service._MEMORY_S", 0.05)
    with redis.Redis.from_url(url) as raw, served(url, FAST) as other:
        raw.config_set("maxmemory-policy", "allkeys-lru")
        try:
            asyncio.run(_check_eviction(Store(url, 5.0)))
            raw.config_set("maxmemory", 10**9)
            with pytest.raises(EvictionError, match=problem):
                serve(FAST, url)
            until(lambda: re.search(problem, other.get("/health/ready").json()["reason"]))
            assert other.get("/health/ready").status_code == 503
        finally:
            raw.config_set("maxmemory-policy", "noeviction")
            raw.config_set("maxmemory", 0)
        until(lambda: "maxmemory" not in other.get("/health/ready").json()["reason"])
