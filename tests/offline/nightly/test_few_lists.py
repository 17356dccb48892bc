"""Nights of a shop of purchases whose first lists arrive: few, at one time, of one user, or without a click."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from offline.config import Config, load
from offline.config.checks import CheckConfig
from offline.config.simulation import SimulateConfig
from offline.data.query_groups import has_gain
from offline.nightly.night import Night
from offline.nightly.steps import ranker_config
from offline.runtime import ChecksFailed, DataError
from offline.simulation.dataset import simulate
from serving.store.embedded import connect_url
from tests.purchases import forget_lists
from tests.tiny_encoder import tiny_encoder

pytestmark = pytest.mark.slow
DAY = 86400.0
END = datetime(2024, 6, 1, tzinfo=UTC)
SHOP = SimulateConfig(items=120, users=800, days=14, new_items_per_day=1, end=END)
"""About 1,400 purchases in two weeks, and 170 lists on a day."""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the log of a shop that logs its lists, and a tiny encoder."""
    workspace = tmp_path_factory.mktemp("shop")
    simulate(SHOP, workspace / "data")
    tiny_encoder(workspace / "tiny")
    return workspace


def shop_of(simulated: Path, workspace: Path, served: int, days: float = 1) -> Config:
    """The shop with the purchases of all days, and at most `served` lists on the last ones."""
    shutil.copytree(simulated, workspace, dirs_exist_ok=True)
    forget_lists(workspace / "data", served, since=END.timestamp() - days * DAY)
    return load(
        None,
        workspace=workspace,
        lists={"size": 20, "refreshes": 1},
        ranker={"trees": 15, "min_data_in_leaf": 20},
        encoder={"model": str(workspace / "tiny"), "mode": "frozen", "refreshes": 0, "max_tokens": 16},
        gate={"latency_ratio": 100, "certainty": 0},
    )


def night_of(config: Config, url: str | None = None, until: float | None = None) -> Night:
    return Night(config, url, until=until, clock=lambda: END.timestamp() + 3600)


def change(config: Config, edit: Callable[[pa.Table, np.ndarray], pa.Table]) -> None:
    """Rewrite the log with a function of its table and the mask of the rows that belong to a list."""
    path = config.data / "events.parquet"
    events = pq.read_table(path)
    listed = pc.is_valid(events["request_id"]).to_numpy()
    pq.write_table(edit(events, listed).sort_by("timestamp"), path)


def at_one_time(events: pa.Table, listed: np.ndarray) -> pa.Table:
    """Every list is shown at the same second, and every action follows a second later."""
    field = events.schema.field("timestamp")
    acted = pc.not_equal(events["event"], "impression").to_numpy()
    at = events["timestamp"].cast(pa.int64()).to_numpy().copy()
    at[listed] = np.int64((END.timestamp() - 1000) * 1e6) + 1_000_000 * acted[listed]
    return events.set_column(events.schema.get_field_index("timestamp"), field, pa.array(at).cast(field.type))


def shown_to(events: pa.Table, listed: np.ndarray, users: list[str]) -> pa.Table:
    """The log with these users in the rows of lists."""
    names = np.array(events["user_id"].to_pylist(), object)
    names[listed] = users
    field = events.schema.field("user_id")
    return events.set_column(events.schema.get_field_index("user_id"), field, pa.array(names.tolist(), pa.string()))


def of_one_user(events: pa.Table, listed: np.ndarray) -> pa.Table:
    return shown_to(events, listed, ["tester"] * int(listed.sum()))


def without_actions(events: pa.Table, listed: np.ndarray) -> pa.Table:
    """Visitors who never acted. Purchases of others without a request ID could be of an item that they were shown."""
    requests = events.filter(pa.array(listed))["request_id"].to_pylist()
    shown = pc.equal(events["event"], "impression").to_numpy()
    return shown_to(events, listed, [f"visitor of {r}" for r in requests]).filter(pa.array(~listed | shown))


def facts(night: Night) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads(night.run.file("evaluation.json").read_text("utf-8"))
    return evaluation


@pytest.mark.parametrize(
    ("served", "edit", "source"),
    [
        (0, None, "rebuilt"),
        (1, None, "mixed"),
        (2, None, "mixed"),
        (3, None, "mixed"),
        (60, at_one_time, "mixed"),
        (60, of_one_user, "mixed"),
        (60, without_actions, "rebuilt"),
    ],
)
def test_a_night_with_few_lists_ends_with_a_release_judged_by_rebuilt_lists(
    simulated: Path, tmp_path: Path, served: int, edit: Callable[[pa.Table, np.ndarray], pa.Table] | None, source: str
) -> None:
    """None of these lists carries a window."""
    config = shop_of(simulated, tmp_path, served)
    if edit:
        change(config, edit)
    if edit is of_one_user:
        with pytest.raises(ChecksFailed, match=r"user 'tester' made [0-9]+ of the last day's actions"):
            night_of(config)()
        config = config.model_copy(update={"checks": CheckConfig(accept=("bot",))})
    night = night_of(config)
    night()
    found = facts(night)
    assert (found["lists"]["source"], found["lists"]["judged"]) == (source, "rebuilt")
    assert found["systems"]["ranker"]["all"]["lists"] == found["lists"]["kinds"]["rebuilt"]["lists"] >= 100
    shown = found["lists"]["kinds"].get("logged", {"lists": 0})["lists"]
    assert (shown > 0) == (source == "mixed")
    assert shown <= served
    notice = night.inputs.list_source.notice
    assert (notice is None) == (served == 0)
    assert notice is None or notice in found["data"]["notes"]


