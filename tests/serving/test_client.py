"""The Python client, against the service in a separate process and a real Valkey."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.http.keys import new_key
from serving.store import SERVED, BulkStore, Pointer
from shelfwise_client import (
    AsyncShelfwise,
    Counts,
    DeadlineError,
    Event,
    QueueFull,
    Retry,
    Sending,
    ServiceError,
    Shelfwise,
    ShelfwiseError,
    UnreachableError,
    UnsentError,
)
from shelfwise_client.calls import encoded, identified
from shelfwise_client.spool import Spool
from tests import ROOT
from tests.running import Line, Process, Response, Scripted, emptied, engagements, process, stored
from tests.serving.test_service import EVERY, ready, releases, served, until, url

__all__ = ["releases", "url"]
QUICK = Sending(every_s=0.01, retry=Retry(first_s=0.01, most_s=0.1))
NOWHERE = "http://127.0.0.1:9"
OK, BUSY = b'{"status": "ready"}', b'{"type": "urn:shelfwise:problem:busy", "title": "Service busy", "status": 503}'
KEY, LINE = new_key("shop", ["rank", "explain", "events", "items", "admin"])
WEAK, WEAK_LINE = new_key("weak", ["events"])


@pytest.fixture(scope="module")
def service(url: str, releases: list[Path]) -> Iterator[Process]:
    with BulkStore(url) as store:
        store.set_pointer(Pointer(releases[0].name, str(releases[0])))
    with process(url, keys=f"{LINE}\n{WEAK_LINE}") as running:
        yield running


@pytest.fixture
def address(service: Process, url: str) -> str:
    emptied(url)
    return service.address


def problem(status: int, slug: str, **more: Any) -> bytes:
    document = {"type": f"urn:shelfwise:problem:{slug}", "title": slug, "status": status, "detail": "", "remedy": ""}
    return json.dumps(document | more).encode()


def in_script(code: str, *arguments: str, ends: int = 0, cwd: Path | None = None) -> str:
    """Run code as a separate program, and return its output."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)
    assert process.returncode == ends, process.stdout + process.stderr
    return process.stdout


def test_the_ranking_after_a_delivered_click_uses_it(address: str, releases: list[Path]) -> None:
    """After clicks on a red item are delivered, red items rank first; all results are typed."""
    with Shelfwise(address, KEY) as shop:
        before = shop.rank("u1", EVERY, limit=5)
        assert before.release == releases[0].name
        assert len(before.items) == 5
        for _ in range(3):
            shop.send("click", "u1", "red-01", request_id=before.request_id, position=0)
        shop.flush()
        after = shop.rank("u1", EVERY, explain=True)
        assert after.items[0].item_id.startswith("red")
        assert after.items[1].because is not None
        assert after.items[1].because.item_id == "red-01"
        assert after.items[0].reasons[0].contribution != 0
        assert not after.degraded
        assert shop.counts == Counts(accepted=3)


def test_every_call_returns_the_result_of_its_route(address: str) -> None:
    """Recommend, similar, write and delete items, send events, erase a user, health."""
    with Shelfwise(address, KEY) as shop:
        shelf = shop.recommend("u1", limit=3, rules={"filter": {"not": {"attribute": "item_id", "eq": "red-01"}}})
        assert len(shelf.items) == 3
        assert all(item.sources for item in shelf.items)
        assert [i.item_id for i in shop.similar("red-01", limit=2).items] != []
        assert shop.put_item({"item_id": "new/1 ö", "title": "New", "price": 2.5, "brand": None}).accepted == 1
        item = shop.item("new/1 ö")
        assert (item.item_id, item.in_release, item.available) == ("new/1 ö", False, True)
        assert shop.delete_item("new/1 ö").accepted == 1
        assert not shop.item("new/1 ö").available
        assert shop.put_items([{"item_id": "a"}, {"item_id": "b", "price": -1.0}]).rejected[0].index == 1
        event: Event = {"event": "add_to_cart", "user_id": "u9", "item_id": "red-01"}
        assert shop.events([event, event]).accepted == 2
        assert shop.delete_user("u9").at > 1.7e9
        state = shop.health()
        assert state.ready
        assert state.reason is None


