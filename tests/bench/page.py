"""One page of four placements compared with four requests: `python -m tests.bench.page`, over HTTP, with a real Valkey.

The shop, the model and the users are those of `tests.bench.serve`: 100,000 items, 500 trees, users with full lists.
Each round sends the same users' pages of 12 items per list, once as `POST /v1/page` and once as four
`POST /v1/recommend` one after the other, in turn. Compared are the processor time of the service (all threads, as
counted by the kernel) and the time until the last answer. The lists of a page differ in their placement: with the same
candidates (all sources), or each with sources of its own, and without and with variants (four items per product).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from features.history import ENGAGEMENTS, SHOWN
from features.moment import Items
from serving.store import BulkStore, Pointer
from serving.store.embedded import connect_url
from tests.bench.assemble import train_model
from tests.bench.clients import closed_loop, posted
from tests.bench.made_up import AT, made_up_items
from tests.bench.memory import write_release_with, write_users
from tests.bench.serve import cpu_s, service

PAGES = {"same candidates": ["one", "two", "three", "four"], "own sources": ["popular", "new", "again", "near"]}
PLACEMENTS: dict[str, Any] = {
    **{name: {"limit": 12} for name in PAGES["same candidates"]},
    "popular": {"sources": {"popular": 1, "popular_in_category": 1}, "limit": 12},
    "new": {"sources": {"new": 1}, "limit": 12},
    "again": {"sources": {"again": 1}, "limit": 12},
    "near": {"sources": {"co_occurrence": 1, "text": 1}, "limit": 12},
}
USERS = 1000


def with_groups(items: Items) -> Items:
    """The items as variants of a quarter as many products."""
    n = len(items.catalogue)
    group = np.append(np.arange(n, dtype=np.int32) // 4, np.int32(-(-n // 4)))
    names = [f"product-{k}" for k in range(-(-n // 4))]
    return replace(items, catalogue=replace(items.catalogue, group=group, group_names=names))


def requests_of(users: list[str], names: list[str]) -> tuple[list[bytes], list[bytes]]:
    """The pages of these users, and the same lists as single requests."""
    pages = [{"user_id": u, "placements": [{"placement": name} for name in names]} for u in users]
    singles = [{"user_id": u, "placement": name} for u in users for name in names]
    return (
        [posted("/v1/page", json.dumps(body).encode()) for body in pages],
        [posted("/v1/recommend", json.dumps(body).encode()) for body in singles],
    )


def measure(process: int, port: int, rounds: int, pages: int, names: list[str], rng: np.random.Generator) -> np.ndarray:
    """float64[rounds, 2, 2]: CPU ms and latency in ms, of a page and of the single requests for its lists."""
    out = np.empty((rounds + 1, 2, 2))
    for r in range(rounds + 1):  # the first round warms up
        users = [f"user-{u:08d}" for u in rng.integers(0, USERS, pages).tolist()]
        forms = requests_of(users, names)
        for k in (0, 1) if r % 2 else (1, 0):
            before = cpu_s(process)
            load = uvloop.run(closed_loop(port, forms[k], 1, total=len(forms[k])))
            out[r, :, k] = (cpu_s(process) - before) * 1e3 / pages, sum(load.ms) / pages
            if load.errors or load.degraded:
                raise SystemExit(f"{load.errors} errors, {load.degraded} degraded: {load.first_error}")
    return out[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--trees", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pages", type=int, default=20, help="pages per round")
    options = parser.parse_args()
    rng, ratios = np.random.default_rng(1), dict[str, float]()
    items = made_up_items(rng, options.items, 10 * options.items)
    text = train_model(items, options.items, options.trees, 300)
    with tempfile.TemporaryDirectory() as folder, connect_url(None, Path(folder) / "valkey") as url:
        shops = {"": items, ", variants": with_groups(items)}
        releases = {
            name: write_release_with(Path(folder), of, text, AT + k) for k, (name, of) in enumerate(shops.items())
        }
        with BulkStore(url) as store:
            write_users(store, rng, USERS, ENGAGEMENTS, SHOWN, options.items)
        del items, shops
        print(
            f"{'':>36} {'page':>8} {'singles':>8}  ratio (p10-p90), of {options.rounds} rounds of {options.pages} pages"
        )
        for shop, release in releases.items():
            with BulkStore(url) as store:
                store.set_pointer(Pointer(release.name, str(release)))
            with service(url, release, placements=PLACEMENTS) as (process, port):
                for page, names in PAGES.items():
                    measured = measure(process, port, options.rounds, options.pages, names, rng)
                    for unit, ms in zip(("CPU ms", "latency ms"), measured.transpose(1, 0, 2), strict=True):
                        ratio, (page_ms, single_ms) = ms[:, 0] / ms[:, 1], np.median(ms, axis=0)
                        middle, low, high = np.percentile(ratio, [50, 10, 90])
                        name = f"{page}{shop}, {unit}"
                        print(
                            f"{name:>36} {page_ms:8.2f} {single_ms:8.2f}  {middle:.3f} ({low:.3f}-{high:.3f})",
                            flush=True,
                        )
                        ratios[name] = round(float(middle), 4)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
