"""The loop closed: simulated days served, collected, retrained and promoted: `python -m tests.bench.loop --days 14`.

A young shop has a log of some days. `shelfwise simulate` writes it, a first night makes a release of it, and from then
on the days go by commands alone: `serve` and `embed` run on, simulated shoppers ask for lists and act on what they are
shown, and at each day's end `collect` and `nightly --date` run, gate and all. The service swaps by itself. New items
come by PUT /v1/items. A second service, in a workspace of its own, keeps the first release for ever and is sent the
same events and items; what it would have answered to each request is compared, never shown.

Quality is ndcg@10 of the expected gain of each list by the hidden truth: 1 is the best possible order of all that may
stand on that page. The log's end lies in the past, as entries of the event stream are numbered by the real clock.

Everything is kept under --directory: the same command goes on where it was stopped, at the list after the last.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml

from offline.config.configuration import Config, load
from offline.config.simulation import SimulateConfig
from offline.nightly.night import Night
from offline.runtime.files import write_json
from offline.runtime.progress import console, progress_bar
from serving.store.embedded import connect_url
from tests.bench.loop_report import draw, summary
from tests.bench.visitors import Arms, Played, Visitors, sent, set_clock

_STATUS = {0: "published", 3: "kept by the gate", 4: "stopped by the checks", 6: "left to a person"}
_WAIT_S = 180.0


def main() -> None:
    """Play what is left to play, and write `loop.json` and `loop.svg`; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=14, help="days that are served")
    parser.add_argument("--opening", type=int, default=10, help="days of log that the first release learns from")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--new-items", type=float, default=4, help="a day")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--config", type=Path, help="YAML of further settings, for both workspaces")
    parser.add_argument("--directory", type=Path, default=Path("build/loop"), help="where everything is kept")
    parser.add_argument("--plot", type=Path, help="where to put the plot as well")
    options = parser.parse_args()
    # Told to stop, it ends what it started; a process in the background is not told by SIGINT.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    shop = SimulateConfig.model_validate(
        {
            "seed": options.seed,
            "items": options.items,
            "users": options.users,
            "days": options.opening,
            "ahead": options.days,
            "new_items_per_day": options.new_items,
            "end": "2025-06-02T00:00:00Z",
        }
    )
    more = yaml.safe_load(options.config.read_text("utf-8")) if options.config else {}
    loop = Loop(options.directory.resolve(), shop, more)
    found = summary(loop.run(), shop)
    write_json(loop.directory / "loop.json", found)
    for path in (loop.directory / "loop.svg", options.plot):
        if path is not None:
            draw(found, path)
    print(json.dumps(found["whole"]))


class Failed(RuntimeError):
    """A command or a service did not do what the loop needs; the message says which, and ends with what it said."""


@dataclass
class Loop:
    """One closed loop, kept in a directory. more: settings of both workspaces."""

    directory: Path
    shop: SimulateConfig
    more: dict[str, Any]

    @property
    def clock(self) -> Path:
        """The file that tells both services the time."""
        return self.directory / "clock"

    def run(self) -> list[tuple[Played, dict[str, Any]]]:
        """Each day as it was played, and the night after it."""
        self._settle()
        live, kept = (Workspace(self._configured(name), self.directory) for name in Arms._fields)
        out: list[tuple[Played, dict[str, Any]]] = []
        with ExitStack() as services, progress_bar("Days") as on_progress:
            for workspace in (live, kept):  # a Valkey of each, for all its commands, which must not outlive them
                services.enter_context(connect_url(None, workspace.config.redis))
            with ThreadPoolExecutor() as both:
                first = list(both.map(self._first_night, (live, kept)))
            if first[0] != first[1]:
                raise Failed(f"the same log made two releases, {first[0]} and {first[1]}: nothing can be compared")
            visitors = Visitors(self.shop, self.clock)
            arms: Arms | None = None
            for day in range(self.shop.days, self.shop.days + self.shop.ahead):
                on_progress(len(out), self.shop.ahead)
                night = self._file("night", day)
                if night.exists():
                    out.append((visitors.day(day, self._file("day", day), None), json.loads(night.read_text("utf-8"))))
                    continue
                if arms is None:
                    set_clock(self.clock, visitors.begins_us(day) / 1e6)
                    arms = Arms(*(services.enter_context(w.served(self.clock)) for w in (live, kept)))
                out.append(self._day(day, visitors, arms, live))
                console.print(_told(day, *out[-1]))
            on_progress(len(out), self.shop.ahead)
        return out

    def _day(self, day: int, visitors: Visitors, arms: Arms, live: Workspace) -> tuple[Played, dict[str, Any]]:
        """One day and its night."""
        set_clock(self.clock, visitors.begins_us(day) / 1e6)
        new = visitors.arrivals(day)
        sent(arms, new)
        for arm in arms:
            until(
                lambda arm=arm: all(
                    arm.get(f"/v1/items/{item['item_id']}").raise_for_status().json()["vector"] for item in new
                ),
                "the embedding worker to read the new items",
            )
        begun = time.perf_counter()
        played = visitors.day(day, self._file("day", day), arms)
        served_s = time.perf_counter() - begun
        date = (self.shop.start + timedelta(days=day)).date()
        collected = live.command("collect", log=f"collect-{day}")
        night = live.command("nightly", "--date", date.isoformat(), log=f"night-{day}", good=tuple(_STATUS))
        if night.status == 0:
            made = night.release
            until(lambda: arms.live.get("/health/ready").json()["release"] == made, f"the service to swap to {made}")
        found = {
            "date": date.isoformat(),
            "outcome": _STATUS[night.status],
            "release": night.release,
            "new_items": len(new),
            "serving_s": round(served_s, 1),
            "collect_s": collected.seconds,
            "night_s": night.seconds,
            "night_peak_mb": night.peak_mb,
            **_reasons(live.config, self.shop.start.timestamp() + (day + 1) * 86400),
        }
        write_json(self._file("night", day), found)
        return played, found

    def _settle(self) -> None:
        """Refuse to go on with a loop of other settings."""
        self.directory.mkdir(parents=True, exist_ok=True)
        asked = {"shop": self.shop.model_dump(mode="json"), "more": self.more}
        file = self.directory / "settings.json"
        if file.exists() and json.loads(file.read_text("utf-8")) != asked:
            raise SystemExit(f"{self.directory} holds a loop of other settings: name another --directory, or remove it")
        write_json(file, asked)

    def _configured(self, name: str) -> Path:
        config = self.directory / f"{name}.yaml"
        ours = {
            "workspace": str(self.directory / name),
            "seed": self.shop.seed,
            "simulate": self.shop.model_dump(mode="json"),
            "serving": {"clock_file": str(self.clock), "poll_s": 0.05, "redis_timeout_s": 5},
        }
        config.write_text(yaml.safe_dump(self.more | ours), "utf-8")
        return config

    def _first_night(self, workspace: Workspace) -> str:
        """The release of the log as it was before the service; made once."""
        file = self._file("first", workspace.name)
        if not file.exists():
            console.print(f"first night of the workspace {workspace.name}")
            workspace.command("simulate", log=f"simulate-{workspace.name}")
            date = (self.shop.end - timedelta(days=1)).date().isoformat()
            night = workspace.command("nightly", "--date", date, log=f"first-{workspace.name}")
            write_json(file, {"release": night.release, "night_s": night.seconds, "night_peak_mb": night.peak_mb})
        return str(json.loads(file.read_text("utf-8"))["release"])

    def _file(self, what: str, which: object) -> Path:
        return self.directory / f"{what}-{which}.{'jsonl' if what == 'day' else 'json'}"


