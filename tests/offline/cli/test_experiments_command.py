"""The commands for experiments, on a planted log: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from offline.cli import terminal
from offline.cli.app import app
from offline.runtime import DataError, Failure
from tests.experiment_logs import acted, shown, write_log

CONFIG = """\
workspace: {workspace}
placements:
  home: {{}}
experiments:
  test:
    placements: [home]
    start: 2026-06-01T00:00Z
    end: 2026-06-15T00:00Z
    arms:
      control: {{}}
      new: {{rules: {{cap: [{{attribute: brand, most: 2}}]}}}}
"""
USERS = 400


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configurations with a log each. Every fourth user of the control clicks and every second of the arm; in the log
    `broken`, the arm has lost half of its users."""
    out = {}
    for name, users in (("good", USERS), ("broken", USERS // 2)):
        directory = tmp_path_factory.mktemp(name)
        arms = {"control": USERS, "new": users}
        ids = [(f"{arm}{k}", arm, k) for arm, n in arms.items() for k in range(n)]
        lists = [shown(user, arm, 48 * k / USERS) for user, arm, k in ids]
        every = {"control": 4, "new": 2}
        events = [acted(user, "click", 48 * k / USERS + 1) for user, arm, k in ids if k % every[arm] == 0]
        write_log(directory / "data", lists, events)
        out[name] = directory / "shop.yaml"
        out[name].write_text(CONFIG.format(workspace=directory), "utf-8")
    return out


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["experiments", *map(str, words)])


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no cell of a table is broken. The width of the console is that of its first import."""
    monkeypatch.setattr(terminal, "_out", Console(width=240))


def test_an_experiment_is_listed_stopped_and_resumed(configs: dict[str, Path]) -> None:
    """With a real Redis. What is not configured cannot be stopped by mistake."""
    config = ("--config", configs["good"])
    assert "control 50%, new 50%" in run("list", *config).stdout
    assert "test is stopped" in run("stop", "test", *config, "--by", "anna").stdout
    assert "stopped by anna" in run("list", *config).stdout
    assert "test runs again" in run("resume", "test", *config).stdout
    assert "test was not stopped" in run("resume", "test", *config).stdout
    assert "stopped by" not in run("list", *config).stdout
    assert "nothing was stopped" in str(run("stop", "tset", *config).exception)


def test_a_report_is_printed_and_written(configs: dict[str, Path], tmp_path: Path) -> None:
    """0.25 clicks per user against 0.5."""
    html, figures = tmp_path / "report.html", tmp_path / "report.json"
    options = ["--metric", "clicks", "--html", str(html), "--json", str(figures)]
    result = run("report", "test", "--config", configs["good"], *options)
    assert result.exit_code == 0, result.output
    assert "new is better than control: clicks per user +100.0% [" in result.stdout
    assert "clicks per list" in result.stdout
    written = json.loads(figures.read_text("utf-8"))
    assert (written["verdict"]["outcome"], written["metrics"][0]["metric"]) == ("better", "clicks")
    assert written["metrics"][0]["control"] == 0.25
    assert written["totals"]["new"]["clicks"] == USERS / 2
    assert "Experiment test" in html.read_text("utf-8")


def test_a_margin_that_is_not_configured_says_what_to_set(configs: dict[str, Path]) -> None:
    """The catalogue has an attribute `margin`, but `earnings` do not name it."""
    for command in ("report", "plan"):
        result = run(command, "test", "--config", configs["good"], "--metric", "margin")
        assert "no item has a known margin; set earnings.margin or earnings.cost" in str(result.exception)


def test_a_mismatch_comes_first_and_is_an_exit_status(configs: dict[str, Path]) -> None:
    result = run("report", "test", "--config", configs["broken"], "--metric", "clicks")
    assert result.exit_code == 1
    assert result.stdout.index("SAMPLE RATIO MISMATCH") < result.stdout.index("Differences")


def test_shipping_a_setting_prints_it_and_changes_nothing(configs: dict[str, Path]) -> None:
    before = configs["good"].read_text("utf-8")
    result = run("ship", "test", "--config", configs["good"], "--metric", "clicks")
    assert result.exit_code == 0, result.output
    assert "placements:\n  home:\n    rules:\n      cap:\n      - attribute: brand\n        most: 2" in result.stdout
    assert configs["good"].read_text("utf-8") == before


def test_shipping_is_refused_with_a_mismatch(configs: dict[str, Path]) -> None:
    result = run("ship", "test", "--config", configs["broken"], "--metric", "clicks")
    assert isinstance(result.exception, Failure)
    assert "no arm to ship" in str(result.exception)
    forced = run("ship", "test", "--config", configs["broken"], "--metric", "clicks", "--arm", "new", "--force")
    assert "forced: The sample ratio does not fit" in forced.stdout


def test_a_plan_says_how_long_it_takes(configs: dict[str, Path]) -> None:
    """The log is of two days."""
    options = ["--metric", "clicks", "--days", "2", "--effect", "0.9"]
    result = run("plan", "test", "--config", configs["good"], *options)
    assert result.exit_code == 0, result.output
    assert "an effect of 90.0%, looking every day: " in result.stdout
    tiny = run("plan", "test", "--config", configs["good"], "--metric", "clicks", "--days", "2", "--effect", "0.001")
    assert "one look at the end: more than the" in tiny.stdout


def test_an_unknown_experiment_names_the_known_ones(configs: dict[str, Path]) -> None:
    result = run("report", "other", "--config", configs["good"])
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "no experiment 'other'; there are test"
