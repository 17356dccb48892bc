"""The Python clients while the service is killed and restarted: each event is stored exactly once."""

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
"""Small batches, so that a kill affects many of them; a small queue, so that it blocks the caller."""


@pytest.fixture
def running(tmp_path: Path, releases: list[Path]) -> Iterator[tuple[Process, str]]:
    with connect_url(None, tmp_path) as url:
        with BulkStore(url) as store:
            store.set_pointer(Pointer(releases[0].name, str(releases[0])))
        with process(url) as service:
            yield service, url


def check_each_once(url: str, sent: list[str], counts: Counts) -> None:
    """Every event sent is in the stream and in the users' lists exactly once."""
    assert len(set(sent)) == EVENTS
    assert sorted(stored(url)) == sorted(sent)
    assert [engagements(url, f"u{n}") for n in range(USERS)] == [EVENTS // USERS] * USERS
    assert counts.accepted + counts.duplicates == EVENTS
    assert (counts.waiting, counts.rejected, counts.expired) == (0, 0, 0)


def test_the_sync_client_loses_no_event_and_counts_none_twice(running: tuple[Process, str]) -> None:
    """2,000 events; SIGKILL after 600 and after 1,200."""
    service, url = running
    sent = []
    with Shelfwise(service.address, deadline_s=60, sending=SENDING) as shop:
        for n in range(EVENTS):
            if n in KILLED:
                service.kill()
                service.start(wait=False)
            sent.append(shop.send("click", f"u{n % USERS}", f"i{n % 7}"))
    check_each_once(url, sent, shop.counts)


def test_the_async_client_loses_no_event_and_counts_none_twice(running: tuple[Process, str]) -> None:
    """2,000 events from eight tasks; SIGKILL after 600 and after 1,200."""
    service, url = running
    sent: list[str] = []

    async def send_some(shop: AsyncShelfwise, first: int) -> None:
        for n in range(first, EVENTS, 8):
            sent.append(await shop.send("click", f"u{n % USERS}", f"i{n % 7}"))
            if len(sent) in KILLED:
                await asyncio.to_thread(service.kill)
                service.start(wait=False)

    async def send_all() -> Counts:
        async with AsyncShelfwise(service.address, deadline_s=60, sending=SENDING) as shop:
            await asyncio.gather(*(send_some(shop, first) for first in range(8)))
        return shop.counts

    check_each_once(url, sent, asyncio.run(send_all()))
