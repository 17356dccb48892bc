"""`shelfwise evaluate`: evaluates a folder by the protocol that fits its data, and writes all metrics."""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from offline.cli import app, evaluation
from offline.config.configuration import load
from offline.config.simulation import SimulateConfig
from offline.simulation.dataset import simulate

SHOP = SimulateConfig(items=60, users=60, days=8, seed=3, end=datetime(2024, 6, 1, tzinfo=UTC), explore=0.5)
QUICK = "encoder: {mode: frozen, max_tokens: 16}\nranker: {trees: 8, min_data_in_leaf: 10}\n"
USERS = 40


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logged lists."""
    folder = tmp_path_factory.mktemp("shown") / "data"
    simulate(SHOP, folder)
    return folder


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like `amazon_scientific`: reviews of which only the order is known.

    Each user only likes items of one parity.
    """
    folder = tmp_path_factory.mktemp("ordered")
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": f"u{u:02d}", "item_id": f"i{i:02d}", "event": "review", "timestamp": None}
        for u in range(USERS)
        for i in rng.permutation(np.arange(u % 2, 30, 2))[: 5 + u % 3].tolist()
    ]
    events = pd.DataFrame(rows).assign(seq=range(len(rows)))
    events["timestamp"] = pd.to_datetime(events["timestamp"], utc=True)
    events.to_parquet(folder / "events.parquet")
    titles = [f"{'red wool' if i % 2 else 'blue steel'} thing {i}" for i in range(30)]
    pd.DataFrame({"item_id": [f"i{i:02d}" for i in range(30)], "title": titles}).to_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    (tmp_path / "quick.yaml").write_text(QUICK)
    return tmp_path / "quick.yaml"


