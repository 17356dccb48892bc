"""The memory of a nightly run depends on the shop and the training data, not on the length of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.night_memory import bytes_per_event, format_table, measure

pytestmark = pytest.mark.nights
MOST = 300


def test_memory_does_not_grow_with_a_log_ten_times_as_long(tmp_path: Path) -> None:
    """Logs of 21 and 210 days of the same shop, with the same number of training lists; each run is its own process.

    The shorter log is about as long as the part of a log that is processed at a time. With the log in memory, an event
    took 540 bytes, and the longer log 1.4 times the memory. What still grows is the history of users, up to a cap:
    1.09, 1.13 and 1.16 times in three runs.
    """
    small, large = (measure(tmp_path / str(days), days, users=800, items=600, most=MOST) for days in (21, 210))
    table = format_table(small, large)
    assert large.events > 9 * small.events, table
    assert large.highest < 1.25 * small.highest, table
    assert bytes_per_event(small, large) < 350, table