def test_a_log_of_three_lists_alone_says_what_is_missing(simulated: Path, tmp_path: Path) -> None:
    config = shop_of(simulated, tmp_path, 3)
    change(config, lambda events, listed: events.filter(pa.array(listed)))
    with pytest.raises(
        DataError, match=r"lists have [123] distinct times?, but 4 windows need at least 4: import a longer"
    ):
        night_of(config)()


def test_a_log_without_any_action_says_what_is_missing(simulated: Path, tmp_path: Path) -> None:
    config = shop_of(simulated, tmp_path, 60)
    change(config, without_actions)
    change(config, lambda events, listed: events.filter(pa.array(listed)))
    with pytest.raises(DataError, match="the log has no click, view, cart or purchase"):
        night_of(config)()


def test_the_night_after_the_first_day_online_is_judged_by_rebuilt_lists(simulated: Path, tmp_path: Path) -> None:
    """A release of purchases is live. On the next day 60 lists are served, with the first impressions and clicks ever.

    Neither the data checks nor the gate take that for a fault: both releases are compared on a fifth of the baskets,
    and the served lists are reported.
    """
    config = shop_of(simulated, tmp_path, 60)
    with connect_url(None, config.embedded) as url:
        first = night_of(config, url, until=END.timestamp() - DAY)
        first()
        assert facts(first)["lists"]["source"] == "rebuilt"
        night = night_of(config, url)
        night.run.do([s for s in night.steps if s.name not in ("publish", "tidy")])
    gate = json.loads(night.run.file("gate.json").read_text("utf-8"))
    reasons = {rule: message for rule, _, message in gate["reasons"]}
    rebuilt = facts(night)["lists"]["kinds"]["rebuilt"]["lists"]
    assert f" on {rebuilt:,} lists" in reasons["quality"]
    assert "logged lists, reported only" in reasons["other_lists"]
    assert gate["figures"]["all"]["lists"] == rebuilt
    assert 2 <= gate["figures"]["logged_lists"]["lists"] <= 60
    assert "labels" not in reasons
    findings = json.loads(night.run.file("checks.json").read_text("utf-8"))["findings"]
    assert [f["check"] for f in findings if f["level"] == "stop"] == []
    assert {"kind of event", "hour of day"} <= {
        f["message"].partition(":")[0] for f in findings if f["level"] == "warn"
    }
    window = facts(night)["windows"]["test"]
    assert (window["judged"], window["lists"] - window["logged"]) == ("rebuilt", rebuilt)


def test_logged_lists_that_carry_the_test_window_decide(simulated: Path, tmp_path: Path) -> None:
    """The lists of the last day carry a test of at least 60. No training list is logged yet: drift is not checked."""
    config = shop_of(simulated, tmp_path, 1000).model_copy(
        update={"lists": load(None, lists={"size": 20, "window_lists": 60}).lists}
    )
    night = night_of(config)
    night()
    found = facts(night)
    assert (found["lists"]["source"], found["lists"]["judged"]) == ("mixed", "logged")
    assert found["windows"]["test"]["logged"] == found["systems"]["ranker"]["all"]["lists"] >= 60
    assert "shown_order" in found["systems"]
    assert set(found["lists"]["kinds"]) == {"logged", "rebuilt"}


def test_logged_lists_that_fill_a_window_each_train_the_ranker_beside_rebuilt_ones(
    simulated: Path, tmp_path: Path
) -> None:
    """Some 380 lists of the last three days are training, validation and test, and their positions count.

    Rebuilt lists go on in training: they are most of what the ranker learns from.
    """
    night = night_of(shop_of(simulated, tmp_path, 1000, days=3))
    a = night.run_to("ranker")
    logged = {name: int(a.logged[a.windows.lists(name, a.lists)].sum()) for name in ("ranker", "validation", "test")}
    assert min(logged.values()) >= 100
    learned = a.window_rows("ranker", "validation").lists
    assert a.json("ranker.json")["lists"] == has_gain(learned).sum(), "the others missed every item that was bought"
    rebuilt = ~a.logged[a.windows.lists("ranker", a.lists)]
    assert rebuilt.sum() > 2 * logged["ranker"]
    assert a.judged_kind == "logged"
    assert ranker_config(a).position_debias
    night()
    found = facts(night)
    assert found["calibration"]["error"] < 0.2
    assert json.loads(night.run.file("drift.json").read_text("utf-8"))["drift"], "logged lists of both windows"
