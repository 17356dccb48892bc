"""Speed of replaying a log: `python -m tests.bench.replay`, compared with pandas in the same run.

Before each of many lists, and for each of its candidates, the decayed sums of the item, its category and the whole shop
are read, for every kind and half-life, over events strictly before the list. Our side is `ItemState`, with the events
applied between one list and the next, as in `features.replay`. The pandas side is what a pandas expert would write: a
cumulative sum by group for each kind and half-life, then `merge_asof`. Both write their results, and all numbers are
compared.

Each side runs in its own process on the same files, so that peak memory belongs to one side. Complete feature rows are
timed separately, with neighbours, text vectors and user histories, by `Replay.rows`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from features.decay import HALF_LIVES_S, ItemState
from features.history import Histories
from features.log import Events, Kind, Lists
from features.replay import Replay
from tests.bench.made_up import AT, DAY, DAYS, START, made_up_catalogue, made_up_events, made_up_vectors, skewed

LIST = 50
KINDS = (Kind.IMPRESSION, Kind.CLICK, Kind.CART, Kind.PURCHASE)
TOLERANCE, NOTHING = 1e-6, 1e-9
"""Relative tolerance; and a count small enough to be ignored."""
_EPOCH = 500.0
"""Half-lives after which the pandas version starts a new sum: 2^500 is well within float64."""


def say(remark: str) -> None:
    print(remark, file=sys.stderr, flush=True)


def peak_gb() -> float:
    """Peak resident memory of this process in GB. Not `ru_maxrss`, which a child inherits from its parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return int(found[1]) * 1024 / 1e9 if found else float("nan")


def write_log(folder: Path, events: int, lists: int, items: int, users: int) -> int:
    """Write events, lists and categories to files for both sides. Returns the number of events."""
    rng = np.random.default_rng(1)
    log = made_up_events(rng, events, users, items)
    for name in ("at", "user", "item", "kind"):
        np.save(folder / f"{name}.npy", getattr(log, name))
    np.save(folder / "category.npy", made_up_catalogue(rng, items).category)
    # Not in the first tenth, so that there are earlier events.
    np.save(folder / "list_at.npy", np.sort(START + np.floor(rng.uniform(0.1, 1, lists) * DAYS * DAY)))
    np.save(folder / "list_user.npy", skewed(rng, users, lists))
    np.save(folder / "list_item.npy", skewed(rng, items, lists * LIST).reshape(lists, LIST))
    return len(log)


def read_log(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.load(p) for p in folder.glob("*.npy")}


class Sums(dict[str, np.ndarray]):
    """The sums read: float32[lists, LIST, kinds, half-lives] of `item` and `category`, float32[lists, ...] of `shop`.

    For every `Kind`, as in `ItemState`, although the log only has events of `KINDS` and pandas computes no others.
    """

    @classmethod
    def zeros(cls, lists: int) -> Sums:
        """Zeros that are written to, so that the system allocates the memory now and not while a side is timed."""
        shape = (len(Kind), len(HALF_LIVES_S))
        out = cls(
            item=np.empty((lists, LIST, *shape), np.float32),
            category=np.empty((lists, LIST, *shape), np.float32),
            shop=np.empty((lists, *shape), np.float32),
        )
        for values in out.values():
            values.fill(0)
        return out


def ours(log: dict[str, np.ndarray], out: Sums) -> None:
    """As `Replay.snapshots` and the features read them."""
    state = ItemState.empty(log["category"], int(log["category"].max()))
    applied = 0
    for g, at in enumerate(log["list_at"].tolist()):
        end = int(np.searchsorted(log["at"], at, side="left"))
        if end > applied:
            state.apply(log["item"][applied:end], log["kind"][applied:end], log["at"][applied:end])
            applied = end
        candidates = log["list_item"][g]
        out["item"][g] = state.of_items(candidates, at)
        out["category"][g] = state.of_categories(candidates, at)
        out["shop"][g] = state.of_shop(at)


