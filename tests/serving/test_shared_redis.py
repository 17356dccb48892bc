"""Two shops on one Redis, each with a service that `shelfwise serve` runs: with prefixes of their own, and with one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from serving.release import promote
from serving.store import STREAM, BulkStore
from tests import NO_EVENT_LIMITS
from tests.bench.cold_start import started
from tests.offline.cli.test_cli import run_cli
from tests.serving.test_guard import counted
from tests.serving.test_release import planted_items, planted_model, publish
from tests.serving.test_service import answers_until, click, until, url

__all__ = ["url"]
pytestmark = pytest.mark.slow
EVENTS = ("shelfwise_events_total", "accepted")


class Shop(NamedTuple):
    """A shop: its workspace, the number of its products, and the IDs of its releases, all with the same products."""

    work: Path
    products: int
    releases: list[str]

    @classmethod
    def of(cls, work: Path, products: int, *signs: float) -> Shop:
        items = planted_items(products)
        models = (planted_model(items, sign=sign) for sign in signs)
        return cls(work, products, [publish(work / "releases", items, model_text=model).name for model in models])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop.of(tmp_path_factory.mktemp("ours"), 20, 1.0, -1.0)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Another shop, which also sells our 20 products, by the same IDs, and four more."""
    return Shop.of(tmp_path_factory.mktemp("theirs"), 24, 1.0, -1.0)


@contextmanager
def serving(url: str, shop: Shop, prefix: str = "sw") -> Iterator[httpx.Client]:
    settings = {"poll_s": 0.05, "reload_s": 0.1, **NO_EVENT_LIMITS}
    with (
        started(url, shop.work, None, None, prefix, **settings) as service,
        httpx.Client(base_url=service.address, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def our_service(url: str, ours: Shop) -> Iterator[httpx.Client]:
    with BulkStore(url) as store:
        promote(ours.work / "releases", store, ours.releases[0], "a test")
    with serving(url, ours) as client:
        yield client


def ranked(client: httpx.Client, user: str = "nobody") -> dict[str, Any]:
    """The answer with all products of the shop."""
    answer = client.post("/v1/rank", json={"user_id": user})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def order(client: httpx.Client, user: str) -> list[str]:
    return [item["item_id"] for item in ranked(client, user)["items"]]


def test_with_different_prefixes_neither_shop_sees_the_other(
    url: str, ours: Shop, theirs: Shop, our_service: httpx.Client
) -> None:
    """Neither its products, events, users nor releases. Both know user `u` and sell `red-01`."""
    with BulkStore(f"{url}?prefix=b") as store:
        promote(theirs.work / "releases", store, theirs.releases[0], "a test")
        with serving(url, theirs, "b") as their_service:
            for client, shop in ((our_service, ours), (their_service, theirs)):
                answer = ranked(client)
                assert (answer["release"], answer["degraded"]) == (shop.releases[0], False)
                assert len(answer["items"]) == shop.products

            assert our_service.post("/v1/events", json=click("red-01")).status_code == 202
            assert order(our_service, "u")[0].startswith("red")
            assert order(our_service, "u") != order(our_service, "nobody")
            assert order(their_service, "u") == order(their_service, "nobody")
            assert store.length(STREAM) == 0
            assert [counted(c).get(EVENTS, 0.0) for c in (our_service, their_service)] == [1.0, 0.0]
            before = order(our_service, "u")
            assert their_service.delete("/v1/users/u").status_code == 202
            assert order(our_service, "u") == before, "they erased their user, not ours"

            promote(theirs.work / "releases", store, theirs.releases[1], "a test")
            until(lambda: ranked(their_service)["release"] == theirs.releases[1])
            assert ranked(our_service)["release"] == ours.releases[0]
            with BulkStore(url) as our_store:
                promote(ours.work / "releases", our_store, ours.releases[1], "a test")
            seen = answers_until(lambda: ranked(our_service)["release"], lambda release: release == ours.releases[1])
            assert set(seen) <= set(ours.releases), "our service follows our pointer alone"
            assert ranked(their_service)["release"] == theirs.releases[1]


def test_with_the_same_prefix_the_release_of_the_other_shop_is_refused_by_name(
    url: str,
    ours: Shop,
    theirs: Shop,
    our_service: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The command refuses to replace ours. If it is told to, our service goes on with our products, and says so."""
    with BulkStore(url) as store:
        promote(ours.work / "releases", store, ours.releases[0], "a test")
    until(lambda: not ranked(our_service)["degraded"])
    monkeypatch.setenv("REDIS_URL", url)
    command = ("releases", "promote", theirs.releases[0], "--workspace", theirs.work)
    code, _, err = run_cli(monkeypatch, capfd, *command)
    assert (code, f"release {ours.releases[0]}" in err, "belongs to another shop" in err) == (1, True, True), err
    assert ranked(our_service)["degraded"] is False
    code, out, err = run_cli(monkeypatch, capfd, *command, "--take-over")
    assert (code, out) == (0, f"live: {theirs.releases[0]}\n"), err

    with serving(url, theirs) as their_service:
        answer = ranked(their_service)
        assert (answer["release"], answer["degraded"], len(answer["items"])) == (theirs.releases[0], False, 24)
        until(lambda: ranked(our_service)["degraded"])
        answer = ranked(our_service)
        assert (answer["release"], answer["degraded_reason"]) == (ours.releases[0], "release-from-disk")
        assert len(answer["items"]) == 20
        reason = our_service.get("/health/ready").json()["reason"]
        assert (
            reason == f"release {theirs.releases[0]}, live in this Redis, belongs to another shop: set `redis.prefix`"
        )
