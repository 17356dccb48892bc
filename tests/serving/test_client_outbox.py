"""The queue of the Python client, for every order of things that may happen to a batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shelfwise_client import Event, EventsAnswer, QueueFull, Rejected, Sending, ServiceError, UnreachableError
from shelfwise_client.calls import identified
from shelfwise_client.outbox import REMEMBERED_S, Outbox
from shelfwise_client.retry import retry_after_s

NOW = 1_700_000_000.0


def event(n: int) -> Event:
    return identified({"event": "click", "user_id": "u", "item_id": f"i{n}", "event_id": f"e{n}"})


class PickyService:
    """Takes what is sent but for events it was told to reject; a request with more than `most` is refused whole."""

    def __init__(self, bad: set[str], most: int) -> None:
        self.taken: Counter[str] = Counter()
        self._bad, self._most = bad, most

    def take(self, ids: list[str], answered: str) -> Any:
        """What comes of a request: an answer, or an error after which the events may be there or not."""
        if answered == "no connection":
            return UnreachableError("refused", delivered=False)
        if answered == "busy":
            return ServiceError(503, "", "", code="busy", retry_after_s=1.0)
        if len(ids) > self._most:
            return ServiceError(413, "too large", "")
        new = sum(not self.taken[i] for i in ids if i not in self._bad)
        for i in ids:
            if i not in self._bad:
                self.taken[i] = 1
        if answered == "lost":
            return UnreachableError("cut off", delivered=True)
        rejected = [Rejected(k, "item_id", "bad") for k, i in enumerate(ids) if i in self._bad]
        if len(rejected) == len(ids):
            return ServiceError(422, "no-event-taken", "", rejected=rejected)
        return EventsAnswer(new, len(ids) - new - len(rejected), tuple(rejected), ())


@given(
    count=st.integers(0, 30),
    bad=st.sets(st.integers(0, 29)),
    most=st.integers(1, 40),
    batch=st.integers(1, 40),
    fates=st.lists(st.sampled_from(["no connection", "busy", "lost", "answered"]), max_size=30),
)
def test_every_event_is_delivered_once_or_told_once(
    count: int, bad: set[int], most: int, batch: int, fates: list[str]
) -> None:
    """Whatever goes wrong on the way, once it stops going wrong the queue empties, and the counts add up."""
    told: list[str] = []
    box = Outbox(Sending(batch=batch), lambda e, field, message: told.append(str(e["event_id"])))
    service = PickyService({f"e{n}" for n in bad}, most)
    for n in range(count):
        box.put(event(n))
    left = list(fates)
    for _ in range(len(fates) + 20 + 2 * count):
        if not (taken := box.take(NOW)):
            break
        box.trying(taken, NOW)
        outcome = service.take([str(q.event["event_id"]) for q in taken], left.pop() if left else "answered")
        assert box.settle(taken, outcome, 0.5) >= 0
        box.tell()
    good = {f"e{n}" for n in range(count)} - {f"e{n}" for n in bad}
    assert set(service.taken) == good
    assert sorted(told) == sorted({f"e{n}" for n in range(count)} - good)
    counts = box.counts
    assert counts.accepted + counts.duplicates + counts.rejected == count
    assert (counts.waiting, counts.expired) == (0, 0)
    assert box.settled_before == box.put_so_far == count


@pytest.mark.parametrize(("delivered", "sent_again"), [(True, False), (False, True)])
def test_what_may_have_counted_is_not_sent_after_the_service_forgets_its_id(delivered: bool, sent_again: bool) -> None:
    """48 hours later: an event whose answer was lost is told and counted; one that surely never arrived is sent."""
    told: list[str] = []
    box = Outbox(Sending(), lambda e, field, message: told.append(message))
    box.put(event(0))
    box.trying(box.take(NOW), NOW)
    box.settle(box.take(NOW), UnreachableError("away", delivered=delivered), 0.0)
    later = box.take(NOW + REMEMBERED_S + 3600)
    box.tell()
    assert bool(later) == sent_again
    assert box.counts.expired == (not sent_again)
    assert len(told) == (not sent_again)


def test_a_second_attempt_without_connection_does_not_make_the_first_undone() -> None:
    """The first answer was lost, the second found nobody: the event may still have counted."""
    box = Outbox(Sending())
    box.put(event(0))
    for delivered in (True, False):
        batch = box.take(NOW)
        box.trying(batch, NOW)
        box.settle(batch, UnreachableError("away", delivered=delivered), 0.0)
    assert box.take(NOW + REMEMBERED_S + 1) == []
    assert box.counts.expired == 1


def test_a_batch_holds_no_more_bytes_than_the_service_takes() -> None:
    """Three events of 62 bytes, two brackets and a comma after each, and a bound of 150: 2 + 2 * 63 = 128, so two."""
    box = Outbox(Sending(), max_bytes=150)
    for n in range(3):
        box.put(event(n))
    assert [len(q.body) for q in box.take(NOW)] == [62, 62]


def test_a_full_queue_takes_nothing_more() -> None:
    box = Outbox(Sending(queue=1))
    box.put(event(0))
    with pytest.raises(QueueFull, match="at most 1 may"):
        box.put(event(1))
    assert (len(box), box.counts.turned_away) == (1, 1)


def test_a_callback_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("mine")

    box = Outbox(Sending(), fails)
    box.put(event(0))
    box.settle(box.take(NOW), EventsAnswer(0, 0, (Rejected(0, None, "bad"),), ()), 0.0)
    box.tell()
    assert "on_refused failed for event e0" in caplog.text


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("3", 3.0), ("soon", None), ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0)]
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds
