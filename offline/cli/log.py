"""Commands for the log of a running service: collect it, compare served with replayed feature rows, and show what its
lists brought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from offline.cli.terminal import ConfigPath, Workspace, load_config, open_redis, print_table, say
from offline.runtime import progress_bar


def collect(
    config: ConfigPath = None,
    workspace: Workspace = None,
    erasures: Annotated[
        Path | None,
        typer.Option(
            help="After restoring a backup: the latest erasures.parquet. Erases these users again, also in Redis."
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Go on with a Redis that was replaced by an empty or older one: collect what it has, and make the "
            "last live release live again if it names none.",
        ),
    ] = False,
) -> None:
    """Move events and served lists from Redis into the data set, exactly once.

    Also removes erased users. Run it before `nightly`. It writes to `data/events` and `data/served`, with a folder for
    each day (UTC) on which events happened or lists were served; both are read together with `events.parquet`. If
    interrupted, run it again to continue. Exit status 1 if Redis was replaced by an empty or older one since the last
    collection: see `--repair`.
    """
    from features.custom import load as load_features
    from offline.data import collect as run
    from serving.release import restore
    from serving.store import BulkStore

    c = load_config(config, workspace)
    with open_redis(c) as url, BulkStore(url) as store, progress_bar("Collecting") as on_progress:
        counts = run(c.data, store, c.releases, on_progress, c.log, c.retention.log_days, erasures, repair)
        restored = restore(c.releases, store, load_features(c.features.custom)) if repair else None
    if restored:
        say(f"live again: {restored.id}; run `shelfwise nightly` to restore the users' histories from the log")
    say(
        f"{c.data}: {counts.events:,} events and {counts.served:,} served lists, {counts.items:,} written items, "
        f"{counts.erased:,} users erased"
    )
    if counts.log_kept:
        say(
            "the append-only file of Redis still has commands of the erased users, since Redis did not rewrite it: "
            f"{counts.log_kept}; run BGREWRITEAOF, or wait for its next rewrite"
        )


def skew(
    config: ConfigPath = None,
    workspace: Workspace = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Maximum share of a feature's values that may differ by more than the tolerance."
        ),
    ] = 0.01,
    tolerance: Annotated[float, typer.Option(min=0, help="Ignore relative differences up to this.")] = 1e-5,
    limit: Annotated[int, typer.Option(min=1, help="Number of lists to compare, newest first.")] = 1000,
    json: Annotated[Path | None, typer.Option("--json", help="File to write all figures to, as JSON.")] = None,
) -> None:
    """Compare served feature rows with rows replayed from the log.

    Needs served lists with feature rows: set `serving.log_rows_share` above 0, then run `collect`. Exit status 1 if a
    feature is skewed.
    """
    from features.custom import load as load_features
    from offline.evaluation import compare_rows
    from offline.runtime import write_json

    c = load_config(config, workspace)
    with progress_bar("Replaying served lists") as on_progress:
        comparison = compare_rows(
            c.data, c.releases, load_features(c.features.custom), tolerance, limit, on_progress, c.log
        )
    rows = [
        [f.name, f"{f.values:,}", f"{f.differ:.2%}", f"{f.beyond:.2%}", f"{f.largest:.3g}", f.verdict(threshold)]
        for f in comparison.features
        if f.differ or len(comparison.features) <= 20
    ]
    title = f"{comparison.lists:,} lists, {comparison.rows:,} rows, {len(comparison.features)} features"
    print_table(
        f"Features that differ ({title})",
        ["feature", "values", "different", "beyond tolerance", "largest", "verdict"],
        rows,
        {1, 2, 3, 4},
    )
    for name, count in comparison.missing_columns.items():
        say(f"- {count:,} lists without {name!r} (features.request): check what the storefront sends", "yellow")
    for reason, count in comparison.left_out.items():
        say(f"- {count:,} lists skipped: {reason}")
    if json is not None:
        write_json(json, comparison.as_json(threshold))
    skewed = [f.name for f in comparison.features if f.beyond > threshold]
    if skewed:
        say(f"skewed features: {', '.join(skewed)}", "bold red")
        raise typer.Exit(1)
    say(f"no feature is skewed; {sum(f.differ == 0 for f in comparison.features)} are bit-identical")


def earnings(
    config: ConfigPath = None,
    workspace: Workspace = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write report.html and earnings.json to. Default: `earnings` in the workspace."),
    ] = None,
) -> None:
    """Show what the lists of each placement brought, by release and arm.

    Credits lists with clicks, carts and purchases by last touch, by day. From experiments with a holdout, also
    estimates what would not have been bought without the lists. Uses the data set: run `collect` first. Also writes
    `earnings.json` to the releases folder, for the operator's page.
    """
    from offline.data import LogFiles
    from offline.earnings import Settings, amount, holdouts, make_tables, publish, why_not_incremental, write

    c = load_config(config, workspace)
    settings = Settings(
        c.earnings,
        c.attribution_s,
        c.features.attributes,
        holdouts(c.experiments),
        c.service.currency,
        why_not_incremental(c.experiments),
    )
    with progress_bar("Reading the log") as on_progress:
        tables = make_tables(LogFiles.of(c.data, c.log), settings, None, on_progress)
    rows = [
        [
            e["placement"] or "-",
            *(f"{e['total'][n]:,}" for n in ("lists", "users", "clicks", "purchases")),
            amount(e["total"]["revenue"]),
        ]
        for e in tables["placements"]
    ]
    currency = f" ({c.service.currency})" if c.service.currency else ""
    print_table(
        f"Last touch, lists from {tables['first_day']} to {tables['last_day']}",
        ["placement", "lists", "users", "clicks", "purchases", f"revenue{currency}"],
        rows,
        {1, 2, 3, 4, 5},
    )
    for experiment in tables["experiments"]:
        for treated in experiment["treated"]:
            say(f"{experiment['experiment']}, {treated['arm']}: {_incremental(treated['outcomes']['revenue'])}")
        if experiment["sample_ratio"]["alarm"]:
            say(f"{experiment['experiment']}: sample-ratio alarm; do not use this figure", "bold red")
    for one in tables["not_incremental"]:
        say(f"{one['experiment']}: no incremental figure: {one['reason']}")
    for note in tables["notes"]:
        say(f"- {note}")
    say(f"report: {write(tables, output or c.workspace / 'earnings')}")
    publish(tables, c.releases)


def _incremental(days: Sequence[Mapping[str, Any]]) -> str:
    """The last estimate in words."""
    from offline.earnings import amount

    if not days or days[-1]["low"] is None:
        return "incremental revenue is not known yet"
    last = days[-1]
    low, high = amount(last["low"], True), amount(last["high"], True)
    return f"incremental revenue {amount(last['value'], True)} [{low}, {high}] of {last['users']:,} treated users"
