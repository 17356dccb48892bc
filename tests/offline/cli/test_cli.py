"""The command line: help that is quick, a round trip through it, and errors a person can mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from offline.cli import app, evaluation, terminal
from tests import ROOT

COMMANDS = (
    "simulate",
    "import",
    "validate",
    "nightly",
    "evaluate",
    "tune",
    "ablate",
    "staleness",
    "serve",
    "rank",
    "similar",
    "releases",
    "demo",
)
TINY = ("--items", "30", "--users", "20", "--days", "3", "--seed", "5", "--end", "2026-06-01")


@pytest.fixture(autouse=True)
def _redis_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the console script, run in this process."""
    monkeypatch.setattr(sys, "argv", ["shelfwise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, err = capfd.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_is_for(command: str) -> None:
    found = CliRunner().invoke(app.app, [command, "--help"])
    assert found.exit_code == 0
    assert "Usage" in found.output
    assert "--config" in found.output


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    """No more than typer and rich to print a page: in a fresh process, as a person does it."""
    code = (
        "import sys; from offline.cli import main; sys.argv = ['shelfwise', '--help']\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'lightgbm', 'numba', 'numpy', 'pyarrow', 'pydantic', 'redis'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert done.stdout.strip().endswith("loaded []")


def test_simulate_validate_and_import_follow_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is simulated passes every check, and imported again it is the same events."""
    code, out, _ = said(monkeypatch, capfd, "simulate", "-w", tmp_path / "one", *TINY)
    assert code == 0
    assert f"{tmp_path / 'one' / 'data'}: " in out, "a path is not broken across lines"
    data = tmp_path / "one" / "data"

    code, out, _ = said(monkeypatch, capfd, "validate", data, "-w", tmp_path / "none")
    assert code == 0
    assert "What happened to every row" in out
    assert not (tmp_path / "none").exists(), "validate writes nothing"

    code, out, _ = said(monkeypatch, capfd, "import", data, "-w", tmp_path / "two")
    assert code == 0
    assert f"The data set is in {tmp_path / 'two' / 'data'}; next: shelfwise nightly" in out
    before, after = (pq.read_table(tmp_path / w / "data" / "events.parquet") for w in ("one", "two"))
    assert after["event_id"].to_pylist() == before["event_id"].to_pylist()
    assert after["timestamp"].to_pylist() == before["timestamp"].to_pylist()


def test_the_same_sizes_seed_and_end_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for where in ("one", "two"):
        assert said(monkeypatch, capfd, "simulate", "-w", tmp_path / where, *TINY)[0] == 0
    for name in ("items.parquet", "events.parquet", "truth.parquet"):
        one, two = (tmp_path / where / "data" / name for where in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_flag_goes_over_the_file_and_the_files_end_over_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "shop.yaml"
    config.write_text(
        f"workspace: {tmp_path / 'w'}\nsimulate: {{items: 40, users: 20, days: 3, end: 2024-02-01T00:00:00Z}}\n"
    )
    assert said(monkeypatch, capfd, "simulate", "-c", config, "--items", "30")[0] == 0
    at = pq.read_table(tmp_path / "w" / "data" / "events.parquet")["timestamp"]
    assert at[-1].as_py().strftime("%Y-%m") == "2024-01"
    opening = pq.read_table(tmp_path / "w" / "data" / "items.parquet")
    assert 30 <= len(opening) < 40 + 3 * 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nightly"], "w/data/items.parquet: no such file; make it with `shelfwise import` or `shelfwise simulate`"),
        (["evaluate"], "w/data/items.parquet: no such file; make it with `shelfwise import` or `shelfwise simulate`"),
        (["rank"], "no release is live yet: run `shelfwise nightly`"),
        (["similar", "x"], "no release is live yet: run `shelfwise nightly`"),
        (["serve", "--as-of-data"], "no release is live yet: run `shelfwise nightly`"),
        (
            ["import"],
            "nothing to import: name a folder or file (`shelfwise import DIR`), or give --config a YAML file "
            "with an `import` section",
        ),
        (["import", "nowhere"], "nowhere: there is no such file or folder."),
        (
            ["simulate", "--items", "1"],
            "configuration: simulate.items is 1; expected a whole number >= 2 and <= "
            "1000000 (products on the opening day)",
        ),
        (["simulate", "--end", "tomorrow"], "configuration: simulate.end is 'tomorrowT00:00:00Z'; "),
        (["releases", "-c", "nope.yaml"], "nope.yaml: no such file; leave --config out to use the defaults"),
    ],
)
def test_what_a_person_can_mend_is_one_message_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    """On standard error, exit status 1, nothing on standard output, and no line broken in the middle of a path."""
    monkeypatch.chdir(tmp_path)
    code, out, err = said(monkeypatch, capfd, *arguments, "-w", "w")
    assert code == 1
    assert out == ""
    message = next(line for line in err.splitlines() if line.startswith("shelfwise: "))
    assert message.startswith(f"shelfwise: {expected}")
    assert "Traceback" not in err


def test_a_fault_in_the_config_is_one_line_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("sead: 1\nlists: {size: '[red]x[/red]'}\n")
    code, _, err = said(monkeypatch, capfd, "nightly", "-c", tmp_path / "c.yaml")
    assert code == 1
    assert "c.yaml: sead: no such key" in err
    assert "lists.size is '[red]x[/red]'; expected a whole number" in err, "what was held is printed as it is"


def test_a_redis_that_does_not_answer_is_said_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://:secret@{tmp_path / 'nobody.sock'}")
    code, _, err = said(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 1
    assert "shelfwise: Redis (the one REDIS_URL names) cannot be used: " in err
    assert "secret" not in err


@pytest.mark.parametrize("address", ["localhost:6379", "redis://:secret@host:secret/0", "http://:secret@host"])
def test_an_address_of_redis_that_is_none_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("REDIS_URL", address)
    code, _, err = said(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 1
    assert "shelfwise: REDIS_URL is no address of a Redis; expected redis://HOST:6379/0, " in err
    assert "secret" not in err


def test_an_unknown_option_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(monkeypatch, capfd, "rank", "--topk", "3")
    assert code == 2
    assert "No such option" in err


def test_there_are_no_releases_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 0
    assert "Releases in" in out


HOSTILE = "[red]Chair[/red] [/] \x1b[2J\x07[link=http://x]y"


def test_titles_are_printed_as_they_are_and_cannot_command_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Markup is text, and a control character a replacement, in cells, in a table's title and in a remark."""
    terminal.print_table(f"Like {HOSTILE}", ["title"], [[HOSTILE]])
    terminal.say(HOSTILE)
    out = capfd.readouterr().out
    assert out.count("[red]Chair[/red] [/] ") == 3
    assert out.count("[link=http://x]y") == 3
    assert "\x1b" not in out
    assert "\x07" not in out


def test_a_hostile_title_comes_through_validation_and_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A refused row's example shows the cell; brackets in it and in the folder's name are no markup."""
    folder = tmp_path / "[red]shop[/red]"
    folder.mkdir(parents=True)
    (folder / "items.csv").write_text("item_id,title\nA,[red]Chair[/red]\n")
    (folder / "events.csv").write_text(
        "event,user_id,item_id,timestamp\nclick,u,A,2024-01-01T00:00:00Z\n[/bold],u,A,2024-01-01T00:00:00Z\n"
    )
    code, out, err = said(monkeypatch, capfd, "validate", folder)
    assert code == 1, err
    assert "[/bold]" in out


def test_an_evaluation_of_one_person_prints_without_an_interval(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is none, so the report's JSON holds null."""
    path = tmp_path / "evaluation.json"
    path.write_text(
        '{"systems": {"ranker": {"all": {"lists": 3, "ndcg@10": 0.5}}},'
        ' "intervals": {"ranker": {"all": {"ndcg@10": [null, null]}}}}'
    )
    evaluation.print_evaluation(path)
    assert "0.5000" in capfd.readouterr().out


def test_output_can_be_piped_into_something_that_stops_reading(tmp_path: Path) -> None:
    """`shelfwise releases | true` ends without a traceback."""
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m offline.cli --help | true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert "Traceback" not in done.stderr
