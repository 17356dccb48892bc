"""The closed loop over simulated days: serve, collect, train and publish: `python -m tests.bench.loop --days 14`.

`shelfwise simulate` writes a log of some days for a young shop, a first nightly run makes a release from it, and from
then on only commands run: `serve` and `embed` stay up, simulated shoppers request lists and act on what they are shown,
and at the end of each day `collect` and `nightly --date` run, including the gate. The service swaps to new releases on
its own. New items are written by PUT /v1/items. A second service, in its own workspace, keeps the first release and
gets the same events and items; what it would have answered to each request is compared, but never shown.

With `--purchases`, only the purchases of the opening log are kept, as in a shop that goes live with an import. The
first release then learns from rebuilt lists.

With `--effect`, half of the shoppers are in an arm whose lists they respond to with a known effect
(`tests.bench.effects`), as the service has assigned them; its log then has the experiment. With a placement `loop` in
`--config`, every request names it, so that its `explore` and other settings are played.

Quality is ndcg@10 of the expected gain of each list by the hidden truth: 1 is the best possible order of everything
that may be on that page. The simulated days are in the past, because entries of the event stream are numbered by the
real clock.

All state is in --directory: after an interruption, the same command continues with the next list.
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
from tests.bench.effects import CONTROL, EFFECTS, EXPERIMENT
from tests.bench.loop_report import draw, summary
from tests.bench.visitors import Arms, Played, Visitors, set_clock, write_items
from tests.purchases import forget_lists

_STATUS = {0: "published", 3: "kept by the gate", 4: "stopped by the checks", 6: "left to a person"}
_WAIT_S = 180.0


def main() -> None:
    """Play the remaining days, and write `loop.json` and `loop.svg`; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=14, help="days to serve")
    parser.add_argument("--opening", type=int, default=10, help="days of log for the first release")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--users", type=int, default=800)
    parser.add_argument("--new-items", type=float, default=4, help="new items per day")
    parser.add_argument("--purchases", action="store_true", help="keep only the purchases of the opening log")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--effect", choices=sorted(EFFECTS), default=CONTROL, help="of the arm of an experiment")
    parser.add_argument("--config", type=Path, help="YAML file with more settings for both workspaces")
    parser.add_argument("--directory", type=Path, default=Path("build/loop"), help="folder for all state")
    parser.add_argument("--plot", type=Path, help="another path for the plot")
    options = parser.parse_args()
    # On SIGTERM, exit cleanly and end all child processes; background processes do not get SIGINT.
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
    loop = Loop(options.directory.resolve(), shop, more, options.purchases, options.effect)
    report = summary(loop.run(), shop)
    write_json(loop.directory / "loop.json", report)
    for path in (loop.directory / "loop.svg", options.plot):
        if path is not None:
            draw(report, path)
    print(json.dumps(report["whole"]))


class Failed(RuntimeError):
    """A command or a service failed. The message names it and ends with its output."""


