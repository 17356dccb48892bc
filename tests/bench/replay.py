"""How fast a log is replayed: `python -m tests.bench.replay`, against pandas in the same run.

What is read: before each of many lists, for each of its candidates, the decayed sums of the item and of its category,
and those of the shop, for every kind and half-life, of the events strictly before the list. Ours is `ItemState`, the
events applied between one list and the next, as `features.replay` does it. The pandas version is what one would write
who knows pandas well: a cumulative sum by group for each kind and half-life, then `merge_asof`. Both write what they
read, and every number is compared.

Each side runs in a process of its own, over the same files, so that a peak of memory belongs to one side. Apart from
that, whole feature rows are timed: neighbours, text vectors and users' lists as well, in `Replay.rows`.
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
"""Relative; and a count so small that it is none, below which the two may disagree."""
_EPOCH = 500.0
"""Half-lives after which the pandas version begins a sum anew: 2^500 is well inside float64."""


def say(remark: str) -> None:
    print(remark, file=sys.stderr, flush=True)


def peak_gb() -> float:
    """The most memory this process ever had resident, in GB. Not `ru_maxrss`: a child begins with its parent's."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return int(found[1]) * 1024 / 1e9 if found else float("nan")


def write_log(folder: Path, events: int, lists: int, items: int, users: int) -> int:
    """Events, lists and categories as files for both sides; returns how many events there are."""
    rng = np.random.default_rng(1)
    log = made_up_events(rng, events, users, items)
    for name in ("at", "user", "item", "kind"):
        np.save(folder / f"{name}.npy", getattr(log, name))
    np.save(folder / "category.npy", made_up_catalogue(rng, items).category)
    # Not in the first tenth, so that there is something to read.
    np.save(folder / "list_at.npy", np.sort(START + np.floor(rng.uniform(0.1, 1, lists) * DAYS * DAY)))
    np.save(folder / "list_user.npy", skewed(rng, users, lists))
    np.save(folder / "list_item.npy", skewed(rng, items, lists * LIST).reshape(lists, LIST))
    return len(log)


def read_log(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.load(p) for p in folder.glob("*.npy")}


