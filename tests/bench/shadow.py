"""Cost of shadow scoring for the requests served: `python -m tests.bench.shadow`, one worker over HTTP.

The shop, the model and the requests are those of `tests.bench.serve`. One client sends requests without a shadow
release, and with one that scores a tenth of the lists (the default), alternating; each turn is compared with the one
before. Ends with one line of JSON: ratios of latency and of processor time per request, with median and range.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from features.history import ENGAGEMENTS, SHOWN
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.bench.assemble import train_model
from tests.bench.clients import closed_loop
from tests.bench.made_up import AT, made_up_items
from tests.bench.memory import write_release_with, write_users
from tests.bench.serve import made_up_questions, service

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(process: int) -> float:
    """Processor seconds used by a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def until_shadow(port: int, expected: str | None) -> None:
    """Wait until the worker has the expected shadow release, or none."""
    for _ in range(1200):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready") as answer:
            if json.load(answer)["shadow"] == expected:
                return
        time.sleep(0.05)
    raise TimeoutError(f"no worker had {expected} in shadow within a minute")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="items in the catalogue")
    parser.add_argument("--trees", type=int, default=500, help="trees of the model, 31 leaves each")
    parser.add_argument("--requests", type=int, default=500, help="requests per turn")
    parser.add_argument("--turns", type=int, default=5, help="turns per variant")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    users = min(1000, options.items // 10)
    items = made_up_items(rng, options.items, 10 * options.items)
    text = train_model(items, options.items, options.trees, 30)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        paths = [write_release_with(Path(folder), items, text, AT + n) for n in range(2)]
        live, shadow_release = (Pointer(p.name, str(p)) for p in paths)
        questions = [q.bytes for q in made_up_questions(rng, options.items, users, min(500, options.items // 4), 200)]
        with ExitStack() as context:
            store = context.enter_context(BulkStore(url))
            write_users(store, rng, users, ENGAGEMENTS, SHOWN, options.items)
            store.set_pointer(live)
            process, port = context.enter_context(service(url, paths[0]))
            uvloop.run(closed_loop(port, questions, 1, total=min(200, options.requests)))
            turns: list[list[dict[str, float]]] = [[], []]
            for _ in range(options.turns):
                for side, shadow in enumerate((None, shadow_release)):
                    store.set_shadow(shadow)
                    until_shadow(port, shadow.id if shadow else None)
                    start = cpu_s(process)
                    load = uvloop.run(closed_loop(port, questions, 1, total=options.requests))
                    cpu = 1e3 * (cpu_s(process) - start) / options.requests
                    turns[side].append({"p50": load.at(50), "p99": load.at(99), "cpu": cpu})
    out: dict[str, Any] = {}
    for name in ("p50", "p99", "cpu"):
        ratio = [with_[name] / without[name] for without, with_ in zip(*turns, strict=True)]
        out[f"{name}_ratio"] = round(float(np.median(ratio)), 3)
        out[f"{name}_range"] = [round(min(ratio), 3), round(max(ratio), 3)]
        out[f"{name}_ms"] = [round(float(np.median([t[name] for t in side])), 2) for side in turns]
    print(json.dumps(out))


if __name__ == "__main__":
    main()
