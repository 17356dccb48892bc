"""Engines: the number of parts does not change the result of a step, and only the engine `ray` needs Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.cli import main
from offline.data.query_groups import baskets, rebuild_lists
from offline.runtime.engine import Local, split_evenly
from offline.training.rows import RowBlock, RowsJob, make_rows
from offline.training.vector_store import VectorStore
from tests.features.test_replay import LISTS
from tests.worlds import LogRow, logs, make_events, make_replay, make_vectors
from text_encoder import reading
from text_encoder.encoder import load


class Parted(Local):
    """An engine in this process that runs each part twice, the second time in reverse, as after machine failures."""

    def __init__(self, parts: int) -> None:
        self.parts = parts

    def map(
        self, function: Callable[[Any, Any], Iterable[Any]], shared: Any, parts: Sequence[Any]
    ) -> Generator[Any, None, None]:
        for part in parts:
            list(function(shared, part))
        blocks = {k: list(function(shared, parts[k])) for k in reversed(range(len(parts)))}
        for k in range(len(parts)):
            yield from blocks[k]


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_split_evenly_covers_each_unit_once_in_order_without_empty_parts(sizes: list[int], parts: int) -> None:
    """For units of any sizes. There are at most as many parts as requested."""
    ranges = split_evenly(np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))), parts)
    assert [u for part in ranges for u in part] == list(range(len(sizes)))
    assert all(ranges)
    assert len(ranges) <= parts


def test_split_evenly_balances_the_total_size_of_units() -> None:
    """Eight rows in two parts: the first unit has four of them and is a part of its own."""
    assert split_evenly(np.array([0, 4, 6, 7, 8]), 2) == [range(0, 1), range(1, 4)]


@given(logs(), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_number_of_parts_does_not_change_rows_baselines_and_warm_flags(log: list[LogRow], parts: int) -> None:
    """Bit for bit, although a part starts in the middle of the log and replays only what it needs."""
    replay = make_replay(make_events(log, 3))
    for whole in (False, True):
        job = RowsJob(replay, LISTS, np.array([1, 3, 4]), make_vectors(seed=9), 3, whole)
        results: list[RowBlock] = []
        for ranges in (split_evenly(LISTS.start, 1), split_evenly(LISTS.start, parts)):
            blocks = [block for part in ranges for block in make_rows(job, part)]
            results.append(RowBlock(0, *(np.concatenate([b[k] for b in blocks]) for k in (1, 2, 3))))
        np.testing.assert_array_equal(results[0].rows, replay.rows(LISTS))
        for name in ("rows", "best", "warm"):
            np.testing.assert_array_equal(getattr(results[1], name), getattr(results[0], name))


@given(logs(), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_baselines_order_each_kind_of_lists_as_if_there_were_no_other(log: list[LogRow], parts: int) -> None:
    """Lists 1 and 4 were logged and list 3 was rebuilt. The rows are the same for all."""
    replay, zero_shot = make_replay(make_events(log, 3)), make_vectors(seed=9)
    position = np.where(np.isin(LISTS.group, [3]), -1, LISTS.position).astype(np.int16)
    lists = replace(LISTS, position=position)
    logged = np.arange(len(lists)) != 3

    def best(tested: list[int], kinds: np.ndarray | None) -> np.ndarray:
        job = RowsJob(replay, lists, np.array(tested), zero_shot, 3, False, kinds)
        ranges = split_evenly(lists.start, parts)
        return np.concatenate([b.best for part in ranges for b in make_rows(job, part)])

    both = best([1, 3, 4], logged)
    np.testing.assert_array_equal(both[[0, 2]], best([1, 4], None))
    np.testing.assert_array_equal(both[[1]], best([3], None))


@given(logs(), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_number_of_parts_does_not_change_rebuilt_lists(log: list[LogRow], parts: int) -> None:
    """Each basket is retrieved as of its own time, whichever part it is in."""
    events = make_events(log, 3)
    wanted = baskets(events, -np.inf)
    one, several = (rebuild_lists(make_replay(events), wanted, 5, engine=Parted(k)) for k in (1, parts))
    for name in ("start", "item", "gain", "missed"):
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name))


def test_the_engine_does_not_change_text_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """70 texts in batches of 64 of up to 8 tokens and 32 of up to 16, one batch per part."""
    monkeypatch.setattr(reading, "_PART_BATCHES", 1)
    encoder = load("minilm", max_tokens=16)
    lamps = [f"lamp number {k}" + " for the garden" * (k % 3) for k in range(70)]
    mapped = reading.read_texts(encoder, lamps, VectorStore(tmp_path), over_batches=Parted(1).map)
    np.testing.assert_array_equal(mapped.vectors, encoder.encode(lamps))


@pytest.fixture
def without_ray(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str]]:
    """Exit status and standard error of a command in this process, where importing Ray fails."""
    monkeypatch.setitem(sys.modules, "ray", None)

    def run(*arguments: str | Path) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["shelfwise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return run


def test_the_local_engine_needs_no_ray(without_ray: Callable[..., tuple[object, str]], tmp_path: Path) -> None:
    """A complete nightly run."""
    config = tmp_path / "shelfwise.yaml"
    config.write_text(
        f"workspace: {tmp_path}\nranker: {{trees: 10, min_data_in_leaf: 20}}\n"
        "encoder: {mode: frozen, max_tokens: 16}\nsimulate: {items: 60, users: 80, days: 8}\n"
    )
    for command in (["simulate"], ["nightly", "--no-publish"]):
        code, err = without_ray(*command, "--config", config)
        assert not code, err
    assert len(list((tmp_path / "releases").glob("*/manifest.json"))) == 1


def test_the_engine_ray_names_the_package_to_install(
    without_ray: Callable[..., tuple[object, str]], tmp_path: Path
) -> None:
    """A message without a traceback, and exit status 1."""
    code, err = without_ray("nightly", "--workspace", tmp_path, "--engine", "ray")
    assert code == 1
    assert "--engine ray needs Ray" in err
    assert "pip install 'shelfwise[ray]'" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--engine", "dask"], "no such engine; use local or ray"), (["--ray-address", "auto"], "need --engine ray")],
)
def test_wrong_engine_options_are_an_error(
    without_ray: Callable[..., tuple[object, str]], tmp_path: Path, arguments: list[str], message: str
) -> None:
    """The message has no traceback."""
    code, err = without_ray("nightly", "--workspace", tmp_path, *arguments)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