def test_lists_that_nobody_may_see_leave_no_record(address: str, url: str) -> None:
    """Of six lists for e-mails and one for a page, the page's list is the one record for the next night."""
    with Shelfwise(address, KEY) as shop, BulkStore(url) as store:

        def records() -> int:
            streams = store.run([["XRANGE", part, "-", "+"] for part in store.layout.parts(SERVED)])
            return repr(streams).count("reader-of-mails")

        for _ in range(3):
            shop.recommend("reader-of-mails", limit=2, shown=False)
            shop.rank("reader-of-mails", EVERY, limit=2, shown=False)
        shop.recommend("reader-of-mails", limit=2)  # comes after the others in the stream
        until(lambda: records() > 0)
        assert records() == 1


def test_the_async_client_has_the_same_methods_with_the_same_arguments(address: str) -> None:
    """Its methods also return the same results."""
    names = {n for n in dir(Shelfwise) if not n.startswith("_")}
    assert names - {"close"} == {n for n in dir(AsyncShelfwise) if not n.startswith("_")} - {"aclose"}
    for name in names - {"close", "counts", "flush"}:
        assert inspect.signature(getattr(Shelfwise, name)) == inspect.signature(getattr(AsyncShelfwise, name))

    async def ask() -> None:
        async with AsyncShelfwise(address, KEY, sending=QUICK) as shop:
            ids = [await shop.send("click", "u1", "red-01") for _ in range(3)]
            assert len(set(ids)) == 3
            await shop.flush()
            ranked, similar = await asyncio.gather(shop.rank("u1", EVERY), shop.similar("red-01"))
            assert ranked.items[0].item_id.startswith("red")
            assert len(similar.items) == 10
            assert shop.counts == Counts(accepted=3)

    asyncio.run(ask())


