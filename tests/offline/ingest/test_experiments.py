"""The arms of imported lists: how they are read, what is refused, and that experiments can be analysed with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from offline.config import EarningsConfig, ImportConfig
from offline.data import LogFiles, erasures, load_dataset
from offline.earnings import Holdout, Settings, make_tables
from offline.experiments import Design, read
from offline.ingest.importer import ImportSummary, import_data
from serving.store import tombstone, user_hash

NOW = datetime(2026, 6, 1, tzinfo=UTC)
START = datetime(2026, 5, 1, tzinfo=UTC).timestamp()
ITEMS = "item_id,title,price\na,Mug,10\nb,Bowl,20\n"
HEAD = "event,user_id,item_id,timestamp,request_id,position,value,placement,session_id,variant,chosen"


def row(event: str, user: str, item: str, minute: int, request: str = "", **cells: Any) -> str:
    """A line of events, some minutes after the start."""
    at = f"2026-05-01T{minute // 60:02}:{minute % 60:02}:00Z"
    others = (cells.get(name, "") for name in ("position", "value", "placement", "session", "variant", "chosen"))
    return ",".join(map(str, (event, user, item, at, request, *others)))


def shown(user: str, minute: int, request: str, variant: str, **cells: Any) -> list[str]:
    """A list of both items, b first; it comes in another order."""
    places = {"a": 1, "b": 0}
    return [
        row("impression", user, i, minute, request, position=p, variant=variant, **cells) for i, p in places.items()
    ]


def import_rows(folder: Path, rows: Sequence[str], **source: Any) -> ImportSummary:
    """Import the events with `variant` as the arm of the experiment `ranking`."""
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text("\n".join([HEAD, *rows, ""]))
    (folder / "items.csv").write_text(ITEMS)
    events = {"from": "events.csv", "experiments": {"ranking": "variant"}} | source
    config = {"folder": folder, "items": [{"from": "items.csv"}], "events": [events]}
    return import_data(ImportConfig.model_validate(config), folder / "data", NOW)


def served(folder: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / "data/served.parquet").to_pylist())


def test_impressions_become_served_lists_with_their_arms(tmp_path: Path) -> None:
    """In the order of their positions. A list outside of the experiment is one, too, and a click has no arm."""
    rows = [
        *shown("u", 0, "r1", "new", placement="home", session="s"),
        *shown("v", 5, "r2", ""),
        row("click", "u", "a", 1, "r1", variant="old"),
    ]
    import_rows(tmp_path, rows)
    one, other = served(tmp_path)
    assert (one["request_id"], one["user_id"], one["item_ids"], one["at"].minute) == ("r1", "u", ["b", "a"], 0)
    assert (one["placement"], one["session_id"], one["experiments"]) == ("home", "s", [("ranking", "new")])
    assert (other["request_id"], other["experiments"], other["teams"]) == ("r2", None, None)


def test_teams_of_interleaved_lists_are_in_the_order_of_the_list(tmp_path: Path) -> None:
    rows = [
        row("impression", "u", "a", 0, "r1", position=1, variant="interleaved", chosen="old"),
        row("impression", "u", "b", 0, "r1", position=0, variant="interleaved"),
    ]
    import_rows(tmp_path, rows, team="chosen")
    assert served(tmp_path)[0]["teams"] == [None, "old"]


def test_a_list_in_two_arms_is_refused_with_file_row_and_column(tmp_path: Path) -> None:
    """The first impression of the list decides. One without an arm is in that of its list."""
    rows = [
        row("impression", "u", "a", 0, "r1", position=0, variant="new"),
        row("impression", "u", "b", 0, "r1", position=1, variant="old"),
        row("impression", "v", "a", 0, "r2", position=0),
        row("impression", "v", "b", 0, "r2", position=1, variant="old"),
    ]
    summary = import_rows(tmp_path, rows)
    assert [tuple(one["item_ids"]) for one in served(tmp_path)] == [("a",), ("a", "b")]
    assert summary.sources[-1].quarantined == {"list_of_another_arm": 1}
    (refused,) = pq.read_table(tmp_path / "data/quarantine.parquet").to_pylist()
    where = {name: refused[name] for name in ("file", "row", "column", "value", "reason")}
    assert where == {
        "file": "events.csv", "row": 3, "column": "experiments", "value": "{ranking=old}",
        "reason": "list_of_another_arm",
    }  # fmt: skip


def test_a_cell_that_cannot_name_an_arm_is_missing_and_said(tmp_path: Path) -> None:
    summary = import_rows(tmp_path, [*shown("u", 0, "r1", "new arm!"), *shown("v", 0, "r2", "new")])
    assert {one["request_id"]: one["experiments"] for one in served(tmp_path)} == {
        "r1": None, "r2": [("ranking", "new")],
    }  # fmt: skip
    assert "variant: 2 cells cannot be read and count as missing, such as 'new arm!'" in summary.sources[-1].notes


def test_a_name_that_no_experiment_can_have_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="'my test' is not a valid name"):
        import_rows(tmp_path, shown("u", 0, "r1", "new"), experiments={"my test": "variant"})


def test_without_arms_there_are_no_served_lists(tmp_path: Path) -> None:
    """An import without them removes those of an earlier one."""
    import_rows(tmp_path, shown("u", 0, "r1", "new"))
    import_rows(tmp_path, shown("u", 0, "r1", ""))
    assert not (tmp_path / "data/served.parquet").exists()


def test_arms_change_nothing_else_of_the_data_set(tmp_path: Path) -> None:
    """Every list has impressions, so none is added to the log from the served lists."""
    rows = [*shown("u", 0, "r1", "new"), row("click", "u", "a", 1, "r1")]
    loaded = []
    for name, experiments in (("with", {"ranking": "variant"}), ("without", {})):
        import_rows(tmp_path / name, rows, experiments=experiments)
        loaded.append(load_dataset(tmp_path / name / "data"))
    assert (tmp_path / "with/data/events.parquet").read_bytes() == (
        tmp_path / "without/data/events.parquet"
    ).read_bytes()
    assert len(loaded[0].shown) == len(loaded[1].shown) == 3


def test_an_erased_user_has_no_served_list(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    erased = erasures.Erasures({tombstone("00", user_hash("u")): START + 3600}, ("00",))
    erasures.write_erasures(tmp_path / "data", erased)
    import_rows(tmp_path, [*shown("u", 0, "r1", "new"), *shown("v", 0, "r2", "new"), *shown("u", 90, "r3", "new")])
    assert [one["request_id"] for one in served(tmp_path)] == ["r2", "r3"]


def test_imported_lists_can_be_analysed(tmp_path: Path) -> None:
    """Two users in each arm, one in both, and a purchase of 20 in the new one, in reports and in earnings."""
    rows = [line for k, arm in enumerate(["old", "old", "new", "new"]) for line in shown(f"u{k}", k, f"r{k}", arm)]
    rows += [*shown("both", 10, "r10", "old"), *shown("both", 11, "r11", "new")]
    rows += [row("click", "u2", "a", 20, "r2"), row("purchase", "u3", "b", 21, value=20)]
    import_rows(tmp_path, rows)
    files = LogFiles.of(tmp_path / "data")
    found = read(files, Design("ranking", ("old", "new"), (1.0, 1.0), start=START))
    assert found.moments is not None
    totals = {name: found.moments.totals(name)[-1].tolist() for name in ("unit", "clicks", "revenue")}
    assert totals == {"unit": [2, 2], "clicks": [0, 1], "revenue": [0, 20]}
    assert found.counts == {"users in several arms": 1}
    trial = Holdout("ranking", ("old", "new"), (1.0, 1.0), 28.0)
    settings = Settings(EarningsConfig.model_validate({"value": "amount"}), 86400.0, {}, [trial])
    (experiment,) = make_tables(files, settings)["experiments"]
    assert (experiment["holdout_users"], experiment["in_two_arms"]) == (2, 1)
    assert experiment["treated"][0]["outcomes"]["revenue"][-1]["value"] == 2 * (20 / 2 - 0)
