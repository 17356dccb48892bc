"""The tables of docs/scale.md: `python -m tests.bench.scale` extrapolates measured unit costs to a large shop.

Each figure is a product of unit costs, which other commands print, and of assumptions, which are marked as such.
Nothing is measured here: change a number below and print the tables again. A test checks that docs/scale.md has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HOUR, DAY, MONTH_H = 3600.0, 86_400.0, 730.0


class Unit(NamedTuple):
    """A measured cost: its value, its unit, and the command or document it is from."""

    value: float
    unit: str
    source: str


UNITS = {
    "rank": Unit(2.49, "CPU ms per ranking of 500 candidates", "`tests.bench.serve`"),
    "write": Unit(21.5, "CPU us per event, service side", "`tests.bench.events`"),
    "redis_write": Unit(28.6, "CPU us per event, Valkey", "`tests.bench.events`"),
    "follow": Unit(8.1, "CPU us per event and worker", "`tests.bench.events`"),
    "collect": Unit(10.3, "CPU us per event", "`tests.bench.events`"),
    "parquet": Unit(23.9, "bytes per event on disk", "`tests.bench.events`"),
    "item_private": Unit(303, "bytes per item, private to each worker", "`tests.bench.memory`"),
    "item_shared": Unit(1086, "bytes per item, shared by the workers of a machine", "`tests.bench.memory`"),
    "user": Unit(176, "bytes per user in Redis, plus:", "`tests.bench.memory`"),
    "engagement": Unit(31.6, "bytes per engagement in a user's list", "`tests.bench.memory`"),
    "impression": Unit(31.8, "bytes per impression in a user's list", "`tests.bench.memory`"),
    "duplicate": Unit(8, "bytes per event of the last three days", "`tests.bench.memory`"),
    "stream": Unit(172, "bytes per event in the stream", "`tests.bench.memory`"),
    "served": Unit(1200, "bytes per served list of 50 in Redis", "[serving.md](serving.md)"),
    "vector": Unit(849, "bytes per item in Redis", "`tests.bench.memory`"),
    "log": Unit(36, "bytes per event in the memory of a nightly run", "columns of `features.log.Events`"),
    "replay": Unit(
        0.077, "CPU us per event applied to item state", "`tests.bench.replay`, (1.58 - 0.89) s / 9 million"
    ),
    "row": Unit(7.7, "CPU us per feature row", "[benchmarks.md](benchmarks.md), 130,000 rows/s"),
    "tree": Unit(0.55, "CPU us per row and tree", "LightGBM 4.7, 1.1 s per tree of 2 million rows"),
    "encode": Unit(33, "CPU ms per text of 62 tokens", "MiniLM-L6, 60 texts/s on two cores"),
    "known": Unit(720, "CPU us per text to find it in the vector store", "texts of 68 tokens, `read_texts`"),
    "base_vector": Unit(1_560, "bytes per text in the vector store", "a segment of `VectorStore`"),
    "set": Unit(25, "us per vector written to a cluster", "pipelined SET, 40,000 keys/s"),
    "kmeans": Unit(112, "s for a million vectors, 4 sqrt(n) lists", "`tests.bench.neighbours`"),
    "cooccur": Unit(0.43, "CPU us per engagement", "item-item top 50, 4.3 s for 10 million"),
}
ASSUMED: dict[str, tuple[float, str]] = {
    "items": (1e8, "items"),
    "events": (1e9, "events per day"),
    "users": (1e8, "users with lists in Redis"),
    "impressions": (0.9, "share of events that are impressions"),
    "list": (24, "impressions per list; each list is a ranking of 500 candidates"),
    "peak": (3, "peak load relative to the mean"),
    "busy": (0.5, "share of a core that may be used at the peak"),
    "engaged": (20, "engagements in a user's list, on average"),
    "shown": (120, "impressions in a user's list, on average"),
    "kept": (6, "days of events in the stream: five releases and the current day"),
    "days": (30, "days of log for training"),
    "rows": (5e7, "rows for training the ranker"),
    "trees": (500, "trees"),
    "changed": (0.01, "share of items with a new text each day"),
    "machine": (512, "GB of memory of a machine with 64 cores"),
    "node": (50, "GB of data on a Redis node of 64 GB"),
    "core_hour": (0.04, "dollars per core-hour, without memory"),
    "gb_month": (3.0, "dollars per GB of memory and month"),
    "disk_month": (0.025, "dollars per GB of disk and month"),
}


class Line(NamedTuple):
    """A row of a table: the quantity, its calculation, and the result with its unit."""

    what: str
    arithmetic: str
    result: str


class Shop(NamedTuple):
    """Results for the assumptions. Rates per second at the peak, memory in GB, work in core-hours per day."""

    peak_events: float
    peak_lists: float
    follow: float
    workers: int
    worker_gb: float
    machine_gb: float
    machines: int
    users_gb: float
    stream_gb: float
    vectors_gb: float
    nodes: int
    night: dict[str, float]


def a(name: str) -> float:
    """The value of an assumption."""
    return ASSUMED[name][0]


def u(name: str) -> float:
    """The value of a unit cost."""
    return UNITS[name].value


def shop() -> Shop:
    """Calculate all results."""
    peak_events = a("events") / DAY * a("peak")
    peak_lists = peak_events * a("impressions") / a("list")
    follow = peak_events * u("follow") / 1e6
    cores = peak_lists * u("rank") / 1e3 + peak_events * u("write") / 1e6
    workers = -int(-cores // (a("busy") - follow))
    # Two releases at a time: the next one is warmed up while the live one serves.
    worker_gb, shared_gb = (2 * a("items") * u(f"item_{kind}") / 1e9 for kind in ("private", "shared"))
    workers_per_machine = int((a("machine") - shared_gb) // worker_gb)
    machines = -(-workers // workers_per_machine)
    bytes_per_user = (
        u("user")
        + u("engagement") * a("engaged")
        + u("impression") * a("shown")
        + u("duplicate") * 3 * a("events") / a("users")
    )
    users_gb, stream_gb = a("users") * bytes_per_user / 1e9, a("events") * a("kept") * u("stream") / 1e9
    vectors_gb = a("items") * u("vector") / 1e9
    log = a("events") * a("days")
    night = {
        "collect": a("events") * u("collect") / 1e6 / HOUR,
        "replay": log * u("replay") / 1e6 / HOUR,
        "neighbours": log * (1 - a("impressions")) * u("cooccur") / 1e6 / HOUR,
        "known texts": a("items") * u("known") / 1e6 / HOUR,
        "encode": a("items") * a("changed") * u("encode") / 1e3 / HOUR,
        "rows": a("rows") * u("row") / 1e6 / HOUR,
        "trees": a("rows") * a("trees") * u("tree") / 1e6 / HOUR,
        "k-means": (a("items") / 1e6) ** 1.5 * u("kmeans") / HOUR,
    }
    nodes = -int(-(users_gb + stream_gb + vectors_gb) // a("node"))
    return Shop(
        peak_events,
        peak_lists,
        follow,
        workers,
        worker_gb,
        shared_gb + min(workers_per_machine, workers) * worker_gb,
        machines,
        users_gb,
        stream_gb,
        vectors_gb,
        nodes,
        night,
    )


def serving(s: Shop) -> list[Line]:
    """Rankings and workers."""
    rank, write = s.peak_lists * u("rank") / 1e3, s.peak_events * u("write") / 1e6
    return [
        Line("events at the peak", f"{a('events'):.0e} / 86,400 s x {a('peak'):.0f}", f"{s.peak_events:,.0f} /s"),
        Line("rankings at the peak", f"{a('impressions')} x events / {a('list'):.0f}", f"{s.peak_lists:,.0f} /s"),
        Line("ranking", f"{s.peak_lists:,.0f} /s x {u('rank')} ms", f"{rank:.1f} cores"),
        Line("receiving events", f"{s.peak_events:,.0f} /s x {u('write')} us", f"{write:.2f} cores"),
        Line(
            "following the stream",
            f"{s.peak_events:,.0f} /s x {u('follow')} us",
            f"**{s.follow:.2f} cores per worker**",
        ),
        Line("workers", f"{rank + write:.2f} / ({a('busy')} - {s.follow:.2f})", f"{s.workers}"),
        Line(
            "private memory of a worker",
            f"2 releases x {a('items'):.0e} x {u('item_private'):.0f} B",
            f"**{s.worker_gb:.0f} GB**",
        ),
        Line(
            "shared memory of a machine",
            f"2 releases x {a('items'):.0e} x {u('item_shared'):,.0f} B",
            f"{2 * a('items') * u('item_shared') / 1e9:.0f} GB",
        ),
        Line(
            "machines",
            f"{s.workers} workers, {s.machine_gb:.0f} of {a('machine'):.0f} GB used",
            f"{s.machines}, plus one spare",
        ),
    ]


def redis(s: Shop) -> list[Line]:
    """Memory and processor time of the cluster."""
    served = a("events") * a("impressions") / a("list") * u("served") / 24 / 1e9
    return [
        Line("users", f"{a('users'):.0e} x {s.users_gb * 1e9 / a('users'):,.0f} B", f"{s.users_gb:,.0f} GB"),
        Line(
            "event stream",
            f"{a('events'):.0e} x {a('kept'):.0f} days x {u('stream'):.0f} B",
            f"**{s.stream_gb:,.0f} GB**",
        ),
        Line("item vectors", f"{a('items'):.0e} x {u('vector'):.0f} B", f"{s.vectors_gb:,.0f} GB"),
        Line("served lists, collected hourly", f"lists per day / 24 x {u('served'):,.0f} B", f"{served:.1f} GB"),
        Line(
            "nodes",
            f"{s.users_gb + s.stream_gb + s.vectors_gb:,.0f} GB / {a('node'):.0f}",
            f"{s.nodes}, plus as many replicas",
        ),
        Line(
            "processor time at the peak",
            f"{s.peak_events:,.0f} /s x {u('redis_write')} us",
            f"{s.peak_events * u('redis_write') / 1e6:.1f} cores of {s.nodes}",
        ),
    ]


def night(s: Shop) -> list[Line]:
    """Offline work per day, in core-hours."""
    log, engaged = a("events") * a("days"), a("events") * a("days") * (1 - a("impressions"))
    calculation = {
        "collect": f"{a('events'):.0e} x {u('collect')} us",
        "replay": f"{log:.0e} x {u('replay')} us",
        "neighbours": f"{engaged:.0e} x {u('cooccur')} us",
        "known texts": f"{a('items'):.0e} x {u('known'):.0f} us",
        "encode": f"{a('items') * a('changed'):.0e} x {u('encode'):.0f} ms",
        "rows": f"{a('rows'):.0e} x {u('row')} us",
        "trees": f"{a('rows'):.0e} x {a('trees'):.0f} x {u('tree')} us",
        "k-means": f"{u('kmeans'):.0f} s x {a('items') / 1e6:.0f}^1.5",
    }
    lines = [Line(name, calculation[name], f"{hours:.1f} core-h") for name, hours in s.night.items()]
    return [
        *lines,
        Line("total", "", f"{sum(s.night.values()):.0f} core-h"),
        Line(
            "encoding all items with a new encoder",
            f"{a('items'):.0e} x {u('encode'):.0f} ms",
            f"**{a('items') * u('encode') / 1e3 / HOUR:,.0f} core-h**",
        ),
        Line(
            "writing its vectors to Redis",
            f"{a('items'):.0e} x {u('set'):.0f} us",
            f"{a('items') * u('set') / 1e6 / HOUR:.1f} h",
        ),
        Line("log in memory", f"{log:.0e} x {u('log'):.0f} B", f"**{log * u('log') / 1e9:,.0f} GB**"),
        Line("log on disk", f"{log:.0e} x {u('parquet')} B", f"{log * u('parquet') / 1e9:,.0f} GB"),
        Line(
            "vector store",
            f"{a('items'):.0e} x {u('base_vector'):,.0f} B",
            f"{a('items') * u('base_vector') / 1e9:.0f} GB",
        ),
        Line(
            "release",
            f"{a('items'):.0e} x ({u('item_shared'):,.0f} + 768) B",
            f"{a('items') * (u('item_shared') + 768) / 1e9:.0f} GB",
        ),
    ]


def money(s: Shop) -> list[Line]:
    """Cost per month, in dollars."""
    machines, gb = s.machines + 1, (s.users_gb + s.stream_gb + s.vectors_gb) * 2
    serving_cost = machines * (64 * MONTH_H * a("core_hour") + a("machine") * a("gb_month"))
    redis_cost = gb * 64 / a("node") * a("gb_month")
    night_cost = 30 * sum(s.night.values()) * a("core_hour")
    disk = a("events") * a("days") * u("parquet") / 1e9 * a("disk_month")
    return [
        Line(
            "serving",
            f"{machines} x (64 x 730 h x {a('core_hour')} + {a('machine'):.0f} x {a('gb_month'):.0f})",
            f"{serving_cost:,.0f}",
        ),
        Line("Redis", f"2 x {gb / 2:,.0f} GB x 64 / {a('node'):.0f} x {a('gb_month'):.0f}", f"{redis_cost:,.0f}"),
        Line("nightly runs", f"30 x {sum(s.night.values()):.0f} core-h x {a('core_hour')}", f"{night_cost:,.0f}"),
        Line("disk", f"{a('events') * a('days') * u('parquet') / 1e9:,.0f} GB x {a('disk_month')}", f"{disk:,.0f}"),
        Line("total", "", f"**{serving_cost + redis_cost + night_cost + disk:,.0f}**"),
    ]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [headings, ["---"] * len(headings), *rows])


def tables() -> dict[str, str]:
    """All tables by name, as in docs/scale.md."""
    s = shop()
    return {
        "assumed": table(["value", "assumption"], [[f"{v:,g}", about] for v, about in ASSUMED.values()]),
        "units": table(["unit cost", "unit", "source"], [[f"{x.value:,g}", x.unit, x.source] for x in UNITS.values()]),
        "serving": table(["serving", "calculation", "result"], serving(s)),
        "redis": table(["Redis Cluster", "calculation", "result"], redis(s)),
        "night": table(["nightly run", "calculation", "result"], night(s)),
        "money": table(["dollars per month", "calculation", "result"], money(s)),
    }


if __name__ == "__main__":
    for text in tables().values():
        print(text, end="\n\n")
