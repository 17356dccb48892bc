"""The event queue of the Python client, for every sequence of outcomes of a batch."""

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
    """Accepts events except those in `bad`, and refuses requests with more than `most` events as a whole."""

    def __init__(self, bad: set[str], most: int) -> None:
        self.stored: Counter[str] = Counter()
        self._bad, self._most = bad, most

    def take(self, ids: list[str], outcome: str) -> Any:
        """Outcome of a request: a result, or an error after which the events may or may not be stored."""
        if outcome == "no connection":
            return UnreachableError("refused", delivered=False)
        if outcome == "busy":
            return ServiceError(503, "", "", code="busy", retry_after_s=1.0)
        if len(ids) > self._most:
            return ServiceError(413, "too large", "")
        new = sum(not self.stored[i] for i in ids if i not in self._bad)
        for i in ids:
            if i not in self._bad:
                self.stored[i] = 1
        if outcome == "lost":
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
    outcomes=st.lists(st.sampled_from(["no connection", "busy", "lost", "success"]), max_size=30),
)
def test_every_event_is_delivered_once_or_reported_once(
    count: int, bad: set[int], most: int, batch: int, outcomes: list[str]
) -> None:
    """After any sequence of failures, once requests succeed again the queue becomes empty, and the counts add up."""
    refused: list[str] = []
    box = Outbox(Sending(batch=batch), lambda e, field, message: refused.append(str(e["event_id"])))
    service = PickyService({f"e{n}" for n in bad}, most)
    for n in range(count):
        box.put(event(n))
    left = list(outcomes)
    for _ in range(len(outcomes) + 20 + 2 * count):
        if not (sent := box.take(NOW)):
            break
        box.mark_tried(sent, NOW)
        outcome = service.take([str(q.event["event_id"]) for q in sent], left.pop() if left else "success")
        assert box.settle(sent, outcome, 0.5) >= 0
        box.tell()
    good = {f"e{n}" for n in range(count)} - {f"e{n}" for n in bad}
    assert set(service.stored) == good
    assert sorted(refused) == sorted({f"e{n}" for n in range(count)} - good)
    counts = box.counts
    assert counts.accepted + counts.duplicates + counts.rejected == count
    assert (counts.waiting, counts.expired) == (0, 0)
    assert box.settled_before == box.put_so_far == count


@pytest.mark.parametrize(("delivered", "resent"), [(True, False), (False, True)])
def test_an_event_that_may_have_been_counted_is_not_resent_after_the_service_forgets_its_id(
    delivered: bool, resent: bool
) -> None:
    """After 48 hours, an event whose response was lost is reported as expired; one that never arrived is sent again."""
    refused: list[str] = []
    box = Outbox(Sending(), lambda e, field, message: refused.append(message))
    box.put(event(0))
    box.mark_tried(box.take(NOW), NOW)
    box.settle(box.take(NOW), UnreachableError("away", delivered=delivered), 0.0)
    later = box.take(NOW + REMEMBERED_S + 3600)
    box.tell()
    assert bool(later) == resent
    assert box.counts.expired == (not resent)
    assert len(refused) == (not resent)


def test_a_failed_connection_does_not_clear_an_earlier_attempt() -> None:
    """The first response was lost and the second attempt found no service: the event may still have been counted."""
    box = Outbox(Sending())
    box.put(event(0))
    for delivered in (True, False):
        batch = box.take(NOW)
        box.mark_tried(batch, NOW)
        box.settle(batch, UnreachableError("away", delivered=delivered), 0.0)
    assert box.take(NOW + REMEMBERED_S + 1) == []
    assert box.counts.expired == 1


def test_a_batch_is_no_larger_than_the_service_accepts() -> None:
    """Events of 62 bytes, each followed by a comma, and two brackets: two fit in 150 bytes, as 2 + 2 * 63 = 128."""
    box = Outbox(Sending(), max_bytes=150)
    for n in range(3):
        box.put(event(n))
    assert [len(q.body) for q in box.take(NOW)] == [62, 62]


def test_a_full_queue_accepts_no_more_events() -> None:
    box = Outbox(Sending(queue=1))
    box.put(event(0))
    with pytest.raises(QueueFull, match="1 of 1 events"):
        box.put(event(1))
    assert (len(box), box.counts.turned_away) == (1, 1)


def test_a_failing_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("in the callback")

    box = Outbox(Sending(), fails)
    box.put(event(0))
    box.settle(box.take(NOW), EventsAnswer(0, 0, (Rejected(0, None, "bad"),), ()), 0.0)
    box.tell()
    assert "on_refused failed for event e0" in caplog.text


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("3", 3.0), ("soon", None), ("Thu, 01 Jan 1970 00:00:10 GMT", 0.0)]
)
def test_retry_after_is_a_number_of_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds
