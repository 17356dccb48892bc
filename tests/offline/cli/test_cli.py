"""The command line: fast help, a round trip of commands, and error messages without a traceback."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from offline.cli import app, evaluation, night, terminal
from offline.cli.demo import write_shop
from offline.config import load
from tests import ROOT
from text_encoder.errors import EncoderError

COMMANDS = sorted(typer.main.get_command(app.app).commands)  # type: ignore[attr-defined]
TINY = ("--items", "30", "--users", "20", "--days", "3", "--seed", "5", "--end", "2026-06-01")


@pytest.fixture(autouse=True)
def _without_redis_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)


def run_cli(
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
def test_every_command_has_help(command: str) -> None:
    found = CliRunner().invoke(app.app, [command, "--help"])
    assert found.exit_code == 0
    assert "Usage" in found.output


def test_the_version_is_that_of_the_package() -> None:
    found = CliRunner().invoke(app.app, ["--version"])
    assert (found.exit_code, found.output) == (0, f"shelfwise {importlib.metadata.version('shelfwise')}\n")


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    """Printing help loads only typer and rich. Checked in a new process."""
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


def test_simulated_data_can_be_validated_and_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Simulated data pass every check, and importing them gives the same events."""
    code, out, _ = run_cli(monkeypatch, capfd, "simulate", "-w", tmp_path / "one", *TINY)
    assert code == 0
    assert f"{tmp_path / 'one' / 'data'}: " in out, "a path is not broken across lines"
    assert "9 shoppers" in out
    assert "11 of 20 shoppers never visited in 3 days" in out
    data = tmp_path / "one" / "data"

    code, out, _ = run_cli(monkeypatch, capfd, "validate", data, "-w", tmp_path / "none")
    assert code == 0
    assert "Rows by outcome" in out
    assert not (tmp_path / "none").exists(), "validate writes nothing"

    code, out, _ = run_cli(monkeypatch, capfd, "import", data, "-w", tmp_path / "two")
    assert code == 0
    assert f"The data set is in {tmp_path / 'two' / 'data'}; next: shelfwise nightly" in out
    before, after = (pq.read_table(tmp_path / w / "data" / "events.parquet") for w in ("one", "two"))
    assert after["event_id"].to_pylist() == before["event_id"].to_pylist()
    assert after["timestamp"].to_pylist() == before["timestamp"].to_pylist()


def test_the_same_sizes_seed_and_end_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for where in ("one", "two"):
        assert run_cli(monkeypatch, capfd, "simulate", "-w", tmp_path / where, *TINY)[0] == 0
    for name in ("items.parquet", "events.parquet", "truth.parquet"):
        one, two = (tmp_path / where / "data" / name for where in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_an_option_overrides_the_config_and_the_configured_end_overrides_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "shop.yaml"
    config.write_text(
        f"workspace: {tmp_path / 'w'}\nsimulate: {{items: 40, users: 20, days: 3, end: 2024-02-01T00:00:00Z}}\n"
    )
    assert run_cli(monkeypatch, capfd, "simulate", "-c", config, "--items", "30")[0] == 0
    at = pq.read_table(tmp_path / "w" / "data" / "events.parquet")["timestamp"]
    assert at[-1].as_py().strftime("%Y-%m") == "2024-01"
    opening = pq.read_table(tmp_path / "w" / "data" / "items.parquet")
    assert 30 <= len(opening) < 40 + 3 * 4


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nightly"], "w/data/items.parquet: no such file; create it with `shelfwise import` or `shelfwise simulate`"),
        (["evaluate"], "w/data/items.parquet: no such file; create it with `shelfwise import` or `shelfwise simulate`"),
        (["rank"], "no release is live yet: run `shelfwise nightly`"),
        (["similar", "x"], "no release is live yet: run `shelfwise nightly`"),
        (["serve", "--as-of-data"], "no release is live yet: run `shelfwise nightly`"),
        (
            ["import"],
            "nothing to import: pass a folder or file (`shelfwise import DIR`), or a --config file with an "
            "`import` section",
        ),
        (["import", "nowhere"], "nowhere: there is no such file or folder."),
        (
            ["simulate", "--items", "1"],
            "configuration: simulate.items is 1; expected a whole number >= 2 and <= "
            "1000000 (Products on the first day.)",
        ),
        (["simulate", "--end", "tomorrow"], "configuration: simulate.end is 'tomorrowT00:00:00Z'; "),
        (["releases", "-c", "nope.yaml"], "nope.yaml: no such file; leave --config out to use the defaults"),
    ],
)
def test_an_expected_error_is_one_message_without_a_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    """On standard error, with exit status 1, nothing on standard output, and no line break within a path."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(monkeypatch, capfd, *arguments, "-w", "w")
    assert code == 1
    assert out == ""
    message = next(line for line in err.splitlines() if line.startswith("shelfwise: "))
    assert message.startswith(f"shelfwise: {expected}")
    assert "Traceback" not in err


def test_errors_in_the_config_are_one_line_per_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("sead: 1\nlists: {size: '[red]x[/red]'}\n")
    code, _, err = run_cli(monkeypatch, capfd, "nightly", "-c", tmp_path / "c.yaml")
    assert code == 1
    assert "c.yaml: sead: no such key" in err
    assert "lists.size is '[red]x[/red]'; expected a whole number" in err, "the value is printed as it is"


def test_the_error_for_an_unreachable_redis_has_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_URL", f"unix://:secret@{tmp_path / 'nobody.sock'}")
    code, _, err = run_cli(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 1
    assert "shelfwise: Redis (from REDIS_URL) cannot be used: " in err
    assert "secret" not in err


@pytest.mark.parametrize("address", ["localhost:6379", "redis://:secret@host:secret/0", "http://:secret@host"])
def test_an_invalid_redis_address_is_an_error_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("REDIS_URL", address)
    code, _, err = run_cli(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 1
    assert "shelfwise: REDIS_URL is not a valid address of Redis: " in err
    assert "expected redis://HOST:6379/0, " in err
    assert "secret" not in err


def test_an_unknown_option_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "rank", "--topk", "3")
    assert code == 2
    assert "No such option" in err


def test_an_empty_list_of_releases_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_cli(monkeypatch, capfd, "releases", "-w", tmp_path / "w")
    assert code == 0
    assert "Releases in" in out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/data/w"), "/data/w: the file system is read-only; "),
        (PermissionError(errno.EACCES, "Permission denied", "/data/w"), "/data/w: permission denied; "),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"),
            "a.csv: no such file or directory; check",
        ),
        (FileNotFoundError("items.parquet: no such file; import some"), "items.parquet: no such file; import some"),
        (EncoderError("folder: weights are pickled"), "folder: weights are pickled"),
    ],
)
def test_what_a_user_can_correct_is_a_message(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A workspace that cannot be written to, and a model that cannot be used."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    code, _, err = run_cli(monkeypatch, capfd)
    assert (code, "Traceback" in err) == (1, False)
    assert err.startswith(f"shelfwise: {message}")


def test_an_interrupted_night_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(night, "run_night", interrupt)
    code, out, err = run_cli(monkeypatch, capfd, "nightly", "-w", tmp_path)
    assert (code, "Traceback" in err) == (130, False)
    assert "run the same command again to continue" in out


HOSTILE = "[red]Chair[/red] [/] \x1b[2J\x07[link=http://x]y"


def test_titles_are_printed_as_text_and_cannot_control_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Markup is printed as text, and control characters are replaced, in cells, table titles and lines."""
    terminal.print_table(f"Like {HOSTILE}", ["title"], [[HOSTILE]])
    terminal.say(HOSTILE)
    out = capfd.readouterr().out
    assert out.count("[red]Chair[/red] [/] ") == 3
    assert out.count("[link=http://x]y") == 3
    assert "\x1b" not in out
    assert "\x07" not in out


def test_validation_prints_hostile_values_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The example of a rejected row shows its cell; brackets in it and in the folder name are not markup."""
    folder = tmp_path / "[red]shop[/red]"
    folder.mkdir(parents=True)
    (folder / "items.csv").write_text("item_id,title\nA,[red]Chair[/red]\n")
    (folder / "events.csv").write_text(
        "event,user_id,item_id,timestamp\nclick,u,A,2024-01-01T00:00:00Z\n[/bold],u,A,2024-01-01T00:00:00Z\n"
    )
    code, out, err = run_cli(monkeypatch, capfd, "validate", folder)
    assert code == 1, err
    assert "[/bold]" in out


def test_an_evaluation_of_a_single_user_prints_without_an_interval(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without an interval, the JSON has null for its ends."""
    path = tmp_path / "evaluation.json"
    path.write_text(
        '{"systems": {"ranker": {"all": {"lists": 3, "ndcg@10": 0.5}}},'
        ' "intervals": {"ranker": {"all": {"ndcg@10": [null, null]}}}}'
    )
    evaluation.print_evaluation(path)
    assert "0.5000" in capfd.readouterr().out


def test_a_closed_pipe_gives_no_traceback(tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_suggestion_for_a_small_file_never_aborts_at_exit(tmp_path: Path) -> None:
    """Threads that still read when the interpreter ends would abort it in some of the runs."""
    (tmp_path / "two.csv").write_text("user,sku,when\nu,a,2026-01-30\nv,b,2026-01-31\n")
    command = [sys.executable, "-m", "offline.cli", "import", str(tmp_path / "two.csv"), "--suggest"]
    for _ in range(10):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, "terminate" in done.stderr) == (0, False), done.stderr
        assert done.stdout.startswith("# Column mapping")


def test_the_demo_writes_its_configuration_once(tmp_path: Path) -> None:
    """Its placements are pages of the storefront. A file that was changed is kept."""
    path = write_shop(tmp_path / "demo")
    assert set(load(path).placements) == {"product", "cart", "search"}
    path.write_text("seed: 3\n", "utf-8")
    assert load(write_shop(tmp_path / "demo")).seed == 3