def pandas_sums(log: dict[str, np.ndarray], out: Sums) -> None:
    """The same sums with pandas: for each kind, by group and half-life after each event, then the last before a row."""
    import pandas as pd

    asked = pd.DataFrame({"at": np.repeat(log["list_at"], LIST), "item": log["list_item"].ravel()})
    asked["category"], asked["shop"] = log["category"][asked["item"]], np.int32(0)
    once = asked.iloc[::LIST]
    for kind in KINDS:
        chosen = log["kind"] == kind
        events = pd.DataFrame({"at": log["at"][chosen], "item": log["item"][chosen]})
        events["category"], events["shop"] = log["category"][events["item"]], np.int32(0)
        for entity in ("item", "category", "shop"):
            say(f"  pandas: {kind.name.lower()} by {entity}")
            after = _after_each_event(events, entity)
            left = once if entity == "shop" else asked
            found = pd.merge_asof(
                left[["at", entity]], after, left_on="at", right_on="event_at", by=entity, allow_exact_matches=False
            )
            for h, half_life in enumerate(HALF_LIVES_S):
                decayed = found[h] * np.exp2((found["event_at"] - found["at"]) / half_life)
                out[entity][..., kind, h] = decayed.fillna(0.0).to_numpy().reshape(out[entity].shape[:-2])


