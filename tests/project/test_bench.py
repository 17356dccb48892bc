"""Every benchmark runs at a tiny size, too small to measure speed, and ends with the promised figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.log import Kind
from tests import ROOT
from tests.bench.made_up import SHOWN, made_up_events
from tests.bench.memory import User, fit_user_bytes
from tests.bench.replay import Sums, find_difference, ours, pandas_sums, read_log, write_log

TINY = {
    "exploration": (
        [
            *("--days", "1", "--opening", "6", "--items", "120", "--users", "120"),
            *("--seeds", "1", "--refit", "1", "--arms", "none,thompson,swaps"),
        ],
        {"lists", "gain"},
    ),
    "replay": (
        [
            "--events",
            "20000",
            "--lists",
            "50",
            "--items",
            "500",
            "--users",
            "200",
            "--repeats",
            "1",
            "--rows-lists",
            "130",
            "--rows-events",
            "3000",
        ],
        {"speedup_vs_pandas", "peak_gb", "linear", "rows_per_s"},
    ),
    "assemble": (
        ["--repeats", "2", "--items", "3000", "--events", "3000", "--trees", "5", "--lists", "10"],
        {"assemble_ms", "trees_ms", "ratio_to_trees", "ratio_to_predict"},
    ),
    "guard": (
        ["--repeats", "1", "--times", "20", "--seconds", "0.2"],
        {"guard_us", "metrics_us", "guard_ratio_to_route", "crowd_p99_bounded_to_unbounded"},
    ),
    "neighbours": (
        ["--items", "3000", "--queries", "5", "--once", "--sides", "exact", "inverted", "--looks", "0", "32"],
        {"items", "speedup_inverted_32"},
    ),
    "visibility": (
        ["--times", "1"],
        {"own_list_other_worker_p50_ms", "item_state_other_worker_p50_ms", "new_item_other_worker_p50_ms"},
    ),
    "dense": (["--users", "80", "--items", "40", "--events", "15", "--lists", "200"], {"ease", "cpu_s"}),
    "export": (
        ["--users", "3000", "--items", "500", "--trees", "5"],
        {"users_per_s", "peak_mb", "same_bytes", "reused"},
    ),
    "rules": (["--items", "3000", "--events", "3000", "--repeats", "2"], {"rules_to_rows", "retrieve_to_rows"}),
    "shadow": (["--items", "1000", "--trees", "5", "--requests", "10", "--turns", "1"], {"p50_ratio", "p99_ratio"}),
    "events": (["--lists", "20"], {"us_write_service", "us_write_redis", "us_follow", "us_collect", "bytes_parquet"}),
    "scripts": (
        ["--events", "240", "--rounds", "1"],
        {"worst_ms", "request_ms", "honest_ms", "honest_request_ms", "ratio_to_append", "seed_ms", "merge_ms"},
    ),
    "position": (["--users", "60", "--seeds", "1"], {"without", "with", "lists"}),
    "query": (["--cost", "300", "2"], {"rows_ratio", "retrieval_ratio", "read_ms"}),
    "second_night": (
        ["--items", "150", "--users", "80", "--days", "6", "--epochs", "1"],
        {"read_share", "equal", "first_s", "second_s"},
    ),
    "import_": (
        ["--events", "2000", "--items", "50", "--users", "40", "--repeats", "1"],
        {"events_per_s", "ratio_to_duckdb", "peak_gb"},
    ),
    "page": (
        ["--items", "500", "--trees", "5", "--rounds", "2", "--pages", "2"],
        {"same candidates, CPU ms", "own sources, latency ms"},
    ),
    "seeds": (
        ["--items", "500", "--events", "5000", "--requests", "5"],
        {"companions s", "bytes per item with tables"},
    ),
    "complements": (
        ["--users", "100", "--days", "8", "--complements", "0.8"],
        {"bought_together", "goes_with", "best for this shopper"},
    ),
    "objective": (["--quick"], {"margin at margin 0.3", "sales at price 0.3", "clicks at margin 1"}),
    "earnings": (["--seeds", "2", "--users", "400"], {"seeds", "covered", "last_touch_bias", "half_width"}),
    "rerank": (["--quick", "--synonyms"], {"lists", "the engine's order", "ranker with the score"}),
    "serve": (
        ["--quick"],
        {
            "cpu_ratio_vs_predict",
            "cpu_ms",
            "predict_ms",
            "p50_ms_100",
            "p99_ms_1000",
            "columns_ratio_lists",
            "sequence_ratio",
        },
    ),
    "experiments": (
        ["--tests", "20", "--users", "1000", "--days", "5", "--units", "200000"],
        {"naive_false_alarm_rate", "fixed_horizon_power", "srm_found"},
    ),
    "memory": (
        ["--users", "100", "--items", "1000", "--events", "1000"],
        {"bytes_per_user", "bytes_per_item_redis", "bytes_per_item_worker_private", "bytes_per_item_worker_shared"},
    ),
}


def run(name: str, *options: str) -> dict[str, Any]:
    """The figures of a benchmark, which has to succeed."""
    command = [sys.executable, "-W", "error", "-m", f"tests.bench.{name}", *options]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
    figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return figures


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_prints_its_figures_as_one_json_object_last(name: str) -> None:
    """The last line of standard output has the promised keys, each a finite number. Other output goes elsewhere."""
    options, keys = TINY[name]
    figures = run(name, *options)
    assert keys <= set(figures)
    assert all(np.isfinite(figures[key]) and figures[key] != 0 for key in keys)


@pytest.mark.slow
def test_no_honest_request_fails_during_an_attack() -> None:
    """400 hostile requests of every kind and 40 hostile connections, against two workers. Speed is not asserted."""
    sizes = ["--requests", "400", "--connections", "40", "--workers", "2", "--items", "1000", "--trees", "5"]
    figures = run("hostile", *sizes, "--per-second", "20", "--quiet", "4")
    assert sum(figures["statuses"].values()) >= 400, "a request with several responses counts several times"
    assert {"200", "202", "400", "401", "404", "405", "413", "415", "422"} <= set(figures["statuses"])
    assert figures["connections"] > 40, "the service has closed some, and others were opened in their place"
    assert figures["rankings"] >= 150, "10 per second for 400 / 20 = 20 s, less those that a slow start takes"
    assert figures["failed"] == figures["health_failed"] == 0, figures["first_failure"]
    assert figures["server_errors"] == figures["tracebacks"] == figures["deaths"] == 0


def test_item_state_agrees_with_pandas_over_months_with_a_half_life_of_an_hour(tmp_path: Path) -> None:
    """Two independent implementations give the same sums before each list, and an incorrect value is detected."""
    write_log(tmp_path, 20_000, 60, items=50, users=20)
    log = read_log(tmp_path)
    mine, theirs = Sums.zeros(60), Sums.zeros(60)
    ours(log, mine)
    pandas_sums(log, theirs)
    for side, sums in (("ours", mine), ("pandas", theirs)):
        for name, values in sums.items():
            np.save(tmp_path / f"{side}_{name}.npy", values)
    assert find_difference(tmp_path) == ""
    assert mine["item"][..., Kind.CLICK, 0].max() > 0
    np.save(tmp_path / "ours_item.npy", mine["item"] * np.float32(1.00001))
    assert find_difference(tmp_path).startswith("item at (")


def test_the_synthetic_log_is_sorted_and_has_the_requested_size() -> None:
    """Sorted by (time, kind, item), as `Events` requires; the impressions of a list share its time."""
    log = made_up_events(np.random.default_rng(0), 5000, users=50, items=100)
    assert abs(len(log) - 5000) < 250
    assert (np.lexsort((log.item, log.kind, log.at)) == np.arange(len(log))).all()
    shown = log.request[log.kind == Kind.IMPRESSION]
    assert (np.bincount(shown) == SHOWN).all()
    assert ((log.item >= 0) & (log.item < 100) & (log.user >= 0) & (log.user < 50)).all()


def test_the_fit_recovers_the_bytes_per_user() -> None:
    """Users of exactly 200 + 30 x engagements + 40 x impressions bytes give these three coefficients."""
    users = [User(e, s, 0.0, 200 + 30 * e + 40 * s) for e, s in ((0, 240), (100, 0), (10, 24), (100, 240))]
    assert fit_user_bytes(users) == pytest.approx((200, 30, 40))
