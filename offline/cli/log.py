"""Commands for the log of a running service: collect it, and compare served with replayed feature rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