def _after_each_event(events, entity: str):  # type: ignore[no-untyped-def]
    """For each event in time order: its time as `event_at`, the entity, and a column of sums per half-life."""
    after = events[["at", entity]].rename(columns={"at": "event_at"})
    for h, half_life in enumerate(HALF_LIVES_S):
        # Sum growing powers by (entity, epoch), because over the whole log a half-life of an hour would overflow.
        # Sums of earlier epochs are carried over.
        epoch = ((after["event_at"] - START) // (_EPOCH * half_life)).astype("int32").rename("epoch")
        since = after["event_at"] - START - epoch * _EPOCH * half_life
        grown = np.exp2(since / half_life).groupby([after[entity], epoch]).cumsum()
        sums = grown * np.exp2(-since / half_life)
        if epoch.iloc[-1] > 0:
            sums += _carry_over(after, entity, epoch, sums, half_life)
        after[h] = sums
    return after


def _carry_over(after, entity: str, epoch, sums, half_life: float):  # type: ignore[no-untyped-def]
    """For each event, the remainder of its entity's sum from its previous epoch. Older sums are 500 half-lives old."""
    ends = after[[entity, "event_at"]].assign(epoch=epoch, sum=sums).groupby([entity, "epoch"]).last()
    before = ends.groupby(level=0).shift().reset_index().rename(columns={"event_at": "ended_at"})
    joined = after[[entity, "event_at"]].assign(epoch=epoch).merge(before, on=[entity, "epoch"], how="left")
    remaining = joined["sum"] * np.exp2((joined["ended_at"] - joined["event_at"]) / half_life)
    return remaining.fillna(0.0).to_numpy()


def run_side(side: str, folder: Path, out: Path) -> None:
    """Run one side in this process: write its sums to files, and its time and peak memory to a JSON report."""
    log = read_log(folder)
    if side == "pandas":
        import pandas as pd  # noqa: F401  # not part of the measured time
    else:  # compile first; compiled code is cached on disk
        ours(log | {k: v[:2] for k, v in log.items() if k.startswith("list_")}, Sums.zeros(2))
    sums = Sums.zeros(len(log["list_at"]))
    before = time.perf_counter()
    {"ours": ours, "pandas": pandas_sums}[side](log, sums)
    seconds = time.perf_counter() - before
    report = {"seconds": seconds, "peak_gb": peak_gb()}
    if side == "ours":
        report |= _user_histories(log)
    for name, values in sums.items():
        np.save(out / f"{side}_{name}.npy", values)
    (out / f"{side}.json").write_text(json.dumps(report), "utf-8")


def _user_histories(log: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds to build all user histories, and to read one before each list. The pandas side does none of this."""
    n = len(log["at"])
    before = time.perf_counter()
    none = np.full(n, -1, np.int32)
    user_ids = [str(user) for user in range(int(max(log["user"].max(), log["list_user"].max())) + 1)]
    histories = Histories.of(
        Events(
            log["at"],
            log["user"],
            log["item"],
            log["kind"],
            none,
            none.astype(np.int16),
            np.full(n, np.nan),
            user_ids,
            [],
            none,
            none.astype(np.int8),
        )
    )
    made = time.perf_counter()
    for user, at in zip(log["list_user"].tolist(), log["list_at"].tolist(), strict=True):
        histories.read(user, at)
    return {"users_made_s": made - before, "users_read_s": time.perf_counter() - made, "peak_with_users_gb": peak_gb()}


def run_in_process(side: str, folder: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.replay", "--side", side, "--folder", str(folder), "--out", str(out)]
    subprocess.run(command, check=True)
    report: dict[str, float] = json.loads((out / f"{side}.json").read_text("utf-8"))
    return report


def find_difference(out: Path) -> str:
    """The first difference between the two sides; empty if there is none."""
    for name in Sums.zeros(0):
        a, b = (np.load(out / f"{side}_{name}.npy", mmap_mode="r") for side in ("ours", "pandas"))
        for first in range(0, len(a), 4096):
            x, y = a[first : first + 4096], b[first : first + 4096]
            # Compare in float64, so that rounding does not exceed the tolerance.
            x, y = x.astype(np.float64), y.astype(np.float64)
            wrong = np.abs(x - y) > TOLERANCE * np.abs(y) + NOTHING
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                return f"{name} at {(where[0] + first, *where[1:])}: ours {x[where]}, pandas {y[where]}"
    return ""


def replay_at(events: int, lists: int, items: int, users: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """The reports of both sides at a size, alternating. Raises SystemExit if they disagree."""
    reports: dict[str, list[dict[str, float]]] = {"ours": [], "pandas": []}
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        folder, out = Path(a), Path(b)
        say(f"generating {events:,} events, {lists * LIST:,} rows")
        n = write_log(folder, events, lists, items, users)
        for repeat in range(repeats):
            say(f"{n:,} events: repeat {repeat + 1} of {repeats}")
            reports["ours"].append(run_in_process("ours", folder, out))
            reports["pandas"].append(run_in_process("pandas", folder, out))
            if problem := find_difference(out):
                raise SystemExit(f"{n:,} events: the two sides disagree, {problem}")
    return reports


def complete_rows(events: int, lists: int, items: int, users: int) -> dict[str, float]:
    """Rows per second of `Replay.rows` over the last lists of a log, with neighbours, prior and 384-d vectors."""
    rng = np.random.default_rng(2)
    log, catalogue = made_up_events(rng, events, users, items), made_up_catalogue(rng, items)
    # Neighbours and prior are computed once, before the first list, and timed separately.
    replay = Replay(catalogue, made_up_vectors(rng, items), log, np.array([AT - 9.5 * DAY]))
    at = np.sort(rng.uniform(AT - 9 * DAY, AT, lists))
    lists_to_read = _lists(at, skewed(rng, users, lists), skewed(rng, items, lists * LIST))
    # Time between the first and the last call, without compilation and the work done once.
    calls: list[tuple[float, int]] = []

    def on_progress(done: int, total: int) -> None:
        calls.append((time.perf_counter(), done))
        if done == total or done % 512 == 0:
            say(f"  rows: {done:,} of {total:,} lists")

    before = time.perf_counter()
    rows = replay.rows(lists_to_read, on_progress)
    (first_at, first), (last_at, last) = calls[0], calls[-1]
    a_list = (last_at - first_at) / (last - first)
    return {
        "features": rows.shape[1],
        "once_s": last_at - before - a_list * lists,
        "rows_per_s": LIST / a_list,
        "ms_a_list": 1000 * a_list,
    }


def _lists(at: np.ndarray, user: np.ndarray, item: np.ndarray) -> Lists:
    n = len(at)
    return Lists(
        at,
        user,
        [f"r{k}" for k in range(n)],
        np.arange(n + 1) * LIST,
        item,
        np.zeros(n * LIST, np.int16),
        np.zeros(n * LIST, np.int8),
        np.zeros((n, 3), np.int32),
        np.full(n, -1, np.int8),
        [""] * n,
    )


def median(reports: list[dict[str, float]], key: str = "seconds") -> float:
    return float(np.median([r[key] for r in reports]))


def seconds(reports: list[dict[str, float]]) -> str:
    values = [r["seconds"] for r in reports]
    return f"{np.median(values):7.2f} ({min(values):.2f}-{max(values):.2f})" if values else "not run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--events", type=int, default=10_000_000, help="events of the larger log; the smaller has a tenth"
    )
    parser.add_argument("--lists", type=int, default=40_000, help=f"lists of {LIST} rows, for either log")
    parser.add_argument(
        "--items", type=int, default=100_000, help="items in the catalogue; their popularity follows Zipf's law"
    )
    parser.add_argument("--users", type=int, default=50_000, help="users; their activity follows Zipf's law")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each side, alternating")
    parser.add_argument("--rows-lists", type=int, default=3000, help="lists for complete feature rows")
    parser.add_argument("--rows-events", type=int, default=1_000_000, help="events for complete feature rows")
    parser.add_argument("--side", choices=("ours", "pandas"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, options.out)
        return
    shop = (options.items, options.users)
    small = replay_at(options.events // 10, options.lists, *shop, options.repeats)
    large = replay_at(options.events, options.lists, *shop, options.repeats)
    rows = complete_rows(options.rows_events, options.rows_lists, *shop)
    print(f"{options.lists * LIST:,} rows, {len(KINDS)} kinds x {len(HALF_LIVES_S)} half-lives of item, category, shop")
    print(
        f"{'events':>12} {'ours, s (range)':>22} {'peak GB':>8} {'pandas, s (range)':>24} {'peak GB':>8} {'ratio':>6}"
    )
    for n, reports in ((options.events // 10, small), (options.events, large)):
        ours_s, pandas_s = median(reports["ours"]), median(reports["pandas"])
        print(
            f"{n:12,} {seconds(reports['ours']):>22} {median(reports['ours'], 'peak_gb'):8.2f} "
            f"{seconds(reports['pandas']):>24} {median(reports['pandas'], 'peak_gb'):8.2f} {pandas_s / ours_s:6.1f}"
        )
    users = large["ours"]
    print(
        f"user histories of {options.events:,} events: built in {median(users, 'users_made_s'):.2f} s, read before "
        f"every list in {median(users, 'users_read_s'):.2f} s, "
        f"peak with them {median(users, 'peak_with_users_gb'):.2f} GB"
    )
    print(
        f"complete rows ({rows['features']} features, {options.rows_events:,} events): "
        f"{rows['rows_per_s']:,.0f} rows/s, {rows['ms_a_list']:.2f} ms per list of {LIST}; "
        f"compilation, neighbours, prior and vectors {rows['once_s']:.1f} s once"
    )
    ratio = {n: median(r["pandas"]) / median(r["ours"]) for n, r in (("small", small), ("large", large))}
    print(
        json.dumps(
            {
                "speedup_vs_pandas": round(ratio["large"], 2),
                "speedup_vs_pandas_at_a_tenth": round(ratio["small"], 2),
                "peak_gb": round(median(large["ours"], "peak_with_users_gb"), 3),
                "linear": round(median(large["ours"]) / median(small["ours"]) / 10, 3),
                "rows_per_s": round(rows["rows_per_s"]),
            }
        )
    )


if __name__ == "__main__":
    main()
