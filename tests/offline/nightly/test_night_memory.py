"""The memory of a night: bounded by the shop and by what is learnt from, whatever the length of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.night_memory import bytes_an_event, measure, said

pytestmark = pytest.mark.nights
MOST = 300


def test_a_log_ten_times_as_long_takes_a_night_no_more_memory(tmp_path: Path) -> None:
    """21 and 210 days of the same shop, as many lists to learn from: every step, each night a process of its own.

    The shorter log is about as long as the part of a log that is worked on at once. An event in memory took 540 bytes,
    or 1.4 times the memory; what grows now is what is known of a shopper, up to a cap: 1.09, 1.13 and 1.16 times in
    three runs.
    """
    small, large = (measure(tmp_path / str(days), days, users=800, items=600, most=MOST) for days in (21, 210))
    table = said(small, large)
    assert large.events > 9 * small.events, table
    assert large.highest < 1.25 * small.highest, table
    assert bytes_an_event(small, large) < 350, table
