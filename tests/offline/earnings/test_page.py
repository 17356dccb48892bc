"""The page of earnings as a file, the file that the service reads, and the command that makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from offline.cli.app import app
from offline.earnings import amount, publish, write
from serving.release import read_earnings
from tests.offline.earnings.logs import DAY, Log
from tests.offline.earnings.test_holdouts import settings, shown

HOSTILE = "<img src=x onerror=window.hacked=1>"


def planted() -> Log:
    """Twelve users over four days; treated ones buy for 20 more. One list has a hostile placement."""
    log = Log()
    for k in range(12):
        for day in range(4):
            arm = "ranked" if k % 2 else "held"
            shown(log, day * DAY + k, f"u{k}", arm, ["home", "cart"][day % 2])
            log.event(day * DAY + 100 + k, "purchase", f"u{k}", "a", value=10.0 + k + 20.0 * (arm == "ranked"))
    return log.show(0, "x", "z", ["a"], HOSTILE)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return planted().earnings(tmp_path_factory.mktemp("earnings"), settings()._replace(currency="EUR"))


def test_the_page_has_no_scripts_and_shows_names_as_text(tables: dict[str, Any], tmp_path: Path) -> None:
    html = write(tables, tmp_path).read_text("utf-8")
    assert "<script" not in html
    assert HOSTILE not in html
    assert "&lt;img src=x" in html
    assert "http" not in html.replace("http-equiv", "")


def test_the_page_keeps_the_two_figures_apart_and_says_what_each_is(tables: dict[str, Any], tmp_path: Path) -> None:
    """Of six treated users, each bought four times for 20 more than the held, and 1 more for being the next number."""
    html = " ".join(write(tables, tmp_path).read_text("utf-8").split())
    incremental, last_touch = html.split("<h2>Last touch</h2>")
    assert f"ranked: +{6 * 4 * (20 + 1):.2f} EUR revenue" in incremental
    assert "because</em> of the lists" in incremental
    assert "after</em> a list had shown it" in incremental
    assert f"Lists are credited with {4 * sum(10 + k + 20 * (k % 2) for k in range(12)):,} EUR" in last_touch
    assert "incremental revenue so far" not in last_touch


def test_the_same_tables_give_the_same_bytes(tables: dict[str, Any], tmp_path: Path) -> None:
    one, other = (write(tables, tmp_path / name).read_bytes() for name in ("one", "other"))
    assert one == other


def test_the_service_reads_what_was_published(tables: dict[str, Any], tmp_path: Path) -> None:
    assert read_earnings(tmp_path) is None
    publish(tables, tmp_path)
    assert json.loads(read_earnings(tmp_path) or b"") == tables


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.00"), (-3.5, "−3.50"), (999.994, "999.99"), (1234.5, "1,234"), (2.5e7, "25,000,000")],
)
def test_an_amount_has_no_cents_from_a_thousand_on(value: float | None, text: str) -> None:
    assert amount(value) == text


def test_the_command_writes_the_page_and_the_file_of_the_service(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    planted().write(data)
    config = tmp_path / "shop.yaml"
    config.write_text(
        "earnings: {value: amount}\nserving: {currency: EUR}\n"
        "experiments: {trial: {arms: {ranked: {}, held: {order: popularity}}}}\n"
    )
    result = CliRunner().invoke(app, ["earnings", "-c", str(config), "-w", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "trial, ranked: incremental revenue +504.00" in result.output
    assert "home" in result.output
    assert (tmp_path / "earnings" / "report.html").is_file()
    assert json.loads((tmp_path / "releases" / "earnings.json").read_text())["currency"] == "EUR"


def test_without_a_data_set_the_command_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it with `shelfwise import`"):
        CliRunner().invoke(app, ["earnings", "-w", str(tmp_path)], catch_exceptions=False)
