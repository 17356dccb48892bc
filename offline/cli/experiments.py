"""Commands for experiments: list, plan, report, stop, resume and ship."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import Failure, progress_bar

if TYPE_CHECKING:
    from offline.config import Config
    from offline.experiments import Prices, Report
    from serving.config import ExperimentConfig
    from serving.experiments import Stop

app = typer.Typer(name="experiments", invoke_without_command=True)
Name = Annotated[str, typer.Argument(help="Name of the experiment in the configuration.")]
MetricName = Annotated[
    str,
    typer.Option(help="The metric that decides, chosen before the start: clicks, carts, purchases, revenue or margin."),
]
Attribution = Annotated[
    float | None,
    typer.Option(
        min=1, help="Seconds after an exposure within which actions count. Default: `earnings.attribution_s`."
    ),
]


@app.callback()
def experiments(context: typer.Context, config: ConfigPath = None, workspace: Workspace = None) -> None:
    """List experiments, plan and judge them, stop them, and make the best arm the default."""
    if context.invoked_subcommand is None:
        list_(config, workspace)


@app.command("list")
def list_(config: ConfigPath = None, workspace: Workspace = None) -> None:
    """List the configured experiments with their arms, and whether they run."""
    from serving.experiments import stopped
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        stops = stopped(store)
    now, rows = datetime.now(UTC), []
    for name, one in c.experiments.items():
        total = sum(arm.share for arm in one.arms.values())
        rows.append(
            [
                name,
                _state(one, stops.get(name), now),
                ", ".join(f"{arm} {settings.share / total:.0%}" for arm, settings in one.arms.items()),
                one.unit,
                f"{one.traffic:.0%}",
                ", ".join(one.placements) or "all",
                "-" if one.start is None else f"{one.start:%Y-%m-%d %H:%M}",
                "-" if one.end is None else f"{one.end:%Y-%m-%d %H:%M}",
            ]
        )
    print_table(
        "Experiments", ["experiment", "state", "arms", "unit", "traffic", "placements", "start", "end"], rows, {4}
    )
    for name in stops.keys() - c.experiments.keys():
        say(f"- {name} is stopped, and not in the configuration")


def _state(one: ExperimentConfig, stop: Stop | None, now: datetime) -> str:
    if stop is not None:
        return f"stopped by {stop.by}, {datetime.fromtimestamp(stop.at, UTC):%Y-%m-%d %H:%M}"
    if one.start is not None and now < one.start:
        return "planned"
    return "ended" if one.end is not None and now >= one.end else "running"


@app.command()
def plan(
    name: Name,
    config: ConfigPath = None,
    workspace: Workspace = None,
    metric: MetricName = "revenue",
    effect: Annotated[float, typer.Option(min=0.0001, help="Relative effect to find: 0.05 is 5%.")] = 0.05,
    days: Annotated[float, typer.Option(min=1, max=366, help="Days of the log to plan from: the longest plan.")] = 28,
    attribution: Attribution = None,
) -> None:
    """Show the smallest effect that an experiment can find, and how long it takes, from the log before it starts."""
    from offline.data import LogFiles
    from offline.experiments import POWER, Design, Window, milestones, read_all
    from offline.experiments import plan as run

    c = load_config(config, workspace)
    design = Design.of(name, c.experiments)
    window = Window(attribution or c.attribution_s)
    found = read_all(LogFiles.of(c.data, c.log), design.placements, design.unit, days, window, _prices(c, metric))
    made = run(found, metric, design.shares, c.experiments[name].traffic)
    rows = [
        [str(d.days), f"{d.units:,}", f"{d.mean:.4g}", f"{d.fixed:.1%}", f"{d.always:.1%}"]
        for d in milestones(made.durations)
    ]
    print_table(
        f"Smallest effect on {metric} found with a probability of {POWER:.0%}",
        ["days", f"{design.unit}s", "mean", "one look at the end", "looking every day"],
        rows,
        {0, 1, 2, 3, 4},
    )
    for always, label in ((True, "looking every day"), (False, "one look at the end")):
        needed = made.needed(effect, always)
        time = f"{needed.days} days" if needed else f"more than the {len(made.durations)} days that the log tells of"
        say(f"an effect of {effect:.1%}, {label}: {time}")


@app.command()
def report(
    name: Name,
    config: ConfigPath = None,
    workspace: Workspace = None,
    metric: MetricName = "revenue",
    attribution: Attribution = None,
    html: Annotated[Path | None, typer.Option("--html", help="File to write the report to, as a page.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, as JSON.")] = None,
) -> None:
    """Show the result so far. It may be looked at every day: its intervals stay valid.

    Uses data collected by `shelfwise collect`; run that first. Exit status 1 if the sample ratio does not fit.
    """
    from offline.experiments import page, to_json
    from offline.runtime import write_json

    c = load_config(config, workspace)
    for option, path in (("--html", html), ("--json", json)):
        if path is not None and not path.absolute().parent.is_dir():
            raise Failure(f"{option} {path}: no such folder: {path.absolute().parent}; create it first")
    found = _analyse(c, name, metric, attribution)
    _print_report(found)
    if html is not None:
        page.write(found, html)
        say(f"report: {html}")
    if json is not None:
        write_json(json, to_json(found))
        say(f"figures: {json}")
    if found.ratio.alarm:
        raise typer.Exit(1)


def _analyse(c: Config, name: str, metric: str, attribution: float | None) -> Report:
    from offline.data import LogFiles
    from offline.experiments import Design, Window, analyse, read

    design = Design.of(name, c.experiments)
    window = Window(attribution or c.attribution_s)
    prices = _prices(c, metric)
    with progress_bar("Reading the log") as on_progress:
        return analyse(read(LogFiles.of(c.data, c.log), design, window, prices, on_progress), design, metric)


def _prices(c: Config, metric: str) -> Prices:
    """The revenue and margin of purchases, as in earnings."""
    from offline.experiments import Prices

    prices = Prices.of(c.data, c.features.attributes, c.earnings)
    if metric.startswith("margin") and not prices.has_margins:
        raise Failure(
            f"--metric {metric}: no item has a known margin; set earnings.margin or earnings.cost to an attribute of "
            "the catalogue, which also needs prices"
        )
    return prices


def _print_report(found: Report) -> None:
    from offline.experiments import page

    unit, level = found.design.unit, f"{1 - found.alpha:.0%}"
    if found.ratio.alarm:
        say(f"SAMPLE RATIO MISMATCH (p = {found.ratio.p:.2g}): the arms do not have the {unit}s that their shares say. "
            "The differences below mean nothing until the cause is found.", "bold red")  # fmt: skip
    title = f"{found.design.name}: {unit}s by arm after {found.days:.1f} days"
    print_table(title, ["arm", f"{unit}s", "share", "expected"], page.ratio_rows(found), {1, 2, 3})
    columns = ["metric", "arm", "control", "value", "difference", f"always valid, {level}", "one look", "relative"]
    rows = [page.row(c, found) for c in found.comparisons]
    print_table("Differences from the control; the first metric decides", columns, rows, set(range(2, 8)))
    if found.guardrails:
        rows = page.guardrail_rows(found)
        print_table("Guardrails", [*columns, "accepted", "verdict"], rows, set(range(2, 9)))
    for label, count in found.counts.items():
        say(f"- {count:,} {label}")
    say(found.verdict.text, "bold")


@app.command()
def stop(
    name: Name,
    config: ConfigPath = None,
    workspace: Workspace = None,
    by: Annotated[str | None, typer.Option(help="Who stops it. Default: the user of this process.")] = None,
) -> None:
    """Stop an experiment. Within seconds, all workers serve everybody as without it; what was logged stays."""
    import getpass

    from serving.experiments import stop as run
    from serving.store import BulkStore

    c = load_config(config, workspace)
    if name not in c.experiments:
        known = ", ".join(c.experiments) or "none"
        raise Failure(f"no experiment {name!r} in the configuration (it has: {known}); nothing was stopped")
    with open_redis(c) as url, BulkStore(url) as store:
        run(store, name, by or getpass.getuser())
    say(f"{name} is stopped; to let it run again: shelfwise experiments resume {name}")


@app.command()
def resume(name: Name, config: ConfigPath = None, workspace: Workspace = None) -> None:
    """Let a stopped experiment run again. Users get the arms that they had."""
    from serving.experiments import resume as run
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store:
        was_stopped = run(store, name)
    say(f"{name} runs again" if was_stopped else f"{name} was not stopped")


@app.command()
def ship(
    name: Name,
    config: ConfigPath = None,
    workspace: Workspace = None,
    metric: MetricName = "revenue",
    attribution: Attribution = None,
    arm: Annotated[str | None, typer.Option(help="Arm to ship. Default: the best one.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Ship without a verdict, against a guardrail, or with a sample ratio alarm.")
    ] = False,
) -> None:
    """Make the best arm the default: promote its release, or print the settings to change.

    Refuses without a verdict, and with a sample ratio that does not fit. Remove the experiment from the configuration
    afterwards.
    """
    from features.custom import load as load_features
    from offline.experiments import decide
    from serving.release import promote
    from serving.store import BulkStore

    c = load_config(config, workspace)
    found = _analyse(c, name, metric, attribution)
    placements = {n: p.model_dump(mode="json", exclude_defaults=True) for n, p in c.placements.items()}
    shipment = decide(found, placements, arm, force)
    for problem in shipment.problems:
        say(f"forced: {problem}", "yellow")
    if shipment.release is not None:
        with open_redis(c) as url, BulkStore(url) as store:
            reason = f"experiment {name}, arm {shipment.arm}: {found.verdict.text}"
            promote(c.releases, store, shipment.release, reason, load_features(c.features.custom))
        say(f"live: {shipment.release}")
    if shipment.settings:
        say(f"nothing was changed; to ship {shipment.arm}, change {config or 'the configuration'} as follows:")
        say(shipment.settings.rstrip())
    elif shipment.release is None:
        say(f"{shipment.arm} is what the shop has already")
    say(f"then remove {name} from `experiments`")
