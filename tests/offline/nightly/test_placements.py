"""A nightly run of a shop with placements: a slice of the report for each, and the placement as a feature."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from serving.release import load_release

pytestmark = pytest.mark.slow
SHOP = SimulateConfig(items=100, users=300, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))
NAMES = ("home", "<i>cart", "retired")
"""Of these, `retired` is not configured."""


def place(request_id: str) -> str | None:
    """The placement of a list; every fourth has none."""
    return [*NAMES, None][int(request_id[1:]) % 4]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated log whose impressions have placements."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    path = workspace / "data/events.parquet"
    events = pq.read_table(path)
    shown = zip(events["event"].to_pylist(), events["request_id"].to_pylist(), strict=True)
    placements = [place(request) if kind == "impression" else "clicked" for kind, request in shown]
    pq.write_table(events.append_column("placement", pa.array(placements, pa.string())), path)
    return workspace


def config(workspace: Path, **more: Any) -> Config:
    return load(
        None,
        workspace=workspace,
        ranker={"trees": 20, "min_data_in_leaf": 20},
        encoder={"mode": "frozen", "refreshes": 0, "max_tokens": 16},
        **more,
    )


@pytest.fixture(scope="module")
def night(workspace: Path) -> Night:
    """A finished run with two placements, and the placement as a feature."""
    column = {"type": "category", "per": "request", "values": ["home", "<i>cart"]}
    configured = config(
        workspace, placements={"home": {}, "<i>cart": {}, "unused": {}}, features={"request": {"placement": column}}
    )
    Night(configured, None)()
    return Night(configured, None)


def evaluation(night: Night) -> dict[str, Any]:
    found: dict[str, Any] = night.artefacts.json("evaluation.json")
    return found


def test_the_report_has_a_slice_for_each_placement(night: Night) -> None:
    """Their lists add up to those of the slice of all, and names are escaped in the page."""
    by_slice = evaluation(night)["systems"]["ranker"]
    counts = {name: by["lists"] for name, by in by_slice.items() if name.startswith("placement:")}
    assert set(counts) == {"placement:home", "placement:<i>cart", "placement:(other)", "placement:(none)"}
    assert min(counts.values()) > 0
    assert sum(counts.values()) == by_slice["all"]["lists"]
    page = (night.run.directory / "report.html").read_text("utf-8")
    assert "placement:home" in page
    assert "<i>cart" not in page


def test_rows_have_the_placement_of_their_list(night: Night) -> None:
    a = night.artefacts
    column = [f.name for f in a.replay.features].index("request_placement")
    code = {"home": 0.0, "<i>cart": 1.0, "retired": 2.0, None: np.nan}
    expected = [code[place(str(a.lists.request_ids[g]))] for g in a.lists.group.tolist()]
    np.testing.assert_array_equal(a.array("rows.npy")[:, column], np.array(expected, np.float32))
    (declared,) = load_release(a.release_path).items.columns
    assert (declared.name, declared.values) == ("placement", ("home", "<i>cart"))


def test_other_placements_repeat_the_evaluation_and_nothing_else(night: Night, workspace: Path) -> None:
    """Names alone do not change the run. Without placements, the evaluation is that of a version without them."""
    changed = night.inputs.config.model_copy(update={"placements": {}})
    without = Night(changed, None)
    assert without.inputs.digest == night.inputs.digest
    pending = [planned.name for planned in without.run.plan(without.steps) if not planned.done]
    assert pending == ["evaluate"]
    without()
    found = evaluation(Night(changed, None))
    assert found["options"].keys() == {"slices", "learning_curve", "runs"}
    assert not [name for name in found["systems"]["ranker"] if name.startswith("placement")]


def test_a_log_with_placements_gives_the_run_of_one_without_if_nothing_uses_them(
    workspace: Path, tmp_path: Path
) -> None:
    """The model and its rows are the same to the byte."""
    simulate(SHOP, tmp_path / "data")
    nights = [Night(config(folder), None) for folder in (workspace, tmp_path)]
    for one in nights:
        one()
    for name in ("rows.npy", "ranker.txt"):
        with_placements, without = ((one.run.directory / name).read_bytes() for one in nights)
        assert with_placements == without