def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `shelfwise evaluate`, run in this process."""
    monkeypatch.setattr(sys, "argv", ["shelfwise", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        app.main()
    out, err = capfd.readouterr()
    code = ended.value.code
    return (code if isinstance(code, int) else 0), out, err


def _runs(workspace: Path) -> list[Path]:
    """The run directories of a workspace, without the lock file."""
    return [p for p in (workspace / "runs").iterdir() if p.is_dir()]


def test_a_folder_is_evaluated_without_setup_and_leaves_nothing_behind(
    shown: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every system has every metric by slice, each with an interval at the same key; and there is a learning curve."""
    temporary = tmp_path / "spare"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    file = tmp_path / "found.json"
    options = ("--learning-curve", "--slice", "brand", "--slice", "position", "--report", tmp_path / "report")
    code, out, err = run_cli(monkeypatch, capfd, "--data", shown, "--json", file, "--config", quick, *options)
    assert code == 0, err
    assert f"report: {tmp_path / 'report' / 'report.html'}" in out
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["evaluation.json", "report.html"]
    assert not list(temporary.glob("shelfwise-*"))
    evaluation: Any = json.loads(file.read_text("utf-8"))
    assert evaluation["protocol"] == "time-split"
    assert {
        "best_possible",
        "random",
        "shown_order",
        "popularity",
        "recency_popularity",
        "item_click_rate",
        "own_history",
        "cooccurrence",
        "sessions",
        "ease",
        "text_zero_shot",
        "text",
        "blend",
        "ranker",
    } == set(evaluation["systems"])
    assert {"all", "warm_users"} <= set(evaluation["systems"]["ranker"])
    for system, by_slice in evaluation["systems"].items():
        for name, by_metric in by_slice.items():
            for metric, value in by_metric.items():
                if metric not in ("lists", "coverage@10"):
                    assert value is None or isinstance(value, float), (system, name, metric)
                    assert len(evaluation["intervals"][system][name][metric]) == 2
    compared = {(c["a"], c["b"]) for c in evaluation["comparisons"] if (c["metric"], c["slice"]) == ("ndcg@10", "all")}
    assert compared >= {("ranker", "item_click_rate"), ("text", "text_zero_shot")}
    assert {"difference", "low", "high"} <= set(evaluation["comparisons"][0])
    all_slices = set(evaluation["systems"]["ranker"])
    assert {name.split(":")[0] for name in all_slices if ":" in name} == {"category", "brand", "position"}
    assert set(evaluation["small_slices"]) <= all_slices
    assert evaluation["explanation"]["features"][0]["mean_abs"] > 0
    estimates = evaluation["off_policy"]["systems"]
    assert {"ranker", "shown_order", "best_possible"} <= set(estimates)
    assert estimates["best_possible"]["truth"] == max(w["truth"] for w in estimates.values()) > 0
    sizes = [p["lists"] for p in evaluation["learning_curve"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == evaluation["windows"]["ranker"]["lists"]
    # Equal up to rounding, because the mean is summed in another order.
    ndcg = evaluation["systems"]["ranker"]["all"]["ndcg@10"]
    assert evaluation["learning_curve"][-1]["ndcg@10"] == pytest.approx(ndcg, rel=1e-12)


@pytest.mark.slow
def test_another_slice_only_repeats_the_evaluation(
    shown: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The run is reused, whatever its budget: the slice is added, and an unknown slice is refused."""
    options = ("--config", quick, "-w", tmp_path / "w")
    assert run_cli(monkeypatch, capfd, "--data", shown, *options, "--budget", "45s")[0] == 0
    (run,) = _runs(tmp_path / "w")
    before = (run / "ranker.txt").stat().st_mtime_ns
    code, out, _ = run_cli(monkeypatch, capfd, *options, "--slice", "brand")
    assert (code, "using the last nightly run, which had an encoder budget of 45 s" in out) == (0, True)
    assert _runs(tmp_path / "w") == [run]
    assert (run / "ranker.txt").stat().st_mtime_ns == before
    sliced = json.loads((run / "evaluation.json").read_text("utf-8"))
    assert sliced["options"] == {"slices": ["brand"], "learning_curve": False, "runs": {}}
    assert any(name.startswith("brand:") for name in sliced["systems"]["ranker"])
    code, _, err = run_cli(monkeypatch, capfd, *options, "--slice", "colour")
    assert code == 1
    assert "shelfwise: slice 'colour': no such column; items have item_id, title," in err


def test_data_with_only_an_order_are_tested_on_each_users_last_event(
    ordered: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All 40 users are tested, and the baselines rank the whole catalogue."""
    file, w = tmp_path / "found.json", tmp_path / "w"
    code, out, err = run_cli(monkeypatch, capfd, "--data", ordered, "--json", file, "--config", quick, "-w", w)
    assert code == 0, err
    assert f"report: {w / 'runs'}" in out
    evaluation: Any = json.loads(file.read_text("utf-8"))
    assert evaluation["protocol"] == "leave-last-out"
    assert {name: part["lists"] for name, part in evaluation["windows"].items() if name != "encoder"} == {
        "ranker": evaluation["windows"]["ranker"]["lists"],
        "validation": USERS,
        "test": USERS,
    }
    assert {by["all"]["lists"] for by in evaluation["systems"].values()} == {USERS}
    assert "new_items" in evaluation["systems"]["ranker"]
    assert "repeats" not in evaluation["systems"]["ranker"]
    (run,) = _runs(w)
    best = np.load(run / "baselines.npy")
    assert best.shape[0] == USERS
    ranked = best[:, 1] >= 0
    assert (ranked.sum(axis=1) == 30).all(), "the whole catalogue"
    assert evaluation["systems"]["ease"]["all"]["ndcg@10"] > evaluation["systems"]["random"]["all"]["ndcg@10"]


def test_given_lists_needs_logged_lists(
    ordered: Path, quick: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_cli(monkeypatch, capfd, "--data", ordered, "--config", quick, "--protocol", "given-lists")
    assert code == 1
    assert "shelfwise: the log has no lists, only user actions; set lists.source to rebuilt or auto" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--protocol", "random"], "--protocol random: expected one of time-split, leave-last-out, given-lists"),
        (["--json", "nowhere/found.json"], "--json nowhere/found.json: no such folder: "),
        (["--data", "nowhere"], "nowhere: there is no such file or folder."),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_cli(monkeypatch, capfd, *arguments, "-w", "w")
    assert (code, out) == (1, "")
    assert f"shelfwise: {expected}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_protocol_sets_its_list_settings_unless_the_config_does(ordered: Path, shown: Path) -> None:
    """Leave-last-out rebuilds lists of 300 unless the config sets a size; a protocol in the config is kept."""
    defaults = load(None)
    changed = evaluation.with_protocol(defaults, ordered, None)
    assert (changed.windows.protocol, changed.lists.source, changed.lists.size) == ("leave-last-out", "rebuilt", 300)
    sized = evaluation.with_protocol(load(None, lists={"size": 50}), ordered, None)
    assert (sized.windows.protocol, sized.lists.size) == ("leave-last-out", 50)
    fixed = evaluation.with_protocol(load(None, windows={"protocol": "time-split"}), ordered, None)
    assert (fixed.windows.protocol, fixed.lists) == ("time-split", defaults.lists)
    given = evaluation.with_protocol(defaults, shown, "given-lists")
    assert (given.windows.protocol, given.lists.source) == ("given-lists", "logged")
    assert evaluation.with_protocol(defaults, shown, None) == defaults == evaluation.with_protocol(defaults, None, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.csv", "no such file"), ("popularity.csv", "a system named 'popularity' exists already; rename the file")],
)
def test_a_run_needs_a_file_and_a_name_of_its_own(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "popularity.csv").touch()
    code, _, err = run_cli(monkeypatch, capfd, "-w", tmp_path / "w", "--run", tmp_path / name)
    assert code == 1
    assert f"--run {tmp_path / name}: {message}" in err
