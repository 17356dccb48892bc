"""The paper on scale says what its script computes, and the script computes what the paper says it does."""

from __future__ import annotations

import pytest

from tests import ROOT
from tests.bench import scale

PAPER = (ROOT / "docs" / "scale.md").read_text("utf-8")


@pytest.mark.parametrize("name", scale.tables())
def test_the_paper_has_each_table_as_it_is_computed(name: str) -> None:
    """Where this fails, run `python -m tests.bench.scale` and put the table into docs/scale.md."""
    assert scale.tables()[name] in PAPER


def test_the_arithmetic_is_what_it_says() -> None:
    s = scale.shop()
    assert s.peak_events == pytest.approx(1e9 / 86_400 * 3)
    assert s.peak_lists == pytest.approx(s.peak_events * 0.9 / 24)
    # 4 cores of asking, and each worker has what following leaves of half a core: 3.99 / .219 = 18.2
    asked = s.peak_lists * 2.49e-3 + s.peak_events * 21.5e-6
    assert s.workers == 19 == -int(-asked // (0.5 - s.peak_events * 8.1e-6))
    assert s.worker_gb == pytest.approx(2 * 1e8 * 303 / 1e9)
    assert s.users_gb == pytest.approx(1e8 * (68 + 31.4 * 20 + 31.6 * 120 + 8 * 30) / 1e9)
    assert s.stream_gb == pytest.approx(6 * 172)
    assert s.nodes == 32 == -int(-(s.users_gb + s.stream_gb + 84.9) // 50)
    assert s.night["trees"] == pytest.approx(5e7 * 500 * 0.55e-6 / 3600)
    assert s.night["k-means"] == pytest.approx(112 * 1000 / 3600)


def test_half_as_many_events_again_take_more_than_half_as_many_workers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker follows all of them: 1.5 x .28 of a core leaves it .08 of its half for requests."""
    monkeypatch.setitem(scale.ASSUMED, "events", (1.5e9, "events a day"))
    s = scale.shop()
    assert s.stream_gb == pytest.approx(1.5 * 6 * 172)
    assert s.workers > 1.5 * 19
