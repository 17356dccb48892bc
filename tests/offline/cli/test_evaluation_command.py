"""`shelfwise evaluate`: a folder in, every number out, by the protocol its data calls for."""

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
    """A folder with lists that were shown."""
    folder = tmp_path_factory.mktemp("shown") / "data"
    simulate(SHOP, folder)
    return folder


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `amazon_scientific` is: reviews of which only the order is known. Taste: items of one parity."""
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


def said(
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
    """The run directories of a workspace; the lock beside them is a file."""
    return [p for p in (workspace / "runs").iterdir() if p.is_dir()]


def test_a_folder_is_evaluated_without_anything_set_up_or_left_behind(
    shown: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every system, slice and metric a number, its interval at the same place beside it; and a learning curve."""
    spare = tmp_path / "spare"
    spare.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spare))
    file = tmp_path / "found.json"
    more = ("--learning-curve", "--slice", "brand", "--slice", "position", "--report", tmp_path / "report")
    code, out, err = said(monkeypatch, capfd, "--data", shown, "--json", file, "--config", quick, *more)
    assert code == 0, err
    assert f"report: {tmp_path / 'report' / 'report.html'}" in out
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["evaluation.json", "report.html"]
    assert not list(spare.glob("shelfwise-*"))
    found: Any = json.loads(file.read_text("utf-8"))
    assert found["protocol"] == "time-split"
    assert {
        "best_possible",
        "random",
        "shown_order",
        "popularity",
        "recency_popularity",
        "item_click_rate",
        "own_history",
        "cooccurrence",
        "ease",
        "text_zero_shot",
        "text",
        "ranker",
    } == set(found["systems"])
    assert {"all", "warm_users"} <= set(found["systems"]["ranker"])
    for system, by_slice in found["systems"].items():
        for name, by_metric in by_slice.items():
            for metric, value in by_metric.items():
                if metric not in ("lists", "coverage@10"):
                    assert value is None or isinstance(value, float), (system, name, metric)
                    assert len(found["intervals"][system][name][metric]) == 2
    compared = {(c["a"], c["b"]) for c in found["comparisons"] if (c["metric"], c["slice"]) == ("ndcg@10", "all")}
    assert compared >= {("ranker", "item_click_rate"), ("text", "text_zero_shot")}
    assert {"difference", "low", "high"} <= set(found["comparisons"][0])
    parts = set(found["systems"]["ranker"])
    assert {name.split(":")[0] for name in parts if ":" in name} == {"category", "brand", "position"}
    assert set(found["small_slices"]) <= parts
    assert found["explanation"]["features"][0]["mean_abs"] > 0
    worth = found["off_policy"]["systems"]
    assert {"ranker", "shown_order", "best_possible"} <= set(worth)
    assert worth["best_possible"]["truth"] == max(w["truth"] for w in worth.values()) > 0
    sizes = [p["lists"] for p in found["learning_curve"]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == found["windows"]["ranker"]["lists"]
    # The same lists' values, whose mean is added up in another order.
    whole = found["systems"]["ranker"]["all"]["ndcg@10"]
    assert found["learning_curve"][-1]["ndcg@10"] == pytest.approx(whole, rel=1e-12)


@pytest.mark.slow
def test_asked_again_for_another_slice_only_the_evaluation_is_made_anew(
    shown: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The workspace keeps its run: the ranker's file is not touched, the slice is there, and a wrong one is refused."""
    asked = ("--config", quick, "-w", tmp_path / "w")
    assert said(monkeypatch, capfd, "--data", shown, *asked)[0] == 0
    (run,) = _runs(tmp_path / "w")
    before = (run / "ranker.txt").stat().st_mtime_ns
    assert said(monkeypatch, capfd, *asked, "--slice", "brand")[0] == 0
    assert _runs(tmp_path / "w") == [run]
    assert (run / "ranker.txt").stat().st_mtime_ns == before
    sliced = json.loads((run / "evaluation.json").read_text("utf-8"))
    assert sliced["asked"] == {"slices": ["brand"], "learning_curve": False}
    assert any(name.startswith("brand:") for name in sliced["systems"]["ranker"])
    code, _, err = said(monkeypatch, capfd, *asked, "--slice", "colour")
    assert code == 1
    assert "shelfwise: slice 'colour': no such column; items have item_id, title," in err


def test_where_only_the_order_is_known_every_users_last_event_is_the_test(
    ordered: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """All 40 users, nobody thinned out; each baseline orders the whole catalogue and none what the user had."""
    file, w = tmp_path / "found.json", tmp_path / "w"
    code, out, err = said(monkeypatch, capfd, "--data", ordered, "--json", file, "--config", quick, "-w", w)
    assert code == 0, err
    assert f"report: {w / 'runs'}" in out
    found: Any = json.loads(file.read_text("utf-8"))
    assert found["protocol"] == "leave-last-out"
    assert {name: part["lists"] for name, part in found["windows"].items() if name != "encoder"} == {
        "ranker": found["windows"]["ranker"]["lists"],
        "validation": USERS,
        "test": USERS,
    }
    assert {by["all"]["lists"] for by in found["systems"].values()} == {USERS}
    assert "new_items" in found["systems"]["ranker"]
    assert "repeats" not in found["systems"]["ranker"]
    (run,) = _runs(w)
    best = np.load(run / "baselines.npy")
    assert best.shape[0] == USERS
    held = best[:, 1] >= 0
    assert (held.sum(axis=1) == 30).all(), "the whole catalogue"
    assert found["systems"]["ease"]["all"]["ndcg@10"] > found["systems"]["random"]["all"]["ndcg@10"]


def test_lists_that_were_never_shown_are_not_given(
    ordered: Path, quick: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said(monkeypatch, capfd, "--data", ordered, "--config", quick, "--protocol", "given-lists")
    assert code == 1
    assert "shelfwise: no list was logged, only what people did: set lists.source to rebuilt, or to auto" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--protocol", "random"], "--protocol random: expected one of time-split, leave-last-out, given-lists"),
        (["--json", "nowhere/found.json"], "--json nowhere/found.json: there is no folder"),
        (["--data", "nowhere"], "nowhere: there is no such file or folder."),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_begun(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = said(monkeypatch, capfd, *arguments, "-w", "w")
    assert (code, out) == (1, "")
    assert f"shelfwise: {expected}" in err
    assert list(tmp_path.iterdir()) == []


def test_a_protocol_brings_what_goes_with_it_and_the_config_goes_over_it(ordered: Path, shown: Path) -> None:
    """Leave-last-out rebuilds lists of 300 unless the config says how many; a protocol in the config is kept."""
    plain = load(None)
    found = evaluation.with_protocol(plain, ordered, None)
    assert (found.windows.protocol, found.lists.source, found.lists.size) == ("leave-last-out", "rebuilt", 300)
    sized = evaluation.with_protocol(load(None, lists={"size": 50}), ordered, None)
    assert (sized.windows.protocol, sized.lists.size) == ("leave-last-out", 50)
    fixed = evaluation.with_protocol(load(None, windows={"protocol": "time-split"}), ordered, None)
    assert (fixed.windows.protocol, fixed.lists) == ("time-split", plain.lists)
    given = evaluation.with_protocol(plain, shown, "given-lists")
    assert (given.windows.protocol, given.lists.source) == ("given-lists", "logged")
    assert evaluation.with_protocol(plain, shown, None) == plain == evaluation.with_protocol(plain, None, None)
