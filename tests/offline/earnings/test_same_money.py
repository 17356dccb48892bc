"""Reports of experiments and the tables of earnings agree on what purchases brought."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from offline.config import EarningsConfig
from offline.data import LogFiles
from offline.experiments import Design, Prices, Window, read
from tests.offline.earnings.logs import DAY, PRICES, START, Log, settings_of

ARMS = ("held", "ranked")


@pytest.mark.parametrize("value", ["amount", "quantity", "ignored"])
def test_purchases_revenue_and_margin_are_the_same_in_both(tmp_path: Path, value: str) -> None:
    """All purchases of four exposed users are in the window, so both count them all: every item, also one that is not
    in the catalogue, with every kind of value, also of returns."""
    log = Log()
    for k in range(4):
        log.serve(0, f"q{k}", f"u{k}", ["a"], arms={"trial": ARMS[k % 2]})
    for n, (item, paid) in enumerate(product([*PRICES, "other"], [None, 0.0, 1.0, 3.0, 25.0, -1.0, -20.0])):
        log.event(10 + n, "purchase", f"u{n % 4}", item, value=paid)
    config = EarningsConfig.model_validate({"value": value, "margin": "margin"})
    shop = log.earnings(tmp_path, settings_of()._replace(earnings=config), margin=[4.0, 5.0, None, 1.0])["shop"]
    design = Design("trial", ARMS, (1.0, 1.0), start=START)
    found = read(LogFiles.of(tmp_path), design, Window(DAY), Prices.of(tmp_path, {}, config))
    assert found.moments is not None
    for figure in ("purchases", "revenue", "margin"):
        assert found.moments.totals(figure)[-1].sum() == pytest.approx(shop["total"][figure]), figure
    unknown = {name: shop["total"][f"without_{name}"] for name in ("revenue", "margin")}
    assert found.counts == {f"purchases without a known {name}": n for name, n in unknown.items()} | {"returns": 10}
