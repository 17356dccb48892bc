"""Commands that make a release: the night, and the demo that goes the whole way."""

from __future__ import annotations

import sys
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
    today,
)
from offline.runtime import Failure, open_engine, progress_bar

if TYPE_CHECKING:
    from offline.config import Config
    from offline.runtime import Engine


def nightly(
    config: ConfigPath = None,
    workspace: Workspace = None,
    publish: Annotated[bool, typer.Option(help="Make the release live when it is done.")] = True,
    date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Learn from the log up to the end of this day, UTC.")
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Leave out the log before this day, UTC.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="A data check that warns and does not stop this night; repeatable.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the encoder, as 90s or 10m, over the config's `encoder.budget_s`.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    ray_workers: Annotated[
        int, typer.Option(min=1, max=1024, help="Workers that train together; more than one makes another model.")
    ] = 1,
) -> None:
    """The night: check the data, fine-tune, replay, train, evaluate, release, compare with the live release, publish.

    Killed anywhere and started again it goes on after the last finished step. Exit status: 0 published, or all was
    done; 1 a mistake in the settings or a service that is away; 3 the gate kept the live release; 4 the data checks
    stopped the night; 5 another run is at work; 6 the gate asks a person; 7 the disk is full. In all but 0 the live
    release is the one it was.
    """
    c = accept_checks(load_config(config, workspace), accept or [])
    if budget is not None:
        from offline.cli.terminal import seconds

        c = c.model_copy(update={"encoder": c.encoder.model_copy(update={"budget_s": seconds(budget)})})
    until = (date + timedelta(days=1)).replace(tzinfo=UTC).timestamp() if date else None
    begin = since.replace(tzinfo=UTC).timestamp() if since else None
    if dry_run:
        _print_plan(c, publish, begin, until)
        return
    with open_engine(engine, ray_address, ray_workers, c.features.custom) as working:
        made, report = run_night(c, publish, begin, until, working)
    say(f"report: {report}")
    say(f"release {made.id}: {made.path}")


def accept_checks(config: Config, names: list[str]) -> Config:
    """The configuration with more data checks that only warn."""
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
    print_table(f"Run {night.run.directory}", ["step", "", "", "last took", "peak memory"], rows, {3, 4})
    left = [p for p in plan if not p.done]
    known = sum(p.seconds for p in left if p.seconds is not None)
    unknown = sum(p.seconds is None for p in left)
    beside = f", and {unknown} steps that no run here has done yet" if unknown else ""
    say(f"{len(left)} of {len(plan)} steps to do: {known:,.0f} s as last time{beside}")


def run_night(
    config: Config, publish: bool, since: float | None = None, until: float | None = None, engine: Engine | None = None
) -> tuple[Any, Path]:
    """The release, and where its report is."""
    from offline.nightly import Night
    from offline.runtime import LOCAL

    with open_redis(config) as url:
        night = Night(config, url if publish else None, since=since, until=until, engine=engine or LOCAL)
        try:
            made = night()
        finally:
            _print_findings(night)
    print_evaluation(night.run.file("evaluation.json"))
    return made, night.run.file("report.html")


def _print_findings(night: Any) -> None:
    """What the checks and the gate found, as tables, where there is anything to say."""
    import json

    from offline.nightly import FINDINGS

    found = [
        f
        for name in FINDINGS
        if night.run.file(name).exists()
        for f in json.loads(night.run.file(name).read_text("utf-8"))["findings"]
    ]
    if found:
        print_table("Data checks", ["", "check", "finding"], [[f["level"], f["check"], f["message"]] for f in found])
    if night.run.file("gate.json").exists():
        gate = json.loads(night.run.file("gate.json").read_text("utf-8"))
        title = f"Gate: {gate['candidate']} against {gate['live'] or 'no live release'}: {gate['verdict']}"
        print_table(title, ["", "rule", "reason"], [[verdict, rule, why] for rule, verdict, why in gate["reasons"]])


def demo(
    config: ConfigPath = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Where everything made is kept.")] = Path("demo"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the service.")] = 8000,
    stay: Annotated[bool | None, typer.Option(help="Keep serving afterwards; default only in a terminal.")] = None,
) -> None:
    """The whole way once: simulate a shop, run the night, serve it, and watch three clicks rearrange a list."""
    from offline.cli.demo import ServiceDown, show
    from offline.simulation import simulate as run

    c = load_config(config, workspace)
    shop = c.simulate.model_copy(update={"end": datetime.fromisoformat(f"{today()}T00:00:00+00:00")})
    with progress_bar("Simulating a shop") as on_progress:
        run(shop, c.data, on_progress)
    with open_redis(c) as url:
        made, report = run_night(c, True)
        try:
            show(c, url, made.id, report, port, sys.stdout.isatty() if stay is None else stay)
        except ServiceDown as e:
            raise Failure(str(e)) from e