class Sums(dict[str, np.ndarray]):
    """What was read: float32[lists, LIST, kinds, half-lives] of `item` and `category`, float32[lists, ...] of `shop`.

    Of every `Kind`, as `ItemState` has them, though the log has events of `KINDS` alone and pandas looks at no others.
    """

    @classmethod
    def none(cls, lists: int) -> Sums:
        """Zeros, written: so that the system hands out the memory now, and not while a side is timed."""
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
    """As `Replay.snapshots` and the features read it."""
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
    """The same, by pandas: for each kind, sums by group and half-life after each event, then the last before a row."""
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
    """For each event, in time order: its time as `event_at`, the entity, and a column of sums for each half-life."""
    after = events[["at", entity]].rename(columns={"at": "event_at"})
    for h, half_life in enumerate(HALF_LIVES_S):
        # Sums of growing powers by (entity, epoch), else an hour's half-life overflows; older epochs are carried over.
        epoch = ((after["event_at"] - START) // (_EPOCH * half_life)).astype("int32").rename("epoch")
        since = after["event_at"] - START - epoch * _EPOCH * half_life
        grown = np.exp2(since / half_life).groupby([after[entity], epoch]).cumsum()
        sums = grown * np.exp2(-since / half_life)
        if epoch.iloc[-1] > 0:
            sums += _carried(after, entity, epoch, sums, half_life)
        after[h] = sums
    return after


def _carried(after, entity: str, epoch, sums, half_life: float):  # type: ignore[no-untyped-def]
    """For each event, what is left of its entity's sum as of its epoch before; what is older is 500 half-lives old."""
    ends = after[[entity, "event_at"]].assign(epoch=epoch, sum=sums).groupby([entity, "epoch"]).last()
    before = ends.groupby(level=0).shift().reset_index().rename(columns={"event_at": "ended_at"})
    found = after[[entity, "event_at"]].assign(epoch=epoch).merge(before, on=[entity, "epoch"], how="left")
    left = found["sum"] * np.exp2((found["ended_at"] - found["event_at"]) / half_life)
    return left.fillna(0.0).to_numpy()


def run_side(side: str, folder: Path, out: Path) -> None:
    """One side in this process: its sums to files, its time and its peak to `report.json`."""
    log = read_log(folder)
    if side == "pandas":
        import pandas as pd  # noqa: F401  # its import is not its work
    else:  # compiled once on a machine, kept on disk: not part of any replay but the first
        ours(log | {k: v[:2] for k, v in log.items() if k.startswith("list_")}, Sums.none(2))
    sums = Sums.none(len(log["list_at"]))
    before = time.perf_counter()
    {"ours": ours, "pandas": pandas_sums}[side](log, sums)
    seconds = time.perf_counter() - before
    report = {"seconds": seconds, "peak_gb": peak_gb()}
    if side == "ours":
        report |= _user_lists(log)
    for name, values in sums.items():
        np.save(out / f"{side}_{name}.npy", values)
    (out / f"{side}.json").write_text(json.dumps(report), "utf-8")


def _user_lists(log: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds to make every user's lists, and to read them before each list; pandas does none of this."""
    n = len(log["at"])
    before = time.perf_counter()
    none = np.full(n, -1, np.int32)
    histories = Histories.of(
        Events(
            log["at"],
            log["user"],
            log["item"],
            log["kind"],
            none,
            none.astype(np.int16),
            np.full(n, np.nan),
            range(int(max(log["user"].max(), log["list_user"].max())) + 1),
            range(0),
            none,
            none.astype(np.int8),
        )  # type: ignore[arg-type]
    )
    made = time.perf_counter()
    for user, at in zip(log["list_user"].tolist(), log["list_at"].tolist(), strict=True):
        histories.read(user, at)
    return {"users_made_s": made - before, "users_read_s": time.perf_counter() - made, "peak_with_users_gb": peak_gb()}


def in_its_own_process(side: str, folder: Path, out: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.replay", "--side", side, "--folder", str(folder), "--out", str(out)]
    subprocess.run(command, check=True)
    found: dict[str, float] = json.loads((out / f"{side}.json").read_text("utf-8"))
    return found


def differing(out: Path) -> str:
    """Where the two sides disagree, or nothing."""
    for name in Sums.none(0):
        a, b = (np.load(out / f"{side}_{name}.npy", mmap_mode="r") for side in ("ours", "pandas"))
        for first in range(0, len(a), 4096):
            x, y = a[first : first + 4096], b[first : first + 4096]
            # Compared as float64: the tolerance is not to be lost in the comparison.
            x, y = x.astype(np.float64), y.astype(np.float64)
            wrong = np.abs(x - y) > TOLERANCE * np.abs(y) + NOTHING
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                return f"{name} at {(where[0] + first, *where[1:])}: ours {x[where]}, pandas {y[where]}"
    return ""


def replay_at(events: int, lists: int, items: int, users: int, repeats: int) -> dict[str, list[dict[str, float]]]:
    """What each side reports at a size, the sides turn about; raises SystemExit where they disagree."""
    reports: dict[str, list[dict[str, float]]] = {"ours": [], "pandas": []}
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        folder, out = Path(a), Path(b)
        say(f"making {events:,} events, {lists * LIST:,} rows")
        n = write_log(folder, events, lists, items, users)
        for repeat in range(repeats):
            say(f"{n:,} events: repeat {repeat + 1} of {repeats}")
            reports["ours"].append(in_its_own_process("ours", folder, out))
            reports["pandas"].append(in_its_own_process("pandas", folder, out))
            if problem := differing(out):
                raise SystemExit(f"{n:,} events: the two disagree, {problem}")
    return reports


def whole_rows(events: int, lists: int, items: int, users: int) -> dict[str, float]:
    """Rows a second of `Replay.rows` over the last lists of a log: neighbours, prior and 384-d vectors included."""
    rng = np.random.default_rng(2)
    log, catalogue = made_up_events(rng, events, users, items), made_up_catalogue(rng, items)
    # The neighbours and the prior are made once, before the first list; that has its own time.
    replay = Replay(catalogue, made_up_vectors(rng, items), log, np.array([AT - 9.5 * DAY]))
    at = np.sort(rng.uniform(AT - 9 * DAY, AT, lists))
    asked = _lists(at, skewed(rng, users, lists), skewed(rng, items, lists * LIST))
    # Between the first call and the last, so that neither compiling nor what is made once counts for a list.
    calls: list[tuple[float, int]] = []

    def on_progress(done: int, total: int) -> None:
        calls.append((time.perf_counter(), done))
        if done == total or done % 512 == 0:
            say(f"  rows: {done:,} of {total:,} lists")

    before = time.perf_counter()
    made = replay.rows(asked, on_progress)
    (first_at, first), (last_at, last) = calls[0], calls[-1]
    a_list = (last_at - first_at) / (last - first)
    return {
        "features": made.shape[1],
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


def middle(reports: list[dict[str, float]], key: str = "seconds") -> float:
    return float(np.median([r[key] for r in reports]))


def seconds(reports: list[dict[str, float]]) -> str:
    values = [r["seconds"] for r in reports]
    return f"{np.median(values):7.2f} ({min(values):.2f}-{max(values):.2f})" if values else "not run"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000, help="the larger log; the smaller is a tenth of it")
    parser.add_argument("--lists", type=int, default=40_000, help=f"lists of {LIST} rows read from either log")
    parser.add_argument("--items", type=int, default=100_000, help="of the catalogue, popular by Zipf's law")
    parser.add_argument("--users", type=int, default=50_000, help="likewise")
    parser.add_argument("--repeats", type=int, default=3, help="timings of either side, turn about")
    parser.add_argument("--rows-lists", type=int, default=3000, help="lists for which whole feature rows are made")
    parser.add_argument("--rows-events", type=int, default=1_000_000, help="events behind them")
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
    rows = whole_rows(options.rows_events, options.rows_lists, *shop)
    print(f"{options.lists * LIST:,} rows, {len(KINDS)} kinds x {len(HALF_LIVES_S)} half-lives of item, category, shop")
    print(
        f"{'events':>12} {'ours, s (range)':>22} {'peak GB':>8} {'pandas, s (range)':>24} {'peak GB':>8} {'ratio':>6}"
    )
    for n, found in ((options.events // 10, small), (options.events, large)):
        ours_s, pandas_s = middle(found["ours"]), middle(found["pandas"])
        print(
            f"{n:12,} {seconds(found['ours']):>22} {middle(found['ours'], 'peak_gb'):8.2f} "
            f"{seconds(found['pandas']):>24} {middle(found['pandas'], 'peak_gb'):8.2f} {pandas_s / ours_s:6.1f}"
        )
    users = large["ours"]
    print(
        f"users' lists at {options.events:,} events: made in {middle(users, 'users_made_s'):.2f} s, read before every "
        f"list in {middle(users, 'users_read_s'):.2f} s, peak with them {middle(users, 'peak_with_users_gb'):.2f} GB"
    )
    print(
        f"whole rows ({rows['features']} features, {options.rows_events:,} events): {rows['rows_per_s']:,.0f} rows/s, "
        f"{rows['ms_a_list']:.2f} ms a list of {LIST}; "
        f"compiling, neighbours, prior and vectors once {rows['once_s']:.1f} s"
    )
    ratio = {n: middle(r["pandas"]) / middle(r["ours"]) for n, r in (("small", small), ("large", large))}
    print(
        json.dumps(
            {
                "speedup_vs_pandas": round(ratio["large"], 2),
                "speedup_vs_pandas_at_a_tenth": round(ratio["small"], 2),
                "peak_gb": round(middle(large["ours"], "peak_with_users_gb"), 3),
                "linear": round(middle(large["ours"]) / middle(small["ours"]) / 10, 3),
                "rows_per_s": round(rows["rows_per_s"]),
            }
        )
    )


if __name__ == "__main__":
    main()
