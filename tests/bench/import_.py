"""Speed and memory of `shelfwise import`: `python -m tests.bench.import_`, beside DuckDB's own reading.

One synthetic log is written as CSV, with ISO 8601 times, and as Parquet, and each file is imported with a catalogue of
the items. The baseline is `CREATE TABLE AS SELECT` over `read_csv` or `read_parquet` of the same file, with the types
that DuckDB detects: reading alone, without a check of any row. `events_per_s` is that of the slower format,
`ratio_to_duckdb` the time of an import relative to reading the file, and `peak_gb` the higher peak of resident memory.

Each import and each reading is a process of its own, so that peak memory belongs to one side. They take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from features.log import KINDS, Kind
from offline.config import ImportConfig
from offline.ingest import import_data
from tests.bench.made_up import AT, made_up_events
from tests.bench.replay import peak_gb, say

READ = {"csv": "read_csv", "parquet": "read_parquet"}


def write_shop(folder: Path, events: int, items: int, users: int) -> int:
    """Write a catalogue, and one log as CSV and as Parquet. Returns the number of events."""
    log = made_up_events(np.random.default_rng(1), events, users, items)
    # A synthetic list may show an item twice, which an import refuses.
    place = np.stack([log.request.astype(np.int64), log.user, log.item, log.kind, log.at.astype(np.int64)])
    known = np.sort(np.unique(place, axis=1, return_index=True)[1])
    names = pa.array([f"product-{n:07}" for n in range(items)])
    shoppers = pa.array([f"shopper-{n:08}" for n in range(users)])
    at = pa.array((log.at[known] * 1e6).astype(np.int64), pa.timestamp("us", "UTC"))
    kinds = pa.array(KINDS).take(pa.array(log.kind[known].astype(np.int64)))
    request = log.request[known].astype(np.int64)
    table = pa.table(
        {
            "user_id": shoppers.take(pa.array(log.user[known].astype(np.int64))),
            "item_id": names.take(pa.array(log.item[known].astype(np.int64))),
            "event": kinds,
            "timestamp": at,
            "request_id": pa.array([f"list-{n:09}" if n >= 0 else None for n in request.tolist()]),
            "value": pa.array(np.where(log.kind[known] == Kind.PURCHASE, 19.9, np.nan), from_pandas=True),
        }
    )
    pq.write_table(table, folder / "events.parquet")
    text = pa.array([f"{t}Z" for t in np.datetime_as_string(table["timestamp"].to_numpy().astype("M8[ms]"))])
    pa_csv.write_csv(table.set_column(3, "timestamp", text), folder / "events.csv")
    catalogue = pa.table({"item_id": names, "title": pa.array([f"Product number {n}" for n in range(items)])})
    pa_csv.write_csv(catalogue, folder / "items.csv")
    return len(table)


def import_file(file: Path, folder: Path) -> float:
    """Seconds of an import into an empty directory."""
    config = ImportConfig.model_validate(
        {"folder": str(file.parent), "items": [{"table": "items.csv"}], "events": [{"table": file.name}]}
    )
    started = time.perf_counter()
    summary = import_data(config, folder, datetime.fromtimestamp(AT, UTC))
    seconds = time.perf_counter() - started
    assert not any(source.quarantined for source in summary.sources), summary.to_json()
    return seconds


def read_file(file: Path, folder: Path) -> float:
    """Seconds of reading a file into a table on disk."""
    with duckdb.connect(str(folder / "read.duckdb")) as sql:
        started = time.perf_counter()
        sql.execute(f"CREATE TABLE events AS SELECT * FROM {READ[file.suffix[1:]]}('{file}')")
        return time.perf_counter() - started


SIDES: Mapping[str, Callable[[Path, Path], float]] = {"import": import_file, "duckdb": read_file}


def side(name: str, file: Path) -> None:
    """Print the seconds and the peak memory of one side, as JSON. Runs in a process of its own."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        print(json.dumps({"seconds": SIDES[name](file, Path(folder)), "peak_gb": peak_gb()}))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The figures of the last line."""
    events = write_shop(folder, options.events, options.items, options.users)
    say(f"{events:,} events of {options.items:,} items and {options.users:,} users")
    figures: dict[str, float] = {"events": events}
    ratios, peaks, rates = {}, [], []
    print(f"{'format':8} {'side':7} {'s (each)':>24} {'events/s':>10} {'peak GB':>8}")
    for form in READ:
        file = folder / f"events.{form}"
        found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
        for _ in range(options.repeats):
            for name in SIDES:
                command = [sys.executable, "-m", "tests.bench.import_", "--side", name, "--file", str(file)]
                found[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
        median = {name: float(np.median([r["seconds"] for r in runs])) for name, runs in found.items()}
        for name, runs in found.items():
            peak = max(r["peak_gb"] for r in runs)
            each = " ".join(f"{r['seconds']:.2f}" for r in runs)
            print(f"{form:8} {name:7} {each:>24} {events / median[name]:>10,.0f} {peak:>8.2f}")
        ratios[form] = median["import"] / median["duckdb"]
        peaks.append(max(r["peak_gb"] for r in found["import"]))
        rates.append(events / median["import"])
        figures[f"events_per_s_{form}"] = round(rates[-1])
        figures[f"ratio_{form}"] = round(ratios[form], 2)
    return {
        **figures,
        "events_per_s": round(min(rates)),
        "ratio_to_duckdb": round(max(ratios.values()), 2),
        "peak_gb": round(max(peaks), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options.side, options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder))))


if __name__ == "__main__":
    main()
