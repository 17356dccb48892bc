"""docs/scale.md shows the tables that its script computes, and the script computes what the page describes."""

from __future__ import annotations

import pytest

from tests import ROOT
from tests.bench import scale

PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")


@pytest.mark.parametrize("name", scale.tables())
def test_the_page_has_each_table_as_computed(name: str) -> None:
    """If this fails, run `python -m tests.bench.scale` and copy the table to docs/scale.md."""
    assert scale.tables()[name] in PAGE


def test_the_arithmetic_of_the_page() -> None:
    s = scale.shop()
    assert s.peak_events == pytest.approx(1e9 / 86_400 * 3)
    assert s.peak_lists == pytest.approx(s.peak_events * 0.9 / 24)
    # Requests need 4 cores. Each worker has half a core, less what following events takes: 3.99 / .219 = 18.2
    request_cores = s.peak_lists * 2.49e-3 + s.peak_events * 21.5e-6
    assert s.workers == 19 == -int(-request_cores // (0.5 - s.peak_events * 8.1e-6))
    assert s.worker_gb == pytest.approx(2 * 1e8 * 303 / 1e9)
    assert s.users_gb == pytest.approx(1e8 * (204 + 31.4 * 20 + 31.6 * 120 + 8 * 30) / 1e9)
    assert s.stream_gb == pytest.approx(6 * 172)
    assert s.nodes == 33 == -int(-(s.users_gb + s.stream_gb + 84.9) // 50)
    assert s.night["trees"] == pytest.approx(5e7 * 500 * 0.55e-6 / 3600)
    assert s.night["k-means"] == pytest.approx(112 * 1000 / 3600)


def test_1_5_times_the_events_need_more_than_1_5_times_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker follows all events: 1.5 x .28 of a core leaves .08 of its half core for requests."""
    monkeypatch.setitem(scale.ASSUMED, "events", (1.5e9, "events per day"))
    s = scale.shop()
    assert s.stream_gb == pytest.approx(1.5 * 6 * 172)
    assert s.workers > 1.5 * 19
