"""Visits of the simulated shop: what is refused. tests/project/test_docs.py plays days against a service."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from offline.config.simulation import SimulateConfig
from offline.runtime import DataError
from offline.simulation.visits import visit

SHOP = SimulateConfig.model_validate({"items": 30, "users": 40, "days": 2, "ahead": 3, "list_length": 10})


def test_a_service_that_is_away_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(DataError, match=rf"^{address}: cannot be reached .*start it with `shelfwise serve`"):
        visit(SHOP, address, 1, tmp_path / "clock", "home")


def test_days_beyond_the_last_one_are_refused(tmp_path: Path) -> None:
    """The shop has three days ahead. A clock in the middle of the second leaves one."""
    with pytest.raises(DataError, match=r"simulate.ahead is 3: the simulated shop has 3 days left, not 4"):
        visit(SHOP, "http://localhost:1", 4, tmp_path / "clock", "home")
    clock = tmp_path / "clock"
    clock.write_text(repr(SHOP.start.timestamp() + 3.5 * 86400), "ascii")
    with pytest.raises(DataError, match=r"has 1 days left, not 2"):
        visit(SHOP, "http://localhost:1", 2, clock, "home")
