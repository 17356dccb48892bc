"""Engines: a step cut into parts, however many, gives what the whole would give; one alone needs Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.config.imports import EventSource, ItemSource
from offline.data.query_groups import baskets, rebuild_lists
from offline.ingest.importer import ImportConfig, import_data
from offline.runtime.engine import LOCAL, split_evenly
from offline.runtime.files import checksum
from offline.training.rows import RowBlock, RowsJob, make_rows
from tests import ROOT
from tests.features.test_replay import LISTS
from tests.worlds import logs, make_events, make_replay, make_vectors
from text_encoder import texts
from text_encoder.encoder import load


class Parted:
    """This process, in so many parts, each worked on twice, the last first: as by machines that come and go."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def map(
        self, function: Callable[[Any, Any], Iterable[Any]], shared: Any, parts: Sequence[Any]
    ) -> Generator[Any, None, None]:
        for part in parts:
            list(function(shared, part))
        done = {k: list(function(shared, parts[k])) for k in reversed(range(len(parts)))}
        for k in range(len(parts)):
            yield from done[k]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_a_cut_holds_each_unit_once_in_order_and_no_empty_part(sizes: list[int], parts: int) -> None:
    """However unlike the sizes: parts joined are all the units, and there are no more parts than were asked for."""
    found = split_evenly(np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))), parts)
    assert [u for part in found for u in part] == list(range(len(sizes)))
    assert all(found)
    assert len(found) <= parts


def test_parts_are_cut_by_what_units_hold() -> None:
    """Eight rows in two parts: the first unit holds half of them, and is a part by itself."""
    assert split_evenly(np.array([0, 4, 6, 7, 8]), 2) == [range(0, 1), range(1, 4)]


@given(logs(), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_rows_baselines_and_warmth_are_the_same_in_any_number_of_parts(log: list[tuple], parts: int) -> None:
    """To the bit, although a part begins in the middle of the log and makes anew only what it reads."""
    replay = make_replay(make_events(log, 3))
    for whole in (False, True):
        asked = RowsJob(replay, LISTS, np.array([1, 3, 4]), make_vectors(seed=9), 3, whole)
        found: list[RowBlock] = []
        for ranges in (split_evenly(LISTS.start, 1), split_evenly(LISTS.start, parts)):
            each = [block for part in ranges for block in make_rows(asked, part)]
            found.append(RowBlock(0, *(np.concatenate([b[k] for b in each]) for k in (1, 2, 3))))
        np.testing.assert_array_equal(found[0].rows, replay.rows(LISTS))
        for name in ("rows", "best", "warm"):
            np.testing.assert_array_equal(getattr(found[1], name), getattr(found[0], name))


@given(logs(), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_rebuilt_lists_are_the_same_in_any_number_of_parts(log: list[tuple], parts: int) -> None:
    """Each basket is retrieved for as of its own moment, whatever part it is in."""
    events = make_events(log, 3)
    asked = baskets(events, -np.inf)
    one, several = (rebuild_lists(make_replay(events), asked, 5, engine=Parted(k)) for k in (1, parts))
    for name in ("start", "item", "gain", "missed"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))


def test_vectors_are_the_same_whoever_reads_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are whole batches, cut before anybody reads them: 70 texts in blocks of 32."""
    monkeypatch.setattr(texts, "BLOCK", 32)
    encoder = load("minilm", max_tokens=16)
    lamps = [f"lamp number {k}" + " for the garden" * (k % 3) for k in range(70)]
    here, there = (
        texts.encode_texts(encoder, lamps, None, None, lambda _: None, over_blocks).vectors
        for over_blocks in (texts.map_serially, Parted(1).map)
    )
    np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(here, encoder.encode(lamps))


def log_of_days(folder: Path) -> ImportConfig:
    """Three days of a log, a file each, and their items; each has rows that are refused, some for another file's."""
    (folder / "items.csv").write_text("item_id,title,price\ni1,Lamp,3\ni2,Rug,-1\ni1,Lamp again,3\n")
    for day in (1, 2, 3):
        (folder / f"day{day}.csv").write_text(
            "event,user_id,item_id,timestamp\n"
            f"click,u1,i1,2026-01-0{day}T10:00:00Z\nview,u2,i1,2026-01-01T09:00:00Z\nstare,u1,i1,2026-01-01\n"
        )
    days = tuple(EventSource(path=folder / f"day{day}.csv") for day in (1, 2, 3))
    return ImportConfig(items=(ItemSource(path=folder / "items.csv"),), events=days)


def test_sources_checked_in_parts_are_imported_as_one_process_would(tmp_path: Path) -> None:
    """Events, items, quarantine and the account of every row, to the byte."""
    config, now = log_of_days(tmp_path), datetime(2026, 2, 1, tzinfo=UTC)
    summaries = [
        import_data(config, tmp_path / name, now, engine=engine)
        for name, engine in (("one", LOCAL), ("two", Parted(3)))
    ]
    assert summaries[0] == summaries[1]
    assert summaries[0].events["click"] == 3
    for name in ("events.parquet", "items.parquet", "quarantine.parquet"):
        assert checksum(tmp_path / "two" / name) == checksum(tmp_path / "one" / name)
    reasons = pq.read_table(tmp_path / "two" / "quarantine.parquet")["reason"].to_pylist()
    assert sorted(reasons) == ["duplicate_event"] * 2 + ["duplicate_item", "negative_price"] + ["unknown_event"] * 3


_WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # importing it raises ImportError
from offline.cli import main
sys.argv = ["shelfwise", *{arguments}]
main()
"""


def _without_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = _WITHOUT_RAY.format(arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def test_the_local_engine_needs_no_ray(tmp_path: Path) -> None:
    """A whole night where importing Ray fails: a release is made."""
    config = tmp_path / "shelfwise.yaml"
    config.write_text(
        f"workspace: {tmp_path}\nranker: {{trees: 10, min_data_in_leaf: 20}}\n"
        "encoder: {mode: frozen, max_tokens: 16}\nsimulate: {items: 60, users: 80, days: 8}\n"
    )
    simulated = _without_ray("simulate", "--config", str(config))
    assert simulated.returncode == 0, simulated.stderr
    made = _without_ray("nightly", "--config", str(config), "--no-publish")
    assert made.returncode == 0, made.stderr
    assert len(list((tmp_path / "releases").glob("*/manifest.json"))) == 1


def test_the_engine_ray_says_what_to_install_where_ray_is_not(tmp_path: Path) -> None:
    """One sentence, no traceback, exit status 1."""
    found = _without_ray("nightly", "--workspace", str(tmp_path), "--engine", "ray")
    assert found.returncode == 1
    assert "--engine ray needs Ray" in found.stderr
    assert "pip install 'shelfwise[ray]'" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--engine", "dask"], "no such engine; known: local, ray"), (["--ray-address", "auto"], "go with --engine ray")],
)
def test_an_engine_that_is_not_there_is_refused_by_name(tmp_path: Path, arguments: list[str], said: str) -> None:
    """A mistake in the options is a sentence."""
    found = _without_ray("nightly", "--workspace", str(tmp_path), *arguments)
    assert found.returncode == 1
    assert said in found.stderr