def test_an_error_has_status_code_field_remedy_and_request_id(address: str) -> None:
    """As in the problem document; a key without the scope gives 403, an invalid or missing key 401."""
    with Shelfwise(address, KEY) as shop:
        with pytest.raises(ServiceError, match="limit") as caught:
            shop.rank("u1", EVERY, limit=0)
        error = caught.value
        assert (error.status, error.code, error.field) == (422, "invalid-field", "limit")
        assert error.remedy.startswith("See /docs")
        assert error.request_id is not None
        assert len(error.request_id) == 32
        with pytest.raises(ServiceError, match="is not one of") as caught:
            shop.events([{"event": "sneeze", "user_id": "u", "item_id": "i"}])  # type: ignore[typeddict-item]
        assert [(r.index, r.field) for r in caught.value.rejected] == [(0, "event")]
    for key, status in ((WEAK, 403), (None, 401), ("swk_shop_" + "x" * 43, 401)):
        with Shelfwise(address, key) as shop, pytest.raises(ServiceError) as caught:
            shop.rank("u1", EVERY)
        assert caught.value.status == status


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: Shelfwise("localhost:8000"), "url 'localhost:8000' is not valid"),
        (lambda: Shelfwise("http://h", "a key\n"), "key is not valid"),
        (lambda: Shelfwise("http://h", deadline_s=0), "deadline_s is 0"),
        (lambda: Sending(batch=1001), "batch must be 1 to 1000"),
        (lambda: Retry(attempts=0), "attempts must be at least 1"),
    ],
)
def test_invalid_arguments_are_refused_at_construction(create: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create()


@pytest.mark.parametrize("bad", ["", ".", ".."])
def test_an_id_that_would_change_the_path_is_refused(bad: str) -> None:
    """`DELETE /v1/users/..` would be another route."""
    with Shelfwise(NOWHERE) as shop, pytest.raises(ValueError, match="cannot be used in a path"):
        shop.delete_user(bad)


def test_a_read_is_retried_after_retry_after_plus_a_random_part_of_a_doubling_pause() -> None:
    """Retry-After of 1 s is waited in full, plus pauses of at most 0.01 and 0.02 s; the third attempt succeeds."""
    found = b'{"item_id": "a", "release": "r", "items": []}'
    answers = [(503, {"retry-after": "1"}, BUSY, 0, 0), (500, {}, b"oops", 0, 0), (200, {}, found, 0, 0)]
    with Scripted(answers) as service, Shelfwise(service.address, retry=Retry(first_s=0.01)) as shop:
        with pytest.raises(ServiceError, match="503"):
            shop.similar("a", deadline_s=0.5)  # waiting a second would exceed the deadline, so it fails at once
        assert len(service.requests) == 1
        service.requests.clear()
        assert shop.similar("a", deadline_s=20).items == ()
        first, second, third = (request.at for request in service.requests)
        assert second - first >= 1
        assert third - second < 1


@pytest.mark.parametrize(
    ("draw", "attempt", "after", "pause"),
    [(1.0, 1, None, 0.1), (1.0, 4, None, 0.8), (1.0, 99, None, 5.0), (0.5, 2, None, 0.1), (0.0, 3, 7.0, 7.0)],
)
def test_a_pause_is_random_up_to_a_bound_that_doubles(
    draw: float, attempt: int, after: float | None, pause: float
) -> None:
    """draw * min(5, 0.1 * 2^(attempt - 1)) seconds, plus Retry-After."""
    assert Retry().pause_s(attempt, after, draw) == pytest.approx(pause)


@pytest.mark.parametrize("call", ["put_item", "delete_item", "delete_user"])
def test_a_write_that_may_have_been_carried_out_is_not_retried(call: str) -> None:
    """After 500 or a lost response it is sent once; after 429 or `busy`, which change nothing, it is sent again."""
    argument: Any = {"item_id": "a"} if call == "put_item" else "a"
    uncertain: list[Response] = [
        (500, {}, b"", 0, 0),
        (503, {}, problem(503, "store-away"), 0, 0),
        (200, {}, b"{}", 0.4, 0),
    ]
    refused: list[Response] = [(429, {}, b"", 0, 0), (503, {}, BUSY, 0, 0)]
    for first, attempts in [(answer, 1) for answer in uncertain] + [(answer, 2) for answer in refused]:
        with Scripted([first, (400, {}, problem(400, "end"), 0, 0)]) as service:
            with Shelfwise(service.address, retry=Retry(first_s=0.01)) as shop, pytest.raises(ShelfwiseError):
                getattr(shop, call)(argument, deadline_s=0.3)
            assert len(service.requests) == attempts, first


def test_a_write_is_retried_if_there_was_no_connection(address: str) -> None:
    """If nothing listens, nothing can have been carried out, so all attempts are used."""
    with Shelfwise(NOWHERE, retry=Retry(attempts=3, first_s=0.01)) as shop, pytest.raises(UnreachableError) as caught:
        shop.delete_user("u")
    assert not caught.value.delivered


@pytest.mark.parametrize(
    "answer", [(200, {}, OK, 5, 0), (200, {}, OK, 0, 0.1)], ids=["no response", "a byte at a time"]
)
def test_a_call_ends_at_its_deadline_even_if_the_response_is_slow(answer: Any) -> None:
    """The service sends nothing, or a byte every tenth of a second; sync and async."""
    with Scripted([answer]) as service:
        with Shelfwise(service.address) as shop:
            started = time.monotonic()
            with pytest.raises(DeadlineError):
                shop.health(deadline_s=0.5)
            assert time.monotonic() - started < 3

        async def ask() -> None:
            async with AsyncShelfwise(service.address, deadline_s=0.5) as shop:
                with pytest.raises(DeadlineError):
                    await shop.health()

        asyncio.run(ask())


def test_a_rejected_event_is_reported_with_its_reason_and_not_resent(address: str, url: str) -> None:
    """A batch of two valid and one invalid event, then an invalid one alone: two delivered, two reported."""
    refused_events: list[tuple[str, str | None]] = []
    with Shelfwise(address, KEY, on_refused=lambda e, f, m: refused_events.append((str(e["item_id"]), f))) as shop:
        shop.send("click", "u1", "good-1")
        shop.send("click", "u1", "bad-1", position=-1)
        shop.send("click", "u1", "good-2")
        shop.flush()
        shop.send("click", "u1", "bad-2", timestamp="yesterday")
        shop.flush()
        assert shop.counts == Counts(accepted=2, rejected=2)
    assert refused_events == [("bad-1", "position"), ("bad-2", "timestamp")]
    assert len(stored(url)) == 2


def test_an_event_that_is_not_json_raises_at_once() -> None:
    """An event with NaN is not queued."""
    with Shelfwise(NOWHERE) as shop:
        with pytest.raises(ValueError, match="not JSON compliant"):
            shop.send("rating", "u", "i", value=float("nan"))
        assert shop.counts == Counts()


def test_lost_responses_lose_no_event_and_count_none_twice(address: str, url: str) -> None:
    """Every third response is lost after the service stored the events: all 300 are stored once."""
    sending = Sending(batch=10, every_s=0.01, retry=Retry(first_s=0.01, most_s=0.05))
    with Line(address, every=3) as line:
        with Shelfwise(line.address, KEY, sending=sending) as shop:
            sent = [shop.send("click", f"u{n % 10}", f"i{n}") for n in range(300)]
        assert line.lost >= 10
        assert shop.counts.accepted + shop.counts.duplicates == 300
        assert shop.counts.duplicates >= 10
    assert sorted(stored(url)) == sorted(sent)
    assert [engagements(url, f"u{n}") for n in range(10)] == [30] * 10


def test_a_full_queue_blocks_or_raises_and_drops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Of 5 events, 3 are queued; the others raise QueueFull, at once or after the deadline, and are counted."""
    for policy, least_s in (("raise", 0.0), ("block", 0.2)):
        sending = Sending(queue=3, when_full=policy, close_s=0.1)  # type: ignore[arg-type]
        shop = Shelfwise(NOWHERE, deadline_s=0.2, sending=sending)
        sent = [shop.send("click", "u", f"i{n}") for n in range(3)]
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(QueueFull, match=r"event queue full \(3 of 3 events\)"):
                shop.send("click", "u", "more")
            assert time.monotonic() - started >= least_s
        assert (shop.counts.waiting, shop.counts.turned_away) == (3, 2)
        with pytest.raises(UnsentError, match="3 events were not delivered") as caught:
            shop.close()
        assert [e["event_id"] for e in caught.value.events] == sent
        assert not caught.value.kept
        with pytest.raises(RuntimeError, match="closed"):
            shop.send("click", "u", "late")


def test_callers_blocked_by_a_full_queue_continue_as_events_are_delivered(address: str, url: str) -> None:
    """Four threads send 50 events each through a queue of 5: they block, and none is lost."""
    sending = Sending(queue=5, every_s=0.005)
    with Shelfwise(address, KEY, deadline_s=30, sending=sending) as shop:
        threads = [threading.Thread(target=lambda: [shop.send("view", "u", "i") for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert shop.counts == Counts(accepted=200)
    assert len(set(stored(url))) == 200


def test_a_program_that_exits_without_closing_delivers_its_events(address: str, url: str) -> None:
    """Sync, async after its loop has ended, and after an uncaught exception."""
    head = "import asyncio, sys; from shelfwise_client import *; slow = Sending(every_s=3600)\n"
    sync = head + (
        "shop = Shelfwise(*sys.argv[1:], sending=slow)\nfor n in range(40): shop.send('click', 'sync', f'i{n}')\n"
    )
    loop = head + (
        "async def main():\n"
        "    shop = AsyncShelfwise(*sys.argv[1:], sending=slow)\n"
        "    for n in range(40): await shop.send('click', 'async', f'i{n}')\n"
        "asyncio.run(main())"
    )
    in_script(sync, address, KEY)
    in_script(loop, address, KEY)
    in_script(sync.replace("'sync'", "'raised'") + "\nraise SystemExit(3)", address, KEY, ends=3)
    assert [engagements(url, user) for user in ("sync", "async", "raised")] == [40, 40, 40]


def test_a_forked_child_sends_only_its_own_events(address: str, url: str) -> None:
    """The parent queues 5 before the fork, then each process queues 5: 15 in total, each delivered once."""
    code = (
        "import os, sys, warnings; from shelfwise_client import *\n"
        "warnings.simplefilter('ignore')\n"
        "shop = Shelfwise(*sys.argv[1:], sending=Sending(every_s=3600))\n"
        "for n in range(5): shop.send('click', 'before', f'i{n}')\n"
        "child = os.fork()\n"
        "for n in range(5): shop.send('click', 'parent' if child else 'child', f'i{n}')\n"
        "assert shop.health().ready\n"
        "shop.close()\n"
        "if not child: os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    in_script(code, address, KEY)
    assert [engagements(url, user) for user in ("before", "parent", "child")] == [5, 5, 5]
    assert len(stored(url)) == 15


def test_a_killed_program_with_a_spool_loses_no_queued_event(address: str, url: str, tmp_path: Path) -> None:
    """It queues 200 without a service and is killed; the next client delivers them, and only the lock file is left."""
    code = (
        "import sys; from pathlib import Path; from shelfwise_client import *\n"
        "shop = Shelfwise(sys.argv[1], sending=Sending(spool=Path(sys.argv[2]), every_s=0.01))\n"
        "for n in range(200): print(shop.send('click', f'u{n % 4}', f'i{n}'), flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    sent = in_script(code, NOWHERE, str(tmp_path), ends=-signal.SIGKILL).split()
    assert len(sent) == 200
    with Shelfwise(address, KEY, sending=Sending(spool=tmp_path)) as shop:
        shop.flush()
        assert shop.counts == Counts(accepted=200)
    assert sorted(stored(url)) == sorted(sent)
    assert [p.name for p in tmp_path.iterdir()] == ["lock"]


def test_processes_sharing_a_spool_do_not_take_each_others_events(address: str, url: str, tmp_path: Path) -> None:
    """Events of a running process are left alone; events it could not deliver are kept in the spool, and reported."""
    first = Shelfwise(NOWHERE, sending=Sending(spool=tmp_path, close_s=0.0))
    first.send("click", "u", "of the first")
    with Shelfwise(address, KEY, sending=Sending(spool=tmp_path)) as second:
        second.send("click", "u", "of the second")
    assert second.counts == Counts(accepted=1)
    with pytest.raises(UnsentError, match="stored in") as caught:
        first.close()
    assert caught.value.kept
    with AsyncSpooled(address, tmp_path) as counts:
        assert counts == Counts(accepted=1)
    assert len(set(stored(url))) == 2


class AsyncSpooled:
    """Counts of an async client that is opened on a spool, flushed and closed."""

    def __init__(self, address: str, spool: Path) -> None:
        async def run() -> Counts:
            async with AsyncShelfwise(address, KEY, sending=Sending(spool=spool)) as shop:
                await shop.flush()
                return shop.counts

        self._counts = asyncio.run(run())

    def __enter__(self) -> Counts:
        return self._counts

    def __exit__(self, *_: object) -> None:
        pass


def test_events_in_a_spool_for_too_long_are_reported_and_not_sent(address: str, url: str, tmp_path: Path) -> None:
    """Sent three days ago without a response; sync and async."""
    refused_events: list[str] = []

    def keep() -> Sending:
        spool = Spool(tmp_path)
        event = identified({"event": "click", "user_id": "u", "item_id": "old"})
        spool.mark([spool.add(encoded(event))], time.time() - 3 * 86400)
        spool.close(empty=False)
        return Sending(spool=tmp_path, every_s=0.01)

    def on_refused(event: Event, field: str | None, why: str) -> None:
        refused_events.append(why)

    async def begin() -> Counts:
        async with AsyncShelfwise(address, KEY, sending=keep(), on_refused=on_refused) as shop:
            await shop.health()
            await asyncio.to_thread(until, lambda: len(refused_events) == 2)
            return shop.counts

    with Shelfwise(address, KEY, sending=keep(), on_refused=on_refused) as shop:
        until(lambda: len(refused_events) == 1)
        assert shop.counts == Counts(expired=1)
    assert asyncio.run(begin()) == Counts(expired=1)
    assert "47 hours" in refused_events[1]
    assert stored(url) == []


def test_an_invalid_key_is_logged_and_loses_no_event(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """An operator can replace a revoked key, so events stay queued, and the log gives the reason."""
    shop = Shelfwise(address, "swk_shop_" + "x" * 43, sending=Sending(every_s=0.01, close_s=0.2))
    shop.send("click", "u", "i")
    with caplog.at_level(logging.ERROR, "shelfwise_client"), pytest.raises(UnsentError):
        shop.close()
    assert "401" in caplog.text


GUIDES = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/clients.md")]


@pytest.mark.parametrize("block", [b for guide in GUIDES for b in re.findall(r"```python\n(.*?)```", guide, re.DOTALL)])
def test_code_blocks_of_the_guides_run(block: str, service: Process, url: str, tmp_path: Path) -> None:
    """As printed, except for the address, in an empty folder."""
    with served(url) as client:
        ready(client)
        in_script(block.replace("http://localhost:8000", str(client.base_url)), cwd=tmp_path)


def test_the_client_imports_only_httpx() -> None:
    """It imports nothing from the service and no other installed package."""
    code = (
        "import sys; before = set(sys.modules); import httpx; known = set(sys.modules); import shelfwise_client\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - known}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'shelfwise_client'}))"
    )
    assert in_script(code).strip() == "[]"
