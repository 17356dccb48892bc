"""The service is killed and started again in the middle of a stream of events: each is there once at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from shelfwise_client import AsyncShelfwise, Counts, Retry, Sending, Shelfwise
from tests.running import Process, engagements, process, stored
from tests.serving.test_service import releases

__all__ = ["releases"]
pytestmark = pytest.mark.chaos
EVENTS, USERS, KILLED = 2000, 40, (600, 1200)
SENDING = Sending(batch=10, every_s=0.01, queue=100, close_s=60, retry=Retry(first_s=0.05, most_s=0.5))
"""Small batches, so that a kill meets many; a small queue, so that the caller feels it."""


@pytest.fixture
def running(tmp_path: Path, releases: list[Path]) -> Iterator[tuple[Process, str]]:
    with connect_url(None, tmp_path) as url:
        with BulkStore(url) as store:
            store.point(Pointer(releases[0].name, str(releases[0])))
        with process(url) as service:
            yield service, url


def each_once(url: str, sent: list[str], counts: Counts) -> None:
    """As many as were sent, in the stream and in the users' lists; none lost, none twice."""
    assert len(set(sent)) == EVENTS
    assert sorted(stored(url)) == sorted(sent)
    assert [engagements(url, f"u{n}") for n in range(USERS)] == [EVENTS // USERS] * USERS
    assert counts.accepted + counts.duplicates == EVENTS
    assert (counts.waiting, counts.rejected, counts.expired) == (0, 0, 0)


def test_the_sync_client_loses_nothing_and_sends_nothing_that_counts_twice(running: tuple[Process, str]) -> None:
    """2,000 events; SIGKILL after 600 and after 1,200."""
    service, url = running
    sent = []
    with Shelfwise(service.address, deadline_s=60, sending=SENDING) as shop:
        for n in range(EVENTS):
            if n in KILLED:
                service.kill()
                service.start(wait=False)
            sent.append(shop.send("click", f"u{n % USERS}", f"i{n % 7}"))
    each_once(url, sent, shop.counts)


def test_the_async_client_loses_nothing_and_sends_nothing_that_counts_twice(running: tuple[Process, str]) -> None:
    """2,000 events of eight tasks; SIGKILL after 600 and after 1,200."""
    service, url = running
    sent: list[str] = []

    async def some(shop: AsyncShelfwise, first: int) -> None:
        for n in range(first, EVENTS, 8):
            sent.append(await shop.send("click", f"u{n % USERS}", f"i{n % 7}"))
            if len(sent) in KILLED:
                await asyncio.to_thread(service.kill)
                service.start(wait=False)

    async def all_of_them() -> Counts:
        async with AsyncShelfwise(service.address, deadline_s=60, sending=SENDING) as shop:
            await asyncio.gather(*(some(shop, first) for first in range(8)))
        return shop.counts

    each_once(url, sent, asyncio.run(all_of_them()))