@dataclass(frozen=True)
class Command:
    """A command that has ended. release: the one a night made, None of others. peak_mb: most resident memory."""

    status: int
    seconds: float
    peak_mb: int
    release: str | None


@dataclass
class Workspace:
    """A workspace, and the commands that are run in it. file: its configuration. logs: where what they say is kept."""

    file: Path
    logs: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def config(self) -> Config:
        return load(self.file)

    def command(self, *words: str, log: str, good: tuple[int, ...] = (0,)) -> Command:
        """Run a command to its end. Raises Failed where its status is not a good one."""
        file, begun = self.logs / f"{log}.log", time.perf_counter()
        process = self._started(file, *words)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait(60)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        said = file.read_text("utf-8")
        if process.returncode not in good:
            raise Failed(f"shelfwise {' '.join(words)} ended with status {process.returncode}:\n{said[-3000:]}")
        made = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("release ")]
        peak = usage.ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
        return Command(process.returncode, round(time.perf_counter() - begun, 1), peak, made[-1] if made else None)

    @contextmanager
    def served(self, clock: Path) -> Iterator[httpx.Client]:
        """The service and the embedding worker of this workspace, until the block ends."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with ExitStack() as stack:
            log = self.logs / f"serve-{self.name}.log"
            service = stack.enter_context(_until_done(self._started(log, "serve", "--port", str(port))))
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))

            def is_ready() -> bool:
                if service.poll() is not None:
                    raise Failed(f"the service ended:\n{log.read_text('utf-8')[-3000:]}")
                try:
                    return client.get("/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            until(is_ready, f"the service of {self.name}")
            stack.enter_context(_until_done(self._started(self.logs / f"embed-{self.name}.log", "embed")))
            yield client

    def _started(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """A command in the background. Without REDIS_URL each workspace has a Valkey of its own."""
        env = {k: v for k, v in os.environ.items() if k != "REDIS_URL"} | {"COLUMNS": "250"}
        command = [sys.executable, "-m", "offline.cli", *words, "--config", str(self.file)]
        with log.open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=env)


@contextmanager
def _until_done(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something. Raises Failed where it does not come."""
    end = time.monotonic() + _WAIT_S
    while not true():
        if time.monotonic() > end:
            raise Failed(f"waited {_WAIT_S:.0f} s for {what}")
        time.sleep(0.05)


def _reasons(config: Config, end: float) -> dict[str, Any]:
    """What the night's checks found, and what its gate said."""
    run = Night(config, None, until=end).run
    names = [n for n in ("checks.json", "drift.json", "gate.json") if run.file(n).exists()]
    said = {n: json.loads(run.file(n).read_text("utf-8")) for n in names}
    findings = [[f["level"], f["check"], f["message"]] for n in names for f in said[n].get("findings", ())]
    return {"findings": findings, "gate": said.get("gate.json", {}).get("reasons", [])}


def _told(day: int, played: Played, night: dict[str, Any]) -> str:
    mean = {arm: sum(line.ndcg[arm] for line in played.lines) / max(len(played.lines), 1) for arm in Arms._fields}
    return (
        f"day {day} ({night['date']}): {len(played.lines)} lists, ndcg@10 {mean['live']:.3f}, first release "
        f"{mean['kept']:.3f}; {played.clicks} clicks; night {night['night_s']:.0f} s: {night['outcome']}"
    )


if __name__ == "__main__":
    main()