@dataclass
class Loop:
    """A closed loop with its state in a directory. more: settings for both workspaces. purchases, effect: as in `main`;
    the effect of the control for no experiment."""

    directory: Path
    shop: SimulateConfig
    more: dict[str, Any]
    purchases: bool = False
    effect: str = CONTROL

    @property
    def clock(self) -> Path:
        """The file with the current time for both services."""
        return self.directory / "clock"

    def run(self) -> list[tuple[Played, dict[str, Any]]]:
        """Each day as it was played, with its nightly run."""
        self._check_settings()
        live, kept = (Workspace(self._configured(name), self.directory) for name in Arms._fields)
        out: list[tuple[Played, dict[str, Any]]] = []
        with ExitStack() as services, progress_bar("Days") as on_progress:
            for workspace in (live, kept):  # one Valkey per workspace, shared by its commands and stopped after them
                services.enter_context(connect_url(None, workspace.config.embedded))
            with ThreadPoolExecutor() as executor:
                first = list(executor.map(self._first_night, (live, kept)))
            if first[0] != first[1]:
                raise Failed(
                    f"the same log gave two different releases, {first[0]} and {first[1]}, so they cannot be compared"
                )
            placement = "loop" if "loop" in self.more.get("placements", {}) else None
            visitors = Visitors(self.shop, self.clock, self.effect, placement)
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
                console.print(_summary_line(day, *out[-1]))
            on_progress(len(out), self.shop.ahead)
        return out

    def _day(self, day: int, visitors: Visitors, arms: Arms, live: Workspace) -> tuple[Played, dict[str, Any]]:
        """Play a day and run its nightly run."""
        set_clock(self.clock, visitors.begins_us(day) / 1e6)
        new = visitors.arrivals(day)
        write_items(arms, new)
        for arm in arms:
            wait_until(
                lambda arm=arm: all(
                    arm.get(f"/v1/items/{item['item_id']}").raise_for_status().json()["vector"] for item in new
                ),
                "the embedding worker to encode the new items",
            )
        start = time.perf_counter()
        played = visitors.day(day, self._file("day", day), arms)
        served_s = time.perf_counter() - start
        date = (self.shop.start + timedelta(days=day)).date()
        collected = live.command("collect", log=f"collect-{day}")
        night = live.command("nightly", "--date", date.isoformat(), log=f"night-{day}", expected=tuple(_STATUS))
        if night.status == 0:
            release = night.release
            wait_until(
                lambda: arms.live.get("/health/ready").json()["release"] == release, f"the service to swap to {release}"
            )
        record = {
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
        write_json(self._file("night", day), record)
        return played, record

    def _check_settings(self) -> None:
        """Refuse to continue a loop with different settings."""
        self.directory.mkdir(parents=True, exist_ok=True)
        settings = {"shop": self.shop.model_dump(mode="json"), "more": self.more, "purchases": self.purchases}
        if self.effect != CONTROL:
            settings["effect"] = self.effect
        file = self.directory / "settings.json"
        if file.exists() and json.loads(file.read_text("utf-8")) != settings:
            raise SystemExit(f"{self.directory} has a loop with different settings; delete it or change --directory")
        write_json(file, settings)

    def _configured(self, name: str) -> Path:
        config = self.directory / f"{name}.yaml"
        own_settings = {
            "workspace": str(self.directory / name),
            "seed": self.shop.seed,
            "simulate": self.shop.model_dump(mode="json"),
            "serving": {"clock_file": str(self.clock), "poll_s": 0.05, "redis_timeout_s": 5},
        }
        if self.effect != CONTROL and name == "live":
            own_settings["experiments"] = {EXPERIMENT: {"arms": {CONTROL: {}, self.effect: {}}}}
        config.write_text(yaml.safe_dump(self.more | own_settings), "utf-8")
        return config

    def _first_night(self, workspace: Workspace) -> str:
        """The release from the log before the service starts; made once."""
        file = self._file("first", workspace.name)
        if not file.exists():
            console.print(f"first nightly run of the workspace {workspace.name}")
            workspace.command("simulate", log=f"simulate-{workspace.name}")
            if self.purchases:
                forget_lists(workspace.config.data)
            date = (self.shop.end - timedelta(days=1)).date().isoformat()
            night = workspace.command("nightly", "--date", date, log=f"first-{workspace.name}")
            write_json(
                file,
                {
                    "release": night.release,
                    "night_s": night.seconds,
                    "night_peak_mb": night.peak_mb,
                    **_reasons(workspace.config, self.shop.end.timestamp()),
                },
            )
        return str(json.loads(file.read_text("utf-8"))["release"])

    def _file(self, what: str, which: object) -> Path:
        return self.directory / f"{what}-{which}.{'jsonl' if what == 'day' else 'json'}"


@dataclass(frozen=True)
class Command:
    """A finished command. release: the one a nightly run made, else None. peak_mb: peak resident memory."""

    status: int
    seconds: float
    peak_mb: int
    release: str | None


@dataclass
class Workspace:
    """A workspace and the commands run in it. file: its configuration. logs: folder for their output."""

    file: Path
    logs: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def config(self) -> Config:
        return load(self.file)

    def command(self, *words: str, log: str, expected: tuple[int, ...] = (0,)) -> Command:
        """Run a command to its end. Raises Failed if its status is not an expected one."""
        file, start = self.logs / f"{log}.log", time.perf_counter()
        process = self._start(file, *words)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait(60)
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        output = file.read_text("utf-8")
        if process.returncode not in expected:
            raise Failed(f"shelfwise {' '.join(words)} ended with status {process.returncode}:\n{output[-3000:]}")
        releases = [line.split()[1].rstrip(":") for line in output.splitlines() if line.startswith("release ")]
        peak = usage.ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
        return Command(
            process.returncode, round(time.perf_counter() - start, 1), peak, releases[-1] if releases else None
        )

    @contextmanager
    def served(self, clock: Path) -> Iterator[httpx.Client]:
        """Run the service and the embedding worker of this workspace for the duration of the block."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with ExitStack() as stack:
            log = self.logs / f"serve-{self.name}.log"
            service = stack.enter_context(_terminated_after(self._start(log, "serve", "--port", str(port))))
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))

            def is_ready() -> bool:
                if service.poll() is not None:
                    raise Failed(f"the service ended:\n{log.read_text('utf-8')[-3000:]}")
                try:
                    return client.get("/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(is_ready, f"the service of {self.name}")
            stack.enter_context(_terminated_after(self._start(self.logs / f"embed-{self.name}.log", "embed")))
            yield client

    def _start(self, log: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start a command in the background. Without REDIS_URL, each workspace uses its own Valkey."""
        env = {k: v for k, v in os.environ.items() if k != "REDIS_URL"} | {"COLUMNS": "250"}
        command = [sys.executable, "-m", "offline.cli", *words, "--config", str(self.file)]
        with log.open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=env)


@contextmanager
def _terminated_after(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_until(condition: Callable[..., bool], what: str) -> None:
    """Wait for a condition, called without arguments. Raises Failed on timeout."""
    end = time.monotonic() + _WAIT_S
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"waited {_WAIT_S:.0f} s for {what}")
        time.sleep(0.05)


def _reasons(config: Config, end: float) -> dict[str, Any]:
    """The findings of the run's data checks, its lists by kind, and the reasons of its gate."""
    run = Night(config, None, until=end).run
    names = [n for n in ("checks.json", "drift.json", "evaluation.json", "gate.json") if run.file(n).exists()]
    by_file = {n: json.loads(run.file(n).read_text("utf-8")) for n in names}
    findings = [[f["level"], f["check"], f["message"]] for n in names for f in by_file[n].get("findings", ())]
    return {
        "findings": findings,
        "lists": by_file.get("evaluation.json", {}).get("lists"),
        "gate": by_file.get("gate.json", {}).get("reasons", []),
    }


def _summary_line(day: int, played: Played, night: dict[str, Any]) -> str:
    mean = {arm: sum(line.ndcg[arm] for line in played.lines) / max(len(played.lines), 1) for arm in Arms._fields}
    return (
        f"day {day} ({night['date']}): {len(played.lines)} lists, ndcg@10 {mean['live']:.3f}, first release "
        f"{mean['kept']:.3f}; {played.clicks} clicks; nightly run {night['night_s']:.0f} s: {night['outcome']}"
        + (f" ({night['lists']['source']} lists)" if night.get("lists") else "")
    )


if __name__ == "__main__":
    main()
