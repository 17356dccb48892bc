"""The tables of docs/scale.md: `python -m tests.bench.scale` carries measured unit costs to a large shop.

Each figure is a product of unit costs, which other commands print, and of assumptions, which are said to be that.
Nothing is measured here: change a number below and print the tables again. A test holds the paper to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HOUR, DAY, MONTH_H = 3600.0, 86_400.0, 730.0


class Unit(NamedTuple):
    """A measured cost: value, in what, and which command or document says so."""

    value: float
    unit: str
    source: str


UNITS = {
    "rank": Unit(2.49, "CPU ms, 500 candidates", "`tests.bench.serve`"),
    "write": Unit(21.5, "CPU us an event, service side", "`tests.bench.events`"),
    "redis_write": Unit(28.6, "CPU us an event, Valkey", "`tests.bench.events`"),
    "follow": Unit(8.1, "CPU us an event and worker", "`tests.bench.events`"),
    "collect": Unit(10.3, "CPU us an event", "`tests.bench.events`"),
    "parquet": Unit(23.9, "bytes an event on disk", "`tests.bench.events`"),
    "item_private": Unit(303, "bytes an item, each worker's own", "`tests.bench.memory`"),
    "item_shared": Unit(1086, "bytes an item, of all workers of a machine", "`tests.bench.memory`"),
    "user": Unit(68, "bytes a user in Redis, and:", "`tests.bench.memory`"),
    "engagement": Unit(31.4, "bytes an engagement in a list", "`tests.bench.memory`"),
    "impression": Unit(31.6, "bytes an impression in a list", "`tests.bench.memory`"),
    "duplicate": Unit(8, "bytes an event of the last three days", "`tests.bench.memory`"),
    "stream": Unit(172, "bytes an event in the stream", "`tests.bench.memory`"),
    "served": Unit(1200, "bytes an answered list of 50 in Redis", "[serving.md](serving.md)"),
    "vector": Unit(849, "bytes an item in Redis", "`tests.bench.memory`"),
    "log": Unit(36, "bytes an event in a night's memory", "columns of `features.log.Events`"),
    "replay": Unit(0.077, "CPU us an event into item state", "`tests.bench.replay`, (1.58 - 0.89) s / 9 million"),
    "row": Unit(7.7, "CPU us a feature row", "[benchmarks.md](benchmarks.md), 130,000 rows/s"),
    "tree": Unit(0.55, "CPU us a row and tree", "LightGBM 4.7, 1.1 s a tree of 2 million rows"),
    "encode": Unit(33, "CPU ms a text of 62 tokens", "MiniLM-L6, 60 texts/s on two cores"),
    "set": Unit(25, "us a vector into a cluster", "pipelined SET, 40,000 keys/s"),
    "kmeans": Unit(112, "s for a million vectors, 4 sqrt(n) lists", "`tests.bench.neighbours`"),
    "cooccur": Unit(0.43, "CPU us an engagement", "item-item top 50, 4.3 s for 10 million"),
}
ASSUMED: dict[str, tuple[float, str]] = {
    "items": (1e8, "items"),
    "events": (1e9, "events a day"),
    "users": (1e8, "users with lists in Redis"),
    "impressions": (0.9, "of the events are impressions"),
    "list": (24, "impressions a list, each list one ranking of 500 candidates"),
    "peak": (3, "times the mean at the peak"),
    "busy": (0.5, "of a core may be used at the peak"),
    "engaged": (20, "engagements in a user's list, on average"),
    "shown": (120, "impressions in a user's list, on average"),
    "kept": (6, "days that the stream reaches back: five releases and the day under way"),
    "days": (30, "days of log that a night learns from"),
    "rows": (5e7, "rows that the ranker is trained on"),
    "trees": (500, "trees"),
    "changed": (0.01, "of the items have a new text each day"),
    "machine": (512, "GB of memory a machine of 64 cores"),
    "node": (50, "GB of data a Redis node, of 64"),
    "core_hour": (0.04, "dollars a core-hour, without memory"),
    "gb_month": (3.0, "dollars a GB of memory and month"),
    "disk_month": (0.025, "dollars a GB of disk and month"),
}


class Line(NamedTuple):
    """One row of a table: what, the arithmetic, and the result with its unit."""

    what: str
    arithmetic: str
    result: str


class Shop(NamedTuple):
    """What follows from the assumptions. Rates a second at the peak, memory in GB, work in core-hours a day."""

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
    """An assumption."""
    return ASSUMED[name][0]


def u(name: str) -> float:
    """A unit cost."""
    return UNITS[name].value


def shop() -> Shop:
    """The whole arithmetic."""
    peak_events = a("events") / DAY * a("peak")
    peak_lists = peak_events * a("impressions") / a("list")
    follow = peak_events * u("follow") / 1e6
    asked = peak_lists * u("rank") / 1e3 + peak_events * u("write") / 1e6
    workers = -int(-asked // (a("busy") - follow))
    # Two releases at once: the next is warmed beside the live one.
    worker_gb, shared_gb = (2 * a("items") * u(f"item_{kind}") / 1e9 for kind in ("private", "shared"))
    on_one = int((a("machine") - shared_gb) // worker_gb)
    machines = -(-workers // on_one)
    a_user = (
        u("user")
        + u("engagement") * a("engaged")
        + u("impression") * a("shown")
        + u("duplicate") * 3 * a("events") / a("users")
    )
    users_gb, stream_gb = a("users") * a_user / 1e9, a("events") * a("kept") * u("stream") / 1e9
    vectors_gb = a("items") * u("vector") / 1e9
    log = a("events") * a("days")
    night = {
        "collect": a("events") * u("collect") / 1e6 / HOUR,
        "replay": log * u("replay") / 1e6 / HOUR,
        "neighbours": log * (1 - a("impressions")) * u("cooccur") / 1e6 / HOUR,
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
        shared_gb + min(on_one, workers) * worker_gb,
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
        Line("rankings at the peak", f"{a('impressions')} x that / {a('list'):.0f}", f"{s.peak_lists:,.0f} /s"),
        Line("to rank", f"{s.peak_lists:,.0f} /s x {u('rank')} ms", f"{rank:.1f} cores"),
        Line("to take events", f"{s.peak_events:,.0f} /s x {u('write')} us", f"{write:.2f} cores"),
        Line("to follow the stream", f"{s.peak_events:,.0f} /s x {u('follow')} us", f"**{s.follow:.2f} of a worker**"),
        Line("workers", f"{rank + write:.2f} / ({a('busy')} - {s.follow:.2f})", f"{s.workers}"),
        Line(
            "a worker's own memory",
            f"2 releases x {a('items'):.0e} x {u('item_private'):.0f} B",
            f"**{s.worker_gb:.0f} GB**",
        ),
        Line(
            "shared on a machine",
            f"2 releases x {a('items'):.0e} x {u('item_shared'):,.0f} B",
            f"{2 * a('items') * u('item_shared') / 1e9:.0f} GB",
        ),
        Line(
            "machines",
            f"{s.workers} workers, {s.machine_gb:.0f} of {a('machine'):.0f} GB on one",
            f"{s.machines}, and one to spare",
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
        Line("answered lists, collected hourly", f"a day's / 24 x {u('served'):,.0f} B", f"{served:.1f} GB"),
        Line(
            "nodes",
            f"{s.users_gb + s.stream_gb + s.vectors_gb:,.0f} GB / {a('node'):.0f}",
            f"{s.nodes}, and as many replicas",
        ),
        Line(
            "processor time at the peak",
            f"{s.peak_events:,.0f} /s x {u('redis_write')} us",
            f"{s.peak_events * u('redis_write') / 1e6:.1f} cores of {s.nodes}",
        ),
    ]


def night(s: Shop) -> list[Line]:
    """A day's work off line, in core-hours."""
    log, engaged = a("events") * a("days"), a("events") * a("days") * (1 - a("impressions"))
    said = {
        "collect": f"{a('events'):.0e} x {u('collect')} us",
        "replay": f"{log:.0e} x {u('replay')} us",
        "neighbours": f"{engaged:.0e} x {u('cooccur')} us",
        "encode": f"{a('items') * a('changed'):.0e} x {u('encode'):.0f} ms",
        "rows": f"{a('rows'):.0e} x {u('row')} us",
        "trees": f"{a('rows'):.0e} x {a('trees'):.0f} x {u('tree')} us",
        "k-means": f"{u('kmeans'):.0f} s x {a('items') / 1e6:.0f}^1.5",
    }
    lines = [Line(name, said[name], f"{hours:.1f} core-h") for name, hours in s.night.items()]
    return [
        *lines,
        Line("all of these", "", f"{sum(s.night.values()):.0f} core-h"),
        Line(
            "a new encoder reads everything",
            f"{a('items'):.0e} x {u('encode'):.0f} ms",
            f"**{a('items') * u('encode') / 1e3 / HOUR:,.0f} core-h**",
        ),
        Line(
            "its vectors into Redis",
            f"{a('items'):.0e} x {u('set'):.0f} us",
            f"{a('items') * u('set') / 1e6 / HOUR:.1f} h",
        ),
        Line("the log in memory", f"{log:.0e} x {u('log'):.0f} B", f"**{log * u('log') / 1e9:,.0f} GB**"),
        Line("the log on disk", f"{log:.0e} x {u('parquet')} B", f"{log * u('parquet') / 1e9:,.0f} GB"),
        Line(
            "a release",
            f"{a('items'):.0e} x ({u('item_shared'):,.0f} + 768) B",
            f"{a('items') * (u('item_shared') + 768) / 1e9:.0f} GB",
        ),
    ]


def money(s: Shop) -> list[Line]:
    """A month, in dollars."""
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
        Line("nights", f"30 x {sum(s.night.values()):.0f} core-h x {a('core_hour')}", f"{night_cost:,.0f}"),
        Line("disk", f"{a('events') * a('days') * u('parquet') / 1e9:,.0f} GB x {a('disk_month')}", f"{disk:,.0f}"),
        Line("together", "", f"**{serving_cost + redis_cost + night_cost + disk:,.0f}**"),
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def tables() -> dict[str, str]:
    """By name, as the paper has them."""
    s = shop()
    return {
        "assumed": table(["assumption", ""], [[f"{v:,g}", about] for v, about in ASSUMED.values()]),
        "units": table(["unit cost", "", "from"], [[f"{x.value:,g}", x.unit, x.source] for x in UNITS.values()]),
        "serving": table(["serving", "", ""], serving(s)),
        "redis": table(["Redis Cluster", "", ""], redis(s)),
        "night": table(["a night", "", ""], night(s)),
        "money": table(["dollars a month", "", ""], money(s)),
    }


if __name__ == "__main__":
    for text in tables().values():
        print(text, end="\n\n")
