"""The closed loop: commands serve, collect, train and publish day by day, and continue after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from offline.config.configuration import load
from offline.data import dataset
from tests import ROOT
from tests.bench.loop_report import ORDERS
from tests.bench.visitors import read_journal

pytestmark = pytest.mark.nights
SETTINGS = """
ranker: {trees: 10, min_data_in_leaf: 20}
encoder: {mode: frozen, refreshes: 0, max_tokens: 16}
lists: {refreshes: 1}
gate: {latency_ratio: 100, certainty: 0}
"""
SHOP = ["--days", "2", "--opening", "8", "--items", "120", "--users", "200", "--new-items", "2"]


def start(directory: Path) -> subprocess.Popen[str]:
    (directory / "more.yaml").write_text(SETTINGS)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.bench.loop",
            *SHOP,
            "--config",
            str(directory / "more.yaml"),
            "--directory",
            str(directory / "loop"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_loop_of_two_days_continues_to_two_complete_days(tmp_path: Path) -> None:
    """Each list is answered once and each event collected once, although the first day was interrupted."""
    loop = start(tmp_path)
    journal = tmp_path / "loop" / "day-8.jsonl"
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5) and loop.poll() is None:
        time.sleep(0.02)
    loop.terminate()
    _, err = loop.communicate(timeout=300)
    assert loop.returncode == 128 + signal.SIGTERM, err
    assert len(read_journal(journal)) >= 5, err

    out, err = (resumed := start(tmp_path)).communicate(timeout=500)
    assert resumed.returncode == 0, err
    whole, report = json.loads(out.splitlines()[-1]), json.loads((tmp_path / "loop" / "loop.json").read_text("utf-8"))
    assert (whole["days"], len(report["days"])) == (2, 2)
    assert all(0 < whole[order] <= 1 for order in ORDERS)
    assert (tmp_path / "loop" / "loop.svg").read_text("utf-8").startswith("<?xml")

    journals = [read_journal(tmp_path / "loop" / f"day-{day}.jsonl") for day in (8, 9)]
    assert [line.n for line in journals[0]] == list(range(report["days"][0]["lists"]))
    assert len({line.request_id for lines in journals for line in lines}) == whole["lists"]

    data = dataset.load_dataset(load(tmp_path / "loop" / "live.yaml").data)
    before = pq.read_table(tmp_path / "loop" / "live" / "data" / "events.parquet")
    assert len(data.events) - len(before) == sum(day["events"] for day in report["days"])
    first = json.loads((tmp_path / "loop" / "first-live.json").read_text("utf-8"))["release"]
    assert {line.release for line in journals[0]} == {first}
    night = report["days"][0]["night"]
    expected = night["release"] if night["outcome"] == "published" else first
    assert {line.release for line in journals[1]} == {expected}
