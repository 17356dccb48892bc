"""Commands that make a release: `nightly` and `demo`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offline.cli.evaluation import print_evaluation
from offline.cli.terminal import (
    ConfigPath,
    EngineName,
    RayAddress,
    Workspace,
    load_config,
    open_redis,
    print_table,
    say,
    seconds,
    today,
    with_budget,
)
from offline.runtime import Failure, open_engine, progress_bar

if TYPE_CHECKING:
    from offline.config import Config
    from offline.runtime import Engine

_INTERRUPTED = 130
"""Exit status after Ctrl+C, as of a shell."""


def nightly(
    config: ConfigPath = None,
    workspace: Workspace = None,
    publish: Annotated[bool, typer.Option(help="Publish the release if the gate allows it.")] = True,
    date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Train on the log up to the end of this day (UTC).")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Ignore the log before this day (UTC).")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="Data check that only warns in this run. Repeatable.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time budget for training the encoder, such as 90s or 10m; overrides `encoder.budget_s`."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan without running it.")] = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    ray_workers: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Number of workers that train together; more than one changes the model."),
    ] = 1,
) -> None:
    """Train a new release and publish it if the gate allows it.

    Steps: check the data, fine-tune the encoder, replay the log, train and evaluate the ranker, write the release,
    compare it with the live release, publish. If interrupted, run it again to continue after the last finished step.

    Exit status: 0 success; 1 wrong settings, or a service is unavailable; 3 the gate kept the live release; 4 the data
    checks failed; 5 another run is in progress; 6 the gate needs your approval; 7 the disk is full. The live release
    changes only with status 0.
    """
    c = accept_checks(load_config(config, workspace), accept or [])
    if budget is not None:
        c = with_budget(c, seconds(budget))
    until_s = (date + timedelta(days=1)).replace(tzinfo=UTC).timestamp() if date else None
    since_s = since.replace(tzinfo=UTC).timestamp() if since else None
    if dry_run:
        _print_plan(c, publish, since_s, until_s)
        return
    try:
        with open_engine(engine, ray_address, ray_workers, c.features.custom) as executor:
            release, report = run_night(c, publish, since_s, until_s, executor)
    except KeyboardInterrupt:
        say("Interrupted. Finished steps, and texts that were read, are kept: run the same command again to continue.")
        raise typer.Exit(_INTERRUPTED) from None
    say(f"report: {report}")
    say(f"release {release.id}: {release.path}")


def accept_checks(config: Config, names: list[str]) -> Config:
    """The configuration with the named data checks reduced to warnings."""
    from offline.config import CHECKS

    if unknown := [n for n in names if n not in CHECKS]:
        raise Failure(f"--accept {unknown[0]}: no such check; known: {', '.join(CHECKS)}")
    accepted = config.checks.model_copy(update={"accept": (*config.checks.accept, *names)})
    return config.model_copy(update={"checks": accepted})


def _print_plan(config: Config, publish: bool, since: float | None, until: float | None) -> None:
    from offline.nightly import Night

    with open_redis(config) as url:
        night = Night(config, url if publish else None, since=since, until=until)
        plan = night.run.plan(night.steps)
    rows = [
        [
            p.name,
            p.title,
            "done" if p.done else "to do",
            f"{p.seconds:,.1f} s" if p.seconds is not None else "-",
            f"{p.peak_mb:,.0f} MB" if p.peak_mb is not None else "-",
        ]
        for p in plan
    ]
    print_table(
        f"Run {night.run.directory}", ["step", "description", "state", "last duration", "peak memory"], rows, {3, 4}
    )
    remaining = [p for p in plan if not p.done]
    known = sum(p.seconds for p in remaining if p.seconds is not None)
    unknown = sum(p.seconds is None for p in remaining)
    new_steps = f", not counting {unknown} that have not run yet" if unknown else ""
    say(f"{len(remaining)} of {len(plan)} steps to do: {known:,.0f} s last time{new_steps}")


def run_night(
    config: Config, publish: bool, since: float | None = None, until: float | None = None, engine: Engine | None = None
) -> tuple[Any, Path]:
    """Run the nightly steps. Returns the release and the path of the report."""
    from offline.nightly import Night
    from offline.runtime import LOCAL

    with open_redis(config) as url, _counted(url) if publish else nullcontext():
        night = Night(config, url if publish else None, since=since, until=until, engine=engine or LOCAL)
        try:
            release = night()
        finally:
            _print_findings(night)
    print_evaluation(night.run.file("evaluation.json"))
    return release, night.run.file("report.html")


@contextmanager
def _counted(redis_url: str) -> Iterator[None]:
    """Record in Redis that a nightly run was started today, until one succeeds; /metrics has the number of days."""
    from serving.store import BulkStore

    with BulkStore(redis_url) as store:
        store.begin_night(today())
        yield
        store.end_night()


def _print_findings(night: Any) -> None:
    """Print the findings of the checks and the gate as tables, if there are any."""
    import json

    from offline.nightly import FINDINGS

    findings = [
        f
        for name in FINDINGS
        if night.run.file(name).exists()
        for f in json.loads(night.run.file(name).read_text("utf-8"))["findings"]
    ]
    if findings:
        print_table(
            "Data checks", ["level", "check", "finding"], [[f["level"], f["check"], f["message"]] for f in findings]
        )
    if night.run.file("gate.json").exists():
        gate = json.loads(night.run.file("gate.json").read_text("utf-8"))
        first = "First release: publishing." if gate["verdict"] == "promote" else f"First release: {gate['verdict']}"
        compared = f"{gate['candidate']} compared with the live release {gate['live']}: {gate['verdict']}"
        print_table(
            f"Gate: {compared}" if gate["live"] else first,
            ["verdict", "rule", "reason"],
            [[verdict, rule, why] for rule, verdict, why in gate["reasons"]],
        )


def demo(
    config: ConfigPath = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder for data, runs and releases.")] = Path(
        "demo"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8000,
    stay: Annotated[bool | None, typer.Option(help="Keep serving afterwards. Default: only in a terminal.")] = None,
) -> None:
    """Simulate a shop, train a release, serve it, and see three clicks change a list."""
    from offline.cli.demo import ServiceDown, show, write_shop
    from offline.simulation import simulate as run

    file = config or write_shop(workspace)
    c = load_config(file, workspace)
    shop = c.simulate.model_copy(update={"end": datetime.fromisoformat(f"{today()}T00:00:00+00:00")})
    with progress_bar("Simulating a shop") as on_progress:
        run(shop, c.data, on_progress)
    with open_redis(c) as url:
        release, report = run_night(c, True)
        try:
            show(c, file, url, release.id, report, port, sys.stdout.isatty() if stay is None else stay)
        except ServiceDown as e:
            raise Failure(str(e)) from e
