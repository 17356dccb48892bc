"""Releases are swapped and rolled back under load: no ranking fails, waits for the swap, or mixes two releases."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from features.history import EMPTY
from features.table import rows
from serving.release.release import load_release
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.bench.clients import connected, posted
from tests.serving.test_release import CUT_OFF, planted_items, planted_model, publish
from tests.serving.test_service import FAST, ready, served, until

AT = CUT_OFF + 100.25
CLIENTS = 3
CANDIDATES = [*planted_items().catalogue.item_ids, "unheard of"]


def scores_of(release: Path) -> dict[str, float]:
    """The release's score of each candidate for an anonymous user, computed without the service."""
    loaded = load_release(release)
    table = rows(loaded.items, EMPTY, loaded.items.catalogue.rows(CANDIDATES), AT)
    return dict(zip(CANDIDATES, loaded.trees.score(table).tolist(), strict=True))


async def ask(port: int, calls: int, expected: dict[str, dict[str, float]], stop: asyncio.Event) -> Counter[str]:
    """Send at least `calls` requests, until `stop` is set; returns the number of responses by release."""
    request, seen = posted("/v1/rank", json.dumps({"candidates": CANDIDATES}).encode()), Counter[str]()
    connection = await connected(port)
    while not stop.is_set() or seen.total() < calls:
        status, body = await connection.ask(request)
        assert status == 200, body
        answer = json.loads(body)
        assert {i["item_id"]: i["score"] for i in answer["items"]} == expected[answer["release"]]
        assert [i["score"] for i in answer["items"]] == sorted((i["score"] for i in answer["items"]), reverse=True)
        seen[answer["release"]] += 1
    connection.close()
    return seen


@pytest.mark.parametrize("calls", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_rankings_continue_through_three_swaps_and_a_rollback(tmp_path: Path, calls: int) -> None:
    """Every response is a 200, names one release, and has exactly that release's scores for all candidates."""
    items = planted_items()
    releases = [publish(tmp_path, model_text=planted_model(items, sign=s)) for s in (1, -1, 2, -2)]
    expected = {r.name: scores_of(r) for r in releases}
    assert len({tuple(scores.values()) for scores in expected.values()}) == 4, "the scores identify the release"

    async def under_traffic(port: int, url: str) -> Counter[str]:
        stop = asyncio.Event()
        clients = [asyncio.create_task(ask(port, calls // CLIENTS + 1, expected, stop)) for _ in range(CLIENTS)]
        with BulkStore(url) as store:
            for target in (*releases[1:], releases[2]):
                await asyncio.sleep(calls / 20_000)
                await asyncio.to_thread(store.set_pointer, Pointer(target.name, str(target)))
                await asyncio.to_thread(until, lambda t=target: state()["release"] == t.name)
        stop.set()
        return sum(await asyncio.gather(*clients), Counter[str]())

    with connect_url(None, tmp_path / "valkey") as url, BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        with served(url, FAST, clock=lambda: AT) as client:
            ready(client)

            def state() -> dict[str, object]:
                answer: dict[str, object] = client.get("/health/ready").json()
                return answer

            seen = asyncio.run(under_traffic(client.base_url.port or 0, url))
    assert seen.total() >= calls
    assert set(seen) == set(expected), "every release has answered"


def test_a_replaced_release_is_unmapped(tmp_path: Path) -> None:
    """A service that runs for months must not keep the arrays of every nightly release mapped."""
    items = planted_items()
    releases = [publish(tmp_path, model_text=planted_model(items, sign=s)) for s in (1.0, -1.0)]
    with connect_url(None, tmp_path / "valkey") as url, BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        with served(url) as client:
            ready(client)
            assert client.post("/v1/rank", json={"user_id": "u"}).status_code == 200
            store.set_pointer(Pointer(releases[1].name, str(releases[1])))
            until(lambda: client.get("/health/ready").json()["release"] == releases[1].name)
            until(lambda: str(releases[0]) not in Path("/proc/self/maps").read_text("utf-8"))
            assert str(releases[1]) in Path("/proc/self/maps").read_text("utf-8")
