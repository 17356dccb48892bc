"""Nightly runs of a log with placements: unused, they change nothing; configured, they are slices and a feature."""

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
from offline.evaluation import systems
from offline.nightly.night import Night
from offline.simulation.dataset import simulate

pytestmark = pytest.mark.slow
SHOP = SimulateConfig(items=100, users=300, days=10, new_items_per_day=1, end=datetime(2024, 6, 1, tzinfo=UTC))
NAMES = ("home", "<i>cart", "retired")


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
        **more,
        ranker={"trees": 20, "min_data_in_leaf": 20},
        encoder={"mode": "frozen", "refreshes": 0, "max_tokens": 16},
    )


def test_a_log_with_placements_gives_the_run_of_one_without_if_nothing_uses_them(
    workspace: Path, tmp_path: Path
) -> None:
    """The model and its rows are the same to the byte."""
    simulate(SHOP, tmp_path / "data")
    nights = [Night(config(folder), None) for folder in (workspace, tmp_path)]
    for one in nights:
        one.run_to("ranker")
    for name in ("rows.npy", "ranker.txt"):
        with_placements, without = ((one.run.directory / name).read_bytes() for one in nights)
        assert with_placements == without


def test_configured_placements_are_slices_of_the_report_and_the_declared_column_is_a_feature(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every list, the placement of its impressions: a quarter of them has none, and a quarter another one.

    The trade-off of an objective is on the lists of its placement, and on all where these are too few.
    """
    monkeypatch.setattr(systems, "SMALL", 20)
    known = NAMES[:2]
    values = {"type": "category", "per": "request", "values": list(known)}
    objectives = {name: {"objective": {"value": "price", "weight": 0.2}} for name in ("home", "planned", "unused")}
    using = config(
        workspace, placements={name: {} for name in known} | objectives, features={"request": {"placement": values}}
    )
    night = Night(using, None)
    night()
    lists, features = night.artefacts.lists, night.artefacts.replay.features
    column = night.artefacts.array("rows.npy")[:, [f.name for f in features].index("request_placement")]
    code: dict[str | None, float] = {known[0]: 0.0, known[1]: 1.0, "retired": 2.0, None: np.nan}
    expected = [code[place(str(lists.request_ids[g]))] for g in lists.group.tolist()]
    np.testing.assert_array_equal(column, np.array(expected, np.float32))
    by_slice = night.artefacts.json("evaluation.json")["systems"]["ranker"]
    counts = {name: by["lists"] for name, by in by_slice.items() if name.startswith("placement:")}
    assert set(counts) == {"placement:home", "placement:<i>cart", "placement:(other)", "placement:(none)"}
    assert sum(counts.values()) == by_slice["all"]["lists"]
    shown = night.artefacts.scored.lists.request_ids
    curves = night.artefacts.json("evaluation.json")["objectives"]
    assert [(c["lists_of"], list(c["placements"]), c["lists"]) for c in curves] == [
        ("home", ["home"], sum(place(str(r)) == "home" for r in shown)),
        (None, ["planned", "unused"], len(shown)),
    ]
